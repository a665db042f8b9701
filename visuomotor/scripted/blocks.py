"""Demonstrators of the tasks with blocks: lifting, stacking, clearing by a stack."""

from __future__ import annotations

import torch
from torch import Tensor

from visuomotor.scripted.expert import AROUND, RETREAT, Expert, Goal, down, rows

# m, horizontally and in height: a block there is let go. It rests then: letting go on the way
# down teaches a clone to stop there, half holding on.
PLACED = (0.018, 0.0015)
REACH_BEYOND = 0.003  # m under where a block will lie: the hand presses it down a little
JOINT_DEPTH = -0.016  # m, pinch site relative to where two blocks meet, to grasp both
JOINT_REACHED = 0.004  # m in height
# m from the pinch site: two blocks in the hand are further off once they have slipped.
STILL_HELD = 0.03
OFF_TABLE = 0.004  # m of the lower one: it is in the hand, not on the table
# m that the goal of a hand with two blocks is ahead of it, at most: they must not be jerked.
GENTLY = 0.03


class LiftingExpert(Expert):
    """Takes the block and raises it."""

    def _goal(self) -> Goal:
        mat = down(self._grasp_yaw(0))
        target, around = self._above_grasp(self._grasp_point(0), mat)
        held = around & self._firm()
        target = rows(held, self._raised(0), target)
        return Goal(target, rows(held, down(self._heading()), mat), around)


class StackingExpert(Expert):
    """Takes the orange block, puts it onto the pink one, lets go and goes up."""

    def _goal(self) -> Goal:
        block = self._task.prop_pos(0)
        yaw = self._grasp_yaw(0, neighbours=(1,))
        target, around = self._above_grasp(self._grasp_point(0), down(yaw))
        held = around & self._firm()
        place = self._place()
        target = rows(held, self._carried(0, place, place[:, 2] - REACH_BEYOND), target)
        yaw = torch.where(held, self._heading(), yaw)
        lies = (block - place)[:, :2].norm(dim=1) < PLACED[0]
        lies &= block[:, 2] - place[:, 2] < PLACED[1]
        after, grasped = self._after(place)
        target = rows(lies, after, target)
        yaw = torch.where(lies, self._heading(), yaw)
        return Goal(target, down(yaw), torch.where(lies, grasped, around))

    def _place(self) -> Tensor:
        """(N, 3) m: where the block's centre comes to lie."""
        place = self._task.prop_pos(1) + self._style.place_offset
        place[:, 2] = self._task.prop_pos(1)[:, 2] + self._task.rest_heights().sum(dim=1)
        return place

    def _after(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """With one block on the other: where the pinch site goes (N, 3), and whether the fingers
        press (N,)."""
        away = self._away(place[:, 2] + RETREAT)
        return away, torch.zeros(len(away), dtype=torch.bool)


class ClearingBlocksExpert(StackingExpert):
    """Stacks the blocks, then takes both near where they meet, raises them and holds them over the
    middle of the table."""

    def _after(self, place: Tensor) -> tuple[Tensor, Tensor]:
        pinch, lower = self._task.pinch_pos(), self._task.prop_pos(1)
        height = self._task.rest_heights()[:, 1]
        joint = lower.clone()
        joint[:, 2] += height + JOINT_DEPTH
        offset = joint - pinch
        there = (offset[:, :2].norm(dim=1) < AROUND[0]) & (offset[:, 2].abs() < JOINT_REACHED)
        off_table = lower[:, 2] > height + OFF_TABLE
        press = there | (off_table & (offset.norm(dim=1) < STILL_HELD))
        target = rows(there, joint, pinch + self._free().unsqueeze(1) * offset)
        return rows(press & self._firm(), self._brought(lower), target), press

    def _brought(self, lower: Tensor) -> Tensor:
        """(N, 3) m: where the pinch site goes to bring the lower block over the table's middle: a
        hand that held both anywhere would drift, and nothing would draw it back."""
        place = lower.clone()
        place[:, 2] = self._task.rest_heights()[:, 1]
        across = lower[:, :2].norm(dim=1, keepdim=True).clamp(min=1e-9)
        place[:, :2] -= lower[:, :2] * (GENTLY / across).clamp(max=1.0)
        return self._carried(1, place, self._style.carry_height)
