"""What an evaluation measures: the same episodes for every policy, numbers that can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from tests.runs import CPU, EVALUATED, moving_actor
from visuomotor import __version__
from visuomotor.envs import Observation, VisuomotorEnv, make_env
from visuomotor.evaluation import (
    EPISODES_APART,
    Episodes,
    episodes_csv,
    evaluate_actor,
    evaluation_env,
    run_episodes,
    summarize,
)
from visuomotor.statistics import wilson_interval

# --- counting -----------------------------------------------------------------------------------


class _Scripted:
    """Stands in for the environment: two worlds, three stages, four steps, written outcomes."""

    num_envs = 2
    episode_steps = 4
    device = CPU
    randomizer = SimpleNamespace(factor_names=("a", "b"))
    task = SimpleNamespace(stages=("start", "reach", "lifted"))
    # Episode -> its stages after each step.
    STAGES = ((0, 2, 2, 1), (0, 0, 1, 2), (1, 0, 0, 0), (2, 2, 2, 2), (0, 0, 0, 0), (1, 1, 1, 2))

    def __init__(self) -> None:
        self.episodes = [0, 1]
        self.step_number = 0

    @property
    def factors(self) -> np.ndarray:
        return np.array([[e + 0.5, -e] for e in self.episodes])

    def reset(self) -> SimpleNamespace:
        return self._observe()

    def step(self, action: Tensor) -> SimpleNamespace:
        stage = torch.tensor([self.STAGES[e][self.step_number] for e in self.episodes])
        reward = torch.tensor([10.0 * e + self.step_number for e in self.episodes])
        self.step_number += 1
        ended = self.step_number == self.episode_steps
        if ended:
            self.episodes = [e + 2 for e in self.episodes]
            self.step_number = 0
        return SimpleNamespace(
            observation=self._observe(),
            reward=reward,
            stage=stage,
            success=stage == 2,
            truncated=torch.tensor([ended, ended]),
        )

    def _observe(self) -> SimpleNamespace:
        return SimpleNamespace(shown=(tuple(self.episodes), self.step_number))


class _Watcher:
    """A policy that notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, list[bool]]] = []

    def act(self, seen: Any, episode_start: Tensor) -> Tensor:
        self.asked.append((seen.shown, episode_start.tolist()))
        return torch.zeros(2, 9)


def _run_scripted(episodes: int, **options: Any) -> tuple[Episodes, _Watcher]:
    watcher = _Watcher()
    return run_episodes(_Scripted(), watcher, episodes, **options), watcher  # type: ignore[arg-type]


def test_outcomes_are_those_of_each_episode_in_order() -> None:
    episodes, _ = _run_scripted(5)
    assert episodes.success.tolist() == [False, True, False, True, False]
    assert episodes.end_stage.tolist() == [1, 2, 0, 2, 0]
    assert episodes.best_stage.tolist() == [2, 2, 1, 2, 0]
    assert episodes.first_success.tolist() == [1, 3, -1, 0, -1]
    assert episodes.returns.tolist() == [40 * e + 6 for e in range(5)]
    assert episodes.factors.tolist() == [[e + 0.5, -e] for e in range(5)]
    assert episodes.factor_names == ("a", "b")
    assert episodes.stages == ("start", "reach", "lifted")


def test_the_policy_is_told_where_episodes_start() -> None:
    _, watcher = _run_scripted(3)
    assert len(watcher.asked) == 2 * 4  # two rounds of two worlds for three episodes
    for index, (shown, starts) in enumerate(watcher.asked):
        first = 2 * (index // 4)
        assert shown == ((first, first + 1), index % 4)
        assert starts == [index % 4 == 0] * 2


def test_a_film_shows_the_first_round_and_progress_counts_what_is_kept() -> None:
    shown: list[tuple[int, Any]] = []
    said: list[tuple[int, int]] = []
    _run_scripted(
        5,
        on_step=lambda step, seen: shown.append((step, seen.shown)),
        progress=lambda done, successes: said.append((done, successes)),
    )
    assert shown == [(step, ((0, 1), step)) for step in range(4)]
    # The sixth episode succeeds, but is not asked for.
    assert said == [(2, 1), (4, 2), (5, 2)]


def test_a_summary_counts_rates_of_the_best_stage() -> None:
    episodes, _ = _run_scripted(5)
    summary = summarize(episodes, task="lifting", seed=3)
    low, high = wilson_interval(2, 5)
    names = ("visuomotor", "git_commit", "git_changed", "versions")
    measured_by = {name: summary.pop(name) for name in names}
    assert measured_by["visuomotor"] == __version__
    assert measured_by["versions"]["mujoco"] == mujoco.__version__
    assert summary == {
        "task": "lifting",
        "seed": 3,
        "episodes": 5,
        "successes": 2,
        "success_rate": 0.4,
        "success_low": low,
        "success_high": high,
        "stopped": 0,
        "mean_return": 86.0,
        "stage_rates": {"start": 1.0, "reach": 0.8, "lifted": 0.6},
    }


def test_the_table_has_one_row_an_episode_with_its_factors() -> None:
    episodes, _ = _run_scripted(3)
    episodes.factors[1, 0] = 0.1 + 0.2  # written in full
    assert episodes_csv(episodes, seed=9).splitlines() == [
        "episode,seed,success,return,end_stage,best_stage,first_success_step,stopped_step,a,b",
        "0,9,0,6.0,reach,lifted,1,-1,0.5,0.0",
        "1,9,1,46.0,lifted,lifted,3,-1,0.30000000000000004,-1.0",
        "2,9,0,86.0,start,reach,-1,-1,2.5,-2.0",
    ]


class _Failing:
    """A policy whose action in world 0 is no number at step 1 of the second episode there."""

    def __init__(self) -> None:
        self.calls = 0

    def act(self, seen: Any, episode_start: Tensor) -> Tensor:
        action = torch.zeros(2, 9)
        if self.calls == 5:
            action[0, 3] = torch.nan
        self.calls += 1
        return action


def test_a_policy_that_gives_no_number_costs_its_episode_alone() -> None:
    asked = []
    worlds = _Scripted()
    step = worlds.step
    worlds.step = lambda action: (asked.append(action), step(action))[1]  # type: ignore[assignment]
    episodes = run_episodes(worlds, _Failing(), 6)  # type: ignore[arg-type]
    # Episode 3 would succeed to its end; episode 2 is the one that is stopped, at its step 1.
    assert episodes.stopped.tolist() == [-1, -1, 1, -1, -1, -1]
    assert episodes.success.tolist() == [False, True, False, True, False, True]
    assert all(torch.isfinite(action).all() for action in asked)
    assert summarize(episodes)["stopped"] == 1
    assert episodes_csv(episodes, seed=0).splitlines()[3].split(",")[7] == "1"


def test_success_without_acting_to_the_end_does_not_count() -> None:
    worlds = _Scripted()
    failing = _Failing()
    failing.calls = 3  # world 0 is stopped at step 2 of its first episode ...
    worlds.STAGES = tuple((2, 2, 2, 2) for _ in range(6))  # type: ignore[assignment]
    episodes = run_episodes(worlds, failing, 4)  # type: ignore[arg-type]
    assert episodes.stopped.tolist() == [2, -1, -1, -1]
    assert episodes.success.tolist() == [False, True, True, True]
    assert episodes.end_stage.tolist() == [2, 2, 2, 2]


# --- the episodes are those of the seed ---------------------------------------------------------


class _Recorder:
    """A policy that notes every start state, and moves in its own way."""

    def __init__(self, env: VisuomotorEnv, action: Callable[[int], Tensor]):
        self._env = env
        self._action = action
        self._calls = 0
        self.starts: list[Tensor] = []
        self.from_initial: list[bool] = []

    def act(self, seen: Observation, episode_start: Tensor) -> Tensor:
        if episode_start.any():
            assert episode_start.all()
            self.starts.append(self._env.sim.get_state(torch.arange(self._env.num_envs)))
            self.from_initial += self._env.from_initial.tolist()
        self._calls += 1
        return self._action(self._calls).expand(self._env.num_envs, -1)


def _still(call: int) -> Tensor:
    return torch.zeros(1, 9)


def _wild(call: int) -> Tensor:
    return torch.rand(1, 9, generator=torch.Generator().manual_seed(call)) * 2 - 1


def _measure(
    action: Callable[[int], Tensor],
    *,
    seed: int = 5,
    strength: float = 1.0,
    num_envs: int = 3,
    episodes: int = 7,
) -> tuple[Episodes, np.ndarray, _Recorder]:
    """Outcomes, start states (E, nq + nv) and the policy."""
    env = evaluation_env(EVALUATED, num_envs=num_envs, seed=seed, strength=strength, device=CPU)
    env.camera = None  # these policies do not look
    policy = _Recorder(env, action)
    outcome = run_episodes(env, policy, episodes)
    return outcome, torch.cat(policy.starts)[:episodes].numpy(), policy


def test_every_policy_meets_the_same_start_states_and_factors() -> None:
    still, starts, _ = _measure(_still)
    wild, wild_starts, _ = _measure(_wild)
    assert np.array_equal(starts, wild_starts)
    assert np.array_equal(still.factors, wild.factors)
    assert len(starts) == 7 and len(np.unique(starts, axis=0)) == 7
    assert len(np.unique(still.factors, axis=0)) == 7


def test_the_number_of_worlds_does_not_change_the_episodes() -> None:
    few, few_starts, _ = _measure(_still, num_envs=2)
    many, many_starts, _ = _measure(_still, num_envs=7)
    assert np.array_equal(few_starts, many_starts)
    assert np.array_equal(few.factors, many.factors)
    assert np.array_equal(few.returns, many.returns)


def test_another_seed_means_other_episodes() -> None:
    first, first_starts, _ = _measure(_still, episodes=2)
    other, other_starts, _ = _measure(_still, episodes=2, seed=6)
    assert not np.isclose(first_starts, other_starts).all(axis=1).any()
    assert not np.isclose(first.factors, other.factors).all(axis=1).any()


def test_episodes_start_from_the_tasks_initial_distribution_alone() -> None:
    outcome, starts, policy = _measure(_still, strength=0.0)
    assert all(policy.from_initial)
    env = make_env(EVALUATED, num_envs=1, seed=0, render=False)
    for episode, state in enumerate(starts):
        expected = env.task.start_state(np.random.default_rng([EPISODES_APART + 5, 1, episode]))
        np.testing.assert_allclose(state, expected, atol=1e-12)
    assert outcome.best_stage.max() == 0  # none begins with the block in hand


def test_strength_alone_decides_how_far_worlds_are_randomized() -> None:
    quiet, _, _ = _measure(_still, strength=0.0)
    full, _, _ = _measure(_still, strength=1.0)
    env = make_env(EVALUATED, num_envs=1, seed=0, render=False)
    assert np.array_equal(quiet.factors, np.tile(env.randomizer.default(), (7, 1)))
    for episode in range(7):
        rng = np.random.default_rng([EPISODES_APART + 5, 2, episode])
        assert np.array_equal(full.factors[episode], env.randomizer.draw(rng, 1.0))
    names = list(full.factor_names)
    masses = full.factors[:, names.index("prop_mass/block_0")]
    assert masses.min() < 0.9 and masses.max() > 1.1


def test_judging_an_actor_leaves_it_as_it_was_and_repeats() -> None:
    actor = moving_actor(EVALUATED)
    before = {name: value.clone() for name, value in actor.state_dict().items()}
    settings: dict[str, Any] = {"episodes": 3, "seed": 1, "strength": 1.0, "device": CPU}
    first = evaluate_actor(actor, EVALUATED, **settings)
    torch.rand(7)  # the global generator plays no part
    again = evaluate_actor(actor, EVALUATED, **settings)
    assert np.array_equal(first.returns, again.returns)
    assert np.array_equal(first.factors, again.factors)
    assert len(first.success) == 3
    for name, value in actor.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not actor.training
