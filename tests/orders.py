"""Worlds of order fulfilment, and states placed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from visuomotor.config import Config, EnvConfig, RandomizationConfig
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.envs.tasks.order_fulfillment import TOYS


def orders_config(strength: float = 0.0) -> Config:
    randomization = RandomizationConfig(strength=strength)
    return Config(
        task="order_fulfillment", randomization=randomization, env=EnvConfig(num_threads=1)
    )


def orders_env(
    num_envs: int, strength: float = 0.0, seed: int = 0, render: bool = False, **changes
):
    config = orders_config(strength)
    config = replace(config, env=replace(config.env, **changes))
    env = make_env(config, num_envs=num_envs, seed=seed, render=render)
    env.reset()
    return env


def start_with(env: VisuomotorEnv, present: tuple[int, ...]) -> np.ndarray:
    """A start state with these toys."""
    wanted = [index in present for index in TOYS]
    for seed in range(1000):
        state = env.task.start_state(np.random.default_rng(seed))
        if env.task.props_present(state)[:4].tolist() == wanted:
            return state
    raise AssertionError(present)


def put(env: VisuomotorEnv, state: np.ndarray, prop: int, pos: np.ndarray) -> np.ndarray:
    adr = env.task._prop_qpos_ids[prop]
    moved = state.copy()
    moved[adr : adr + 3] = pos
    return moved


def into(env: VisuomotorEnv, state: np.ndarray, toy: int, box: int, offset=(0.0, 0.0, 0.02)):
    adr = env.task._prop_qpos_ids[box]
    w, z = state[adr + 3], state[adr + 6]
    yaw = 2.0 * np.arctan2(z, w)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    return put(env, state, toy, state[adr : adr + 3] + turn @ np.asarray(offset))


def set_worlds(env: VisuomotorEnv, *states: np.ndarray) -> None:
    """The worlds in these states, the last one in all that are left."""
    rows = [*states, *[states[-1]] * (env.num_envs - len(states))]
    env.sim.reset(torch.arange(env.num_envs), torch.from_numpy(np.stack(rows)))
