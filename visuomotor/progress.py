"""Live progress on stderr: how far long work is, what it shows so far, the time left."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0  # least time between progress lines where stderr is no terminal
BAR_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
UNIT_BAR_FORMAT = BAR_FORMAT.replace("{remaining}", "{remaining}, {rate_fmt}")

# Shown beside the bar where the metrics hold them: metric, its name there, format.
SHOWN = (
    ("success_rate", "success", "{:.1%}"),
    ("mean_return", "return", "{:.3g}"),
    ("fps", "frames/s", "{:,.0f}"),
)


class Progress:
    """Live progress of counted work on stderr: a bar in a terminal, else a line now and then.

    with Progress(total=800, label="retargeting", unit="episode") as progress:
        progress.update(24, {"failed": "3"})

    What is done within LINE_SECONDS leaves no line, but with `at_once`.
    """

    def __init__(
        self,
        total: int,
        label: str = "",
        *,
        initial: int = 0,
        unit: str = "",
        at_once: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """total, initial: of what is counted, `unit` its name in the singular. at_once: the first
        update has a line, too. stream: None for stderr. clock: seconds."""
        self.total = total
        self._label, self._unit = label, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._began, self._initial = clock(), initial
        self._last_done = min(initial, total)
        # Whether there is a line yet, and the end has its own; when the last one was.
        self._begun = at_once
        self._last_line: float | None = None if at_once else self._began
        self._shown: dict[str, str] = {}
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(
                total=total,
                initial=self._last_done,
                desc=label,
                unit=f" {unit}",
                unit_scale=not unit,
                bar_format=UNIT_BAR_FORMAT if unit else BAR_FORMAT,
                dynamic_ncols=True,
                file=self._stream,
            )

    def update(self, done: int, shown: Mapping[str, str] | None = None) -> None:
        """done: so far in all; what goes beyond the total is left out. shown: what stands beside
        it, by name; what an update leaves out keeps its last value."""
        self._shown.update(shown or {})
        if self._bar is not None:
            self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(min(done, self.total) - self._last_done)
        else:
            now = self._clock()
            due = self._last_line is None or now - self._last_line >= LINE_SECONDS
            ends = self._last_done < self.total <= done and self._begun
            if due or ends:
                self._last_line, self._begun = now, True
                print(self._line(done, now), file=self._stream, flush=True)
        self._last_done = min(done, self.total)

    def _line(self, count: int, now: float) -> str:
        done, seconds = count - self._initial, now - self._began
        share = min(1.0, count / self.total)
        units = f" {self._unit}s" if self._unit else ""
        parts = [f"{self._label} {count:,}/{self.total:,}{units} ({share:.0%})".strip()]
        parts += [f"{title} {value}" for title, value in self._shown.items()]
        if done > 0 and seconds > 0:
            if self._unit:
                parts.append(f"{done / seconds:.3g}{units}/s")
            left = max(0, self.total - count) * seconds / done
            parts.append(f"{tqdm.format_interval(left)} left")
        return ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def shown_metrics(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Success rate, return and frames per second of a run's metrics, as a progress shows them."""
    values = ((title, form, plain_number(metrics.get(name))) for name, title, form in SHOWN)
    return {title: form.format(value) for title, form, value in values if value is not None}


def plain_number(value: Any) -> Any:
    """Numbers of NumPy and torch as Python's; what is not finite as None."""
    if not isinstance(value, bool | int | float | str) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
