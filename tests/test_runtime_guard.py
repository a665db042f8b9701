"""What the streamer decides: when the arm runs, slows down and latches. Time is played, not waited
for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from visuomotor.envs import robot
from visuomotor.runtime.arm import JointState
from visuomotor.runtime.guard import (
    RELEASED,
    UNKNOWN,
    Command,
    Decision,
    Guard,
    Patience,
    Start,
    State,
    off_start,
)
from visuomotor.runtime.jaco import LIMITS

DT = 0.01
START = np.array(robot.START_QPOS, dtype=float)
WANTED = 0.3 * LIMITS.velocity
RAMP = 0.25  # s that a stop from full speed may take


class Scene:
    """An arm that does what it is sent, a policy that decides at 20 Hz, a camera (20 frames/s) and
    a human; each can be told to stop or to lie."""

    def __init__(
        self, camera_period: float = 0.05, late: float = 0.0, start: Start | None = None
    ) -> None:
        """late: s that each frame comes later than the camera's clock says."""
        self.camera_period, self.late = camera_period, late
        self.guard = Guard(LIMITS, DT, Patience.for_camera(camera_period), start)
        self.ticks = 0
        self.position = START.copy()
        self.pressed: bool | None = False
        self.wanted = WANTED.copy()
        self.command: Command | None = None
        self.joints: JointState | None = None
        self.frame_stamp = 0.0
        self.silent: set[str] = set()
        self.lost: set[float] = set()  # frames' numbers
        self.lie: Callable[[JointState], JointState] = lambda joints: joints
        self.decisions: list[Decision] = []

    @property
    def now(self) -> float:
        return 100.0 + self.ticks * DT

    def run(self, seconds: float) -> Decision:
        for _ in range(round(seconds / DT)):
            if "joints" not in self.silent:
                self.joints = self.lie(JointState(self.position.copy(), np.zeros(9), self.now))
            sent = np.floor((self.now - self.late) / self.camera_period + 1e-6)
            if "camera" not in self.silent and sent not in self.lost:
                self.frame_stamp = sent * self.camera_period + self.late
            if self.ticks % 5 == 0 and "policy" not in self.silent:
                self.command = Command(self.wanted.copy(), self.now, self.frame_stamp)
            decision = self.guard.tick(self.now, self.command, self.joints, self.pressed)
            self.position = self.position + decision.velocity * DT
            self.decisions.append(decision)
            self.ticks += 1
        return self.decisions[-1]

    def arm(self) -> None:
        self.pressed = False
        self.run(0.1)
        self.pressed = True
        assert self.run(0.3).state is State.RUNNING

    def rest_after(self) -> float:
        """s from now until nothing but zeros is sent."""
        begin = self.ticks
        self.run(1.0)
        moving = [i for i in range(begin, self.ticks) if self.decisions[i].velocity.any()]
        return 0.0 if not moving else (moving[-1] + 1 - begin) * DT


def test_nothing_moves_before_a_human_presses_and_then_it_runs() -> None:
    scene = Scene()
    assert scene.run(0.5).state is State.LATCHED
    assert not any(d.velocity.any() for d in scene.decisions)
    scene.arm()
    assert scene.decisions[-1].velocity == pytest.approx(WANTED)
    assert scene.decisions[-1].armed == 1


def test_a_switch_that_was_never_seen_released_does_not_arm() -> None:
    scene = Scene()
    scene.pressed = True
    assert scene.run(1.0).state is State.LATCHED


def test_letting_go_brings_the_arm_to_rest_and_latches_until_pressed_anew() -> None:
    scene = Scene()
    scene.arm()
    scene.pressed = False
    assert scene.rest_after() <= RAMP
    assert scene.decisions[-1].state is State.LATCHED
    assert scene.decisions[-1].reason == RELEASED
    scene.arm()
    assert scene.decisions[-1].armed == 2


def test_a_switch_of_which_nobody_knows_stops_the_arm_and_arms_nothing_when_it_is_back() -> None:
    scene = Scene()
    scene.arm()
    scene.pressed = None
    assert scene.rest_after() <= RAMP
    assert scene.decisions[-1].reason == UNKNOWN, "that is no release"
    scene.pressed = True  # held all the time
    assert scene.run(1.0).state is State.LATCHED
    assert not any(d.velocity.any() for d in scene.decisions[-100:])
    scene.arm()


def test_what_was_sent_before_a_latch_is_forgotten_only_with_time() -> None:
    scene = Scene()
    scene.arm()
    scene.pressed = False
    while scene.run(DT).state is not State.LATCHED:
        pass
    assert scene.guard._limiter.way_sent(0.5)[0] > 0.01
    assert not scene.run(0.6).velocity.any()
    assert not scene.guard._limiter.way_sent(0.5).any()


@pytest.mark.parametrize("stamp", [np.nan, np.inf, 1e9])
def test_a_stamp_that_cannot_be_counts_as_never(stamp: float) -> None:
    scene = Scene()
    scene.arm()
    scene.silent = {"policy"}
    scene.command = Command(WANTED, stamp, stamp)
    assert scene.rest_after() <= RAMP
    assert scene.decisions[-1].state is State.LATCHED
    assert "never came" in scene.decisions[-1].reason


def test_joints_far_beyond_their_limits_are_no_joints_of_this_arm() -> None:
    scene = Scene()
    scene.position[1] = 0.0
    scene.run(0.1)
    scene.pressed = True
    assert scene.run(0.5).state is State.LATCHED
    assert "beyond its limits" in scene.decisions[-1].reason


def test_a_command_that_is_late_slows_down_and_one_that_returns_in_time_goes_on() -> None:
    scene = Scene()
    scene.arm()
    scene.silent = {"policy"}
    states = [scene.run(DT).state for _ in range(17)]
    assert State.SLOWING in states and State.LATCHED not in states
    assert np.abs(scene.decisions[-1].velocity).max() < np.abs(WANTED).max()
    scene.silent = set()
    assert scene.run(0.3).state is State.RUNNING
    assert scene.decisions[-1].velocity == pytest.approx(WANTED)


@pytest.mark.parametrize("silent", ["policy", "joints", "camera"])
def test_silence_latches_and_stays_latched_when_it_ends(silent: str) -> None:
    scene = Scene()
    scene.arm()
    scene.silent = {silent}
    assert scene.rest_after() <= 0.25 + RAMP
    assert scene.decisions[-1].state is State.LATCHED
    assert "ms old" in scene.decisions[-1].reason
    scene.silent = set()
    last = scene.ticks
    assert scene.run(1.0).state is State.LATCHED, "the switch is still held"
    assert not any(d.velocity.any() for d in scene.decisions[last:])
    scene.arm()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_command_that_is_no_number_is_never_sent(broken: float) -> None:
    scene = Scene()
    scene.arm()
    scene.wanted[3] = broken
    assert scene.rest_after() <= 0.05 + RAMP
    assert all(np.isfinite(d.velocity).all() for d in scene.decisions)
    assert scene.decisions[-1].state is State.LATCHED
    assert "not finite" in scene.decisions[-1].reason


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_joints_that_are_no_numbers_stop_the_arm(broken: float) -> None:
    scene = Scene()
    scene.arm()
    scene.lie = lambda joints: joints._replace(position=joints.position + broken)
    assert scene.rest_after() <= RAMP
    assert "not finite" in scene.decisions[-1].reason


def test_joints_that_jump_stop_the_arm() -> None:
    scene = Scene()
    scene.arm()
    swapped = [0, 2, 1, *range(3, 9)]
    scene.lie = lambda joints: joints._replace(position=joints.position[swapped])
    assert scene.rest_after() <= RAMP
    assert "jumped" in scene.decisions[-1].reason


def test_joints_that_repeat_while_the_arm_is_sent_on_its_way_stop_it() -> None:
    scene = Scene()
    scene.arm()
    scene.wanted = 0.5 * LIMITS.velocity
    scene.run(0.3)
    told = scene.joints
    assert told is not None
    scene.lie = lambda joints: told._replace(stamp=joints.stamp)
    assert scene.rest_after() <= 0.25 + RAMP
    assert scene.decisions[-1].state is State.LATCHED
    assert "tells the same joints" in scene.decisions[-1].reason
    scene.lie = lambda joints: joints
    last = scene.ticks
    assert scene.run(0.5).state is State.LATCHED, "the switch is still held"
    assert not any(d.velocity.any() for d in scene.decisions[last:])
    scene.arm()


@pytest.mark.parametrize("delay", [0.0, LIMITS.delay, LIMITS.delay + 0.05])
def test_an_arm_that_starts_late_is_not_frozen(delay: float) -> None:
    """At full acceleration, from a rest in which not one digit changed."""
    scene = Scene()
    places = [START] * (1 + round(delay / DT))

    def late(joints: JointState) -> JointState:
        places.append(joints.position)
        return joints._replace(position=places.pop(0))

    scene.lie = late
    scene.wanted = LIMITS.velocity.copy()
    scene.arm()
    assert scene.run(0.3).state is State.RUNNING


@pytest.mark.parametrize("moving", ["nothing", "the last digit", "another joint", "fingers"])
def test_an_arm_that_is_held_up_is_not_frozen(moving: str) -> None:
    """Pressed against the table, or a hand that has closed on its block."""
    scene = Scene()
    scene.wanted = np.zeros(9)
    scene.arm()
    told = scene.joints
    assert told is not None
    rng = np.random.default_rng(0)
    if moving == "nothing":  # asked for little
        scene.wanted[:6] = 0.06
    elif moving == "fingers":
        scene.wanted[6:] = 0.5
    else:
        scene.wanted[:6] = 0.5

    def held(joints: JointState) -> JointState:
        position = told.position.copy()
        if moving == "the last digit":
            position[2] += 1e-4 * rng.integers(2)
        if moving == "another joint":
            position[5] = joints.position[5]
        return joints._replace(position=position)

    scene.lie = held
    states = [scene.run(DT).state for _ in range(60 if moving == "another joint" else 200)]
    assert set(states) == {State.RUNNING}


def test_joints_that_no_longer_come_are_late_not_frozen() -> None:
    scene = Scene()
    scene.arm()
    scene.silent = {"joints"}
    scene.run(1.0)
    assert "the last joint state is" in scene.decisions[-1].reason


def test_an_angle_without_limits_may_start_anew_after_a_turn() -> None:
    scene = Scene()
    scene.arm()
    turned = np.zeros(9)
    turned[[0, 5]] = 2 * np.pi, -2 * np.pi
    scene.lie = lambda joints: joints._replace(position=joints.position + turned)
    assert scene.run(0.3).state is State.RUNNING
    turned[1] = 2 * np.pi  # this one has limits
    assert scene.run(0.5).state is State.LATCHED


def test_a_policy_that_cannot_act_stops_the_arm_and_says_why() -> None:
    scene = Scene()
    scene.arm()
    scene.silent = {"policy"}
    scene.command = Command(np.zeros(9), scene.now, scene.now, "proprio[3] = nan")
    assert scene.rest_after() <= RAMP
    assert "proprio[3] = nan" in scene.decisions[-1].reason


def test_a_failure_outside_stops_the_arm() -> None:
    scene = Scene()
    scene.arm()
    scene.guard.fail("the streamer itself was held up")
    assert scene.rest_after() <= RAMP
    assert scene.decisions[-1].state is State.LATCHED


def test_a_failure_outside_uses_up_the_press_that_is_seen_with_it() -> None:
    scene = Scene()
    scene.run(0.1)
    scene.pressed = True
    scene.guard.fail("the streamer itself was held up")
    assert scene.run(0.5).state is State.LATCHED, "the switch is still held"
    assert scene.decisions[-1].reason == "cannot be armed: the streamer itself was held up"
    assert scene.decisions[-1].armed == 0
    assert not any(d.velocity.any() for d in scene.decisions)
    scene.arm()


def test_a_failure_outside_that_no_press_met_is_over_with_its_tick() -> None:
    scene = Scene()
    scene.run(0.1)
    scene.guard.fail("the streamer itself was held up")
    scene.run(DT)
    scene.pressed = True
    assert scene.run(DT).state is State.RUNNING


def test_a_failure_outside_that_stopped_the_arm_is_no_obstacle_later() -> None:
    scene = Scene()
    scene.arm()
    scene.guard.fail("the streamer itself was held up")
    scene.run(0.5)
    scene.arm()
    assert scene.decisions[-1].armed == 2


TOLERANCE = Start(START, 0.2)


@pytest.mark.parametrize(
    ("joint", "off", "allowed"),
    [
        (0, 0.19, True),
        (0, -0.19, True),
        (0, 0.21, False),
        (0, -0.21, False),
        (0, 2 * np.pi - 0.1, True),  # turns without end: a tenth, from the other side
        (0, 4 * np.pi, True),
        (0, np.pi, False),
        (1, -0.21, False),
        (5, 0.21, False),
        (6, 0.5, True),  # a finger
    ],
)
def test_the_arm_is_armed_at_its_start_alone(joint: int, off: float, allowed: bool) -> None:
    scene = Scene(start=TOLERANCE)
    scene.position[joint] += off
    scene.run(0.1)
    scene.pressed = True
    decision = scene.run(0.1)
    assert decision.state is (State.RUNNING if allowed else State.LATCHED)
    if not allowed:
        told = f"cannot be armed: {LIMITS.joint_names[joint]} is {abs(off):.2f} rad from the start"
        assert decision.reason == told
    anywhere = Scene()
    anywhere.position[joint] += off
    anywhere.arm()


@pytest.mark.filterwarnings("error")
def test_joints_with_limits_are_not_compared_modulo_a_turn() -> None:
    """Joint 2 of a Jaco does not turn without end."""
    apart = START.copy()
    apart[1] += 2 * np.pi
    assert off_start(LIMITS, TOLERANCE, apart) == {1: pytest.approx(2 * np.pi)}
    apart[3] += 2 * np.pi - 0.3
    assert off_start(LIMITS, TOLERANCE, apart)[3] == pytest.approx(-0.3)
    apart[4], apart[5] = np.nan, np.inf  # told once, by the reason
    assert set(off_start(LIMITS, TOLERANCE, apart)) == {1, 3, 4, 5}


def test_a_switch_held_while_the_arm_is_brought_to_its_start_does_not_arm_it() -> None:
    scene = Scene(start=TOLERANCE)
    scene.position[2] += 0.4
    scene.run(0.1)
    scene.pressed = True
    assert scene.run(0.1).state is State.LATCHED
    scene.position[2] -= 0.4
    assert scene.run(0.5).state is State.LATCHED
    scene.arm()


def test_every_episode_begins_at_the_start_and_none_ends_for_leaving_it() -> None:
    scene = Scene(start=TOLERANCE)
    scene.arm()
    assert scene.run(1.5).state is State.RUNNING
    assert np.abs(scene.position - START).max() > 0.2
    scene.pressed = False
    scene.run(0.5)
    scene.pressed = True
    assert scene.run(0.5).state is State.LATCHED
    assert "rad from the start" in scene.decisions[-1].reason
    scene.pressed = False
    scene.position = START.copy()
    scene.run(0.1)
    scene.arm()
    assert scene.decisions[-1].armed == 2


def test_nothing_arms_while_something_is_wrong_and_a_held_switch_does_not_arm_later() -> None:
    scene = Scene()
    scene.silent = {"camera"}
    scene.run(0.5)
    scene.pressed = True
    assert scene.run(0.2).state is State.LATCHED
    assert "cannot be armed" in scene.decisions[-1].reason
    scene.silent = set()
    assert scene.run(0.5).state is State.LATCHED
    scene.arm()


CAMERAS = [1 / 30, 1 / 20, 1 / 5]  # s between frames; of the slowest, each is the policy's next


@pytest.mark.parametrize("late", [0.0, 0.004, 0.013])
@pytest.mark.parametrize("period", CAMERAS)
def test_a_camera_that_loses_single_frames_is_not_late(period: float, late: float) -> None:
    scene = Scene(period, late)
    scene.arm()
    first = int(scene.now / period) + 3
    scene.lost = {first, first + 2, first + 5}
    begin = scene.ticks
    scene.run(10 * period + 0.5)
    assert {d.state for d in scene.decisions[begin:]} == {State.RUNNING}


@pytest.mark.parametrize("period", CAMERAS)
def test_a_camera_that_loses_four_frames_on_end_is_late(period: float) -> None:
    scene = Scene(period)
    scene.arm()
    first = int(scene.now / period) + 3
    scene.lost = {first + i for i in range(4)}
    begin = scene.ticks
    scene.run(10 * period + 0.5)
    assert State.SLOWING in {d.state for d in scene.decisions[begin:]}


@pytest.mark.parametrize(
    ("period", "slow", "latch"), [(1 / 30, 0.137, 0.25), (1 / 20, 0.17, 0.27), (1 / 5, 0.47, 0.57)]
)
def test_a_camera_that_is_gone_stops_the_arm_within_two_of_its_periods_and_a_bit(
    period: float, slow: float, latch: float
) -> None:
    scene = Scene(period)
    scene.arm()
    while scene.frame_stamp < scene.now - DT - 1e-6:  # until a frame has just come
        scene.run(DT)
    scene.silent, begin = {"camera"}, scene.ticks
    rest = scene.rest_after()
    states = [d.state for d in scene.decisions[begin:]]
    assert states.index(State.SLOWING) * DT == pytest.approx(slow, abs=1.5 * DT)
    assert scene.decisions[-1].state is State.LATCHED
    assert rest <= latch + RAMP
    reason = scene.decisions[-1].reason
    told = float(reason.removeprefix("the last frame is ").partition(" ms")[0])
    assert told == pytest.approx(1000 * latch, abs=15)
