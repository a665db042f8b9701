"""More demonstrations out of thirty: their motions, carried over to other starts.

What the hand does near a prop is repeated where that prop stands in another episode; between two
props it is bent from one to the other. The simulator tells which of these episodes succeed, and
only those are kept (MimicGen: Mandlekar et al. 2023, arXiv 2310.17596). No expert acts here: every
motion comes from the demonstrations.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from visuomotor import __version__
from visuomotor.cache import cached_path, check_cache
from visuomotor.config import Config
from visuomotor.demonstrations import (
    Demonstration,
    Demonstrations,
    load_demonstrations,
    save_demonstrations,
    successful_part,
)
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.envs.kinematics import HandMotion
from visuomotor.replay import check_states

MAX_WORLDS = 64
MAX_ATTEMPTS = 4  # episodes tried for one that is wanted, at most
NEAREST = 3  # of the demonstrations, by how alike the start is, from which one is drawn
YAW_WEIGHT = 0.05  # m/rad, in that likeness
BENT = 0.5  # share of a motion's path over which it goes from where it was to where it must be
SMOOTHED = 5  # control steps
AHEAD = 3  # control steps that a motion may skip where the hand is ahead of it
POSITION_GAIN = 4.0  # 1/s
ROTATION_GAIN = 4.0  # 1/s
MAX_SPEED = 0.3  # m/s of the hand
# The motion waits for the hand when it lags by more (m, rad) ...
LAG = (0.012, 0.15)
PATIENCE = 10  # control steps, but not longer: something may stand in the way
TREMBLING = 0.1  # standard deviation of the noise on what is done, as in visuomotor.demonstrate
FINGER_TREMBLING = 2.0  # the same for fingers, as a multiple
SEED = 2000  # of the starts and of the noise: every run of a task has the same episodes
_STARTS, _NOISE = 23, 24  # concerns of the random streams


@dataclass(frozen=True)
class _Segment:
    """A stretch of a demonstration in which the hand moves by one prop."""

    begin: int
    end: int
    prop: int
    place: np.ndarray  # (3,) x, y [m], yaw [rad] of the prop when it begins
    weight: np.ndarray  # (end - begin,) 0 to 1: how much of the way is bent already


@dataclass(frozen=True)
class _Motion:
    """What the hand did in a demonstration; T steps."""

    pos: np.ndarray  # (T, 3) m
    mat: np.ndarray  # (T, 3, 3)
    fingers: np.ndarray  # (T, 3) actions
    segments: list[_Segment]
    start: np.ndarray  # (P, 3) x, y [m], yaw [rad] of every prop


def with_retargeted(config: Config, demonstrations: Demonstrations, count: int) -> Demonstrations:
    """The demonstrations and up to `count` retargeted ones behind them, from nominal worlds.

    Fewer if more than MAX_ATTEMPTS times as many episodes do not bring them. Demonstrations without
    actions are left as they are: what their fingers did is unknown. They are made on first use and
    kept in the cache, for these demonstrations, this scene and this package's version.
    Raises UserError for states that are not of this scene, and where the cache cannot be written.
    """
    usable = [demo for demo in demonstrations.demos if demo.actions is not None]
    if count == 0 or not usable:
        return demonstrations
    quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
    env = make_env(quiet, num_envs=min(MAX_WORLDS, count), seed=SEED, render=False)
    # Before anything is put into the simulator.
    check_states(demonstrations, env.sim.model.nq + env.sim.model.nv, config.task)
    xml = env.model_xml()
    motions = (array for demo in usable for array in (demo.states, demo.actions))
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in motions))
    path = cached_path(
        f"{config.task}-retargeted-{count}",
        *(__version__, replace(config.env, num_threads=0), digest.hexdigest(), xml),
    )
    if path.exists():
        made = load_demonstrations(path, task=config.task).demos
        return replace(demonstrations, demos=[*demonstrations.demos, *made])
    check_cache(path)
    print(f"carrying {len(usable)} demonstrations over to {count} other starts", file=sys.stderr)
    with tqdm(total=count, unit="episode", desc="retargeting", disable=None) as bar:
        made = _make(env, usable, count, lambda done: bar.update(done - bar.n))
    if len(made) < count:
        print(f"{len(made)} succeeded within {MAX_ATTEMPTS * count} attempts", file=sys.stderr)
    if made:
        save_demonstrations(path, replace(demonstrations, demos=made, model_xml=xml))
    return replace(demonstrations, demos=[*demonstrations.demos, *made])


def _make(
    env: VisuomotorEnv,
    demos: list[Demonstration],
    count: int,
    progress: Callable[[int], object],
) -> list[Demonstration]:
    # Starts of their own: neither those of training nor those of an evaluation.
    env.seed = int(np.random.SeedSequence([SEED, _STARTS]).generate_state(1)[0])
    motions = [_motion(env, demo) for demo in demos]
    made: list[Demonstration] = []
    rng = np.random.default_rng([SEED, _NOISE])
    env.reset()
    for _ in range(-(-MAX_ATTEMPTS * count // env.num_envs)):
        if len(made) >= count:
            break
        made += _Retargeting(env, motions, rng).episodes()
        progress(min(count, len(made)))
    return made[:count]


# --- demonstrations as motions --------------------------------------------------------------------


def _motion(env: VisuomotorEnv, demo: Demonstration) -> _Motion:
    """Reads poses and stages off the simulator."""
    assert demo.actions is not None
    hand, task = HandMotion(env.sim, env.jaco), env.task
    pos, mat, stage, places = [], [], [], []
    for part in torch.from_numpy(demo.states).split(env.num_envs):
        n = len(part)
        env.sim.reset(torch.arange(n), part)
        pos.append(hand.pos()[:n].clone())
        mat.append(hand.mat()[:n].clone())
        stage.append(task.stage()[:n].clone())
        places.append(_places(env)[:n].clone())
    where = torch.cat(places).numpy()  # (T, P, 3)
    path = _smooth(torch.cat(pos).numpy())
    furthest = np.maximum.accumulate(torch.cat(stage).numpy())
    props = np.asarray(task.stage_props)[furthest]
    begins = [0, *(np.flatnonzero(np.diff(props)) + 1).tolist()]
    segments = [
        _Segment(
            begin, end, int(props[begin]), where[begin, props[begin]], _weights(path, begin, end)
        )
        for begin, end in zip(begins, [*begins[1:], len(path)], strict=True)
    ]
    return _Motion(path, torch.cat(mat).numpy(), demo.actions[:, 6:], segments, where[0])


def _smooth(path: np.ndarray) -> np.ndarray:
    """(T, 3) -> the same, without the trembling of the hand: a mean over SMOOTHED steps."""
    half = SMOOTHED // 2
    padded = np.concatenate((np.repeat(path[:1], half, 0), path, np.repeat(path[-1:], half, 0)))
    sums = np.cumsum(np.concatenate((np.zeros((1, 3)), padded)), axis=0)
    mean: np.ndarray = (sums[SMOOTHED:] - sums[:-SMOOTHED]) / SMOOTHED
    return mean


def _weights(path: np.ndarray, begin: int, end: int) -> np.ndarray:
    """0 at the begin of a segment, 1 from BENT of its path on, smooth at both ends."""
    steps = np.linalg.norm(np.diff(path[begin:end], axis=0), axis=1)
    length = np.concatenate(([0.0], np.cumsum(steps)))
    share = np.clip(length / max(BENT * length[-1], 1e-6), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _places(env: VisuomotorEnv) -> Tensor:
    """(N, P, 3): x, y [m] and yaw [rad] of every prop."""
    columns = []
    for index, body in enumerate(env.task.prop_body_ids):
        mat = env.sim.data("xmat")[:, body].view(-1, 3, 3)
        yaw = torch.atan2(mat[:, 1, 0], mat[:, 0, 0]).unsqueeze(1)
        columns.append(torch.cat((env.task.prop_pos(index)[:, :2], yaw), dim=1))
    return torch.stack(columns, dim=1)


# --- playing them elsewhere -----------------------------------------------------------------------


class _Retargeting:
    """One episode in every world, each after a demonstration whose start is like its own."""

    def __init__(self, env: VisuomotorEnv, motions: list[_Motion], rng: np.random.Generator):
        self.env = env
        self.hand = HandMotion(env.sim, env.jaco)
        self.rng = rng
        n = env.num_envs
        self.motions = self._chosen(motions)
        longest = max(len(motion.pos) for motion in self.motions)
        self.last = np.array([len(motion.pos) - 1 for motion in self.motions])
        self.pos = np.zeros((n, longest, 3))  # m, where the hand goes
        self.mat = np.zeros((n, longest, 3, 3))
        self.fingers = np.zeros((n, longest, 3))
        self.segment = np.zeros((n, longest), dtype=np.int64)
        self.step = np.zeros(n, dtype=np.int64)  # of each world's motion
        self.waited = np.zeros(n, dtype=np.int64)
        self.turned = np.zeros(n)  # rad, of the motion as it is bent now
        for world, motion in enumerate(self.motions):
            self.fingers[world, : len(motion.fingers)] = motion.fingers
            for number, segment in enumerate(motion.segments):
                self.segment[world, segment.begin : segment.end] = number
            self._bend(world, 0)

    def _turn(self, prop: int, yaw: float) -> float:
        """The smallest turn of a prop that looks like `yaw`."""
        step = 2.0 * np.pi / self.env.task.symmetry(prop)
        return float(yaw - step * np.round(yaw / step))

    def _chosen(self, motions: list[_Motion]) -> list[_Motion]:
        starts = _places(self.env).numpy()
        chosen = []
        for start in starts:
            costs = []
            for motion in motions:
                across = np.linalg.norm(start[:, :2] - motion.start[:, :2])
                turns = [self._turn(p, start[p, 2] - motion.start[p, 2]) for p in range(len(start))]
                costs.append(across + YAW_WEIGHT * float(np.linalg.norm(turns)))
            order = np.argsort(costs)[:NEAREST]
            chosen.append(motions[int(self.rng.choice(order))])
        return chosen

    def _bend(self, world: int, number: int) -> None:
        """Writes where the hand goes in a segment that begins now."""
        motion = self.motions[world]
        segment = motion.segments[number]
        rows = slice(segment.begin, segment.end)
        now = _places(self.env)[world, segment.prop].numpy()
        turn = self._turn(segment.prop, now[2] - segment.place[2])
        path = motion.pos[rows]
        there = path.copy()
        there[:, :2] = (path[:, :2] - segment.place[:2]) @ _planar(turn).T + now[:2]
        shift = self.hand.pos()[world].numpy() - path[0]
        weight = segment.weight[:, None]
        self.pos[world, rows] = path + (1.0 - weight) * shift + weight * (there - path)
        angles = (1.0 - segment.weight) * self.turned[world] + segment.weight * turn
        for i, angle in enumerate(angles):
            rotation = np.eye(3)
            rotation[:2, :2] = _planar(angle)
            self.mat[world, segment.begin + i] = rotation @ motion.mat[segment.begin + i]
        self.turned[world] = turn

    def episodes(self) -> list[Demonstration]:
        """Plays all worlds to their end; what succeeded, as demonstrations."""
        env, everyone = self.env, torch.arange(self.env.num_envs)
        seeds = env.episode_ids.tolist()
        columns: dict[str, list[Tensor]] = {
            name: [] for name in ("states", "actions", "rewards", "success")
        }
        scale = torch.tensor([TREMBLING] * 6 + [FINGER_TREMBLING * TREMBLING] * 3)
        for _ in range(env.episode_steps):
            action = self._act()
            columns["states"].append(env.sim.get_state(everyone))
            columns["actions"].append(action)
            noise = torch.from_numpy(self.rng.standard_normal(action.shape)).float()
            result = env.step(action + scale * noise)
            columns["rewards"].append(result.reward)
            columns["success"].append(result.success)
        stacked = {name: torch.stack(values, dim=1).numpy() for name, values in columns.items()}
        made = []
        for world in everyone.tolist():
            length = successful_part(stacked["success"][world])
            if length == 0:
                continue
            dones = np.zeros(length, dtype=bool)
            dones[-1] = True
            made.append(
                Demonstration(
                    states=stacked["states"][world, :length],
                    actions=stacked["actions"][world, :length],
                    rewards=stacked["rewards"][world, :length],
                    dones=dones,
                    stages=None,
                    proprio=None,
                    features=None,
                    seed=seeds[world],
                )
            )
        return made

    def _act(self) -> Tensor:
        """(N, 9) float32 in [-1, 1]; moves every world's motion on where its hand keeps up."""
        worlds = np.arange(self.env.num_envs)
        self._catch_up(worlds)
        following = np.minimum(self.step + 1, self.last)
        target = torch.from_numpy(self.pos[worlds, self.step])
        forward = torch.from_numpy(self.pos[worlds, following]) - target
        missing = target - self.hand.pos()
        turn = self.hand.rotation_to(torch.from_numpy(self.mat[worlds, self.step]))
        lags = (missing.norm(dim=1) > LAG[0]) | (turn.norm(dim=1) > LAG[1])
        waits = lags.numpy() & (self.waited < PATIENCE)
        goes_on = torch.from_numpy(~waits).unsqueeze(1)
        linear = POSITION_GAIN * missing + goes_on * forward / self.env.control_dt
        speed = linear.norm(dim=1, keepdim=True).clamp(min=1e-9)
        linear = linear * (MAX_SPEED / speed).clamp(max=1.0)
        arm = self.hand.arm_action(torch.cat((linear, ROTATION_GAIN * turn), dim=1))
        fingers = torch.from_numpy(self.fingers[worlds, self.step])
        self.waited = np.where(waits, self.waited + 1, 0)
        self._advance(np.where(waits, self.step, following))
        return torch.cat((arm, fingers), dim=1).float().clamp(-1.0, 1.0)

    def _catch_up(self, worlds: np.ndarray) -> None:
        """To the step, of the next few, at which the hand's place is nearest: what is asked of the
        hand then depends on where it is and not on when."""
        hand = self.hand.pos().numpy()
        best = self.step
        nearest = np.linalg.norm(self.pos[worlds, best] - hand, axis=1)
        for ahead in range(1, AHEAD + 1):
            step = np.minimum(self.step + ahead, self.last)
            # Not over what the fingers do, and not into the next segment.
            same = self.segment[worlds, step] == self.segment[worlds, self.step]
            same &= (
                np.abs(self.fingers[worlds, step] - self.fingers[worlds, self.step]).max(1) < 0.5
            )
            distance = np.linalg.norm(self.pos[worlds, step] - hand, axis=1)
            better = same & (distance < nearest)
            best = np.where(better, step, best)
            nearest = np.where(better, distance, nearest)
        self.step = best

    def _advance(self, step: np.ndarray) -> None:
        moved = step != self.step
        self.step = step
        for world in np.flatnonzero(moved).tolist():
            for number, segment in enumerate(self.motions[world].segments):
                if number > 0 and segment.begin == step[world]:
                    self._bend(world, number)


def _planar(angle: float) -> np.ndarray:
    """(2, 2)."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])
