"""Demonstrator of order fulfilment: one toy after the other into its box, the nearest first."""

from __future__ import annotations

import torch
from torch import Tensor

from visuomotor.envs.tasks.order_fulfillment import GREEN_BOX, PLANES, RED_BOX, RIM, TOYS
from visuomotor.envs.tasks.order_fulfillment import OrderFulfillment
from visuomotor.scripted.expert import (
    AROUND,
    FUNNEL,
    NEIGHBOUR,
    Expert,
    Goal,
    down,
    rise,
    rows,
    wrap,
)

# m of the pinch site relative to a toy's origin when grasping: planes are held above their wings.
GRASP_HEIGHT = {"plane": 0.006, "car": 0.002}
SIDE = 0.032  # m from the middle of a box, along its longer edge, at which a toy is put
LETS_GO = 0.012  # m of the pinch site above the rim: closed fingertips reach down by 9 mm
PLACED = (0.008, 0.004, 0.15)  # m across, m in height, rad of turn: a toy there is let go
LOW = (0.05, 0.07)  # m of the pinch site: from below the first the hand goes up before sideways


class OrderFulfillmentExpert(Expert):
    """Takes the nearest toy that is not in its box, carries it there, lets go and goes up."""

    _task: OrderFulfillment

    def _goal(self) -> Goal:
        task = self._task
        toy, left = task.next_toy()
        pinch, pos = task.pinch_pos(), task.prop_pos(toy)
        plane = torch.isin(toy, torch.tensor(PLANES))
        grasp = pos + self._style.grasp_offset
        grasp[:, 2] += torch.where(plane, GRASP_HEIGHT["plane"], GRASP_HEIGHT["car"])
        mat = down(self._toy_yaw(toy))
        target, around = self._above_grasp(grasp, mat)
        target = self._first_up(target)
        held = around & self._firm()
        place, yaw = self._place(toy)
        turn = wrap(2.0 * (yaw - task.prop_yaw(toy))) / 2.0  # either end first
        low = RIM + LETS_GO + pos[:, 2] - pinch[:, 2]
        across = (place - pos)[:, :2].norm(dim=1)
        carried = self._carried(toy, place, low + RIM * rise(turn.abs(), (0.1, 0.4)))
        target = rows(held, carried, target)
        mat = rows(held, down(self._heading() + turn), mat)
        over = (across < PLACED[0]) & (pos[:, 2] - low < PLACED[1]) & (turn.abs() < PLACED[2])
        lets_go = (around & over) | ~left
        target = rows(lets_go, self._away(torch.full_like(low, self._rest_height())), target)
        mat = rows(lets_go, down(self._heading()), mat)
        return Goal(target, mat, around & ~lets_go)

    def _rest_height(self) -> float:
        return 0.16  # m of the pinch site when nothing is left to be done

    def _first_up(self, target: Tensor) -> Tensor:
        """(N, 3) m: the same; straight up where the hand is low and the target is not below."""
        pinch = self._task.pinch_pos()
        offset = target - pinch
        far = offset[:, :2].norm(dim=1) > FUNNEL[1]
        clear = torch.where(far, rise(pinch[:, 2], LOW), 1.0).unsqueeze(1)
        free = torch.where(far & (pinch[:, 2] < LOW[1]), self._free(), 1.0).unsqueeze(1)
        step = torch.cat((clear * offset[:, :2], offset[:, 2:]), dim=1)
        return pinch + free * step

    def _toy_yaw(self, toy: Tensor) -> Tensor:
        """(N,) rad: heading of the closing axis, across the toy: the one of two that needs less
        turning."""
        across = self._task.prop_yaw(toy) + torch.pi / 2
        missing = wrap(2.0 * (across - self._heading())) / 2.0
        return self._heading() + missing + self._style.yaw_offset

    def _place(self, toy: Tensor) -> tuple[Tensor, Tensor]:
        """Where a toy is put (N, 3), as if it lay there, and its yaw (N,): along the box's shorter
        edge, on the side that is free, else on the nearer one."""
        task = self._task
        everyone = torch.arange(len(toy))
        plane = toy < TOYS[len(PLANES)]
        box = torch.where(plane, GREEN_BOX, RED_BOX)
        other = torch.tensor([1, 0, 3, 2])[toy]
        x = task.in_box_frame()[:, :, 0]
        taken = task.in_box()[everyone, other]
        side = torch.where(taken, -x[everyone, other], x[everyone, toy]).sign()
        yaw = task.prop_yaw(box)
        place = task.prop_pos(box) + self._style.place_offset
        place[:, 0] += side * SIDE * yaw.cos()
        place[:, 1] += side * SIDE * yaw.sin()
        return place, yaw + torch.pi / 2
