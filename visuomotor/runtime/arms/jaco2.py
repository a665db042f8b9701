"""A Jaco 2 under kinova-ros, behind a bridge that carries its ROS 1 topics over DDS.

kinova-ros wants joint velocities 100 times a second, in degrees/s (its README, section "Velocity
control for joint space and Cartesian space"). Fingers have no velocity topic: where they should be
is sent as positions, in turns of their motors; the bridge hands these to kinova-ros's finger action
(docs/real_arm.md).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from cyclonedds.pub import DataWriter
from cyclonedds.topic import Topic

from visuomotor.runtime.arm import ArmError, JointState
from visuomotor.runtime.arms.dds import (
    COMMANDS,
    KinovaFingerPosition,
    KinovaJointVelocity,
    topic_name,
)
from visuomotor.runtime.arms.ros2 import LONGEST_STEP, Ros2Arm, Ros2Settings, reachable
from visuomotor.runtime.jaco import LIMITS

FINGER_TURNS = 6800.0  # of a closed finger
DEGREES_PER_TURN = 80.0 / FINGER_TURNS  # in kinova-ros's joint states
NUM_ARM = 6


@dataclass(frozen=True)
class Jaco2Settings(Ros2Settings):
    joint_states: str = "/j2n6s300_driver/out/joint_state"
    command: str = "/j2n6s300_driver/in/joint_velocity"
    fingers: str = "/j2n6s300_driver/in/finger_position"


class Jaco2Arm(Ros2Arm):
    """An `Arm`."""

    settings: Jaco2Settings

    def __init__(self, settings: Jaco2Settings | None = None, delay: float = LIMITS.delay):
        super().__init__(Jaco2Settings() if settings is None else settings, delay)
        if self.settings.mode != "velocity":
            raise ArmError(f"mode={self.settings.mode}: a Jaco 2 takes velocity alone")
        self._fingers: np.ndarray | None = None  # rad, where they should be; None: they rest
        self._finger_error: Exception | None = None

    def _open_writer(self) -> None:
        member, settings = self._member.participant, self.settings
        velocity = Topic(member, topic_name(settings.command), KinovaJointVelocity)
        fingers = Topic(member, topic_name(settings.fingers), KinovaFingerPosition)
        self._writer = DataWriter(member, velocity, qos=COMMANDS)
        self._finger_writer = DataWriter(member, fingers, qos=COMMANDS)

    def _commands(self) -> list[tuple[str, DataWriter, str]]:
        fingers = (self.settings.fingers, self._finger_writer, "the hand")
        return [*super()._commands(), fingers]

    def read(self) -> JointState | None:
        """Raises what went wrong with the fingers since the last call."""
        if self._finger_error is not None:
            error, self._finger_error = self._finger_error, None
            raise error
        return super().read()

    def send(self, velocity: np.ndarray) -> None:
        assert self._writer is not None, "an arm is claimed before anything is sent"
        self._writer.write(joint_velocity(self._signs * velocity))
        try:
            self._send_fingers(velocity[NUM_ARM:], time.monotonic())
        except Exception as error:
            self._finger_error = error  # `read` tells: the arm's joints got theirs, and can brake

    def _send_fingers(self, velocity: np.ndarray, now: float) -> None:
        """velocity (3,) rad/s. From rest they begin where they are. Fingers that come to rest are
        told once to stay where they were seen, as kinova goes on to the last goal by itself; then
        nothing: they stay where they are, and where somebody moves them."""
        place = self._place()
        if place is None:
            return
        seen = place.position[NUM_ARM:]
        step = min(now - self._sent, LONGEST_STEP)
        self._sent = now
        if not velocity.any():
            if self._fingers is not None:
                self._write_fingers(seen)
            self._fingers = None
            return
        if self._fingers is None:
            self._fingers, step = seen, 0.0
        low, high = (bound[NUM_ARM:] for bound in reachable(self.limits, place.position))
        self._fingers = np.clip(self._fingers + velocity * step, low, high)
        self._write_fingers(self._fingers)

    def _write_fingers(self, position: np.ndarray) -> None:
        """position (3,) rad, of the policy's joints."""
        own = self._signs[NUM_ARM:] * (position - self._offsets[NUM_ARM:])
        self._finger_writer.write(finger_position(own))


def joint_velocity(velocity: np.ndarray) -> KinovaJointVelocity:
    """velocity (A,) rad/s, arm joints first -> degrees/s; a seventh joint stands still."""
    degrees = np.rad2deg(velocity[:NUM_ARM]).tolist()
    return KinovaJointVelocity(*degrees, 0.0)


def finger_position(position: np.ndarray) -> KinovaFingerPosition:
    """position (3,) rad, in the arm's own sense -> turns: the other way, kinova-ros makes its joint
    states of them."""
    turns = np.clip(np.rad2deg(position) / DEGREES_PER_TURN, 0.0, FINGER_TURNS)
    return KinovaFingerPosition(*turns.tolist())
