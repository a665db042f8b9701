"""Scripted demonstrators, by task: where the hand should be, damped least-squares inverse
kinematics.

They see the full state and make demonstrations; they never act or label during training.
"""

from __future__ import annotations

from visuomotor.envs.environment import VisuomotorEnv
from visuomotor.errors import UserError
from visuomotor.scripted.blocks import ClearingBlocksExpert, LiftingExpert, StackingExpert
from visuomotor.scripted.box import ClearingBoxExpert
from visuomotor.scripted.expert import Expert
from visuomotor.scripted.pouring import PouringExpert

EXPERTS: dict[str, type[Expert]] = {
    "lifting": LiftingExpert,
    "stacking": StackingExpert,
    "clearing_blocks": ClearingBlocksExpert,
    "clearing_box": ClearingBoxExpert,
    "pouring": PouringExpert,
}

__all__ = ["EXPERTS", "Expert", "make_expert"]


def make_expert(env: VisuomotorEnv, seed: int) -> Expert:
    """The demonstrator of an environment's task. Raises UserError for a task without one."""
    if env.task.name not in EXPERTS:
        raise UserError(
            f"task '{env.task.name}' has no scripted demonstrator; with one: "
            f"{', '.join(EXPERTS)}; give demonstrations=<file.hdf5>"
        )
    return EXPERTS[env.task.name](env, seed)
