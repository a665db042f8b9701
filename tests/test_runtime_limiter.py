"""Velocities that are sent to an arm: limits kept whatever is asked, and always a way to stop."""

from __future__ import annotations

import mujoco
import numpy as np
import pytest

from visuomotor.config import CameraConfig, EnvConfig
from visuomotor.envs import robot, scene
from visuomotor.runtime.arm import MOST_DELAY
from visuomotor.runtime.jaco import CHAIN, LIMITS
from visuomotor.runtime.kinematics import ForwardKinematics
from visuomotor.runtime.limiter import JOINT_MARGIN, Limiter

DT = 0.01
START = np.array(robot.START_QPOS, dtype=float)


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return scene.build_spec(EnvConfig(), CameraConfig()).compile()


def follow(limiter: Limiter, position: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, ...]:
    """Wanted velocities (T, A) on an arm that does what it is sent -> sent, positions, (T, A)."""
    sent, places = [], []
    for velocity in wanted:
        sent.append(limiter.step(velocity, position))
        position = position + sent[-1] * DT
        places.append(position)
    return np.array(sent), np.array(places)


def test_the_runtime_s_arm_is_that_of_the_simulation(model: mujoco.MjModel) -> None:
    assert LIMITS.joint_names == tuple(robot.JOINTS)
    for i, name in enumerate(robot.JOINTS):
        joint = model.joint(name)
        low, high = LIMITS.position_low[i], LIMITS.position_high[i]
        if model.jnt_limited[joint.id]:
            assert (low, high) == pytest.approx(tuple(joint.range))
        else:
            assert (low, high) == (-np.inf, np.inf)
        if name in robot.ARM_JOINTS:
            limit = model.actuator_ctrlrange[model.actuator(name).id, 1]
            assert LIMITS.velocity[i] == pytest.approx(limit)
        else:
            assert LIMITS.velocity[i] == robot.FINGER_MAX_VELOCITY


def test_forward_kinematics_is_mujoco_s(model: mujoco.MjModel) -> None:
    data = mujoco.MjData(model)
    kinematics = ForwardKinematics(CHAIN)
    rng = np.random.default_rng(0)
    joints = [int(model.joint(name).qposadr[0]) for name in robot.ARM_JOINTS]
    site = model.site(robot.PINCH_SITE).id
    angles = rng.uniform(-3.0, 3.0, (50, 6))
    for q in angles:
        data.qpos[joints] = q
        mujoco.mj_kinematics(model, data)
        expected = data.site_xpos[site] - np.array(robot.BASE_POS)
        assert kinematics.tool(q) == pytest.approx(expected, abs=1e-6)
    assert kinematics.tool(angles) == pytest.approx(
        np.stack([kinematics.tool(q) for q in angles]), abs=1e-12
    )


def test_a_velocity_is_reached_without_shooting_over_it() -> None:
    limiter = Limiter(LIMITS, DT)
    wanted = 0.5 * LIMITS.velocity * np.where(np.arange(9) % 2, 1, -1)
    wanted[6:] = 0.0
    sent, _ = follow(limiter, START, np.tile(wanted, (12, 1)))
    assert (np.abs(sent) <= np.abs(wanted) + 1e-12).all()
    ratio = sent[:, :6] / wanted[:6]
    assert (np.diff(ratio, axis=0) >= -1e-12).all()
    assert sent[-1] == pytest.approx(wanted)


@pytest.mark.parametrize("seed", range(6))
def test_no_limit_is_exceeded_by_a_policy_that_switches_wildly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    limiter = Limiter(LIMITS, DT)
    hold = rng.integers(1, 40)
    wanted = np.repeat(rng.choice([-5.0, -0.3, 0.0, 0.3, 5.0], (60, 9)), hold, axis=0)[:600]
    sent, places = follow(limiter, START, wanted)
    acceleration = np.diff(sent, axis=0, prepend=0.0) / DT
    jerk = np.diff(acceleration, axis=0, prepend=0.0) / DT
    slack = 1 + 1e-9
    assert (np.abs(sent) <= LIMITS.velocity * slack).all()
    assert (np.abs(acceleration) <= LIMITS.acceleration * slack).all()
    assert (np.abs(jerk) <= LIMITS.jerk * slack).all()
    assert (places >= LIMITS.position_low + JOINT_MARGIN - 1e-9).all()
    assert (places <= LIMITS.position_high - JOINT_MARGIN + 1e-9).all()


@pytest.mark.parametrize("towards", [-1.0, 1.0])
@pytest.mark.parametrize("joint", [1, 2, 6, 7, 8])
def test_a_joint_driven_at_its_limit_stops_before_it(joint: int, towards: float) -> None:
    limiter = Limiter(
        LIMITS._replace(workspace_low=np.full(3, -9.0), workspace_high=np.full(3, 9.0)), DT
    )
    wanted = np.zeros((1500, 9))
    wanted[:, joint] = towards * 9.0
    sent, places = follow(limiter, START, wanted)
    limit = LIMITS.position_high[joint] if towards > 0 else LIMITS.position_low[joint]
    way = towards * (limit - places[:, joint])
    assert way.min() >= JOINT_MARGIN - 1e-9
    assert way[-1] < JOINT_MARGIN + 0.15, "it should come near"
    assert sent[-1, joint] == pytest.approx(0.0, abs=0.02)


def test_the_hand_does_not_leave_the_workspace() -> None:
    kinematics = ForwardKinematics(CHAIN)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        limiter = Limiter(LIMITS, DT)
        wanted = np.repeat(rng.choice([-1.0, 1.0], (5, 9)), 200, axis=0)
        sent, places = follow(limiter, START, wanted)
        hand = kinematics.tool(places[:, :6])
        assert (hand >= LIMITS.workspace_low - 1e-9).all()
        assert (hand <= LIMITS.workspace_high + 1e-9).all()
        assert np.abs(sent[:100]).max() > 0.3


@pytest.mark.parametrize(
    ("delay", "old", "allowed"),
    [(0, 0, 0.1), (3, 0, 0.1), (6, 1, 0.1), (9, 5, 0.1), (14, 2, 0.15), (29, 4, MOST_DELAY)],
)
def test_an_arm_that_is_late_and_tells_late_keeps_its_limits(
    delay: int, old: int, allowed: float
) -> None:
    """It carries out every velocity `delay` ticks after it was sent, and what it says of itself is
    `old` ticks old; `allowed` s are reckoned with."""
    kinematics = ForwardKinematics(CHAIN)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        limiter = Limiter(LIMITS._replace(delay=allowed), DT)
        wanted = np.repeat(rng.choice([-5.0, 5.0], (6, 9)), 120, axis=0)
        sent = [np.zeros(9)] * delay
        places = [START] * (old + 1)
        for velocity in wanted:
            sent.append(limiter.step(velocity, places[-1 - old], old * DT))
            places.append(places[-1] + DT * sent[len(sent) - 1 - delay])
        way = np.array(places)
        assert (way >= LIMITS.position_low).all()
        assert (way <= LIMITS.position_high).all()
        hand = kinematics.tool(way[:, :6])
        assert (hand >= LIMITS.workspace_low - 1e-9).all()
        assert (hand <= LIMITS.workspace_high + 1e-9).all()


def test_from_outside_the_workspace_only_the_way_back_is_open() -> None:
    limits = LIMITS._replace(workspace_low=np.array([-0.35, -0.75, 0.4]))
    kinematics = ForwardKinematics(CHAIN)
    assert kinematics.tool(START[:6])[2] < 0.4
    for direction in (-1.0, 1.0):
        limiter = Limiter(limits, DT)
        wanted = np.zeros((40, 9))
        wanted[:, 1] = direction
        _, places = follow(limiter, START, wanted)
        heights = kinematics.tool(places[:, :6])[:, 2]
        assert (heights >= kinematics.tool(START[:6])[2] - 1e-6).all()


def test_beyond_one_wall_the_hand_does_not_go_through_another() -> None:
    kinematics = ForwardKinematics(CHAIN)
    hand = kinematics.tool(START[:6])
    # Far beyond the wall at its side, near above the floor.
    low = np.array([-9.0, -9.0, hand[2] - 0.05])
    high = np.array([hand[0] - 0.2, 9.0, 9.0])
    limits = LIMITS._replace(workspace_low=low, workspace_high=high)
    lowest = []
    for seed in range(12):
        wanted = np.tile(np.random.default_rng(seed).choice([-1.0, 1.0], 9), (300, 1))
        _, places = follow(Limiter(limits, DT), START, wanted)
        way = kinematics.tool(places[:, :6])
        assert (way[:, 0] <= hand[0] + 1e-5).all(), "no further beyond the wall"
        lowest.append(way[:, 2].min() - low[2])
    assert min(lowest) >= 0.0
    assert min(lowest) < 0.03, "some come near the floor"


@pytest.mark.parametrize("short", [0.0, 0.04, 0.08, 0.2])
def test_what_a_late_arm_has_still_to_do_is_not_forgotten_by_a_rest(short: float) -> None:
    """It is sent towards a joint's limit, stopped on the way (`short` rad before, or where it must
    stop), and sent on before it has carried that out."""
    delay = 29
    limits = LIMITS._replace(
        delay=MOST_DELAY, workspace_low=np.full(3, -9.0), workspace_high=np.full(3, 9.0)
    )
    limiter = Limiter(limits, DT)
    sent, places = [np.zeros(9)] * delay, [START]

    def move(velocity: np.ndarray) -> None:
        sent.append(velocity)
        places.append(places[-1] + DT * sent[len(sent) - 1 - delay])

    wanted = np.zeros(9)
    wanted[1] = 9.0
    room = LIMITS.position_high[1] - START[1]
    for _ in range(int((room - short) / LIMITS.velocity[1] / DT)):
        move(limiter.step(wanted, places[-1]))
    while not limiter.at_rest:
        move(limiter.brake())
    move(limiter.brake())
    limiter.rest()
    for _ in range(100):
        move(limiter.step(wanted, places[-1]))
    assert np.array(places)[:, 1].max() <= LIMITS.position_high[1]


def test_braking_needs_no_position_and_ends_at_rest() -> None:
    limiter = Limiter(LIMITS, DT)
    follow(limiter, START, np.tile(LIMITS.velocity * [0, 1, -1, 1, -1, 1, 1, 1, 1], (25, 1)))
    assert not limiter.at_rest
    ticks = 0
    while not limiter.at_rest:
        limiter.brake()
        ticks += 1
    assert ticks * DT <= 0.25


def test_what_is_no_number_is_refused() -> None:
    limiter = Limiter(LIMITS, DT)
    for wanted, position in ((np.full(9, np.nan), START), (np.zeros(9), np.full(9, np.inf))):
        with pytest.raises(ValueError, match="finite"):
            limiter.step(wanted, position)
    with pytest.raises(ValueError, match="dt=0"):
        Limiter(LIMITS, 0.0)
