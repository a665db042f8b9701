"""Live progress of a run on stderr: success rate, return, frames per second, time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # least time between progress lines where stderr is no terminal
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"

# Shown beside the bar where the metrics hold them: metric, its name there, format.
SHOWN = (
    ("success_rate", "success", "{:.1%}"),
    ("mean_return", "return", "{:.3g}"),
    ("fps", "frames/s", "{:,.0f}"),
)


class Progress:
    """Live progress on stderr: a bar in a terminal, else a line now and then.

    with Progress(total=1_000_000, label="ril") as progress:
        progress.update(env_steps, metrics)
    """

    def __init__(
        self,
        total: int,
        initial: int = 0,
        label: str = "",
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """total, initial: env steps. stream: None for stderr. clock: seconds."""
        self.total = total
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began, self._initial = clock(), initial
        self._last_steps = min(initial, total)
        self._last_line: float | None = None
        self._shown: dict[str, str] = {}
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=self._last_steps,
                desc=label,
                unit_scale=True,
                bar_format=BAR_FORMAT,
                dynamic_ncols=True,
                file=self._stream,
            )

    def update(self, env_steps: int, metrics: Mapping[str, Any]) -> None:
        """env_steps: so far in all; the last iteration may go beyond the total. Metrics that an
        update leaves out keep their last value."""
        for name, title, form in SHOWN:
            value = plain_number(metrics.get(name))
            if value is not None:
                self._shown[title] = form.format(value)
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            shown = min(env_steps, self.total)
            self._bar.update(shown - self._last_steps)
            self._last_steps = shown
        now = self._clock()
        due = self._last_line is None or now - self._last_line >= LINE_SECONDS
        if self._bar is None and (due or env_steps >= self.total):
            self._last_line = now
            print(self._line(env_steps, now), file=self._stream, flush=True)

    def _line(self, env_steps: int, now: float) -> str:
        done, seconds = env_steps - self._initial, now - self._began
        share = min(1.0, env_steps / self.total)
        parts = [f"{self._label} {env_steps:,}/{self.total:,} ({share:.0%})".strip()]
        parts += [f"{title} {value}" for title, value in self._shown.items()]
        if done > 0 and seconds > 0:
            left = max(0, self.total - env_steps) * seconds / done
            parts.append(f"{tqdm.format_interval(left)} left")
        return ", ".join(parts)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def plain_number(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's; what is not finite as None."""
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
