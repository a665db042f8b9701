"""Demonstrator of order fulfilment: one toy after the other into its box, from right to left."""

from __future__ import annotations

import torch
from torch import Tensor

from visuomotor.envs.tasks.order_fulfillment import (
    GREEN_BOX,
    OTHER,
    PLANES,
    RED_BOX,
    RIM,
    TOYS,
    OrderFulfillment,
)
from visuomotor.scripted.expert import (
    FUNNEL,
    Expert,
    Goal,
    down,
    rise,
    rows,
    wrap,
)

# m of the pinch site relative to a toy's origin when grasping: planes are held above their wings.
GRASP_HEIGHT = {"plane": 0.006, "car": 0.002}
SIDE = 0.033  # m from the middle of a box, along its longer edge, at which a toy is put
LETS_GO = 0.012  # m of the pinch site above the rim: closed fingertips reach down by 9 mm
PLACED = (0.010, 0.010, 0.25)  # m across, m in height, rad of turn: a toy there is let go
# The same, as a multiple, where the fingers already open, faster than this (rad/s): what is begun
# is done.
BEGUN = (2.0, 0.05)
# rad: the hand's heading stays within a quarter of a turn of it where it puts a toy into its box.
# On the other side of 0 the arm's wrist is singular over the boxes, near its base.
HEADING = -torch.pi / 2
# rad, the same where it takes one. Fingers have room along x, so most toys are taken at a heading
# about 0, with which the hand begins. Within a quarter of a turn of HEADING that is at the border,
# and who is not sure of a few degrees cannot tell 0 from half a turn.
TAKES = -torch.pi / 4
# Of the hand's way up, with fingers that are not open yet: a wall or a toy may be in their way.
OPENING = 0.06
REST = 0.16  # m of the pinch site when nothing is left to be done
LOW = (0.06, 0.08)  # m of the pinch site: from below the first the hand goes up before sideways


class OrderFulfillmentExpert(Expert):
    """Takes the rightmost toy that is not in its box, carries it there, lets go and goes up."""

    _task: OrderFulfillment

    def _goal(self) -> Goal:
        task = self._task
        toy, left = task.next_toy()
        pinch, pos = task.pinch_pos(), task.prop_pos(toy)
        plane = torch.isin(toy, torch.tensor(PLANES))
        grasp = pos + self._style.grasp_offset
        grasp[:, 2] += torch.where(plane, GRASP_HEIGHT["plane"], GRASP_HEIGHT["car"])
        yaw = self._toy_yaw(toy)
        target, around = self._above_grasp(grasp, down(yaw))
        clear = self._clear(pos)
        free = torch.where(clear < 1.0, self._free().clamp(min=OPENING), 1.0)
        target[:, 2] = pinch[:, 2] + free * (target[:, 2] - pinch[:, 2])
        target[:, :2] = pinch[:, :2] + (free * clear).unsqueeze(1) * (target - pinch)[:, :2]
        mat = down(self._heading() + clear * wrap(yaw - self._heading()))
        firm = self._firm()
        held = around & firm
        place, yaw = self._place(toy)
        along = self._heading() + yaw - task.prop_yaw(toy)
        turn = wrap(_heading_along(along, HEADING) - self._heading())
        low = RIM + LETS_GO + pos[:, 2] - pinch[:, 2]
        across = (place - pos)[:, :2].norm(dim=1)
        carried = self._carried(
            toy, place, low + RIM * rise(turn.abs(), (PLACED[2], 2.0 * PLACED[2]))
        )
        target = rows(held, carried, target)
        mat = rows(held, down(self._heading() + turn), mat)
        opens = self._opening()
        slack = torch.where(opens, BEGUN[0], 1.0)
        over = (across < slack * PLACED[0]) & (pos[:, 2] - low < slack * PLACED[1])
        over &= turn.abs() < slack * PLACED[2]
        lets_go = (around & over & (firm | opens)) | ~left
        away = pinch.clone()
        away[:, 2] += self._free().clamp(min=OPENING) * (REST - pinch[:, 2])
        target = rows(lets_go, away, target)
        mat = rows(lets_go, down(self._heading()), mat)
        return Goal(target, mat, around & ~lets_go)

    def _opening(self) -> Tensor:
        """(N,) bool: the fingers are on their way."""
        speed = self._sim.data("qvel")[:, self._jaco.dof_ids[6:]].mean(dim=1)
        return speed < -BEGUN[1]

    def _clear(self, pos: Tensor) -> Tensor:
        """(N,) how freely the hand moves sideways to a toy at pos (N, 3), and turns: 0 where it is
        low and not above it. Straight up it goes back the way by which it came down, over a box
        near singular postures of the wrist."""
        pinch = self._task.pinch_pos()
        far = (pos - pinch)[:, :2].norm(dim=1) > FUNNEL[1]
        return torch.where(far, rise(pinch[:, 2], LOW), 1.0)

    def _toy_yaw(self, toy: Tensor) -> Tensor:
        """(N,) rad: heading of the closing axis, across the toy."""
        across = self._task.prop_yaw(toy) + torch.pi / 2
        return _heading_along(across, TAKES) + self._style.yaw_offset

    def _place(self, toy: Tensor) -> tuple[Tensor, Tensor]:
        """Where a toy is put (N, 3), as if it lay there, and its yaw (N,): along the box's shorter
        edge, on the side that is free, else on the nearer one."""
        task = self._task
        everyone = torch.arange(len(toy))
        plane = toy < TOYS[len(PLANES)]
        box = torch.where(plane, GREEN_BOX, RED_BOX)
        other = torch.tensor(OTHER)[toy]
        x = task.in_box_frame()[:, :, 0]
        taken = task.in_box()[everyone, other]
        side = torch.where(taken, -x[everyone, other], x[everyone, toy]).sign()
        yaw = task.prop_yaw(box)
        place = task.prop_pos(box) + self._style.place_offset
        place[:, 0] += side * SIDE * yaw.cos()
        place[:, 1] += side * SIDE * yaw.sin()
        return place, yaw + torch.pi / 2


def _heading_along(axis: Tensor, around: float) -> Tensor:
    """(N,) rad -> the heading of the two along this axis that is nearer to one (rad)."""
    return around + wrap(2.0 * (axis - around)) / 2.0
