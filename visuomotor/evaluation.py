"""What an evaluation measures: episodes from a task's starts, at a fixed randomization.

An episode is identified by the seed and its number: every policy meets the same start states and
factors.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import Config
from visuomotor.envs import Observation, VisuomotorEnv, make_env
from visuomotor.envs.camera import RayCaster
from visuomotor.envs.robot import NUM_JOINTS
from visuomotor.files import write_atomic
from visuomotor.heldout import HeldOut
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import PixelPolicy, TeacherPolicy
from visuomotor.run_folder import versions_record
from visuomotor.runtime.files import EVALUATION
from visuomotor.state_teacher import StateTeacher
from visuomotor.statistics import wilson_interval
from visuomotor.video import FILM, write_contact_sheet, write_video

MAX_WORLDS = 64
VIDEO_EPISODES = 16
# Columns of episodes.csv that depend on the policy; all others are the same for every policy.
OUTCOMES = ("success", "return", "end_stage", "best_stage", "first_success_step", "stopped_step")
# Added to an evaluation's seed: beyond every seed of training, so that no start state and no drawn
# factor is one that a policy was trained on.
EPISODES_APART = 2**40


class Policy(Protocol):
    """Acts in N worlds."""

    def act(self, seen: Observation, episode_start: Tensor) -> Tensor:
        """(N, 9) actions in [-1, 1]; a row that is not finite ends that world's episode."""
        ...


class Guarded:
    """A policy whose errors cost it an episode: where it raises, its actions are not numbers.

    refusal: what the first one was, or what the policy itself told.
    """

    def __init__(self, policy: Policy):
        self._policy = policy
        self._raised: str | None = None

    @property
    def refusal(self) -> str | None:
        return self._raised or getattr(self._policy, "refusal", None)

    def act(self, seen: Observation, episode_start: Tensor) -> Tensor:
        """episode_start (N,) bool -> (N, 9) in [-1, 1]; NaN in all rows where it raised."""
        expected = (len(seen.proprio), NUM_JOINTS)
        try:
            action = self._policy.act(seen, episode_start)
            if not isinstance(action, Tensor) or tuple(action.shape) != expected:
                what = f"of shape {tuple(getattr(action, 'shape', ()))}"
                raise TypeError(f"actions are a {type(action).__name__} {what}, not {expected}")
            return action
        except Exception as error:  # a stranger's policy may raise anything
            self._raised = self._raised or f"it raised {type(error).__name__}: {error}"
            return seen.proprio.new_full(expected, float("nan"))


@dataclass(frozen=True)
class Episodes:
    """Outcomes, one entry an episode, in order of their number."""

    success: np.ndarray  # (E,) bool: in the final stage at the last step, acting to the end
    returns: np.ndarray  # (E,) sum of task rewards
    end_stage: np.ndarray  # (E,) int
    best_stage: np.ndarray  # (E,) int: the furthest stage ever reached
    first_success: np.ndarray  # (E,) control step of the first success, -1: none
    stopped: np.ndarray  # (E,) control step at which the policy failed to act, -1: never
    factors: np.ndarray  # (E, K) drawn values
    factor_names: tuple[str, ...]
    stages: tuple[str, ...]


class Watcher(Protocol):
    """Looks on at an evaluation, round by round."""

    def step(self, step: int, seen: Observation) -> None: ...

    def ended(self, success: np.ndarray) -> None:
        """success (n,) bool: of this round's episodes, those that are asked for."""
        ...


def run_episodes(
    env: VisuomotorEnv,
    policy: Policy,
    episodes: int,
    *,
    on_step: Callable[[int, Observation], None] | None = None,
    watcher: Watcher | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_step: Callable[[], None] | None = None,
) -> Episodes:
    """Runs at least `episodes` episodes of `env` and keeps the first ones by number.

    env: not staggered and without a reset sampler, so that all worlds end together.
    on_step: called with the step's number and what is seen, in the first round only.
    watcher: sees every round, and how it ended.
    before_step: called before every step; what it raises ends the evaluation.

    A policy that gives no finite action stands still for the rest of that episode, which fails.
    """
    observation = env.reset()
    n = env.num_envs
    rounds = -(-episodes // n)
    records: list[dict[str, np.ndarray]] = []
    start = torch.ones(n, dtype=torch.bool, device=env.device)
    for index in range(rounds):
        factors = env.factors.copy()
        returns = torch.zeros(n, device=env.device)
        best = torch.zeros(n, dtype=torch.int64, device=env.device)
        first = torch.full((n,), -1, dtype=torch.int64, device=env.device)
        stopped = torch.full((n,), -1, dtype=torch.int64, device=env.device)
        for step in range(env.episode_steps):
            if before_step is not None:
                before_step()
            if on_step is not None and index == 0:
                on_step(step, observation)
            if watcher is not None:
                watcher.step(step, observation)
            action = policy.act(observation, start)
            fails = ~torch.isfinite(action).all(dim=1)
            stopped = torch.where((stopped < 0) & fails, step, stopped)
            acting = stopped < 0
            result = env.step(torch.where(acting.unsqueeze(1), action, 0.0))
            start = result.truncated
            observation = result.observation
            returns += result.reward
            best = torch.maximum(best, result.stage)
            first = torch.where((first < 0) & result.success, step, first)
        records.append(
            {
                "success": (result.success & acting).cpu().numpy(),
                "returns": returns.cpu().numpy(),
                "end_stage": result.stage.cpu().numpy(),
                "best_stage": best.cpu().numpy(),
                "first_success": first.cpu().numpy(),
                "stopped": stopped.cpu().numpy(),
                "factors": factors,
            }
        )
        if watcher is not None:
            watcher.ended(records[-1]["success"][: episodes - index * n])
        if progress is not None:
            done = min(episodes, (index + 1) * n)
            so_far = np.concatenate([r["success"] for r in records])[:done]
            progress(done, int(so_far.sum()))
    merged = {
        name: np.concatenate([record[name] for record in records])[:episodes] for name in records[0]
    }
    return Episodes(
        **merged, factor_names=tuple(env.randomizer.factor_names), stages=env.task.stages
    )


def summarize(episodes: Episodes, **facts: Any) -> dict[str, Any]:
    """What `evaluation.json` holds; `facts` come first (task, policy, sims, seed, ...)."""
    count = len(episodes.success)
    successes = int(episodes.success.sum())
    low, high = wilson_interval(successes, count)
    stages = enumerate(episodes.stages)
    return {
        **facts,
        "episodes": count,
        "successes": successes,
        "success_rate": successes / count,
        "success_low": low,
        "success_high": high,
        "stopped": int((episodes.stopped >= 0).sum()),  # episodes in which the policy gave up
        "mean_return": float(episodes.returns.mean()),
        # Share of episodes that reached at least this stage at some time.
        "stage_rates": {name: float((episodes.best_stage >= i).mean()) for i, name in stages},
        **measured_by(),
    }


def measured_by() -> dict[str, Any]:
    """What measured it; git_changed: with changes that no commit holds."""
    record = versions_record()
    ours = ("visuomotor", "git_commit", "git_changed")
    others = {name: value for name, value in record.items() if name not in ours}
    return {**{name: record[name] for name in ours}, "versions": others}


def episodes_csv(episodes: Episodes, seed: int) -> str:
    """One row an episode: number, seed, outcome, then every randomized factor."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("episode", "seed", *OUTCOMES, *episodes.factor_names))
    for i in range(len(episodes.success)):
        writer.writerow(
            (
                i,
                seed,
                int(episodes.success[i]),
                repr(float(episodes.returns[i])),
                episodes.stages[episodes.end_stage[i]],
                episodes.stages[episodes.best_stage[i]],
                int(episodes.first_success[i]),
                int(episodes.stopped[i]),
                *(repr(float(value)) for value in episodes.factors[i]),
            )
        )
    return out.getvalue()


def evaluation_env(
    config: Config,
    *,
    num_envs: int,
    seed: int,
    strength: float,
    device: torch.device,
    render: bool = True,
    pinned: dict[str, float] | None = None,
    heldout: HeldOut | None = None,
) -> VisuomotorEnv:
    """Worlds as a policy is judged in: fixed strength, starts of the task alone.

    Their episodes are none that training meets, whatever its seed. pinned: factors, or groups of
    them, that have one value in every episode. heldout: what no training meets.
    """
    pinned = pinned or {}
    randomization = replace(config.randomization, strength=strength, curriculum_steps=0)
    judged = replace(config, randomization=randomization)
    if heldout is not None:
        judged = heldout.config(judged)
    latency = config.randomization.latency
    env = make_env(
        judged,
        num_envs=num_envs,
        seed=EPISODES_APART + seed,
        device=device,
        render=render,
        alter=None if heldout is None else heldout.spec,
        make_caster=RayCaster if heldout is None else heldout.make_caster,
        longest_delays=(
            max(latency.camera_delay[1] + 1, int(pinned.get("camera_delay", 0))),
            max(latency.action_delay[1] + 1, int(pinned.get("action_delay", 0))),
        ),
    )
    for name, value in pinned.items():
        env.randomizer.pin(name, value)
    for group in heldout.beyond if heldout is not None else ():
        env.randomizer.draw_beyond(group)
    return env


def evaluate_actor(
    actor: PixelActor | StateTeacher,
    config: Config,
    *,
    episodes: int,
    seed: int,
    strength: float,
    device: torch.device,
    on_step: Callable[[int, Observation], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    before_step: Callable[[], None] | None = None,
) -> Episodes:
    """The mean action of an actor in memory; leaves the actor as it was."""
    num_envs = min(MAX_WORLDS, episodes)
    policy: Policy
    if isinstance(actor, PixelActor):
        policy, render = PixelPolicy(actor, num_envs), True
    else:
        policy, render = TeacherPolicy(actor), False
    env = evaluation_env(
        config, num_envs=num_envs, seed=seed, strength=strength, device=device, render=render
    )
    return run_episodes(
        env, policy, episodes, on_step=on_step, progress=progress, before_step=before_step
    )


def write_evaluation(folder: Path, episodes: Episodes, summary: dict[str, Any]) -> None:
    """`episodes.csv` and, last, `evaluation.json`; summary: of `summarize`, with the seed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "episodes.csv", episodes_csv(episodes, summary["seed"]).encode())
    write_json(folder / EVALUATION, summary)


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


class Film:
    """Collects what the policy's camera shows in a few worlds."""

    def __init__(self, worlds: int = VIDEO_EPISODES):
        self._worlds = worlds
        self.frames: list[np.ndarray] = []  # (W, H, W, 3) uint8 a step

    def __call__(self, step: int, seen: Observation) -> None:
        assert seen.pixels is not None
        shown = seen.pixels[: self._worlds].permute(0, 2, 3, 1)
        self.frames.append(shown.cpu().numpy().copy())

    def save(self, folder: Path, rate: float) -> None:
        """The files of video.FILM in `folder`; rate: frames/s."""
        film, sheet = FILM
        write_video(folder / film, self.frames, rate)
        write_contact_sheet(folder / sheet, self.frames)
