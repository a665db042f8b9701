"""What does a student of `algorithm=distill` see, and where does it differ from its teacher?

    python benchmarks/student.py RUN [episodes]

Randomized episodes under the student alone. Of each auxiliary vector the median and the 90th
percentile of the error, at new frames; for each stage how many of the steps were spent in it, and
there the mean difference between the student's action and its teacher's, for arm and fingers, and
how often the teacher's fingers ask to close (or open) where the student's ask for the contrary or
for less than a quarter of it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from visuomotor.checkpoint import load_checkpoint
from visuomotor.envs import Observation
from visuomotor.evaluation import MAX_WORLDS, evaluation_env, run_episodes
from visuomotor.policies import NUM_ARM, PixelPolicy, make_teacher
from visuomotor.policy_files import load_policy


class Watched(PixelPolicy):
    """A student that keeps what it saw and did, and what its teacher would have done."""

    def __init__(self, run: Path, num_envs: int):
        actor, self.config, self.provenance = load_policy(str(run))
        super().__init__(actor, num_envs)
        state, _, _ = load_checkpoint(run / "checkpoints")
        weights = state["carried"]["teacher"]
        self.teacher = make_teacher(self.config, len(weights["normalizer.mean"]))
        self.teacher.load_state_dict(weights)
        self.sight: list[np.ndarray] = []
        self.stages: list[np.ndarray] = []
        self.actions: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []

    @torch.no_grad()
    def act(self, seen: Observation, episode_start: Tensor) -> Tensor:  # type: ignore[override]
        mean = super().act(seen, episode_start)
        assert self.visual is not None
        error = self.actor.located(self.visual) - seen.aux_targets
        shown = error[seen.new_frame].reshape(-1, error.shape[1] // 3, 3).norm(dim=-1)
        self.sight.append(shown.numpy())
        self.stages.append(seen.stage.numpy().copy())
        self.actions.append(mean.clamp(-1, 1).numpy())
        self.labels.append(self.teacher(seen.state).clamp(-1, 1).numpy())
        return mean


def main(run: Path, episodes: int) -> None:
    torch.set_num_threads(1)
    num_envs = min(MAX_WORLDS, episodes)
    student = Watched(run, num_envs)
    env = evaluation_env(
        student.config, num_envs=num_envs, seed=1, strength=1.0, device=torch.device("cpu")
    )
    outcome = run_episodes(env, student, episodes)
    step, succeeded = student.provenance["env_steps"], int(outcome.success.sum())
    print(f"{run} at {step:,}: {succeeded} of {episodes} succeed")
    sight = 1000 * np.concatenate(student.sight)
    for index in range(sight.shape[1]):
        median, far = np.percentile(sight[:, index], [50, 90])
        print(f"auxiliary vector {index}: off by {median:.0f} mm, 90 % within {far:.0f} mm")
    stages, actions, labels = (
        np.concatenate(part) for part in (student.stages, student.actions, student.labels)
    )
    print("stage: share of steps; difference of arm, fingers; hold missed, letting go missed")
    for index, name in enumerate(outcome.stages):
        there = stages == index
        reached = (outcome.best_stage >= index).mean()
        if not there.any():
            continue
        difference = np.abs(actions[there] - labels[there])
        mine, its = (part[there, NUM_ARM:].mean(axis=1) for part in (actions, labels))
        hold, release = its > 0.3, its < -0.3
        missed = [
            (mine[asked] * np.sign(its[asked]) < 0.25 * np.abs(its[asked])).mean()
            if asked.any()
            else np.nan
            for asked in (hold, release)
        ]
        print(
            f"{name}: reached {reached:.0%}, {there.mean():.0%} of steps; "
            f"{difference[:, :NUM_ARM].mean():.3f}, {difference[:, NUM_ARM:].mean():.3f}; "
            f"{missed[0]:.0%} of {hold.mean():.0%}, {missed[1]:.0%} of {release.mean():.0%}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else MAX_WORLDS)
