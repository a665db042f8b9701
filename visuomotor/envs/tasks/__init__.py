"""The tasks by name."""

from visuomotor.envs.tasks.clearing_blocks import ClearingBlocks
from visuomotor.envs.tasks.clearing_box import ClearingBox
from visuomotor.envs.tasks.lifting import Lifting
from visuomotor.envs.tasks.pouring import Pouring
from visuomotor.envs.tasks.stacking import Stacking
from visuomotor.envs.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Lifting, Stacking, ClearingBlocks, ClearingBox, Pouring)
}
# Other names that a user may give; everything else speaks of the task by its own.
ALIASES = {"clearing": ClearingBlocks.name}

__all__ = ["ALIASES", "TASKS", "Task"]
