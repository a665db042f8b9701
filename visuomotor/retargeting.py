"""More demonstrations out of thirty: their motions, carried over to other starts.

What the hand does near a prop is repeated where that prop stands in another episode; between two
props it is bent from one to the other. The simulator tells which of these episodes succeed, and
only those are kept (MimicGen: Mandlekar et al. 2023, arXiv 2310.17596). No expert acts here: every
motion comes from the demonstrations.

Demonstrations that go well never show what to do after something went wrong, and a policy that
missed a block hovers over it with closed fingers. So the hand is made to fumble here: its fingers
close on the way to a prop, or let go of it. What was asked for is kept, not the fumble, and what is
asked for then is to open the hand, to go up, and to do the same again from where things are now. It
also strays: it is carried off for a second and comes back, which a policy must know how to do that
finds itself where no demonstration was. Its fingers are late: they stand still for some steps when
they should close or open. And it misses: what it puts somewhere comes down beside
that place, where it is caught on an edge, or dropped. What is asked for then is to bring it over
that place, the higher the further it is aside, and down again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from visuomotor import __version__, motions
from visuomotor.cache import cached_path, check_cache, revision
from visuomotor.config import Config
from visuomotor.demonstrations import (
    Demonstration,
    Demonstrations,
    load_demonstrations,
    save_demonstrations,
    successful_episode,
)
from visuomotor.envs import VisuomotorEnv, make_env, make_task, robot, source_of
from visuomotor.envs.kinematics import HandMotion, planar
from visuomotor.envs.tasks.task import TABLE, Task
from visuomotor.motions import (
    BRIEF,
    FAR,
    SETTLED,
    Motion,
    Segment,
    agree,
    prop_grips,
    prop_heights,
    prop_places,
    read_motion,
)
from visuomotor.progress import Progress
from visuomotor.replay import check_states

MAX_WORLDS = 64
MAX_ATTEMPTS = 4  # episodes tried for one that is wanted, at most
NEAREST = 4  # of the demonstrations, by how alike the start is, from which one is drawn
# A motion that was tried so many times, and of which a smaller share went well, is not carried over
# any more, if others serve: in a demonstration, too, things go wrong and are put right by chance.
SELDOM = (6, 0.5)
YAW_WEIGHT = 0.05  # m/rad, in that likeness
# How much it counts, in that likeness, that another prop stands elsewhere; one that is nearer than
# so much (m) counts more, over a range (m), up to 1, and turns the hand as much ("neighbours").
ELSEWHERE = 0.2
NEIGHBOUR = (0.15, 0.05)
BENT = 0.5  # share of a motion's path over which it goes from where it was to where it must be
STANDS = 0.002  # m, the length of a path on which the hand only stands
AHEAD = 3  # control steps that a motion may skip where the hand is ahead of it
POSITION_GAIN = 4.0  # 1/s
ROTATION_GAIN = 4.0  # 1/s
MAX_SPEED = 0.3  # m/s of the hand
# The motion waits for the hand when it lags by more (m, rad), and for fingers that open (rad) ...
LAG = (0.012, 0.15, 0.12)
# m from where the hand takes hold: from the first it goes there straight, at so many m/s at least,
# and closes within the second. Demonstrations slow down there to next to nothing, and copies began
# to close as far off as the hand may lag: clones of clearing_blocks closed above the lower block.
ARRIVES, THERE, ARRIVING = 0.012, 0.003, 0.05
CLOSES = 0.03  # rad, in the mean of the fingers, that one that still moves may lag behind
PATIENCE = 10  # control steps, but not longer: something may stand in the way
TREMBLING = 0.1  # standard deviation of the noise on what is done, as in visuomotor.demonstrate
FINGER_TREMBLING = 2.0  # the same for fingers, as a multiple
# What goes wrong on purpose: in this share of episodes the fingers close on the way to a prop, in
# this one they let go of what they hold; so many control steps long.
FUMBLES = {"close": (0.4, 14), "let go": (0.3, 10)}
# Fingers that are to close, or to open, do not yet: in this share of these times, for so many
# control steps at most. Else fingers move already in all of a copy's steps but one in which they
# are to let go, and a clone holds on to what its fingers hold still.
LATE = (0.5, 8)
# A hand is carried off: once in this share of the stretches in which it is open, or holds, for so
# many control steps; as fast, at most (m/s, rad/s), and at this share of that downwards.
STRAYS = {"open": (0.25, 25), "holding": (0.15, 10)}
STRAY_SPEED, STRAY_DOWN = (0.2, 1.2), 0.3
# What is to be put somewhere is carried aside as it comes down: once in this share of the times, in
# this share of which it is dropped there; so many control steps before it would be let go, at most
# and at least; for so many, so far (m) and so fast downwards (m/s).
MISSES = (0.35, 0.4)
DROPS = 0.01  # m that it is further aside then than where it would be let go, at least
MISSED_BEFORE, MISSING, MISSED_BY, MISSED_DOWN = (16, 4), 10, (0.02, 0.06), 0.06
# What comes down further aside than it would be let go, by more than the first (m), is so many
# times as much higher than there, up to so much (m): the hand brings it over its place before it
# goes down. A student that sees to a centimetre or two hovers where what is asked for changes by
# less: with 0, 2 and 0.05, and let go at half the distance, stacking's had 57 % after 0.3 M steps
# where it has 87.
FUNNEL = (0.008, 3.0, 0.05)
# m/s that it comes down at least, once it is over its place. Where demonstrations slow down to next
# to nothing their clone stopped, some mm too high to let go (clearing_blocks).
SINKING = 0.08
RAISED = 40  # control steps that the motion waits for that, at most
SLIP = 0.015  # m that it is held elsewhere, at most, for which the hand makes up
LOST = 0.03  # m that a prop is further from the hand than where it was held
# Fingers stand and hold: slower than this (rad/s), and closed by more than this share of what they
# closed in the demonstration.
FIRM = (0.12, 0.6)
# m that a prop lies further off, lower or higher than any did once it was put there: it is put
# there anew, so many times in an episode at most.
GONE, ANEW = 0.015, 2
FINGER_GAIN = 5.0  # 1/s
# rad that a finger is more closed than it was: to start over; than it was to be: to have done so
TIGHT = (0.3, 0.12)
START_FINGERS = (0.1, 1.3)  # rad, in half of the episodes: the hand is in any state at first
RISE = 0.12  # m/s, of a hand that starts over
LAST = 15  # control steps before a prop is let go on purpose, in which it is not by mistake
# Control steps for which a success has to last: what happens later is not looked at.
LASTS = 100
# Times the task's own episode, time to start over; but at most so many times the longest motion.
LONGER, LONGEST = 1.5, 3
SEED = 2000  # of the starts and of the noise: every run of a task has the same episodes
_STARTS, _NOISE = 23, 24  # concerns of the random streams
# Of a motion, row by row, for every world.
_PER_STEP = ("press", "fingers", "aim", "held", "grip", "until", "lies", "down", "takes")


def with_retargeted(config: Config, demonstrations: Demonstrations, count: int) -> Demonstrations:
    """The demonstrations and up to `count` retargeted ones behind them, from nominal worlds.

    Fewer if more than MAX_ATTEMPTS times as many episodes do not bring them. Demonstrations without
    actions are left as they are: what their fingers did is unknown. They are made on first use and
    kept in the cache, for these demonstrations, this scene, this task's code and this package's
    version.
    Raises UserError for states that are not of this scene, and where the cache cannot be written.
    """
    usable = [demo for demo in demonstrations.demos if demo.actions is not None]
    if count == 0 or not usable:
        return demonstrations
    quiet = replace(config, randomization=replace(config.randomization, strength=0.0))
    longest = max(len(demo.states) for demo in usable)
    steps = int(LONGER * (config.env.episode_steps or make_task(config.task).episode_steps))
    steps = min(steps, LONGEST * longest)
    quiet = replace(quiet, env=replace(config.env, episode_steps=steps))
    num_envs = min(MAX_WORLDS, count)
    env = make_env(quiet, num_envs=num_envs, seed=SEED, render=False, privileged=False)
    # Before anything is put into the simulator.
    check_states(demonstrations, env.sim.model.nq + env.sim.model.nv, config.task)
    xml = env.model_xml()
    arrays = (array for demo in usable for array in (demo.states, demo.actions))
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
    path = cached_path(
        f"{config.task}-retargeted-{count}",
        *(__version__, replace(config.env, num_threads=0), digest.hexdigest(), xml),
        revision(motions, sys.modules[__name__], *source_of(env.task)),
    )
    if path.exists():
        made = load_demonstrations(path, task=config.task).demos
        return replace(demonstrations, demos=[*demonstrations.demos, *made])
    check_cache(path)
    print(f"carrying {len(usable)} demonstrations over to {count} other starts", file=sys.stderr)
    with Progress(count, "retargeting", unit="episode") as bar:
        made = _make(env, usable, count, bar.update)
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
    played = [
        read_motion(env, replace(demo, states=states))
        for demo in demos
        for states in env.task.exchanged(demo.states)
    ]
    agree(played)
    starts = _Starts(env, played)
    env.reset_sampler = starts
    served = _Served(played)
    made: list[Demonstration] = []
    rng = np.random.default_rng([SEED, _NOISE])
    env.reset()
    for _ in range(-(-MAX_ATTEMPTS * count // env.num_envs)):
        if len(made) >= count:
            break
        copies = _Retargeting(env, served.motions(), rng)
        episodes, failed = copies.episodes()
        served.note(copies.motions, copies.went_well)
        made += episodes
        starts.again(failed)
        progress(min(count, len(made)))
    return made[:count]


class _Served:
    """How often each motion went well elsewhere."""

    def __init__(self, motions: list[Motion]):
        self._motions = motions
        self._tried = dict.fromkeys(map(id, motions), 0)
        self._well = dict.fromkeys(map(id, motions), 0)

    def note(self, motions: list[Motion], well: list[bool]) -> None:
        for motion, went_well in zip(motions, well, strict=True):
            self._tried[id(motion)] += 1
            self._well[id(motion)] += went_well

    def motions(self) -> list[Motion]:
        """Of those by the same props, in the same order, the ones that serve, or all."""
        alike: dict[tuple[bytes, tuple[int, ...]], list[Motion]] = {}
        for motion in self._motions:
            alike.setdefault((motion.present.tobytes(), motion.order), []).append(motion)
        kept = []
        for group in alike.values():
            serve = [motion for motion in group if not self._seldom(motion)]
            kept += serve or group
        return kept

    def _seldom(self, motion: Motion) -> bool:
        tried = self._tried[id(motion)]
        return tried >= SELDOM[0] and self._well[id(motion)] < SELDOM[1] * tried


class _Starts:
    """The task's own starts with props that one of the motions knows, in its order, in half of the
    episodes with a hand that is not open. Where an episode failed another motion has its turn: what
    is hard stays among what is shown."""

    def __init__(self, env: VisuomotorEnv, motions: list[Motion]):
        self._env = env
        self._known = {(motion.present.tobytes(), motion.order) for motion in motions}
        self._again: list[np.ndarray] = []
        self._tried: dict[bytes, int] = {}

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """(nq + nv,)"""
        if self._again:
            return self._again.pop(0)
        task = self._env.task
        state = task.start_state(rng)
        while (task.props_present(state).tobytes(), task.order_of(state)) not in self._known:
            state = task.start_state(rng)
        if rng.random() < 0.5:
            fingers = self._env.jaco.qpos_ids[6:].numpy()
            state[fingers] = rng.uniform(*START_FINGERS) + rng.uniform(0, 0.1, 3)
        return state

    def again(self, states: list[np.ndarray]) -> None:
        for state in states:
            tried = self._tried.get(state.tobytes(), 1)
            if tried < MAX_ATTEMPTS:
                self._tried[state.tobytes()] = tried + 1
                self._again.append(state)


# --- playing them elsewhere -----------------------------------------------------------------------


class _Retargeting:
    """One episode in every world, each after a demonstration whose start is like its own."""

    def __init__(self, env: VisuomotorEnv, motions: list[Motion], rng: np.random.Generator):
        self.env = env
        self.hand = HandMotion(env.sim, env.jaco)
        self.rng = rng
        n = env.num_envs
        self.worlds = np.arange(n)
        self.heading = _usual_heading(env.task, motions)  # rad
        self.motions = self._chosen(motions)
        longest = max(len(motion.pos) for motion in self.motions)
        self.last = np.array([len(motion.pos) - 1 for motion in self.motions])
        self.pos = np.zeros((n, longest, 3))  # m, where the hand goes
        self.mat = np.zeros((n, longest, 3, 3))
        self.press = np.zeros((n, longest), dtype=bool)
        self.fingers = np.zeros((n, longest, 3))
        self.aim = np.zeros((n, longest, 3))
        self.held = np.full((n, longest), -1)
        self.down = np.full((n, longest), FAR)
        self.takes = np.full((n, longest), FAR)
        self.grip = np.zeros((n, longest, 3))
        self.angle = np.zeros((n, longest))  # rad, by which the motion is turned
        self.until = np.full((n, longest), FAR)
        self.lies = np.zeros((n, longest, 2))
        self.segment = np.zeros((n, longest), dtype=np.int64)
        self.moves_by = np.zeros((n, longest), dtype=np.int64)  # prop
        self.step = np.zeros(n, dtype=np.int64)  # of each world's motion
        self.waited = np.zeros(n, dtype=np.int64)
        self.raised = np.zeros(n, dtype=np.int64)  # control steps
        self.turned = np.zeros(n)  # rad, of the motion as it is bent now
        self.over = np.zeros(n, dtype=bool)  # starting over: opens the hand and goes up
        for world, motion in enumerate(self.motions):
            for name in _PER_STEP:
                getattr(self, name)[world, : len(motion.pos)] = getattr(motion, name)
            for number, segment in enumerate(motion.segments):
                self.segment[world, segment.begin : segment.end] = number
                self.moves_by[world, segment.begin : segment.end] = segment.prop
            self._bend(world, 0)
        self.hold = np.array([motion.hold for motion in self.motions])
        self.fumbles = [self._fumble(motion) for motion in self.motions]
        self.fumbling = np.zeros(n, dtype=np.int64)  # control steps left of it
        self.closing = np.zeros(n, dtype=bool)  # ... in which the fingers close
        self.pressing = np.zeros(n, dtype=bool)  # what is asked of the fingers
        self.late = np.zeros(n, dtype=np.int64)  # control steps left in which they do not heed it
        self.strays = [self._strays(motion) for motion in self.motions]
        self.straying = np.zeros(n, dtype=np.int64)  # control steps left of it
        self.drift = torch.zeros(n, 6, dtype=torch.float64)  # m/s, rad/s: ... which carries it off
        self.misses = [self._misses(motion) for motion in self.motions]
        self.aside = np.zeros(n, dtype=bool)  # strays because of one of these
        self.drops = np.zeros(n, dtype=bool)  # ... and drops what it holds then
        self.anew = np.zeros(n, dtype=np.int64)  # times that it put something anew
        self.went_well = [False] * n  # once they are played

    def _fumble(self, motion: Motion) -> tuple[str, int]:
        """What goes wrong in an episode, and at which step of the motion."""
        draw = self.rng.random()
        towards = ~motion.press & np.logical_or.accumulate(motion.press[::-1])[::-1]
        kinds = {
            "close": np.flatnonzero(towards),
            "let go": np.flatnonzero(_holds_on(motion, FUMBLES["let go"][1])),
        }
        for kind, steps in kinds.items():
            if draw < FUMBLES[kind][0]:
                return kind, int(self.rng.choice(steps)) if len(steps) > 0 else len(motion.pos)
            draw -= FUMBLES[kind][0]
        return "", len(motion.pos)

    def _strays(self, motion: Motion) -> list[int]:
        """The steps of the motion at which its hand is carried off, the first one first."""
        stretches = {
            "open": ~motion.press,
            "holding": _holds_on(motion, STRAYS["holding"][1]),
        }
        chosen = []
        for kind, where in stretches.items():
            ends = np.flatnonzero(np.diff(np.concatenate(([0], where.astype(np.int8), [0]))))
            for begin, end in ends.reshape(-1, 2).tolist():
                if self.rng.random() < STRAYS[kind][0]:
                    chosen.append(int(self.rng.integers(begin, end)))
        return sorted(chosen)

    def _misses(self, motion: Motion) -> list[tuple[int, bool]]:
        """The steps of the motion at which what it puts down is carried aside, the first one first,
        and whether it is then dropped."""
        chosen = []
        for end in np.unique(motion.until[motion.down < FAR]).tolist():
            steps = np.flatnonzero((motion.until == end) & (motion.down < FAR))
            first = max(int(motion.down[steps[0]]), end - MISSED_BEFORE[0])
            steps = steps[(steps >= first) & (steps <= end - MISSED_BEFORE[1])]
            if len(steps) > 0 and self.rng.random() < MISSES[0]:
                chosen.append((int(self.rng.choice(steps)), bool(self.rng.random() < MISSES[1])))
        return chosen

    def _turns(
        self, motion: Motion, segment: Segment, now: np.ndarray, before: float
    ) -> np.ndarray:
        """(K,) rad: by how much a motion by a prop may be turned where the props are `now`
        (P + 1, 3), after one that was turned by `before` (rad)."""
        task, prop = self.env.task, segment.prop
        if prop == TABLE:
            return np.zeros(1)
        then, by = segment.places[prop], task.turning[prop] if task.turning else "prop"
        if by == "hand":
            return np.array([before])
        if by == "neighbours":
            return np.array([_past_neighbours(motion, segment, now)])
        if by == "arm":
            turns = np.array([_azimuth(now[prop]) - _azimuth(then)])
        else:
            ways = task.grasp_symmetry(prop)
            turns = np.arange(ways) * (2.0 * np.pi / ways)
            if by == "prop":
                turns = turns + now[prop, 2] - then[2]
                takes = _closing_axis(motion.mat[_take(motion, segment)])
                nearest = int(np.abs(_wrap(takes + turns - self.heading)).argmin())
                turns = turns[nearest : nearest + 1]
        return np.asarray(_wrap(turns))

    def _turn(
        self, motion: Motion, segment: Segment, now: np.ndarray, before: float = 0.0
    ) -> tuple[float, float]:
        """The turn (rad) by which a motion by a prop serves where the props are `now` (P + 1, 3),
        and how unlike the two places are: a symmetric prop can be taken in several ways, and a
        close neighbour stands in the way of some of them."""
        prop = segment.prop
        turns = self._turns(motion, segment, now, before)
        costs = []
        for turn in turns:
            cost = YAW_WEIGHT * abs(turn)
            for other in np.flatnonzero(motion.present).tolist():
                if other != prop:
                    apart = now[other, :2] - now[prop, :2]
                    then = segment.places[other, :2] - segment.places[prop, :2]
                    close = _closeness(apart)
                    unlike = np.linalg.norm(planar(-turn) @ apart - then)
                    cost += (ELSEWHERE + close * (1.0 - ELSEWHERE)) * float(unlike)
            costs.append(cost)
        best = int(np.argmin(costs))
        return float(turns[best]), float(costs[best])

    def _chosen(self, motions: list[Motion]) -> list[Motion]:
        """For every world one of the motions by the same props, in the same order, whose first one
        stood most alike."""
        chosen = []
        states = self.env.sim.get_state(torch.arange(self.env.num_envs)).numpy()
        for state, now in zip(states, prop_places(self.env).numpy(), strict=True):
            present, order = self.env.task.props_present(state), self.env.task.order_of(state)
            known = [
                motion
                for motion in motions
                if (motion.present == present).all() and motion.order == order
            ]
            costs = []
            for motion in known:
                first = motion.segments[0]
                across = np.linalg.norm(now[first.prop, :2] - first.places[first.prop, :2])
                costs.append(float(across) + self._turn(motion, first, now)[1])
            alike = np.argsort(costs)[:NEAREST]
            chosen.append(known[int(self.rng.choice(alike))])
        return chosen

    def _bend(self, world: int, begin: int, at_once: bool = False) -> None:
        """Writes where the hand goes from this step of a segment on, which begins now: from where
        it is, or `at_once` from where it should be."""
        motion = self.motions[world]
        segment = motion.segments[int(self.segment[world, begin])]
        rows = slice(begin, segment.end)
        places = prop_places(self.env)[world].numpy()
        turn, _ = self._turn(motion, segment, places, float(self.turned[world]))
        now, then = places[segment.prop, :2], segment.places[segment.prop, :2]
        path = motion.pos[rows]
        there = path.copy()
        there[:, :2] = (path[:, :2] - then) @ planar(turn).T + now
        shift = self.hand.pos()[world].numpy() - path[0]
        bent = np.ones(len(path)) if at_once else _weights(path)
        self.pos[world, rows] = (
            path + (1.0 - bent[:, None]) * shift + bent[:, None] * (there - path)
        )
        angles = (1.0 - bent) * self.turned[world] + bent * turn
        for i, angle in enumerate(angles):
            rotation = np.eye(3)
            rotation[:2, :2] = planar(angle)
            self.mat[world, begin + i] = rotation @ motion.mat[begin + i]
        self.angle[world, rows] = angles
        self.turned[world] = turn

    def episodes(self) -> tuple[list[Demonstration], list[np.ndarray]]:
        """Plays all worlds to their end, or until how that will be is known: what succeeded, and
        how the others had begun."""
        env, everyone = self.env, torch.arange(self.env.num_envs)
        seeds = env.episode_ids.tolist()
        columns: dict[str, list[Tensor]] = {
            name: [] for name in ("states", "actions", "rewards", "success")
        }
        scale = torch.tensor([TREMBLING] * 6 + [FINGER_TREMBLING * TREMBLING] * 3)
        # Control steps since the first success, and how many of these were none. A hand that
        # fumbled has to succeed anew, and nothing of before counts.
        since = torch.zeros(env.num_envs, dtype=torch.int64)
        undone = torch.zeros_like(since)
        begins = [0] * env.num_envs
        success = torch.zeros(env.num_envs, dtype=torch.bool)
        for number in range(env.episode_steps):
            action = self._act()
            columns["states"].append(env.sim.get_state(everyone))
            columns["actions"].append(action)
            noise = torch.from_numpy(self.rng.standard_normal(action.shape)).float()
            done = action + scale * noise
            strays = self._strayed()
            if bool(strays.any()):
                done[strays, :6] = self.hand.arm_action(self.drift)[strays].float()
            closes = self._fumbled()
            done[:, 6:] = torch.where(closes.isnan(), done[:, 6:], closes)
            known = (undone > BRIEF) | ((since > LASTS) & success)
            result = env.step(done, (~known).nonzero().squeeze(1))
            success = result.success
            columns["rewards"].append(result.reward)
            columns["success"].append(success)
            since += (since > 0) | success
            undone += (since > 0) & ~success
            for world in np.flatnonzero(self.fumbling > 0).tolist():
                since[world], undone[world], begins[world] = 0, 0, number + 1
        stacked = {name: torch.stack(values, dim=1).numpy() for name, values in columns.items()}
        made, failed = [], []
        for world in everyone.tolist():
            part = {name: values[world] for name, values in stacked.items()}
            episode = successful_episode(part, seeds[world])
            since_then = part["success"][begins[world] :]
            if episode is None or not since_then[-SETTLED:].all() or _undone(since_then):
                failed.append(part["states"][0])
            else:
                made.append(episode)
                self.went_well[world] = True
        return made, failed

    def _fumbled(self) -> Tensor:
        """(N, 1): what the fingers do of themselves; nan where they do what they are asked for."""
        closes = torch.full((len(self.worlds), 1), torch.nan)
        for world in np.flatnonzero(self.late > 0).tolist():
            self.late[world] -= 1
            closes[world] = 0.0 if self.pressing[world] else float(self.hold[world])
        for world, (kind, step) in enumerate(self.fumbles):
            if kind and self.step[world] >= step and not self.over[world]:
                self.fumbling[world] = FUMBLES[kind][1]
                self.fumbles[world] = ("", step)
                self.closing[world] = kind == "close"
            if self.fumbling[world] > 0:
                self.fumbling[world] -= 1
                closes[world] = 1.0 if self.closing[world] else -1.0
        return closes

    def _strayed(self) -> Tensor:
        """(N,) bool: where the hand is carried off now. It comes back from wherever it is then."""
        strays = self.straying > 0
        self.straying[strays] -= 1
        beside = self._lying()[0] > self.lies[self.worlds, self.step, 0] + DROPS
        for world in np.flatnonzero(strays & (self.straying == 0)).tolist():
            if not self.over[world] and not self.aside[world]:
                step = int(self.step[world])
                # What comes down beside its place is asked to go over it, and waits for that.
                self._bend(world, step, at_once=bool(self.down[world, step] <= step))
            self.aside[world] = False
            if self.drops[world] and beside[world]:
                self.closing[world] = False
                self.fumbling[world] = FUMBLES["let go"][1]
            self.drops[world] = False
        self._missed()
        for world, steps in enumerate(self.strays):
            step = int(self.step[world])
            if not steps or step < steps[0] or self._busy(world):
                continue
            steps.pop(0)
            motion = self.motions[world]
            kind = "holding" if motion.press[step] else "open"
            self.straying[world] = STRAYS[kind][1]
            twist = self.rng.uniform(-1.0, 1.0, 6)
            twist[2] = self.rng.uniform(-STRAY_DOWN, 1.0)
            self.drift[world] = torch.from_numpy(twist * np.repeat(STRAY_SPEED, 3))
            if kind == "open":
                self.step[world] = min(step, int(motion.again[step]))
        return torch.from_numpy(strays)

    def _busy(self, world: int) -> bool:
        """Whether something goes wrong there already, or is put right."""
        going = self.over[world] or self.fumbling[world] > 0 or self.straying[world] > 0
        return bool(going)

    def _missed(self) -> None:
        """What comes down to its place begins to be carried aside, where its time has come."""
        for world, misses in enumerate(self.misses):
            step = int(self.step[world])
            if not misses or step < misses[0][0] or self._busy(world):
                continue
            _, drops = misses.pop(0)
            if self.until[world, step] == FAR:  # it is let go already
                continue
            self.drops[world] = drops
            self.straying[world], self.aside[world] = MISSING, True
            towards = self.rng.uniform(-np.pi, np.pi)
            speed = self.rng.uniform(*MISSED_BY) / (MISSING * self.env.control_dt)
            self.drift[world] = 0.0
            self.drift[world, :3] = torch.tensor(
                [speed * np.cos(towards), speed * np.sin(towards), -MISSED_DOWN]
            )

    def _coming_down(self) -> tuple[np.ndarray, np.ndarray]:
        """Of what comes down to its place (N,) m, (N,) m/s: the height under which the hand does
        not go, so that it is brought over it first, the further aside the higher; and, once it is
        over it, the vertical velocity above which it does not stay. -inf and inf of all else."""
        worlds, step = self.worlds, self.step
        across, height = self._lying()
        aside = (across - self.lies[worlds, step, 0] - FUNNEL[0]).clip(0.0)
        higher = self.lies[worlds, step, 1] + np.minimum(FUNNEL[1] * aside, FUNNEL[2]) - height
        down = (self.down[worlds, step] <= step) & ~self.over
        # No higher than from where it came: it may have taken along what it should be put on.
        begin = np.minimum(self.down[worlds, step], self.last)
        highest = self.pos[worlds, begin, 2] + FUNNEL[2]
        above = np.minimum(self.hand.pos().numpy()[:, 2] + higher, highest)
        lowest = np.where(down & (aside > 0.0), above, -np.inf)
        return lowest, np.where(down & (aside == 0.0), -SINKING, np.inf)

    def _act(self) -> Tensor:
        """(N, 9) float32 in [-1, 1]; moves every world's motion on where its hand keeps up."""
        worlds = self.worlds
        fingers = self.env.sim.data("qpos")[:, self.env.jaco.qpos_ids[6:]].numpy()
        self._start_over(fingers)
        self._catch_up()
        following = np.minimum(self.step + 1, self.last)
        target = self.pos[worlds, self.step]
        forward = torch.from_numpy(self.pos[worlds, following] - target)
        lowest, sinking = self._coming_down()
        raised = lowest > target[:, 2] + LAG[0]
        target[:, 2] = np.maximum(target[:, 2], lowest)
        missing = torch.from_numpy(target) + torch.from_numpy(self._slipped()) - self.hand.pos()
        turn = self.hand.rotation_to(torch.from_numpy(self.mat[worlds, self.step]))
        lags = ((missing.norm(dim=1) > LAG[0]) | (turn.norm(dim=1) > LAG[1])).numpy()
        behind = fingers - self.fingers[worlds, self.step]
        speed = self.env.sim.data("qvel")[:, self.env.jaco.dof_ids[6:]].abs().amax(dim=1).numpy()
        # A hand that rises while its fingers still close takes less than it should, or nothing.
        closes = (-behind.mean(axis=1) > CLOSES) & (speed > FIRM[0])
        lags |= np.where(self.press[worlds, self.step], closes, behind.max(axis=1) > LAG[2])
        # Closes where it takes hold in the demonstration.
        far = missing.norm(dim=1, keepdim=True)
        takes = ~self.press[worlds, self.step] & self.press[worlds, following]
        takes &= far.squeeze(1).numpy() > THERE
        lags |= takes
        press = self.press[worlds, self.step] & ~self.over
        self._hesitate(press)
        waits = self.over | (self.straying > 0) | (self.late > 0)
        self.raised = np.where(raised, self.raised + 1, 0)
        raised &= self.raised <= RAISED
        waits |= (lags & (self.waited < PATIENCE)) | raised
        goes_on = torch.from_numpy(~waits).unsqueeze(1)
        linear = POSITION_GAIN * missing + goes_on * forward / self.env.control_dt
        linear[:, 2] = linear[:, 2].minimum(torch.from_numpy(sinking))
        steady = missing * (POSITION_GAIN * far).clamp(min=ARRIVING) / far.clamp(min=1e-9)
        linear = torch.where(torch.from_numpy(takes).unsqueeze(1), steady, linear)
        fast = linear.norm(dim=1, keepdim=True).clamp(min=1e-9)
        linear = linear * (MAX_SPEED / fast).clamp(max=1.0)
        twist = torch.cat((linear, ROTATION_GAIN * turn), dim=1)
        over = torch.from_numpy(self.over)
        twist[over] = 0.0
        # As high as the hand was there, and no higher.
        twist[over, 2] = (POSITION_GAIN * missing[over, 2]).clamp(0.0, RISE)
        arm = self.hand.arm_action(twist)
        opening = FINGER_GAIN * (self.aim[worlds, self.step] - fingers)
        opening = (opening / robot.FINGER_MAX_VELOCITY).clip(-1.0, 1.0)
        closed = fingers.mean(axis=1) > FIRM[1] * self.aim[worlds, self.step].mean(axis=1)
        closing = np.where(closed & (speed < FIRM[0]), self.hold, 1.0)
        asked = torch.from_numpy(np.where(press[:, None], closing[:, None], opening))
        # Hands that stray and fingers that fumble may take their time.
        busy = (self.fumbling > 0) | (self.straying > 0) | (self.late > 0)
        self.waited = np.where(waits & ~busy & ~raised, self.waited + 1, 0)
        self._advance(np.where(waits, self.step, following))
        return torch.cat((arm, asked), dim=1).float().clamp(-1.0, 1.0)

    def _hesitate(self, press: np.ndarray) -> None:
        """press: (N,) bool, asked of the fingers now."""
        for world in np.flatnonzero(press != self.pressing).tolist():
            hesitates = self.rng.random() < LATE[0]
            self.late[world] = self.rng.integers(1, LATE[1] + 1) if hesitates else 0
        self.pressing = press

    def _slipped(self) -> np.ndarray:
        """(N, 3) m: how much further the hand must go so that what it holds comes to where it was
        in the demonstration, though it is held elsewhere."""
        worlds = self.worlds
        cos, sin = np.cos(self.angle[worlds, self.step]), np.sin(self.angle[worlds, self.step])
        x, y, z = self.grip[worlds, self.step].T
        then = np.stack((cos * x - sin * y, sin * x + cos * y, z), axis=1)
        held = self.held[worlds, self.step]
        now = prop_grips(self.env).numpy()[worlds, np.maximum(held, 0)]
        carried = self.until[worlds, self.step] < FAR
        return np.where(carried[:, None], np.clip(then - now, -SLIP, SLIP), 0.0)

    def _start_over(self, fingers: np.ndarray) -> None:
        """Where a prop is lost, or the hand is closed that should be open: back to where the motion
        towards the prop began, with an open hand.

        fingers: (N, 3) rad.
        """
        self._put_anew()
        worlds = self.worlds
        held = self.held[worlds, self.step]
        apart = np.linalg.norm(prop_grips(self.env).numpy()[worlds, np.maximum(held, 0)], axis=1)
        then = np.linalg.norm(self.grip[worlds, self.step], axis=1)
        lost = (held >= 0) & (apart > then + LOST)
        closed = (fingers - self.fingers[worlds, self.step]).max(axis=1)
        tight = (held < 0) & ~self.press[worlds, self.step] & (closed > TIGHT[0])
        for world in np.flatnonzero((lost | tight) & ~self.over).tolist():
            self.step[world] = self.motions[world].again[self.step[world]]
            self.over[world] = True
        closed = (fingers - self.aim[worlds, self.step]).max(axis=1)
        for world in np.flatnonzero(self.over & (closed < TIGHT[1])).tolist():
            self.over[world] = False
            self._bend(world, int(self.step[world]))

    def _put_anew(self) -> None:
        """Where what was put somewhere is there no longer: back to before it was taken."""
        heights, where = prop_heights(self.env).numpy(), prop_places(self.env).numpy()
        for world, motion in enumerate(self.motions):
            if self.anew[world] >= ANEW or self.straying[world] > 0 or self.over[world]:
                continue
            for placing in motion.placings:
                if self.step[world] < placing.step:
                    break
                held, prop, rests = placing.held, placing.prop, placing.rests
                across = np.linalg.norm(where[world, held, :2] - where[world, prop, :2])
                height = heights[world, held] - heights[world, prop]
                # What has only just been let go may still be falling.
                high = height > rests[2] + GONE and self.step[world] >= placing.step + SETTLED
                if across > rests[0] + GONE or height < rests[1] - GONE or high:
                    self.anew[world] += 1
                    self.step[world] = motion.again[placing.step - 1]
                    self.over[world] = True
                    break

    def _catch_up(self) -> None:
        """To the step, of the next few, at which the hand's place is nearest: what is asked of the
        hand then depends on where it is and not on when."""
        worlds = self.worlds
        hand = self.hand.pos().numpy()
        best = self.step
        nearest = np.linalg.norm(self.pos[worlds, best] - hand, axis=1)
        for ahead in range(1, AHEAD + 1):
            step = np.minimum(self.step + ahead, self.last)
            # Not over what the fingers do, and not into the next segment.
            same = self.segment[worlds, step] == self.segment[worlds, self.step]
            same &= self.press[worlds, step] == self.press[worlds, self.step]
            moved = np.abs(self.fingers[worlds, step] - self.fingers[worlds, self.step])
            same &= moved.max(axis=1) < LAG[2]
            distance = np.linalg.norm(self.pos[worlds, step] - hand, axis=1)
            better = same & ~self.over & (self.straying == 0) & (distance < nearest)
            best = np.where(better, step, best)
            nearest = np.where(better, distance, nearest)
        # The last stretch before it takes hold is one: where a hand creeps a clone stops.
        takes = self.takes[worlds, best]
        there = np.minimum(takes, self.last)
        near = np.linalg.norm(self.pos[worlds, there] - self.pos[worlds, best], axis=1) < ARRIVES
        near &= (takes < FAR) & ~self.over & (self.straying == 0)
        self.step = np.where(near, there, best)
        self._let_go()

    def _let_go(self) -> None:
        """As soon as what a hand holds lies nearly as it did in demonstrations when it was let go:
        a hand that waits there would teach a clone to hold on. One that misses does so, too."""
        across, height = self._lying()
        limits = self.lies[self.worlds, self.step]
        lies = (across < limits[:, 0]) & (height < limits[:, 1]) & ~self.over
        lies &= (self.until[self.worlds, self.step] < FAR) & ((self.straying == 0) | self.aside)
        for world in np.flatnonzero(lies).tolist():
            self.step[world] = self.until[world, self.step[world]]
            if self.aside[world]:
                self.straying[world], self.aside[world], self.drops[world] = 0, False, False

    def _lying(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,), (N,) m: how what is held lies by what the hand moves by, across and in height."""
        heights, where = prop_heights(self.env).numpy(), prop_places(self.env).numpy()
        held = np.maximum(self.held[self.worlds, self.step], 0)
        prop = self.moves_by[self.worlds, self.step]
        across = where[self.worlds, held, :2] - where[self.worlds, prop, :2]
        return (
            np.linalg.norm(across, axis=1),
            heights[self.worlds, held] - heights[self.worlds, prop],
        )

    def _advance(self, step: np.ndarray) -> None:
        moved = step != self.step
        self.step = step
        for world in np.flatnonzero(moved).tolist():
            for number, segment in enumerate(self.motions[world].segments):
                if number > 0 and segment.begin == step[world]:
                    self._bend(world, segment.begin)


def _holds_on(motion: Motion, length: int) -> np.ndarray:
    """(T,) bool: something is held, and it is not yet time to let go of it, nor soon after so many
    control steps: what is asked for until then is to hold on."""
    left = motion.until - np.arange(len(motion.pos))
    holds: np.ndarray = (motion.held >= 0) & motion.press & (left > LAST + length)
    return holds


def _azimuth(place: np.ndarray) -> float:
    """rad: the direction of a place (x, y, ...) [m] as seen from the arm's base."""
    x, y = place[:2] - np.asarray(robot.BASE_POS)[:2]
    return float(np.arctan2(y, x))


def _wrap(angle: float | np.ndarray) -> float | np.ndarray:
    """rad -> the same direction within [-pi, pi)."""
    return (angle + np.pi) % (2.0 * np.pi) - np.pi


def _closeness(apart: np.ndarray) -> float:
    """(2,) m to a neighbour -> how much that one counts, in [0, 1]."""
    return float(np.clip((NEIGHBOUR[0] - np.linalg.norm(apart)) / NEIGHBOUR[1], 0.0, 1.0))


def _closing_axis(mat: np.ndarray) -> float:
    """(3, 3) -> rad: the direction on the table of the axis along which a hand closes."""
    return float(np.arctan2(mat[1, 0], mat[0, 0]))


def _take(motion: Motion, segment: Segment) -> int:
    """The step at which the hand holds the segment's prop, or the last one where it does not."""
    steps = np.arange(segment.begin, segment.end)
    holds = steps[motion.held[steps] == segment.prop]
    return int([*holds, steps[-1]][0])


def _usual_heading(task: Task, motions: list[Motion]) -> float:
    """rad: the mean direction of the axis along which a hand closes on what it can take in several
    ways. Of these ways the one next to that is how all demonstrations do it: a policy does not know
    after which one it acts."""
    headings = [
        _closing_axis(motion.mat[step])
        for motion in motions
        for segment in motion.segments
        if segment.prop != TABLE and task.grasp_symmetry(segment.prop) > 1
        if motion.press[step := _take(motion, segment)]
    ]
    return float(np.angle(np.exp(1j * np.array(headings)).sum())) if headings else 0.0


def _past_neighbours(motion: Motion, segment: Segment, now: np.ndarray) -> float:
    """The turn (rad) by which a hand takes a prop with its closing axis as it was first, and, the
    closer the nearest neighbour is, the more across its direction: a finger would come down on it.
    now: (P + 1, 3), where the props are."""
    came, takes = (_closing_axis(motion.mat[step]) for step in (0, _take(motion, segment)))
    turn = float(_wrap(came - takes))
    others = [i for i in np.flatnonzero(motion.present).tolist() if i != segment.prop]
    if others:
        apart = now[others, :2] - now[segment.prop, :2]
        nearest = apart[np.linalg.norm(apart, axis=1).argmin()]
        across = np.arctan2(nearest[1], nearest[0]) + np.pi / 2 - came
        shorter = (across + np.pi / 2) % np.pi - np.pi / 2  # of two ways
        turn += _closeness(nearest) * shorter
    return turn


def _weights(path: np.ndarray) -> np.ndarray:
    """(T, 3) of a segment -> (T,) how much of it is bent: 0 at its begin, 1 from BENT of the way
    on, smooth at both ends; 1 throughout where it only stands."""
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    length = np.concatenate(([0.0], np.cumsum(steps)))
    if length[-1] < STANDS:
        return np.ones(len(path))
    share = np.clip(length / (BENT * length[-1]), 0.0, 1.0)
    return share * share * (3.0 - 2.0 * share)


def _undone(success: np.ndarray) -> bool:
    """(T,) bool -> whether what had succeeded was taken apart again, for more than a moment, or
    there was no time for it."""
    if len(success) == 0:
        return True
    since = success[int(np.argmax(success)) :]
    return int((~since).sum()) > BRIEF
