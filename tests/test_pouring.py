"""Pouring: where the liquid is, what counts, and that no sphere gets through a wall."""

from __future__ import annotations

import copy
from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.config import Config, RandomizationConfig
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.envs.tasks import pouring
from visuomotor.envs.tasks.pouring import SPHERES, Pouring
from visuomotor.envs.tasks.task import Task
from visuomotor.experts import make_expert

POURING = Config(task="pouring", num_envs=3, randomization=RandomizationConfig(strength=0.0))
DEEPEST = 1e-3  # m of penetration at a start
STILL = 0.02  # m/s of what has settled


def _env(num_envs: int, config: Config = POURING, seed: int = 0) -> tuple[VisuomotorEnv, Pouring]:
    env = make_env(config, num_envs=num_envs, seed=seed, render=False)
    env.reset()
    assert isinstance(env.task, Pouring)
    return env, env.task


def _place(env: VisuomotorEnv, adr: int, world: int, pos, quat=(1.0, 0.0, 0.0, 0.0)) -> None:
    """Moves a body of one world, by the address of its free joint, without letting time pass."""
    everyone = torch.arange(env.num_envs)
    state = env.sim.get_state(everyone)
    state[world, adr : adr + 7] = torch.tensor([*pos, *quat], dtype=state.dtype)
    env.sim.reset(everyone, state)


def _pour(env: VisuomotorEnv, world: int, count: int) -> None:
    """Puts that many spheres into the container."""
    task = env.task
    middle = task.prop_pos(1)[world].tolist()
    for index in range(count):
        x, y = middle[0] + 0.02 * (index % 3 - 1), middle[1] + 0.02 * (index // 3 - 1)
        _place(env, task._sphere_qpos_ids[index], world, (x, y, 0.025))


@pytest.mark.parametrize(
    ("control_dt", "physics_dt", "substeps"),
    [(0.05, 0.01, 10), (0.05, 0.0025, 20), (0.012, 0.012, 3)],
)
def test_its_physics_steps_are_short_enough_and_fill_a_control_step(
    control_dt, physics_dt, substeps
):
    changed = replace(POURING.env, control_dt=control_dt, physics_dt=physics_dt)
    env, _ = _env(1, replace(POURING, env=changed))
    timestep = env.sim.model.opt.timestep
    assert timestep <= pouring.PHYSICS_DT
    assert timestep * substeps == pytest.approx(control_dt)
    assert env.sim._substeps == substeps


def test_stages_rewards_and_success():
    env, task = _env(SPHERES + 2)
    everyone = torch.arange(env.num_envs)
    assert task.stage().tolist() == [0] * env.num_envs
    # The mug at a fingertip, in the air: grasped.
    _place(env, task._prop_qpos_ids[0], 1, task.fingertip_pos()[1, 0].tolist())
    # ... and in the air, but not at the hand: not.
    _place(env, task._prop_qpos_ids[0], 0, (0.1, -0.1, 0.2))
    for world in range(2, env.num_envs):
        _pour(env, world, world - 1)
    assert task.stage().tolist() == list(range(SPHERES + 2))
    rewards = [0.0, 0.05, *(0.1 * count for count in range(1, SPHERES + 1))]
    assert task.reward(everyone).tolist() == pytest.approx(rewards)
    assert task.success(everyone).tolist() == [False] * 6 + [True] * 6  # 5 of 10 and more
    assert len(task.stages) == len(task.stage_rewards) == len(task.stage_props) == SPHERES + 2


def test_a_grasped_mug_is_off_the_table():
    env, task = _env(1)
    pinch = task.pinch_pos()[0].tolist()
    _place(env, task._prop_qpos_ids[0], 0, (*pinch[:2], 0.035 + pouring.GRASP_HEIGHT - 0.001))
    assert not bool(task.grasped()[0])


def test_in_the_container_is_between_its_walls_and_below_its_rim():
    cases = [
        ((0.0, 0.0, 0.0), True),
        ((0.044, 0.0, 0.0), True),
        ((0.046, 0.0, 0.0), False),  # in the wall
        ((0.0, -0.046, 0.0), False),
        ((0.0, 0.0, 0.020), True),
        ((0.0, 0.0, 0.022), False),  # above the rim
    ]
    env, task = _env(len(cases))
    turn = (np.cos(0.4), 0.0, 0.0, np.sin(0.4))  # the frame is the container's
    for world, (offset, _) in enumerate(cases):
        _place(env, task._prop_qpos_ids[1], world, (0.0, 0.1, 0.021), turn)
        mat = env.sim.data("xmat")[world, task.prop_body_ids[1]].view(3, 3).numpy()
        pos = np.array([0.0, 0.1, 0.021]) + mat @ np.array(offset)
        _place(env, task._sphere_qpos_ids[3], world, pos.tolist())
    expected = torch.zeros(len(cases), SPHERES, dtype=torch.bool)
    expected[:, 3] = torch.tensor([inside for _, inside in cases])
    assert torch.equal(task.in_container(), expected)


def test_a_mug_put_into_the_container_is_not_poured():
    env, task = _env(1)
    everyone = torch.zeros(1, dtype=torch.int64)
    state, mug, box = env.sim.get_state(everyone), *task._prop_qpos_ids
    shift = state[0, box : box + 2] - state[0, mug : mug + 2]
    for adr in (mug, *task._sphere_qpos_ids):
        state[0, adr : adr + 2] += shift
    env.sim.reset(everyone, state)
    assert bool(task.in_mug().all())
    assert int(task.stage()[0]) == 0


def test_the_order_of_the_spheres_changes_nothing():
    env, task = _env(1)
    _pour(env, 0, 3)
    everyone = torch.zeros(1, dtype=torch.int64)
    env.sim.step()
    state = env.sim.get_state(everyone)
    views = (Task.state(task), task.state(), task.object_features(), task.aux_targets())
    before = [view.clone() for view in views]
    shuffled = state.clone()
    order = np.random.default_rng(0).permutation(SPHERES)
    nq, dofs = env.sim.model.nq, task._sphere_dof_ids[:, 0].tolist()
    for index, other in enumerate(order):
        to, of = task._sphere_qpos_ids[index], task._sphere_qpos_ids[other]
        shuffled[0, to : to + 7] = state[0, of : of + 7]
        to, of = nq + dofs[index], nq + dofs[other]
        shuffled[0, to : to + 6] = state[0, of : of + 6]
    env.sim.reset(everyone, shuffled)
    views = (Task.state(task), task.state(), task.object_features(), task.aux_targets())
    for view, old in zip(views, before, strict=True):
        torch.testing.assert_close(view, old, atol=1e-5, rtol=0.0)


def test_the_state_shows_where_every_sphere_is_and_how_fast():
    env, task = _env(1)
    only = torch.zeros(1, dtype=torch.int64)
    state, reference = env.sim.get_state(only), task.state().clone()
    nq = env.sim.model.nq
    places = [adr + axis for adr in task._sphere_qpos_ids for axis in range(3)]
    for index in [*places, *(nq + task._sphere_dof_ids.flatten()).tolist()]:
        moved = state.clone()
        moved[0, index] += 1e-3
        env.sim.reset(only, moved)
        assert not torch.equal(task.state(), reference), index


def test_starts_are_without_penetration_on_the_table_in_sight_and_settle():
    """64 of them at full randomization; the liquid is in the mug and stays there."""
    env, task = _env(64, replace(POURING, randomization=RandomizationConfig()))
    assert _deepest(env) < DEEPEST
    assert bool(task.in_mug().all())
    assert float(task.hand_contacts(0).max()) == float(task.hand_contacts(1).max()) == 0.0
    apart = (task.prop_pos(0) - task.prop_pos(1))[:, :2].norm(dim=1)
    assert float(apart.min()) >= pouring.MIN_DISTANCE
    corners = _corners(env)
    assert float(corners.abs().max()) < 1.0
    stood = task.prop_pos(0).clone()
    for _ in range(20):
        env.sim.step()
    assert float((task.prop_pos(0) - stood).norm(dim=1).max()) < 2e-3
    assert bool(task.in_mug().all())
    speed = task.sphere_velocity().norm(dim=2).amax(dim=1)
    assert float(speed.quantile(0.8)) < STILL


def test_no_sphere_gets_through_a_wall():
    """At the ends of the sizes, and of the masses: a mug that falls, that is thrown, that is spun;
    spheres that fall into the container from as high as a hand pours, and from twice as high."""
    sizes = [(mug, sphere) for mug in (0.95, 1.05) for sphere in (0.95, 1.05)]
    env, task = _env(48, replace(POURING, env=replace(POURING.env, control_dt=pouring.PHYSICS_DT)))
    factors = np.tile(env.randomizer.default(), (env.num_envs, 1))
    column = env.randomizer.factor_names.index
    for group, (mug, sphere) in enumerate(sizes):
        worlds = slice(12 * group, 12 * group + 12)
        factors[worlds, column("prop_size/mug")] = mug
        factors[worlds, column("prop_size/container")] = mug
        factors[worlds, column("prop_size/liquid")] = sphere
    factors[::2, column("prop_mass/liquid")] = 2.0
    factors[1::2, column("prop_mass/mug")] = 0.5
    everyone = torch.arange(env.num_envs)
    env.randomizer.apply(env.sim, everyone, factors)
    heights = task.rest_heights().numpy()
    starts = [task.start_state(np.random.default_rng(i), heights[i]) for i in everyone.tolist()]
    states, nq = np.stack(starts), env.sim.model.nq
    bodies = [*task._prop_qpos_ids[:1], *task._sphere_qpos_ids]
    speeds = [task._prop_dof_ids[0], *task._sphere_dof_ids[:, 0].tolist()]
    case = np.arange(env.num_envs) % 12
    for adr, dof in zip(bodies, speeds, strict=True):
        states[case < 6, adr + 2] += 0.15  # falls from where it is carried
        states[(case >= 2) & (case < 8), nq + dof] = 0.8  # thrown, faster than the hand moves
    states[(case >= 4) & (case < 6), nq + speeds[0] + 3] = 6.0  # spun, rad/s
    for world in np.flatnonzero(case >= 8):
        middle = states[world, task._prop_qpos_ids[1] :][:2]
        for index, adr in enumerate(task._sphere_qpos_ids):
            across = 0.02 * np.array([index % 4 - 1.5, index // 4 - 1])
            states[world, adr : adr + 3] = (*(middle + across), 0.15)
            states[world, nq + speeds[1 + index] + 2] = 0.0 if case[world] < 10 else -1.5
    env.sim.reset(everyone, torch.from_numpy(states))
    watch = _Walls(task)
    for _ in range(250):
        env.sim.step()
        watch.look()
    # What fell into the container is there, but for what bounced out.
    assert float(task.in_container()[case >= 8].double().mean()) > 0.95


@pytest.mark.slow
def test_no_sphere_gets_through_a_wall_of_a_mug_that_is_shaken():
    """In the hand, as hard as the arm can, at full randomization."""
    config = replace(POURING, randomization=RandomizationConfig())
    env, task = _env(64, replace(config, env=replace(config.env, control_dt=pouring.PHYSICS_DT)))
    env.episode_steps = 10**6
    expert = make_expert(env, seed=0)
    for _ in range(700):
        env.step(expert.act())
    assert float(task.grasped().double().mean()) > 0.8
    watch, generator = _Walls(task), torch.Generator().manual_seed(0)
    for step in range(600):
        if step % 20 == 0:
            action = torch.randint(0, 2, (64, 9), generator=generator).float() * 2 - 1
            action[:, 6:] = 1.0
        env.step(action)
        watch.look()


class _Walls:
    """Spheres leave a vessel through its mouth, and none sinks into the table."""

    def __init__(self, task: Pouring):
        self._task = task
        self._before = self._inside()

    def _inside(self) -> list[torch.Tensor]:
        task = self._task
        return [
            task._inside(0, pouring.MUG_INNER, pouring.MUG_HEIGHT),
            task._inside(1, pouring.CONTAINER_INNER, pouring.CONTAINER_HEIGHT),
        ]

    def look(self) -> None:
        after = self._inside()
        for vessel, (was, now) in enumerate(zip(self._before, after, strict=True)):
            pos, half = self._task._seen_from(vessel)
            # Beyond the rim it may go anywhere; below it a wall or the floor was in its way.
            through = was & ~now & (pos[:, :, 2] < half - 0.003)
            assert not bool(through.any()), (
                vessel,
                through.nonzero().tolist(),
                pos[through].tolist(),
            )
        pos = self._task.sphere_pos()
        over_table = (pos[:, :, 0].abs() < 0.5) & ((pos[:, :, 1] - 0.1).abs() < 0.45)
        assert float(pos[:, :, 2][over_table].min()) > 0.0
        self._before = after


def _corners(env: VisuomotorEnv) -> torch.Tensor:
    """(N, corners of mug and container and spheres, 2): on the image, its edges are at -1 and 1."""
    task = env.task
    points = [task.sphere_pos()]
    for index, (across, height) in enumerate(
        (
            (pouring.MUG_INNER + pouring.MUG_WALL, pouring.MUG_HEIGHT),
            (pouring.CONTAINER_INNER + pouring.CONTAINER_WALL, pouring.CONTAINER_HEIGHT),
        )
    ):
        mat = env.sim.data("xmat")[:, task.prop_body_ids[index]].view(-1, 3, 3)
        for signs in np.ndindex(2, 2, 2):
            corner = (2 * np.array(signs) - 1) * np.array([across, across, height / 2])
            points.append((task.prop_pos(index) + mat @ torch.from_numpy(corner)).unsqueeze(1))
    offset = torch.cat(points, dim=1) - env.sim.data("cam_xpos")[:, :1]
    seen = offset @ env.sim.data("cam_xmat")[:, 0].view(-1, 3, 3)
    reach = torch.deg2rad(env.sim.model_field("cam_fovy")[:, :1] / 2).tan()
    return seen[:, :, :2] / -seen[:, :, 2:] / reach.unsqueeze(2)


def _deepest(env: VisuomotorEnv) -> float:
    """m, of all contacts of all worlds, each with its own sizes."""
    model, deepest = copy.copy(env.sim.model), 0.0
    data = mujoco.MjData(model)
    for world in range(env.num_envs):
        for name in ("geom_size", "geom_pos", "geom_rbound", "geom_aabb"):
            field = getattr(model, name)
            field[:] = env.sim.model_field(name)[world].numpy().reshape(field.shape)
        data.qpos[:] = env.sim.data("qpos")[world].numpy()
        mujoco.mj_forward(model, data)
        deepest = max([deepest, *(-contact.dist for contact in data.contact[: data.ncon])])
    return deepest


def test_spilled_liquid_is_looked_for_where_it_left_the_picture() -> None:
    env = make_env(Config(task="pouring"), num_envs=2, seed=0, render=False)
    env.reset()
    before = env.task.aux_targets()[:, 6:9]
    state = env.sim.get_state(torch.arange(2))
    first = int(env.sim.model.joint("liquid/0_joint").qposadr[0])
    state[0, first : first + 3] = torch.tensor([1.5, 0.0, -0.7])  # on the floor
    env.sim.reset(torch.arange(2), state)
    after = env.task.aux_targets()[:, 6:9]
    assert torch.equal(after[1], before[1])
    moved = (after[0] - before[0]).abs()
    assert 0.0 < moved.max() < 0.05  # a tenth of the way to the edge, not to the floor
