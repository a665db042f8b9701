"""The only door to the simulated world: TASKS and make_env()."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import TypeVar

import mujoco
import torch

from visuomotor.config import Config
from visuomotor.envs.camera import MakeCaster, RayCaster
from visuomotor.envs.environment import Observation, ResetSampler, StepResult, VisuomotorEnv
from visuomotor.envs.tasks import ALIASES, TASKS, Task
from visuomotor.envs.tasks.task import TABLE
from visuomotor.errors import NAMES, UserError, did_you_mean, is_finite, is_name

_TaskType = TypeVar("_TaskType", bound=type[Task])

# Group of entry points: modules that register tasks, or factors of any task, when imported.
PLUGINS = "visuomotor.tasks"

# What `Task` only declares: every task says these itself.
_TOLD = ("name", "episode_steps", "stages", "stage_rewards", "props", "stage_props")
_TUPLES = ("stages", "stage_rewards", "props", "stage_props", "prop_symmetry", "turning")
_TURNINGS = ("prop", "ways", "neighbours", "arm", "hand")


def register(task: _TaskType) -> _TaskType:
    """Makes a task known by its name to every command; also as a decorator.

    Raises UserError where something is missing or cannot be, where the name is taken, or where
    stages, rewards and props do not agree.
    """
    _check_whole(task)
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
    for what in ("prop_symmetry", "turning"):
        length = len(getattr(task, what))
        if length not in (0, len(task.props)):
            raise UserError(
                f"task '{task.name}' has {len(task.props)} props and {length} {what}; one each, "
                "or none at all"
            )
    if not all(isinstance(ways, int) and ways >= 1 for ways in task.prop_symmetry):
        raise UserError(
            f"task '{task.name}': prop_symmetry={task.prop_symmetry}; valid: whole numbers from 1"
        )
    unknown = [by for by in task.turning if by not in _TURNINGS]
    if unknown:
        raise UserError(
            f"task '{task.name}': turning names {unknown[0]!r}; valid: {', '.join(_TURNINGS)}"
        )
    TASKS[task.name] = task
    return task


def _check_whole(task: type[Task]) -> None:
    """Raises UserError where a task lacks an attribute or a method, or has one of another type."""
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise UserError(f"{task!r} is no task: a subclass of visuomotor.envs.Task is")
    if hasattr(task, "name") and not is_name(task.name):
        raise UserError(f"a task cannot be called {task.name!r}; valid: {NAMES}")
    called = f"task '{task.name}'" if hasattr(task, "name") else f"task {task.__name__}"
    missing = [what for what in _TOLD if not hasattr(task, what)]
    missing += [f"{method}()" for method in sorted(task.__abstractmethods__)]
    if missing:
        raise UserError(f"{called} has no {', no '.join(missing)}")
    # ("block") is no tuple, and has five letters.
    loose = [what for what in _TUPLES if not isinstance(getattr(task, what), tuple)]
    if loose:
        raise UserError(f"{called}: {loose[0]}={getattr(task, loose[0])!r} is no tuple")
    if not isinstance(task.episode_steps, int) or task.episode_steps < 1:
        raise UserError(
            f"{called}: episode_steps={task.episode_steps!r}; valid: a whole number from 1"
        )
    shorter = task.training_steps
    if shorter is not None and not (isinstance(shorter, int) and shorter >= 1):
        raise UserError(
            f"{called}: training_steps={shorter!r}; valid: a whole number from 1, or None"
        )
    for what in ("stages", "props"):
        names = getattr(task, what)
        told = all(isinstance(name, str) and name for name in names)
        if not told or len(set(names)) < len(names):
            raise UserError(f"{called}: {what}={names!r}; valid: names that differ")
    if not task.stages:
        raise UserError(f"{called} has no stage; the last one is success")
    if not all(map(is_finite, task.stage_rewards)):
        raise UserError(f"{called}: stage_rewards={task.stage_rewards!r}; valid: finite numbers")
    if not is_finite(task.workspace) or task.workspace <= 0.0:
        raise UserError(f"{called}: workspace={task.workspace!r}; valid: a length in m, above 0")


def in_training(config: Config) -> Config:
    """The settings with episodes as a pixel policy meets them in training: of the task's
    `training_steps`, where `env.episode_steps` does not say."""
    steps = make_task(config.task).training_steps
    if config.env.episode_steps is not None or steps is None:
        return config
    return replace(config, env=replace(config.env, episode_steps=steps))


def make_task(name: str) -> Task:
    """By its name or an alias, with the installed plugins' tasks and factors.

    Raises UserError with the nearest names for an unknown one.
    """
    broken = _load_plugins()
    name = ALIASES.get(name, name)
    if name not in TASKS:
        hint = did_you_mean(name, TASKS)
        told = "".join(f"; {line}" for line in broken)
        raise UserError(
            f"unknown task '{name}'{hint}; tasks: {', '.join(TASKS)}{told}; one of your own is "
            "known to the commands of its own file (python <file> evaluate ...), or by an entry "
            "point of its package (docs/your_own_task.md)"
        )
    return TASKS[name]()


def source_of(task: Task) -> list[ModuleType]:
    """The modules of a task and of the tasks that it derives from."""
    kinds = [kind for kind in type(task).__mro__ if issubclass(kind, Task)]
    modules = [sys.modules[name] for name in dict.fromkeys(kind.__module__ for kind in kinds)]
    # An interactive session's has no file.
    return [module for module in modules if getattr(module, "__file__", None) is not None]


@cache
def _load_plugins() -> tuple[str, ...]:
    """-> a line for each that cannot be imported, also told once: its factors are missing."""
    broken = []
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception as error:  # a stranger's module may raise anything
            line = f"plugin {plugin.value} cannot be imported: {type(error).__name__}: {error}"
            print(line, file=sys.stderr)
            broken.append(line)
    return tuple(broken)


def make_env(
    config: Config,
    *,
    num_envs: int | None = None,
    seed: int | None = None,
    render: bool = True,
    privileged: bool = True,
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
        privileged=privileged,
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
    "in_training",
    "make_env",
    "make_task",
    "register",
]
