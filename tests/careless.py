"""The runtime's processes as they must not be written, to show that faults find it:
`python -m tests.careless stamps|wall ROLE SETTINGS`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from visuomotor.runtime import processes
from visuomotor.runtime.arm import JointState
from visuomotor.runtime.arms.sim import SimArm, in_order
from visuomotor.runtime.jaco import LIMITS


def read_stamps(arm: SimArm) -> JointState | None:
    """Believes what messages say of the time."""
    assert arm._subscription is not None
    for message in arm._subscription.messages():
        told = json.loads(message)
        position, velocity = in_order(
            told["name"],
            LIMITS.joint_names,
            position=told["position"],
            velocity=told["velocity"],
        )
        arm._state = JointState(position, velocity, told["stamp"])
    return arm._state


def read_places(arm: SimArm) -> JointState | None:
    """Believes that joints come in the order in which they came the first time."""
    assert arm._subscription is not None
    for message in arm._subscription.messages():
        told = json.loads(message)
        position, velocity = np.array(told["position"]), np.array(told["velocity"])
        arm._state = JointState(position, velocity, time.monotonic())
    return arm._state


class WallClock:
    """Stands in for `time`: what is asked of the monotonic clock is told by the wall clock."""

    def __init__(self, ahead: float, wall: Callable[[], float] = time.time):
        """ahead: s, by which the wall clock is ahead of the monotonic one now."""
        self.monotonic = lambda: wall() - ahead
        self.sleep = time.sleep


def main() -> None:
    if sys.argv[1] == "stamps":
        SimArm.read = read_stamps  # type: ignore[method-assign]
    else:
        time.monotonic = WallClock(time.time() - time.monotonic(), lambda: time.time()).monotonic
    sys.exit(processes.main(sys.argv[2:]))


if __name__ == "__main__":
    main()
