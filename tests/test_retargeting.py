"""Demonstrations carried over to other starts: they succeed there, and nothing but them is used."""

from __future__ import annotations

import ast
import functools
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from visuomotor import motions, retargeting
from visuomotor.config import Config, EnvConfig, RandomizationConfig
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import Demonstration, Demonstrations
from visuomotor.envs import TASKS, VisuomotorEnv, make_env
from visuomotor.envs.tasks.task import TABLE
from visuomotor.errors import UserError
from visuomotor.replay import DemonstrationReplay
from visuomotor.retargeting import (
    _Retargeting,
    _Served,
    _usual_heading,
    _weights,
    with_retargeted,
)

QUIET = RandomizationConfig(strength=0.0)


def config(task: str) -> Config:
    return Config(task=task, randomization=QUIET, env=EnvConfig(num_threads=1), turned_copies=0)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this module's own, empty at first: nothing that an older version made is read."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(root))
        yield root


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    made, _ = collect(config("stacking"), 6, seed=4)
    return made


@pytest.fixture(scope="module")
def more(demos: Demonstrations) -> Demonstrations:
    return with_retargeted(config("stacking"), demos, 24)


@functools.cache
def carried_over(task: str) -> list[Demonstration]:
    """Of four demonstrations, ten other starts, trembling, one attempt each: those that succeed."""
    made, _ = collect(config(task), 4, seed=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retargeting, "MAX_ATTEMPTS", 1)
        return with_retargeted(config(task), made, 10).demos[4:]


# Those whose episodes take a quick test too long; clearing_blocks' serve another test, too.
LONG = ("order_fulfillment", "pouring")


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=pytest.mark.slow if task in LONG else ()) for task in TASKS]
)
def test_most_attempts_succeed(task: str) -> None:
    assert len(carried_over(task)) >= 5


def test_what_is_brought_to_a_place_comes_there_from_every_start() -> None:
    env = make_env(config("clearing_blocks"), num_envs=1, seed=0, render=False)
    env.reset()
    away = []
    for demo in carried_over("clearing_blocks"):
        for state in demo.states[[0, -1]]:
            env.sim.reset(torch.tensor([0]), torch.from_numpy(state[None]))
            away.append(float(env.task.prop_pos(1)[0, :2].norm()))
    starts, ends = np.array(away).reshape(-1, 2).T
    assert np.median(ends) < 0.02 < 0.04 < np.median(starts)


def test_the_demonstrations_themselves_come_first(
    demos: Demonstrations, more: Demonstrations
) -> None:
    assert len(more) == 30
    for before, after in zip(demos.demos, more.demos, strict=False):
        assert after is before


def test_what_is_kept_is_an_episode_of_the_simulator(more: Demonstrations) -> None:
    """The actions, without the noise that the hand had, lead close to the next state; the task
    itself sees success at the end, and a start from its own distribution."""
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    env.reset()
    only = torch.tensor([0])
    for demo in more.demos[6:12]:
        length = len(demo.states)
        assert demo.actions.shape == (length, 9)
        assert float(np.abs(demo.actions).max()) <= 1.0
        assert env.task.may_start(demo.states[0])
        env.sim.reset(only, torch.from_numpy(demo.states[-1:]))
        assert int(env.task.stage()[0]) == len(env.task.stages) - 1
        assert demo.rewards[-motions.SETTLED :].min() == 1.0
        errors = {scale: 0.0 for scale in (1.0, 0.0, -1.0)}
        moving = np.flatnonzero(np.abs(demo.actions[:-1, :6]).max(axis=1) > 0.4)
        for step in moving[::3].tolist():
            for scale in errors:
                env.sim.reset(only, torch.from_numpy(demo.states[step : step + 1]))
                action = torch.from_numpy(scale * demo.actions[step][None])
                env.sim.data("ctrl").copy_(env.jaco.ctrl(action))
                env.sim.step()
                arm = env.jaco.qpos_ids[:6].numpy()
                moved = env.sim.get_state(only)[0].numpy()[arm]
                errors[scale] += float(np.abs(moved - demo.states[step + 1][arm]).mean())
        assert errors[1.0] < 0.6 * errors[0.0] < 0.6 * errors[-1.0]


def test_starts_are_new_ones(demos: Demonstrations, more: Demonstrations) -> None:
    starts = np.stack([demo.states[0] for demo in more.demos])
    distance = np.abs(starts[:, None] - starts[None]).max(axis=2)
    np.fill_diagonal(distance, 1.0)
    assert distance.min() > 1e-3


def test_they_are_made_once_and_kept(
    demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = with_retargeted(config("stacking"), demos, 4)
    (file,) = (tmp_path / "visuomotor").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(retargeting, "_make", None)  # made again they would fail
        threads = replace(config("stacking"), seed=1, env=EnvConfig(num_threads=2))
        kept = with_retargeted(threads, demos, 4)
    file.unlink()
    again = with_retargeted(config("stacking"), demos, 4)
    for first, second, third in zip(fresh.demos, kept.demos, again.demos, strict=True):
        for name in ("states", "actions", "rewards", "dones", "seed"):
            assert np.array_equal(getattr(first, name), getattr(second, name))
            assert np.array_equal(getattr(first, name), getattr(third, name))
    with_retargeted(config("stacking"), replace(demos, demos=demos.demos[:5]), 4)
    assert len(list((tmp_path / "visuomotor").iterdir())) == 2


def test_the_code_of_a_task_makes_copies_of_its_own(
    demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(retargeting, "_make", lambda env, usable, count, progress: usable[:count])
    with_retargeted(config("stacking"), demos, 2)
    own = tmp_path / "own.py"
    own.write_text(
        "from visuomotor.envs.tasks.stacking import Stacking\n"
        "class Own(Stacking):\n    turning = ('ways', 'hand')\n"
    )
    spec = importlib.util.spec_from_file_location("own", own)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "own", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(TASKS, "stacking", module.Own)
    with_retargeted(config("stacking"), demos, 2)
    assert len(list((tmp_path / "visuomotor").iterdir())) == 2


def test_a_cache_that_cannot_be_written_is_refused_first(
    demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(retargeting, "_make", None)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        with_retargeted(config("stacking"), demos, 4)


def test_states_of_another_scene_are_refused_before_they_are_simulated(
    demos: Demonstrations,
) -> None:
    with pytest.raises(UserError, match="numbers behind the time"):
        with_retargeted(config("lifting"), demos, 2)
    far = replace(demos.demos[0], states=demos.demos[0].states + 1e9)
    with pytest.raises(UserError, match="states reach"):
        with_retargeted(config("stacking"), replace(demos, demos=[far]), 2)


def test_none_are_made_where_none_are_wanted_or_actions_are_missing(demos: Demonstrations) -> None:
    assert with_retargeted(config("stacking"), demos, 0) is demos
    mute = replace(demos, demos=[replace(demo, actions=None) for demo in demos.demos])
    assert with_retargeted(config("stacking"), mute, 10) is mute


def test_a_replay_derives_what_the_copies_lack(more: Demonstrations) -> None:
    replay = DemonstrationReplay(config("stacking"), more)
    assert replay.has_actions
    assert len(replay.state) == 30
    last = replay.stage[-1]
    assert int(last[0]) == 0
    assert int(last[-1]) == 3


def test_smoothing_keeps_a_straight_path_and_takes_out_trembling() -> None:
    line = np.linspace(0.0, 1.0, 40)[:, None] * np.array([1.0, -2.0, 0.5])
    inner = slice(motions.SMOOTHED, -motions.SMOOTHED)
    np.testing.assert_allclose(motions._smooth(line)[inner], line[inner], atol=1e-12)
    rough = line + np.random.default_rng(0).normal(0.0, 0.1, line.shape)
    assert (
        np.abs(motions._smooth(rough) - line)[inner].mean()
        < 0.6 * np.abs(rough - line)[inner].mean()
    )


def test_a_motion_is_bent_from_where_it_was_to_where_it_must_be() -> None:
    path = np.stack([np.linspace(0.0, 1.0, 21), np.zeros(21), np.zeros(21)], axis=1)
    weights = _weights(path)
    assert weights[0] == 0.0
    assert weights[5] == pytest.approx(0.5)  # a quarter of the path, half of the bent part
    assert (weights[11:] == 1.0).all()
    assert (np.diff(weights) >= 0.0).all()


def test_a_hand_that_only_stands_stands_where_it_must_be() -> None:
    assert (_weights(np.zeros((5, 3))) == 1.0).all()
    assert (_weights(np.zeros((1, 3))) == 1.0).all()


def test_a_moments_change_of_the_fingers_is_trembling() -> None:
    press = np.array([0] * 8 + [1] * 10 + [0] * 2 + [1] * 6 + [0] * 9, dtype=bool)
    steady = motions._steady(press)
    assert steady.tolist() == [False] * 8 + [True] * 18 + [False] * 9
    ends = motions._phase_ends(steady)
    assert ends[0] == 7
    assert ends[8] == ends[25] == 25
    assert ends[26] == 34


def test_a_hand_presses_until_it_opens() -> None:
    asked = np.array([0.0, 0.3, 0.9, 1.0, 0.2, 0.1, -0.1, 0.3, -1.0])
    assert motions._pressing(asked).tolist() == [False, False] + [True] * 4 + [False] * 3


def test_what_is_taken_apart_again_has_not_succeeded() -> None:
    good = np.array([0] * 10 + [1] * 3 + [0] * 2 + [1] * 20, dtype=bool)
    bad = np.array([0] * 10 + [1] * 5 + [0] * 20 + [1] * 20, dtype=bool)
    assert not retargeting._undone(good)
    assert retargeting._undone(bad)


def test_time_stands_still_where_an_episodes_end_is_known(
    demos: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a fumble the end is known later.
    monkeypatch.setattr(retargeting, "FUMBLES", {"close": (0.4, 14), "let go": (0.0, 10)})
    monkeypatch.setattr(retargeting, "MISSES", (0.4, 0.0))
    steps = 300
    longer = replace(config("stacking"), env=EnvConfig(num_threads=1, episode_steps=steps))
    env = make_env(longer, num_envs=8, seed=1, render=False)
    played = [motions.read_motion(env, demo) for demo in demos.demos]
    motions.agree(played)
    env.reset()
    moved, success = np.zeros((steps, 8), dtype=bool), np.zeros((steps, 8), dtype=bool)
    step, rows = env.step, iter(range(steps))

    def watched(action: torch.Tensor, moving: torch.Tensor) -> Any:
        row, result = next(rows), step(action, moving)
        moved[row, moving.numpy()] = True
        success[row] = result.success.numpy()
        return result

    env.step = watched  # type: ignore[method-assign, assignment]
    made, failed = _Retargeting(env, played, np.random.default_rng(0)).episodes()
    assert len(made) + len(failed) == 8 and len(made) >= 4
    # Once it stands it stays; where nothing succeeded it never did.
    assert (np.diff(moved.astype(int), axis=0) <= 0).all()
    assert moved[:, ~success.any(axis=0)].all()
    known = success.argmax(axis=0)[success[-1]] + retargeting.LASTS + 1
    assert moved.sum(axis=0)[success[-1]].tolist() == np.minimum(known, steps).tolist()
    assert known.min() < 0.8 * steps


def test_when_a_prop_is_let_go_is_the_same_for_all(demos: Demonstrations) -> None:
    env = make_env(config("stacking"), num_envs=8, seed=0, render=False)
    read = [motions.read_motion(env, demo) for demo in demos.demos]
    for motion in read:
        carried = motion.until < motions.FAR
        # Carried over the other block until it is let go.
        assert 10 < carried.sum() < 110
        assert (motion.held[carried] == 0).all()
        assert motion.press[carried].all()
        assert len(set(motion.until[carried])) == 1
        assert not motion.press[motion.until[carried][0]]
        segment = motion.segments[0]
        assert segment.begin <= motion.again[segment.begin] < int(np.argmax(motion.press))
    motions.agree(read)
    limits = {tuple(m.lies[step]) for m in read for step in np.flatnonzero(m.until < motions.FAR)}
    assert len(limits) == 1
    across, height = limits.pop()
    assert across < 0.0225
    assert height == pytest.approx(0.045 + motions.LOOSE[1], abs=0.002)


@pytest.mark.parametrize("kind", ["close", "let go"])
def test_after_a_fumble_the_hand_opens_and_tries_again(
    kind: str, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every episode goes wrong; most end well, and what was asked for is not the fumble."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    length = retargeting.FUMBLES[kind][1]
    shares = {name: (float(name == kind), length) for name in retargeting.FUMBLES}
    monkeypatch.setattr(retargeting, "FUMBLES", shares)
    monkeypatch.setattr(retargeting, "START_FINGERS", (0.25, 0.3))
    monkeypatch.setattr(retargeting, "MAX_ATTEMPTS", 1)
    made = with_retargeted(config("stacking"), demos, 16).demos[6:]
    assert len(made) >= 8
    usual = np.median([len(demo.states) for demo in demos.demos])
    assert np.median([len(demo.states) for demo in made]) > usual + 15
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    for demo in made:
        fingers = demo.states[:, env.jaco.qpos_ids[6:].numpy()].mean(axis=1)
        asked = demo.actions[:, 6:].mean(axis=1)
        speed = np.diff(fingers)
        if kind == "close":
            # Closed where it was asked to open, then opened.
            assert ((speed > 0.02) & (asked[:-1] < 0.0)).any()
        else:
            assert ((speed < -0.02) & (asked[:-1] > 0.0)).any()
        pressed = np.flatnonzero(np.diff((asked > 0.5).astype(int)) == 1)
        assert len(pressed) >= 1


@pytest.mark.parametrize("dropped", [0.0, 1.0])
def test_what_comes_down_beside_its_place_is_put_there_after_all(
    dropped: float, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every episode misses; most end well. What is beside its place comes up again, or falls."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(retargeting, "STRAYS", {"open": (0.0, 25), "holding": (0.0, 10)})
    monkeypatch.setattr(retargeting, "FUMBLES", {"close": (0.0, 14), "let go": (0.0, 10)})
    monkeypatch.setattr(retargeting, "LATE", (0.0, 8))
    monkeypatch.setattr(retargeting, "MISSES", (1.0, dropped))
    monkeypatch.setattr(retargeting, "MISSED_BY", (0.06, 0.07))
    monkeypatch.setattr(retargeting, "MAX_ATTEMPTS", 1)
    made = with_retargeted(config("stacking"), demos, 32).demos[6:]
    assert len(made) >= 16
    usual = np.median([len(demo.states) for demo in demos.demos])
    assert np.median([len(demo.states) for demo in made]) > usual + 5
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    missed, came_up, fell = 0, 0, 0
    for demo in made:
        offset = np.zeros((len(demo.states), 3))
        for step, state in enumerate(demo.states):
            env.sim.reset(torch.zeros(1, dtype=torch.int64), torch.from_numpy(state[None]))
            offset[step] = (env.task.prop_pos(0) - env.task.prop_pos(1))[0]
        aside, height = np.linalg.norm(offset[:, :2], axis=1), offset[:, 2]
        was_high = np.cumsum(height > 0.06) > 0
        beside = np.flatnonzero(was_high & (aside > 0.02) & (height > 0.02) & (height < 0.05))
        missed += len(beside) > 0
        at = int(beside[0]) if len(beside) > 0 else 0
        came_up += len(beside) > 0 and height[at : at + 25].max() > height[at] + 0.005
        fell += (was_high & (height < 0.01)).any()
    assert missed >= 0.3 * len(made)
    if dropped:
        assert fell >= 0.3 * len(made)
    else:
        assert came_up >= 0.5 * missed and fell <= 0.2 * len(made)


def first_copy(demos: Demonstrations) -> tuple[VisuomotorEnv, motions.Motion, _Retargeting]:
    """The first demonstration, about to be played in another start."""
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    played = [motions.read_motion(env, demo) for demo in demos.demos[:1]]
    motions.agree(played)
    env.reset()
    return env, played[0], _Retargeting(env, played, np.random.default_rng(0))


def test_a_hand_that_takes_its_place_along_does_not_rise_for_ever(demos: Demonstrations) -> None:
    """It is asked up by how high it is over its place, which rises with it where both hang
    together: to where it came down from and FUNNEL's height above, and it does not wait longer
    than RAISED."""
    env, motion, copy = first_copy(demos)
    (placing,) = motion.placings
    copy.step[0] = placing.step - 2
    copy._bend(0, int(np.flatnonzero(copy.segment[0] == copy.segment[0, copy.step[0]])[0]))
    # Held beside the other block, at its height, both as high as the hand can be.
    state = torch.from_numpy(demos.demos[0].states[copy.step][:1]).clone()
    ids = env.task._prop_qpos_ids
    state[0, ids[1] : ids[1] + 3] = state[0, ids[0] : ids[0] + 3] + torch.tensor([0.06, 0.0, 0.0])
    env.sim.reset(torch.zeros(1, dtype=torch.int64), state)
    lowest, _ = copy._coming_down()
    hand = float(copy.hand.pos()[0, 2])
    came = float(copy.pos[0, motion.down[placing.step - 1], 2])
    assert hand < lowest[0] <= came + retargeting.FUNNEL[2] + 1e-6
    before = int(copy.step[0])
    for _ in range(retargeting.RAISED + retargeting.PATIENCE + 2):
        copy._act()
    assert copy.step[0] != before


@pytest.mark.parametrize(
    "offset, after, gone",
    [
        ([0.0, 0.0, 0.0], 2, False),
        ([0.0, 0.1, -0.045], 2, True),
        ([0.0, 0.0, 0.03], 2, False),  # let go of above it, and not there yet
        ([0.0, 0.0, 0.03], 10, True),
    ],
)
def test_what_lies_no_longer_where_it_was_put_is_put_there_anew(
    offset: list[float], after: int, gone: bool, demos: Demonstrations
) -> None:
    env, motion, copy = first_copy(demos)
    (placing,) = motion.placings
    assert (placing.held, placing.prop) == (0, 1)
    assert placing.rests == pytest.approx((0.0, 0.045, 0.045), abs=0.012)
    # The demonstration's own end, where one block lies on the other, or that block elsewhere.
    state = torch.from_numpy(demos.demos[0].states[-1:]).clone()
    block = env.task._prop_qpos_ids[0]
    state[0, block : block + 3] += torch.tensor(offset)
    env.sim.reset(torch.zeros(1, dtype=torch.int64), state)
    copy.step[0] = min(placing.step + after, copy.last[0])
    copy._act()
    before = motion.again[placing.step - 1]
    assert (copy.step[0] == before) == gone and before < placing.step - 20
    assert copy.anew[0] == gone


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_fingers_are_late(
    share: float, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to let go, and to close, they stand still for some steps, and so does the hand."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(retargeting, "LATE", (share, 8))
    for name in ("STRAYS", "FUMBLES"):
        never = {kind: (0.0, length) for kind, (_, length) in getattr(retargeting, name).items()}
        monkeypatch.setattr(retargeting, name, never)
    monkeypatch.setattr(retargeting, "MISSES", (0.0, 0.0))
    monkeypatch.setattr(retargeting, "FINGER_TREMBLING", 0.0)
    made = with_retargeted(config("stacking"), demos, 16).demos[6:]
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    fingers = env.jaco.qpos_ids[6:].numpy()
    waits: dict[str, list[int]] = {"opens": [], "closes": []}
    for demo in made:
        asked = demo.actions[:, 6:].mean(axis=1)
        moved = np.append(np.diff(demo.states[:, fingers].mean(axis=1)), 0.0)  # rad
        for kind, sign in (("opens", -1.0), ("closes", 1.0)):
            wants = sign * asked > 0.9
            for begin in np.flatnonzero(wants[1:] & ~wants[:-1]) + 1:
                moves = np.flatnonzero(sign * moved[begin : begin + 12] > 0.02)
                if len(moves) > 0:
                    waits[kind].append(int(moves[0]))
    for kind, steps in waits.items():
        assert len(steps) >= len(made), kind
        # All that are late wait for 1 to 8 steps, and all else at most for the motors.
        assert (np.median(steps) >= 3) == (share == 1.0), (kind, steps)
        assert max(steps) <= 10, (kind, steps)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_hand_that_is_carried_off_comes_back(
    share: float, demos: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most episodes end well all the same; what was asked for is not what carried it off."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    strays = {kind: (share, length) for kind, (_, length) in retargeting.STRAYS.items()}
    monkeypatch.setattr(retargeting, "STRAYS", strays)
    monkeypatch.setattr(retargeting, "FUMBLES", {"close": (0.0, 14), "let go": (0.0, 10)})
    monkeypatch.setattr(retargeting, "MAX_ATTEMPTS", 1)
    made = with_retargeted(config("stacking"), demos, 16).demos[6:]
    assert len(made) >= 8
    env = make_env(config("stacking"), num_envs=1, seed=0, render=False)
    joints = env.jaco.qpos_ids[:6].numpy()
    fastest = env.jaco.velocity_limits[:6].numpy() * env.control_dt
    for demo in made:
        done = np.diff(demo.states[:, joints], axis=0)  # rad
        asked = demo.actions[:-1, :6] * fastest
        apart = np.linalg.norm(done - asked, axis=1)
        for_a_while = np.convolve(apart, np.full(20, 1 / 20), mode="valid").max()
        assert (for_a_while > 0.05) == (share > 0.0)


def first_motion(came: float, takes: float) -> tuple[Any, motions.Segment]:
    """A motion whose closing axis had the one direction first and the other when it took the prop,
    which stood at x = 0.05 m, turned by 0.2 rad; and the part of it that moves by that prop."""
    mat = np.zeros((9, 3, 3))
    # In the hand it is turned further.
    angles = np.interp(np.arange(9), [0, 5, 8], [came, takes, takes + 1.0])
    for axes, angle in zip(mat, angles, strict=True):
        axes[:2, 0] = np.cos(angle), np.sin(angle)
    places = np.array([[0.05, 0.0, 0.2], [0.0, 0.2, 0.0], [0.0] * 3])
    held = np.array([-1] * 5 + [0] * 4)
    motion = SimpleNamespace(mat=mat, held=held, present=np.array([True, True]))
    return motion, motions.Segment(0, 9, 0, places)


@pytest.mark.parametrize(
    ("by", "expected"),
    [
        ("prop", [0.3 - np.pi / 2]),  # at -1.2 + 0.4 rad, of the four ways next to -1.0
        ("ways", [0.0, np.pi / 2, -np.pi, -np.pi / 2]),
        ("hand", [0.7]),
        ("neighbours", [0.1 - 0.4]),
    ],
)
def test_a_motion_turns_with_what_its_task_says(by: str, expected: list[float]) -> None:
    task = SimpleNamespace(turning=(by, by), grasp_symmetry=lambda prop: 4)
    carrying: Any = SimpleNamespace(env=SimpleNamespace(task=task), heading=-1.0)
    now = np.array([[0.0, 0.06, 0.5], [0.0, -0.1, 0.0], [0.0] * 3])
    motion, segment = first_motion(came=0.1, takes=0.4)
    assert _Retargeting._turns(carrying, motion, segment, now, 0.7) == pytest.approx(expected)


def test_the_usual_heading_is_of_what_can_be_taken_in_several_ways() -> None:
    ways = {0: 2, 1: 1}
    task: Any = SimpleNamespace(grasp_symmetry=lambda prop: ways[prop])
    taken = [first_motion(came=0.0, takes=takes) for takes in (3.0, -3.0, -2.6)]
    pressing = np.array([False] * 5 + [True] * 4)
    for motion, segment in taken:
        motion.press, motion.segments = pressing, [segment]
    elsewhere, segment = first_motion(came=0.0, takes=1.0)
    elsewhere.press, elsewhere.segments = np.zeros(9, dtype=bool), [segment]  # it does not close
    by_a_box, segment = first_motion(came=0.0, takes=1.0)
    by_a_box.press, by_a_box.segments = pressing, [replace(segment, prop=1)]
    by_the_table, segment = first_motion(came=0.0, takes=1.0)
    by_the_table.press, by_the_table.segments = pressing, [replace(segment, prop=TABLE)]
    played = [*(motion for motion, _ in taken), elsewhere, by_a_box, by_the_table]
    # Directions, no numbers: 3.0 is -3.28.
    expected = np.angle(np.exp(1j * np.array([3.0, -3.0, -2.6])).mean())
    assert _usual_heading(task, played) == pytest.approx(expected)
    assert _usual_heading(task, played[3:]) == 0.0


@pytest.mark.parametrize(
    ("apart", "closing"),  # m, rad: of the neighbour; the closing axis's direction
    [
        ((0.09, 0.01), np.arctan2(0.01, 0.09) - np.pi / 2),  # of two ways the shorter one
        ((0.0, 0.09), 0.0),
        ((0.0, -0.09), 0.0),
        ((0.125 * np.cos(1.2), 0.125 * np.sin(1.2)), 0.1 + 0.5 * (1.2 - np.pi / 2 - 0.1)),
        ((0.16, 0.0), 0.1),
    ],
)
def test_a_hand_closes_across_the_direction_of_a_close_neighbour(
    apart: tuple[float, float], closing: float
) -> None:
    motion, segment = first_motion(came=0.1, takes=0.4)
    now = np.array([[0.02, 0.01, 0.5], [0.02 + apart[0], 0.01 + apart[1], 0.3], [0.0] * 3])
    task = SimpleNamespace(turning=("neighbours", "hand"))
    carrying: Any = SimpleNamespace(env=SimpleNamespace(task=task))
    (turn,) = _Retargeting._turns(carrying, motion, segment, now, 0.0)
    assert 0.4 + turn == pytest.approx(closing)
    motion.present[1] = False
    assert _Retargeting._turns(carrying, motion, segment, now, 0.0) == pytest.approx([0.1 - 0.4])


def test_a_motion_that_seldom_serves_is_not_carried_over_any_more() -> None:
    def motion(present: list[bool], order: tuple[int, ...]) -> Any:
        return SimpleNamespace(present=np.array(present), order=order)

    good, bad = motion([True, True], (0, 1)), motion([True, True], (0, 1))
    other = motion([True, True], (1, 0))
    alone = motion([True, False], (0,))
    served = _Served([good, bad, other, alone])
    enough = retargeting.SELDOM[0]
    for tried in range(enough):
        assert served.motions() == [good, bad, other, alone], tried
        # Bad ones go wrong more often than not, and of one kind there is no other.
        served.note([good, bad, other, alone], [tried % 2 == 0, tried == 0, True, False])
    assert served.motions() == [good, other, alone]


def test_no_expert_takes_part() -> None:
    text = Path(retargeting.__file__).read_text()
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
    assert not [name for name in imported if "expert" in name or "demonstrate." in name]


def test_a_hand_that_starts_over_goes_back_to_where_it_was_open_and_away() -> None:
    press = np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 1], dtype=bool)
    apart = np.full((10, 2), 0.2)
    apart[2:5, 0] = 0.01  # by the first prop
    apart[5:, 1] = 0.01  # never away from the second one
    props = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])
    # Of the first grasp step 1; of the second the step at which the first prop was let go, not one
    # at which the hand still holds it.
    assert motions._again(press, apart, props).tolist() == [1, 1, 1, 1, 1, 5, 5, 5, 5, 5]


def test_one_mishap_does_not_tell_when_a_prop_may_be_let_go(demos: Demonstrations) -> None:
    env = make_env(config("stacking"), num_envs=8, seed=0, render=False)
    read = [motions.read_motion(env, demos.demos[0]) for _ in range(10)]
    usual = read[0].lies[read[0].until < motions.FAR][0].copy()
    read[3].lies[read[3].until < motions.FAR] = (0.02, 0.15)  # dropped from high above
    motions.agree(read)
    for motion in read:
        expected = usual + motions.LOOSE
        np.testing.assert_allclose(motion.lies[motion.until < motions.FAR][0], expected)
