"""Demonstrations carried over to other starts: they succeed there, and nothing but them is used."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor import retargeting
from visuomotor.config import Config, EnvConfig, RandomizationConfig
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import STEPS_AFTER_SUCCESS, Demonstrations
from visuomotor.envs import TASKS, make_env
from visuomotor.errors import UserError
from visuomotor.replay import DemonstrationReplay
from visuomotor.retargeting import _smooth, _weights, with_retargeted

QUIET = RandomizationConfig(strength=0.0)


def config(task: str) -> Config:
    return Config(task=task, randomization=QUIET, env=EnvConfig(num_threads=1), turned_copies=0)


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    made, _ = collect(config("stacking"), 6, seed=4)
    return made


@pytest.fixture(scope="module")
def more(demos: Demonstrations) -> Demonstrations:
    return with_retargeted(config("stacking"), demos, 24)


@pytest.mark.parametrize("task", TASKS)
def test_most_attempts_succeed(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six demonstrations, 16 other starts, trembling: at least half of them."""
    monkeypatch.setattr(retargeting, "MAX_ATTEMPTS", 1)
    made, _ = collect(config(task), 6, seed=4)
    assert len(with_retargeted(config(task), made, 16)) - 6 >= 8


def test_the_demonstrations_themselves_come_first(
    demos: Demonstrations, more: Demonstrations
) -> None:
    assert len(more) == 30
    for before, after in zip(demos.demos, more.demos, strict=False):
        assert after is before


def test_what_is_kept_is_an_episode_of_the_simulator(more: Demonstrations) -> None:
    """The actions, without the noise that the hand had, lead close to the next state; the task
    itself sees success at the end, and a start from its own distribution."""
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    env.reset()
    only = torch.tensor([0])
    for demo in more.demos[6:12]:
        length = len(demo.states)
        assert demo.actions.shape == (length, 9)
        assert float(np.abs(demo.actions).max()) <= 1.0
        assert env.task.may_start(demo.states[0])
        env.sim.reset(only, torch.from_numpy(demo.states[-1:]))
        assert int(env.task.stage()[0]) == len(env.task.stages) - 1
        assert demo.rewards[-STEPS_AFTER_SUCCESS:].min() == 1.0
        errors = {scale: 0.0 for scale in (1.0, 0.0, -1.0)}
        for step in range(5, 25):
            for scale in errors:
                env.sim.reset(only, torch.from_numpy(demo.states[step : step + 1]))
                action = torch.from_numpy(scale * demo.actions[step][None])
                env.sim.data("ctrl").copy_(env.jaco.ctrl(action))
                env.sim.step()
                arm = env.jaco.qpos_ids[:6].numpy()
                moved = env.sim.get_state(only)[0].numpy()[arm]
                errors[scale] += float(np.abs(moved - demo.states[step + 1][arm]).mean())
        assert errors[1.0] < 0.6 * errors[0.0] < 0.6 * errors[-1.0]


def test_starts_are_new_ones(demos: Demonstrations, more: Demonstrations) -> None:
    starts = np.stack([demo.states[0] for demo in more.demos])
    distance = np.abs(starts[:, None] - starts[None]).max(axis=2)
    np.fill_diagonal(distance, 1.0)
    assert distance.min() > 1e-3


def test_the_same_seed_gives_the_same_demonstrations(demos: Demonstrations) -> None:
    first, second, other = (
        with_retargeted(replace(config("stacking"), seed=seed), demos, 4) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.demos[-1].states, second.demos[-1].states)
    assert not np.array_equal(first.demos[-1].states[0], other.demos[-1].states[0])


def test_states_of_another_scene_are_refused_before_they_are_simulated(
    demos: Demonstrations,
) -> None:
    with pytest.raises(UserError, match="numbers behind the time"):
        with_retargeted(config("lifting"), demos, 2)
    far = replace(demos.demos[0], states=demos.demos[0].states + 1e9)
    with pytest.raises(UserError, match="states reach"):
        with_retargeted(config("stacking"), replace(demos, demos=[far]), 2)


def test_none_are_made_where_none_are_wanted_or_actions_are_missing(demos: Demonstrations) -> None:
    assert with_retargeted(config("stacking"), demos, 0) is demos
    mute = replace(demos, demos=[replace(demo, actions=None) for demo in demos.demos])
    assert with_retargeted(config("stacking"), mute, 10) is mute


def test_a_replay_derives_what_the_copies_lack(more: Demonstrations) -> None:
    replay = DemonstrationReplay(config("stacking"), more)
    assert replay.has_actions
    assert len(replay.state) == 30
    last = replay.stage[-1]
    assert int(last[0]) == 0
    assert int(last[-1]) == 3


def test_smoothing_keeps_a_straight_path_and_takes_out_trembling() -> None:
    line = np.linspace(0.0, 1.0, 40)[:, None] * np.array([1.0, -2.0, 0.5])
    inner = slice(retargeting.SMOOTHED, -retargeting.SMOOTHED)
    np.testing.assert_allclose(_smooth(line)[inner], line[inner], atol=1e-12)
    rough = line + np.random.default_rng(0).normal(0.0, 0.1, line.shape)
    assert np.abs(_smooth(rough) - line)[inner].mean() < 0.6 * np.abs(rough - line)[inner].mean()


def test_a_motion_is_bent_from_where_it_was_to_where_it_must_be() -> None:
    path = np.stack([np.linspace(0.0, 1.0, 21), np.zeros(21), np.zeros(21)], axis=1)
    weights = _weights(path, 0, 21)
    assert weights[0] == 0.0
    assert weights[5] == pytest.approx(0.5)  # a quarter of the path, half of the bent part
    assert (weights[11:] == 1.0).all()
    assert (np.diff(weights) >= 0.0).all()


def test_a_hand_that_never_moves_is_no_division_by_zero() -> None:
    assert np.isfinite(_weights(np.zeros((5, 3)), 0, 5)).all()


def test_no_expert_takes_part() -> None:
    tree = ast.parse(Path(retargeting.__file__).read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "visuomotor.experts" not in modules
    assert "visuomotor.demonstrate" not in modules
