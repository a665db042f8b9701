"""Planes and cars as they are drawn: what a hand can grasp, and what a camera can tell apart."""

from __future__ import annotations

import mujoco
import numpy as np

from visuomotor.envs.tasks import toys


def test_every_shape_can_be_grasped_and_is_as_small_as_it_says():
    rng = np.random.default_rng(0)
    for _ in range(300):
        for shape, held in ((toys.plane, 2), (toys.car, 2)):
            parts = shape(rng.random(toys.NUMBERS))
            assert 0.028 <= 2 * parts[held].size[1] <= 0.036
            for part in parts:
                reach = np.abs(np.asarray(part.pos)[:2]) + toys.bounds(part)[1][:2]
                if part.type == mujoco.mjtGeom.mjGEOM_BOX:
                    assert np.hypot(*reach) < toys.MAX_RADIUS


def test_the_kind_of_a_toy_shows_in_its_colours():
    """At the pictures' size its shape hardly tells: a car's windows are dark and its body strongly
    coloured, a plane's fuselage is pale, and nothing of it dark but its wheels."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        numbers = rng.random(toys.NUMBERS)
        roofs = [part for part in toys.car(numbers) if part.material == "cabin"]
        assert len(roofs) == 1
        assert max(roofs[0].rgba[:3]) < 0.1
        body = [part for part in toys.plane(numbers) if part.material != "wheels"]
        assert min(max(part.rgba[:3]) for part in body) > 0.55
        (fuselage,) = (part.rgba[:3] for part in body if part.material == "body")
        (chassis,) = (part.rgba[:3] for part in toys.car(numbers) if part.material == "body")
        assert min(fuselage) > 0.65
        assert min(chassis) < 0.45
