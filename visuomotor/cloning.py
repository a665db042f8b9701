"""Behaviour cloning from state: the demonstrations as a network that can be asked anywhere.

Knows no environment. Serves a state teacher as its start, and a pixel actor as an expert: the clone
labels the states that the actor itself comes to (DAgger, Ross et al. 2011), which thirty recorded
episodes never show.
"""

from __future__ import annotations

from collections.abc import Callable

from visuomotor.config import CloningConfig
from visuomotor.networks import Progress, descend
from visuomotor.ppo import CloningBatch, cloning_loss
from visuomotor.state_teacher import StateTeacher

BATCH_STATES = 1024  # steps of demonstrations in a batch
STATE_NOISE = 0.05  # deviations of the state, added to what the clone reads: it learns to come back
MAX_GRAD_NORM = 1.0

Sampler = Callable[[int, float], CloningBatch]


def clone_from_state(
    teacher: StateTeacher,
    sampler: Sampler,
    config: CloningConfig,
    progress: Progress | None = None,
) -> None:
    """Fits the teacher's means to the demonstrations' actions, in place.

    sampler: (number of states, noise) -> states and actions.
    Raises DivergedError if a gradient is not finite.
    """
    descend(
        list(teacher.parameters()),
        lambda: cloning_loss(teacher, sampler(BATCH_STATES, STATE_NOISE)),
        updates=config.start_updates,
        learning_rate=config.learning_rate,
        max_grad_norm=MAX_GRAD_NORM,
        progress=progress,
    )
