"""Intervals and tests on numbers of successes: worked by hand, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from visuomotor.statistics import mcnemar_p, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        # z^2 = 3.841459. At half: 0.5 -+ z / (1 + z^2 / 10) sqrt(0.25 / 10 + z^2 / 400)
        # = 0.5 -+ 1.416004 * 0.186022.
        (5, 10, 0.236593, 0.763407),
        # Without success: 0 and z^2 / (n + z^2) = 3.841459 / 13.841459; and mirrored.
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        # (0.81 + z^2 / 200) / (1 + z^2 / 100) = 0.829207 / 1.038415 = 0.798532, -+ 1.887458 *
        # sqrt(0.81 * 0.19 / 100 + z^2 / 40000) = 1.887458 * 0.0404356.
        (81, 100, 0.722212, 0.874853),
    ],
)
def test_the_wilson_interval_is_the_one_worked_by_hand(
    successes: int, episodes: int, low: float, high: float
) -> None:
    received = wilson_interval(successes, episodes)
    assert received == pytest.approx((low, high), abs=2e-6)


def test_the_interval_holds_the_rate_and_narrows_with_episodes() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for episodes in (1, 2, 7, 64, 1000):
        for successes in range(episodes + 1):
            low, high = wilson_interval(successes, episodes)
            assert 0.0 <= low <= successes / episodes <= high <= 1.0
            mirrored = wilson_interval(episodes - successes, episodes)
            assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)
    widths = [high - low for low, high in (wilson_interval(n // 2, n) for n in (4, 40, 400))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9, 0.98])
@pytest.mark.parametrize("episodes", [50, 200, 500])
def test_the_interval_covers_the_rate_as_often_as_it_says(rate: float, episodes: int) -> None:
    """Over all numbers of successes by their probability: exact, no luck in it."""
    covered = 0.0
    for successes in range(episodes + 1):
        low, high = wilson_interval(successes, episodes)
        if low <= rate <= high:
            log = math.lgamma(episodes + 1) - math.lgamma(successes + 1)
            log -= math.lgamma(episodes - successes + 1)
            log += successes * math.log(rate) + (episodes - successes) * math.log(1 - rate)
            covered += math.exp(log)
    # The discreteness of counts moves it; the usual (Wald) interval falls to 0.63 here.
    assert 0.92 < covered < 0.99


# --- pairs --------------------------------------------------------------------------------------


def _pairs(both: int, only_first: int, only_second: int, neither: int) -> list[np.ndarray]:
    rows = [(1, 1)] * both + [(1, 0)] * only_first + [(0, 1)] * only_second + [(0, 0)] * neither
    return list(np.array(rows, dtype=bool).T)


def test_the_paired_interval_is_the_published_one() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:2635), table II, method 10: 36, 12, 2, 0."""
    pair = paired_difference(*_pairs(36, 2, 12, 0))
    assert (pair.both, pair.only_first, pair.only_second, pair.neither) == (36, 2, 12, 0)
    assert pair.difference == pytest.approx(0.2)
    assert (pair.low, pair.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    mirrored = paired_difference(*_pairs(36, 12, 2, 0))
    assert (mirrored.low, mirrored.high) == pytest.approx((-pair.high, -pair.low))


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (0, 5, 2 / 32),  # both tails of five tosses that fall the same way
        (1, 6, 2 * (1 + 7) / 128),
        (2, 12, 2 * (1 + 14 + 91) / 2**14),
        (7_500, 7_500, 1.0),
        # 246 apart of 15,000 tosses: their normal limit, continuity corrected, says 0.045455.
        (7_377, 7_623, pytest.approx(0.045455, rel=2e-4)),
    ],
)
def test_the_exact_test_is_the_one_worked_by_hand(
    only_first: int, only_second: int, p: float
) -> None:
    assert mcnemar_p(only_first, only_second) == p
    assert mcnemar_p(only_second, only_first) == p


def test_the_paired_interval_covers_the_difference_and_the_test_seldom_errs() -> None:
    rng = np.random.default_rng(0)
    # Both, first alone, second alone, neither: rates 0.85 and 0.9 of policies that are alike.
    covered, rounds = 0, 2000
    for _ in range(rounds):
        pair = paired_difference(*_pairs(*rng.multinomial(200, (0.8, 0.05, 0.1, 0.05)).tolist()))
        covered += pair.low <= 0.05 <= pair.high
    assert 0.93 < covered / rounds < 0.98
    errs = sum(
        paired_difference(*_pairs(*rng.multinomial(200, (0.8, 0.07, 0.07, 0.06)).tolist())).p_value
        < 0.05
        for _ in range(rounds)
    )
    assert errs / rounds < 0.05  # exact, so on the safe side


def test_equal_policies_and_unequal_numbers() -> None:
    same = np.array([True, False, True])
    pair = paired_difference(same, same)
    assert (pair.difference, pair.p_value) == (0.0, 1.0)
    assert pair.low <= 0.0 <= pair.high
    with pytest.raises(ValueError, match="two"):
        paired_difference(same, same[:2])
