"""Order fulfilment: states placed by hand, toys in no order, shapes by the seed, starts."""

from __future__ import annotations

from itertools import pairwise

import mujoco
import numpy as np
import pytest
import torch
from orders import into, orders_config, orders_env, put, set_worlds, start_with

from visuomotor.demonstrate import collect
from visuomotor.envs import VisuomotorEnv, scene
from visuomotor.envs.tasks import order_fulfillment as order
from visuomotor.envs.tasks import toys
from visuomotor.envs.tasks.order_fulfillment import CARS, GREEN_BOX, PLANES, RED_BOX, TOYS
from visuomotor.motions import read_motion

PENETRATION = 1e-3  # m


@pytest.fixture(scope="module")
def env() -> VisuomotorEnv:
    """Eight worlds; tests put them where they want them."""
    return orders_env(8)


# --- stages and reward ----------------------------------------------------------------------------


def test_a_stage_is_the_number_of_toys_in_the_right_box(env):
    states, state = [], start_with(env, TOYS)
    states.append(state)
    for toy, side in ((0, -0.03), (1, 0.03), (2, -0.03), (3, 0.03)):
        state = into(env, state, toy, order.BOX_OF[toy], (side, 0.0, 0.02))
        states.append(state)
    set_worlds(env, *states)
    stage = env.task.stage()
    assert stage[:5].tolist() == [0, 1, 2, 3, 4]
    assert env.task.reward(stage)[:5].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert env.task.success(stage)[:5].tolist() == [False] * 4 + [True]


def test_with_fewer_toys_all_of_them_are_success_and_the_reward_is_their_number(env):
    one, two = start_with(env, (2,)), start_with(env, (0, 2))
    two = into(env, two, 0, GREEN_BOX)
    both = into(env, two, 2, RED_BOX)
    set_worlds(env, one, into(env, one, 2, RED_BOX), two, both)
    stage = env.task.stage()
    assert stage[:4].tolist() == [0, 4, 1, 4]
    assert env.task.reward(stage)[:4].tolist() == [0.0, 1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("box", "offset", "inside"),
    [
        (GREEN_BOX, (0.0, 0.0, 0.02), True),
        (GREEN_BOX, (0.063, 0.047, 0.02), True),
        (GREEN_BOX, (0.065, 0.0, 0.02), False),
        (GREEN_BOX, (0.0, 0.049, 0.02), False),
        (GREEN_BOX, (0.0, 0.0, 0.044), True),  # leans on a wall
        (GREEN_BOX, (0.0, 0.0, 0.046), False),  # lies across one, or on another toy
        (RED_BOX, (0.0, 0.0, 0.02), False),  # a plane
    ],
)
def test_in_the_right_box_means_between_its_walls_and_not_on_top_of_them(env, box, offset, inside):
    set_worlds(env, into(env, start_with(env, (0,)), 0, box, offset))
    assert bool(env.task.in_box()[0, 0]) == inside
    assert int(env.task.stage()[0]) == (4 if inside else 0)


@pytest.mark.parametrize("size", [0.95, 1.05])
def test_a_car_across_a_wall_is_not_in_the_box_and_one_inside_is_at_any_size(size):
    """Of the box. At rest: over a wall, level; leaning on it from inside; on the floor."""
    worlds = 3
    env = orders_env(worlds)
    factors = np.tile(env.randomizer.default(), (worlds, 1))
    factors[:, env.randomizer.factor_names.index("prop_size/red_box")] = size
    everyone = torch.arange(worlds)
    env.randomizer.apply(env.sim, everyone, factors)
    env.task.vary(everyone, [np.random.default_rng(7) for _ in range(worlds)])
    state = start_with(env, (2,))
    box, car = (env.task._prop_qpos_ids[prop] for prop in (RED_BOX, 2))
    state[box + 2] = float(env.task.rest_heights()[0, RED_BOX])
    state[car + 3 : car + 7] = state[box + 3 : box + 7]
    wall = size * (order.INNER_HALF[0] + order.WALL / 2)
    offsets = ((-wall, 0.0, 0.045), (-wall + 0.012, 0.0, 0.045), (-wall + 0.04, 0.0, 0.03))
    set_worlds(env, *(into(env, state, 2, RED_BOX, offset) for offset in offsets))
    for _ in range(60):
        env.sim.step()
    dof = env.task._prop_dof_ids[2]
    assert float(env.sim.data("qvel")[:, dof : dof + 6].abs().max()) < 0.02
    across, height = env.task.in_box_frame()[:, 2, 0].abs(), env.task.in_box_frame()[:, 2, 2]
    inner = size * order.INNER_HALF[0]
    assert inner < float(across[0]) < inner + size * order.WALL  # over the wall
    assert float(across[1]) < inner and float(height[1]) > size * order.RIM  # leans on it
    assert float(height[2]) < 0.025  # on the floor
    assert env.task.stage().tolist() == [0, 4, 4]


def test_a_toy_that_the_hand_holds_is_not_delivered(env):
    """The box is held up under a toy between the fingers, and under one at a fingertip. Nor is it
    in the box, as one is that leans on a wall, while the hand touches it above the rim."""
    state = start_with(env, (2,))
    state[env.jaco.qpos_ids[6:].numpy()] = 1.2
    set_worlds(env, state)
    places = env.task.pinch_pos()[0].numpy(), env.task.fingertip_pos()[0, 0].numpy()
    rows = []
    for place in places:
        rows.append(put(env, state, RED_BOX, place - (0.0, 0.0, 0.02)))
        rows[-1] = put(env, rows[-1], 2, place)
    set_worlds(env, *rows)
    assert float(env.task.hand_contacts(2)[:2].min()) > 0.0
    assert env.task.in_box()[:2, 2].tolist() == [True, True]
    assert env.task.stage()[:2].tolist() == [0, 4]
    above = [
        put(env, row, RED_BOX, place - (0.0, 0.0, order.RIM + 0.004))
        for row, place in zip(rows, places, strict=True)
    ]
    set_worlds(env, *above)
    assert float(env.task.hand_contacts(2)[:2].min()) > 0.0
    assert env.task.in_box()[:2, 2].tolist() == [False, False]


def test_a_toy_that_fell_off_the_table_is_not_an_absent_one(env):
    state = start_with(env, (0,))
    for pos in ((0.7, 0.0, order.SHELF_Z), (-0.15, -0.45, -0.98), (0.0, 0.1, -0.9)):
        set_worlds(env, put(env, state, 0, np.array(pos)))
        assert env.task.present()[0].tolist() == [True, False, False, False]
        assert int(env.task.stage()[0]) == 0


def test_where_toys_lie_is_told_whatever_the_hand_does(env):
    """Vision is asked for the leftmost and the rightmost toy of a kind: which one is nearest to a
    hand that the picture hardly shows is no question to learn from."""
    state = start_with(env, TOYS)
    set_worlds(env, state)
    before = env.task.aux_targets()[0].view(-1, 3)
    state[env.jaco.qpos_ids.numpy()[:2]] += (0.4, -0.3)
    set_worlds(env, state)
    after = env.task.aux_targets()[0].view(-1, 3)
    torch.testing.assert_close(after[:-2], before[:-2])
    assert float((after[-2] - before[-2]).norm()) > 0.05
    places = env.task.toy_pos()[0].float()
    for index, kind in ((2, PLANES), (4, CARS)):
        across = places[list(kind), 0]
        left, right = (kind[int(i)] for i in (across.argmin(), across.argmax()))
        torch.testing.assert_close(before[index], places[left])
        torch.testing.assert_close(before[index + 1], places[right])
        twice = 2.0 * env.task.prop_yaw(left)[0].float()
        heading = torch.atan2(before[index + 4][1], before[index + 4][0])
        torch.testing.assert_close(heading.cos(), twice.cos())
        torch.testing.assert_close(heading.sin(), twice.sin())


def test_the_rightmost_toy_is_next_wherever_the_hand_is(env):
    state = start_with(env, TOYS)
    order_at_start = env.task.order_of(state)
    adr = env.task._prop_qpos_ids
    across = [state[adr[toy]] for toy in order_at_start]
    assert set(order_at_start) == set(TOYS) and across == sorted(across, reverse=True)
    for turn in (-0.4, 0.0, 0.4):
        set_worlds(env, state)
        qpos = env.sim.data("qpos").clone()
        qpos[:, env.jaco.qpos_ids[0]] += turn
        moved = torch.cat((qpos, env.sim.data("qvel")), dim=1)
        env.sim.reset(torch.arange(env.num_envs), moved)
        toy, left = env.task.next_toy()
        assert bool(left.all()) and set(toy.tolist()) == {order_at_start[0]}
    delivered = state
    for index, toy in enumerate(order_at_start):
        set_worlds(env, delivered)
        assert int(env.task.next_toy()[0][0]) == toy
        side = 0.03 if index % 2 == 0 else -0.03
        delivered = into(env, delivered, toy, order.BOX_OF[toy], (side, 0.0, 0.02))


def test_the_toy_in_the_hand_comes_before_all(env):
    state = start_with(env, TOYS)
    last = env.task.order_of(state)[-1]
    set_worlds(env, state)
    height = torch.tensor([0.0, 0.0, 0.01])
    in_hand = (env.task.pinch_pos()[0] + height).numpy()
    set_worlds(env, put(env, state, last, in_hand))
    assert int(env.task.next_toy()[0][0]) == last


def test_a_toy_that_is_delivered_is_told_where_its_box_is(env):
    set_worlds(env, into(env, start_with(env, (0, 2)), 0, GREEN_BOX))
    targets = env.task.aux_targets()[0].view(-1, 3)
    box = env.task.prop_pos(GREEN_BOX)[0].float()
    for index in (2, 3):
        torch.testing.assert_close(targets[index], box)
        assert targets[index + 4].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("toy", "box"), [(0, GREEN_BOX), (2, RED_BOX)])
def test_vision_is_asked_which_box_the_toy_in_the_hand_belongs_to(env, toy, box):
    set_worlds(env, put(env, start_with(env, (0, 2)), toy, env.task.pinch_pos()[0].numpy()))
    to_hand, to_box = env.task.aux_targets()[0].view(-1, 3)[-2:]
    hand, place = env.task.pinch_pos()[0], env.task.prop_pos(box)[0]
    torch.testing.assert_close(to_hand, torch.zeros(3), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(to_box, (hand - place).float(), atol=1e-3, rtol=0.0)


# --- no order among toys --------------------------------------------------------------------------

_GEOM_FIELDS = ("geom_size", "geom_pos", "geom_rbound", "geom_aabb")


def _views(env: VisuomotorEnv) -> list[torch.Tensor]:
    task = env.task
    stage = task.stage()
    views = (task.state(), task.object_features(), task.aux_targets(), stage, task.reward(stage))
    return [view.clone() for view in views]


@pytest.mark.parametrize("kinds", [(PLANES,), (CARS,), (PLANES, CARS)])
@pytest.mark.parametrize("delivered", [False, True])
def test_toys_of_a_kind_may_be_exchanged_to_the_last_bit(kinds, delivered):
    env = orders_env(4, strength=1.0)
    rng = np.random.default_rng(1)
    states = []
    for _ in range(4):
        state = start_with(env, TOYS)
        state[: env.sim.model.nq] += rng.normal(0.0, 1e-3, env.sim.model.nq)
        state[env.sim.model.nq :] = rng.normal(0.0, 0.1, env.sim.model.nv)
        states.append(into(env, state, 1, GREEN_BOX) if delivered else state)
    before = np.stack(states)
    after = before.copy()
    for first, second in kinds:
        for ids, width, offset in (
            (env.task._prop_qpos_ids, 7, 0),
            (env.task._prop_dof_ids, 6, env.sim.model.nq),
        ):
            a, b = (slice(offset + ids[i], offset + ids[i] + width) for i in (first, second))
            after[:, a], after[:, b] = before[:, b], before[:, a]
    everyone = torch.arange(4)
    env.sim.reset(everyone, torch.from_numpy(before))
    wanted = _views(env)
    for first, second in kinds:
        for name in _GEOM_FIELDS:
            field = env.sim.model_field(name)
            a, b = list(env.task._toy_geoms[first]), list(env.task._toy_geoms[second])
            field[:, a], field[:, b] = field[:, b].clone(), field[:, a].clone()
    env.sim.reset(everyone, torch.from_numpy(after))
    for found, expected in zip(_views(env), wanted, strict=True):
        assert torch.equal(found, expected)


def test_the_state_ends_with_the_toy_that_is_next_and_says_nothing_where_none_is(env):
    state = start_with(env, (0, 2))
    in_green = into(env, state, 0, GREEN_BOX)
    in_both = into(env, in_green, 2, RED_BOX)
    told = []
    for at in (in_green, in_both):
        set_worlds(env, at)
        told.append(env.task.state()[0, -5 - 38 : -5])  # the stage is behind it
        toy, left = env.task.next_toy()
        if bool(left[0]):
            assert int(toy[0]) == 2
            to_toy = (env.task.prop_pos(2) - env.task.pinch_pos())[0].float()
            to_box = (env.task.prop_pos(2) - env.task.prop_pos(RED_BOX))[0].float()
            assert torch.equal(told[0][:3], to_toy)
            assert torch.equal(told[0][18:21], to_box)
            assert told[0][-1] == 1.0
    assert not told[1].any()


def test_exchanged_episodes_are_all_the_ways_to_name_the_toys(env):
    for present, ways in (((0,), 1), ((0, 2), 1), ((0, 1), 2), ((0, 1, 2), 2), (TOYS, 4)):
        found = env.task.exchanged(np.tile(start_with(env, present), (3, 1)))
        assert len(found) == ways == len({states.tobytes() for states in found})
        assert all(states.shape == found[0].shape for states in found)


# --- absent toys ----------------------------------------------------------------------------------


def test_absent_toys_are_neither_seen_nor_told_of():
    env = orders_env(1, strength=1.0, render=True)
    state = start_with(env, (0,))
    views, pictures = [], []
    for shift in (0.0, 0.02):
        moved = state.copy()
        for toy in (1, 2, 3):
            adr, dof = env.task._prop_qpos_ids[toy], env.task._prop_dof_ids[toy]
            moved[adr : adr + 2] += shift
            moved[env.sim.model.nq + dof : env.sim.model.nq + dof + 6] = 5.0 * shift
        set_worlds(env, moved)
        views.append(_views(env))
        pictures.append(env.camera.caster.render(torch.tensor([0])))
    for first, second in zip(*views, strict=True):
        assert torch.equal(first, second)
    assert torch.equal(*pictures)
    # A toy on the table is seen.
    set_worlds(env, put(env, state, 2, np.array([0.1, -0.06, 0.018])))
    assert not torch.equal(env.camera.caster.render(torch.tensor([0])), pictures[0])


def test_absent_toys_stay_on_their_shelf():
    env = orders_env(6, strength=1.0)
    before, present = env.task.toy_pos().clone(), env.task.present().clone()
    for _ in range(100):
        env.step(torch.zeros(6, 9))
    moved = (env.task.toy_pos() - before).norm(dim=2)[~present]
    assert float(moved.max()) < 2e-3
    assert torch.equal(env.task.present(), present)


def test_a_turned_episode_has_the_same_toys(env):
    state = start_with(env, (0, 2))
    turned = env.task.turned(np.tile(state, (2, 1)), 0.3)[0]
    assert env.task.props_present(turned).tolist() == env.task.props_present(state).tolist()
    assert not env.task.may_start(turned)
    assert env.task.may_start(state)


# --- shapes ---------------------------------------------------------------------------------------


def test_shapes_follow_from_seed_and_episode_alone():
    names = (*_GEOM_FIELDS, "body_inertia", "body_ipos", "mat_rgba")
    four, two = (
        orders_env(4, 1.0, seed=5, episode_steps=2),
        orders_env(2, 1.0, seed=5, episode_steps=2),
    )
    other = orders_env(4, 1.0, seed=6)
    fields = {name: four.sim.model_field(name).clone() for name in names}
    for name in names:
        assert torch.equal(two.sim.model_field(name), fields[name][:2])
        assert not torch.equal(other.sim.model_field(name), fields[name])
    two.reset_sampler = lambda rng: start_with(two, (0,))  # wherever an episode starts
    for _ in range(2):
        two.step(torch.rand(2, 9))
    for name in names:
        assert torch.equal(two.sim.model_field(name), fields[name][2:])
    sizes = fields["geom_size"][:, list(four.task._toy_geoms[0])]
    assert not torch.equal(sizes[0], sizes[1])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_drawn_toy_is_the_one_that_a_compiler_makes(seed):
    derived = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0")
    env = orders_env(1, seed=seed)
    rng = np.random.default_rng([seed, 3, 0])
    spec = scene.build_spec(env.config.env, env.config.camera)
    shapes = {index: order._shape(index)(rng.random(toys.NUMBERS)) for index in TOYS}
    for index in TOYS:
        scene.add_prop(spec, env.task.props[index], order._height(index), shapes[index])
    scene.add_prop(spec, "green_box", order.FLOOR / 2, order._box(order.GREEN))
    scene.add_prop(spec, "red_box", order.FLOOR / 2, order._box(order.RED))
    compiled = spec.compile()
    model = env.sim.world_model(0)
    for body in env.task.props[:4]:
        a, b = model.body(body), compiled.body(body)
        for name in ("mass", "inertia", "ipos", "iquat"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-12)
        for name in derived[:2]:
            found = getattr(model, name)[a.id]
            np.testing.assert_allclose(found, getattr(compiled, name)[b.id], rtol=1e-9)
        for i in range(int(a.geomnum[0])):
            g, h = int(a.geomadr[0]) + i, int(b.geomadr[0]) + i
            for name in (*_GEOM_FIELDS, "geom_quat", "geom_type"):
                found, wanted = getattr(model, name)[g], getattr(compiled, name)[h]
                np.testing.assert_allclose(found, wanted, atol=1e-12, err_msg=name)
            found = model.mat_rgba[model.geom_matid[g]]
            np.testing.assert_allclose(found, compiled.mat_rgba[compiled.geom_matid[h]], atol=1e-6)


def test_toys_start_apart_and_with_room_for_fingers():
    rng = np.random.default_rng(2)
    task = order.OrderFulfillment()
    for _ in range(50):
        toys_at = [place for place in task.place(rng)[:4] if tuple(place[:2]) not in order.PARKING]
        for index, first in enumerate(toys_at):
            for second in toys_at[index + 1 :]:
                assert np.hypot(*(first - second)[:2]) >= order.MIN_DISTANCE
                for one, other in ((first, second), (second, first)):
                    away = [np.cos(one[2] + np.pi / 2), np.sin(one[2] + np.pi / 2)]
                    for side in (-1.0, 1.0):
                        finger = one[:2] + side * order.FINGERS[0] * np.array(away)
                        assert np.hypot(*(finger - other[:2])) >= order.FINGERS[1]


def test_resume_goes_on_bit_for_bit_with_the_same_shapes():
    kept, other = orders_env(3, 1.0, episode_steps=6), orders_env(3, 1.0, seed=5, episode_steps=6)
    action = torch.rand(9, 3, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for step in range(4):
        kept.step(action[step])
    saved = kept.state_dict()
    other.seed = kept.seed
    other.load_state_dict(saved)
    for step in range(9):  # into the next episode
        a, b = kept.step(action[step]), other.step(action[step])
        for name in ("proprio", "state", "features", "aux_targets", "stage"):
            assert torch.equal(getattr(a.observation, name), getattr(b.observation, name)), name
        assert torch.equal(a.reward, b.reward)
    for name in kept.sim.fields:
        assert torch.equal(kept.sim.model_field(name), other.sim.model_field(name)), name


def test_the_reward_of_an_episodes_last_step_is_that_of_its_last_state():
    env = orders_env(2, episode_steps=1)
    one = start_with(env, (2,))
    set_worlds(env, into(env, one, 2, RED_BOX, (0.0, 0.0, 0.0195)))
    result = env.step(torch.zeros(2, 9))
    assert result.truncated.all()
    assert result.success.all()
    assert result.reward.tolist() == [1.0, 1.0]


# --- starts ---------------------------------------------------------------------------------------


def _corners(env: VisuomotorEnv, prop: int, half: tuple[float, float]) -> torch.Tensor:
    signs = torch.tensor([[-1, -1, 0], [-1, 1, 0], [1, -1, 0], [1, 1, 0]], dtype=torch.float64)
    local = signs * torch.tensor([*half, 0.0], dtype=torch.float64)
    mat = env.sim.data("xmat")[:, env.task.prop_body_ids[prop]].view(-1, 3, 3)
    return env.task.prop_pos(prop).unsqueeze(1) + local @ mat.transpose(1, 2)


def _in_image(env: VisuomotorEnv, points: torch.Tensor) -> torch.Tensor:
    """points (N, K, 3) m -> (N, K) bool."""
    camera = env.sim.model.camera("front").id
    mat = env.sim.data("cam_xmat")[:, camera].view(-1, 3, 3)
    seen = (points - env.sim.data("cam_xpos")[:, camera].unsqueeze(1)) @ mat
    half = torch.tan(torch.deg2rad(env.sim.model_field("cam_fovy")[:, camera]) / 2).unsqueeze(1)
    return (seen[..., :2].abs().amax(dim=2) / -seen[..., 2]) < half


def test_starts_have_room_are_seen_and_come_in_every_number():
    env = orders_env(64, strength=1.0)
    task = env.task
    present = task.present()
    assert set(present.sum(dim=1).tolist()) == {1, 2, 3, 4}
    # The first ones of a kind.
    assert not bool((present[:, 1] & ~present[:, 0]).any() | (present[:, 3] & ~present[:, 2]).any())
    assert (task.stage() == 0).all()
    for toy in TOYS:
        seen = _in_image(env, task.prop_pos(toy).unsqueeze(1)).squeeze(1)
        assert torch.equal(seen & present[:, toy], present[:, toy])
        height = task.prop_pos(toy)[:, 2] - task.rest_heights()[:, toy]
        assert float(height[present[:, toy]].abs().max()) < 1e-9
        assert float(task.hand_contacts(toy).max()) == 0.0
    for box in (GREEN_BOX, RED_BOX):
        assert bool(_in_image(env, _corners(env, box, order.INNER_HALF)).all())
    states = env.sim.get_state(torch.arange(64)).numpy()
    for world in range(64):
        assert task.may_start(states[world])
        model = env.sim.world_model(world)
        data = mujoco.MjData(model)
        data.qpos[:] = states[world, : model.nq]
        mujoco.mj_forward(model, data)
        assert data.contact.dist.min() > -PENETRATION
        for one, other in data.contact.geom:
            bodies = {model.geom_bodyid[one], model.geom_bodyid[other]}
            assert 0 in bodies or not bodies & set(task.prop_body_ids)


def test_random_actions_leave_every_number_finite():
    env = orders_env(4, strength=1.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        result = env.step(torch.rand(4, 9, generator=generator) * 2 - 1)
        for part in (result.observation.state, result.features, result.observation.aux_targets):
            assert bool(part.isfinite().all())


# --- retargeting ----------------------------------------------------------------------------------


def test_a_demonstration_is_cut_into_toy_and_box_by_turns():
    demos, _ = collect(orders_config(), 2, seed=1)
    env = orders_env(8)
    for demo in demos.demos:
        motion = read_motion(env, demo)
        assert motion.present.tolist() == env.task.props_present(demo.states[0]).tolist()
        by = [segment.prop for segment in motion.segments]
        taken = [prop for prop in by if prop in TOYS]
        assert tuple(dict.fromkeys(taken)) == motion.order
        assert set(taken) == {toy for toy in TOYS if motion.present[toy]}
        for prop, after in pairwise(by):
            assert prop not in TOYS or after in (*TOYS, order.BOX_OF[prop])
