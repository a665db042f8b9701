"""A calibrated camera as the simulation's nominal one."""

from __future__ import annotations

from dataclasses import replace

from visuomotor.config import CameraConfig
from visuomotor.errors import UserError
from visuomotor.limits import check_camera
from visuomotor.runtime.errors import CameraError
from visuomotor.runtime.lens import Calibration, load_calibration


def read_calibration(path: str) -> Calibration:
    """Raises UserError if the file is none of visuomotor.calibrate, or knows no place."""
    try:
        calibration = load_calibration(path, key="calibration")
    except CameraError as error:
        raise UserError(str(error)) from error
    if calibration.pos is None:
        raise UserError(
            f"calibration={path} holds a lens alone; calibrate again with joints.csv beside the "
            "pictures, so that it also knows where the camera stands"
        )
    return calibration


def calibrated(camera: CameraConfig, path: str | None) -> CameraConfig:
    """The camera where the file says that the real one stands; as it is without a file.

    Raises UserError where no camera of the simulation may stand, or look.
    """
    if path is None:
        return camera
    found = read_calibration(path)
    assert found.pos is not None and found.lookat is not None and found.fovy is not None
    x, y, z = found.pos.tolist()
    u, v, w = found.lookat.tolist()
    placed = replace(camera, pos=(x, y, z), lookat=(u, v, w), fovy=found.fovy)
    try:
        check_camera(placed)
    except UserError as error:
        raise UserError(f"calibration={path}: {error}") from error
    return placed
