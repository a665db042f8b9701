"""Films and contact sheets of what a policy's camera saw. Knows nothing of policies or worlds."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np

from visuomotor.checkpoint import write_atomic

SCALE = 2  # pixels on screen for each pixel of the camera
COLUMNS = 4  # worlds side by side in the film
SHEET_STEPS = 10  # columns of the contact sheet: moments of an episode
SHEET_WORLDS = 8  # rows of the contact sheet: episodes


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
    """H.264 in mp4. frames: (W, H, W', 3) uint8 RGB a step; rate: frames/s."""
    images = [_enlarge(_tile(frame, min(COLUMNS, len(frame)))) for frame in frames]
    height, width = images[0].shape[:2]
    temporary = path.with_name(f".{path.stem}.tmp.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(temporary), (width, height), fps=rate, macro_block_size=2, ffmpeg_log_level="error"
    )
    writer.send(None)
    for image in images:
        writer.send(np.ascontiguousarray(image))
    writer.close()
    os.replace(temporary, path)


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
