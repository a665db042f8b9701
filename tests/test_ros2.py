"""Arms and cameras on ROS 2's topics: messages as ROS reads them, over DDS on loopback."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip(
    "cyclonedds", reason='cyclonedds is not installed: pip install "visuomotor[ros2]"'
)

from cyclonedds.idl import Endianness
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
    STILL,
    Ros2Arm,
    Ros2Camera,
    Ros2Settings,
    decode_image,
)
from visuomotor.runtime.errors import CameraError
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.limiter import Limiter

ROOT = Path(__file__).parents[1]
DOMAIN = 97
REACH = LIMITS.velocity * (LIMITS.delay + HORIZON)
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
    arm.claim()
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


# --- where a trajectory leads -------------------------------------------------------------------

MIDDLE = np.array([0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.7, 0.7, 0.7])
REST = np.zeros(9)
SECOND = np.eye(9)[1]  # joint 2, which has limits
FREE = LIMITS._replace(workspace_low=np.full(3, -9.0), workspace_high=np.full(3, 9.0))


class Trajectory:
    """An arm in mode trajectory whose clock and place are played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any):
        self.now = 50.0
        monkeypatch.setattr("visuomotor.runtime.arms.ros2.time.monotonic", lambda: self.now)
        self.arm = Ros2Arm(Ros2Settings(mode="trajectory", **settings))
        self.arm._writer = SimpleNamespace(write=self._write)
        self.points: list[np.ndarray] = []  # rad, in the arm's own sense
        self.place = MIDDLE.copy()
        self.tells = True

    def _write(self, message: JointTrajectory) -> None:
        (point,) = message.points
        self.points.append(np.array(point.positions))

    def send(self, velocity: np.ndarray, ticks: int = 1) -> np.ndarray:
        """-> (A,) the last message's positions."""
        for _ in range(ticks):
            self.now += 0.01
            if self.tells:
                self.arm._state = JointState(self.place.copy(), np.zeros(9), self.now)
            self.arm.send(velocity)
        return self.points[-1]


class LateTrajectory(Trajectory):
    """Its controller heads for each point, so as to be there in time, `late` s after it came."""

    late = 0.1

    def send(self, velocity: np.ndarray, ticks: int = 1) -> np.ndarray:
        for _ in range(ticks):
            super().send(velocity)
            ticks_late = round(self.late / 0.01)
            if len(self.points) > ticks_late:
                self.place += (self.points[-1 - ticks_late] - self.place) * 0.01 / HORIZON
        return self.points[-1]


@pytest.fixture
def trajectory(monkeypatch: pytest.MonkeyPatch) -> Trajectory:
    return Trajectory(monkeypatch)


def test_a_blocked_arm_is_asked_for_what_it_can_reach_and_stays_where_it_is_when_let_go(
    trajectory: Trajectory,
) -> None:
    trajectory.send(REST, 20)
    trajectory.send(0.6 * SECOND, 500)
    asked = np.array(trajectory.points)[:, 1]
    assert asked.max() <= MIDDLE[1] + LIMITS.velocity[1] * (LIMITS.delay + HORIZON) + 1e-12
    assert asked.max() > MIDDLE[1] + 0.6 * HORIZON, "it does press on"
    assert trajectory.send(REST, 20) == pytest.approx(MIDDLE), "within 0.2 s"
    trajectory.send(0.6 * SECOND, 500)
    back = trajectory.send(-0.6 * SECOND, 50)
    assert back[1] < MIDDLE[1], "what it was held up by is not made up for"


def test_a_latched_arm_that_is_moved_by_hand_is_not_driven_back(trajectory: Trajectory) -> None:
    trajectory.send(0.3 * SECOND, 50)
    trajectory.send(REST, 50)
    for _ in range(100):
        trajectory.place = trajectory.place - 0.01 * SECOND
        asked = trajectory.send(REST)
        assert np.abs(asked - trajectory.place).max() <= STILL
    assert trajectory.place[1] == pytest.approx(1.0)
    assert trajectory.send(0.3 * SECOND)[1] < 1.0 + STILL + 0.3 * HORIZON + 0.01, "goes on there"


def test_an_arm_that_rests_a_little_off_its_goal_keeps_the_goal(trajectory: Trajectory) -> None:
    """It hangs below, by what its controller needs to carry it; a goal that followed would sink."""
    trajectory.send(REST)
    for _ in range(300):
        goal = trajectory.send(REST)
        trajectory.place = goal - 0.8 * STILL * SECOND
    assert goal == pytest.approx(MIDDLE)


@pytest.mark.parametrize("joint", [1, 8])
@pytest.mark.parametrize("late", [0.0, 0.05, 0.1])
@pytest.mark.parametrize("tells", [True, False])
def test_an_arm_that_is_late_comes_to_rest_where_it_was_sent(
    tells: bool, late: float, joint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose joint states end: it is not taken back to where it was last seen."""
    trajectory = LateTrajectory(monkeypatch)
    trajectory.late = late
    trajectory.send(REST, 20)
    limiter = Limiter(FREE, 0.01)
    places, way = [], 0.0
    for tick in range(150):
        trajectory.tells = tells or tick < 40
        velocity = (
            limiter.step(LIMITS.velocity * np.eye(9)[joint], trajectory.place)
            if tick < 45
            else limiter.brake()
        )
        way += 0.01 * velocity[joint]
        trajectory.send(velocity)
        places.append(trajectory.place[joint])
    assert not velocity.any()
    assert way > 0.25
    assert places[-1] == pytest.approx(MIDDLE[joint] + way, abs=0.01 if tells else 0.1)
    speeds = np.diff(places) / 0.01
    # What was sent since the last state may be more than is within reach of it: a little back.
    assert speeds.min() > -(0.1 if tells else 0.25) * LIMITS.velocity[joint]
    assert np.abs(np.diff(speeds)).max() / 0.01 < 1.2 * LIMITS.acceleration[joint]
    if tells:
        assert trajectory.points[-1][joint] == pytest.approx(places[-1], abs=1e-3)


def test_no_point_lies_beyond_a_joint_s_limit_or_further_beyond_than_the_arm_is(
    trajectory: Trajectory,
) -> None:
    top = LIMITS.position_high[1]
    trajectory.place[1] = top - 0.02
    trajectory.send(0.6 * SECOND, 100)
    assert max(point[1] for point in trajectory.points) == pytest.approx(top)
    trajectory.place[1] = top + 0.1  # pushed there
    assert trajectory.send(0.6 * SECOND, 100)[1] == pytest.approx(top + 0.1)
    assert trajectory.send(REST, 100)[1] == pytest.approx(top + 0.1)
    assert trajectory.send(-0.3 * SECOND, 50)[1] < top + 0.1


def test_a_joint_without_end_goes_on_where_its_angle_starts_anew(trajectory: Trajectory) -> None:
    trajectory.place[0] = np.pi - 0.1
    trajectory.send(REST, 20)
    for _ in range(100):
        asked = trajectory.send(0.3 * np.eye(9)[0])
        assert 0.0 <= asked[0] - trajectory.place[0] <= REACH[0]
        trajectory.place[0] += 0.003
        if trajectory.place[0] > np.pi:
            trajectory.place[0] -= 2 * np.pi
    assert trajectory.place[0] < 0.0


@pytest.mark.parametrize(
    "said", [MIDDLE[[0, 3, 2, 1, 4, 5, 6, 7, 8]], np.where(SECOND == 1.0, np.nan, MIDDLE)]
)
def test_an_arm_is_not_driven_to_where_it_cannot_have_come(
    said: np.ndarray, trajectory: Trajectory
) -> None:
    trajectory.send(REST, 20)
    trajectory.send(0.3 * SECOND, 5)
    trajectory.place = said
    for velocity in (0.1 * SECOND, REST):
        trajectory.send(velocity, 200)
        assert (np.abs(np.array(trajectory.points[20:]) - MIDDLE) <= REACH + 1e-9).all()
    trajectory.place = MIDDLE - 0.05
    assert trajectory.send(REST, 20) == pytest.approx(MIDDLE - 0.05), "it is back"


def test_nothing_is_sent_to_an_arm_whose_place_is_no_number_yet(trajectory: Trajectory) -> None:
    trajectory.arm._state = JointState(np.full(9, np.nan), np.zeros(9), trajectory.now)
    trajectory.arm.send(REST)
    assert trajectory.points == []


def test_a_trajectory_is_told_in_the_arm_s_own_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets = np.array([0.0, 0.5, -0.2, 0.0, 0.0, 1.0, 0.0, 0.3, 0.0])
    signs = np.array([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    trajectory = Trajectory(monkeypatch, signs=tuple(signs), offsets=tuple(offsets))
    own = trajectory.send(REST, 20)
    assert signs * own + offsets == pytest.approx(MIDDLE)
    assert trajectory.send(0.3 * SECOND, 20)[1] < own[1], "a joint whose sense is the other"


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
    with pytest.raises(ArmError, match="no joint state came on /nobody"):
        arm.connect()


@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ({"velocity": []}, "the last had 9 names, but 0 numbers of velocity; each must hold"),
        ({"joints": 6}, "the last had j2n6s300_joint_finger_1, j2n6s300_joint_finger_2, j2n6s300"),
    ],
)
def test_joint_states_that_are_of_no_use_are_told_from_none(
    lacks: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many drivers leave velocities out; grippers often tell their joints in messages of their
    own."""
    count = lacks.get("joints", 9)
    position, velocity = [0.1] * count, lacks.get("velocity", [0.0] * count)
    names = list(KINOVA_JOINTS[:count])
    message = JointStateMessage(Header(Time(0, 0), ""), names, position, velocity, [])
    arm = Ros2Arm(Ros2Settings(domain=DOMAIN, joint_states="/lacking", command="/f/commands"))
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.PATIENCE", 0.0)
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.DataReader", Told)
    monkeypatch.setattr(Told, "messages", [message])
    with pytest.raises(ArmError, match=told):
        arm.connect()


class Told:
    """A reader to whom the same is told again and again."""

    messages: ClassVar[list[JointStateMessage]] = []

    def __init__(self, *_: Any, **__: Any): ...

    def take(self, N: int) -> list[JointStateMessage]:
        return self.messages


def image_message(encoding: str, height: int, width: int, padding: int) -> ImageMessage:
    """Noise, with so many bytes behind each row."""
    step = 3 * width + padding
    pixels = np.random.default_rng(0).bytes(height * step)
    return ImageMessage(Header(Time(3, 5), "lens"), height, width, encoding, 0, step, pixels)


def pixels_of(message: ImageMessage) -> np.ndarray:
    """(h, w, 3) RGB, worked out by hand."""
    rows = np.array(list(message.data), np.uint8).reshape(message.height, message.step)
    image = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
    return image if message.encoding == "rgb8" else image[..., ::-1]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
@pytest.mark.parametrize(("height", "width", "padding"), [(4, 5, 3), (480, 640, 0)])
def test_an_image_of_a_topic_is_read_with_its_padding_left_out(
    height: int, width: int, padding: int, encoding: str
) -> None:
    message = image_message(encoding, height, width, padding)
    member = Participant(DOMAIN, "lo").participant
    topic = f"/camera/{encoding}/{width}"
    writer = DataWriter(member, Topic(member, "rt" + topic, ImageMessage), qos=NEWEST)
    camera = Ros2Camera(topic, DOMAIN)
    seen = until(camera.read, lambda: writer.write(message))
    assert (seen == pixels_of(message)).all()


@pytest.mark.parametrize("endianness", [Endianness.Little, Endianness.Big])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
@pytest.mark.parametrize("padding", [0, 1, 6])
def test_an_image_s_bytes_are_what_its_own_type_reads(
    padding: int, encoding: str, endianness: Endianness
) -> None:
    """ROS declares a sequence of numbers; they are read in one piece."""
    message = image_message(encoding, 3, 7, padding)
    wire = message.serialize(endianness=endianness)
    by_numbers = ImageMessage.__idl__.deserialize(wire)
    read = ImageMessage.deserialize(wire)
    assert isinstance(read.data, bytes)
    assert vars(read) | {"data": list(read.data)} == vars(by_numbers)
    assert read.serialize(endianness=endianness) == wire
    if encoding != "mono8":
        assert (decode_image(read) == pixels_of(message)).all()
        assert (decode_image(by_numbers) == pixels_of(message)).all()


def test_an_image_that_does_not_fit_is_refused_with_its_reason() -> None:
    head = Header(Time(0, 0), "")
    for encoding, width, step, size, told in (
        ("mono8", 2, 2, 4, "the image's encoding is mono8; .* rgb8 or bgr8"),
        ("rgb8", 2, 6, 11, "2x2 pixels came with 11 bytes, 6 a row"),
        ("rgb8", 2, 5, 10, "2x2 pixels came with 10 bytes, 5 a row"),
        ("rgb8", 2, 0, 0, "2x2 pixels came with 0 bytes, 0 a row"),
        ("rgb8", 0, 6, 12, "0x2 pixels came with 12 bytes, 6 a row"),
    ):
        with pytest.raises(CameraError, match=told):
            decode_image(ImageMessage(head, 2, width, encoding, 0, step, bytes(size)))


def test_an_arm_that_another_program_sends_to_is_refused() -> None:
    """One that only reads, as `shots` and `overlay` do, is in nobody's way."""
    peer = Peer("/f/commands", Float64MultiArray)
    settings = {"domain": DOMAIN, "joint_states": "/joint_states", "command": "/f/commands"}
    arms = []
    for exclusive in (True, True, False):
        # Two processes are two participants; so are these.
        arm = Ros2Arm(Ros2Settings(**settings, exclusive=exclusive))
        arms.append(arm)
        thread = threading.Thread(target=arm.connect)
        thread.start()
        while thread.is_alive():
            peer.tell()
            time.sleep(0.02)
    arms[1].stop()  # it has nothing to send with
    assert arms[0].claim() == ""
    with pytest.raises(ArmError, match=r"1 other program sends on /f/commands.*end it first"):
        arms[1].claim()
    assert arms[2].claim() == ""


def test_nobody_beyond_loopback_is_listened_to() -> None:
    program = (
        "import os, socket\n"
        "from visuomotor.runtime.arms.dds import Participant\n"
        "member = Participant(%d, 'lo')\n"
        "for name in os.listdir('/proc/self/fd'):\n"
        "    try:\n"
        "        held = socket.socket(fileno=int(name))\n"
        "    except OSError:\n"
        "        continue\n"
        "    if held.family == socket.AF_INET:\n"
        "        bound = held.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)\n"
        "        print(held.getsockname()[0], bound.rstrip(b'\\0').decode())\n"
        "    held.detach()\n"
    )
    command = [sys.executable, "-c", program % DOMAIN]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    listeners = [line.split() for line in told.splitlines()]
    assert any(address == "0.0.0.0" for address, *_ in listeners)
    for address, *device in listeners:
        assert address == "127.0.0.1" or device == ["lo"]


def test_what_the_limiter_allows_for_is_said_with_the_arm() -> None:
    settings = {"workspace_low": [-0.2, -0.5, 0.02], "workspace_high": [0.2, -0.2, 0.4]}
    for kind in ("ros2", "jaco2"):
        limits = make_arm({"kind": kind, "settings": settings, "delay": 0.15}).limits
        assert limits.delay == 0.15
        assert limits.workspace_low.tolist() == settings["workspace_low"]
        assert limits.workspace_high.tolist() == settings["workspace_high"]
        usual = make_arm({"kind": kind, "settings": {}}).limits
        assert usual.delay == LIMITS.delay
        assert usual.workspace_low.tolist() == LIMITS.workspace_low.tolist()
    with pytest.raises(ArmError, match="workspace_high"):
        Ros2Settings(workspace_low=(0.0, 0.0, 0.49), workspace_high=(0.2, 0.2, 0.5)).validate()


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
