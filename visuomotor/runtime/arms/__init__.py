"""Arms that the runtime can talk to, made from plain settings that travel between processes."""

from __future__ import annotations

from typing import Any

from visuomotor.runtime.arm import Arm, ArmError

KINDS = ("sim", "ros2", "jaco2")


def make_arm(settings: dict[str, Any]) -> Arm:
    """settings: `kind` (one of KINDS), and what that arm's class takes.

    Raises ArmError for an unknown kind, and where a package is missing.
    """
    rest = {key: value for key, value in settings.items() if key != "kind"}
    match settings["kind"]:
        case "sim":
            from visuomotor.runtime.arms.sim import SimArm

            return SimArm(**rest)
        case "ros2":
            from visuomotor.runtime.arms.ros2 import Ros2Arm

            return Ros2Arm(**rest)
        case "jaco2":
            from visuomotor.runtime.arms.jaco2 import Jaco2Arm

            return Jaco2Arm(**rest)
    raise ArmError(f"arm={settings['kind']}: expected {', '.join(KINDS)}")
