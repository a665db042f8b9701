"""Measures a policy: `python -m visuomotor.evaluate policy=stacking sims=randomized episodes=500`.

Episodes start from the task's initial distribution only. An episode is identified by the seed and
its number: every policy meets the same start states and factors. Writes `evaluation.json` and
`episodes.csv`.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from visuomotor.checkpoint import write_atomic
from visuomotor.cli import resolve_device, run_command
from visuomotor.config import Config
from visuomotor.envs import Observation, VisuomotorEnv, make_env
from visuomotor.errors import UserError
from visuomotor.overrides import parse_overrides
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import PixelPolicy, TeacherPolicy
from visuomotor.policy_files import load_evaluated_policy
from visuomotor.run_folder import versions_record
from visuomotor.state_teacher import StateTeacher
from visuomotor.video import write_contact_sheet, write_video

Z_95 = 1.959963984540054  # of the standard normal distribution, two-sided 95 %
MAX_WORLDS = 64
SIMS = ("nominal", "randomized")
VIDEO_EPISODES = 16
# Added to an evaluation's seed: beyond every seed of training, so that no start state and no drawn
# factor is one that a policy was trained on.
EPISODES_APART = 2**40


@dataclass(frozen=True)
class EvaluateConfig:
    policy: str = ""  # a run folder, a bundle or a shipped name
    sims: str = "randomized"  # nominal or randomized
    episodes: int = 200
    seed: int = 0
    out: str | None = None  # folder for evaluation.json, episodes.csv and video; None: the run's
    device: str = "auto"
    strength: float | None = None  # of the randomization; None: 1 for randomized, 0 for nominal
    episode_steps: int | None = None  # control steps; None: as the policy was trained
    video: bool = True  # a short film and a contact sheet of the policy's own camera


class Policy(Protocol):
    """Acts in N worlds."""

    def act(self, seen: Observation, episode_start: Tensor) -> Tensor:
        """(N, 9) actions in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Episodes:
    """Outcomes, one entry an episode, in order of their number."""

    success: np.ndarray  # (E,) bool: in the final stage at the last step
    returns: np.ndarray  # (E,) sum of task rewards
    end_stage: np.ndarray  # (E,) int
    best_stage: np.ndarray  # (E,) int: the furthest stage ever reached
    first_success: np.ndarray  # (E,) control step of the first success, -1: none
    factors: np.ndarray  # (E, K) drawn values
    factor_names: tuple[str, ...]
    stages: tuple[str, ...]


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927): keeps its coverage near 0 and 1."""
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    z2 = Z_95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = (
        Z_95
        / (1 + z2 / episodes)
        * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    )
    # At 0 and at all successes the bound is exact; the formula misses it by a rounding error.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


def run_episodes(
    env: VisuomotorEnv,
    policy: Policy,
    episodes: int,
    *,
    on_step: Callable[[int, Observation], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Episodes:
    """Runs at least `episodes` episodes of `env` and keeps the first ones by number.

    env: not staggered and without a reset sampler, so that all worlds end together.
    on_step: called with the step's number and what is seen, in the first round only.
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
        for step in range(env.episode_steps):
            if on_step is not None and index == 0:
                on_step(step, observation)
            result = env.step(policy.act(observation, start))
            start = result.truncated
            observation = result.observation
            returns += result.reward
            best = torch.maximum(best, result.stage)
            first = torch.where((first < 0) & result.success, step, first)
        records.append(
            {
                "success": result.success.cpu().numpy(),
                "returns": returns.cpu().numpy(),
                "end_stage": result.stage.cpu().numpy(),
                "best_stage": best.cpu().numpy(),
                "first_success": first.cpu().numpy(),
                "factors": factors,
            }
        )
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
    versions = versions_record()
    return {
        **facts,
        "episodes": count,
        "successes": successes,
        "success_rate": successes / count,
        "success_low": low,
        "success_high": high,
        "mean_return": float(episodes.returns.mean()),
        # Share of episodes that reached at least this stage at some time.
        "stage_rates": {name: float((episodes.best_stage >= i).mean()) for i, name in stages},
        # What measured it; git_changed: with changes that no commit holds.
        **{name: versions[name] for name in ("visuomotor", "git_commit", "git_changed")},
    }


def episodes_csv(episodes: Episodes, seed: int) -> str:
    """One row an episode: number, seed, outcome, then every randomized factor."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    outcome = ("success", "return", "end_stage", "best_stage", "first_success_step")
    writer.writerow(("episode", "seed", *outcome, *episodes.factor_names))
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
) -> VisuomotorEnv:
    """Worlds as a policy is judged in: fixed strength, starts of the task alone.

    Their episodes are none that training meets, whatever its seed.
    """
    randomization = replace(config.randomization, strength=strength, curriculum_steps=0)
    judged = replace(config, randomization=randomization)
    return make_env(
        judged, num_envs=num_envs, seed=EPISODES_APART + seed, device=device, render=render
    )


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
    return run_episodes(env, policy, episodes, on_step=on_step, progress=progress)


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
        """`evaluation.mp4` and `evaluation.png` in `folder`; rate: frames/s."""
        write_video(folder / "evaluation.mp4", self.frames, rate)
        write_contact_sheet(folder / "evaluation.png", self.frames)


def _check(options: EvaluateConfig) -> None:
    if options.policy == "":
        raise UserError("policy= is missing; give a run folder, a bundle or a shipped name")
    if options.sims not in SIMS:
        raise UserError(f"sims='{options.sims}' is unknown; valid: {', '.join(SIMS)}")
    if options.episodes < 1:
        raise UserError(f"episodes={options.episodes}; at least 1 is needed")
    if options.seed < 0:
        raise UserError(f"seed={options.seed}; valid: from 0")
    if options.episode_steps is not None and options.episode_steps < 1:
        raise UserError(f"episode_steps={options.episode_steps}; at least 1 is needed")
    if options.strength is not None and not 0.0 <= options.strength <= 1.0:
        raise UserError(f"strength={options.strength}; valid: 0 to 1")
    if options.out is not None:
        folder = Path(options.out)
        present = next(path for path in (folder, *folder.parents) if path.exists())
        if not present.is_dir():
            raise UserError(f"out={options.out}: {present} is a file; give a folder")


def evaluate(argv: list[str]) -> int:
    options = parse_overrides(argv, EvaluateConfig)
    _check(options)
    device = resolve_device(options.device)
    loaded = load_evaluated_policy(options.policy, device)
    config = loaded.config
    if options.episode_steps is not None:
        config = replace(config, env=replace(config.env, episode_steps=options.episode_steps))
    strength = 1.0 if options.sims == "randomized" else 0.0
    strength = strength if options.strength is None else options.strength
    num_envs = min(MAX_WORLDS, options.episodes)
    env = evaluation_env(
        config, num_envs=num_envs, seed=options.seed, strength=strength, device=device
    )
    film = Film() if options.video else None
    with tqdm(total=options.episodes, unit="episode", disable=None) as bar:

        def progress(done: int, successes: int) -> None:
            bar.update(done - bar.n)
            bar.set_postfix(success=f"{100 * successes / done:.1f}%")

        policy = loaded.policy(num_envs)
        episodes = run_episodes(env, policy, options.episodes, on_step=film, progress=progress)
    summary = summarize(
        episodes,
        task=config.task,
        policy=options.policy,
        sims=options.sims,
        strength=strength,
        seed=options.seed,
        episode_steps=env.episode_steps,
        provenance=loaded.provenance,
    )
    folder = Path(options.out) if options.out is not None else loaded.default_out
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        if film is not None:
            film.save(folder, 1.0 / config.env.control_dt)
        write_atomic(folder / "episodes.csv", episodes_csv(episodes, options.seed).encode())
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        write_atomic(folder / "evaluation.json", text.encode())
    low, high = 100 * summary["success_low"], 100 * summary["success_high"]
    print(
        f"{config.task} {options.sims} seed={options.seed}: {summary['successes']} of "
        f"{summary['episodes']} episodes succeed, {100 * summary['success_rate']:.1f} % "
        f"(95 %: {low:.1f} to {high:.1f}), mean return {summary['mean_return']:.2f}"
        + (f"; written to {folder}" if folder is not None else "")
    )
    return 0


def main() -> None:
    sys.exit(run_command(evaluate, sys.argv[1:]))


if __name__ == "__main__":
    main()
