"""A demonstration as a motion: where the hand was, what it held, by which prop it moved.

Read off the simulator, for `retargeting` to play it elsewhere. Knows no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.demonstrations import Demonstration
from visuomotor.envs import VisuomotorEnv
from visuomotor.envs.kinematics import HandMotion

SMOOTHED = 5  # control steps
BRIEF = 5  # control steps: a hand that presses or opens for less only trembled
# A prop is held where it moves with the hand: so near to the pinch site, so far off its place (m).
HELD = (0.05, 0.01)
AGAIN = 0.08  # m from the prop, at least, to which the hand goes back before it tries again
PRESSING = (0.5, 0.0)  # of a finger's action: a hand that begins to close; that does no more
FAR = 10**6  # control steps: never


@dataclass(frozen=True)
class Segment:
    """A stretch of a demonstration in which the hand moves by one prop."""

    begin: int
    end: int
    prop: int
    places: np.ndarray  # (P, 3) x, y [m], yaw [rad] of every prop when it begins
    again: int  # the step from which it is tried again


@dataclass(frozen=True)
class Motion:
    """What the hand did in a demonstration; T steps."""

    pos: np.ndarray  # (T, 3) m
    mat: np.ndarray  # (T, 3, 3)
    press: np.ndarray  # (T,) bool, the fingers close
    hold: float  # of their action, where they hold
    fingers: np.ndarray  # (T, 3) rad
    aim: np.ndarray  # (T, 3) rad, where they were at last before `press` changed
    held: np.ndarray  # (T,) the prop that moves with the hand; -1: none
    grip: np.ndarray  # (T, 3) m, from the pinch site to that prop
    # Until which step it is held and how it lies then by the segment's prop: across, height [m].
    until: np.ndarray  # (T,)
    lies: np.ndarray  # (T, 2)
    segments: list[Segment]


def read_motion(env: VisuomotorEnv, demo: Demonstration) -> Motion:
    """Reads poses and stages off the simulator."""
    assert demo.actions is not None
    hand, task = HandMotion(env.sim, env.jaco), env.task
    pos, mat, stage, places, offsets, up, fingers = [], [], [], [], [], [], []
    for part in torch.from_numpy(demo.states).split(env.num_envs):
        n = len(part)
        env.sim.reset(torch.arange(n), part)
        pos.append(hand.pos()[:n].clone())
        mat.append(hand.mat()[:n].clone())
        stage.append(task.stage()[:n].clone())
        places.append(prop_places(env)[:n].clone())
        offsets.append(prop_grips(env)[:n].clone())
        up.append(prop_heights(env)[:n].clone())
        fingers.append(env.sim.data("qpos")[:n, env.jaco.qpos_ids[6:]].clone())
    where = torch.cat(places).numpy()  # (T, P, 3)
    path = _smooth(torch.cat(pos).numpy())
    furthest = np.maximum.accumulate(torch.cat(stage).numpy())
    props = np.asarray(task.stage_props)[furthest]
    begins = [0, *(np.flatnonzero(np.diff(props)) + 1).tolist()]
    grips = torch.cat(offsets).numpy()  # (T, P, 3)
    apart = np.linalg.norm(grips, axis=2)
    heights = torch.cat(up).numpy()  # (T, P)
    moved = (apart < HELD[0]) & (np.abs(heights - heights[0]) > HELD[1])
    nearest = np.where(moved, apart, np.inf).argmin(axis=1)  # what a held prop carries moves, too
    angles = torch.cat(fingers).numpy()
    fingers_asked = demo.actions[:, 6:].mean(axis=1)
    press = _steady(_pressing(fingers_asked))
    held = np.where(moved.any(axis=1) & press, nearest, -1)
    holding = held >= 0
    segments = []
    for begin, end in zip(begins, [*begins[1:], len(path)], strict=True):
        prop = int(props[begin])
        away = np.linalg.norm(grips[begin:end, prop], axis=1) > AGAIN
        away &= ~np.logical_or.accumulate(press[begin:end])
        again = begin + int(np.flatnonzero(away)[-1]) if away.any() else begin
        segments.append(Segment(begin, end, prop, where[begin], again))
    ends = _phase_ends(press)
    last = len(path) - 1
    lets_go = np.minimum(ends + 1, last)
    steps = np.arange(len(path))
    by_hand = np.maximum(held, 0)
    across = where[steps, by_hand, :2] - where[steps, props, :2]
    height = heights[steps, by_hand] - heights[steps, props]
    lies = np.stack((np.linalg.norm(across, axis=1), height), axis=1)
    return Motion(
        pos=path,
        mat=torch.cat(mat).numpy(),
        press=press,
        hold=float(np.median(fingers_asked[holding])) if holding.any() else 1.0,
        fingers=angles,
        aim=angles[ends],
        held=held,
        grip=grips[steps, by_hand],
        until=np.where(holding & (held != props) & (ends < last), lets_go, FAR),
        lies=lies[lets_go],
        segments=segments,
    )


def agree(motions: list[Motion]) -> None:
    """When a prop may be let go is the same for all of them, by the prop and by what it lies."""
    loosest: dict[tuple[int, int], np.ndarray] = {}
    places = []
    for motion in motions:
        for segment in motion.segments:
            for step in range(segment.begin, segment.end):
                if motion.until[step] != FAR:
                    pair = (int(motion.held[step]), segment.prop)
                    places.append((motion, step, pair))
                    loosest[pair] = np.maximum(loosest.get(pair, 0.0), motion.lies[step])
    for motion, step, pair in places:
        motion.lies[step] = loosest[pair]


def _pressing(action: np.ndarray) -> np.ndarray:
    """(T,) of the fingers -> (T,) bool."""
    press = np.zeros(len(action), dtype=bool)
    for step, value in enumerate(action):
        before = step > 0 and press[step - 1]
        press[step] = value > PRESSING[1 if before else 0]
    return press


def _steady(press: np.ndarray) -> np.ndarray:
    """(T,) bool -> the same without changes that last less than BRIEF steps."""
    steady = press.copy()
    begin = 0
    for end in [*(np.flatnonzero(press[1:] != press[:-1]) + 1).tolist(), len(press)]:
        if begin > 0 and end - begin < BRIEF:
            steady[begin:end] = steady[begin - 1]
        begin = end
    return steady


def _phase_ends(press: np.ndarray) -> np.ndarray:
    """(T,) bool -> (T,) the last step, from each on, until which it stays the same."""
    ends = np.append(np.flatnonzero(press[1:] != press[:-1]), len(press) - 1)
    return ends[np.searchsorted(ends, np.arange(len(press)))]


def prop_grips(env: VisuomotorEnv) -> Tensor:
    """(N, P, 3) m: from the pinch site to every prop."""
    pinch, props = env.task.pinch_pos(), range(len(env.task.props))
    return torch.stack([env.task.prop_pos(index) - pinch for index in props], dim=1)


def prop_heights(env: VisuomotorEnv) -> Tensor:
    """(N, P) m: of every prop's centre."""
    props = range(len(env.task.props))
    return torch.stack([env.task.prop_pos(index)[:, 2] for index in props], dim=1)


def _smooth(path: np.ndarray) -> np.ndarray:
    """(T, 3) -> the same, without the trembling of the hand: a mean over SMOOTHED steps."""
    half = SMOOTHED // 2
    padded = np.concatenate((np.repeat(path[:1], half, 0), path, np.repeat(path[-1:], half, 0)))
    sums = np.cumsum(np.concatenate((np.zeros((1, 3)), padded)), axis=0)
    mean: np.ndarray = (sums[SMOOTHED:] - sums[:-SMOOTHED]) / SMOOTHED
    return mean


def prop_places(env: VisuomotorEnv) -> Tensor:
    """(N, P, 3): x, y [m] and yaw [rad] of every prop."""
    task = env.task
    columns = [
        torch.cat((task.prop_pos(index)[:, :2], task.prop_yaw(index).unsqueeze(1)), dim=1)
        for index in range(len(task.props))
    ]
    return torch.stack(columns, dim=1)
