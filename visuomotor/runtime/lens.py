"""A calibrated camera in a file (YAML), as `visuomotor.calibrate` writes it. numpy and OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from visuomotor.runtime.cameras import CameraError
from visuomotor.runtime.preprocessing import Lens

MAX_SIDE = 16384  # pixels


def load_lens(path: Path | str) -> Lens:
    """Raises CameraError, with the entry that is wrong. OpenCV reads the file: the arm's side needs
    no YAML package."""
    if not Path(path).is_file():
        raise CameraError(f"lens={path} is no file; make one: python -m visuomotor.calibrate")
    try:
        storage = cv2.FileStorage(str(path), cv2.FileStorage_READ)
        values: dict[str, Any] = {
            "width": int(storage.getNode("image_width").real()),
            "height": int(storage.getNode("image_height").real()),
            "matrix": storage.getNode("camera_matrix").mat(),
            "distortion": storage.getNode("distortion").mat(),
        }
        storage.release()
    except (cv2.error, SystemError) as error:
        raise CameraError(f"lens={path} is no calibration: {error}") from error
    for name in ("width", "height"):
        if not 1 <= values[name] <= MAX_SIDE:
            raise CameraError(f"lens={path}: image_{name}: expected 1 to {MAX_SIDE} pixels")
    matrix, distortion = values["matrix"], values["distortion"]
    if matrix is None or matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise CameraError(f"lens={path}: camera_matrix: expected 3x3 finite numbers")
    if not matrix[0, 0] > 0.0 or not matrix[1, 1] > 0.0:
        raise CameraError(f"lens={path}: camera_matrix: expected positive focal lengths")
    if distortion is None or not np.isfinite(distortion).all():
        raise CameraError(f"lens={path}: distortion: expected finite numbers")
    if distortion.size not in (4, 5, 8, 12, 14):
        raise CameraError(f"lens={path}: distortion: expected 4, 5, 8, 12 or 14 numbers")
    return Lens(values["width"], values["height"], matrix, distortion.ravel())


def save_lens(path: Path | str, lens: Lens) -> None:
    storage = cv2.FileStorage(str(path), cv2.FileStorage_WRITE)
    storage.write("image_width", lens.width)
    storage.write("image_height", lens.height)
    storage.write("camera_matrix", lens.matrix)
    storage.write("distortion", lens.distortion.reshape(1, -1))
    storage.release()
