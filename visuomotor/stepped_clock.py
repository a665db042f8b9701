"""A program whose wall clock can be set: `python -m visuomotor.stepped_clock MODULE ARGUMENTS`.

For the faults `clock-ahead` and `clock-back`, as a test may not set the clock of its machine. From
SIGUSR1 on, what Python tells of the wall clock (`time.time`, `time_ns`, `clock_gettime`,
`datetime.now` and their like) is an hour ahead; from SIGUSR2 on an hour back. Monotonic clocks go
on, as they do when a clock is set. Libraries that ask the kernel themselves are not reached.
"""

from __future__ import annotations

import datetime
import runpy
import signal
import sys
import time
from typing import Any

STEP = 3600.0  # s

_time, _time_ns = time.time, time.time_ns
_clock_gettime, _clock_gettime_ns = time.clock_gettime, time.clock_gettime_ns
_offset = 0.0  # s


def step(seconds: float) -> None:
    """Sets the wall clock of this process, once `install` was called."""
    global _offset
    _offset += seconds


def install() -> None:
    """To be called before anything takes names out of `time` or `datetime`."""
    replaced: dict[str, Any] = {
        "time": lambda: _time() + _offset,
        "time_ns": lambda: _time_ns() + round(_offset * 1e9),
        "clock_gettime": lambda clock: (
            _clock_gettime(clock) + (_offset if clock == time.CLOCK_REALTIME else 0.0)
        ),
        "clock_gettime_ns": lambda clock: (
            _clock_gettime_ns(clock) + (round(_offset * 1e9) if clock == time.CLOCK_REALTIME else 0)
        ),
    }
    for name, function in replaced.items():
        setattr(time, name, function)
    setattr(datetime, "datetime", _Datetime)  # noqa: B010


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Datetime:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def today(cls) -> _Datetime:
        return cls.now()

    @classmethod
    def utcnow(cls) -> _Datetime:
        return cls.now(datetime.UTC).replace(tzinfo=None)


def main() -> None:
    install()
    signal.signal(signal.SIGUSR1, lambda number, frame: step(STEP))
    signal.signal(signal.SIGUSR2, lambda number, frame: step(-STEP))
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
