"""Which randomized factor tells a policy's success from its failure, from the episodes it was in.

Knows no simulator: it reads what `episodes.csv` holds.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass

import numpy as np
import torch

from visuomotor.statistics import wilson_interval

BINS = 5  # of equally many episodes
FEW_VALUES = 16  # a factor with no more whole numbers (which texture, which delay): a bin for each
TOLD = 0.1  # of the factors named, the share that may be there by chance


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


@dataclass(frozen=True)
class Effect:
    name: str
    bins: tuple[Bin, ...]
    p_value: float  # that all bins have one rate (chi-square test of homogeneity)
    false_share: float  # expected among all factors with this p-value or less (Benjamini-Hochberg)

    @property
    def spread(self) -> float:
        """The best bin's rate minus the worst one's."""
        rates = [part.rate for part in self.bins]
        return max(rates) - min(rates)


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


def effects_csv(effects: list[Effect]) -> str:
    """One row a bin, the clearest factor first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    facts = ("episodes", "successes", "success_rate", "success_low", "success_high")
    writer.writerow(("factor", "from", "to", *facts, "p_value", "false_share"))
    for effect in effects:
        for part in effect.bins:
            interval = wilson_interval(part.successes, part.episodes)
            counts = (part.episodes, part.successes, repr(part.rate), *map(repr, interval))
            tests = (repr(effect.p_value), repr(effect.false_share))
            writer.writerow((effect.name, repr(part.low), repr(part.high), *counts, *tests))
    return out.getvalue()


def told(effects: list[Effect], most: int = 10) -> str:
    """The factors that tell success from failure, the largest effect first, in one line for each,
    or that there is none."""
    clear = [effect for effect in effects if effect.false_share <= TOLD]
    clear = sorted(clear, key=lambda effect: -effect.spread)[:most]
    if not clear:
        return "no randomized factor tells success from failure"
    lines = ["factors that tell success from failure, from the largest effect on:"]
    for effect in clear:
        worst = min(effect.bins, key=lambda part: part.rate)
        lines.append(
            f"  {effect.name}: {100 * worst.rate:.1f} % from {worst.low:.3g} to {worst.high:.3g}, "
            f"{100 * (worst.rate + effect.spread):.1f} % at its best (p = {effect.p_value:.2g})"
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


def _homogeneity(bins: tuple[Bin, ...]) -> float:
    """p-value of Pearson's chi-square test that all bins have one rate."""
    episodes = np.array([part.episodes for part in bins])
    successes = np.array([part.successes for part in bins])
    rate = successes.sum() / episodes.sum()
    if rate in (0.0, 1.0):
        return 1.0
    chi2 = ((successes - episodes * rate) ** 2 / (episodes * rate * (1.0 - rate))).sum()
    half = torch.tensor([(len(bins) - 1) / 2, float(chi2) / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
