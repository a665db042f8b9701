"""The real camera and the real arm, as `deploy` reaches them, for commands that only look."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from visuomotor.deployment import DeployConfig, arm_settings
from visuomotor.errors import UserError
from visuomotor.runtime.arm import Arm, ArmError
from visuomotor.runtime.arms import make_arm
from visuomotor.runtime.cameras import IDLE, Camera
from visuomotor.runtime.errors import CameraError
from visuomotor.runtime.preprocessing import Lens
from visuomotor.runtime.processes import camera_settings, make_camera

ARMS = ("ros2", "jaco2")
FRAME_SECONDS = 10.0  # in which a camera must have sent one
SETTLING = 0.5  # s of frames before the one that counts: first ones may be old, or still too dark


def check_arm_kind(arm: str | None) -> None:
    """Raises UserError."""
    if arm not in (None, *ARMS):
        raise UserError(f"arm={arm}: expected {' or '.join(ARMS)}")


def settings_of_arm(arm: str | None, arm_config: str | None) -> dict[str, Any]:
    """Of the arm; without one, of arm_config= as arm=ros2 reads it. Raises UserError."""
    kind = "ros2" if arm is None else arm
    return arm_settings(DeployConfig(bundle="-", arm=kind, arm_config=arm_config))


def connect_arm(arm: str, arm_config: str | None) -> Arm:
    """An arm that has told its joints; nothing is sent to it. Raises UserError."""
    settings = settings_of_arm(arm, arm_config)
    try:
        connected = make_arm({"kind": arm, "settings": settings})
        connected.connect()
    except ArmError as error:
        raise UserError(f"arm={arm}: {error}") from error
    return connected


def open_camera(
    camera: str, arm: str | None, arm_config: str | None, lens: Lens | None = None
) -> Camera:
    """camera: number, URL, film or topic:<ROS 2 image topic>, in the arm's network. lens: whose
    size a camera of this computer is asked for. Raises UserError."""
    network = settings_of_arm(arm, arm_config) if camera.startswith("topic:") else {}
    try:
        return make_camera(camera_settings(camera, None, network), lens)
    except CameraError as error:
        raise UserError(str(error)) from error
    except ArmError as error:
        raise UserError(f"camera={camera}: {error}") from error


def newest_frame(source: Camera, camera: str, settling: float = 0.0) -> np.ndarray:
    """(h, w, 3) uint8: the last one that comes within `settling` s, or the first afterwards.

    A camera's driver holds frames that are older than the question, and a camera that was just
    opened does not know yet how bright it is. Raises UserError if none comes.
    """
    began, frame = time.monotonic(), None
    while frame is None or time.monotonic() < began + settling:
        live = source.read()
        if live is not None:
            frame = live
            continue
        if time.monotonic() > began + FRAME_SECONDS:
            raise UserError(f"camera={camera} sent no frame within {FRAME_SECONDS:.0f} s")
        time.sleep(IDLE)
    return frame
