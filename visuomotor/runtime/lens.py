"""A calibrated camera in a file (YAML), as `visuomotor.calibrate` writes it. numpy and OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from visuomotor.runtime.errors import CameraError
from visuomotor.runtime.preprocessing import Lens

MAX_SIDE = 16384  # pixels
_SCALARS = ("image_width", "image_height", "fovy_deg")
_MATRICES = ("camera_matrix", "distortion", "rectification", "camera_pos", "lookat")


class Calibration(NamedTuple):
    """A lens, and where its camera stands, if that is known."""

    lens: Lens
    facts: dict[str, float]  # how good it is
    pos: np.ndarray | None = None  # (3,) m, simulated world
    lookat: np.ndarray | None = None  # (3,) m: where the simulated camera looks from there
    fovy: float | None = None  # degrees, of the simulated camera


def load_lens(path: Path | str) -> Lens:
    """As `load_calibration`, the lens alone."""
    return load_calibration(path).lens


def load_calibration(path: Path | str, key: str = "lens") -> Calibration:
    """key: the setting that named the file. OpenCV reads it: the arm's side needs no YAML package.

    Raises CameraError, with the entry that is wrong.
    """
    told = f"{key}={path}"
    if not Path(path).is_file():
        matter = "is there, but is no plain file" if Path(path).exists() else "is no file"
        raise CameraError(f"{told} {matter}; make one: python -m visuomotor.calibrate")
    try:
        # OpenCV would tell of no such trouble, and find nothing in the file.
        Path(path).open("rb").close()
    except OSError as error:
        raise CameraError(f"{told} cannot be read: {error.strerror}") from error
    try:
        storage = cv2.FileStorage(str(path), cv2.FileStorage_READ)
        nodes = {name: storage.getNode(name) for name in _SCALARS + _MATRICES}
        found = {n: node for n, node in nodes.items() if not node.empty()}
        numbers = {n: float(node.real()) for n, node in found.items() if n in _SCALARS}
        matrices = {n: node.mat() for n, node in found.items() if n in _MATRICES}
        quality = storage.getNode("facts")
        names = [] if quality.empty() else list(quality.keys())
        facts = {name: quality.getNode(name).real() for name in names}
        storage.release()
    except (cv2.error, SystemError) as error:
        raise CameraError(
            f"{told} is damaged, or no file of visuomotor.calibrate: it cannot be read"
        ) from error

    def matrix(name: str, *shapes: tuple[int, ...]) -> np.ndarray:
        value = matrices.get(name)
        if value is None or value.shape not in shapes or not np.isfinite(value).all():
            raise CameraError(f"{told}: {name}: expected finite numbers of shape {shapes}")
        return np.asarray(value, dtype=np.float64)

    for name in ("image_width", "image_height"):
        if not 1 <= numbers.get(name, 0) <= MAX_SIDE:
            raise CameraError(f"{told}: {name}: expected 1 to {MAX_SIDE} pixels")
    pinhole = matrix("camera_matrix", (3, 3))
    if not pinhole[0, 0] > 0.0 or not pinhole[1, 1] > 0.0:
        raise CameraError(f"{told}: camera_matrix: expected positive focal lengths")
    fx, fy, cx, cy = pinhole[0, 0], pinhole[1, 1], pinhole[0, 2], pinhole[1, 2]
    if not np.allclose(pinhole, [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]], rtol=0.0):
        raise CameraError(f"{told}: camera_matrix: expected [fx, 0, cx, 0, fy, cy, 0, 0, 1]")
    turn = matrix("rectification", (3, 3)) if "rectification" in matrices else np.eye(3)
    # A reflection is orthogonal, too: it would mirror what the policy sees.
    if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-6) or np.linalg.det(turn) < 0.0:
        raise CameraError(f"{told}: rectification: expected a rotation")
    lens = Lens(
        int(numbers["image_width"]),
        int(numbers["image_height"]),
        pinhole,
        matrix("distortion", *((1, n) for n in (4, 5, 8, 12, 14))).ravel(),
        turn,
    )
    if "camera_pos" not in matrices:
        return Calibration(lens, facts)
    fovy = numbers.get("fovy_deg", 0.0)
    if not 1.0 <= fovy <= 120.0:
        raise CameraError(f"{told}: fovy_deg: expected 1 to 120")
    pos, lookat = (matrix(name, (1, 3)).ravel() for name in ("camera_pos", "lookat"))
    if (pos == lookat).all():
        raise CameraError(f"{told}: lookat: expected another point than camera_pos")
    return Calibration(lens, facts, pos, lookat, fovy)


def calibration_yaml(calibration: Calibration) -> str:
    """What `load_calibration` reads."""
    lens = calibration.lens
    storage = cv2.FileStorage(".yaml", cv2.FileStorage_WRITE | cv2.FileStorage_MEMORY)
    storage.write("image_width", lens.width)
    storage.write("image_height", lens.height)
    storage.write("camera_matrix", lens.matrix)
    storage.write("distortion", lens.distortion.reshape(1, -1))
    storage.write("rectification", lens.rectification)
    if calibration.pos is not None and calibration.lookat is not None:
        assert calibration.fovy is not None
        storage.write("camera_pos", np.asarray(calibration.pos).reshape(1, 3))
        storage.write("lookat", np.asarray(calibration.lookat).reshape(1, 3))
        storage.write("fovy_deg", float(calibration.fovy))
    storage.startWriteStruct("facts", cv2.FileNode_MAP)
    for name, value in calibration.facts.items():
        storage.write(name, float(value))
    storage.endWriteStruct()
    content: str = storage.releaseAndGetString()
    return content
