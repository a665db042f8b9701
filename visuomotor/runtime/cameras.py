"""Cameras that the runtime can look through, and the newest image of one.

numpy and OpenCV. Real cameras wait for their next frame, so each is read by a thread of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from visuomotor.runtime.errors import CameraError

REOPEN = 1.0  # s without a frame after which a camera is opened anew: it may have been pulled
IDLE = 0.002  # s between questions to a camera that never waits


class Camera(Protocol):
    channels: str  # "BGR" or "RGB"

    def read(self) -> np.ndarray | None:
        """(h, w, 3) uint8, the next frame; None if there is none now."""
        ...

    def close(self) -> None: ...


class Frame(NamedTuple):
    image: np.ndarray  # (height, width, 3) uint8 RGB, as the policy reads it
    stamp: float  # s, time.monotonic() at which the camera gave it
    changed: float  # s, when a frame came that differed from the one before it


class Newest:
    """Reads a camera in the background; `frame` is the newest, None before the first.

    A camera that hangs may hand out one picture for ever: `changed` then stays behind.
    """

    def __init__(self, camera: Camera, preprocessing: Callable[[np.ndarray, str], np.ndarray]):
        """preprocessing: from a frame and its channels to what the policy reads; done here, as soon
        as a frame comes, rather than between its decision and the arm."""
        self.camera = camera
        self._preprocessing = preprocessing
        self.frame: Frame | None = None
        self.problem = ""  # the last error in reading the camera
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        raw = np.zeros(0, np.uint8)
        while not self._stop.is_set():
            try:
                newest = self.camera.read()
                now = time.monotonic()  # before it is made ready, which takes some ms
                image = (
                    None if newest is None else self._preprocessing(newest, self.camera.channels)
                )
            except Exception as error:
                # One broken frame; if all are, the newest grows old, and the guard acts on that.
                self.problem = f"{type(error).__name__}: {error}"
                newest = image = None
            if newest is None or image is None:
                time.sleep(IDLE)
                continue
            last = self.frame
            same = last is not None and np.array_equal(raw, newest)
            raw = newest
            self.frame = Frame(image, now, last.changed if same and last is not None else now)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)
        self.camera.close()


class Capture:
    """A camera of this computer by its number, a stream by its URL, or a video file.

    A file is played at its own rate, once around and again. A camera or stream that sends nothing
    for REOPEN s is opened anew. Raises CameraError if it cannot be opened at first.
    """

    channels = "BGR"

    def __init__(self, source: str, rate: float | None = None, size: tuple[int, int] | None = None):
        """source: "0", "rtsp://...", "film.mp4"; rate: frames/s that are asked for, size: width
        and height in pixels. A camera gives what it can, a stream or a file what it has."""
        self._source, self._rate, self._size = source, rate, size
        self._is_file = Path(source).is_file()
        self._open()
        if not self._capture.isOpened():
            raise CameraError(
                f"camera={source} cannot be opened; give the number of a camera (0 is the first), "
                "a URL, a video file, or topic:<ROS 2 image topic>"
            )
        self.rate: float = self._capture.get(cv2.CAP_PROP_FPS) or 30.0
        self._due = self._alive = time.monotonic()

    def _open(self) -> None:
        source = self._source
        self._capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
        # The newest frame is wanted, not the oldest of a queue.
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if self._size is not None:  # before the rate, whose choice hangs on it
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size[1])
        if self._rate is not None:
            self._capture.set(cv2.CAP_PROP_FPS, self._rate)

    def read(self) -> np.ndarray | None:
        if self._is_file:
            self._due = max(self._due + 1.0 / self.rate, time.monotonic())
            time.sleep(max(0.0, self._due - time.monotonic()))
        found, image = self._capture.read()
        if not found and self._is_file:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            found, image = self._capture.read()
        if found:
            self._alive = time.monotonic()
            return np.asarray(image)
        if not self._is_file and time.monotonic() - self._alive > REOPEN:
            self._capture.release()
            self._open()
            self._alive = time.monotonic()
        return None

    def close(self) -> None:
        self._capture.release()
