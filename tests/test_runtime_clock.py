"""Ticks by the clock, on a clock that the test sets."""

from __future__ import annotations

import pytest

from visuomotor.runtime import clock


class Time:
    """Stands in for the module `time`: it passes in sleep, in what is called, and by asking."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1e-5  # asking takes time, or waiting by asking would last for ever
        return self.now

    def sleep(self, duration: float) -> None:
        assert duration >= 0.0
        self.now += duration


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(clock, "time", fake)
    return fake


def test_ticks_come_at_the_period_and_late_ones_are_not_made_up_for(time: Time) -> None:
    ticks: list[float] = []

    def tick() -> None:
        ticks.append(time.now)
        time.now += late.get(len(ticks), 0.005)

    late = {2: 0.18, 4: 0.045}  # longer than a period, and nearly as long
    clock.run_at(0.05, tick, lambda: len(ticks) == 6)
    # The next one begins four fifths of a period after a late one's end at the soonest.
    assert ticks == pytest.approx([0.0, 0.05, 0.27, 0.32, 0.405, 0.455], abs=2e-4)


def test_warming_up_fills_the_lead_and_makes_no_tick_late(time: Time) -> None:
    ticks: list[float] = []
    warm: list[float] = []

    def tick() -> None:
        ticks.append(time.now)
        time.now += 0.001

    def warm_up() -> None:
        warm.append(time.now)
        time.now += 0.0015

    clock.run_at(0.05, tick, lambda: len(ticks) == 3, warm_up=warm_up, lead=0.004)
    assert ticks == pytest.approx([0.0, 0.05, 0.1], abs=2e-4)
    # Two of 1.5 ms fit into 4 ms, a third would not be over in time.
    assert warm[:4] == pytest.approx([0.046, 0.0475, 0.096, 0.0975], abs=2e-4)
