"""A contextual bandit with frames, and networks small enough for it; tests of updates share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visuomotor.config import PPOConfig
from visuomotor.pixel_actor import PixelActor
from visuomotor.ppo import PPO, gaussian_log_prob
from visuomotor.rollout import RolloutBuffer
from visuomotor.state_critic import StateCritic
from visuomotor.state_teacher import StateTeacher

A, S, P = 2, 3, 4
FRAME = (3, 20, 20)
CONFIG = PPOConfig(epochs=2, minibatches=2, learning_rate=3e-3, max_learning_rate=1e-2)


def make_teacher_ppo(seed: int = 0, config: PPOConfig = CONFIG) -> PPO:
    torch.manual_seed(seed)
    teacher = StateTeacher(
        state_dim=S,
        action_dim=A,
        hidden_sizes=(32,),
        init_log_std=torch.full((A,), -0.5),
        min_std=torch.full((A,), 0.05),
    )
    critic = StateCritic(state_dim=S, hidden_sizes=(32,))
    return PPO(teacher, critic, config, generator=torch.Generator().manual_seed(seed))


def make_pixel_ppo(
    seed: int = 0, config: PPOConfig = CONFIG, recurrent: bool = True, target_dim: int = 0
) -> PPO:
    torch.manual_seed(seed)
    actor = PixelActor(
        proprio_dim=P,
        action_dim=A,
        height=20,
        width=20,
        visual_dim=8,
        proprio_dim_out=8,
        hidden_dim=8,
        recurrent=recurrent,
        target_dim=target_dim,
        aux_hidden_sizes=(8,),
        init_log_std=torch.full((A,), -0.5),
        min_std=torch.full((A,), 0.05),
    )
    critic = StateCritic(state_dim=S, hidden_sizes=(16,))
    return PPO(actor, critic, config, generator=torch.Generator().manual_seed(seed))


def collect(ppo: PPO, seed: int, num_steps: int = 6, num_envs: int = 8) -> RolloutBuffer:
    """A contextual bandit: reward is minus the squared distance of the action from a target that
    the state and the brightness of the frame show; every step is an episode of its own for the
    teacher, and episodes of two steps for the pixel actor."""
    generator = torch.Generator().manual_seed(seed)
    actor, pixel = ppo.actor, isinstance(ppo.actor, PixelActor)
    buffer = RolloutBuffer(
        num_steps,
        num_envs,
        action_dim=A,
        proprio_dim=P,
        state_dim=S,
        feature_dim=1,
        aux_dim=3,
        frame_shape=FRAME if pixel else None,
    )
    hidden = actor.initial_hidden(num_envs) if isinstance(actor, PixelActor) else None
    buffer.start(hidden)
    std = actor.std().detach()
    for t in range(num_steps):
        target = torch.rand(num_envs, 1, generator=generator) - 0.5
        state = target.expand(-1, S)
        proprio = torch.randn(num_envs, P, generator=generator)
        level = ((target + 0.5) * 255.0).to(torch.uint8)
        pixels = level.reshape(-1, 1, 1, 1).expand(-1, *FRAME)
        start = torch.full((num_envs,), t % 2 == 0)
        visual = None
        with torch.no_grad():
            if isinstance(actor, PixelActor):
                assert hidden is not None
                if t % 2 == 0:
                    hidden = actor.initial_hidden(num_envs)
                visual = actor.encode(pixels)
                mean, hidden = actor.step(visual, proprio, hidden)
            else:
                mean = actor(state)
            action = mean + std * torch.randn(num_envs, A, generator=generator)
            value = ppo.critic(state)
        buffer.add_decision(
            proprio=proprio,
            state=state,
            episode_start=start,
            action=action,
            mean=mean,
            log_prob=gaussian_log_prob(action, mean, std),
            value=value,
            aux_targets=target.expand(-1, 3),
            pixels=pixels if pixel else None,
            new_frame=torch.ones(num_envs, dtype=torch.bool) if pixel else None,
            visual=visual,
        )
        ends = torch.ones(num_envs, dtype=torch.bool) if not pixel else ~start
        buffer.add_outcome(
            task_reward=-(action - target).square().sum(dim=-1),
            features=target,
            next_value=torch.zeros(num_envs),
            terminated=ends,
            truncated=torch.zeros(num_envs, dtype=torch.bool),
        )
    buffer.finish(buffer.task_reward, gamma=0.9, gae_lambda=0.9)
    return buffer


def copies(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def unchanged(module: nn.Module, before: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
