"""Makes demonstrations with a scripted expert: `python -m visuomotor.demonstrate task=stacking`.

Writes HDF5 in robomimic's layout. Only successful episodes are kept; the command says how many
were not. The demonstrator's hand trembles: noise is added to what it asks for, the file keeps what
it asked for. Thirty demonstrations then show how small errors are put right, which is what a cloned
policy lacks first (DART: Laskey et al. 2017).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mujoco
import numpy as np
import torch

from visuomotor import __version__, experts, scripted
from visuomotor.cache import cached_path, check_cache, check_writable, revision
from visuomotor.cli import run_command
from visuomotor.config import Config
from visuomotor.demonstrations import (
    Demonstration,
    Demonstrations,
    Scene,
    load_demonstrations,
    save_demonstrations,
    successful_episode,
)
from visuomotor.envs import VisuomotorEnv, make_env, make_task
from visuomotor.errors import UserError
from visuomotor.limits import at_least, require
from visuomotor.overrides import parse_overrides
from visuomotor.progress import Progress

MAX_WORLDS = 64
DEFAULT_EPISODES = 30  # a task, as in the paper
DEFAULT_SEED = 1000  # of demonstrations made on first use
# Standard deviation of the noise, in units of the action, white. Tuned on stacking, share of 256
# episodes that a clone of 30 demonstrations stacks, without and with exploration noise of its own:
# 31 % and 1 % at 0, 47 % and 19 % at 0.1. Twice it fails half of the expert's episodes.
TREMBLING = 0.1
FINGER_TREMBLING = 2.0  # the same for fingers, as a multiple
_TREMBLE = 31  # concern of the random stream


@dataclass(frozen=True)
class DemonstrateConfig:
    task: str = "stacking"
    episodes: int = DEFAULT_EPISODES  # successful ones
    seed: int = DEFAULT_SEED
    out: str | None = None  # HDF5 file; None: demos/<task>.hdf5
    overwrite: bool = False  # replace a file that is there
    trembling: float = TREMBLING  # standard deviation of the noise on actions; 0: a steady hand


def demonstrations_for(config: Config) -> Demonstrations:
    """The run's demonstrations: its file, or thirty made on first use and kept in a cache.

    A file in the cache is made anew when the scene, the expert's settings or this package's version
    change.
    """
    quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
    env = make_env(quiet, num_envs=1, seed=0, render=False)
    load = partial(
        load_demonstrations,
        task=config.task,
        scene=_scene(env),
        control_dt=config.env.control_dt,
    )
    if config.demonstrations is not None:
        return _told(load(config.demonstrations), config.demonstrations)
    path = cached_path(
        f"{config.task}-{DEFAULT_EPISODES}",
        *(__version__, config.env.control_dt, config.env.episode_steps, TREMBLING),
        env.model_xml(),
        revision(experts, scripted, *experts.source_of(config.task)),
    )
    if not path.exists():
        check_cache(path)
        print(f"making {DEFAULT_EPISODES} demonstrations of {config.task}: {path}", file=sys.stderr)
        made, _ = _collect(quiet, DEFAULT_EPISODES, DEFAULT_SEED, TREMBLING)
        save_demonstrations(path, made)
    return load(path)


def _scene(env: VisuomotorEnv) -> Scene:
    """What a file of demonstrations must fit."""
    model, seen = env.sim.model, env.reset()
    free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
    return Scene(
        state_dim=model.nq + model.nv,
        proprio_dim=seen.proprio.shape[1],
        features_dim=seen.features.shape[1],
        num_stages=len(env.task.stages),
        free_joints=tuple(model.jnt_qposadr[free].tolist()),
    )


def _told(demonstrations: Demonstrations, path: str) -> Demonstrations:
    """The same; says so on stderr where some of them failed."""
    failed = sum(not demo.success for demo in demonstrations.demos)
    if failed > 0:
        count = len(demonstrations)
        print(
            f"warning: {path}: {failed} of {count} demonstrations failed (their attribute success "
            f"is false); all {count} are used, as if all had succeeded: leave those out",
            file=sys.stderr,
        )
    return demonstrations


def _collect(
    config: Config, episodes: int, seed: int, trembling: float
) -> tuple[Demonstrations, int]:
    """As `collect`, with a progress bar."""
    with Progress(episodes, "demonstrations", unit="episode") as bar:

        def progress(done: int, failures: int) -> None:
            bar.update(done, {"failed": str(failures)})

        return collect(config, episodes, seed, progress, trembling=trembling)


def collect(
    config: Config,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    trembling: float = TREMBLING,
) -> tuple[Demonstrations, int]:
    """`episodes` successful demonstrations in nominal worlds, and the number of failed attempts.

    trembling: standard deviation of the noise on the arm's actions, in units of the action.

    Raises UserError when most attempts fail: then the task or its settings are at fault.
    """
    quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
    num_envs = min(MAX_WORLDS, episodes)
    env = make_env(quiet, num_envs=num_envs, seed=seed, render=False, privileged=False)
    env.reset()
    demos: list[Demonstration] = []
    failures = 0
    expert = experts.make_expert(env, seed)
    tremble = _Tremble(trembling, seed)
    while len(demos) < episodes:
        batch, failed = _episodes(env, expert, tremble)
        failures += failed
        demos += batch[: episodes - len(demos)]
        if failures > 4 * episodes:
            raise UserError(
                f"the scripted expert failed {failures} times on task '{config.task}' with these "
                f"settings; valid settings are near the defaults: check trembling and env.*"
            )
        if progress is not None:
            progress(len(demos), failures)
    return Demonstrations(config.task, config.env.control_dt, demos, env.model_xml()), failures


class _Tremble:
    """The noise on what the demonstrator asks for."""

    def __init__(self, std: float, seed: int):
        numbers = np.random.SeedSequence([seed, _TREMBLE]).generate_state(1, np.uint64)
        self._generator = torch.Generator().manual_seed(int(numbers[0] >> 1))
        self._std = torch.tensor([std] * 6 + [FINGER_TREMBLING * std] * 3)

    def __call__(self, action: torch.Tensor) -> torch.Tensor:
        return action + self._std * torch.randn(action.shape, generator=self._generator)


def _episodes(
    env: VisuomotorEnv, expert: experts.Expert, tremble: _Tremble
) -> tuple[list[Demonstration], int]:
    """One episode in every world; the environment stands at a start before and after."""
    everyone = torch.arange(env.num_envs)
    expert.reset(everyone)
    seeds = env.episode_ids.tolist()
    columns: dict[str, list[torch.Tensor]] = {
        name: []
        for name in ("states", "actions", "rewards", "stages", "proprio", "features", "success")
    }
    observation = env.current()
    for _ in range(env.episode_steps):
        action = expert.act()
        columns["states"].append(env.sim.get_state(everyone))
        columns["actions"].append(action)
        columns["proprio"].append(observation.proprio)
        columns["features"].append(observation.features)
        columns["stages"].append(observation.stage)
        result = env.step(tremble(action))
        columns["rewards"].append(result.reward)
        columns["success"].append(result.success)
        observation = result.observation
    stacked = {name: torch.stack(values, dim=1).numpy() for name, values in columns.items()}
    episodes = [
        successful_episode({name: values[world] for name, values in stacked.items()}, seeds[world])
        for world in range(env.num_envs)
    ]
    demos = [episode for episode in episodes if episode is not None]
    return demos, len(episodes) - len(demos)


def _check_out(path: Path, overwrite: bool) -> None:
    """Raises UserError where something is in the way, or nothing can be written."""
    if os.path.lexists(path) and not path.is_dir():
        if not overwrite:
            raise UserError(f"out={path} is there; choose another, or overwrite=true to replace it")
        if not path.is_file():
            raise UserError(f"out={path} is there and is no plain file; choose another")
    check_writable(path, "valid: out=<a file in a folder that can be written>")


def demonstrate(argv: list[str]) -> int:
    options = parse_overrides(argv, DemonstrateConfig)
    options = replace(options, task=make_task(options.task).name)
    if options.episodes < 1:
        raise UserError(f"episodes={options.episodes}; at least 1 is needed")
    if not 0.0 <= options.trembling <= 1.0:
        raise UserError(f"trembling={options.trembling} is not valid; valid: from 0 up to 1")
    require("seed", options.seed, at_least(0))
    path = Path(f"demos/{options.task}.hdf5" if options.out is None else options.out)
    _check_out(path, options.overwrite)
    config = Config(task=options.task)
    demos, failures = _collect(config, options.episodes, options.seed, options.trembling)
    _check_out(path, options.overwrite)  # it may have appeared meanwhile
    save_demonstrations(path, demos)
    print(f"{options.episodes} demonstrations in {path}; {failures} attempts failed, left out")
    return 0


def main() -> None:
    sys.exit(run_command(demonstrate, sys.argv[1:]))


if __name__ == "__main__":
    main()
