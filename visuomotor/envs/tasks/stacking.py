"""Stacking: the orange block onto the pink one, and let go (Zhu et al. 2018)."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import scene
from visuomotor.envs.simulation import Simulation
from visuomotor.envs.tasks.task import BLOCK_EDGE, BLOCK_MASS, ORANGE, PINK, WORKSPACE, Task

MIN_DISTANCE = 0.085  # m between the blocks' centres at the start: room for a finger
LIFT_HEIGHT = 0.03  # m
# Stacked: the orange block rests on the pink one and the hand does not touch it.
STACK_OFFSET = BLOCK_EDGE / 2  # m, horizontal distance of the centres: beyond that it topples
STACK_HEIGHT_TOLERANCE = 0.006  # m, about half the sum of the edges
BLOCKS_TOUCH = "blocks_touch"  # sensor: number of contacts between the two


class Stacking(Task):
    """`block_0` is orange, `block_1` pink.

    The paper's episode has 500 steps (recalled, not certain); the demonstrations here take about
    110, and 200 leave time for a second attempt and for knocking the tower over again.
    """

    name = "stacking"
    episode_steps = 200  # 10 s
    stages: tuple[str, ...] = ("start", "reach", "lifted", "stacked")
    stage_rewards: tuple[float, ...] = (0.0, 0.125, 0.25, 1.0)  # paper
    props = ("block_0", "block_1")
    stage_props: tuple[int, ...] = (0, 0, 1, 1)
    kinds_in_targets = (((0, None),), ((1, None),))
    prop_symmetry = (4, 4)
    # A block's heading, 4 pixels wide, is nothing that a policy sees, and a grasp succeeds without;
    # where the other block stands, it sees.
    turning = ("neighbours", "hand")
    neighbours_in_state = True

    def add_props(self, spec: mujoco.MjSpec) -> None:
        scene.add_block(spec, "block_0", BLOCK_EDGE, BLOCK_MASS, ORANGE)
        scene.add_block(spec, "block_1", BLOCK_EDGE, BLOCK_MASS, PINK)
        scene.add_contact_sensor(spec, BLOCKS_TOUCH, "block_0", "block_1")

    def bind(self, sim: Simulation) -> None:
        super().bind(sim)
        self._touch_id = int(sim.model.sensor(BLOCKS_TOUCH).adr[0])

    def place(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            xy = rng.uniform(-WORKSPACE, WORKSPACE, size=(2, 2))
            if np.linalg.norm(xy[0] - xy[1]) >= MIN_DISTANCE:
                break
        return np.concatenate((xy, rng.uniform(-np.pi / 4, np.pi / 4, size=(2, 1))), axis=1)

    def touching(self) -> Tensor:
        """(N,) bool: the blocks touch each other."""
        return self.sim.data("sensordata")[:, self._touch_id] > 0

    def on_top(self, across: float, height_tolerance: float) -> Tensor:
        """(N,) bool: orange is over pink, the centres off by less than `across` [m] horizontally
        and in height by half the sum of the edges, to within the tolerance [m]."""
        offset = self.prop_pos(0) - self.prop_pos(1)
        aligned = torch.linalg.vector_norm(offset[:, :2], dim=1) < across
        height = (offset[:, 2] - self.rest_heights().sum(dim=1)).abs() < height_tolerance
        return aligned & height

    def stacked(self) -> Tensor:
        """(N,) bool: orange rests on pink, released; it does not fly past."""
        on_top = self.on_top(STACK_OFFSET, STACK_HEIGHT_TOLERANCE)
        return on_top & self.touching() & ~self.held(0)

    def stage(self) -> Tensor:
        stage = self.reaching(0).long()
        stage = torch.where(self.lifted(0, LIFT_HEIGHT), 2, stage)
        return torch.where(self.stacked(), 3, stage)

    def object_features(self) -> Tensor:
        """(N, 21): orange, pink, orange - pink, orange - pinch site, orange - each fingertip
        [m]."""
        orange, pink = self.prop_pos(0), self.prop_pos(1)
        tips = (orange.unsqueeze(1) - self.fingertip_pos()).flatten(1)
        parts = (orange, pink, orange - pink, orange - self.pinch_pos(), tips)
        return torch.cat(parts, dim=1).float()

    def aux_targets(self) -> Tensor:
        """(N, 12): orange; pink; orange - pinch site; orange - pink [m]."""
        orange, pink = self.prop_pos(0), self.prop_pos(1)
        return torch.cat((orange, pink, orange - self.pinch_pos(), orange - pink), dim=1).float()
