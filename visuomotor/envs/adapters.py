"""Gymnasium and dm_env views of the same worlds; importing this module registers them.

    gymnasium.make("visuomotor/Stacking-v0")
    gymnasium.make_vec("visuomotor/Stacking-v0", num_envs=64)
    VisuomotorDmEnv(Config(task="stacking"))

Observations are a dict of `pixels` (H, W, 3) uint8, channels last as these interfaces expect, and
`proprio` (24,) float32. Actions are (9,) joint velocities in [-1, 1]. What only a simulator knows
is never among the observations: with `privileged=True` it stands in `info["privileged"]`.

Episodes end by truncation alone. The camera takes no picture of the state in which the time ran
out: there the observation holds the last picture before it, as between any two frames, and
proprioception has no noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import dm_env
import gymnasium
import numpy as np
import torch
from dm_env import specs
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import Tensor

from visuomotor.config import Config
from visuomotor.envs import TASKS, Observation, VisuomotorEnv, make_env, make_task
from visuomotor.envs.robot import NUM_JOINTS
from visuomotor.errors import UserError

PROPRIO_DIM = 24  # sin, cos of 6 joints, their velocities [rad/s], sin, cos of 3 fingers
PRIVILEGED = ("state", "features", "aux_targets")
SEED_LIMIT = 2**31  # seeds of episodes that nobody seeded are drawn below it
RENDERING: dict[str, Any] = {"render_modes": ["rgb_array"]}

Arrays = dict[str, NDArray[Any]]
Info = dict[str, Any]


class _Moment(NamedTuple):
    """What n worlds show: rows of arrays."""

    observation: Arrays  # pixels (n, H, W, 3) uint8, proprio (n, 24) float32
    info: Info  # success (n,) bool, stage (n,) int64; privileged: Arrays, where it was asked for


class _Worlds:
    """N worlds that can start over with any seed, in numpy. The first start builds them."""

    def __init__(self, config: Config, num_envs: int, privileged: bool):
        make_task(config.task)
        if num_envs < 1:
            raise UserError(f"num_envs={num_envs}; at least 1 is needed")
        self.config = config
        self.num_envs = num_envs
        self._with_privileged = privileged
        self._env: VisuomotorEnv | None = None
        self._pixels = np.zeros((0, 0, 0, 3), np.uint8)  # (N, H, W, 3) as last shown

    def start(self, seed: int, *, afresh: bool) -> _Moment:
        """New episodes in every world.

        afresh: the noise of every step starts over with the seed too. Otherwise its streams go on,
        which spares building the worlds again.
        """
        if afresh or self._env is None:
            self._env = make_env(self.config, num_envs=self.num_envs, seed=seed)
        else:
            self._env.seed = seed
        observation = self._env.reset()
        return self._see(observation, np.zeros(self.num_envs, bool))

    def step(
        self, action: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], _Moment, NDArray[Any], _Moment]:
        """action (N, 9).

        Returns reward (N,), truncated (N,), what is to be seen now (after the reset of worlds that
        ended), the worlds that ended (n,), and what they showed at their end.
        Raises ResetNeeded before the first start, UserError for a wrong action.
        """
        if self._env is None:
            raise ResetNeeded("call reset() before step()")
        expected = (self.num_envs, NUM_JOINTS)
        if action.shape != expected:
            raise UserError(f"actions of shape {action.shape}; expected {expected}")
        if not np.isfinite(action).all():
            raise UserError(f"actions {action.tolist()} are not all finite; expected -1 to 1")
        held = self._pixels
        result = self._env.step(torch.from_numpy(action.astype(np.float32)))
        success, truncated = _array(result.success), _array(result.truncated)
        ended = _array(result.final_env_ids)
        now = self._see(result.observation, success & ~truncated)
        last = result.final_observation
        final = _Moment(
            {"pixels": held[ended], "proprio": _array(last.proprio)},
            self._info(last, success[ended]),
        )
        return _array(result.reward), truncated, now, ended, final

    def frames(self) -> NDArray[np.uint8]:
        """(N, H, W, 3): what the cameras show. Raises ResetNeeded before the first start."""
        if self._env is None:
            raise ResetNeeded("call reset() before render()")
        return self._pixels.copy()

    def close(self) -> None:
        """Frees the worlds; a start builds them again."""
        self._env = None

    def _see(self, observation: Observation, success: NDArray[Any]) -> _Moment:
        assert observation.pixels is not None
        self._pixels = _array(observation.pixels.permute(0, 2, 3, 1))
        seen = {"pixels": self._pixels.copy(), "proprio": _array(observation.proprio)}
        return _Moment(seen, self._info(observation, success))

    def _info(self, observation: Observation, success: NDArray[Any]) -> Info:
        info: Info = {"success": success, "stage": _array(observation.stage)}
        if self._with_privileged:
            info["privileged"] = {name: _array(getattr(observation, name)) for name in PRIVILEGED}
        return info


class _World:
    """One world whose next episode begins when the caller says so."""

    def __init__(self, config: Config, privileged: bool):
        self._worlds = _Worlds(config, 1, privileged)
        # The worlds reset themselves: the first moment of the next episode waits here.
        self._next: _Moment | None = None
        self.frames = self._worlds.frames
        self.close = self._worlds.close

    def start(self, seed: int, *, afresh: bool) -> tuple[Arrays, Info]:
        """A new episode: the one that waits, unless the seed starts everything afresh."""
        waiting, self._next = self._next, None
        if waiting is None or afresh:
            waiting = self._worlds.start(seed, afresh=afresh)
        return _only_row(waiting)

    def step(self, action: NDArray[Any]) -> tuple[Arrays, float, bool, Info]:
        """action (9,). Returns observation, reward, truncated, info.

        Raises ResetNeeded when the episode is over, UserError for a wrong action.
        """
        if self._next is not None:
            raise ResetNeeded("the episode is over: call reset() before step()")
        reward, truncated, now, _, final = self._worlds.step(np.asarray(action)[None])
        over = bool(truncated[0])
        if over:
            self._next = now
        seen, info = _only_row(final if over else now)
        return seen, float(reward[0]), over, info


class VisuomotorGymEnv(gymnasium.Env[dict[str, Any], NDArray[Any]]):
    """One world.

    Args:
      task: a task's name; None takes the configuration's.
      config: everything else of the world, e.g. `randomization.strength`.
      privileged: adds `info["privileged"]`: state, features and aux_targets, float32.
      render_mode: None or "rgb_array", the policy's own camera.

    Raises UserError for an unknown task. `info` holds `success` and `stage`.
    """

    metadata = RENDERING  # gymnasium.make reads the class's; an instance adds its frame rate

    def __init__(
        self,
        task: str | None = None,
        *,
        config: Config | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
    ):
        config = _configure(config, task)
        self._world = _World(config, privileged)
        self.metadata = _metadata(config)
        self.render_mode = _check_render_mode(render_mode)
        self.observation_space = _observation_space(config)
        self.action_space = _action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, Info]:
        """With a seed, all that follows depends on it alone. `options` are not used."""
        super().reset(seed=seed)
        if seed is not None:
            return self._world.start(seed, afresh=True)
        return self._world.start(int(self.np_random.integers(SEED_LIMIT)), afresh=False)

    def step(self, action: NDArray[Any]) -> tuple[Arrays, float, bool, bool, Info]:
        """Raises ResetNeeded when the episode is over, UserError for a wrong action."""
        seen, reward, truncated, info = self._world.step(action)
        return seen, reward, False, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """(H, W, 3) with render_mode="rgb_array"."""
        return self._world.frames()[0] if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        self._world.close()


class VisuomotorVectorEnv(VectorEnv[Arrays, NDArray[Any], NDArray[Any]]):
    """N worlds with SAME_STEP autoreset: `info` has `final_obs` and `final_info` of those that end.

    The arguments are those of VisuomotorGymEnv. World i plays the episodes i, i + N, i + 2N ... of
    the seed. Each key of `info` comes with a mask `_key` (N,) of the worlds that have it.
    """

    def __init__(
        self,
        task: str | None = None,
        *,
        num_envs: int = 1,
        config: Config | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
    ):
        config = _configure(config, task)
        self._worlds = _Worlds(config, num_envs, privileged)
        self.num_envs = num_envs
        self.metadata = _metadata(config) | {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = _check_render_mode(render_mode)
        self.single_observation_space = _observation_space(config)
        self.single_action_space = _action_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, Info]:
        """New episodes in every world. `options` must not ask for a part of them.

        Raises UserError for options["reset_mask"]: worlds reset themselves.
        """
        super().reset(seed=seed)
        if options is not None and "reset_mask" in options:
            raise UserError("options['reset_mask'] is not supported: worlds reset themselves")
        afresh = seed is not None
        start = seed if seed is not None else int(self.np_random.integers(SEED_LIMIT))
        now = self._worlds.start(start, afresh=afresh)
        return now.observation, self._spread(now.info, np.arange(self.num_envs))

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Arrays, NDArray[Any], NDArray[Any], NDArray[Any], Info]:
        """actions (N, 9). Raises ResetNeeded before the first reset, UserError for wrong ones."""
        reward, truncated, now, ended, final = self._worlds.step(np.asarray(actions))
        info = self._spread(now.info, np.arange(self.num_envs))
        if len(ended) > 0:
            last = np.full(self.num_envs, None, dtype=object)
            for row, world in enumerate(ended):
                last[world] = {name: array[row] for name, array in final.observation.items()}
            info |= {"final_obs": last, "_final_obs": truncated.copy()}
            info |= {"final_info": self._spread(final.info, ended)}
            info |= {"_final_info": truncated.copy()}
        terminated = np.zeros(self.num_envs, bool)
        return now.observation, reward.astype(np.float64), terminated, truncated, info

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """N frames (H, W, 3) with render_mode="rgb_array"."""
        return tuple(self._worlds.frames()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        self._worlds.close()

    def _spread(self, info: Info, env_ids: NDArray[Any]) -> Info:
        """Rows of `env_ids` (n,) -> rows of all worlds, and for each key the mask of the n."""
        spread: Info = {}
        for name, value in info.items():
            mask = np.zeros(self.num_envs, bool)
            mask[env_ids] = True
            if isinstance(value, dict):
                spread[name] = self._spread(value, env_ids)
            else:
                spread[name] = np.zeros((self.num_envs, *value.shape[1:]), value.dtype)
                spread[name][env_ids] = value
            spread[f"_{name}"] = mask
        return spread


class VisuomotorDmEnv(dm_env.Environment):
    """One world for dm_env. The discount at the time limit is 1: the world goes on, unseen.

    Args:
      config: the world; `config.seed` seeds its episodes.
      privileged: adds `info["privileged"]`: state, features and aux_targets, float32.

    `info` of the last step stands beside the interface, which has no place for it.
    """

    def __init__(self, config: Config | None = None, *, privileged: bool = False):
        self._config = _configure(config, None)
        self._world = _World(self._config, privileged)
        self._rng = np.random.default_rng(self._config.seed)
        self._fresh = True  # not started yet
        self._over = True  # the next step starts an episode
        self.info: Info = {}

    def reset(self) -> dm_env.TimeStep:
        """The first episode is that of the seed."""
        seed = self._config.seed if self._fresh else int(self._rng.integers(SEED_LIMIT))
        observation, self.info = self._world.start(seed, afresh=self._fresh)
        self._fresh = self._over = False
        return dm_env.restart(observation)

    def step(self, action: NDArray[Any]) -> dm_env.TimeStep:
        """Starts an episode, and ignores the action, where none is under way."""
        if self._over:
            return self.reset()
        observation, reward, self._over, self.info = self._world.step(action)
        if self._over:
            return dm_env.truncation(reward, observation, discount=1.0)
        return dm_env.transition(reward, observation, discount=1.0)

    def observation_spec(self) -> dict[str, specs.Array]:
        camera = self._config.camera
        shape = (camera.height, camera.width, 3)
        return {
            "pixels": specs.BoundedArray(shape, np.uint8, 0, 255, name="pixels"),
            "proprio": specs.Array((PROPRIO_DIM,), np.float32, name="proprio"),
        }

    def action_spec(self) -> specs.BoundedArray:
        return specs.BoundedArray((NUM_JOINTS,), np.float32, -1.0, 1.0, name="joint_velocities")

    def close(self) -> None:
        self._world.close()
        self._fresh = self._over = True


def _only_row(moment: _Moment) -> tuple[Arrays, Info]:
    """The one world of a moment; success and stage as Python's own bool and int."""
    info: Info = {}
    for name, value in moment.info.items():
        single = isinstance(value, dict)
        info[name] = {k: v[0].copy() for k, v in value.items()} if single else value[0].item()
    return {name: array[0].copy() for name, array in moment.observation.items()}, info


def _array(tensor: Tensor) -> NDArray[Any]:
    """A copy with channels where they say they are: callers may keep and change it."""
    return np.array(tensor.cpu().numpy(), order="C")


def _configure(config: Config | None, task: str | None) -> Config:
    config = Config() if config is None else config
    return config if task is None else replace(config, task=task)


def _check_render_mode(render_mode: str | None) -> str | None:
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"render_mode='{render_mode}' is unknown; valid: None, 'rgb_array'")
    return render_mode


def _metadata(config: Config) -> dict[str, Any]:
    return RENDERING | {"render_fps": 1.0 / config.env.control_dt}


def _observation_space(config: Config) -> spaces.Dict:
    camera = config.camera
    return spaces.Dict(
        {
            "pixels": spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8),
            # Unbounded: the noise of proprioception is Gaussian.
            "proprio": spaces.Box(-np.inf, np.inf, (PROPRIO_DIM,), np.float32),
        }
    )


def _action_space() -> spaces.Box:
    return spaces.Box(-1.0, 1.0, (NUM_JOINTS,), np.float32)


def register() -> None:
    """Registers `visuomotor/<Task>-v0` for every task; again is harmless."""
    for task in TASKS:
        name = f"visuomotor/{task.title().replace('_', '')}-v0"
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:VisuomotorGymEnv",
                vector_entry_point=f"{__name__}:VisuomotorVectorEnv",
                kwargs={"task": task},
            )


register()
