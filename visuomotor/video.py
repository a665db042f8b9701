"""Films and contact sheets of what a policy's camera saw. Knows nothing of policies or worlds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from visuomotor.files import partial_path, write_atomic

FILM = ("evaluation.mp4", "evaluation.png")  # the film and the contact sheet of an evaluation
SCALE = 2  # pixels on screen for each pixel of the camera
COLUMNS = 4  # worlds side by side in the film
SHEET_STEPS = 10  # columns of the contact sheet: moments of an episode
SHEET_WORLDS = 8  # rows of the contact sheet: episodes


@dataclass(frozen=True)
class Clip:
    """One episode, from its begin to its end."""

    episode: int
    success: bool
    stage: str  # at its end
    policy_view: list[np.ndarray]  # (H, W, 3) uint8 RGB a frame
    wide_view: list[np.ndarray]
    rate: float  # frames/s


def _enlarge(image: np.ndarray) -> np.ndarray:
    return image.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def _tile(worlds: np.ndarray, columns: int) -> np.ndarray:
    """(W, H, W', 3) -> one image, row by row; missing places stay black."""
    count, height, width, channels = worlds.shape
    rows = -(-count // columns)
    padded = np.zeros((rows * columns, height, width, channels), dtype=worlds.dtype)
    padded[:count] = worlds
    grid = padded.reshape(rows, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def write_video(path: Path, frames: list[np.ndarray], rate: float) -> None:
    """H.264 in mp4, there whole or not at all. frames: (W, H, W', 3) uint8 RGB a step; rate:
    frames/s.

    Raises OSError if it cannot be written.
    """
    if not frames:
        raise ValueError(f"no frames for {path}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder for {path}")
    images = [_enlarge(_tile(frame, min(COLUMNS, len(frame)))) for frame in frames]
    height, width = images[0].shape[:2]
    temporary = partial_path(path)
    writer = imageio_ffmpeg.write_frames(
        str(temporary),
        (width, height),
        fps=rate,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-f", "mp4"],  # the temporary name does not tell
    )
    try:
        writer.send(None)
        for image in images:
            writer.send(np.ascontiguousarray(image))
        writer.close()
        _check_film(temporary, len(images))
        os.replace(temporary, path)
    except BaseException:
        writer.close()
        temporary.unlink(missing_ok=True)
        raise


def _check_film(path: Path, frames: int) -> None:
    """Raises OSError unless the film has so many frames: ffmpeg's own failure goes unreported."""
    try:
        written, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    except (AssertionError, RuntimeError) as error:
        raise OSError(f"ffmpeg wrote no readable film to {path}") from error
    if written != frames:
        raise OSError(f"ffmpeg wrote {written} of {frames} frames to {path}")


def write_contact_sheet(path: Path, frames: list[np.ndarray]) -> None:
    """PNG: a row an episode, a column a moment, evenly spread over the episode."""
    moments = np.linspace(0, len(frames) - 1, SHEET_STEPS).round().astype(int)
    worlds = min(SHEET_WORLDS, len(frames[0]))
    cells = np.stack([frames[t][w] for w in range(worlds) for t in moments])
    sheet = _enlarge(_tile(cells, SHEET_STEPS))
    encoded, data = cv2.imencode(".png", sheet[..., ::-1])
    if not encoded:
        raise RuntimeError(f"cannot encode {path}")
    write_atomic(path, data.tobytes())
