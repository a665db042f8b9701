"""Lifting: one block at a random place; take it and lift it (Zhu et al. 2018)."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import scene
from visuomotor.envs.tasks.task import BLOCK_EDGE, BLOCK_MASS, ORANGE, WORKSPACE, Task

# m; the paper does not publish its threshold: a block's edge and a bit, clear of the table.
LIFT_HEIGHT = 0.05


class Lifting(Task):
    name = "lifting"
    episode_steps = 100  # 5 s (paper)
    stages = ("start", "reach", "lifted")
    stage_rewards = (0.0, 0.125, 1.0)  # paper
    props = ("block_0",)
    stage_props = (0, 0, 0)
    kinds_in_targets = (((0, None),),)
    prop_symmetry = (4,)

    def add_props(self, spec: mujoco.MjSpec) -> None:
        scene.add_block(spec, "block_0", BLOCK_EDGE, BLOCK_MASS, ORANGE)

    def place(self, rng: np.random.Generator) -> np.ndarray:
        xy = rng.uniform(-WORKSPACE, WORKSPACE, size=(1, 2))
        return np.concatenate((xy, rng.uniform(-np.pi / 4, np.pi / 4, size=(1, 1))), axis=1)

    def stage(self) -> Tensor:
        stage = self.reaching(0).long()
        return torch.where(self.lifted(0, LIFT_HEIGHT) & self.held(0), 2, stage)

    def object_features(self) -> Tensor:
        """(N, 15): block, block - pinch site, block - each fingertip [m]."""
        pos = self.prop_pos(0)
        tips = (pos.unsqueeze(1) - self.fingertip_pos()).flatten(1)
        return torch.cat((pos, pos - self.pinch_pos(), tips), dim=1).float()

    def aux_targets(self) -> Tensor:
        """(N, 6): block; block - pinch site [m]."""
        pos = self.prop_pos(0)
        return torch.cat((pos, pos - self.pinch_pos()), dim=1).float()
