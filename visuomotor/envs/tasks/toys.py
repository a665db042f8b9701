"""Toy planes and cars, made of boxes, capsules and a ball: one shape an episode.

A shape is drawn as numbers in [0, 1), half of which (0.5) is the shape that is compiled. What a
hand holds differs little between shapes, so that a state of one fits another: toys lie at one
height, and are 28 to 36 mm wide where they are grasped. Knows no simulator.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Iterator

import mujoco
import numpy as np
from torch import Tensor

from visuomotor.envs.scene import Part

MASS = 0.05  # kg; all of it in the body or the fuselage: wings, cabin and wheels are light
NUMBERS = 13  # drawn for a toy; a kind takes as many as it needs
PLANE_HEIGHT = 0.020  # m of a plane's origin above what it stands on
CAR_HEIGHT = 0.018  # m
MAX_RADIUS = 0.046  # m, horizontally from the origin of any toy to its furthest point
WHEEL_RGBA = (0.12, 0.12, 0.13, 1.0)
# The windows all around a car's cabin. From above, at 8 pixels a toy, the shape hardly tells a car
# from a plane with its wings low at its sides.
WINDOW_RGBA = (0.06, 0.07, 0.09, 1.0)
# Ranges of a colour's saturation and value. A plane's fuselage is pale, as most planes are, a car
# strongly coloured: with fuselages as strong, a CNN was off by a fifth more for where toys lie.
PALE, STRONG = ((0.0, 0.2), (0.85, 1.0)), ((0.6, 1.0), (0.6, 1.0))
_CAPSULE, _SPHERE = mujoco.mjtGeom.mjGEOM_CAPSULE, mujoco.mjtGeom.mjGEOM_SPHERE
_ACROSS = (np.sqrt(0.5), np.sqrt(0.5), 0.0, 0.0)  # a capsule's axis along y

Shape = Callable[[np.ndarray], list[Part]]
Rgba = tuple[float, float, float, float]


def plane(numbers: np.ndarray) -> list[Part]:
    """numbers (NUMBERS,) in [0, 1). A low wing: fingers close above it. The wheels come first:
    their radius is the same in every shape."""
    u = iter(numbers.tolist())
    length, width = _between(next(u), 0.032, 0.039), _between(next(u), 0.014, 0.016)
    span, chord = _between(next(u), 0.022, 0.027), _between(next(u), 0.009, 0.012)
    wing_x = _between(next(u), -0.002, 0.010)
    tail_span, fin = _between(next(u), 0.013, 0.018), _between(next(u), 0.006, 0.009)
    body, wing = _colour(u, PALE), _colour(u, STRONG)
    tail_x = 0.006 - length
    return [
        Part((0.005, 0.010), 0.0, WHEEL_RGBA, (0.014, 0.0, -0.015), _ACROSS, _CAPSULE, "wheels"),
        Part((0.005,), 0.0, WHEEL_RGBA, (tail_x, 0.0, -0.015), type=_SPHERE, material="wheels"),
        Part((length, width, 0.013), MASS, body, (0.0, 0.0, 0.001), material="body"),
        Part((chord, span, 0.0025), 0.0, wing, (wing_x, 0.0, -0.0095), material="wing"),
        Part((0.006, tail_span, 0.002), 0.0, wing, (tail_x, 0.0, 0.010), material="wing"),
        Part((0.006, 0.002, fin), 0.0, wing, (tail_x, 0.0, 0.014 + fin), material="wing"),
    ]


def car(numbers: np.ndarray) -> list[Part]:
    """numbers (NUMBERS,) in [0, 1). The axles, one capsule for two wheels, come first: their radius
    is the same in every shape."""
    u = iter(numbers.tolist())
    length, width = _between(next(u), 0.030, 0.038), _between(next(u), 0.015, 0.018)
    cabin, cabin_x = _between(next(u), 0.011, 0.018), _between(next(u), -0.010, 0.004)
    cabin_height, axle = _between(next(u), 0.005, 0.008), _between(next(u), 0.55, 0.7)
    body = _colour(u, STRONG)
    wheels = ((0.008, width - 0.006), 0.0, WHEEL_RGBA)
    x = axle * length
    return [
        Part(*wheels, (x, 0.0, -0.010), _ACROSS, _CAPSULE, "wheels"),
        Part(*wheels, (-x, 0.0, -0.010), _ACROSS, _CAPSULE, "wheels"),
        Part((length, width, 0.010), MASS, body, (0.0, 0.0, -0.002), material="body"),
        Part(
            *((cabin, width - 0.003, cabin_height), 0.0, WINDOW_RGBA),
            (cabin_x, 0.0, 0.008 + cabin_height),
            material="cabin",
        ),
    ]


def bounds(part: Part) -> tuple[float, tuple[float, float, float]]:
    """m: radius of the sphere around a part, and half the edges of the box around it, in the part's
    own frame: what MuJoCo calls geom_rbound and the second half of geom_aabb."""
    size = part.size
    if part.type == _SPHERE:
        return size[0], (size[0],) * 3
    if part.type == _CAPSULE:
        return size[0] + size[1], (size[0], size[0], size[0] + size[1])
    return float(np.linalg.norm(size)), (size[0], size[1], size[2])


def inertia(size: Tensor) -> Tensor:
    """(..., 3) m, half the edges of a solid box of MASS -> (..., 3) kg m^2 about its axes."""
    squares = size.square() * MASS / 3.0
    return squares.sum(dim=-1, keepdim=True) - squares


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)


def _colour(u: Iterator[float], ranges: tuple[tuple[float, float], tuple[float, float]]) -> Rgba:
    """Of any hue; ranges: PALE or STRONG."""
    hue, saturation, value = (next(u), *(_between(next(u), low, high) for low, high in ranges))
    return (*colorsys.hsv_to_rgb(hue, saturation, value), 1.0)
