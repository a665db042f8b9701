"""Scripted demonstrators, by task: where the hand should be, damped least-squares inverse
kinematics.

They see the full state and make demonstrations; they never act or label during training.
"""

from __future__ import annotations

import sys
from types import ModuleType

from visuomotor.envs.environment import VisuomotorEnv
from visuomotor.errors import UserError
from visuomotor.scripted.blocks import ClearingBlocksExpert, LiftingExpert, StackingExpert
from visuomotor.scripted.box import ClearingBoxExpert
from visuomotor.scripted.expert import Expert
from visuomotor.scripted.order import OrderFulfillmentExpert
from visuomotor.scripted.pouring import PouringExpert

EXPERTS: dict[str, type[Expert]] = {
    "lifting": LiftingExpert,
    "stacking": StackingExpert,
    "clearing_blocks": ClearingBlocksExpert,
    "clearing_box": ClearingBoxExpert,
    "pouring": PouringExpert,
    "order_fulfillment": OrderFulfillmentExpert,
}

__all__ = ["EXPERTS", "Expert", "make_expert", "register"]


def register(task: str, expert: type[Expert]) -> None:
    """The demonstrator of a task from outside (visuomotor.envs.register). Raises UserError where
    the task has one."""
    taken = EXPERTS.get(task, expert)
    if taken.__qualname__ != expert.__qualname__:
        raise UserError(f"task '{task}' has a demonstrator already: {taken.__qualname__}")
    EXPERTS[task] = expert


def make_expert(env: VisuomotorEnv, seed: int) -> Expert:
    """The demonstrator of an environment's task. Raises UserError for a task without one."""
    if env.task.name not in EXPERTS:
        raise UserError(
            f"task '{env.task.name}' has no scripted demonstrator; with one: "
            f"{', '.join(EXPERTS)}; give demonstrations=<file.hdf5>"
        )
    return EXPERTS[env.task.name](env, seed)


def source_of(task: str) -> list[ModuleType]:
    """The module of a task's demonstrator, where it is not this package's."""
    name = EXPERTS[task].__module__ if task in EXPERTS else __name__
    return [] if name.startswith("visuomotor.") else [sys.modules[name]]
