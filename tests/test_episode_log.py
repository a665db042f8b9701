"""Success, returns and stages of the last episodes, told apart by where they began."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from visuomotor.episode_log import WINDOW, EpisodeLog

STAGES = ("start", "reach", "lifted")
BOTH = torch.tensor([True, True])
NEITHER = torch.tensor([False, False])


def _result(
    reward: tuple[float, float],
    ended: tuple[int, ...] = (),
    stage: tuple[int, int] = (0, 0),
    next_stage: tuple[int, int] = (0, 0),
) -> SimpleNamespace:
    """A step of two worlds; stage: before a reset, next_stage: after it."""
    stages = torch.tensor(stage)
    return SimpleNamespace(
        reward=torch.tensor(reward),
        success=stages == len(STAGES) - 1,
        stage=stages,
        final_env_ids=torch.tensor(ended, dtype=torch.int64),
        observation=SimpleNamespace(stage=torch.tensor(next_stage)),
    )


def _log(stage: tuple[int, int] = (0, 0)) -> EpisodeLog:
    return EpisodeLog(STAGES, torch.tensor(stage))


def _record(
    log: EpisodeLog, result: SimpleNamespace, initial: Tensor = BOTH, counted: Tensor | None = None
) -> list[bool]:
    return log.record(result, initial, counted)  # type: ignore[arg-type]


def test_nothing_is_said_before_an_episode_has_ended() -> None:
    log = _log()
    assert _record(log, _result((1.0, 2.0))) == []
    assert log.metrics() == {}


def test_an_episodes_return_is_the_sum_of_its_own_rewards() -> None:
    log = _log()
    for _ in range(3):
        _record(log, _result((1.0, 10.0)))
    assert _record(log, _result((0.5, 10.0), ended=(0,))) == [False]
    assert log.metrics()["mean_return"] == 3.5
    # The next one begins at 0, the other world's goes on.
    _record(log, _result((2.0, 10.0)))
    _record(log, _result((2.0, 10.0), ended=(0, 1)))
    assert log.metrics()["mean_return"] == pytest.approx((3.5 + 4.0 + 60.0) / 3)


def test_success_and_stage_are_those_of_the_last_step_before_the_reset() -> None:
    log = _log()
    _record(log, _result((0.0, 0.0), stage=(2, 2)))  # on the way: does not count
    outcomes = _record(log, _result((0.0, 0.0), ended=(0, 1), stage=(2, 1), next_stage=(0, 2)))
    assert outcomes == [True, False]
    metrics = log.metrics()
    assert metrics["success_rate"] == 0.5
    rates = {name: metrics[f"end_stage/{name}"] for name in STAGES}
    assert rates == {"start": 0.0, "reach": 0.5, "lifted": 0.5}
    assert not any(name.startswith("success_from/") for name in metrics)


def test_episodes_from_demonstration_states_are_told_apart_by_their_first_stage() -> None:
    log = _log(stage=(1, 0))
    mixed = torch.tensor([False, True])
    ended = _result((5.0, 1.0), ended=(0, 1), stage=(2, 0), next_stage=(0, 1))
    # Only the episode from the initial distribution is handed back, and only its return counts.
    assert _record(log, ended, mixed) == [False]
    assert log.metrics() == {
        "success_from/reach": 1.0,
        "success_rate": 0.0,
        "mean_return": 1.0,
        "end_stage/start": 1.0,
        "end_stage/reach": 0.0,
        "end_stage/lifted": 0.0,
    }
    # The stages in which the next episodes began are those after the reset.
    assert _record(log, _result((0.0, 0.0), ended=(0, 1), stage=(0, 2)), NEITHER) == []
    metrics = log.metrics()
    assert (metrics["success_from/start"], metrics["success_from/reach"]) == (0.0, 1.0)
    assert "success_from/lifted" not in metrics
    assert metrics["success_rate"] == 0.0


def test_worlds_that_do_not_count_leave_no_trace() -> None:
    log = _log()
    second = torch.tensor([False, True])
    outcomes = _record(log, _result((7.0, 1.0), ended=(0, 1), stage=(2, 0)), BOTH, second)
    assert outcomes == [False]
    assert (log.metrics()["success_rate"], log.metrics()["mean_return"]) == (0.0, 1.0)
    # Once it counts, its return is that of the new episode alone.
    _record(log, _result((3.0, 0.0), ended=(0,), stage=(2, 0)), BOTH, BOTH)
    assert (log.metrics()["success_rate"], log.metrics()["mean_return"]) == (0.5, 2.0)


def test_means_are_over_the_last_episodes_of_each_kind() -> None:
    log = _log()
    _record(log, _result((0.0, 0.0), ended=(0,), stage=(2, 0)), NEITHER)
    for _ in range(WINDOW):
        _record(log, _result((1.0, 0.0), ended=(0,), stage=(2, 0)))
    assert log.metrics()["success_rate"] == 1.0
    for _ in range(WINDOW // 4):
        _record(log, _result((0.0, 0.0), ended=(0,), stage=(0, 0)))
    metrics = log.metrics()
    assert metrics["success_rate"] == metrics["mean_return"] == 0.75
    assert metrics["end_stage/start"] == 0.25
    assert metrics["success_from/start"] == 1.0  # another kind: not pushed out


def test_a_log_goes_on_where_it_was() -> None:
    kept = _log(stage=(1, 0))
    initial = torch.tensor([False, True])
    for step in range(3 * WINDOW):
        ended = (0, 1) if step % 2 else ()
        stage = (2 * (step % 3 == 0), step % 3)
        _record(kept, _result((0.25, step / 4), ended, stage, next_stage=stage), initial)
    _record(kept, _result((1.0, 2.0)), initial)  # episodes under way
    state = kept.state_dict()
    resumed = _log()
    _record(resumed, _result((9.0, 9.0), ended=(0, 1)))  # what it held is forgotten
    resumed.load_state_dict(_log().state_dict())
    assert resumed.metrics() == {}
    resumed.load_state_dict(state)
    assert resumed.metrics() == kept.metrics()
    for log in (kept, resumed):
        _record(log, _result((0.0, 0.0), ended=(0, 1), stage=(2, 2), next_stage=(1, 1)), initial)
        _record(log, _result((0.5, 0.0), ended=(0, 1), stage=(0, 0)), initial)
    assert resumed.metrics() == kept.metrics()
    json.dumps(state["values"], allow_nan=False)  # plain numbers


def test_a_state_does_not_change_with_the_log_that_gave_it() -> None:
    kept, resumed = _log(), _log()
    _record(kept, _result((1.0, 1.0)))
    state = kept.state_dict()
    _record(kept, _result((5.0, 5.0), ended=(0,), next_stage=(1, 1)))
    resumed.load_state_dict(state)
    _record(resumed, _result((3.0, 0.0), ended=(0,)))
    assert resumed.metrics()["mean_return"] == 4.0
    # Nor does the log change a state that it was given.
    fresh = _log()
    fresh.load_state_dict(state)
    assert state["returns"].tolist() == [1.0, 1.0]
    assert state["start_stage"].tolist() == [0, 0]


def test_the_log_does_not_keep_the_stages_it_was_given() -> None:
    given = torch.tensor([1, 1])
    log = EpisodeLog(STAGES, given)
    given.zero_()
    _record(log, _result((0.0, 0.0), ended=(0,)), NEITHER)
    assert list(log.metrics()) == ["success_from/reach"]
