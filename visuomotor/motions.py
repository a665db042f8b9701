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
# Of all times that a prop was let go, this share lay closer: the others were mishaps.
LIES = 0.8
# m, across and in height: what lies by so much further off is let go of, too. Copies, in which it
# is held a little differently, would otherwise hold on for some steps where others let go, and a
# clone of both stops there, half holding. A policy that sees to a centimetre or two must not be
# asked to tell what is nearer than that from what is not.
LOOSE = (0.012, 0.006)
# m above where a prop is let go, from where it comes down to its place.
ABOVE = 0.03
SETTLED = 8  # control steps after which what was let go lies where it will
PRESSING = (0.5, 0.0)  # of a finger's action: a hand that begins to close; that does no more
FAR = 10**6  # control steps: never


@dataclass(frozen=True)
class Segment:
    """A stretch of a demonstration in which the hand moves by one prop, or by the table.

    The table's middle stands behind the P props, as the last one (TABLE): what a hand moves by that
    goes to a place, whatever stands where.
    """

    begin: int
    end: int
    prop: int
    places: np.ndarray  # (P + 1, 3) x, y [m], yaw [rad] of each of them when it begins


@dataclass
class Placing:
    """That a hand let go of one prop by another, where it stays."""

    step: int  # at which it is let go
    held: int
    prop: int
    # m: how it lies by that one SETTLED steps later: how far across at most, and its heights.
    rests: tuple[float, float, float]


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
    # Of what is let go, the last step at which it was ABOVE that height: FAR where it never was.
    down: np.ndarray  # (T,)
    again: np.ndarray  # (T,) the step from which it is tried again, with an open hand
    # The last step, of those from each on in the segment, before the hand closes; FAR: it does not.
    takes: np.ndarray  # (T,)
    segments: list[Segment]
    placings: list[Placing]
    present: np.ndarray  # (P,) bool, the props that take part
    order: tuple[int, ...]  # of Task.order_of


def read_motion(env: VisuomotorEnv, demo: Demonstration) -> Motion:
    """Reads poses and stages off the simulator."""
    assert demo.actions is not None
    hand, task = HandMotion(env.sim, env.jaco), env.task
    pos, mat, by, places, offsets, up, fingers = [], [], [], [], [], [], []
    furthest = torch.zeros(1, dtype=torch.int64)  # stage
    for part in torch.from_numpy(demo.states).split(env.num_envs):
        n = len(part)
        env.sim.reset(torch.arange(n), part)
        pos.append(hand.pos()[:n].clone())
        mat.append(hand.mat()[:n].clone())
        furthest = torch.cat((furthest[-1:], task.stage()[:n])).cummax(dim=0).values[1:]
        by.append(task.moved_by(furthest).clone())
        places.append(prop_places(env)[:n].clone())
        offsets.append(prop_grips(env)[:n].clone())
        up.append(prop_heights(env)[:n].clone())
        fingers.append(env.sim.data("qpos")[:n, env.jaco.qpos_ids[6:]].clone())
    where = torch.cat(places).numpy()  # (T, P + 1, 3)
    path = _smooth(torch.cat(pos).numpy())
    props = _steady(torch.cat(by).numpy())
    begins = [0, *(np.flatnonzero(np.diff(props)) + 1).tolist()]
    grips = torch.cat(offsets).numpy()  # (T, P + 1, 3)
    apart = np.linalg.norm(grips, axis=2)
    heights = torch.cat(up).numpy()  # (T, P + 1)
    moved = (apart < HELD[0]) & (np.abs(heights - heights[0]) > HELD[1])
    nearest = np.where(moved, apart, np.inf).argmin(axis=1)  # what a held prop carries moves, too
    angles = torch.cat(fingers).numpy()
    fingers_asked = demo.actions[:, 6:].mean(axis=1)
    press = _steady(_pressing(fingers_asked))
    held = np.where(moved.any(axis=1) & press, nearest, -1)
    holding = held >= 0
    segments = [
        Segment(begin, end, int(props[begin]), where[begin])
        for begin, end in zip(begins, [*begins[1:], len(path)], strict=True)
    ]
    ends = _phase_ends(press)
    last = len(path) - 1
    lets_go = np.minimum(ends + 1, last)
    steps = np.arange(len(path))
    by_hand = np.maximum(held, 0)
    # Of what is held now, when it is let go.
    across = where[lets_go, by_hand, :2] - where[lets_go, props, :2]
    height = heights[lets_go, by_hand] - heights[lets_go, props]
    lies = np.stack((np.linalg.norm(across, axis=1), height), axis=1)
    until = np.where(holding & (held != props) & (ends < last), lets_go, FAR)
    return Motion(
        pos=path,
        mat=torch.cat(mat).numpy(),
        press=press,
        hold=float(np.median(fingers_asked[holding])) if holding.any() else 1.0,
        fingers=angles,
        aim=angles[ends],
        held=held,
        grip=grips[steps, by_hand],
        until=until,
        lies=lies,
        down=_comes_down(until, heights[steps, by_hand] - heights[steps, props], height),
        again=_again(press, apart, props),
        takes=_takes(press, segments),
        segments=segments,
        placings=_placings(until, by_hand, props, where, heights),
        present=task.props_present(demo.states[0]),
        order=task.order_of(demo.states[0]),
    )


def agree(motions: list[Motion]) -> None:
    """When a prop may be let go is the same for all of them, by the prop and by what it lies; never
    where no demonstration lets go of the one by the other. So is how far off, how low and how high
    one that was let go still lies where it was put."""
    lain: dict[tuple[int, int], list[np.ndarray]] = {}
    rests: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    places = []
    for motion in motions:
        for placing in motion.placings:
            rests.setdefault((placing.held, placing.prop), []).append(placing.rests)
        for segment in motion.segments:
            for step in range(segment.begin, segment.end):
                if motion.until[step] != FAR:
                    pair = (int(motion.held[step]), segment.prop)
                    places.append((motion, step, pair))
                    if motion.until[step] == step + 1:
                        lain.setdefault(pair, []).append(motion.lies[step].copy())
    for motion, step, pair in places:
        if pair in lain:
            motion.lies[step] = np.quantile(lain[pair], LIES, axis=0) + LOOSE
        else:
            motion.until[step] = FAR
    for motion in motions:
        motion.placings[:] = [p for p in motion.placings if (p.held, p.prop) in lain]
        for placing in motion.placings:
            alike = np.array(rests[placing.held, placing.prop])
            placing.rests = (alike[:, 0].max(), alike[:, 1].min(), alike[:, 2].max())


def _takes(press: np.ndarray, segments: list[Segment]) -> np.ndarray:
    """(T,) bool -> (T,) Motion.takes."""
    takes = np.full(len(press), FAR)
    for segment in segments:
        for step in range(min(segment.end, len(press) - 1) - 1, segment.begin - 1, -1):
            if not press[step]:
                takes[step] = step if press[step + 1] else takes[step + 1]
    return takes


def _placings(
    until: np.ndarray, held: np.ndarray, props: np.ndarray, where: np.ndarray, heights: np.ndarray
) -> list[Placing]:
    """held, props: (T,); where: (T, P + 1, 3); heights: (T, P + 1) m."""
    found = []
    for step in np.unique(until[until < FAR]).tolist():
        one, other = int(held[step - 1]), int(props[step - 1])
        then = min(step + SETTLED, len(until) - 1)
        across = np.linalg.norm(where[then, one, :2] - where[then, other, :2])
        height = heights[then, one] - heights[then, other]
        found.append(Placing(step, one, other, (float(across), float(height), float(height))))
    return found


def _comes_down(until: np.ndarray, height: np.ndarray, lies: np.ndarray) -> np.ndarray:
    """(T,) Motion.down; height, lies: (T,) m of what is held over what it is put on, now and when
    it is let go."""
    down = np.full(len(until), FAR)
    for end in np.unique(until[until < FAR]).tolist():
        steps = np.flatnonzero(until == end)
        high = steps[height[steps] > lies[steps] + ABOVE]
        if len(high) > 0:
            down[steps] = high[-1]
    return down


def _again(press: np.ndarray, apart: np.ndarray, props: np.ndarray) -> np.ndarray:
    """(T,) the step to which the hand goes back, open: of the time before it presses, or of now if
    it does not, the last one at which it was away from the prop that it is about to take.

    press: (T,) bool; apart: (T, P + 1) m from the hand to each; props: (T,) by which it moves.
    """
    again = np.zeros(len(press), dtype=np.int64)
    changes = (np.flatnonzero(press[1:] != press[:-1]) + 1).tolist()
    last = 0
    for begin, end in zip([0, *changes], [*changes, len(press)], strict=True):
        if not press[begin]:
            away = np.flatnonzero(apart[begin:end, props[end - 1]] > AGAIN)
            last = begin + int(away[-1]) if len(away) > 0 else begin
        again[begin:end] = last
    return again


def _pressing(action: np.ndarray) -> np.ndarray:
    """(T,) of the fingers -> (T,) bool."""
    press = np.zeros(len(action), dtype=bool)
    for step, value in enumerate(action):
        before = step > 0 and press[step - 1]
        press[step] = value > PRESSING[1 if before else 0]
    return press


def _steady(press: np.ndarray) -> np.ndarray:
    """(T,) of any kind -> the same without changes that last less than BRIEF steps."""
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
    """(N, P + 1, 3) m: from the pinch site to every prop, and to the table's middle."""
    return torch.stack(_centres(env), dim=1) - env.task.pinch_pos().unsqueeze(1)


def prop_heights(env: VisuomotorEnv) -> Tensor:
    """(N, P + 1) m: of every prop's centre, and of the table."""
    return torch.stack(_centres(env), dim=1)[:, :, 2]


def _centres(env: VisuomotorEnv) -> list[Tensor]:
    """P + 1 of (N, 3) m."""
    props = [env.task.prop_pos(index) for index in range(len(env.task.props))]
    return [*props, torch.zeros_like(props[0])]


def _smooth(path: np.ndarray) -> np.ndarray:
    """(T, 3) -> the same, without the trembling of the hand: a mean over SMOOTHED steps."""
    half = SMOOTHED // 2
    padded = np.concatenate((np.repeat(path[:1], half, 0), path, np.repeat(path[-1:], half, 0)))
    sums = np.cumsum(np.concatenate((np.zeros((1, 3)), padded)), axis=0)
    mean: np.ndarray = (sums[SMOOTHED:] - sums[:-SMOOTHED]) / SMOOTHED
    return mean


def prop_places(env: VisuomotorEnv) -> Tensor:
    """(N, P + 1, 3): x, y [m] and yaw [rad] of every prop, and of the table's middle."""
    yaws = [env.task.prop_yaw(index) for index in range(len(env.task.props))]
    yaws.append(torch.zeros_like(yaws[0]))
    columns = zip(_centres(env), yaws, strict=True)
    return torch.stack(
        [torch.cat((pos[:, :2], yaw.unsqueeze(1)), dim=1) for pos, yaw in columns], dim=1
    )
