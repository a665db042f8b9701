"""Factors of randomization: a name, a range, a distribution and a neutral value; and one's own.

Knows how values are drawn, not where they go (see randomization.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import mujoco
import numpy as np
from mujoco import batch
from torch import Tensor

from visuomotor.errors import NAMES, UserError, did_you_mean, is_finite, is_name

DISTRIBUTIONS = ("uniform", "log_uniform", "integer")
# Of the package's groups; a scale or a share has none.
UNITS = {
    "camera_pos": "m",
    "camera_rotation": "degrees",
    "camera_fovy": "degrees",
    "num_lights": "lights",
    "light_pos": "m",
    "light_direction": "degrees",
    "texture": "texture's number",
    "hue": "turns",
    "pixel_noise": "of 255",
    "blur": "pixels",
    "clutter": "things",
    "clutter_angle": "degrees",
    "clutter_distance": "m",
    "gravity_tilt": "degrees",
    "camera_delay": "control steps",
    "action_delay": "control steps",
    "proprio_noise": "rad, rad/s",
}
_Apply = TypeVar("_Apply", bound=Callable[[mujoco.MjModel, Tensor, Tensor], None])


@dataclass(frozen=True)
class Factor:
    """One number drawn per episode.

    distribution: "uniform", "log_uniform" or "integer" (both ends included). At strength s the
    ends of the range are neutral + s * (end - neutral) (for log_uniform in the logarithm; for
    integer the nearest whole number), so that strength 0 gives `neutral` exactly.
    least, most: what a world can have; no sweep and no held-out world goes beyond.
    unit: for axes and tables; empty: a scale, a share or a probability.
    """

    name: str
    low: float
    high: float
    neutral: float
    distribution: str = "uniform"
    least: float = -math.inf
    most: float = math.inf
    unit: str = ""


@dataclass(frozen=True)
class OwnFactor:
    """A group of factors that a user adds; see `register_factor`."""

    group: str
    parts: tuple[str, ...]
    low: float
    high: float
    neutral: float
    distribution: str
    unit: str
    field: str
    apply: Callable[[mujoco.MjModel, Tensor, Tensor], None]


OWN: dict[str, OwnFactor] = {}


def unit_of(name: str) -> str:
    """A factor's unit by its name or its group's; empty where it has none, or is not known."""
    for group, own in OWN.items():
        if name == group or name.startswith(f"{group}/"):
            return own.unit
    return UNITS.get(name.split("/")[0], "")


def with_unit(name: str, unit: str) -> str:
    """For axes and tables: "camera_pos/x, m"; the name alone where there is no unit."""
    return f"{name}, {unit}" if unit else name


def register_factor(
    group: str,
    *,
    field: str,
    bounds: tuple[float, float],
    neutral: float,
    distribution: str = "uniform",
    parts: tuple[str, ...] = (),
    unit: str = "",
) -> Callable[[_Apply], _Apply]:
    """Decorator that makes a function a factor of every environment that is built from then on.

    The function is called with the MjModel, the field of the worlds that begin an episode (n, ...),
    and the drawn values (n, number of parts, at least 1). It changes the field in place, which
    holds the scene's own value with the package's factors in it. Without `parts` the group is one
    factor. Its values stand in `episodes.csv` behind all others, which stay as they were drawn.

        @register_factor("ambient_light", field="light_ambient", bounds=(0.5, 1.5), neutral=1.0)
        def ambient_light(model, field, values):
            field *= values.unsqueeze(2)  # (worlds, lights, channels)

    field: of the MjModel, or "opt.gravity". unit: for axes and tables. Raises UserError where the
    name is taken or is none, the field cannot differ between worlds, or a range does not hold the
    neutral value or does not suit the distribution. The function is tried when an environment is
    built: where it raises, returns something or makes a number that is none, that is a UserError.
    """
    _check_names(group, parts, field, unit)
    numbers = (*bounds, neutral) if isinstance(bounds, tuple | list) else ()
    finite = len(numbers) == 3 and all(map(is_finite, numbers))
    if not finite or not math.isfinite(bounds[1] - bounds[0]):
        raise UserError(
            f"factor '{group}': bounds={bounds!r}, neutral={neutral!r}; valid: the two ends of a "
            "range and a value in it, finite numbers"
        )
    if not bounds[0] <= neutral <= bounds[1]:
        raise UserError(f"factor '{group}': bounds={bounds} do not hold neutral={neutral}")
    if distribution not in DISTRIBUTIONS:
        raise UserError(
            f"factor '{group}': distribution='{distribution}'; valid: {', '.join(DISTRIBUTIONS)}"
        )
    if distribution == "log_uniform" and bounds[0] <= 0.0:
        raise UserError(f"factor '{group}': bounds={bounds}; a log_uniform range is above 0")
    if distribution == "integer" and any(end != int(end) for end in (*bounds, neutral)):
        raise UserError(
            f"factor '{group}': bounds={bounds}, neutral={neutral}; an integer range is of whole "
            "numbers"
        )

    def add(function: _Apply) -> _Apply:
        if not callable(function):
            raise UserError(
                f"factor '{group}': {function!r} is no function of model, field, values"
            )
        present = OWN.get(group)
        if present is not None and present.apply.__qualname__ != function.__qualname__:
            raise UserError(f"a factor '{group}' is registered already; give yours another name")
        own = OwnFactor(group, tuple(parts), *bounds, neutral, distribution, unit, field, function)
        OWN[group] = own
        return function

    return add


def _check_names(group: object, parts: object, field: object, unit: object) -> None:
    """Raises UserError for what `register_factor` cannot use."""
    if not is_name(group):
        raise UserError(f"a factor cannot be called {group!r}; valid: {NAMES}")
    named = isinstance(parts, tuple | list) and all(map(is_name, parts))
    if not isinstance(parts, tuple | list) or not named or len(set(parts)) < len(parts):
        raise UserError(
            f"factor '{group}': parts={parts!r}; valid: a tuple of names that differ, of {NAMES}"
        )
    if field not in batch.MODEL_FIELDS:
        hint = did_you_mean(str(field), batch.MODEL_FIELDS, cutoff=0.6)
        raise UserError(
            f"factor '{group}': field={field!r} is none that can differ between worlds{hint}; "
            "valid: those of MuJoCo's MjModel, as light_ambient or body_mass, and opt.gravity"
        )
    if not isinstance(unit, str) or not unit.isprintable():
        raise UserError(f"factor '{group}': unit={unit!r}; valid: a few letters, or none")


class Distributions:
    """The factors as columns, so that an episode's values are a handful of array operations."""

    def __init__(self, factors: list[Factor], enabled: list[bool]):
        low = np.array([f.low for f in factors])
        high = np.array([f.high for f in factors])
        self.neutral = np.array([f.neutral for f in factors])
        self._enabled = np.array(enabled)
        self._log = np.array([f.distribution == "log_uniform" for f in factors])
        self._integer = np.array([f.distribution == "integer" for f in factors])
        self._low, self._high, self._centre = (
            self._to_scale(values) for values in (low, high, self.neutral)
        )

    def _to_scale(self, values: np.ndarray) -> np.ndarray:
        return np.where(self._log, np.log(np.where(self._log, values, 1.0)), values)

    def values(self, uniform: np.ndarray, strength: float) -> np.ndarray:
        """uniform (K,) in [0, 1) -> (K,) values at `strength`."""
        low = self._centre + strength * (self._low - self._centre)
        high = self._centre + strength * (self._high - self._centre)
        drawn = low + uniform * (high - low)
        first, last = np.round(low), np.round(high)
        whole = np.minimum(last, first + np.floor(uniform * (last - first + 1.0)))
        drawn = np.where(self._integer, whole, drawn)
        drawn = np.where(self._log, np.exp(np.where(self._log, drawn, 0.0)), drawn)
        # A range of no width at its neutral value is that value, to the last bit.
        fixed = ~self._enabled | ((low == self._centre) & (high == self._centre))
        return np.where(fixed, self.neutral, drawn)


def beyond(factor: Factor, uniform: float) -> float:
    """uniform in [0, 1) -> a value outside of the range: on a side where the range leaves the
    neutral value, from its end to twice as far, as far as a world can have it; neutral where there
    is no range. Whole numbers: one more than the highest."""
    if factor.distribution == "integer":
        return min(factor.high + 1.0, factor.most)
    logarithmic = factor.distribution == "log_uniform"
    low, centre, high = (
        float(np.log(v)) if logarithmic else v for v in (factor.low, factor.neutral, factor.high)
    )
    # An end on the other end's side of neutral has the range itself beyond it.
    reaches = [reach for reach in (min(low - centre, 0.0), max(high - centre, 0.0)) if reach != 0.0]
    if not reaches:
        return factor.neutral
    side = min(int(uniform * len(reaches)), len(reaches) - 1)
    value = centre + reaches[side] * (1.0 + uniform * len(reaches) - side)
    value = float(np.exp(value)) if logarithmic else value
    return min(max(value, factor.least), factor.most)
