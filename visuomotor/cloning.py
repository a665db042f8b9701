"""Behaviour cloning from state: the demonstrations as a network that can be asked anywhere.

Knows no environment. Serves a state teacher as its start, and a pixel actor as an expert: the clone
labels the states that the actor itself comes to (DAgger, Ross et al. 2011), which thirty recorded
episodes never show.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from visuomotor.config import CloningConfig
from visuomotor.ppo import CloningBatch, cloning_loss
from visuomotor.state_teacher import StateTeacher

BATCH_STATES = 1024  # steps of demonstrations in a batch
STATE_NOISE = 0.05  # deviations of the state, added to what the clone reads: it learns to come back
MAX_GRAD_NORM = 1.0

Progress = Callable[[dict[str, float]], None]
Sampler = Callable[[int, float], CloningBatch]


def clone_from_state(
    teacher: StateTeacher,
    sampler: Sampler,
    config: CloningConfig,
    progress: Progress | None = None,
) -> None:
    """Fits the teacher's means to the demonstrations' actions, in place.

    sampler: (number of states, noise) -> states and actions.
    Raises RuntimeError if a gradient is not finite.
    """
    optimizer = torch.optim.Adam(teacher.parameters(), lr=config.learning_rate)
    for step in range(config.start_updates):
        scale = min(1.0, 4.0 * (1.0 - step / config.start_updates))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * scale
        loss, metrics = cloning_loss(teacher, sampler(BATCH_STATES, STATE_NOISE))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
        optimizer.step()
        if progress is not None and step % 50 == 0:
            progress({name: float(value) for name, value in metrics.items()} | {"step": step})
