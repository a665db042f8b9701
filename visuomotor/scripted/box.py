"""Demonstrator of clearing with a box: the car into it, then the box."""

from __future__ import annotations

import torch

from visuomotor.envs.tasks.clearing_box import ClearingBox
from visuomotor.scripted.expert import Expert, Goal, down, rows, wrap

# rad, fingers of a hand that passes over the car, next to the box: 75 mm apart; over the box: 94.
NARROW, WIDE = 0.45, 0.16
BOX_FIRM = 0.45  # rad, of fingers that hold the box
ABOVE_RIM = 0.008  # m of the car's underside above the box's rim when it is let go
# The car is let go within so much of the box's middle (m), of its heading (rad), and of the height
# (m) at which it is to be let go.
OVER = (0.012, 0.2, 0.01)


class ClearingBoxExpert(Expert):
    """Takes the car across its width, drops it into the box lengthwise, takes the box across its
    width and raises it."""

    _task: ClearingBox

    def _goal(self) -> Goal:
        in_box = self._task.in_box()
        car, box = self._with_car(), self._with_box()
        opening = torch.where(in_box, WIDE, NARROW).unsqueeze(1)
        return Goal(
            rows(in_box, box.pos, car.pos),
            rows(in_box, box.mat, car.mat),
            torch.where(in_box, box.press, car.press),
            opening,
        )

    def _with_car(self) -> Goal:
        car, box = self._task.prop_pos(0), self._task.prop_pos(1)
        mat = down(self._grasp_yaw(0))
        target, around = self._above_grasp(self._grasp_point(0), mat)
        held = around & self._firm()
        heights = self._task.rest_heights()
        place = box + self._style.place_offset
        place[:, 2] = box[:, 2] + heights.sum(dim=1) + ABOVE_RIM
        target = rows(held, self._carried(0, place, place[:, 2]), target)
        turn = wrap(2.0 * (self._task.prop_yaw(1) - self._task.prop_yaw(0))) / 2.0
        mat = rows(held, down(self._heading() + turn), mat)
        over = (car - place)[:, :2].norm(dim=1) < OVER[0]
        over &= turn.abs() < OVER[1]
        over &= (car - place)[:, 2].abs() < OVER[2]
        return Goal(target, mat, around & ~over)

    def _with_box(self) -> Goal:
        pinch = self._task.pinch_pos()
        mat = down(self._grasp_yaw(1))
        target, around = self._above_grasp(self._grasp_point(1), mat)
        held = around & self._firm(BOX_FIRM)
        # Not down before the fingers are open.
        target = rows(around, target, pinch + self._free(WIDE).unsqueeze(1) * (target - pinch))
        target = rows(held, self._raised(1), target)
        return Goal(target, rows(held, down(self._heading()), mat), around)
