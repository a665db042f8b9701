"""A teacher that goes on learning, from the states that its student comes to.

A state teacher has practised where demonstrations and its own actions lead. A student that sees
only pixels comes elsewhere, and a label is worth no more than what the teacher does from there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from visuomotor.config import Config
from visuomotor.reinforcement import Reinforcement
from visuomotor.replay import DemonstrationReplay

MET_SHARE = 0.5  # of the episodes; the others begin as the teacher's own training did
MEMORY = 16_384  # states kept, the latest


def teacher_networks(learner: Reinforcement) -> dict[str, Any]:
    """What a state teacher's phase leaves to the next, as state dicts; `normalizer`: the scale of
    the rewards that the critic learned from."""
    return {
        "teacher": learner.actor.state_dict(),
        "critic": learner.critic.state_dict(),
        "gail": learner.gail.state_dict(),
        "normalizer": learner.normalizer.statistics(),
    }


def take_over_judgement(learner: Reinforcement, networks: dict[str, Any]) -> None:
    """Critic, discriminator and scale of the rewards of `teacher_networks`; older ones lack the
    last, which then is found anew."""
    learner.critic.load_state_dict(networks["critic"])
    learner.gail.load_state_dict(networks["gail"])
    if "normalizer" in networks:
        learner.normalizer.load_statistics(networks["normalizer"])


class Rehearsal:
    """PPO and GAIL of a state teacher (`learner`), half of whose episodes begin in met states.

    Args:
      config: the run's settings.
      replay: demonstrations as networks see them.
      networks: of a finished teacher phase, as `teacher_networks` gives them.
      total_steps: env steps after which the step size has fallen to 0.
      steps_before: env steps of the run when the rehearsal begins, as `Reinforcement` takes them.
    """

    def __init__(
        self,
        config: Config,
        replay: DemonstrationReplay,
        networks: dict[str, Any],
        *,
        total_steps: int,
        device: torch.device,
        steps_before: int = 0,
    ):
        self.total_steps = total_steps
        self._met = torch.zeros(0)
        self.learner = Reinforcement(
            config,
            replay,
            pixels=False,
            num_envs=config.distill.teacher.num_envs,
            total_steps=total_steps,
            device=device,
            elsewhere=self._start,
            steps_before=steps_before,
        )
        self.learner.actor.load_state_dict(networks["teacher"])
        take_over_judgement(self.learner, networks)

    def meet(self, states: torch.Tensor) -> None:
        """states: (n, nq + nv), of the student's episodes; the latest are kept."""
        states = states.cpu()
        self._met = torch.cat([self._met, states])[-MEMORY:] if len(self._met) else states[-MEMORY:]

    def _start(self, rng: np.random.Generator) -> np.ndarray | None:
        if len(self._met) == 0 or rng.random() >= MET_SHARE:
            return None
        met: np.ndarray = self._met[rng.integers(len(self._met))].numpy()
        return met

    def advance(self, progress: float) -> dict[str, float]:
        """Learns until `progress` of total_steps is done. Returns what the last iteration says."""
        metrics: dict[str, float] = {}
        while self.learner.env_steps < min(1.0, progress) * self.total_steps:
            metrics = self.learner.iterate()
        names = ("mean_reward", "success_rate", "approx_kl")
        return {f"rehearsal_{name}": metrics[name] for name in names if name in metrics}

    def networks(self) -> dict[str, Any]:
        return teacher_networks(self.learner)

    def state_dict(self) -> dict[str, Any]:
        return {"learner": self.learner.state_dict(), "met": self._met}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self._met = state["met"]
