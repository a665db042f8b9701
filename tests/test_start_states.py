"""What training draws from demonstrations: where episodes start, how often, normalization."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.recordings import some_demonstrations
from visuomotor.demonstrations import (
    MIN_STD,
    SHARE_SMOOTHING,
    ResetStates,
    ShareSchedule,
    normalization,
)

# --- where episodes start -----------------------------------------------------------------------

# Two demonstrations; stage 2 is met for a single step, stage 1 never.
STAGES = [torch.tensor([0] * 17 + [2] + [3] * 2), torch.tensor([0] * 80)]


@pytest.fixture
def starts() -> ResetStates:
    return ResetStates(some_demonstrations((20, 80)), STAGES)


def _sample(starts: ResetStates, by_stage: float, count: int, seed: int = 0) -> np.ndarray:
    """(count, 2): demonstration and step."""
    rng = np.random.default_rng(seed)
    return np.array([starts.sample(rng, by_stage)[1:] for _ in range(count)])


def test_a_start_is_the_state_that_it_names(starts: ResetStates) -> None:
    demos = some_demonstrations((20, 80)).demos
    rng = np.random.default_rng(0)
    for by_stage in [0.0, 1.0] * 50:
        start = starts.sample(rng, by_stage)
        assert np.array_equal(start.state, demos[start.demo].states[start.step])


def test_stage_first_meets_every_stage_equally(starts: ResetStates) -> None:
    sample = _sample(starts, by_stage=1.0, count=3000)
    stages = np.array([int(STAGES[demo][step]) for demo, step in sample])
    counts = np.bincount(stages, minlength=4)
    assert counts[1] == 0
    # A third each, give or take four standard deviations.
    np.testing.assert_allclose(counts[[0, 2, 3]], 1000, atol=105)
    # Within a stage every state alike: 97 of stage 0, 80 of them in the second demonstration.
    second = sample[stages == 0][:, 0].mean()
    assert second == pytest.approx(80 / 97, abs=0.05)


def test_time_uniform_meets_every_demonstration_equally(starts: ResetStates) -> None:
    sample = _sample(starts, by_stage=0.0, count=3000)
    for demo, length in enumerate((20, 80)):
        steps = sample[sample[:, 0] == demo, 1]
        assert len(steps) == pytest.approx(1500, abs=110)
        assert (steps.min(), steps.max()) == (0, length - 1)
        quarters = np.bincount(steps * 4 // length, minlength=4)
        np.testing.assert_allclose(quarters, len(steps) / 4, atol=70)


def test_by_stage_is_the_share_of_starts_drawn_stage_first(starts: ResetStates) -> None:
    sample = _sample(starts, by_stage=0.6, count=3000)
    rare = (sample == (0, 17)).all(axis=1).mean()
    # One third of the stage-first draws, and 1 in 40 of the others.
    assert rare == pytest.approx(0.6 / 3 + 0.4 / 40, abs=0.03)


def test_the_same_generator_means_the_same_starts(starts: ResetStates) -> None:
    first, again = (_sample(starts, 0.5, count=50, seed=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, _sample(starts, 0.5, count=50, seed=5))


# --- the share of initial starts ----------------------------------------------------------------


def test_the_share_goes_from_its_first_to_its_last_value_with_success() -> None:
    schedule = ShareSchedule(0.3, 0.7)
    assert schedule.value == 0.3
    schedule.update(False)
    assert schedule.value == 0.3
    schedule.update(True)
    assert schedule.value == pytest.approx(0.3 + 0.4 * SHARE_SMOOTHING)
    for _ in range(2000):
        schedule.update(True)
    assert schedule.value == pytest.approx(0.7, abs=1e-6)
    schedule.update(False)
    assert schedule.value == pytest.approx(0.7 - 0.4 * SHARE_SMOOTHING, abs=1e-6)


def test_the_share_follows_the_rate_of_success() -> None:
    schedule = ShareSchedule(0.0, 1.0)
    values = []
    for episode in range(4000):
        schedule.update(episode % 4 == 0)
        values.append(schedule.value)
    assert np.mean(values[2000:]) == pytest.approx(0.25, abs=0.01)


def test_the_share_goes_on_where_it_was() -> None:
    kept, resumed = ShareSchedule(0.3, 0.7), ShareSchedule(0.3, 0.7)
    for success in (True, False, True, True):
        kept.update(success)
    resumed.load_state_dict(json.loads(json.dumps(kept.state_dict())))
    assert resumed.value == kept.value > 0.3
    for schedule in (kept, resumed):
        schedule.update(True)
    assert resumed.value == kept.value


# --- normalization ------------------------------------------------------------------------------


def test_normalization_has_a_floor() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 3, generator=generator) * torch.tensor([2.0, 1e-4, 0.0]) + 5.0
    mean, std = normalization(values)
    torch.testing.assert_close(mean, values.mean(dim=0))
    assert float(std[0]) == pytest.approx(2.0, abs=0.2)
    assert std[1:].tolist() == pytest.approx([MIN_STD, MIN_STD])
    assert mean.dtype == std.dtype == torch.float32


def test_normalization_of_a_single_step_is_finite() -> None:
    mean, std = normalization(torch.tensor([[3.0, -1.0]]))
    assert mean.tolist() == [3.0, -1.0]
    assert std.tolist() == pytest.approx([MIN_STD, MIN_STD])
