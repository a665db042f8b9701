"""Networks with the sizes that a configuration asks for."""

from __future__ import annotations

import torch
from torch import Tensor

from visuomotor.config import ActorConfig, Config
from visuomotor.pixel_actor import PixelActor
from visuomotor.state_critic import StateCritic
from visuomotor.state_teacher import StateTeacher

NUM_ARM, NUM_FINGERS = 6, 3


def make_actor(config: Config) -> PixelActor:
    actor = config.actor
    init_log_std, min_std = _deviation(actor)
    return PixelActor(
        height=config.camera.height,
        width=config.camera.width,
        visual_dim=actor.visual_dim,
        proprio_dim_out=actor.proprio_dim,
        hidden_dim=actor.hidden_dim,
        recurrent=actor.recurrent,
        init_log_std=init_log_std,
        min_std=min_std,
    )


def make_teacher(config: Config, state_dim: int) -> StateTeacher:
    init_log_std, min_std = _deviation(config.actor)
    return StateTeacher(
        state_dim=state_dim,
        hidden_sizes=config.distill.teacher.hidden_sizes,
        init_log_std=init_log_std,
        min_std=min_std,
    )


def make_critic(config: Config, state_dim: int) -> StateCritic:
    return StateCritic(state_dim=state_dim, hidden_sizes=config.critic.hidden_sizes)


def _deviation(actor: ActorConfig) -> tuple[Tensor, Tensor]:
    """Initial log-deviation and floor of the deviation, (9,) each: arm joints, then fingers."""
    init = [actor.init_log_std_arm] * NUM_ARM + [actor.init_log_std_finger] * NUM_FINGERS
    floor = [actor.min_std_arm] * NUM_ARM + [actor.min_std_finger] * NUM_FINGERS
    return torch.tensor(init), torch.tensor(floor)
