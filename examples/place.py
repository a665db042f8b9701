"""A task of one's own: a block onto a mark (docs/your_own_task.md)."""

from __future__ import annotations

import sys

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor import experts
from visuomotor.__main__ import run
from visuomotor.envs import Task, register
from visuomotor.envs.scene import add_block
from visuomotor.scripted.expert import RETREAT, Expert, Goal, down, rows

EDGE = 0.045  # m
MARK = (0.09, -0.05)  # m, x and y of the mark on the table
ON_MARK = 0.025  # m from the mark's middle to the block's centre, horizontally
NEAREST = 0.07  # m from the mark at which the block may start
LIFT_HEIGHT = 0.03  # m


@register
class Place(Task):
    name = "place"
    episode_steps = 150
    stages = ("start", "reach", "lifted", "placed")
    stage_rewards = (0.0, 0.125, 0.25, 1.0)
    props = ("block_0",)
    stage_props = (0, 0, 0, 0)
    prop_symmetry = (4,)

    def add_props(self, spec: mujoco.MjSpec) -> None:
        add_block(spec, "block_0", EDGE, 0.1, (1.0, 0.45, 0.05, 1.0))
        spec.worldbody.add_geom(
            name="mark",
            type=mujoco.mjtGeom.mjGEOM_CYLINDER,
            size=[0.03, 0.0005, 0.0],
            pos=[*MARK, 0.0005],
            rgba=[0.1, 0.2, 0.8, 1.0],
            contype=0,  # only seen
            conaffinity=0,
        )

    def place(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            xy = rng.uniform(-self.workspace, self.workspace, size=2)
            if np.linalg.norm(xy - MARK) >= NEAREST:
                return np.array([[*xy, rng.uniform(-np.pi / 4, np.pi / 4)]])

    def from_mark(self) -> Tensor:
        """(N, 3) m: from the mark to the block's centre."""
        return self.prop_pos(0) - torch.tensor([*MARK, 0.0], dtype=torch.float64)

    def stage(self) -> Tensor:
        stage = self.reaching(0).long()
        stage = torch.where(self.lifted(0, LIFT_HEIGHT), 2, stage)
        on_mark = self.from_mark()[:, :2].norm(dim=1) < ON_MARK
        placed = on_mark & ~self.lifted(0, 0.003) & (self.hand_contacts(0) == 0)
        return torch.where(placed, 3, stage)

    def object_features(self) -> Tensor:
        parts = (self.prop_pos(0), self.from_mark(), self.prop_pos(0) - self.pinch_pos())
        return torch.cat(parts, dim=1).float()

    def aux_targets(self) -> Tensor:
        return self.object_features()


class PlaceExpert(Expert):
    _task: Place

    def _goal(self) -> Goal:
        task = self._task
        mat = down(self._grasp_yaw(0))
        target, around = self._above_grasp(self._grasp_point(0), mat)
        held = around & self._firm()
        place = task.prop_pos(0) - task.from_mark() + self._style.place_offset
        place[:, 2] = task.rest_heights()[:, 0]
        target = rows(held, self._carried(0, place, place[:, 2] - 0.003), target)
        lies = (task.from_mark()[:, :2].norm(dim=1) < 0.8 * ON_MARK) & ~task.lifted(0, 0.002)
        target = rows(lies, self._away(place[:, 2] + RETREAT), target)
        mat = rows(held | lies, down(self._heading()), mat)
        return Goal(target, mat, around & ~lies)


experts.register("place", PlaceExpert)

if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
