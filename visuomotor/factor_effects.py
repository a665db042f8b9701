"""Which randomized factor tells a policy's success from its failure, from the episodes it was in.

Knows no simulator: it reads what `episodes.csv` holds.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass

import numpy as np
import torch

from visuomotor.factors import unit_of, with_unit
from visuomotor.statistics import wilson_interval

BINS = 5  # of equally many episodes
FEW_VALUES = 16  # a factor with no more whole numbers (which texture, which delay): a bin for each
TOLD = 0.1  # of the factors named, the share that may be there by chance
WORST = 10  # factors, in tables and plots
EXPECTED = 5  # successes and failures in every bin that the chi-square distribution needs
# Permutations where fewer are expected: more of them for a p-value that the first ones leave small.
DRAWS = (2_000, 198_000)
ENOUGH = 50  # draws as far from one rate as what is seen: p is known then


@dataclass(frozen=True)
class Bin:
    """Episodes in which the factor lay from `low` to `high`, both included."""

    low: float
    high: float
    episodes: int
    successes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def span(self) -> str:
        """Which values."""
        return f"{self.low:.3g}" if self.low == self.high else f"{self.low:.3g} to {self.high:.3g}"


@dataclass(frozen=True)
class Effect:
    name: str
    bins: tuple[Bin, ...]
    p_value: float  # that all bins have one rate (see `_homogeneity`)
    false_share: float  # expected among all factors with this p-value or less (Benjamini-Hochberg)

    @property
    def unit(self) -> str:
        return unit_of(self.name)

    @property
    def clear(self) -> bool:
        """Whether it is told apart from chance."""
        return self.false_share <= TOLD

    @property
    def whole(self) -> bool:
        """Whether every bin is one whole number: a delay, the number of a texture."""
        return all(part.low == part.high == round(part.low) for part in self.bins)

    @property
    def best(self) -> Bin:
        return max(self.bins, key=lambda part: part.rate)

    @property
    def worst(self) -> Bin:
        return min(self.bins, key=lambda part: part.rate)

    @property
    def effect(self) -> float:
        """Standard deviation, over the episodes, of the true success rate of its bin.

        Of the variance between the bins' rates, what is more than chance makes: of chi-square by
        the number of episodes, its mean without an effect is taken off (Bergsma 2013); 0 where
        nothing is left. The best rate minus the worst one would grow with the number of bins alone.
        """
        total = sum(part.episodes for part in self.bins)
        rate = sum(part.successes for part in self.bins) / total
        chance = (len(self.bins) - 1) / (total - 1)
        excess = _chi_square(self.bins) / total - chance
        return math.sqrt(max(0.0, excess) * rate * (1.0 - rate))


def factor_effects(
    success: np.ndarray, factors: np.ndarray, names: tuple[str, ...]
) -> list[Effect]:
    """success (E,) bool, factors (E, K), K names -> the effects of what varies, clearest first."""
    found = []
    for column, name in enumerate(names):
        bins = _bins(success, factors[:, column])
        if len(bins) > 1:
            found.append((name, bins, _homogeneity(bins)))
    found.sort(key=lambda entry: (entry[2], entry[0]))
    false = [p * len(found) / (rank + 1) for rank, (_, _, p) in enumerate(found)]
    shares = np.minimum.accumulate([*false, 1.0][::-1])[::-1]
    return [
        Effect(name, bins, p, float(share))
        for (name, bins, p), share in zip(found, shares, strict=False)
    ]


def by_effect(effects: list[Effect]) -> list[Effect]:
    """The largest effect first; of those without one the clearest."""
    return sorted(effects, key=lambda effect: (-effect.effect, effect.p_value, effect.name))


def effects_csv(effects: list[Effect]) -> str:
    """One row a bin, the clearest factor first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    facts = ("episodes", "successes", "success_rate", "success_low", "success_high")
    writer.writerow(("factor", "from", "to", *facts, "p_value", "false_share", "effect"))
    for effect in effects:
        for part in effect.bins:
            interval = wilson_interval(part.successes, part.episodes)
            counts = (part.episodes, part.successes, repr(part.rate), *map(repr, interval))
            tests = map(repr, (effect.p_value, effect.false_share, effect.effect))
            writer.writerow((effect.name, repr(part.low), repr(part.high), *counts, *tests))
    return out.getvalue()


def told(effects: list[Effect], label: str = "") -> str:
    """The factors that tell success from failure, the largest effect first, in one line for each,
    or that there is none. label: of the policy, where there are several."""
    start = f"{label}: " if label else ""
    clear = by_effect([effect for effect in effects if effect.clear])[:WORST]
    if not clear:
        return f"{start}no randomized factor tells success from failure"
    lines = [f"{start}factors that tell success from failure, from the largest effect on:"]
    for effect in clear:
        worst, best = effect.worst, effect.best
        low, high = wilson_interval(worst.successes, worst.episodes)
        lines.append(
            f"  {with_unit(effect.name, effect.unit)}: {100 * worst.rate:.1f} % at {worst.span} "
            f"({worst.successes} of {worst.episodes}; 95 %: {100 * low:.1f} to {100 * high:.1f}), "
            f"{100 * best.rate:.1f} % at its best, {best.span} (p = {effect.p_value:.2g}, "
            f"share of false finds {effect.false_share:.2g})"
        )
    return "\n".join(lines)


def _bins(success: np.ndarray, values: np.ndarray) -> tuple[Bin, ...]:
    distinct = np.unique(values)
    whole = bool((distinct == np.round(distinct)).all())
    if len(distinct) <= (FEW_VALUES if whole else BINS):
        groups = [values == value for value in distinct]
    else:
        order = np.argsort(values, kind="stable")
        groups = np.array_split(order, min(BINS, len(values)))
    return tuple(
        Bin(
            float(values[group].min()),
            float(values[group].max()),
            len(success[group]),
            int(success[group].sum()),
        )
        for group in groups
    )


def _chi_square(bins: tuple[Bin, ...]) -> float:
    """Pearson's, of all bins having one rate; 0 where all episodes end alike."""
    episodes = np.array([part.episodes for part in bins])
    successes = np.array([part.successes for part in bins])
    rate = successes.sum() / episodes.sum()
    if rate in (0.0, 1.0):
        return 0.0
    return float(((successes - episodes * rate) ** 2 / (episodes * rate * (1.0 - rate))).sum())


def _homogeneity(bins: tuple[Bin, ...]) -> float:
    """p-value of Pearson's chi-square test that all bins have one rate; by permutation where few
    successes or failures are expected in some bin."""
    total = sum(part.episodes for part in bins)
    successes = sum(part.successes for part in bins)
    rarer = min(successes, total - successes)
    if 0 < rarer * min(part.episodes for part in bins) < EXPECTED * total:
        return _permuted(bins, rarer)
    half = torch.tensor([(len(bins) - 1) / 2, _chi_square(bins) / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _permuted(bins: tuple[Bin, ...], rarer: int) -> float:
    """p-value of the same statistic where each order of the outcomes is as likely (the draws go by
    the multivariate hypergeometric distribution): 1 / (1 + sum(DRAWS)) at least.

    rarer: how many outcomes there are of the rarer kind. The same for the same bins.
    """
    episodes = np.array([part.episodes for part in bins])
    expected = rarer * episodes / episodes.sum()
    chance = rarer / episodes.sum() * (1.0 - rarer / episodes.sum())
    seen = _chi_square(bins) * (1.0 - 1e-9)  # as far, whatever the rounding
    rng = np.random.default_rng(0)
    draws = as_far = 0
    for count in DRAWS:
        drawn = rng.multivariate_hypergeometric(episodes, rarer, size=count)
        far = ((drawn - expected) ** 2 / (episodes * chance)).sum(axis=1)
        draws += count
        as_far += int((far >= seen).sum())
        if as_far >= ENOUGH:
            break
    return (1 + as_far) / (1 + draws)
