"""Clearing the table of two blocks: both off it at once (Zhu et al. 2018)."""

from __future__ import annotations

import mujoco
import torch
from torch import Tensor

from visuomotor.envs import scene
from visuomotor.envs.tasks.stacking import LIFT_HEIGHT, STACK_HEIGHT_TOLERANCE, Stacking
from visuomotor.envs.tasks.task import ORANGE, PINK, along

# m; smaller than stacking's: the hand's palm is 58 mm above its pinch site. Of two blocks of 45 mm
# the lower one is held by its rim alone and slips in about half of 48 worlds, of two of 36 mm in
# none of 200.
EDGE = 0.036
MASS = 0.06  # kg
STACK_OFFSET = EDGE / 2  # m, horizontal distance of the centres: beyond that the stack topples
CLEAR_HEIGHT = 0.03  # m of each block's centre above where it lies on the table


class ClearingBlocks(Stacking):
    """`block_0` is orange, `block_1` pink. Stacking them and lifting the stack is one way.

    The demonstrations take about 150 steps: the episode leaves time for many attempts.
    """

    name = "clearing_blocks"
    episode_steps = 1000  # 50 s (paper)
    stages = ("start", "reach", "lifted", "stacked", "cleared")
    stage_rewards = (0.0, 0.125, 0.25, 1.0, 2.0)  # paper
    stage_props = (0, 0, 1, 1, 1)

    def add_props(self, spec: mujoco.MjSpec) -> None:
        scene.add_block(spec, "block_0", EDGE, MASS, ORANGE)
        scene.add_block(spec, "block_1", EDGE, MASS, PINK)

    def cleared(self) -> Tensor:
        """(N,) bool: both blocks are off the table, and the hand has hold of one of them."""
        held = self.hand_contacts(0) + self.hand_contacts(1) > 0
        return self.lifted(0, CLEAR_HEIGHT) & self.lifted(1, CLEAR_HEIGHT) & held

    def stage(self) -> Tensor:
        """Stacked here is also what a hand touches: it comes back to lift both."""
        stage = self.reaching(0).long()
        stage = torch.where(self.lifted(0, LIFT_HEIGHT), 2, stage)
        stage = torch.where(self.on_top(STACK_OFFSET, STACK_HEIGHT_TOLERANCE), 3, stage)
        return torch.where(self.cleared(), 4, stage)

    def aux_targets(self) -> Tensor:
        """(N, 18): as in stacking; of both blocks, half an edge along four times the heading [m]:
        to be lifted together they must lie face to face."""
        turns = [along(4.0 * self.prop_yaw(index), EDGE / 2) for index in range(2)]
        return torch.cat((super().aux_targets(), *turns), dim=1)
