"""The only door to the simulated world: TASKS and make_env()."""

from __future__ import annotations

import difflib

import torch

from visuomotor.config import Config
from visuomotor.envs.environment import Observation, ResetSampler, StepResult, VisuomotorEnv
from visuomotor.envs.tasks import ALIASES, TASKS, Task
from visuomotor.errors import UserError


def make_task(name: str) -> Task:
    """By its name or an alias. Raises UserError with the nearest names for an unknown one."""
    name = ALIASES.get(name, name)
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.4)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        raise UserError(f"unknown task '{name}'{hint}; tasks: {', '.join(TASKS)}")
    return TASKS[name]()


def make_env(
    config: Config,
    *,
    num_envs: int | None = None,
    seed: int | None = None,
    render: bool = True,
    device: torch.device | None = None,
    reset_sampler: ResetSampler | None = None,
    stagger: bool = False,
) -> VisuomotorEnv:
    """N worlds of `config.task`; None takes the configuration's value."""
    return VisuomotorEnv(
        config,
        make_task(config.task),
        num_envs=config.num_envs if num_envs is None else num_envs,
        seed=config.seed if seed is None else seed,
        render=render,
        device=device,
        reset_sampler=reset_sampler,
        stagger=stagger,
    )


__all__ = ["TASKS", "Observation", "StepResult", "Task", "VisuomotorEnv", "make_env", "make_task"]
