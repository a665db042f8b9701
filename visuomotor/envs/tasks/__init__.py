"""The tasks by name."""

from visuomotor.envs.tasks.lifting import Lifting
from visuomotor.envs.tasks.stacking import Stacking
from visuomotor.envs.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Lifting, Stacking)}

__all__ = ["TASKS", "Task"]
