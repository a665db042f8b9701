"""Demonstrator of pouring: takes the mug by its rim, tilts it over the container."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visuomotor.envs.tasks.pouring import Pouring
from visuomotor.scripted.expert import FIRM, Expert, Goal, down, rise, rows, wrap

# m, pinch site above the mug's centre, along its axis: the palm stays 4 cm off the rim, and the
# liquid leaves between the two.
GRASP = 0.015
HELD = 0.025  # m from there to the pinch site, of a mug in the hand
CLOSED = 0.4  # rad that fingers are closed at least around a mug
# rad, heading of the closing axis while pouring. The hand then tilts about it and comes to lie with
# its wrist on the right, from the camera: at every place of the workspace, of eight directions,
# only this one and its mirror image are within the arm's reach.
POUR_HEADING = math.radians(-60.0)
TILT = math.radians(112.0)  # from fingers down: the wrist is lower than the mug's floor
BEHIND = 0.02  # m that the mug's rim is in front of the pinch site while it pours
ABOVE = 0.02  # m, pinch site above the height at which a prop is carried
# m, pinch site above the table: from where on, over which range, a mug clears the container.
CLEARS = (0.105, 0.125)
# m from the place to pour: a hand that is further off keeps the mug upright.
TILT_FUNNEL = (0.012, 0.04)


class PouringExpert(Expert):
    """Grasps the mug near its rim, brings it over the container, tilts it until it is empty, and
    then holds it upright there."""

    def _goal(self) -> Goal:
        task = self._task
        assert isinstance(task, Pouring)
        grasp = task.prop_pos(0) + GRASP * task.mug_axis() + self._style.grasp_offset
        mat = down(self._grasp_heading())
        target, around = self._above_grasp(grasp, mat)
        around = around | ((grasp - task.pinch_pos()).norm(dim=1) < HELD)
        held = around & self._firm()
        empty = ~task.in_mug().any(dim=1)
        place = self._place()
        across = (place - task.pinch_pos())[:, :2].norm(dim=1)
        tilt = torch.where(empty, 0.0, TILT * (1.0 - rise(across, TILT_FUNNEL)))
        target = rows(held, self._over(place), target)
        mat = rows(held, tilted(POUR_HEADING + self._style.yaw_offset, tilt), mat)
        # Nothing is left to do without a mug in the hand.
        over = empty & ~held
        target = rows(over, self._away(place[:, 2]), target)
        return Goal(target, mat, around & ~over)

    def _firm(self) -> Tensor:
        """(N,) bool: the fingers have closed and stand; a mug is wider than a block."""
        speed = self._sim.data("qvel")[:, self._jaco.dof_ids[6:]].abs()
        return (self._fingers().mean(dim=1) > CLOSED) & (speed.amax(dim=1) < FIRM[1])

    def _grasp_heading(self) -> Tensor:
        """(N,) rad: of the closing axis, across the walls that need the least turning to pour."""
        side = 2 * torch.pi / self._task.symmetry(0)
        turn = wrap((self._task.prop_yaw(0) - POUR_HEADING) * (2 * torch.pi / side))
        return POUR_HEADING + turn * (side / (2 * torch.pi)) + self._style.yaw_offset

    def _place(self) -> Tensor:
        """(N, 3) m: of the pinch site, for the mug's rim to be over the container."""
        place = self._task.prop_pos(1) + self._style.place_offset
        to_wrist = (-math.sin(POUR_HEADING), math.cos(POUR_HEADING), 0.0)
        place = place - BEHIND * torch.tensor(to_wrist, dtype=place.dtype)
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
    flat = torch.zeros_like(heading)
    x = torch.stack((heading.cos(), heading.sin(), flat), dim=1)
    to_wrist = torch.stack((-heading.sin(), heading.cos(), flat), dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=heading.dtype)
    z = -tilt.cos().unsqueeze(1) * up - tilt.sin().unsqueeze(1) * to_wrist
    return torch.stack((x, torch.linalg.cross(z, x), z), dim=2)
