"""Doing something again and again by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable


def run_at(period: float, tick: Callable[[], None], should_stop: Callable[[], bool]) -> None:
    """Calls tick every `period` s. One that is late is not made up for: two at once are one jump
    for the arm."""
    due = time.monotonic()
    while not should_stop():
        tick()
        due += period
        now = time.monotonic()
        due = now + period if due < now - period else due
        time.sleep(max(0.0, due - now))
