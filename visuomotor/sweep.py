"""One factor over a grid, all others at their defaults: the range in which a policy can be trusted.

Every value meets the same start states. Knows factors and outcomes, no policy.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from visuomotor.errors import UserError, did_you_mean
from visuomotor.factors import with_unit
from visuomotor.heldout import DELAYS
from visuomotor.randomization import Factor, Randomizer
from visuomotor.statistics import wilson_interval

PREFIX = "sweep:"  # of `sims`
BEYOND = 2.0  # times the training range, on either side of the neutral value
POINTS = 9  # of a grid, about; always with the neutral value and the ends of the training range
HOLDS = 0.9  # success, at least
# Times the neutral value of a scale, either way; of other factors times the training range.
FURTHEST = 1000.0


@dataclass(frozen=True)
class SweptFactor:
    """A group of factors that take one value together, or one factor."""

    name: str
    factor: Factor  # its range, neutral value and distribution


@dataclass(frozen=True)
class SweepPoint:
    value: float
    episodes: int
    successes: int

    @property
    def rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.successes, self.episodes)


def swept_factor(randomizer: Randomizer, name: str) -> SweptFactor:
    """By its group's name ("prop_friction", or "friction" for short) or its own ("camera_pos/x").

    Raises UserError with the nearest names for an unknown one.
    """
    for known in (name, f"prop_{name}"):
        columns = randomizer.columns(known)
        if columns:
            return SweptFactor(known, randomizer.factors[columns[0]])
    names = [*randomizer.groups, *randomizer.factor_names]
    hint = did_you_mean(name, names, most=3)
    raise UserError(f"there is no factor '{name}'{hint}; factors: {', '.join(randomizer.groups)}")


def grid(factor: Factor) -> list[float]:
    """Values from BEYOND times the training range below the neutral value to as far above it, in
    order; the neutral one exactly, the others to six digits.

    Raises UserError where the factor has no range in training, and nothing to go beyond.
    """
    logarithmic = factor.distribution == "log_uniform"
    scale = np.log if logarithmic else np.asarray
    low, centre, high = (float(scale(v)) for v in (factor.low, factor.neutral, factor.high))
    if low == high:
        raise UserError(
            f"{factor.name} does not vary in training; give values=, for example "
            f"values={factor.neutral:g},{factor.neutral + 1:g}"
        )
    if factor.distribution == "integer":
        last = max(min(high + 2, factor.most), centre)
        return [float(v) for v in np.arange(min(low, centre), last + 1)]
    values = {low, centre, high}
    for end in (low, high):
        values |= set(np.linspace(centre, centre + BEYOND * (end - centre), POINTS // 2 + 1))
    spread = np.array(sorted(values))
    spread = spread[np.append(True, np.diff(spread) > 1e-9)]
    spread = np.exp(spread) if logarithmic else spread
    # Where a world cannot go as far, to where it can.
    spread = np.unique(spread.clip(factor.least, factor.most))
    rounded = {float(f"{v:.6g}") for v in spread} - {float(f"{factor.neutral:.6g}")}
    return sorted({*rounded, float(factor.neutral)})


def given_values(text: str, swept: SweptFactor, episode_steps: int) -> list[float]:
    """`values=` as numbers in order, with the neutral one among them: ranges are around it.

    Raises UserError for what no world can have, or none that is worth a look: see `_limits`.
    """
    factor = swept.factor
    whole = factor.distribution == "integer"
    least, most = _limits(factor)
    if swept.name in DELAYS:  # beyond that nothing would come
        most = min(most, episode_steps - 1)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(least <= v <= most and (v == int(v) or not whole) for v in values):
        kind = "whole numbers" if whole else "numbers"
        why = ": the factor is a scale" if _is_scale(factor) else ""
        raise UserError(
            f"values={text} for {swept.name}; give {kind} from {least:g} to {most:g}{why}, with "
            "commas between"
        )
    return sorted({*values, float(factor.neutral)})


def _limits(factor: Factor) -> tuple[float, float]:
    """What a world can have, and no further than FURTHEST times what is known of the factor: where
    physics or pixels overflow, nothing is measured."""
    if _is_scale(factor):
        least, most = factor.neutral / FURTHEST, factor.neutral * FURTHEST
    else:
        known = [abs(v) for v in (factor.neutral, factor.low, factor.high) if v != 0.0]
        most = FURTHEST * max(known, default=1.0)
        least = 0.0 if factor.distribution == "integer" else -most
    return max(least, factor.least), min(most, factor.most)


def _is_scale(factor: Factor) -> bool:
    if factor.distribution == "integer":
        return False
    return factor.distribution == "log_uniform" or factor.neutral == 1.0


def holding_range(
    points: list[SweepPoint], neutral: float, certain: bool = False
) -> tuple[float, float] | None:
    """The values around the neutral one, without a gap, at which success is HOLDS or more; None if
    it is not even there, or was not measured there.

    certain: at which the lower end of its 95 % interval is. That interval is of each value by
    itself: that all of a range's values hold at once is less certain than 95 %.
    """
    ordered = sorted(points, key=lambda point: point.value)
    holds = [(p.interval[0] if certain else p.rate) >= HOLDS for p in ordered]
    values = [point.value for point in ordered]
    if neutral not in values or not holds[values.index(neutral)]:
        return None
    low = high = values.index(neutral)
    while low > 0 and holds[low - 1]:
        low -= 1
    while high < len(ordered) - 1 and holds[high + 1]:
        high += 1
    return ordered[low].value, ordered[high].value


def at_grid_ends(held: tuple[float, float], values: list[float]) -> tuple[bool, bool]:
    """Whether a holding range begins at the lowest value measured and ends at the highest, so that
    it may go further there."""
    return held[0] == min(values), held[1] == max(values)


def sweep_record(
    swept: SweptFactor, points: list[SweepPoint], complete: bool = True
) -> dict[str, Any]:
    """What `sweep.json` says beside the facts of the evaluation.

    complete: every value is measured; before, there are no ranges. certain_range: where the lower
    end of the 95 % interval holds, an interval of each value by itself, not of all at once.
    """
    factor = swept.factor
    holds, surely = (
        holding_range(points, factor.neutral, certain) if complete else None
        for certain in (False, True)
    )
    return {
        "factor": swept.name,
        "trained_from": factor.low,
        "trained_to": factor.high,
        "neutral": factor.neutral,
        "holds_at": HOLDS,
        "complete": complete,
        "holding_range": holds,
        "certain_range": surely,
        "points": [
            {
                "value": point.value,
                "episodes": point.episodes,
                "successes": point.successes,
                "success_rate": point.rate,
                "success_low": point.interval[0],
                "success_high": point.interval[1],
            }
            for point in points
        ],
    }


def sweep_csv(points: list[SweepPoint]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    facts = ("episodes", "successes", "success_rate", "success_low", "success_high")
    writer.writerow(("value", *facts))
    for point in points:
        rates = map(repr, (point.rate, *point.interval))
        writer.writerow((repr(point.value), point.episodes, point.successes, *rates))
    return out.getvalue()


def sweep_text(label: str, swept: SweptFactor, points: list[SweepPoint]) -> str:
    """A line for each value, and what they come to; no range without the neutral value."""
    factor = swept.factor
    lines = [f"{label}, {swept.name} (trained from {factor.low:g} to {factor.high:g}):"]
    for point in points:
        low, high = point.interval
        inside = "" if factor.low <= point.value <= factor.high else "   beyond training"
        lines.append(
            f"  {point.value:9.4g}  {100 * point.rate:5.1f} %  "
            f"{100 * low:.1f} to {100 * high:.1f}{inside}"
        )
    values = [point.value for point in points]
    if factor.neutral not in values:
        return "\n".join([*lines, f"  no range: {factor.neutral:g} was not measured"])
    lower = "the lower end of its 95 % interval, which is of each value by itself,"
    for told, certain in (("success", False), (lower, True)):
        holds = holding_range(points, factor.neutral, certain)
        if holds is None:
            lines.append(f"  {told} is below {100 * HOLDS:.0f} % even at {factor.neutral:g}")
            continue
        ends = [
            f"{end:g}" + " (the end of the grid)" * last
            for end, last in zip(holds, at_grid_ends(holds, values), strict=True)
        ]
        lines.append(f"  {told} stays at {100 * HOLDS:.0f} % or more from {' to '.join(ends)}")
    return "\n".join(lines)


def sweep_png(swept: SweptFactor, curves: dict[str, list[SweepPoint]]) -> bytes:
    """Success against the factor, a curve with its 95 % band for each policy, of whole numbers
    points with whiskers; PNG."""
    with matplotlib.rc_context({"font.size": 9}):
        figure = Figure(figsize=(6, 3.9), layout="constrained")
        axes = figure.subplots()
        factor = swept.factor
        axes.axvspan(factor.low, factor.high, color="0.88", lw=0, label="training range")
        axes.axhline(100 * HOLDS, color="0.4", lw=1.0, ls=":", label=f"{100 * HOLDS:.0f} %")
        whole = factor.distribution == "integer"
        for index, (label, points) in enumerate(curves.items()):
            values = np.array([point.value for point in points])
            bounds = np.array([point.interval for point in points]) * 100
            rates = np.array([100 * point.rate for point in points])
            colour = f"C{index}"
            if whole:
                beside = values + 0.06 * (index - (len(curves) - 1) / 2)
                reach = np.abs(bounds.T - rates)
                axes.errorbar(
                    beside, rates, reach, fmt="o", ms=4, capsize=2, lw=1, color=colour, label=label
                )
                continue
            axes.fill_between(values, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.2, lw=0)
            axes.plot(values, rates, color=colour, marker="o", ms=3, label=label)
        if whole:
            axes.set_xticks(sorted({point.value for points in curves.values() for point in points}))
        if factor.distribution == "log_uniform":
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set(xlabel=with_unit(swept.name, factor.unit), ylabel="success, %", ylim=(0, 102))
        # Below the axes: on the training range its own patch would not be seen.
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130, format="png")
    return buffer.getvalue()
