"""What the runtime asks of an arm, and what it must know of one.

numpy only. An adapter hides names, units and transport: everything here is in rad, rad/s and s, in
the order of `ArmLimits.joint_names`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from visuomotor.runtime.kinematics import Chain

MOST_DELAY = 0.3  # s of `ArmLimits.delay`: what was sent is remembered so long, and 0.2 s more


class ArmLimits(NamedTuple):
    """A joints, of which the first `len(chain)` carry the hand. What is sent never exceeds them."""

    joint_names: tuple[str, ...]
    position_low: np.ndarray  # (A,) rad; -inf: turns without end
    position_high: np.ndarray  # (A,) rad
    velocity: np.ndarray  # (A,) rad/s
    acceleration: np.ndarray  # (A,) rad/s^2
    jerk: np.ndarray  # (A,) rad/s^3
    chain: Chain  # base to the point that must stay in the workspace
    workspace_low: np.ndarray  # (3,) m, in the frame of the arm's base
    workspace_high: np.ndarray  # (3,) m
    delay: float = 0.1  # s: a velocity is carried out so long after it was sent, at most


class JointState(NamedTuple):
    """What an arm last said of itself."""

    position: np.ndarray  # (A,) rad
    velocity: np.ndarray  # (A,) rad/s
    stamp: float  # s, time.monotonic() at which it arrived


class ArmError(Exception):
    """An arm that cannot be reached or does not fit; one line that says what to do."""


class Arm(Protocol):
    """One arm; used by one thread."""

    @property
    def limits(self) -> ArmLimits: ...

    def connect(self) -> None:
        """Raises ArmError if the arm is not there."""
        ...

    def claim(self) -> str:
        """To be called once before anything is sent -> what a human should know, or nothing.

        Raises ArmError if another program sends to this arm.
        """
        ...

    def read(self) -> JointState | None:
        """The newest state, or None before the first; never waits. What does not fit (missing or
        unknown joints, wrong lengths) is no state: the last one grows old instead."""
        ...

    def send(self, velocity: np.ndarray) -> None:
        """(A,) rad/s, to be held until the next; never waits. If it raises, the arm still does what
        it was sent before."""
        ...

    def stop(self) -> None:
        """Zero velocity, and the connection ends."""
        ...
