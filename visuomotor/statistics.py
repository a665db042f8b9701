"""What a number of successes tells: intervals of a rate, and of the difference of two paired ones.

Imports nothing of the package. All intervals are for 95 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Z_95 = 1.959963984540054  # of the standard normal distribution, two-sided 95 %


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Interval of a rate (Wilson 1927): keeps its coverage near 0 and 1."""
    if episodes == 0:
        return 0.0, 1.0
    rate = successes / episodes
    z2 = Z_95**2
    centre = (rate + z2 / (2 * episodes)) / (1 + z2 / episodes)
    half = (
        Z_95
        / (1 + z2 / episodes)
        * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    )
    # At 0 and at all successes the bound is exact; the formula misses it by a rounding error.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class PairedDifference:
    """Two policies on the same episodes: rate of the second minus rate of the first."""

    both: int  # episodes that both solve
    only_first: int
    only_second: int
    neither: int
    difference: float
    low: float  # 95 % (Newcombe 1998, method 10)
    high: float
    p_value: float  # of no difference: McNemar's test, exact, two-sided


def paired_difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    """first, second: (E,) bool, success in the same E episodes. Raises ValueError on a shape."""
    if first.shape != second.shape or first.ndim != 1 or len(first) == 0:
        raise ValueError(f"expected two (E,) arrays, received {first.shape} and {second.shape}")
    both, only_first = int((first & second).sum()), int((first & ~second).sum())
    only_second, neither = int((~first & second).sum()), int((~first & ~second).sum())
    low, high = _newcombe(both, only_second, only_first, neither)
    return PairedDifference(
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        difference=(only_second - only_first) / len(first),
        low=low,
        high=high,
        p_value=mcnemar_p(only_first, only_second),
    )


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value: of the episodes that one policy alone solves, each is as likely to
    be the other's (McNemar 1947, by the binomial distribution)."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    ways = tail = 1
    for k in range(fewer):  # each from the one before: thousands of them stay cheap
        ways = ways * (count - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**count)


def _newcombe(both: int, up: int, down: int, neither: int) -> tuple[float, float]:
    """Interval of (up - down) / n, from the intervals of both rates and their correlation."""
    n = both + up + down + neither
    p1, p2 = (both + up) / n, (both + down) / n
    (low1, high1), (low2, high2) = wilson_interval(both + up, n), wilson_interval(both + down, n)
    product = (both + up) * (down + neither) * (both + down) * (up + neither)
    odds = float(both * neither - up * down)
    if odds > 0.0:
        odds = max(odds - n / 2, 0.0)
    phi = 0.0 if product == 0 else odds / math.sqrt(product)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return p1 - p2 - reach(p1 - low1, high2 - p2), p1 - p2 + reach(high1 - p1, p2 - low2)
