"""A run in small and how it is stopped and read: what the tests of training's command share."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visuomotor.distillation import Distillation
from visuomotor.reinforcement import Reinforcement

# A run of a few seconds in which everything happens: four worlds, iterations of 8 steps.
SMALL = (
    "task=lifting",
    "num_envs=4",
    "retargeted=0",
    "device=cpu",
    "env.episode_steps=20",
    "env.num_threads=1",
    "ppo.num_steps=8",
    "ppo.epochs=2",
    "ppo.minibatches=2",
    "ppo.critic_warmup=1",
    "gail.updates=2",
    "gail.batch_size=16",
    "actor.visual_dim=16",
    "actor.hidden_dim=16",
    "cloning.start_updates=2",
    "cloning.start_steps=32",
    "aux.start_frames=70",
    "aux.start_updates=2",
    "aux.minibatches=2",
    "aux.batch_size=8",
    "aux.memory=100",
    "distill.teacher.num_envs=4",
    "distill.memory=2",
    "distill.minibatches=2",
    "distill.replayed=1",
    "run.evaluate_every=0",
    "run.evaluate_episodes=4",
    "run.final_episodes=0",
    "run.tensorboard=false",
    "run.checkpoint_seconds=100000",
)
ITERATION = 32  # env steps
RIL = ("algorithm=ril", f"total_steps={4 * ITERATION}")
DISTILL = (
    "algorithm=distill",
    f"distill.teacher.total_steps={3 * ITERATION}",
    f"distill.dagger_steps={4 * ITERATION}",
    f"distill.finetune_steps={3 * ITERATION}",
)
STUDENT = (*DISTILL[:-1], "distill.finetune_steps=0")  # which is not finetuned
AVERAGED = (*DISTILL, f"averaging_steps={3 * ITERATION}")
# With a teacher that goes on learning, and a vision of its own.
REHEARSED = (
    *DISTILL,
    f"distill.rehearsal_steps={2 * ITERATION}",
    "distill.vision_learning_rate=0.001",
    "actor.encoder=maps",
)


def stop_at(monkeypatch: pytest.MonkeyPatch, iteration: int, number: signal.Signals) -> None:
    """Sends the signal to this process in the middle of the n-th iteration (from 1), once."""
    count = 0
    for learner in (Reinforcement, Distillation):
        original: Callable[[Any], dict[str, float]] = learner.iterate

        def iterate(
            self: Any, original: Callable[[Any], dict[str, float]] = original
        ) -> dict[str, float]:
            nonlocal count
            count += 1
            if count == iteration:
                os.kill(os.getpid(), number)
            return original(self)

        monkeypatch.setattr(learner, "iterate", iterate)


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("wall_s", "fps")} for row in rows]
