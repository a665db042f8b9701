"""Stages, rewards, success and privileged views, on states placed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.aux_tasks import PlaceMaps, View
from visuomotor.config import Config
from visuomotor.envs import TASKS, Task, make_env, make_task
from visuomotor.envs.mujoco_cpu import FALLEN
from visuomotor.envs.tasks import clearing_blocks, clearing_box
from visuomotor.envs.tasks.lifting import LIFT_HEIGHT
from visuomotor.envs.tasks.stacking import MIN_DISTANCE
from visuomotor.envs.tasks.task import BLOCK_EDGE, TABLE, WORKSPACE

HALF = BLOCK_EDGE / 2


def _put(env, world, prop, pos, quat=(1.0, 0.0, 0.0, 0.0)):
    """Moves a prop of one world without letting time pass."""
    everyone = torch.arange(env.num_envs)
    state = env.sim.get_state(everyone)
    adr = env.task._prop_qpos_ids[prop]
    state[world, adr : adr + 7] = torch.tensor([*pos, *quat], dtype=state.dtype)
    env.sim.reset(everyone, state)


def test_lifting_stages_and_rewards(nominal, make):
    env = make(replace(nominal, task="lifting"), num_envs=4)
    env.reset()
    pinch = env.task.pinch_pos()[1].tolist()
    _put(env, 0, 0, (0.0, 0.0, HALF))
    _put(env, 1, 0, (pinch[0], pinch[1], HALF + LIFT_HEIGHT - 0.001))
    _put(env, 2, 0, (0.1, -0.1, HALF + LIFT_HEIGHT + 0.001))  # thrown: no hand is at it
    tip = env.task.fingertip_pos()[3, 0].tolist()
    assert tip[2] > HALF + LIFT_HEIGHT
    _put(env, 3, 0, tip)
    assert env.task.stage().tolist() == [0, 0, 0, 2]
    assert env.task.reward(torch.tensor([0, 1, 2])).tolist() == [0.0, 0.125, 1.0]
    assert env.task.success(torch.tensor([0, 1, 2])).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("offset", "stage"),
    [
        ((0.0, 0.0, BLOCK_EDGE - 0.0005), 3),
        ((0.021, 0.0, BLOCK_EDGE - 0.0005), 3),
        ((0.024, 0.0, BLOCK_EDGE - 0.0005), 2),  # would topple
        ((0.0, 0.0, BLOCK_EDGE + 0.005), 2),  # flies past
        ((0.0, 0.0, BLOCK_EDGE + 0.007), 2),  # hovers
        ((0.1, 0.0, 0.0), 0),
    ],
)
def test_stacked_means_resting_on_the_other_block(nominal, make, offset, stage):
    env = make(nominal)
    env.reset()
    _put(env, 1, 1, (0.0, -0.05, HALF))
    _put(env, 1, 0, (offset[0], -0.05 + offset[1], HALF + offset[2]))
    assert int(env.task.stage()[1]) == stage


def test_cleared_means_both_off_the_table_and_in_the_hand_or_on_what_is_in_it(nominal, make):
    env = make(replace(nominal, task="clearing_blocks"), num_envs=6)
    env.reset()
    low, height = clearing_blocks.LOWER_EDGE / 2, clearing_blocks.CLEAR_HEIGHT + 0.001
    high = clearing_blocks.LOWER_EDGE + clearing_blocks.UPPER_EDGE / 2
    for world in range(6):
        _put(env, world, 1, (0.0, -0.05, low))
        _put(env, world, 0, (0.0, -0.05, high))
    assert env.task.stage().tolist() == [3] * 6  # one on the other, on the table
    for world in range(1, 6):
        _put(env, world, 1, (0.0, -0.05, low + height))
        _put(env, world, 0, (0.0, -0.05, high + height))
    assert env.task.stage().tolist() == [3] * 6  # in the air, but nothing holds them
    # One in the hand, the other one elsewhere in the air: orange, then pink.
    _put(env, 2, 0, env.task.fingertip_pos()[2, 0].tolist())
    _put(env, 3, 1, env.task.fingertip_pos()[3, 0].tolist())
    assert env.task.stage()[2:4].tolist() == [2, 2]
    # Each at a finger of its own, and one under that which is at a finger.
    for prop in (0, 1):
        _put(env, 4, prop, env.task.fingertip_pos()[4, prop].tolist())
    tip = env.task.fingertip_pos()[5, 0].tolist()
    _put(env, 5, 0, tip)
    touching = low + clearing_blocks.UPPER_EDGE / 2 - 0.0005
    _put(env, 5, 1, (tip[0], tip[1], tip[2] - touching))
    assert env.task.stage()[4:].tolist() == [4, 4]
    # They slip, and touch again in the next step; or the lower one, which no finger is at, falls.
    env.task.held = lambda prop: torch.full((6,), prop == 0)
    _put(env, 5, 1, (tip[0], tip[1], tip[2] - touching - 0.001))
    assert not bool(env.task.touching()[5])
    assert int(env.task.stage()[5]) == 4
    state = env.sim.get_state(torch.arange(6))
    state[5, env.sim.model.nq + env.task._prop_dof_ids[1] + 2] = -0.3  # m/s
    env.sim.reset(torch.arange(6), state)
    assert int(env.task.stage()[5]) == 3
    assert env.task.reward(torch.tensor([3, 4])).tolist() == [1.0, 2.0]


def test_in_the_box_means_between_its_walls_under_its_rim_and_released(nominal, make):
    env = make(replace(nominal, task="clearing_box"), num_envs=5)
    env.reset()
    width, _, height = clearing_box.BOX_SIZE
    places = [
        (0.0, 0.0, 0.0),
        (0.0, 0.0, height / 2 + 0.001),  # above the rim
        (width / 2 + 0.001, 0.0, 0.0),  # beside it
        (0.02, 0.04, 0.01),
    ]
    for world, (x, y, z) in enumerate(places):
        _put(env, world, 1, (0.0, -0.05, height / 2))
        _put(env, world, 0, (x, -0.05 + y, height / 2 + z))
    tip = env.task.fingertip_pos()[4, 0].tolist()
    _put(env, 4, 1, tip)
    _put(env, 4, 0, tip)  # in the box, and touched
    assert env.task.in_box().tolist() == [True, False, False, True, False]
    assert env.task.stage()[:4].tolist() == [3, 0, 0, 3]


def test_the_box_counts_as_lifted_in_the_hand_with_the_car_in_it(nominal, make):
    env = make(replace(nominal, task="clearing_box"), num_envs=5)
    env.reset()
    half, height = clearing_box.BOX_SIZE[2] / 2, clearing_box.LIFT_HEIGHT
    # The car as low in the box as it lies there; the hand's palm touches the box's walls alone.
    for world, up in enumerate((height - 0.001, height + 0.001)):
        _put(env, world, 1, (0.0, -0.05, half + up))
        _put(env, world, 0, (0.0, -0.05, half + up))
    _put(env, 2, 1, (0.0, -0.05, half + height + 0.001))  # without the car
    _put(env, 2, 0, (0.08, 0.08, clearing_box.CAR_SIZE[2] / 2))
    tip = env.task.fingertip_pos()[3, 0].tolist()
    _put(env, 3, 1, (0.08, -0.05, half))
    _put(env, 3, 0, tip)  # the hand has the car
    assert env.task.stage().tolist()[:4] == [3, 3, 0, 2]  # no hand is at the box
    env.task.held = lambda prop: torch.full((5,), prop == 1)
    assert env.task.stage().tolist()[:2] == [3, 4]
    assert env.task.reward(torch.arange(5)).tolist() == [0.0, 0.125, 0.25, 1.0, 2.0]


def test_a_box_that_stands_on_its_end_is_not_lifted(nominal, make):
    """The car is in it, and its centre as high as where it is carried; with a hand at it, too."""
    env = make(replace(nominal, task="clearing_box"), num_envs=2)
    env.reset()
    _, length, high = (edge / 2 for edge in clearing_box.BOX_SIZE)
    wide = clearing_box.CAR_SIZE[1] / 2
    for world, sign in enumerate((-1, 1)):
        quat = (np.sqrt(0.5), sign * np.sqrt(0.5), 0.0, 0.0)  # its mouth to either side
        floor = sign * (high - clearing_box.WALL - clearing_box.CAR_SIZE[2] / 2 - 0.001)
        _put(env, world, 1, (0.0, -0.1, length), quat)
        standing = clearing_box.WALL + wide + 0.001
        _put(env, world, 0, (0.0, -0.1 + floor, standing), quat)
    for _ in range(20):
        env.sim.step()
    assert env.task.in_box().tolist() == [True, True]
    assert env.task.lifted(1, clearing_box.LIFT_HEIGHT).tolist() == [True, True]
    assert env.task.stage().tolist() == [3, 3]
    env.task.held = lambda prop: torch.full((2,), prop == 1)
    assert env.task.stage().tolist() == [3, 3]


def test_car_and_box_start_with_room_for_the_fingers(nominal, make):
    env = make(replace(nominal, task="clearing_box"), num_envs=1)
    rng = np.random.default_rng(0)
    box = np.array(clearing_box.BOX_SIZE[:2]) / 2
    for _ in range(500):
        car, place = env.task.place(rng)
        assert np.abs((car[:2], place[:2])).max() <= clearing_box.PLACES
        for side in (-1, 1):
            finger = car[:2] + side * 0.065 * np.array([np.cos(car[2]), np.sin(car[2])])
            away = finger - place[:2]
            cos, sin = np.cos(place[2]), np.sin(place[2])
            own = np.abs([cos * away[0] + sin * away[1], cos * away[1] - sin * away[0]])
            assert (own - box).max() >= clearing_box.MARGIN


@pytest.mark.parametrize("task", TASKS)
def test_every_networks_input_is_finite_and_auxiliary_targets_are_points(task, nominal, make):
    env = make(replace(nominal, task=task), num_envs=2)
    seen = env.reset()
    assert seen.aux_targets.shape[1] % 3 == 0
    for part in (seen.state, seen.features, seen.aux_targets):
        assert part.dtype == torch.float32
        assert part.shape[0] == 2
        assert bool(part.isfinite().all())
    known = {TABLE, *range(len(env.task.props))}
    assert set(env.task.stage_props) <= known
    assert set(env.task.moved_by(env.task.stage()).tolist()) <= known
    assert len(env.task.stages) == len(env.task.stage_rewards) == len(env.task.stage_props)


@pytest.mark.parametrize("task", TASKS)
def test_maps_are_made_of_things_that_the_image_shows(task, nominal, make):
    config = replace(nominal, task=task)
    env = make(config, num_envs=8)
    targets = env.reset().aux_targets
    kinds, vectors = env.task.kinds_in_targets, targets.unflatten(1, (-1, 3))
    camera = config.camera
    view = View(kinds, camera.pos, camera.lookat, camera.fovy)
    cells = torch.arange(camera.height) + 0.5
    maps = PlaceMaps(view, height=camera.height, width=camera.width, x=cells, y=cells)
    drawn = maps(targets)
    assert drawn.shape[:2] == (8, len(kinds))
    for kind, things in enumerate(kinds):
        for world in range(8):
            for index, missing in things:
                place = vectors[world, index]
                if missing is None or not torch.equal(place, vectors[world, missing]):
                    column, row = maps.pixels(place).long().tolist()
                    assert drawn[world, kind, row, column] > 0.3  # half a cell off at most


def test_a_hand_moves_by_the_table_only_while_it_holds_what_it_brings(nominal, make):
    """What was lost after it had been cleared is gone back to."""
    env = make(replace(nominal, task="clearing_blocks"), num_envs=2)
    env.reset()
    cleared = len(env.task.stages) - 1
    furthest = torch.full((2,), cleared)
    assert env.task.stage().tolist() == [0, 0]
    assert env.task.moved_by(furthest).tolist() == [0, 0]
    assert env.task.moved_by(furthest - 1).tolist() == [1, 1]
    env.task.cleared = lambda: torch.tensor([True, False])
    assert env.task.moved_by(furthest).tolist() == [TABLE, 0]


@pytest.mark.parametrize("task", TASKS)
def test_what_falls_off_the_table_stays_beside_it(task, nominal, make):
    """And all else goes on as if nothing had."""
    env, other = (make(replace(nominal, task=task), num_envs=2) for _ in range(2))
    for one in (env, other):
        one.reset()
    _put(env, 1, 0, (0.7, 0.0, 0.05))
    for _ in range(100):
        env.sim.step()
        other.sim.step()
    at = env.task.prop_pos(0)[1]
    assert float(at[2]) == FALLEN[1] and abs(float(at[0]) - 0.7) < 0.01
    assert float(env.task.object_features()[1].abs().max()) < 1.1  # m, and unit vectors
    assert float(env.task.aux_targets()[1].abs().max()) < 1.1
    dof = env.task._prop_dof_ids[0]
    assert float(env.sim.data("qvel")[1, dof : dof + 6].abs().max()) == 0.0
    first = torch.arange(1)
    assert torch.equal(env.sim.get_state(first), other.sim.get_state(first))


def test_clearing_is_another_name_of_clearing_blocks():
    assert make_task("clearing").name == make_task("clearing_blocks").name == "clearing_blocks"


def test_a_block_in_the_hand_is_not_stacked(nominal, make):
    """The pink block under one that the fingers touch: no success until they let go."""
    env = make(nominal)
    env.reset()
    tip = env.task.fingertip_pos()[0, 0]
    hand_block = (float(tip[0]), float(tip[1]), float(tip[2]))
    _put(env, 0, 1, (hand_block[0], hand_block[1], hand_block[2] - BLOCK_EDGE))
    _put(env, 0, 0, hand_block)
    assert float(env.task.hand_contacts(0)[0]) > 0
    assert not bool(env.task.stacked()[0])


def test_starts_are_on_the_table_apart_and_without_penetration(nominal, make):
    env = make(nominal, num_envs=64)
    env.reset()
    for _ in range(4):  # 256 starts
        a, b = env.task.prop_pos(0), env.task.prop_pos(1)
        for pos in (a, b):
            assert float(pos[:, :2].abs().max()) <= WORKSPACE
            assert torch.allclose(pos[:, 2], torch.tensor(HALF, dtype=pos.dtype))
        assert float((a - b)[:, :2].norm(dim=1).min()) >= MIN_DISTANCE
        env.sim.step()
        assert float((env.task.prop_pos(0)[:, 2] - HALF).abs().max()) < 1e-3
        env.episode_ids += env.num_envs
        env._start_episodes(torch.arange(64))


def test_the_hand_does_not_touch_anything_at_the_start(nominal, make):
    env = make(nominal, num_envs=32)
    env.reset()
    assert float(env.task.hand_contacts(0).max()) == 0.0


class _Told:
    """A simulation that tells what the discriminator may know: where free bodies are and how they
    are turned, where pinch site and fingertips are, what the hand touches, and the model.

    All else that `data` is asked for is noise, in the rows of joints, links and actions too.
    """

    def __init__(self, task: Task, generator: torch.Generator):
        self._sim, self._generator = task.sim, generator
        self.model, self.fields, self.num_envs = task.sim.model, task.sim.fields, task.sim.num_envs
        self.model_field, self.default_field = task.sim.model_field, task.sim.default_field
        free = self.model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        objects = self.model.jnt_bodyid[free].tolist()
        self._rows = {
            "xpos": [*objects, *task.jaco.fingertip_body_ids.tolist()],
            "xmat": objects,
            "site_xpos": [task.jaco.pinch_site_id],
            "sensordata": task._contact_ids,
        }

    def data(self, name: str) -> torch.Tensor:
        real, rows = self._sim.data(name), self._rows.get(name, [])
        noise = torch.randn(real.shape, generator=self._generator, dtype=torch.float64)
        noise[:, rows] = real[:, rows]
        return noise


def _told_features_agree(task: Task, object_features: Callable[[], torch.Tensor]) -> bool:
    """Whether what the discriminator may know is all that its features are made of."""
    real, sim, generator = object_features(), task.sim, torch.Generator().manual_seed(0)
    try:
        task.sim = _Told(task, generator)
        return all(torch.equal(object_features(), real) for _ in range(5))
    finally:
        task.sim = sim


# What features must not hold, of a task.
LEAKS: dict[str, Callable[[Task], torch.Tensor]] = {
    "a joint": lambda task: task.sim.data("qpos")[:, task.jaco.qpos_ids[:1]],
    "where a joint is beyond": lambda task: task.sim.data("qpos")[:, task.jaco.qpos_ids[1:2]] > 0.0,
    "a finger": lambda task: task.sim.data("qpos")[:, task.jaco.qpos_ids[-1:]],
    "a joint's velocity": lambda task: task.sim.data("qvel")[:, task.jaco.dof_ids[:1]],
    "a prop's velocity": lambda task: task.sim.data("qvel")[:, task._prop_dof_ids[:1]],
    "an action": lambda task: task.sim.data("ctrl")[:, :1],
    "a link's place": lambda task: task.sim.data("xpos")[:, task.sim.model.body("jaco_arm/b_3").id],
    "how the hand is turned": lambda task: task.hand_yaw().unsqueeze(1),
}


@pytest.mark.parametrize("name", TASKS)
def test_features_tell_of_objects_and_where_the_hand_is_and_of_no_joint_and_no_action(
    name, nominal, make
):
    env = make(replace(nominal, task=name), num_envs=8)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        env.step(torch.rand(8, 9, generator=generator) * 2 - 1)
    for world in range(4):
        _put(env, world, 0, env.task.fingertip_pos()[world, 0].tolist())
    assert float(env.task.hand_contacts(0)[:4].max()) > 0.0
    task = env.task
    assert _told_features_agree(task, task.object_features)
    for what, leak in LEAKS.items():

        def leaking(leak=leak) -> torch.Tensor:
            return torch.cat((task.object_features(), leak(task).float()), dim=1)

        assert not _told_features_agree(task, leaking), what


@pytest.mark.parametrize("name", TASKS)
def test_features_tell_where_every_prop_is(name, nominal, make):
    env = make(replace(nominal, task=name), num_envs=1)
    env.reset()
    for prop in range(len(env.task.props)):
        before = env.task.object_features()
        _put(env, 0, prop, (0.03, 0.0, 0.1 + 0.02 * prop))
        assert not torch.equal(env.task.object_features(), before), prop


def test_state_changes_with_every_degree_of_freedom(nominal, make):
    env = make(nominal, num_envs=1)
    env.reset()
    one = torch.zeros(1, dtype=torch.int64)
    state = env.sim.get_state(one)
    reference = env.task.state().clone()
    for index in range(state.shape[1]):
        moved = state.clone()
        moved[0, index] += 1e-3
        env.sim.reset(one, moved)
        assert not torch.equal(env.task.state(), reference), index


def test_start_state_is_a_function_of_the_generator(nominal, make):
    env = make(nominal)
    a = env.task.start_state(np.random.default_rng(7))
    b = env.task.start_state(np.random.default_rng(7))
    assert np.array_equal(a, b)


def test_neighbours_are_seen_from_the_hand_and_from_the_prop() -> None:
    """What is seen does not change when all of it is turned, and changes with either frame."""
    env = make_env(Config(task="stacking"), num_envs=3, seed=1, render=False)
    env.reset()
    task, everyone = env.task, torch.arange(3)
    start = env.sim.get_state(everyone)

    def seen(states: np.ndarray) -> torch.Tensor:
        env.sim.reset(everyone, torch.from_numpy(states))
        return torch.cat([*task._neighbours(0), *task._neighbours(1)], dim=1)

    first = seen(start.numpy())
    offset = task.prop_pos(1) - task.prop_pos(0)
    assert first.shape == (3, 2 * 3 * 4)
    # The first number beside its distance, the third: a cosine times it, in units of 0.1 m.
    distance = offset[:, :2].norm(dim=1) / 0.1
    torch.testing.assert_close(first[:, 2:4].norm(dim=1), distance)
    angle = torch.atan2(offset[:, 1], offset[:, 0]) - task.hand_yaw()
    torch.testing.assert_close(first[:, 0], angle.cos())
    torch.testing.assert_close(seen(task.turned(start.numpy(), 0.4)), first, atol=1e-6, rtol=0)

    hand = start.numpy().copy()
    hand[:, task.jaco.qpos_ids[5]] += 0.3  # the wrist: the hand alone
    others = seen(hand)
    assert (others[:, :8] - first[:, :8]).abs().amax() > 0.05  # against the hand
    torch.testing.assert_close(others[:, 8:12], first[:, 8:12])  # against the prop


def test_tasks_of_two_blocks_say_where_neighbours_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped teachers of the others were trained without."""

    def width(task: str) -> int:
        env = make_env(Config(task=task), num_envs=1, seed=0, render=False)
        return int(env.reset().state.shape[1])

    widths = {task: width(task) for task in ("stacking", "clearing_blocks", "clearing_box")}
    monkeypatch.setattr("visuomotor.envs.tasks.stacking.Stacking.neighbours_in_state", False)
    for task, told in widths.items():
        assert told - width(task) == (0 if task == "clearing_box" else 2 * 3 * 4)
