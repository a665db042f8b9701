"""A learner's worlds in small: what the tests of training's loops share."""

from __future__ import annotations

from dataclasses import replace

from visuomotor.config import (
    ActorConfig,
    AuxConfig,
    CameraConfig,
    CloningConfig,
    Config,
    DistillConfig,
    EnvConfig,
    GailConfig,
    PPOConfig,
    TeacherConfig,
)
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import Demonstrations

NUM_ENVS = 4
NUM_STEPS = 8

SMALL = Config(
    task="lifting",
    num_envs=NUM_ENVS,
    retargeted=0,
    env=EnvConfig(episode_steps=12, num_threads=1),
    camera=CameraConfig(height=24, width=24),
    actor=ActorConfig(visual_dim=16, proprio_dim=8, hidden_dim=12),
    aux=AuxConfig(start_frames=70, start_updates=2, minibatches=2, batch_size=8, memory=100),
    ppo=PPOConfig(num_steps=NUM_STEPS, epochs=2, minibatches=2, critic_warmup=1),
    gail=GailConfig(updates=2, batch_size=16),
    cloning=CloningConfig(start_updates=2, start_steps=2 * NUM_ENVS * NUM_STEPS),
    distill=DistillConfig(
        teacher=TeacherConfig(num_envs=NUM_ENVS, hidden_sizes=(16,)),
        minibatches=2,
        replayed=1,
        memory=2,
    ),
)


def small(**groups: dict[str, object]) -> Config:
    """SMALL with some settings changed: small(gail={"weight": 0.0})."""
    changed = {name: replace(getattr(SMALL, name), **values) for name, values in groups.items()}
    return replace(SMALL, **changed)


def demonstrations() -> Demonstrations:
    made, _ = collect(Config(task="lifting"), episodes=2, seed=0)
    return made
