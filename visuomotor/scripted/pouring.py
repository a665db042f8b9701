"""Demonstrator of pouring: takes the mug by its rim, tilts it over the container."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visuomotor.envs import robot
from visuomotor.envs.tasks.pouring import Pouring
from visuomotor.scripted.expert import Expert, Goal, down, rise, rows, wrap

# m, pinch site above the mug's centre, along its axis: the palm stays 4 cm off the rim, and the
# liquid leaves between the two.
GRASP = 0.015
HELD = 0.025  # m from there to the pinch site, of a mug in the hand
# rad, heading of the closing axis while pouring, where the container is straight in front of the
# arm's base. The hand tilts about that axis and comes to lie with its wrist on the right, from the
# camera: the elbow leaves room for that from -75 to -45 degrees, at every place of the workspace.
POUR_HEADING = math.radians(-60.0)
TILT = math.radians(112.0)  # from fingers down: the wrist is lower than the mug
BEHIND = 0.02  # m that the mug's rim is in front of the pinch site while it pours
ABOVE = 0.02  # m, pinch site above the height at which a prop is carried
OFF_TABLE = 0.004  # m of the mug: it is in the hand
# m, pinch site above the table: from where on, over which range, a mug clears the container.
CLEARS = (0.105, 0.125)
# m from the place to pour: a hand that is further off keeps the mug upright.
TILT_FUNNEL = (0.012, 0.04)


class PouringExpert(Expert):
    """Takes the mug near its rim, brings it over the container, tilts it, and holds it so."""

    def _goal(self) -> Goal:
        task = self._task
        assert isinstance(task, Pouring)
        heading = self._pour_heading()
        grasp = task.prop_pos(0) + GRASP * task.mug_axis() + self._style.grasp_offset
        mat = down(self._grasp_heading(heading))
        target, around = self._above_grasp(grasp, mat)
        around = around | ((grasp - task.pinch_pos()).norm(dim=1) < HELD)
        held = around & (self._firm() | task.lifted(0, OFF_TABLE))
        place = self._place(heading)
        across = (place - task.pinch_pos())[:, :2].norm(dim=1)
        tilt = TILT * (1.0 - rise(across, TILT_FUNNEL))
        target = rows(held, self._over(place), target)
        mat = rows(held, tilted(heading, tilt), mat)
        # Without a mug in the hand nothing is left to do, once it is empty.
        over = ~task.in_mug().any(dim=1) & ~held
        target = rows(over, self._away(place[:, 2]), target)
        return Goal(target, mat, around & ~over)

    def _pour_heading(self) -> Tensor:
        """(N,) rad: of the closing axis, the same as seen from the arm's base everywhere."""
        offset = self._task.prop_pos(1) - torch.tensor(robot.BASE_POS, dtype=torch.float64)
        azimuth = torch.atan2(offset[:, 0], -offset[:, 1])
        return POUR_HEADING + azimuth + self._style.yaw_offset

    def _grasp_heading(self, heading: Tensor) -> Tensor:
        """(N,) rad: of the closing axis, across the walls that need the least turning to pour with
        the `heading` (N,)."""
        turn = self._task.prop_yaw(0) - heading
        return heading + wrap(4.0 * turn) / 4.0

    def _place(self, heading: Tensor) -> Tensor:
        """(N, 3) m: of the pinch site, for the mug's rim to be over the container."""
        place = self._task.prop_pos(1) + self._style.place_offset - BEHIND * _to_wrist(heading)
        place[:, 2] = self._style.carry_height + ABOVE
        return place

    def _over(self, place: Tensor) -> Tensor:
        """(N, 3) m: where the pinch site goes with the mug in the hand: up, then over `place`."""
        pinch = self._task.pinch_pos()
        target = place.clone()
        clear = rise(pinch[:, 2], CLEARS).unsqueeze(1)
        target[:, :2] = pinch[:, :2] + clear * (place - pinch)[:, :2]
        return target


def tilted(heading: Tensor, tilt: Tensor) -> Tensor:
    """(N,) rad each -> (N, 3, 3): closing along the heading, tilted about that axis from fingers
    down, so that the wrist comes to the left of the heading."""
    x = torch.stack((heading.cos(), heading.sin(), torch.zeros_like(heading)), dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=heading.dtype)
    z = -tilt.cos().unsqueeze(1) * up - tilt.sin().unsqueeze(1) * _to_wrist(heading)
    return torch.stack((x, torch.linalg.cross(z, x), z), dim=2)


def _to_wrist(heading: Tensor) -> Tensor:
    """(N, 3) horizontal unit vector, to the left of the heading."""
    return torch.stack((-heading.sin(), heading.cos(), torch.zeros_like(heading)), dim=1)
