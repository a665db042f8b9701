"""An arm and a camera on ROS 2's topics, spoken to over DDS with no ROS installation.

Reads `sensor_msgs/JointState`; sends `std_msgs/Float64MultiArray` to a
`forward_command_controller` of interface velocity, or a `trajectory_msgs/JointTrajectory` of one
point. That controller holds the last message for ever: see docs/real_arm.md for what must stand
behind it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from cyclonedds.core import Listener
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from visuomotor.runtime.arm import ArmError, ArmLimits, JointState
from visuomotor.runtime.arms.dds import (
    COMMANDS,
    NEWEST,
    Duration,
    Float64MultiArray,
    Header,
    ImageMessage,
    JointStateMessage,
    JointTrajectory,
    JointTrajectoryPoint,
    MultiArrayLayout,
    Participant,
    Time,
    topic_name,
)
from visuomotor.runtime.arms.sim import in_order
from visuomotor.runtime.errors import CameraError
from visuomotor.runtime.guard import jumped, way
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.limiter import WORKSPACE_MARGIN

PATIENCE = 10.0  # s that `connect` waits for a first joint state
DISCOVERY = 1.0  # s after which other members of the domain are known
HORIZON = 0.1  # s: a trajectory's point lies so far ahead
LONGEST_STEP = 0.05  # s: a longer pause between two velocities is not made up for
# rad that a resting arm may be off its goal: what carrying its weight takes, and noise (a guess).
# One that is moved further keeps no memory of where it was.
STILL = 0.02
KINOVA_JOINTS = tuple(f"j2n6s300_joint_{i}" for i in range(1, 7)) + tuple(
    f"j2n6s300_joint_finger_{i}" for i in range(1, 4)
)
MODES = ("velocity", "trajectory")
ENCODINGS = ("rgb8", "bgr8")


@dataclass(frozen=True)
class Ros2Settings:
    """What `arm_config=` may say; names of joints in the order of the policy's."""

    domain: int = 0  # ROS_DOMAIN_ID
    network: str = "lo"  # interface; lo: this computer alone
    joint_states: str = "/joint_states"
    command: str = "/forward_velocity_controller/commands"
    exclusive: bool = True  # refuse to start where another program has opened `command` to send
    mode: str = "velocity"  # velocity: Float64MultiArray; trajectory: JointTrajectory
    joint_names: tuple[str, ...] = KINOVA_JOINTS
    # The policy's angle is sign * ROS's angle + offset; a test of each joint by hand shows both.
    signs: tuple[float, ...] = (1.0,) * 9
    offsets: tuple[float, ...] = (0.0,) * 9  # rad
    # What the point between the fingertips stays within, in the frame of the arm's base: m.
    workspace_low: tuple[float, float, float] = tuple(LIMITS.workspace_low.tolist())
    workspace_high: tuple[float, float, float] = tuple(LIMITS.workspace_high.tolist())

    def validate(self) -> None:
        """Raises ArmError."""
        joints = len(LIMITS.joint_names)
        for name in ("joint_names", "signs", "offsets"):
            if len(getattr(self, name)) != joints:
                raise ArmError(f"{name}: expected {joints}, one a joint of the policy")
        if len(set(self.joint_names)) != joints:
            raise ArmError("joint_names: one stands twice")
        if any(sign not in (-1.0, 1.0) for sign in self.signs):
            raise ArmError(f"signs: expected 1 or -1, received {self.signs}")
        if self.mode not in MODES:
            raise ArmError(f"mode={self.mode}: expected {' or '.join(MODES)}")
        if not 0 <= self.domain <= 232:
            raise ArmError(f"domain={self.domain}: expected 0 to 232")
        walls = np.array([self.workspace_low, self.workspace_high])
        if not (np.isfinite(walls).all() and (walls[1] - walls[0] > 2 * WORKSPACE_MARGIN).all()):
            raise ArmError(
                f"workspace_low={self.workspace_low}, workspace_high={self.workspace_high}: "
                "expected x, y and z in m, the high ones more than "
                f"{2 * WORKSPACE_MARGIN:g} m above the low"
            )


class Ros2Arm:
    """An `Arm`."""

    def __init__(self, settings: Ros2Settings | None = None, delay: float = LIMITS.delay):
        """delay: s, of `ArmLimits`."""
        self.settings = Ros2Settings() if settings is None else settings
        self.settings.validate()
        self._limits = LIMITS._replace(
            delay=delay,
            workspace_low=np.array(self.settings.workspace_low),
            workspace_high=np.array(self.settings.workspace_high),
        )
        self._signs = np.array(self.settings.signs)
        self._offsets = np.array(self.settings.offsets)
        self._writer: DataWriter | None = None  # of what is sent, from `claim` on
        self._state: JointState | None = None
        self._refused = ""  # why the last joint state that was of no use was not
        self._believed: JointState | None = None
        self._heard = 0.0  # s, stamp of the last state with numbers, believed or not
        self._goal: np.ndarray | None = None  # (A,) rad: where a trajectory should be by now
        self._sent = 0.0  # s
        self._moved = -np.inf  # s, when a trajectory was last sent a velocity that is not zero

    @property
    def limits(self) -> ArmLimits:
        return self._limits

    def connect(self) -> None:
        settings = self.settings
        self._member = Participant(settings.domain, settings.network)
        member = self._member.participant
        states = Topic(member, topic_name(settings.joint_states), JointStateMessage)
        self._reader = DataReader(member, states, qos=NEWEST)
        deadline = time.monotonic() + PATIENCE
        while self.read() is None:
            if time.monotonic() > deadline:
                raise ArmError(self._nothing_came())
            time.sleep(0.01)

    def claim(self) -> str:
        # Not before: who only reads an arm (shots, overlay) is nobody who sends to it.
        self._open_writer()
        time.sleep(DISCOVERY)
        unheard = []
        for topic, writer, what in self._commands():
            others = self._member.other_writers(topic_name(topic))
            if others and self.settings.exclusive:
                raise ArmError(
                    f"{others} other program{'s send' if others > 1 else ' sends'} on {topic}, and "
                    f"{what} would follow both by turns; end it first (an old deploy?), or say "
                    "exclusive: false in arm_config if it never sends"
                )
            if not writer.get_matched_subscriptions():
                unheard.append(f"nobody listens on {topic} yet: {what} will not move")
        return "; ".join(unheard)

    def _commands(self) -> list[tuple[str, DataWriter, str]]:
        """Topics that are sent on, and what moves by them."""
        return [(self.settings.command, self._writer, "the arm")]

    def _nothing_came(self) -> str:
        settings = self.settings
        where = (
            f"on {settings.joint_states} (domain {settings.domain}, network {settings.network}) "
            f"within {PATIENCE:.0f} s"
        )
        if not self._refused:
            return f"no joint state came {where}"
        return (
            f"no joint state of use came {where}: the last had {self._refused}; each must hold "
            "position and velocity of all joint_names (docs/real_arm.md, step 3)"
        )

    def _open_writer(self) -> None:
        member, settings = self._member.participant, self.settings
        kind = JointTrajectory if settings.mode == "trajectory" else Float64MultiArray
        self._writer = DataWriter(
            member, Topic(member, topic_name(settings.command), kind), qos=COMMANDS
        )

    def read(self) -> JointState | None:
        for message in self._reader.take(N=16):
            if not isinstance(message, JointStateMessage):
                continue  # that a writer left is told in the same way
            try:
                position, velocity = in_order(
                    message.name,
                    self.settings.joint_names,
                    position=message.position,
                    velocity=message.velocity,
                )
            except ValueError as error:
                self._refused = str(error)
                continue
            self._state = JointState(
                self._signs * position + self._offsets,
                self._signs * velocity,
                stamp=time.monotonic(),
            )
        return self._state

    def send(self, velocity: np.ndarray) -> None:
        assert self._writer is not None, "an arm is claimed before anything is sent"
        message = self.message(velocity)
        if message is not None:
            self._writer.write(message)

    def message(self, velocity: np.ndarray) -> Float64MultiArray | JointTrajectory | None:
        """velocity (A,) rad/s, of the policy's joints; None: a trajectory has nowhere to begin."""
        own_velocity = (self._signs * velocity).tolist()
        if self.settings.mode == "velocity":
            return Float64MultiArray(MultiArrayLayout([], 0), own_velocity)
        place = self._place()
        if place is None:
            return None
        position = self._next_point(place, velocity, time.monotonic())
        point = JointTrajectoryPoint(
            positions=(self._signs * (position - self._offsets)).tolist(),
            velocities=own_velocity,
            accelerations=[],
            effort=[],
            time_from_start=Duration(0, int(HORIZON * 1e9)),
        )
        # A stamp of 0 means at once: clocks of two computers need not agree.
        return JointTrajectory(Header(Time(0, 0), ""), list(self.settings.joint_names), [point])

    def _place(self) -> JointState | None:
        """Where the arm last was. Goals follow it, so what no arm can have done (swapped joints, no
        number) is not believed, until it is back: they would drive the arm there."""
        state, before = self._state, self._believed
        assert state is not None
        if np.isfinite(state.position).all():
            before = None if before is None else before._replace(stamp=self._heard)
            if before is None or (jumped(LIMITS, before, state) <= 0.0).all():
                self._believed = state
            self._heard = state.stamp
        return self._believed

    def _next_point(self, place: JointState, velocity: np.ndarray, now: float) -> np.ndarray:
        """(A,) rad: where the policy's joints should be HORIZON from now.

        The goal goes on from where it should have been, not from where the arm was last seen, which
        is late. It never gets out of the arm's reach, and an arm that rests takes it along: one
        that was held up, or is moved by hand, is not driven back.
        """
        seen, step = place.position, min(now - self._sent, LONGEST_STEP)
        if self._goal is None:
            self._goal, step = seen, 0.0
        if velocity.any():
            self._moved = now
        self._sent = now
        lead = way(LIMITS, seen, self._goal)
        # A state tells where the arm rests only once all that was sent has been carried out.
        if place.stamp - self._moved >= self.limits.delay:
            lead = np.where(np.abs(lead) > STILL, 0.0, lead)
        ahead = velocity * HORIZON
        point = np.clip(seen + lead + velocity * step + ahead, *reachable(self.limits, seen))
        self._goal = point - ahead
        return point

    def stop(self) -> None:
        if self._state is not None and self._writer is not None:
            self.send(np.zeros(len(LIMITS.joint_names)))


def reachable(limits: ArmLimits, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """position (A,) rad, where the arm is -> lowest and highest goal that it can soon be at, (A,)
    each: not beyond a joint's limit, or no further beyond it than the arm is."""
    low = np.minimum(limits.position_low, position)
    high = np.maximum(limits.position_high, position)
    reach = limits.velocity * (limits.delay + HORIZON)
    return np.maximum(low, position - reach), np.minimum(high, position + reach)


class Ros2Camera:
    """A `Camera`: the newest image of a topic, rgb8 or bgr8."""

    channels = "RGB"

    def __init__(self, topic: str, domain: int = 0, network: str = "lo"):
        self._member = Participant(domain, network)
        member = self._member.participant
        images = Topic(member, topic_name(topic), ImageMessage)
        self._reader = DataReader(member, images, qos=NEWEST, listener=Listener())

    def read(self) -> np.ndarray | None:
        newest = None
        for message in self._reader.take(N=4):
            if isinstance(message, ImageMessage):
                newest = decode_image(message)
        return newest

    def close(self) -> None:
        del self._reader


def decode_image(message: ImageMessage) -> np.ndarray:
    """(h, w, 3) uint8 RGB. Raises CameraError if it is of another encoding, or its sizes do not
    fit."""
    row = 3 * message.width
    data = np.frombuffer(bytes(message.data), np.uint8)
    if message.encoding not in ENCODINGS:
        raise CameraError(
            f"the image's encoding is {message.encoding}; have the camera's driver send "
            f"{' or '.join(ENCODINGS)}"
        )
    if not 0 < row <= message.step or not 0 < data.size == message.step * message.height:
        raise CameraError(
            f"an image of {message.width}x{message.height} pixels came with {data.size} bytes, "
            f"{message.step} a row"
        )
    image = data.reshape(message.height, message.step)[:, :row].reshape(message.height, -1, 3)
    if message.encoding == "rgb8":
        return image.copy()
    import cv2  # pictures are read in the policy's process: the streamer's goes without it

    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
