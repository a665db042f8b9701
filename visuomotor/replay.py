"""Demonstrations seen again: their states put back into the simulator, and what networks see there.

The file keeps physical states and actions; critic states, discriminator features, auxiliary targets
and images are derived here, so that every randomization of the images is there to learn from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import Config
from visuomotor.demonstrations import (
    LARGEST_STATE,
    Demonstrations,
    ResetStates,
    normalization,
)
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.errors import UserError
from visuomotor.policies import NUM_ARM
from visuomotor.ppo import CloningBatch
from visuomotor.rollout import Sequences
from visuomotor.symmetry import with_turned_copies

_APPEARANCE = 21  # concern of the random streams of a replay's appearances
REPLAY_WORLDS = 64  # in which frames are made
STATES_AT_ONCE = 256  # of demonstrations, put back into as many worlds
# Share of the states met, of which frames are made, in which what the hand is not at is put
# elsewhere: an episode shows many postures of the arm, but one arrangement of the props.
REARRANGED = 0.8
EARLIER_ACTIONS = 2 * 9  # numbers at the end of a state: the action executed, the one requested


class DemonstrationReplay:
    """What every step of the demonstrations looks like to the networks, without randomization.

    Copies of each, turned about the arm's base, stand behind those of the file
    (`config.turned_copies`). Lists hold one tensor a demonstration: `state` (T, S), `features`
    (T, F), `proprio` (T, 24), `aux_targets` (T, K), `stage` (T,), `actions` (T, 9), zeros where a
    file has none.

    Raises UserError for states that are not of this scene.
    """

    def __init__(self, config: Config, demos: Demonstrations):
        quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
        at_once = min(STATES_AT_ONCE, sum(len(demo.states) for demo in demos.demos))
        env = make_env(quiet, num_envs=at_once, seed=0, render=False)
        self.has_actions = all(demo.actions is not None for demo in demos.demos)
        check_states(demos, env.sim.model.nq + env.sim.model.nv, config.task)
        self.demos = with_turned_copies(env.task, demos, config.turned_copies, config.seed)
        self.actions = [
            torch.zeros(len(demo.states), 9)
            if demo.actions is None
            else torch.from_numpy(demo.actions).float()
            for demo in self.demos.demos
        ]
        lengths = [len(actions) for actions in self.actions]
        states, self.features, self.proprio, self.aux_targets, self.stage = (
            list(column.split(lengths)) for column in _look_at(env, self.demos)
        )
        self.state: list[Tensor] = []
        for state, actions in zip(states, self.actions, strict=True):
            previous = torch.cat((torch.zeros(1, 9), actions[:-1]))
            # As in the environment: the state includes the action executed and the one requested.
            self.state.append(torch.cat((state, previous, previous), dim=1))
        self.all_state = torch.cat(self.state)
        self.all_features = torch.cat(self.features)
        self.all_actions = torch.cat(self.actions)
        self._state_std = self.statistics(self.state)[1]
        self._of_motion = self.all_state.shape[1] - EARLIER_ACTIONS + torch.arange(EARLIER_ACTIONS)
        if not config.cloning.sees_velocities:
            self._of_motion = torch.cat((_velocities(env, self.demos), self._of_motion))

    def statistics(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and floored deviation over all steps, (D,) each."""
        return normalization(torch.cat(parts))

    def state_batch(self, size: int, noise: float, generator: torch.Generator) -> CloningBatch:
        """Independent steps for a state teacher, (1, size, ...); noise: in deviations of the
        state, so that the clone learns to come back.

        The earlier actions that the state ends with come from other steps: a clone that sees its
        demonstrator's last action repeats it instead of looking (de Haan et al. 2019). So do the
        velocities of arm and props without `cloning.sees_velocities`; those of the fingers stay:
        half closed, only they tell closing from opening.
        """
        chosen = torch.randint(len(self.all_state), (size,), generator=generator)
        other = torch.randint(len(self.all_state), (size,), generator=generator)
        state = self.all_state[chosen].clone()
        state[:, self._of_motion] = self.all_state[other.unsqueeze(1), self._of_motion]
        state = state + noise * self._state_std * torch.randn(state.shape, generator=generator)
        return CloningBatch(Sequences(state=state.unsqueeze(0)), self.all_actions[chosen][None])


def _look_at(env: VisuomotorEnv, demos: Demonstrations) -> tuple[Tensor, ...]:
    """Task states, features, proprioception, auxiliary targets and stages at every step of all
    demonstrations, one after the other: (M, ...) each."""
    columns: list[list[Tensor]] = [[], [], [], [], []]
    every = torch.from_numpy(np.concatenate([demo.states for demo in demos.demos]))
    for states in every.split(env.num_envs):
        n = len(states)
        env.sim.reset(torch.arange(n), states)
        seen = (
            env.task.state(),
            env.task.object_features(),
            env.jaco.proprio(env.sim.data("qpos"), env.sim.data("qvel")),
            env.task.aux_targets(),
            env.task.stage(),
        )
        for column, values in zip(columns, seen, strict=True):
            column.append(values[:n].clone())
    return tuple(torch.cat(column) for column in columns)


def _velocities(env: VisuomotorEnv, demos: Demonstrations) -> Tensor:
    """(K,) int64: the numbers of a task's state that tell of the velocities of arm and props."""
    begins = [demo.states[0] for demo in demos.demos[: env.num_envs]]
    ids = torch.arange(len(begins))
    env.sim.reset(ids, torch.from_numpy(np.stack(begins)))
    still = env.task.state()[ids].clone()
    velocities = env.sim.data("qvel")
    others = torch.randn(velocities.shape, generator=torch.Generator().manual_seed(0)).double()
    others[:, env.jaco.dof_ids[NUM_ARM:]] = velocities[:, env.jaco.dof_ids[NUM_ARM:]]
    velocities.copy_(others)
    return (env.task.state()[ids] != still).any(dim=0).nonzero().squeeze(1)


def check_states(demos: Demonstrations, width: int, task: str) -> None:
    """Raises UserError for states that are not of a scene with nq + nv = width."""
    for index, demo in enumerate(demos.demos):
        if demo.states.shape[1] != width:
            raise UserError(
                f"demonstration {index}: states have {demo.states.shape[1]} numbers behind the "
                f"time; the scene of task '{task}' has {width}: record demonstrations "
                "with visuomotor.demonstrate, or with the same robot and props"
            )
        largest = float(np.abs(demo.states).max())
        if largest > LARGEST_STATE:  # MuJoCo would put a state of its own in the place of it
            raise UserError(
                f"demonstration {index}: states reach {largest:.3g}; expected qpos in m, rad "
                f"and unit quaternions, qvel in m/s and rad/s, all below {LARGEST_STATE:g}"
            )


class ScatteredFrames:
    """Frames that each show another state in an appearance of its own. What one episode shows has
    one appearance, which a CNN would rather remember than see through.

    Args:
      config: task, camera and randomization are read.
      starts: states of demonstrations.
      seed: of states and appearances.
    """

    def __init__(self, config: Config, starts: ResetStates, seed: int):
        self._starts = starts
        self._met: np.ndarray | None = None
        self.env = make_env(
            config, num_envs=REPLAY_WORLDS, seed=seed, render=True, reset_sampler=self._start
        )
        self._next = torch.arange(REPLAY_WORLDS)  # episodes

    def _start(self, rng: np.random.Generator) -> np.ndarray | None:
        if self._met is not None:
            met = self._met[rng.integers(len(self._met))]
            return met if rng.random() >= REARRANGED else self.env.task.rearranged(met, rng)
        return None if rng.random() < 0.5 else self._starts.sample(rng, by_stage=0.0).state

    def draw(
        self, count: int, met: Tensor | None = None, *, strength: float
    ) -> tuple[Tensor, Tensor]:
        """`count` frames (M, 3, H, W) uint8 and the auxiliary targets (M, K) in m of what they
        show. met: (n, nq + nv) states of which each frame shows one; None: half of them show start
        states, half states of demonstrations. strength: of the randomization, 0 to 1."""
        self.env.strength = strength
        self._met = None if met is None else met.cpu().numpy()
        frames, targets = [], []
        for _ in range(-(-count // self.env.num_envs)):
            seen = self.env.restart(self._next)
            self._next = self._next + self.env.num_envs
            assert seen.pixels is not None
            frames.append(seen.pixels.clone())
            targets.append(seen.aux_targets.clone())
        return torch.cat(frames)[:count], torch.cat(targets)[:count]

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "next": self._next.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.env.load_state_dict(state["env"])
        self._next = state["next"].clone()
