"""Which factor breaks a policy: found where there is one, and not where there is none."""

from __future__ import annotations

import csv
import io
import itertools

import numpy as np
import pytest

from visuomotor.factor_effects import BINS, TOLD, by_effect, effects_csv, factor_effects, told

NAMES = ("mass", "delay", "hue", "still")


def _episodes(seed: int, count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Factors (E, 4), and success that falls with the mass alone."""
    rng = np.random.default_rng(seed)
    mass, hue = rng.uniform(0.5, 2.0, count), rng.uniform(-1, 1, count)
    factors = np.stack((mass, rng.integers(0, 3, count), hue, np.full(count, 0.3)), axis=1)
    return rng.random(count) < np.where(mass > 1.7, 0.6, 0.95), factors


def test_the_factor_that_matters_comes_first_and_alone() -> None:
    success, factors = _episodes(0)
    effects = factor_effects(success, factors, NAMES)
    assert effects[0].name == "mass"
    assert {effect.name for effect in effects} == {"mass", "delay", "hue"}  # one never varies
    assert effects[0].false_share < 1e-6
    assert all(effect.false_share > TOLD for effect in effects[1:])
    lines = told(effects).splitlines()
    assert len(lines) == 2 and "mass: " in lines[1] and "at its best" in lines[1]
    worst = effects[0].worst
    assert f"({worst.successes} of 100; 95 %: " in lines[1] and f"at {worst.span} " in lines[1]
    assert told(effects, "mine").startswith("mine: factors that tell")


def test_bins_hold_every_episode_once_and_in_order() -> None:
    success, factors = _episodes(1)
    by_name = {effect.name: effect for effect in factor_effects(success, factors, NAMES)}
    assert [(part.low, part.high) for part in by_name["delay"].bins] == [(0, 0), (1, 1), (2, 2)]
    mass = by_name["mass"].bins
    assert [part.episodes for part in mass] == [100] * BINS
    assert all(a.high <= b.low for a, b in itertools.pairwise(mass))
    for effect in by_name.values():
        assert sum(part.episodes for part in effect.bins) == 500
        assert sum(part.successes for part in effect.bins) == success.sum()
    chosen = (factors[:, 0] >= mass[4].low) & (factors[:, 0] <= mass[4].high)
    assert mass[4].rate == success[chosen].mean()


def test_the_test_of_homogeneity_is_the_one_worked_by_hand() -> None:
    """30 of 50 against 40 of 50: chi2 = 2 * 5^2 / (50 * 0.7 * 0.3) = 4.7619; its p-value with one
    degree of freedom is erfc(sqrt(chi2 / 2)) = 0.029096."""
    success = np.array([True] * 30 + [False] * 20 + [True] * 40 + [False] * 10)
    factors = np.repeat([[0.0], [1.0]], 50, axis=0)
    (effect,) = factor_effects(success, factors, ("switch",))
    assert effect.p_value == pytest.approx(0.029096, abs=1e-6)
    assert effect.false_share == effect.p_value  # there is no other one
    assert (effect.worst.rate, effect.best.rate) == (0.6, 0.8)
    # Rates 0.1 below and above the mean; of that variance 0.7 * 0.3 / 99 are chance's.
    assert effect.effect == pytest.approx((0.01 - 0.21 / 99) ** 0.5)


def test_many_bins_are_no_effect() -> None:
    """A delay that costs 22 % ranks before textures that do nothing, though as often as not the
    best and the worst of nine textures differ by more than the two delays do."""
    wide = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        factors = np.stack((rng.integers(0, 2, 300), rng.integers(0, 9, 300)), axis=1)
        success = rng.random(300) < np.where(factors[:, 0] == 1, 0.6, 0.82)
        delay, texture = by_effect(factor_effects(success, factors, ("delay", "texture")))
        assert (delay.name, len(texture.bins)) == ("delay", 9)
        differences = [e.best.rate - e.worst.rate for e in (delay, texture)]
        wide += differences[1] > differences[0]
    assert wide >= 10


def test_an_effect_is_the_deviation_of_true_rates_whatever_the_bins() -> None:
    """Near 0 for nine values that do nothing; two at 0.5 and 0.9 lie 0.2 about their mean."""
    rng = np.random.default_rng(0)
    factors = np.stack((rng.integers(0, 2, 20_000), rng.integers(0, 9, 20_000)), axis=1)
    success = rng.random(20_000) < np.where(factors[:, 0] == 1, 0.5, 0.9)
    delay, texture = by_effect(factor_effects(success, factors, ("delay", "texture")))
    assert delay.effect == pytest.approx(0.2, abs=0.01)
    assert texture.effect < 0.01


def test_without_an_effect_factors_are_seldom_named() -> None:
    rng = np.random.default_rng(2)
    named = 0
    for _ in range(200):
        success = rng.random(300) < 0.9
        effects = factor_effects(success, rng.random((300, 30)), tuple(map(str, range(30))))
        named += effects[0].false_share <= TOLD
    assert named / 200 < 0.2
    assert told(effects[-1:]) == "no randomized factor tells success from failure"


def _textures(rng: np.random.Generator, episodes: int, columns: int) -> np.ndarray:
    """(E, columns) whole numbers 0 to 8, some of them rarer than others."""
    return rng.choice(9, p=np.arange(1, 10) / 45, size=(episodes, columns))


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failure_or_two_name_no_factor(failures: int) -> None:
    """However rare the whole number at which they lie: 64 episodes, 20 factors that do nothing."""
    rng = np.random.default_rng(failures)
    names = tuple(map(str, range(20)))
    named = 0
    for _ in range(60):
        success = np.ones(64, dtype=bool)
        success[rng.choice(64, size=failures, replace=False)] = False
        named += factor_effects(success, _textures(rng, 64, 20), names)[0].clear
    assert named / 60 <= TOLD


def test_one_failure_at_a_rare_value_is_as_likely_as_that_value() -> None:
    """1 of 64 where 2 episodes are so: any of the 64 may fail, 2 of them or the other rare pair
    lie as far from one rate. Chi-square's own p-value is 2e-7."""
    values = np.repeat([0.0, 1.0, 2.0], [2, 2, 60])
    success = np.arange(64) != 0
    (effect,) = factor_effects(success, values[:, None], ("texture",))
    assert effect.p_value == pytest.approx(4 / 64, abs=0.015)
    again = factor_effects(success, np.stack((values, values), axis=1), ("other", "texture"))
    assert [one.p_value for one in again] == [effect.p_value] * 2  # whatever else there is


@pytest.mark.parametrize("episodes", [64, 500])
def test_a_rare_value_that_breaks_a_policy_is_found_among_many(episodes: int) -> None:
    rng = np.random.default_rng(episodes)
    factors = _textures(rng, episodes, 100)
    success = (factors[:, 7] != 3) | (rng.random(episodes) < 0.1)
    effects = factor_effects(success, factors, tuple(map(str, range(100))))
    assert effects[0].name == "7" and effects[0].clear
    assert effects[0].p_value < 2e-5 and effects[0].worst.span == "3"


def test_where_all_succeed_nothing_is_told() -> None:
    _, factors = _episodes(3, count=20)
    effects = factor_effects(np.ones(20, dtype=bool), factors, NAMES)
    assert all(effect.p_value == 1.0 for effect in effects)
    assert factor_effects(np.array([True]), factors[:1], NAMES) == []


def test_the_table_has_a_row_for_each_bin() -> None:
    success, factors = _episodes(0)
    effects = factor_effects(success, factors, NAMES)
    rows = list(csv.DictReader(io.StringIO(effects_csv(effects))))
    assert len(rows) == sum(len(effect.bins) for effect in effects)
    assert rows[0]["factor"] == "mass" and int(rows[0]["episodes"]) == 100
    for row in rows:
        low, rate, high = (float(row[f"success_{name}"]) for name in ("low", "rate", "high"))
        assert low <= rate <= high
        assert float(row["effect"]) == {e.name: e.effect for e in effects}[row["factor"]]


def test_units_and_values_stand_with_what_is_told() -> None:
    """Bins of one whole number have one value; a factor of one's own has its own unit."""
    success, factors = _episodes(1)
    effects = factor_effects(success, factors, ("prop_mass/block_0", "camera_delay", "hue", "x"))
    by_name = {effect.name: effect for effect in effects}
    assert [part.span for part in by_name["camera_delay"].bins] == ["0", "1", "2"]
    assert by_name["camera_delay"].whole and not by_name["hue"].whole
    assert " to " in by_name["hue"].worst.span
    units = {name: effect.unit for name, effect in by_name.items()}
    assert units == {"prop_mass/block_0": "", "camera_delay": "control steps", "hue": "turns"}
