"""Live progress: a bar in a terminal, lines elsewhere, and never more than the whole."""

from __future__ import annotations

import io

from visuomotor.progress import LINE_SECONDS, Progress, shown_metrics


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands still until it is put on, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_lines_come_at_most_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    shown = shown_metrics({"success_rate": 0.5, "fps": 1234.5})
    with Progress(1000, "ril", initial=200, at_once=True, stream=stream, clock=clock) as progress:
        for step in range(210, 600, 10):  # 10 steps a second
            clock.now += 1.0
            progress.update(step, shown)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4  # after 1, 11, 21 and 31 s
    assert lines[0] == "ril 210/1,000 (21%), success 50.0%, frames/s 1,234, 01:19 left"
    assert lines[1].startswith("ril 310/1,000") and lines[1].endswith("01:09 left")


def test_what_is_told_at_once_has_a_line_at_its_end() -> None:
    stream = io.StringIO()
    with Progress(20, at_once=True, stream=stream, clock=Clock()) as progress:
        progress.update(10)
        progress.update(20)
        progress.update(20)
    assert stream.getvalue().splitlines() == ["10/20 (50%)", "20/20 (100%)"]


def test_counted_work_has_its_rate_and_an_end_once_it_has_a_line() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(40, "retargeting", unit="episode", stream=stream, clock=clock) as progress:
        for done in range(2, 41, 2):
            clock.now += 1.5
            progress.update(done, {"failed": str(done // 8)})
    assert stream.getvalue().splitlines() == [
        "retargeting 14/40 episodes (35%), failed 1, 1.33 episodes/s, 00:19 left",
        "retargeting 28/40 episodes (70%), failed 3, 1.33 episodes/s, 00:09 left",
        "retargeting 40/40 episodes (100%), failed 5, 1.33 episodes/s, 00:00 left",
    ]


def test_counted_work_that_is_short_leaves_no_line() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(40, "retargeting", unit="episode", stream=stream, clock=clock) as progress:
        for done in range(2, 41, 2):
            clock.now += 0.9 * LINE_SECONDS / 20
            progress.update(done)
    assert stream.getvalue() == ""


def test_what_goes_beyond_the_total_is_the_whole_of_it() -> None:
    for stream in (io.StringIO(), Terminal()):
        with Progress(20, "ril", at_once=True, stream=stream, clock=Clock()) as progress:
            progress.update(32)
        shown = stream.getvalue().splitlines()[-1]
        assert "100%" in shown and "160%" not in shown


def test_a_metric_that_an_update_leaves_out_or_cannot_give_keeps_its_last_value() -> None:
    stream = io.StringIO()
    with Progress(3, at_once=True, stream=stream, clock=Clock()) as progress:
        progress.update(1, shown_metrics({"success_rate": 0.25, "mean_return": 2.0}))
        progress.update(3, shown_metrics({"success_rate": float("nan")}))
    assert stream.getvalue().splitlines()[-1] == "3/3 (100%), success 25.0%, return 2"


def test_in_a_terminal_there_is_a_bar_with_the_metrics() -> None:
    stream = Terminal()
    with Progress(1000, "ril", initial=500, stream=stream) as progress:
        progress.update(
            750, shown_metrics({"success_rate": 0.75, "mean_return": 1.5, "fps": 2000.0})
        )
    shown = stream.getvalue().split("\r")[-1]
    for part in ("ril", "75%", "750/1.00k", "success=75.0%", "return=1.5", "frames/s=2,000"):
        assert part in shown


def test_in_a_terminal_counted_work_has_its_rate() -> None:
    stream = Terminal()
    with Progress(800, "retargeting", unit="episode", stream=stream) as progress:
        progress.update(200, {"failed": "3"})
    shown = stream.getvalue().split("\r")[-1]
    for part in ("retargeting", "25%", "200/800", "episode/s", "failed=3"):
        assert part in shown
