"""Policies side by side: they met the same episodes, so their outcomes are compared in pairs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from visuomotor.evaluation import Episodes
from visuomotor.factor_effects import Effect, factor_effects
from visuomotor.statistics import PairedDifference, paired_difference


@dataclass(frozen=True)
class Outcome:
    """One policy's part."""

    label: str
    episodes: Episodes
    summary: dict[str, Any]  # of evaluation.json

    @cached_property
    def effects(self) -> list[Effect]:
        """Of the randomized factors on success, the clearest first."""
        episodes = self.episodes
        return factor_effects(episodes.success, episodes.factors, episodes.factor_names)


def compare(first: Outcome, other: Outcome) -> PairedDifference:
    """Success of `other` minus that of `first` on the same episodes."""
    return paired_difference(first.episodes.success, other.episodes.success)


def comparison(outcomes: list[Outcome]) -> dict[str, Any]:
    """What `comparison.json` holds: every rate, and what each differs by from the first."""
    told = ("task", "sims", "strength", "heldout", "renderer", "seed", "episodes", "episode_steps")
    # Of worlds in which nothing is held out there are no changes to name.
    shared = [name for name in told if name in outcomes[0].summary]
    rates = ("policy", "successes", "success_rate", "success_low", "success_high", "mean_return")
    return {
        **{name: outcomes[0].summary[name] for name in shared},
        "policies": {one.label: {name: one.summary[name] for name in rates} for one in outcomes},
        "differences": [
            {"policy": one.label, "from": outcomes[0].label, **asdict(compare(outcomes[0], one))}
            for one in outcomes[1:]
        ],
    }


def table(outcomes: list[Outcome]) -> str:
    """Rows of rates with their intervals, and of the differences from the first policy, in %."""
    width = max(len(f"{one.label} - {outcomes[0].label}") for one in outcomes)
    lines = [f"{'':{width}}  success   95 %"]
    for one in outcomes:
        rate, low, high = (
            100 * one.summary[name] for name in ("success_rate", "success_low", "success_high")
        )
        lines.append(f"{one.label:{width}}  {rate:7.1f}   {low:.1f} to {high:.1f}")
    for one in outcomes[1:]:
        pair = compare(outcomes[0], one)
        lines.append(
            f"{one.label + ' - ' + outcomes[0].label:{width}}  {100 * pair.difference:+7.1f}   "
            f"{100 * pair.low:+.1f} to {100 * pair.high:+.1f}   p = {pair.p_value:.2g} (McNemar, "
            f"exact); alone: {pair.only_second} and {pair.only_first} episodes"
        )
    return "\n".join(lines)
