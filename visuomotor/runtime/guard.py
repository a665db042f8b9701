"""What may be sent to the arm at this tick: the streamer's decisions, with no clock of its own.

numpy only; every time is a `time.monotonic()` in s that the caller passes in, so that a test plays
hours in a moment and a step of the wall clock changes nothing.

    LATCHED --a human presses the dead-man switch, all is well--> RUNNING
    RUNNING --something is late--> SLOWING --it is back--> RUNNING
    RUNNING, SLOWING --late for too long, wrong, or the switch not known to be held--> STOPPING
    STOPPING --the arm rests--> LATCHED: nothing but zeros is sent

A press counts only after a release that was seen while latched.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import numpy as np

from visuomotor.runtime.arm import ArmLimits, JointState
from visuomotor.runtime.limiter import Limiter

FRAME_JITTER = 0.02  # s: after a single lost frame the next one is two periods late, and a bit
POLICY_PERIOD = 0.05  # s between commands, which are what tells a frame's age
FUTURE = 0.05  # s that a stamp may lie ahead; what is further ahead, or no number, counts as never
JUMP_SLACK = 0.15  # rad that a joint may be off from where its top speed could have brought it
OUTSIDE = 0.2  # rad beyond a joint's limit that is no position of this arm
# rad that a joint of the arm should have gone by what was sent while no number of the joint state
# changed: what JOINT_MARGIN allows for. An arm that is held up yields by more than the last digit;
# fingers on a block may not, and are not asked.
FROZEN_WAY = 0.03
JUMP_SPEED = 2.0  # times its velocity limit: what an arm that is pushed may do
RELEASED = "the dead-man switch was released"
UNKNOWN = "nobody tells whether the dead-man switch is held"


class State(Enum):
    LATCHED = 0
    RUNNING = 1
    SLOWING = 2
    STOPPING = 3


class Ages(NamedTuple):
    """s after which the arm slows down, and after which it latches."""

    slow: float
    latch: float


class Patience(NamedTuple):
    """How old what the guard depends on may be."""

    command: Ages = Ages(0.100, 0.250)
    joints: Ages = Ages(0.050, 0.250)
    frame: Ages = Ages(0.170, 0.270)  # of a camera with 20 frames/s; see `for_camera`

    @staticmethod
    def for_camera(period: float) -> Patience:
        """period: s between a camera's frames; two of them may pass, the time until the next
        command tells so, and FRAME_JITTER."""
        slow = 2.0 * period + POLICY_PERIOD + FRAME_JITTER
        return Patience(frame=Ages(slow, max(0.250, slow + 0.1)))


class Start(NamedTuple):
    """Where the arm must stand to be armed: a policy knows its task from there alone."""

    position: np.ndarray  # (A,) rad
    tolerance: float  # rad that a joint of the arm may be off; fingers may be anywhere


class Command(NamedTuple):
    """What the policy's process last asked for."""

    velocity: np.ndarray  # (A,) rad/s
    stamp: float  # s, when it was decided
    frame_stamp: float  # s, when the camera's newest frame that differs from the one before came
    problem: str = ""  # why the policy cannot act; empty: it can


class Decision(NamedTuple):
    velocity: np.ndarray  # (A,) rad/s, to be sent now
    state: State
    reason: str  # why the arm does not run; empty if it does
    armed: int  # how often a human has armed it


def way(limits: ArmLimits, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(A,) rad from one position to another."""
    moved = after - before
    # An angle without limits may start anew after a turn.
    endless = np.isinf(limits.position_low) & np.isinf(limits.position_high)
    with np.errstate(invalid="ignore"):  # what is not finite stays so, and is told elsewhere
        return np.where(endless, np.remainder(moved + np.pi, 2 * np.pi) - np.pi, moved)


def jumped(limits: ArmLimits, before: JointState, after: JointState) -> np.ndarray:
    """(A,) rad that joints moved further than an arm can, where positive."""
    most = JUMP_SPEED * limits.velocity * (after.stamp - before.stamp) + JUMP_SLACK
    return np.abs(way(limits, before.position, after.position)) - most


def off_start(limits: ArmLimits, start: Start, position: np.ndarray) -> dict[int, float]:
    """Joints of the arm that are not within the tolerance of the start -> rad that each is off, by
    the shorter way if it turns without end. position: (A,) rad."""
    off = way(limits, start.position, position)[: len(limits.chain.link_pos)]
    return {i: float(v) for i, v in enumerate(off) if not abs(v) <= start.tolerance}


class Guard:
    """Call `tick` every `dt` s."""

    def __init__(
        self,
        limits: ArmLimits,
        dt: float,
        patience: Patience | None = None,
        start: Start | None = None,
    ):
        """start: None: the arm may be armed wherever it stands."""
        self.limits = limits
        self.start = start
        self.patience = Patience() if patience is None else patience
        self._limiter = Limiter(limits, dt)
        self.state = State.LATCHED
        self.reason = "not armed yet"
        self._released = False
        self._failure = ""  # outside, since the last tick
        self._armed = 0
        self._last: JointState | None = None
        self._changed = 0.0  # s, stamp of the first joint state with the numbers of the last

    def tick(
        self,
        now: float,
        command: Command | None,
        joints: JointState | None,
        pressed: bool | None,
    ) -> Decision:
        """pressed: whether a human holds the dead-man switch; None: nobody knows, which stops the
        arm, and is no release after which a press would arm it."""
        wrong = self._wrong(command, joints) or self._frozen(now, joints)
        late, reason = self._late(now, command, joints)
        if joints is not None and not wrong:
            self._last = joints
        if self.state is State.LATCHED:
            late_or_away = reason if late else self._away(joints)
            self._latched(pressed, self._failure or wrong or late_or_away)
        elif wrong or not pressed or late == 2:
            if self.state is not State.STOPPING:
                let_go = UNKNOWN if pressed is None else RELEASED
                self.state, self.reason = State.STOPPING, wrong or (reason if late == 2 else let_go)
        elif self.state is not State.STOPPING:
            self.state = State.SLOWING if late else State.RUNNING
            self.reason = reason if late else ""
        self._failure = ""
        velocity = self._velocity(now, command, joints)
        if self.state is State.STOPPING and self._limiter.at_rest:
            self.state, self._released = State.LATCHED, False
        return Decision(velocity, self.state, self.reason, self._armed)

    def fail(self, reason: str) -> None:
        """Something outside is wrong: the arm comes to rest and latches; if it is latched, the next
        tick does not arm it."""
        self._failure = reason
        if self.state in (State.RUNNING, State.SLOWING):
            self.state, self.reason = State.STOPPING, reason

    def brake(self) -> np.ndarray:
        """One tick of a stop for which nothing need be known -> (A,) rad/s."""
        velocity = self._limiter.brake()
        if self._limiter.at_rest:
            self.state, self._released = State.LATCHED, False
        return velocity

    def _latched(self, pressed: bool | None, obstacle: str) -> None:
        if pressed is False:
            self._released = True
        elif not pressed:
            return
        elif self._released and not obstacle:
            self.state, self.reason = State.RUNNING, ""
            self._armed += 1
            self._limiter.rest()
        elif self._released:
            self._released = False  # a switch that is held down must not arm once all is well
            self.reason = f"cannot be armed: {obstacle}"

    def _velocity(
        self, now: float, command: Command | None, joints: JointState | None
    ) -> np.ndarray:
        if self.state is State.RUNNING:
            assert command is not None and joints is not None
            age = max(0.0, now - joints.stamp)
            return self._limiter.step(command.velocity, joints.position, age)
        return self._limiter.brake()  # latched, it is at rest: zeros, which it remembers

    def _away(self, joints: JointState | None) -> str:
        """The joint that is furthest from the start; empty: none is too far."""
        if joints is None or self.start is None:
            return ""
        off = off_start(self.limits, self.start, joints.position)
        if not off:
            return ""
        worst = max(off, key=lambda i: abs(off[i]))
        return f"{self.limits.joint_names[worst]} is {abs(off[worst]):.2f} rad from the start"

    def _wrong(self, command: Command | None, joints: JointState | None) -> str:
        """What no waiting mends; empty: nothing."""
        if command is not None:
            if command.problem:
                return f"the policy cannot act: {command.problem}"
            broken = ~np.isfinite(command.velocity)
            if broken.any():
                i = int(broken.argmax())
                name = self.limits.joint_names[i]
                return f"the command is not finite: {command.velocity[i]} for {name}"
        if joints is None:
            return ""
        if not (np.isfinite(joints.position).all() and np.isfinite(joints.velocity).all()):
            return "the arm reports joints that are not finite"
        low, high = self.limits.position_low, self.limits.position_high
        outside = np.maximum(low - joints.position, joints.position - high)
        if outside.max() > OUTSIDE:
            i = int(outside.argmax())
            return (
                f"{self.limits.joint_names[i]} is said to be at {joints.position[i]:.2f} rad, "
                f"beyond its limits {low[i]:.2f} to {high[i]:.2f}"
            )
        if self._last is not None and joints.stamp > self._last.stamp:
            jump = jumped(self.limits, self._last, joints)
            if self.state is not State.LATCHED and jump.max() > 0.0:
                name = self.limits.joint_names[int(jump.argmax())]
                return f"{name} jumped further than an arm can move: joints may be swapped"
        return ""

    def _frozen(self, now: float, joints: JointState | None) -> str:
        """Whether the arm was sent on its way and still tells the same numbers; empty: no.

        It says so of all numbers at once: one joint alone may be held up, or stand at a stop.
        """
        if joints is None:
            return ""
        last = self._last
        if last is None or not all(map(np.array_equal, joints[:2], last[:2])):
            self._changed = joints.stamp
        # The last state tells what was sent up to `delay` before it.
        unknown = now - joints.stamp + self.limits.delay
        since = now - self._changed
        if self.state is State.LATCHED or since <= unknown:
            return ""
        way = np.abs(self._limiter.way_sent(since) - self._limiter.way_sent(unknown))
        i = int(way[: len(self.limits.chain.link_pos)].argmax())
        if way[i] <= FROZEN_WAY:
            return ""
        return (
            f"the arm tells the same joints for {1000 * since:.0f} ms, though "
            f"{self.limits.joint_names[i]} was sent {way[i]:.2f} rad on: they or the arm are stuck"
        )

    def _late(
        self, now: float, command: Command | None, joints: JointState | None
    ) -> tuple[int, str]:
        """-> 0: nothing is late, 1: slow down, 2: latch; and what it is."""
        worst, reason = 0, ""
        stamps = (
            ("command", None if command is None else command.stamp, self.patience.command),
            ("joint state", None if joints is None else joints.stamp, self.patience.joints),
            ("frame", None if command is None else command.frame_stamp, self.patience.frame),
        )
        for name, stamp, ages in stamps:
            age = np.inf if stamp is None else now - stamp
            if not age >= -FUTURE:
                age = np.inf
            level = 2 if age > ages.latch else 1 if age > ages.slow else 0
            if level > worst:
                worst = level
                told = f"is {1000 * age:.0f} ms old" if np.isfinite(age) else "never came"
                reason = f"the last {name} {told}, at most {1000 * ages.slow:.0f} ms are allowed"
        return worst, reason
