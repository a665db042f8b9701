"""What stands in for something that breaks."""

from __future__ import annotations

from collections.abc import Callable


class Failing:
    """Raises at the first `times` calls, and does what it stands for from then on."""

    def __init__(self, action: Callable[..., object], times: float, told: str = "broken"):
        self.action, self.left, self.told = action, times, told

    def __call__(self, *arguments: object) -> object:
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError(self.told)
        return self.action(*arguments)
