"""The only door to the simulated world: TASKS and make_env()."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

import mujoco
import torch

from visuomotor.config import Config
from visuomotor.envs.camera import MakeCaster, RayCaster
from visuomotor.envs.environment import Observation, ResetSampler, StepResult, VisuomotorEnv
from visuomotor.envs.tasks import ALIASES, TASKS, Task
from visuomotor.envs.tasks.task import TABLE
from visuomotor.errors import UserError, did_you_mean

_TaskType = TypeVar("_TaskType", bound=type[Task])

PLUGINS = "visuomotor.tasks"  # group of entry points: modules that register tasks when imported


def register(task: _TaskType) -> _TaskType:
    """Makes a task known by its name to every command; also as a decorator.

    Raises UserError where the name is taken, or where stages, rewards and props do not agree.
    """
    taken = TASKS.get(task.name, task)
    if task.name in ALIASES or taken.__qualname__ != task.__qualname__:
        raise UserError(f"a task '{task.name}' is there already; give yours another name")
    for what, length in (
        ("stage_rewards", len(task.stage_rewards)),
        ("stage_props", len(task.stage_props)),
    ):
        if length != len(task.stages):
            raise UserError(
                f"task '{task.name}' has {len(task.stages)} stages and {length} {what}; one each"
            )
    if not set(task.stage_props) <= {TABLE, *range(len(task.props))}:
        raise UserError(
            f"task '{task.name}': stage_props={task.stage_props} names a prop beyond the "
            f"{len(task.props)} in props"
        )
    TASKS[task.name] = task
    return task


def make_task(name: str) -> Task:
    """By its name or an alias; one that is unknown is looked for in the installed plugins.

    Raises UserError with the nearest names for an unknown one.
    """
    name = ALIASES.get(name, name)
    if name not in TASKS:
        for plugin in entry_points(group=PLUGINS):
            plugin.load()
    if name not in TASKS:
        hint = did_you_mean(name, TASKS)
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
    alter: Callable[[mujoco.MjSpec], None] | None = None,
    longest_delays: tuple[int, int] | None = None,
    make_caster: MakeCaster = RayCaster,
) -> VisuomotorEnv:
    """N worlds of `config.task`; None takes the configuration's value. The others: see
    VisuomotorEnv."""
    return VisuomotorEnv(
        config,
        make_task(config.task),
        num_envs=config.num_envs if num_envs is None else num_envs,
        seed=config.seed if seed is None else seed,
        render=render,
        device=device,
        reset_sampler=reset_sampler,
        stagger=stagger,
        alter=alter,
        longest_delays=longest_delays,
        make_caster=make_caster,
    )


__all__ = [
    "TASKS",
    "Observation",
    "StepResult",
    "Task",
    "VisuomotorEnv",
    "make_env",
    "make_task",
    "register",
]
