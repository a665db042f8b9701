"""Moving averages over the episodes that ended, told apart by where they began.

Success from the initial distribution alone hides for long what a policy learns: how far episodes
come, and how often they succeed from demonstration states of each stage, shows it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from visuomotor.envs import StepResult

WINDOW = 200  # episodes


class EpisodeLog:
    """Of N worlds; `record` is called after every step.

    Args:
      stages: the task's names of its stages.
      stage: (N,) the stage in which every world begins.
    """

    def __init__(self, stages: Sequence[str], stage: Tensor):
        self._stages = tuple(stages)
        self._start_stage = stage.cpu().clone()
        self._returns = torch.zeros(len(stage))
        self._values: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=WINDOW))

    def record(
        self, result: StepResult, from_initial: Tensor, counted: Tensor | None = None
    ) -> list[bool]:
        """Takes in a step; from_initial, counted: (N,) bool, as they were before it.

        counted: worlds whose episodes count; None: all. Returns the success of each counted episode
        that began from the initial distribution and ended now.
        """
        self._returns += result.reward.cpu()
        outcomes = []
        for world in result.final_env_ids.tolist():
            if counted is None or bool(counted[world]):
                success, stage = bool(result.success[world]), int(result.stage[world])
                if bool(from_initial[world]):
                    outcomes.append(success)
                    self._values["success_rate"].append(float(success))
                    self._values["mean_return"].append(float(self._returns[world]))
                    for index, name in enumerate(self._stages):
                        self._values[f"end_stage/{name}"].append(float(stage == index))
                else:
                    start = self._stages[int(self._start_stage[world])]
                    self._values[f"success_from/{start}"].append(float(success))
            self._start_stage[world] = result.observation.stage[world]
            self._returns[world] = 0.0
        return outcomes

    def metrics(self) -> dict[str, float]:
        """Means over the last episodes of each kind; kinds not met yet are left out."""
        return {name: sum(values) / len(values) for name, values in self._values.items()}

    def settled_success(self) -> float:
        """Success over the last WINDOW episodes from the initial distribution; 0 before there are
        as many."""
        values = self._values.get("success_rate", ())
        return sum(values) / WINDOW if len(values) == WINDOW else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "start_stage": self._start_stage.clone(),
            "returns": self._returns.clone(),
            "values": {name: list(values) for name, values in self._values.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._start_stage = state["start_stage"].clone()
        self._returns = state["returns"].clone()
        self._values.clear()
        for name, values in state["values"].items():
            self._values[name].extend(values)
