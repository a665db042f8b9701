"""Makes demonstrations with a scripted expert: `python -m visuomotor.demonstrate task=stacking`.

Writes HDF5 in robomimic's layout. Only successful episodes are kept; the command says how many
were not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from visuomotor.config import Config
from visuomotor.demonstrations import Demonstration, Demonstrations
from visuomotor.envs import make_env
from visuomotor.errors import UserError
from visuomotor.experts import Expert

# Control steps kept after success: they show that a finished job is left alone.
STEPS_AFTER_SUCCESS = 30
MAX_WORLDS = 64


def collect(
    config: Config,
    episodes: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Demonstrations, int]:
    """`episodes` successful demonstrations in nominal worlds, and the number of failed attempts.

    Raises UserError when most attempts fail: then the task or its settings are at fault.
    """
    quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
    env = make_env(quiet, num_envs=min(MAX_WORLDS, episodes), seed=seed, render=False)
    env.reset()
    demos: list[Demonstration] = []
    failures = 0
    expert = Expert(env, seed)
    while len(demos) < episodes:
        batch, failed = _episodes(env, expert)
        failures += failed
        demos += batch[: episodes - len(demos)]
        if failures > 4 * episodes:
            raise UserError(
                f"the scripted expert failed {failures} times on task '{config.task}' with these "
                f"settings; valid settings are near the defaults: check env.* and camera.*"
            )
        if progress is not None:
            progress(len(demos), failures)
    return Demonstrations(config.task, config.env.control_dt, demos, env.model_xml()), failures


def _episodes(env, expert: Expert) -> tuple[list[Demonstration], int]:
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
        result = env.step(action)
        columns["rewards"].append(result.reward)
        columns["success"].append(result.success)
        observation = result.observation
    stacked = {name: torch.stack(values, dim=1).numpy() for name, values in columns.items()}
    demos, failed = [], 0
    for world in everyone.tolist():
        success = stacked["success"][world]
        if not success[-1]:
            failed += 1
            continue
        # The first step after which success never left again.
        lasting = len(success) - int(np.argmin(success[::-1])) if not success.all() else 0
        length = min(lasting + STEPS_AFTER_SUCCESS, env.episode_steps)
        dones = np.zeros(length, dtype=bool)
        dones[-1] = True
        demos.append(
            Demonstration(
                states=stacked["states"][world, :length],
                actions=stacked["actions"][world, :length],
                rewards=stacked["rewards"][world, :length],
                dones=dones,
                stages=stacked["stages"][world, :length],
                proprio=stacked["proprio"][world, :length],
                features=stacked["features"][world, :length],
                seed=seeds[world],
                success=True,
            )
        )
    return demos, failed
