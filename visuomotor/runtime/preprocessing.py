"""A camera's image as a policy reads it: undistorted to the simulated camera, shrunk by area, RGB.

On the arm and in `visuomotor.overlay` alone: in training, images are rendered at the policy's size
(64x64) at once, one ray a pixel, where a camera's are averaged down to it. numpy and OpenCV.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class Lens(NamedTuple):
    """A calibrated camera (docs/real_arm.md): what it sees where."""

    width: int  # pixels of the images that it was calibrated with
    height: int
    matrix: np.ndarray  # (3, 3) pixels; pixel centres at whole numbers, as OpenCV counts
    distortion: np.ndarray  # (D,) OpenCV's k1, k2, p1, p2, k3, ...
    # (3, 3): directions of the real camera to those of the simulated one, which stands in the same
    # place and looks elsewhere, without roll.
    rectification: np.ndarray = np.eye(3)


def simulated_matrix(height: int, width: int, fovy_deg: float) -> np.ndarray:
    """(3, 3): the pinhole camera of the simulation with images of this size, in OpenCV's count."""
    focal = 0.5 * height / np.tan(np.deg2rad(fovy_deg) / 2)
    return np.array([[focal, 0, width / 2 - 0.5], [0, focal, height / 2 - 0.5], [0, 0, 1.0]])


class Preprocessing:
    """From frames of one camera to (height, width, 3) uint8 RGB.

    Without a lens the image is taken to show what the simulated camera shows: its middle, cut to
    the policy's shape, is shrunk.
    """

    def __init__(self, height: int, width: int, fovy_deg: float, lens: Lens | None = None):
        self.height, self.width = height, width
        self._maps = None if lens is None else _undistortion(height, width, fovy_deg, lens)
        self._lens = lens

    def __call__(self, frame: np.ndarray, channels: str = "BGR") -> np.ndarray:
        """frame (h, w, 3) uint8; channels: BGR (OpenCV's) or RGB.

        Raises ValueError on another shape or type, or another size than the lens's.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(
                f"frame: expected (height, width, 3) uint8, received {frame.shape} {frame.dtype}"
            )
        if channels not in ("BGR", "RGB"):
            raise ValueError(f"channels={channels}: expected BGR or RGB")
        if self._lens is not None and frame.shape[:2] != (self._lens.height, self._lens.width):
            raise ValueError(
                f"frame: {frame.shape[1]}x{frame.shape[0]} pixels, but the camera was calibrated "
                f"with {self._lens.width}x{self._lens.height}"
            )
        if self._maps is not None:
            frame = cv2.remap(frame, *self._maps, cv2.INTER_LINEAR)
        else:
            frame = _middle(frame, self.width / self.height)
        small = resize(frame, self.height, self.width)
        return np.ascontiguousarray(small[..., ::-1]) if channels == "BGR" else small


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8, area averaging; the same size stays as it is."""
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))


def _middle(frame: np.ndarray, aspect: float) -> np.ndarray:
    """The largest middle part of a frame whose width is `aspect` times its height."""
    height, width = frame.shape[:2]
    wanted_width = min(width, round(height * aspect))
    wanted_height = min(height, round(wanted_width / aspect))
    top, left = (height - wanted_height) // 2, (width - wanted_width) // 2
    return frame[top : top + wanted_height, left : left + wanted_width]


def _undistortion(
    height: int, width: int, fovy_deg: float, lens: Lens
) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's maps from the real image to a pinhole image, as large as its resolution merits, of
    the simulated field of view."""
    scale = max(1, round(lens.matrix[1, 1] / simulated_matrix(height, width, fovy_deg)[1, 1]))
    size = (width * scale, height * scale)
    pinhole = simulated_matrix(size[1], size[0], fovy_deg)
    maps = cv2.initUndistortRectifyMap(
        lens.matrix, lens.distortion, lens.rectification, pinhole, size, cv2.CV_32FC1
    )
    return maps[0], maps[1]


def coverage(height: int, width: int, fovy_deg: float, lens: Lens) -> float:
    """The share of the simulated camera's image that the real one sees, too."""
    columns, rows = _undistortion(height, width, fovy_deg, lens)
    inside = (columns >= 0) & (columns <= lens.width - 1) & (rows >= 0) & (rows <= lens.height - 1)
    return float(inside.mean())


def looking_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(3, 3): directions of a camera (x right, y down, z ahead) that looks from one point (3,) at
    another without roll, to those of the frame that both are given in, whose z is up."""
    ahead = (target - position) / np.linalg.norm(target - position)
    right = np.cross(ahead, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack((right, np.cross(ahead, right), ahead), axis=1)
