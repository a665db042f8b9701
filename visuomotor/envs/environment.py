"""N worlds of one task: the one owner of the order of a step.

action (delayed or dropped) -> substeps -> task reward, stage and success -> time limit -> observe
the final state of worlds that end -> reset those worlds (randomize, then start state) -> camera ->
observe. Knows no learner.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.config import Config, EnvConfig
from visuomotor.envs import robot, scene
from visuomotor.envs.camera import MakeCaster, RayCaster
from visuomotor.envs.camera_sensor import CameraSensor
from visuomotor.envs.mujoco_cpu import MujocoCpuSimulation
from visuomotor.envs.tasks import Task
from visuomotor.randomization import Randomizer

# Concerns of the random streams of an episode: default_rng([seed, concern, episode_id]). So that an
# episode is the same in whichever world it runs, and beside whichever others.
_START, _FACTORS, _TASK = 1, 2, 3
# ... of the noise on each of its frames: [seed, concern, episode_id, control step].
_PIXELS = 11
# ... and of the noise of so many control steps, drawn at once: [seed, concern, episode_id, part].
_PROPRIO, _DROPS = 12, 13
PART = 25


# At most so many groups of a staggered environment's worlds end one after the other; a group ends
# together, since a reset of four worlds costs little more than one of a single world.
STAGGERED_GROUPS = 32


class ResetSampler(Protocol):
    """Start states from elsewhere, e.g. demonstrations."""

    def __call__(self, rng: np.random.Generator) -> np.ndarray | None:
        """(nq + nv,) or None for the task's initial distribution."""
        ...


class Observation(NamedTuple):
    """What one control step shows. Only `pixels` and `proprio` may reach the actor."""

    pixels: Tensor | None  # (N, 3, H, W) uint8, held between frames; None without rendering
    new_frame: Tensor  # (N,) bool: pixels changed at this step
    proprio: Tensor  # (N, 24) float32
    state: Tensor  # (N, S) float32: critic and teacher
    features: Tensor  # (N, F) float32: discriminator
    # (N, K) float32 in m: auxiliary heads; as they were when `pixels` were exposed, or are, if None
    aux_targets: Tensor
    stage: Tensor  # (N,) int64


class StepResult(NamedTuple):
    observation: Observation  # of the next episode where one ended
    reward: Tensor  # (N,) float32, the task's
    success: Tensor  # (N,) bool
    stage: Tensor  # (N,) int64, before any reset
    features: Tensor  # (N, F) float32, before any reset
    terminated: Tensor  # (N,) bool; never here: episodes have a fixed length
    truncated: Tensor  # (N,) bool: the time is up
    final_env_ids: Tensor  # (n,) int64: worlds that ended
    final_observation: Observation  # of these worlds before their reset, (n, ...); no pixels


def physics_timestep(env: EnvConfig, task: Task) -> float:
    """-> s: the configured one, or one that the task can do with where that is too long."""
    if env.physics_dt <= task.longest_physics_dt:
        return env.physics_dt
    return env.control_dt / math.ceil(env.control_dt / task.longest_physics_dt - 1e-9)


class VisuomotorEnv:
    """The environment.

    Args:
      config: task, env, camera and randomization are read.
      task: the task's object.
      num_envs: N.
      seed: of episodes and of noise.
      render: False for learners that never look.
      privileged: False where nobody learns: `state` and, without rendering, `aux_targets` of
        observations are left out, (N, 0); they cost more than all else beside the physics.
      device: of observations; physics stays where its backend is.
      reset_sampler: where episodes may start besides the task's initial distribution.
      stagger: the first episodes end spread over one episode's length, so that worlds do not
        move in step.
      alter: changes the scene, task and all, before it is compiled.
      longest_delays: of camera and actions, control steps, where they may be longer than the ranges
        of the randomization say.
      make_caster: what draws; the ray-caster, but where worlds are held out.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        *,
        num_envs: int,
        seed: int,
        render: bool = True,
        privileged: bool = True,
        device: torch.device | None = None,
        reset_sampler: ResetSampler | None = None,
        stagger: bool = False,
        alter: Callable[[mujoco.MjSpec], None] | None = None,
        longest_delays: tuple[int, int] | None = None,
        make_caster: MakeCaster = RayCaster,
    ):
        self.config = config
        self.task = task
        self.num_envs = num_envs
        self.seed = seed
        self.privileged = privileged
        self.device = torch.device("cpu") if device is None else device
        self.reset_sampler = reset_sampler
        self.strength = config.randomization.strength
        env = replace(config.env, physics_dt=physics_timestep(config.env, task))
        self.episode_steps = task.episode_steps if env.episode_steps is None else env.episode_steps
        self.control_dt = env.control_dt
        spec = scene.build_spec(env, config.camera)
        task.add_props(spec)
        if config.randomization.appearance.clutter[1] > 0:
            scene.add_clutter(spec, task.workspace)
        if alter is not None:
            alter(spec)
        model = spec.compile()
        self._xml = spec.to_xml()
        self.randomizer = Randomizer(config.randomization, model)
        self.sim = MujocoCpuSimulation(
            model,
            num_envs,
            substeps=round(env.control_dt / env.physics_dt),
            fields=self.randomizer.fields,
            num_threads=env.num_threads,
        )
        task.bind(self.sim)
        self.jaco = task.jaco
        self._everyone = torch.arange(num_envs)
        self._nothing = torch.zeros(num_envs, 0)
        self._stagger = stagger
        latency = config.randomization.latency
        if longest_delays is None:
            longest_delays = (latency.camera_delay[1], latency.action_delay[1])
        self.camera: CameraSensor | None = None
        if render:
            caster = make_caster(
                self.sim, config.camera, self.sim.fields, self.device, env.num_threads
            )
            self.camera = CameraSensor(
                caster,
                config.camera,
                num_envs,
                max_delay=longest_delays[0],
                num_targets=task.aux_targets().shape[1],
            )
        self.elapsed = torch.zeros(num_envs, dtype=torch.int64)  # control steps
        self.episode_ids = self._everyone.clone()
        self.from_initial = torch.ones(num_envs, dtype=torch.bool)
        defaults = self.randomizer.default()
        self.factors = np.tile(defaults, (num_envs, 1))  # (N, K) drawn values of this episode
        self._sensor = self.randomizer.sensor(self.factors)
        self._actions = torch.zeros(num_envs, longest_delays[1] + 1, robot.NUM_JOINTS)
        self._executed = torch.zeros(num_envs, robot.NUM_JOINTS)
        # Of the control steps of this part: noise before it is scaled, and what decides on drops.
        self._proprio_noise = torch.zeros(num_envs, PART, robot.PROPRIO_DIM)
        self._drop_draws = torch.zeros(num_envs, PART)

    def reset(self) -> Observation:
        """Starts every world's first episode."""
        self.episode_ids = self._everyone.clone()
        self._start_episodes(self._everyone)
        if self._stagger:
            groups = min(self.num_envs, STAGGERED_GROUPS)
            group = self._everyone * groups // self.num_envs
            self.elapsed = group * self.episode_steps // groups
            self._draw_noise(self._everyone)
        return self._observe(self._everyone)

    def restart(self, episodes: Tensor) -> Observation:
        """episodes (N,) int64: every world starts the episode of this number now."""
        self.episode_ids = episodes.clone()
        self._start_episodes(self._everyone)
        return self._observe(self._everyone)

    def current(self) -> Observation:
        """What the worlds show now; pixels are left out."""
        camera, self.camera = self.camera, None
        observation = self._observe(self._everyone[:0])
        self.camera = camera
        return observation

    def model_xml(self) -> str:
        """The scene as MJCF; meshes are named, not contained."""
        return self._xml

    def step(self, action: Tensor, moving: Tensor | None = None) -> StepResult:
        """action (N, 9) in [-1, 1]: joint velocities, as shares of `jaco.velocity_limits`.
        moving (n,): the worlds in which time goes on, None: in all. An episode's steps are counted
        in the others, too."""
        self._act(action)
        if moving is None:
            self.sim.step()
        else:
            self.sim.step(moving)
        self.elapsed += 1
        stage = self.task.stage()
        reward = self.task.reward(stage)
        truncated = self.elapsed >= self.episode_steps
        terminated = torch.zeros_like(truncated)
        features = self.task.object_features()
        ended = truncated.nonzero().squeeze(1)
        self._draw_noise(((self.elapsed % PART == 0) & ~truncated).nonzero().squeeze(1))
        final = self._final_observation(ended, stage, features)
        if len(ended) > 0:
            self.episode_ids[ended] += self.num_envs
            self._start_episodes(ended)
        # Where nothing has begun anew, what was counted still holds.
        known = (stage, features) if len(ended) == 0 else None
        return StepResult(
            observation=self._observe(ended, known),
            reward=reward.to(self.device),
            success=self.task.success(stage).to(self.device),
            stage=stage.to(self.device),
            features=features.to(self.device),
            terminated=terminated.to(self.device),
            truncated=truncated.to(self.device),
            final_env_ids=ended.to(self.device),
            final_observation=final,
        )

    def _act(self, action: Tensor) -> None:
        """Queues the action, picks the one whose delay is over, drops some."""
        self._actions = self._actions.roll(1, dims=1)
        self._actions[:, 0] = action.detach().to("cpu", torch.float32).clamp(-1.0, 1.0)
        due = self._actions[self._everyone, self._sensor.action_delay]
        draws = self._drop_draws[self._everyone, self.elapsed % PART]
        dropped = draws < self._sensor.action_drop
        self._executed = torch.where(dropped.unsqueeze(1), self._executed, due)
        self.sim.data("ctrl").copy_(self.jaco.ctrl(self._executed))

    def _start_episodes(self, env_ids: Tensor) -> None:
        ids = env_ids.tolist()
        episodes = self.episode_ids[env_ids].tolist()
        factors = np.stack(
            [
                self.randomizer.draw(np.random.default_rng([self.seed, _FACTORS, e]), self.strength)
                for e in episodes
            ]
        )
        self.factors[ids] = factors
        self.randomizer.apply(self.sim, env_ids, factors)
        self._sensor = self.randomizer.sensor(self.factors)
        self.task.vary(env_ids, [np.random.default_rng([self.seed, _TASK, e]) for e in episodes])
        heights = self.task.rest_heights().expand(self.num_envs, -1)[env_ids].numpy()
        states = []
        for i, (world, episode) in enumerate(zip(ids, episodes, strict=True)):
            rng = np.random.default_rng([self.seed, _START, episode])
            state = None if self.reset_sampler is None else self.reset_sampler(rng)
            self.from_initial[world] = state is None
            states.append(self.task.start_state(rng, heights[i]) if state is None else state)
        self.sim.reset(env_ids, torch.from_numpy(np.stack(states)))
        self.elapsed[env_ids] = 0
        self._draw_noise(env_ids)
        self._actions[env_ids] = 0.0
        self._executed[env_ids] = 0.0

    def _draw_noise(self, env_ids: Tensor) -> None:
        """Of the part of an episode in which these worlds are."""
        parts = (self.elapsed[env_ids] // PART).tolist()
        episodes = self.episode_ids[env_ids].tolist()
        for world, episode, part in zip(env_ids.tolist(), episodes, parts, strict=True):
            rng = np.random.default_rng([self.seed, _PROPRIO, episode, part])
            noise = rng.standard_normal((PART, robot.PROPRIO_DIM), dtype=np.float32)
            self._proprio_noise[world] = torch.from_numpy(noise)
            rng = np.random.default_rng([self.seed, _DROPS, episode, part])
            self._drop_draws[world] = torch.from_numpy(rng.random(PART, dtype=np.float32))

    def _frame_seeds(self, env_ids: Tensor) -> list[int]:
        """Of the noise on a frame of each of these worlds that is taken now."""
        moments = torch.stack((self.episode_ids[env_ids], self.elapsed[env_ids]), dim=1)
        return [_mix(self.seed, _PIXELS, *moment) for moment in moments.tolist()]

    def _proprio(self) -> Tensor:
        proprio = self.jaco.proprio(self.sim.data("qpos"), self.sim.data("qvel"))
        noise = self._proprio_noise[self._everyone, self.elapsed % PART]
        return proprio + noise * self._sensor.proprio_noise.unsqueeze(1)

    def _state(self) -> Tensor:
        """The task's state, the action executed and the newest one, which with a delay is on its
        way. With one of more than a step, those between the two are left out."""
        if not self.privileged:
            return self._nothing
        return torch.cat((self.task.state(), self._executed, self._actions[:, 0]), dim=1)

    def _targets(self) -> Tensor:
        wanted = self.privileged or self.camera is not None
        return self.task.aux_targets() if wanted else self._nothing

    def _observe(self, started: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Observation:
        """started (n,): worlds just reset. known: stage and features of now, where counted."""
        stage, features = known or (self.task.stage(), self.task.object_features())
        targets = self._targets()
        if self.camera is None:
            pixels, new_frame = None, torch.zeros(self.num_envs, dtype=torch.bool)
        else:
            pixels, new_frame, targets = self.camera.observe(
                self.elapsed, started, self._sensor, targets, self._frame_seeds
            )
        return Observation(
            pixels=pixels,
            new_frame=new_frame.to(self.device),
            proprio=self._proprio().to(self.device),
            state=self._state().to(self.device),
            features=features.to(self.device),
            aux_targets=targets.to(self.device),
            stage=stage.to(self.device),
        )

    def _final_observation(self, ended: Tensor, stage: Tensor, features: Tensor) -> Observation:
        """Before the reset; without noise, since only the critic bootstraps from it."""
        if len(ended) == 0:
            none = torch.zeros(0)
            return Observation(None, none.bool(), none, none, none, none, none.long())
        proprio = self.jaco.proprio(self.sim.data("qpos"), self.sim.data("qvel"))
        parts = (proprio, self._state(), features, self._targets(), stage)
        rows = [part[ended].to(self.device) for part in parts]
        return Observation(None, torch.zeros(len(ended), dtype=torch.bool), *rows)

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs in an environment of the same seed."""
        state: dict[str, Any] = {
            "sim": self.sim.state_dict(),
            "elapsed": self.elapsed.clone(),
            "episode_ids": self.episode_ids.clone(),
            "from_initial": self.from_initial.clone(),
            "factors": torch.from_numpy(self.factors.copy()),
            "actions": self._actions.clone(),
            "executed": self._executed.clone(),
            "strength": self.strength,
        }
        if self.camera is not None:
            state["camera"] = self.camera.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sim.load_state_dict(state["sim"])
        self.elapsed = state["elapsed"].clone()
        self.episode_ids = state["episode_ids"].clone()
        self.from_initial = state["from_initial"].clone()
        self.factors = state["factors"].numpy().copy()
        self._sensor = self.randomizer.sensor(self.factors)
        self._actions = state["actions"].clone()
        self._executed = state["executed"].clone()
        self.strength = float(state["strength"])
        self._draw_noise(self._everyone)
        if self.camera is not None:
            self.camera.load_state_dict(state["camera"])


def _mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
