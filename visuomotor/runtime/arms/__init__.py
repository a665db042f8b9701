"""Arms that the runtime can talk to, made from plain settings that travel between processes."""

from __future__ import annotations

from typing import Any

from visuomotor.runtime.arm import Arm, ArmError
from visuomotor.runtime.jaco import LIMITS

KINDS = ("sim", "ros2", "jaco2")


def settings_type(kind: str) -> Any:
    """The dataclass of settings of ros2 or jaco2. Raises ArmError where cyclonedds is missing."""
    if kind == "jaco2":
        from visuomotor.runtime.arms.jaco2 import Jaco2Settings

        return Jaco2Settings
    from visuomotor.runtime.arms.ros2 import Ros2Settings

    return Ros2Settings


def make_arm(settings: dict[str, Any]) -> Arm:
    """settings: `kind` (one of KINDS), `delay` [s] (ArmLimits.delay; may be left out); of sim
    `port`, of the others `settings`, as a dictionary.

    Raises ArmError for an unknown kind, and where a package is missing.
    """
    kind, delay = settings["kind"], settings.get("delay", LIMITS.delay)
    if kind == "sim":
        from visuomotor.runtime.arms.sim import SimArm

        return SimArm(settings["port"], delay)
    if kind not in KINDS:
        raise ArmError(f"arm={kind}: expected {', '.join(KINDS)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in settings["settings"].items()}
    chosen = settings_type(kind)(**values)
    if kind == "jaco2":
        from visuomotor.runtime.arms.jaco2 import Jaco2Arm

        return Jaco2Arm(chosen, delay)
    from visuomotor.runtime.arms.ros2 import Ros2Arm

    return Ros2Arm(chosen, delay)
