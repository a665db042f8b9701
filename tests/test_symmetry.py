"""Turned demonstrations are episodes that would have happened: physics itself is asked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from visuomotor.config import Config, EnvConfig, RandomizationConfig
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import Demonstrations
from visuomotor.envs import VisuomotorEnv, make_env, robot
from visuomotor.replay import DemonstrationReplay
from visuomotor.symmetry import with_turned_copies

CONFIG = Config(
    task="stacking",
    randomization=RandomizationConfig(strength=0.0),
    env=EnvConfig(num_threads=1),
)
STEPS = 60  # control steps: approach, grasp and lift


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    made, _ = collect(CONFIG, 3, seed=4, trembling=0.0)
    return made


@pytest.fixture(scope="module")
def env() -> VisuomotorEnv:
    world = make_env(CONFIG, num_envs=1, seed=0, render=False)
    world.reset()
    return world


def run(env: VisuomotorEnv, state: np.ndarray, actions: np.ndarray) -> torch.Tensor:
    """(T, 6): where the two blocks are after each action."""
    only = torch.tensor([0])
    env.sim.reset(only, torch.from_numpy(state[None]))
    places = []
    for action in actions:
        env.sim.data("ctrl").copy_(env.jaco.ctrl(torch.from_numpy(action[None])))
        env.sim.step()
        places.append(torch.cat((env.task.prop_pos(0)[0], env.task.prop_pos(1)[0])))
    return torch.stack(places)


@pytest.mark.parametrize("angle", [-0.3, 0.2])
def test_the_same_actions_from_a_turned_start_give_the_turned_episode(
    env: VisuomotorEnv, demos: Demonstrations, angle: float
) -> None:
    demo = demos.demos[0]
    actions = demo.actions[:STEPS]
    straight = run(env, demo.states[0], actions)
    assert float(straight[-1, 2]) > 0.05  # the block was lifted, so contact is in it
    turned = run(env, env.task.turned(demo.states, angle)[0], actions)
    base = torch.tensor(robot.BASE_POS)
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    expected = (straight.view(STEPS, 2, 3) - base) @ rotation.T + base
    # Float errors grow in contact: a millimetre over three seconds.
    torch.testing.assert_close(turned, expected.view(STEPS, 6), atol=1e-3, rtol=0.0)


def test_velocities_turn_with_the_props(env: VisuomotorEnv, demos: Demonstrations) -> None:
    """Read off the simulator: a block's corner moves as the turned corner would."""
    only = torch.tensor([0])
    states = demos.demos[1].states[40:41].copy()
    model = env.sim.model
    dof = int(model.joint("block_0_joint").dofadr[0])
    states[0, model.nq + dof : model.nq + dof + 6] = (0.3, -0.2, 0.1, 1.0, 2.0, -0.5)
    body = model.body("block_0").id
    velocities = []
    for state in (states, env.task.turned(states, 0.4)):
        env.sim.reset(only, torch.from_numpy(state))
        spin = env.sim.data("xmat")[0, body].view(3, 3) @ env.sim.data("qvel")[0, dof + 3 : dof + 6]
        velocities.append(torch.cat((env.sim.data("qvel")[0, dof : dof + 3], spin)))
    cos, sin = np.cos(0.4), np.sin(0.4)
    rotation = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    expected = (velocities[0].view(2, 3) @ rotation.T).flatten()
    torch.testing.assert_close(velocities[1], expected, atol=1e-9, rtol=0.0)


def test_a_cube_is_described_by_its_nearest_face(env: VisuomotorEnv, demos: Demonstrations) -> None:
    quarter = np.pi / 4 + 1e-6
    for angle in np.linspace(-1.5, 1.5, 13):
        state = env.task.turned(demos.demos[0].states[:1], float(angle))
        env.sim.reset(torch.tensor([0]), torch.from_numpy(state))
        for prop in env.task.props:
            mat = env.sim.data("xmat")[0, env.sim.model.body(prop).id]
            assert abs(float(torch.atan2(mat[3], mat[0]))) <= quarter


def test_no_turn_changes_nothing(env: VisuomotorEnv, demos: Demonstrations) -> None:
    for demo in demos.demos:
        np.testing.assert_allclose(env.task.turned(demo.states, 0.0), demo.states, atol=1e-12)


def test_copies_begin_where_the_task_may(env: VisuomotorEnv, demos: Demonstrations) -> None:
    more = with_turned_copies(env.task, demos, 5, seed=0)
    assert len(more) == 6 * len(demos)
    for demo, original in zip(more.demos, demos.demos, strict=False):
        assert demo is original
    for demo in more.demos[len(demos) :]:
        assert env.task.may_start(demo.states[0])
        assert demo.features is None
    angles = {round(float(demo.states[0, env.jaco.qpos_ids[0]]), 6) for demo in more.demos}
    assert len(angles) == len(more)


def test_a_start_out_of_reach_of_any_turn_has_no_copies(
    env: VisuomotorEnv, demos: Demonstrations
) -> None:
    demo = demos.demos[0]
    states = demo.states.copy()
    adr = int(env.sim.model.joint("block_0_joint").qposadr[0])
    states[:, adr + 1] = 0.7  # m, behind the arm
    assert (
        len(
            with_turned_copies(env.task, replace(demos, demos=[replace(demo, states=states)]), 5, 0)
        )
        == 1
    )


def test_a_replay_shows_copies_to_every_network(demos: Demonstrations) -> None:
    replay = DemonstrationReplay(replace(CONFIG, turned_copies=2), demos)
    assert len(replay.state) == len(replay.features) == len(replay.demos) == 9
    assert torch.equal(replay.actions[3], replay.actions[0])
    assert not torch.equal(replay.state[3], replay.state[0])
    height = replay.aux_targets[0][:, 2]
    torch.testing.assert_close(replay.aux_targets[3][:, 2], height, atol=1e-6, rtol=0.0)
