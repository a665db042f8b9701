"""Arms and cameras on ROS 2's topics: messages as ROS reads them, over DDS on loopback."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "cyclonedds", reason='cyclonedds is not installed: pip install "visuomotor[ros2]"'
)

from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from visuomotor.runtime.arm import ArmError, JointState
from visuomotor.runtime.arms import make_arm
from visuomotor.runtime.arms.dds import (
    COMMANDS,
    NEWEST,
    Float64MultiArray,
    Header,
    ImageMessage,
    JointStateMessage,
    JointTrajectory,
    KinovaFingerPosition,
    KinovaJointVelocity,
    Participant,
    Time,
)
from visuomotor.runtime.arms.jaco2 import finger_position, joint_velocity
from visuomotor.runtime.arms.ros2 import (
    HORIZON,
    KINOVA_JOINTS,
    Ros2Arm,
    Ros2Camera,
    Ros2Settings,
    decode_image,
)

DOMAIN = 97
PATIENCE = 20.0  # s that a message may take on a machine that is busy with other things
POSITION = np.linspace(0.1, 0.9, 9)


class Peer:
    """The other side: a driver that tells its joints and reads what it is sent."""

    def __init__(self, command: str, kind: type, names: tuple[str, ...] = KINOVA_JOINTS):
        self.names = names
        member = Participant(DOMAIN, "lo").participant
        self.states = DataWriter(
            member, Topic(member, "rt/joint_states", JointStateMessage), qos=COMMANDS
        )
        self.commands = DataReader(member, Topic(member, "rt" + command, kind), qos=COMMANDS)

    def tell(self, names: tuple[str, ...] | None = None) -> None:
        names = self.names if names is None else names
        position = [float(POSITION[KINOVA_JOINTS.index(name)]) for name in names]
        message = JointStateMessage(
            Header(Time(0, 0), ""), list(names), position, [2 * p for p in position], []
        )
        self.states.write(message)


def until(what: Callable[[], Any], meanwhile: Callable[[], None]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        meanwhile()
        if (found := what()) is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("no message came")


def connected(arm: Ros2Arm, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Ros2Arm:
    """`connect` waits for a state, so its questions also make the peer speak."""
    read = arm.read

    def speak_and_read() -> Any:
        peer.tell()
        return read()

    monkeypatch.setattr(arm, "read", speak_and_read)
    arm.connect()
    monkeypatch.setattr(arm, "read", read)
    return arm


def first(reader: DataReader) -> Any:
    taken = [m for m in reader.take(N=8) if not type(m).__name__.startswith("Invalid")]
    return taken[-1] if taken else None


def test_joints_are_read_by_name_whatever_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = (*KINOVA_JOINTS[4:], *KINOVA_JOINTS[:4])
    peer = Peer("/a/commands", Float64MultiArray, mixed)
    arm = connected(Ros2Arm(Ros2Settings(domain=DOMAIN, command="/a/commands")), peer, monkeypatch)
    state = arm.read()
    assert state is not None
    assert state.position == pytest.approx(POSITION)
    assert state.velocity == pytest.approx(2 * POSITION)


def test_a_velocity_reaches_the_controller_in_order_and_sense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signs = (1.0, -1.0) + (1.0,) * 7
    offsets = (0.0, 0.5) + (0.0,) * 7
    settings = Ros2Settings(domain=DOMAIN, command="/b/commands", signs=signs, offsets=offsets)
    peer = Peer("/b/commands", Float64MultiArray)
    arm = connected(Ros2Arm(settings), peer, monkeypatch)
    state = arm.read()
    assert state is not None
    assert state.position[1] == pytest.approx(0.5 - POSITION[1])
    velocity = np.arange(9) / 10
    told = until(lambda: first(peer.commands), lambda: arm.send(velocity))
    assert list(told.data) == pytest.approx(velocity * np.array(signs))


def test_a_trajectory_s_point_lies_where_the_velocity_leads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peer = Peer("/c/trajectory", JointTrajectory)
    settings = Ros2Settings(domain=DOMAIN, command="/c/trajectory", mode="trajectory")
    arm = connected(Ros2Arm(settings), peer, monkeypatch)
    velocity = np.full(9, 0.2)
    told = until(lambda: first(peer.commands), lambda: arm.send(velocity))
    assert tuple(told.joint_names) == KINOVA_JOINTS
    (point,) = told.points
    assert list(point.positions) == pytest.approx(POSITION + velocity * HORIZON)
    assert list(point.velocities) == pytest.approx(velocity)
    assert point.time_from_start.nanosec == int(HORIZON * 1e9)


def test_a_state_that_lacks_a_joint_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer("/d/commands", Float64MultiArray)
    arm = connected(Ros2Arm(Ros2Settings(domain=DOMAIN, command="/d/commands")), peer, monkeypatch)
    for _ in range(20):  # what is still on its way
        arm.read()
        time.sleep(0.01)
    before = arm.read()
    for _ in range(20):
        peer.tell(KINOVA_JOINTS[:-1])
        time.sleep(0.005)
        assert arm.read() is before


def test_an_arm_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.PATIENCE", 0.1)
    arm = Ros2Arm(Ros2Settings(domain=DOMAIN, joint_states="/nobody"))
    with pytest.raises(ArmError, match="/nobody"):
        arm.connect()


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_an_image_of_a_topic_is_read_with_its_padding_left_out(encoding: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    sent = image if encoding == "rgb8" else image[..., ::-1]
    rows = np.concatenate((sent.reshape(4, 15), np.zeros((4, 3), np.uint8)), axis=1)
    message = ImageMessage(Header(Time(0, 0), ""), 4, 5, encoding, 0, 18, rows.ravel().tolist())
    member = Participant(DOMAIN, "lo").participant
    topic = f"/camera/{encoding}"
    writer = DataWriter(member, Topic(member, "rt" + topic, ImageMessage), qos=NEWEST)
    camera = Ros2Camera(topic, DOMAIN)
    seen = until(camera.read, lambda: writer.write(message))
    assert (seen == image).all()


def test_an_image_that_does_not_fit_is_none() -> None:
    head = Header(Time(0, 0), "")
    assert decode_image(ImageMessage(head, 2, 2, "mono8", 0, 2, [0] * 4)) is None
    assert decode_image(ImageMessage(head, 2, 2, "rgb8", 0, 6, [0] * 11)) is None
    assert decode_image(ImageMessage(head, 2, 2, "rgb8", 0, 5, [0] * 10)) is None


# --- kinova-ros ----------------------------------------------------------------------------------


def test_kinova_s_velocities_are_degrees_and_its_seventh_joint_stands_still() -> None:
    told = joint_velocity(np.deg2rad([1, -2, 3, 4, 5, 6, 7, 8, 9]))
    assert [getattr(told, f"joint{i}") for i in range(1, 8)] == pytest.approx(
        [1, -2, 3, 4, 5, 6, 0]
    )


def test_kinova_s_fingers_are_turns_within_their_range() -> None:
    told = finger_position(np.deg2rad([-1.0, 40.0, 500.0]))
    assert (told.finger1, told.finger2, told.finger3) == pytest.approx((0.0, 3400.0, 6800.0))


def test_kinova_s_arm_sends_both(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "domain": DOMAIN,
        "joint_states": "/joint_states",
        "command": "/e/velocity",
        "fingers": "/e/fingers",
    }
    arm = make_arm({"kind": "jaco2", "settings": settings})
    assert isinstance(arm, Ros2Arm)
    peer = Peer("/e/velocity", KinovaJointVelocity)
    member = Participant(DOMAIN, "lo").participant
    fingers = DataReader(member, Topic(member, "rt/e/fingers", KinovaFingerPosition), qos=COMMANDS)
    connected(arm, peer, monkeypatch)
    velocity = np.full(9, np.deg2rad(10.0))
    told = until(lambda: first(peer.commands), lambda: arm.send(velocity))
    assert told.joint1 == pytest.approx(10.0)
    told = until(lambda: first(fingers), lambda: arm.send(velocity))
    assert told.finger3 >= np.rad2deg(POSITION[8]) * 6800 / 80 - 1.0
    for _ in range(50):  # what is still on its way
        arm.send(np.zeros(9))
        time.sleep(0.002)
    first(fingers)
    for _ in range(20):
        arm.send(np.zeros(9))
        time.sleep(0.002)
    assert first(fingers) is None, "fingers that rest are left alone"


def test_kinova_s_fingers_do_not_wind_up(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = make_arm({"kind": "jaco2", "settings": {}})
    sent: list[float] = []
    writer = SimpleNamespace(write=lambda message: sent.append(message.finger1))
    arm._finger_writer, arm._state = writer, JointState(POSITION, POSITION, 0.0)
    now = 0.0
    for speed in [1.0] * 300 + [-1.0] * 10:
        now += 0.01
        arm._send_fingers(np.full(3, speed), now)
    assert max(sent) == pytest.approx(np.rad2deg(1.35) * 6800 / 80)
    assert sent[-1] < max(sent) - 300, "opening begins at once"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"mode": "position"}, "velocity or trajectory"),
        ({"joint_names": ("a",)}, "expected 9"),
        ({"joint_names": ("a",) * 9}, "stands twice"),
        ({"signs": (2.0,) * 9}, "1 or -1"),
        ({"domain": 233}, "0 to 232"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ArmError, match=told):
        make_arm({"kind": "ros2", "settings": wrong})
