"""Kinova's fingers are asked for places: what they are sent where a policy asks for speeds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "cyclonedds", reason='cyclonedds is not installed: pip install "visuomotor[ros2]"'
)


from visuomotor.runtime.arm import ArmError, JointState
from visuomotor.runtime.arms import make_arm
from visuomotor.runtime.arms.dds import (
    KinovaFingerPosition,
    KinovaJointVelocity,
)
from visuomotor.runtime.arms.jaco2 import Jaco2Arm
from visuomotor.runtime.arms.ros2 import HORIZON
from visuomotor.runtime.jaco import LIMITS

REACH = LIMITS.velocity * (LIMITS.delay + HORIZON)

POSITION = np.linspace(0.1, 0.9, 9)


class Fingers:
    """A Jaco 2 whose clock and fingers are played; what it is sent in turns, (3,) each."""

    def __init__(self, **settings: Any):
        arm = make_arm({"kind": "jaco2", "settings": settings})
        assert isinstance(arm, Jaco2Arm)
        self.arm, self.now = arm, 50.0
        self.place = np.full(3, 0.7)  # rad, of the policy's joints
        self.sent: list[np.ndarray] = []
        self.arm._finger_writer = SimpleNamespace(write=self._write)

    def _write(self, told: KinovaFingerPosition) -> None:
        self.sent.append(np.array([told.finger1, told.finger2, told.finger3]))

    def send(self, speed: float, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.now += 0.01
            position = np.concatenate((POSITION[:6], self.place))
            self.arm._state = JointState(position, np.zeros(9), self.now)
            self.arm._send_fingers(np.full(3, speed), self.now)

    def move_by_hand(self, to: float) -> None:
        """They rest meanwhile; 1 s."""
        for place in np.linspace(self.place, to, 100):
            self.place = place
            self.send(0.0)


def turns(angle: np.ndarray | float) -> np.ndarray:
    """rad -> turns: kinova tells 80 degrees of a closed finger, 6800 turns."""
    return np.rad2deg(angle) * 85.0


def test_kinova_s_fingers_are_asked_for_what_they_can_reach_and_do_not_wind_up() -> None:
    fingers = Fingers()  # held at 0.7 rad
    fingers.send(1.0, 300)
    closed = max(fingers.sent, key=lambda told: told[0])
    most = 0.7 + LIMITS.velocity[6] * (LIMITS.delay + HORIZON)
    assert closed == pytest.approx(turns(most))
    fingers.send(-1.0, 10)
    assert fingers.sent[-1] == pytest.approx(closed - turns(0.1)), "opening begins at once"
    fingers.move_by_hand(1.3)
    fingers.send(1.0, 300)
    assert fingers.sent[-1] == pytest.approx(turns(1.35)), "and no further than their limit"


def test_kinova_s_fingers_are_told_in_their_own_sense() -> None:
    signs = np.array([1.0, -1.0, 1.0])
    offsets = np.array([0.3, 1.4, -0.1])
    fingers = Fingers(signs=(1.0,) * 6 + tuple(signs), offsets=(0.0,) * 6 + tuple(offsets))
    own = np.deg2rad([40.0, 50.0, 60.0])
    fingers.place = signs * own + offsets
    fingers.send(0.5)
    assert fingers.sent[-1] == pytest.approx([3400.0, 4250.0, 5100.0])
    fingers.send(0.5, 10)
    assert fingers.sent[-1] == pytest.approx(turns(own + signs * 0.05))


def test_kinova_s_fingers_that_lag_do_not_go_on_after_a_stop() -> None:
    signs, offsets = (1.0,) * 6 + (1.0, -1.0, 1.0), (0.0,) * 6 + (0.3, 1.4, 0.0)
    fingers = Fingers(signs=signs, offsets=offsets)
    for _ in range(50):
        fingers.send(1.0)
        fingers.place = fingers.place + 0.005  # half as fast as they are asked to be
    moving = len(fingers.sent)
    fingers.send(0.0)
    assert len(fingers.sent) == moving + 1
    own = np.array([0.95 - 0.3, 1.4 - 0.95, 0.95])
    assert fingers.sent[-1] == pytest.approx(turns(own)), "where they are"
    fingers.move_by_hand(0.5)
    assert len(fingers.sent) == moving + 1, "they are left alone"
    fingers.send(1.0)
    assert fingers.sent[-1] == pytest.approx(turns(np.array([0.5 - 0.3, 1.4 - 0.5, 0.5])))


def test_a_finger_s_stop_that_could_not_be_sent_is_sent_at_the_next_tick() -> None:
    fingers = Fingers()
    fingers.send(1.0, 50)
    write = fingers.arm._finger_writer.write

    def fail(message: object) -> None:
        raise RuntimeError("not sent")

    fingers.arm._finger_writer.write = fail
    with pytest.raises(RuntimeError, match="not sent"):
        fingers.send(0.0)
    fingers.arm._finger_writer.write = write
    fingers.send(0.0)
    assert fingers.sent[-1] == pytest.approx(turns(0.7))


def test_an_arm_whose_fingers_cannot_be_sent_anything_can_be_braked_and_says_so() -> None:
    fingers = Fingers()
    joints: list[KinovaJointVelocity] = []
    fingers.arm._writer = SimpleNamespace(write=joints.append)

    def fail(message: object) -> None:
        raise RuntimeError("not sent")

    fingers.arm._finger_writer.write = fail
    fingers.arm._state = JointState(POSITION, np.zeros(9), fingers.now)
    fingers.arm._reader = SimpleNamespace(take=lambda N: [])
    fingers.arm.send(np.full(9, np.deg2rad(10.0)))
    assert joints[-1].joint1 == pytest.approx(10.0)
    with pytest.raises(RuntimeError, match="not sent"):
        fingers.arm.read()
    assert fingers.arm.read() is fingers.arm._state


@pytest.mark.parametrize("said", [np.nan, 1.2])
def test_kinova_s_fingers_are_not_sent_where_they_cannot_have_come(said: float) -> None:
    fingers = Fingers()
    fingers.send(1.0, 50)
    fingers.place = np.full(3, said)
    fingers.send(1.0)
    assert fingers.sent[-1].max() <= turns(0.7 + REACH[6]) + 1e-9
    fingers.send(0.0)
    assert fingers.sent[-1] == pytest.approx(turns(0.7))


@pytest.mark.parametrize(
    ("others", "heard", "told"),
    [
        ({}, (1, 1), ""),
        ({}, (0, 1), "nobody listens on /arm yet: the arm will not move"),
        ({}, (1, 0), "nobody listens on /hand yet: the hand will not move"),
        ({"rt/arm": 1}, (1, 1), "1 other program sends on /arm, and the arm would"),
        ({"rt/hand": 2}, (1, 1), "2 other programs send on /hand, and the hand would"),
    ],
)
def test_who_else_sends_to_the_fingers_and_who_listens_is_asked_too(
    others: dict[str, int], heard: tuple[int, int], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = make_arm({"kind": "jaco2", "settings": {"command": "/arm", "fingers": "/hand"}})
    assert isinstance(arm, Jaco2Arm)
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.DISCOVERY", 0.0)
    monkeypatch.setattr(arm, "_open_writer", lambda: None)
    arm._member = SimpleNamespace(other_writers=lambda topic: others.get(topic, 0))
    arm._writer, arm._finger_writer = (
        SimpleNamespace(get_matched_subscriptions=lambda n=n: [0] * n) for n in heard
    )
    if others:
        with pytest.raises(ArmError, match=told):
            arm.claim()
    else:
        assert arm.claim() == told
