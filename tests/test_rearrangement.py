"""States that training's frames show, rearranged: what lies elsewhere, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from orders import into, orders_env, put, set_worlds, start_with

from visuomotor.envs import VisuomotorEnv
from visuomotor.envs.tasks import order_fulfillment as order
from visuomotor.envs.tasks import rearrangement
from visuomotor.envs.tasks.order_fulfillment import GREEN_BOX, RED_BOX, TOYS


@pytest.fixture(scope="module")
def env() -> VisuomotorEnv:
    return orders_env(8)


def test_what_the_hand_is_not_at_lies_elsewhere_and_nothing_else_changes(env):
    """Toys away from the hand are drawn anew; the arm and the toy at the hand stay as they are, and
    so does what is in a box, as seen from there."""
    state = start_with(env, TOYS)
    state = into(env, state, 3, RED_BOX)
    state[env.jaco.qpos_ids.numpy()[1]] += 0.35  # down
    set_worlds(env, state)
    hand = env.task.pinch_pos()[0].numpy()
    assert hand[2] < rearrangement.ABOVE
    at_hand = hand + (0.02, 0.0, -0.01)
    state = put(env, state, 0, at_hand)
    for toy, x in ((1, hand[0] - 0.14), (2, hand[0] + 0.14)):
        state = put(env, state, toy, np.array([x, -0.09, order._height(toy)]))
    adr, nq = env.task._prop_qpos_ids, env.sim.model.nq
    movable = (1, 2, 3, GREEN_BOX, RED_BOX)
    free = {i for prop in movable for i in range(adr[prop], adr[prop] + 7)}
    free |= {
        nq + i for toy in (1, 2) for i in range(*(env.task._prop_dof_ids[toy] + k for k in (0, 6)))
    }
    fixed = [i for i in range(len(state)) if i not in free]
    set_worlds(env, state)
    in_box = env.task.in_box_frame()[0, 3].clone()
    rng = np.random.default_rng(0)
    seen = [env.task.rearranged(state, rng) for _ in range(60)]
    pushed = 0
    for other in seen:
        assert np.array_equal(other[fixed], state[fixed])
        set_worlds(env, other)
        torch.testing.assert_close(env.task.in_box_frame()[0, 3], in_box)
        pushed += other[adr[RED_BOX]] != state[adr[RED_BOX]]
        for toy in (1, 2):
            there = env.task.props_present(other)[toy]
            at = other[adr[toy] : adr[toy] + 2]
            assert not there or np.linalg.norm(at - hand[:2]) > rearrangement.HAND
            for box in (GREEN_BOX, RED_BOX):
                assert (
                    not there
                    or not env.task._rearrangement.is_within(
                        other, box, at[None], rearrangement.AROUND
                    )[0]
                )
    assert 5 < pushed < 40
    assert len({other[adr[1]] for other in seen}) > 30
    assert max(other[adr[1] + 1] for other in seen) > 0.02  # beside boxes, too
    assert np.array_equal(
        env.task.rearranged(state, np.random.default_rng(3)),
        env.task.rearranged(state, np.random.default_rng(3)),
    )


def test_a_box_is_pushed_to_where_there_is_room(env):
    """With what is in it; and not over a toy, the hand or the other box."""
    state = into(env, start_with(env, (0, 2)), 0, GREEN_BOX)
    task, adr = env.task, env.task._prop_qpos_ids
    hand = np.array([0.0, -0.1, 0.3])
    push = np.array([0.03, -0.02, 0.4])
    pushed = task._rearrangement.pushed_box(state, GREEN_BOX, push, hand, [0])
    moved = pushed[adr[GREEN_BOX] : adr[GREEN_BOX] + 2] - state[adr[GREEN_BOX] : adr[GREEN_BOX] + 2]
    assert moved == pytest.approx(push[:2])
    set_worlds(env, pushed)
    assert bool(task.in_box()[0, 0])
    green = state[adr[GREEN_BOX] : adr[GREEN_BOX] + 2]
    beside = put(env, state, 2, np.array([*green + (0.0, -0.11), order._height(2)]))
    over = np.array([*green, 0.3])
    for where, box_push, at, kept in (
        (beside, (0.0, -0.06, 0.0), hand, [0, 2]),
        (state, push, over, [0]),
        (state, (0.2, 0.0, 0.0), hand, [0]),
    ):
        same = task._rearrangement.pushed_box(where, GREEN_BOX, np.array(box_push), at, kept)
        assert np.array_equal(same, where)


def test_toys_that_lie_elsewhere_may_be_of_the_other_kind(env):
    state = start_with(env, (0, 1))
    rng = np.random.default_rng(0)
    kinds = {
        tuple(env.task.props_present(env.task.rearranged(state, rng))[:4].tolist())
        for _ in range(60)
    }
    assert len(kinds) == 6 and all(sum(kind) == 2 for kind in kinds)
