"""Doing something again and again by the clock."""

from __future__ import annotations

import time
from collections.abc import Callable

MADE_UP = 0.2  # share of the period by which the next tick may come sooner after one that was late


def run_at(
    period: float,
    tick: Callable[[], None],
    should_stop: Callable[[], bool],
    *,
    warm_up: Callable[[], None] | None = None,
    lead: float = 0.0,
) -> None:
    """Calls tick every `period` s. One that is late is not made up for, or by MADE_UP at most: two
    at once are one jump for the arm.

    warm_up: called again and again in the last `lead` s before a tick is due, for what it does to
      the processor, which is not let sleep before the tick; its last call begins only if one as
      long as the one before it would be over by then.
    """
    due = time.monotonic()
    while not should_stop():
        tick()
        now = time.monotonic()
        due = max(due, now - MADE_UP * period) + period
        if warm_up is None:
            time.sleep(max(0.0, due - now))
            continue
        time.sleep(max(0.0, due - lead - now))
        spent = 0.0
        begin = time.monotonic()
        while begin + spent < due:
            warm_up()
            end = time.monotonic()
            spent, begin = end - begin, end
        while time.monotonic() < due:
            pass  # asleep, the processor would be slow again
