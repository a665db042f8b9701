"""The arm's own delay is found in a log whose delay is known, and is not told without motion."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.deploy import beyond_training, latency
from visuomotor.runtime.arm_delay import SIMULATED, arm_delays
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.limiter import Limiter
from visuomotor.runtime.streamer import PERIOD, Log, log_type
from visuomotor.sim_arm import SimArmConfig, make_world

FREE = LIMITS._replace(workspace_low=np.full(3, -9.0), workspace_high=np.full(3, 9.0))
START = np.array([0.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.7, 0.7, 0.7])  # rad, the middle of all limits


@cache
def wandering(ticks: int) -> np.ndarray:
    """(ticks, 9) rad/s: what the streamer sends for a policy that wants this and that at 20 Hz, and
    rests for 0.5 s behind each 4 s."""
    rng, limiter = np.random.default_rng(0), Limiter(FREE, PERIOD)
    wanted, position, sent = np.zeros(9), START.copy(), []
    for tick in range(ticks):
        if tick % 5 == 0:
            pull = 0.3 * (START - position)
            wanted = 0.8 * wanted + 0.2 * rng.normal(size=9) * LIMITS.velocity + 0.1 * pull
        rests = tick % 450 >= 400
        sent.append(limiter.brake() if rests else limiter.step(wanted, position))
        position = position + PERIOD * sent[-1]
    return np.array(sent)


def log_rows(sent: np.ndarray, delay: float, seed: int = 1) -> np.ndarray:
    """Of an arm that does what it is sent `delay` s later, tells so with noise at 70 Hz, with a
    clock of its own, and turns one joint at 0.8 of what it is sent."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(len(sent), log_type(9))
    rows["time"] = 1000.0 + PERIOD * np.arange(len(sent)) + rng.uniform(0.0, 0.001, len(sent))
    rows["sent"] = sent
    rows["state"] = np.where(sent.any(axis=1), State.RUNNING.value, State.LATCHED.value)
    stamps = np.floor((rows["time"] - 1000.0) * 70.0) / 70.0 + 1000.0
    rows["joint_age"] = rows["time"] - stamps
    held = np.searchsorted(rows["time"], stamps - delay, side="right") - 1
    moved = np.where(held[:, None] >= 0, sent[np.maximum(held, 0)], 0.0)
    moved[:, 3] *= 0.8
    rows["velocity"] = moved + rng.normal(scale=0.005, size=moved.shape)
    return rows


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.06, 0.1, 0.25, 0.4])
def test_a_known_delay_is_found(delay: float) -> None:
    found = arm_delays(log_rows(wandering(900), delay))
    assert len(found) == 9
    assert found == pytest.approx(delay, abs=0.006)


def test_what_is_told_late_or_not_at_all_is_left_out() -> None:
    rows = log_rows(wandering(900), 0.06)
    rows["velocity"][200:260] = np.nan
    rows["joint_age"][300:350] += np.arange(50) * PERIOD  # one state for half a second
    rows["velocity"][300:350] = rows["velocity"][300]
    assert arm_delays(rows) == pytest.approx(0.06, abs=0.006)


def test_an_arm_that_is_moved_by_hand_while_latched_does_not_count() -> None:
    sent = np.concatenate((wandering(900), np.zeros((1000, 9)), wandering(900)))
    rows = log_rows(sent, 0.06)
    rows["velocity"][960:1880, 1] += np.sin(0.02 * np.arange(920))
    assert arm_delays(rows) == pytest.approx(0.06, abs=0.006)


@pytest.mark.parametrize("what", ["noise", "opposed", "still", "short", "latched", "later"])
def test_nothing_is_told_where_motion_does_not_tell(what: str) -> None:
    sent = wandering(900)
    rows = log_rows(sent, 2.0 if what == "later" else 0.06)
    if what == "noise":
        rows["velocity"] = np.random.default_rng(2).normal(size=rows["velocity"].shape)
    elif what == "opposed":
        rows["velocity"] *= -1.0
    elif what == "still":
        rows["sent"] = 0.0
    elif what == "short":
        rows = rows[:50]
    elif what == "latched":
        rows["state"] = State.LATCHED.value
    assert len(arm_delays(rows)) == 0


def test_the_simulated_arm_takes_what_training_counts_for_it() -> None:
    env = make_world(SimArmConfig())
    env.restart(torch.tensor([0]))
    sent = wandering(900)[:500]
    rows = log_rows(sent, 0.0)
    rows["joint_age"] = 0.0
    rows["time"] = PERIOD * np.arange(len(sent))
    velocity = np.zeros(9)
    for tick, asked in enumerate(sent):
        rows["velocity"][tick] = velocity
        env.step(torch.from_numpy(asked / LIMITS.velocity).unsqueeze(0))
        velocity = env.sim.data("qvel")[0, env.jaco.dof_ids].numpy().copy()
    found = arm_delays(rows)
    assert len(found) == 9
    assert np.median(found) == pytest.approx(SIMULATED, abs=0.005)
    assert found.max() < 0.04


def test_deploy_tells_the_arm_s_delay_and_warns_beyond_training(tmp_path: Path) -> None:
    rows = log_rows(wandering(900), 0.12)
    rows["command_number"] = np.arange(len(rows)) // 5 + 1
    rows["command_age"] = 0.005
    log = Log(tmp_path / "log", LIMITS.joint_names)
    for row in rows:
        log.row[...] = row
        log.write()
    log.close()
    measured = latency(tmp_path / "log")
    assert measured["arm_delay_ms"] == pytest.approx(120.0, abs=6.0)
    assert measured["arm_delay_ms_least"] <= measured["arm_delay_ms"]
    assert measured["arm_delay_ms"] <= measured["arm_delay_ms_most"]
    trained = {"camera_delay_s": 0.1, "action_delay_s": 0.05}
    (told,) = beyond_training(measured, trained)
    assert told.startswith("decision_to_motion: 12")
    assert "trained for at most 60 ms (action_delay_s" in told
    assert beyond_training(measured, trained | {"action_delay_s": 0.15}) == []
