"""Demonstrations seen again: their states put back into the simulator, and what networks see there.

The file keeps physical states and actions; critic states, discriminator features, auxiliary targets
and images are derived here, so that every randomization of the images is there to learn from.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from visuomotor.config import Config
from visuomotor.demonstrations import Demonstrations, ResetStates, normalization
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.errors import UserError
from visuomotor.ppo import CloningBatch
from visuomotor.rollout import Sequences

_APPEARANCE = 21  # concern of the random streams of a replay's appearances
REPLAY_WORLDS = 64
LARGEST_STATE = 1e6  # m, rad, m/s or rad/s: beyond it a number is damage
EARLIER_ACTIONS = 2 * 9  # numbers at the end of a state: the action executed, the one requested


class DemonstrationReplay:
    """What every step of the demonstrations looks like to the networks, without randomization.

    Lists hold one tensor a demonstration: `state` (T, S), `features` (T, F), `proprio` (T, 24),
    `aux_targets` (T, K), `stage` (T,), `actions` (T, 9), zeros where a file has none.

    Raises UserError for states that are not of this scene.
    """

    def __init__(self, config: Config, demos: Demonstrations):
        self.demos = demos
        quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
        env = make_env(quiet, num_envs=REPLAY_WORLDS, seed=0, render=False)
        self.state: list[Tensor] = []
        self.features: list[Tensor] = []
        self.proprio: list[Tensor] = []
        self.aux_targets: list[Tensor] = []
        self.stage: list[Tensor] = []
        self.actions: list[Tensor] = []
        self.has_actions = all(demo.actions is not None for demo in demos.demos)
        width = env.sim.model.nq + env.sim.model.nv
        for index, demo in enumerate(demos.demos):
            if demo.states.shape[1] != width:
                raise UserError(
                    f"demonstration {index}: states have {demo.states.shape[1]} numbers behind the "
                    f"time; the scene of task '{config.task}' has {width}: record demonstrations "
                    "with visuomotor.demonstrate, or with the same robot and props"
                )
            largest = float(np.abs(demo.states).max())
            if largest > LARGEST_STATE:  # MuJoCo would put a state of its own in the place of it
                raise UserError(
                    f"demonstration {index}: states reach {largest:.3g}; expected qpos in m, rad "
                    f"and unit quaternions, qvel in m/s and rad/s, all below {LARGEST_STATE:g}"
                )
            columns: list[list[Tensor]] = [[], [], [], [], []]
            for ids, states in _chunks(torch.from_numpy(demo.states), env.num_envs):
                env.sim.reset(ids, states)
                task, n = env.task, len(ids)
                seen = (
                    task.state(),
                    task.object_features(),
                    env.jaco.proprio(env.sim.data("qpos"), env.sim.data("qvel")),
                    task.aux_targets(),
                    task.stage(),
                )
                for column, values in zip(columns, seen, strict=True):
                    column.append(values[:n].clone())
            state, features, proprio, aux_targets, stage = (torch.cat(c) for c in columns)
            actions = (
                torch.zeros(len(state), 9)
                if demo.actions is None
                else torch.from_numpy(demo.actions).float()
            )
            previous = torch.cat((torch.zeros(1, 9), actions[:-1]))
            # As in the environment: the state includes the action executed and the one requested.
            self.state.append(torch.cat((state, previous, previous), dim=1))
            self.features.append(features)
            self.proprio.append(proprio)
            self.aux_targets.append(aux_targets)
            self.stage.append(stage)
            self.actions.append(actions)
        self.all_state = torch.cat(self.state)
        self.all_features = torch.cat(self.features)
        self.all_actions = torch.cat(self.actions)

    def statistics(self, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and floored deviation over all steps, (D,) each."""
        return normalization(torch.cat(parts))

    def state_batch(self, size: int, noise: float, generator: torch.Generator) -> CloningBatch:
        """Independent steps for a state teacher, (1, size, ...); noise: in deviations of the
        state, so that the clone learns to come back.

        The earlier actions that the state ends with come from other steps: a clone that sees its
        demonstrator's last action repeats it instead of looking (de Haan et al. 2019).
        """
        chosen = torch.randint(len(self.all_state), (size,), generator=generator)
        other = torch.randint(len(self.all_state), (size,), generator=generator)
        state = self.all_state[chosen].clone()
        state[:, -EARLIER_ACTIONS:] = self.all_state[other, -EARLIER_ACTIONS:]
        _, std = self.statistics(self.state)
        state = state + noise * std * torch.randn(state.shape, generator=generator)
        return CloningBatch(Sequences(state=state.unsqueeze(0)), self.all_actions[chosen][None])


class PixelReplay:
    """Images of the demonstrations under randomization, for cloning into a pixel actor.

    Every demonstration is rendered `variations` times, each with factors of its own; frames are
    taken at the camera's period with a random phase and arrive with the drawn delay.
    """

    def __init__(self, config: Config, replay: DemonstrationReplay, variations: int, seed: int):
        self._replay = replay
        self._config = config
        pairs = [(d, v) for v in range(variations) for d in range(len(replay.state))]
        env = make_env(config, num_envs=min(REPLAY_WORLDS, len(pairs)), seed=seed, render=True)
        frames: list[Tensor] = []
        self._frame_index: list[Tensor] = []  # one (T,) a pair
        self._demo = [d for d, _ in pairs]
        self._noise = torch.zeros(len(pairs))
        count = 0
        for begin in range(0, len(pairs), env.num_envs):
            group = pairs[begin : begin + env.num_envs]
            count = self._render_group(env, group, seed, begin, frames, count)
        self.frames = torch.cat(frames)

    def _render_group(
        self,
        env: VisuomotorEnv,
        group: list[tuple[int, int]],
        seed: int,
        begin: int,
        frames: list[Tensor],
        count: int,
    ) -> int:
        assert env.camera is not None
        demos = self._replay.demos.demos
        period = self._config.camera.period
        everyone = torch.arange(len(group))
        rngs = [np.random.default_rng([seed, _APPEARANCE, begin + i]) for i in range(len(group))]
        factors = np.stack([env.randomizer.draw(rng, env.strength) for rng in rngs])
        env.randomizer.apply(env.sim, everyone, factors)
        sensor = env.randomizer.sensor(factors)
        self._noise[begin : begin + len(group)] = sensor.proprio_noise
        phases = [int(rng.integers(period)) for rng in rngs]
        lengths = [len(demos[d].states) for d, _ in group]
        exposures: list[list[tuple[int, int]]] = [[] for _ in group]  # (step, frame)
        for t in range(max(lengths)):
            due = [i for i in range(len(group)) if t < lengths[i] and _ticks(t, phases[i], period)]
            if not due:
                continue
            ids = torch.tensor(due)
            states = np.stack([demos[group[i][0]].states[t] for i in due])
            env.sim.reset(ids, torch.from_numpy(states))
            frames.append(env.camera.capture(ids, sensor.select(ids)))
            for i in due:
                exposures[i].append((t, count))
                count += 1
        for i, length in enumerate(lengths):
            index = torch.full((length,), exposures[i][0][1], dtype=torch.int64)
            delay = int(sensor.camera_delay[i])
            for t, frame in exposures[i][1:]:
                index[t + delay :] = frame
            self._frame_index.append(index)
        return count

    def batch(self, size: int, num_steps: int, generator: torch.Generator) -> CloningBatch:
        """`size` windows of `num_steps` steps; every second one from an episode's start, where the
        policy's memory is truly empty."""
        rows = torch.randint(len(self._demo), (size,), generator=generator).tolist()
        shortest = min(len(self._frame_index[row]) for row in rows)
        num_steps = min(num_steps, shortest)
        share = torch.rand(size, 2, generator=generator).tolist()
        index, proprio, action, aux = [], [], [], []
        for row, (u, coin) in zip(rows, share, strict=True):
            demo = self._demo[row]
            last = len(self._frame_index[row]) - num_steps
            start = 0 if coin < 0.5 else int(u * (last + 1))
            window = slice(start, start + num_steps)
            index.append(self._frame_index[row][window])
            clean = self._replay.proprio[demo][window]
            noise = torch.randn(clean.shape, generator=generator) * self._noise[row]
            proprio.append(clean + noise)
            action.append(self._replay.actions[demo][window])
            aux.append(self._replay.aux_targets[demo][window])
        used, local = torch.unique(torch.stack(index, dim=1), return_inverse=True)
        inputs = Sequences(
            frames=self.frames[used], frame_index=local, proprio=torch.stack(proprio, dim=1)
        )
        return CloningBatch(inputs, torch.stack(action, dim=1), torch.stack(aux, dim=1))


def scattered_frames(
    config: Config, starts: ResetStates, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """`count` frames (M, 3, H, W) uint8 and the auxiliary targets (M, K) in m of what they show:
    half of them start states, half states of demonstrations, each in an appearance of its own."""

    def start(rng: np.random.Generator) -> np.ndarray | None:
        return None if rng.random() < 0.5 else starts.sample(rng, by_stage=0.0).state

    # Episodes of one step: every step shows every world in a new one.
    brief = replace(config, env=replace(config.env, episode_steps=1))
    env = make_env(brief, num_envs=REPLAY_WORLDS, seed=seed, render=True, reset_sampler=start)
    seen = env.reset()
    frames, targets = [], []
    still = torch.zeros(env.num_envs, 9)
    for _ in range(-(-count // env.num_envs)):
        assert seen.pixels is not None
        frames.append(seen.pixels.clone())
        targets.append(seen.aux_targets.clone())
        seen = env.step(still).observation
    return torch.cat(frames)[:count], torch.cat(targets)[:count]


def _ticks(t: int, phase: int, period: int) -> bool:
    """The first step always has a frame; later ones where the camera's clock says so."""
    return t == 0 or (t + phase) % period == 0


def _chunks(states: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.arange(len(part)), part) for part in states.split(size)]
