"""The streamer, tick by tick: what it sends and logs, and how it leaves the arm when it fails."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.failing import Failing
from visuomotor.envs import robot
from visuomotor.runtime.arm import JointState
from visuomotor.runtime.guard import UNKNOWN, State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.slots import Slot, command_type, report_type, state_of, untext
from visuomotor.runtime.streamer import (
    ASKED,
    ENDINGS,
    SWITCH,
    TIME_UP,
    Streamer,
    read_log,
    run_streamer,
)

START = np.array(robot.START_QPOS, dtype=float)


class FakeArm:
    """Does at once what it is sent."""

    def __init__(self, clock: Callable[[], float]):
        self.limits = LIMITS
        self.position = START.copy()
        self.sent: list[np.ndarray] = []
        self.stopped = False
        self._clock = clock

    def connect(self) -> None: ...

    def read(self) -> JointState | None:
        return JointState(self.position.copy(), np.zeros(9), self._clock())

    def send(self, velocity: np.ndarray) -> None:
        self.sent.append(velocity.copy())
        self.position = self.position + 0.01 * velocity

    def stop(self) -> None:
        self.stopped = True


class Bench:
    """A streamer whose clock is played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: Path | None):
        self.now = 50.0
        monkeypatch.setattr("visuomotor.runtime.streamer.time.monotonic", lambda: self.now)
        monkeypatch.setattr("visuomotor.runtime.streamer.time.sleep", self._pass)
        self.slots = [Slot.create(t) for t in (command_type(9), report_type(9), SWITCH)]
        self.arm = FakeArm(lambda: self.now)
        self.streamer = Streamer(self.arm, *self.slots, log_path=log)
        self.pressed = False
        self.wanted = 0.2  # rad/s

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def run(self, ticks: int, command: bool = True) -> State:
        for _ in range(ticks):
            self.now += 0.01
            switch = np.zeros((), SWITCH)
            switch["pressed"], switch["stamp"] = int(self.pressed), self.now
            self.slots[2].write(switch)
            if command:
                value = np.zeros((), command_type(9))
                value["velocity"] = self.wanted
                for name in ("stamp", "frame_stamp", "used_frame_stamp", "used_joint_stamp"):
                    value[name] = self.now
                self.slots[0].write(value)
            self.streamer.tick()
        report = self.slots[1].read()[1]
        assert report is not None
        return state_of(report)

    def close(self) -> None:
        for slot in self.slots:
            slot.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bench = Bench(monkeypatch, tmp_path / "streamer.log")
    yield bench
    bench.close()


def test_the_streamer_sends_what_is_commanded_and_logs_it(bench: Bench, tmp_path: Path) -> None:
    assert bench.run(20) is State.LATCHED
    assert not np.any(bench.arm.sent)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    assert bench.arm.sent[-1] == pytest.approx(0.2)
    bench.streamer.leave()
    assert bench.streamer.guard.reason == "the streamer was asked to end"
    assert bench.arm.stopped
    assert not bench.arm.sent[-1].any()
    names, rows = read_log(tmp_path / "streamer.log")
    assert names == LIMITS.joint_names
    assert len(rows) == len(bench.arm.sent)
    assert np.array_equal(rows["sent"], np.array(bench.arm.sent))
    assert rows["requested"][-1] == pytest.approx(0.2)


def test_a_switch_that_is_no_longer_confirmed_is_a_switch_let_go(bench: Bench) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    before = bench.now
    value = np.zeros((), SWITCH)
    value["pressed"], value["stamp"] = 1, before
    for _ in range(60):  # whoever held it is gone; its last word stays in memory
        bench.slots[2].write(value)
        bench.now += 0.01
        bench.streamer.tick()
    assert bench.streamer.guard.state is State.LATCHED
    assert bench.streamer.guard.reason == UNKNOWN
    assert not bench.arm.sent[-1].any()
    bench.pressed = True  # it is back, and was held all the time
    assert bench.run(100) is State.LATCHED
    assert not np.any(bench.arm.sent[-100:])


@pytest.mark.parametrize("ending", [TIME_UP, ASKED])
def test_an_episode_that_ends_says_why_and_the_switch_that_is_still_held_starts_none(
    bench: Bench, ending: int
) -> None:
    bench.run(20)
    bench.pressed = 1
    assert bench.run(50) is State.RUNNING
    bench.pressed = ending
    assert bench.run(60) is State.LATCHED
    report = bench.slots[1].read()[1]
    assert report is not None
    assert untext(report["reason"]) == ENDINGS[ending]
    bench.pressed = 1  # without a release
    assert bench.run(50) is State.LATCHED
    bench.pressed = 0
    bench.run(20)
    bench.pressed = 1
    assert bench.run(20) is State.RUNNING


@pytest.mark.parametrize(
    ("broken", "times"),
    [
        *[("read", np.inf), ("read", 1), ("report", np.inf), ("report", 1)],
        *[("send", 1), ("send", 30), ("send", 99), ("stop", 1)],
    ],
)
@pytest.mark.parametrize("wanted", [0.2, 0.6])
def test_a_streamer_that_fails_brings_the_arm_to_rest_all_the_same(
    bench: Bench,
    broken: str,
    times: float,
    wanted: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At a constant speed, and while it speeds up."""
    bench.run(20)
    bench.pressed = True
    bench.wanted = wanted
    assert bench.run(50 if wanted == 0.2 else 8) is State.RUNNING
    target = bench.slots[1] if broken == "report" else bench.arm
    name = "write" if broken == "report" else broken
    monkeypatch.setattr(target, name, Failing(getattr(target, name), times))
    if broken == "stop":  # after something else, which is what is to be told
        monkeypatch.setattr(bench.arm, "read", Failing(bench.arm.read, 1, "broken before"))
    begin, before = bench.now, len(bench.arm.sent)
    with pytest.raises(RuntimeError, match="broken before" if broken == "stop" else "broken"):
        run_streamer(bench.streamer, lambda: False)
    assert bench.arm.stopped is (broken != "stop")
    assert bench.streamer._log is not None
    assert bench.streamer._log._file.closed
    sent = np.array(bench.arm.sent)
    moving = sent.any(axis=1).nonzero()[0][-1] + 1
    assert 20 <= len(sent) - moving <= 24, "0.2 s of zeros behind it"
    assert (np.abs(np.diff(sent, axis=0)) / 0.01 <= LIMITS.acceleration + 1e-9).all()
    failed = 0.01 * min(times, 99) if broken == "send" else 0.0
    assert bench.now - begin == pytest.approx(0.01 * (len(sent) - before) + failed, abs=0.03), (
        "a message a tick"
    )
    assert ("look whether the arm rests" in capsys.readouterr().err) is (broken == "stop")


def test_sends_that_fail_on_the_way_only_delay_the_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.streamer._log is not None
    bench.streamer._log.close()
    bench.streamer._log = None  # of two stops
    bench.run(20)
    bench.pressed = True
    bench.wanted = 0.6
    assert bench.run(50) is State.RUNNING
    before = len(bench.arm.sent)
    bench.streamer.leave()
    stop = np.array(bench.arm.sent[before:])
    ramp = int(stop.any(axis=1).sum())
    assert ramp > 8
    bench.arm.position = START.copy()
    bench.pressed = False
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    bench.arm.sent.clear()
    calls = 0
    send = bench.arm.send

    def flaky(velocity: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls in (3, 4, 7) or calls == ramp + 15:  # the last: while zeros are sent
            raise RuntimeError("broken")
        send(velocity)

    monkeypatch.setattr(bench.arm, "send", flaky)
    bench.streamer.leave()
    sent = np.array(bench.arm.sent)
    assert np.array_equal(sent[: ramp + 1], stop[: ramp + 1]), "the same ramp"
    assert len(sent) - (ramp + 15 - 4) >= 20, "0.2 s of zeros once more"


def test_sends_that_fail_worked_and_fail_again_are_tried_for_longer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A network that comes back for a moment: the stop is on its way when the last send fails."""
    bench.run(20)
    bench.pressed = True
    bench.wanted = 0.6
    assert bench.run(50) is State.RUNNING
    begin, send = bench.now, bench.arm.send

    def flaky(velocity: np.ndarray) -> None:
        if not 0.93 <= bench.now - begin < 1.02 and bench.now - begin < 1.1:
            raise RuntimeError("broken")
        send(velocity)

    monkeypatch.setattr(bench.arm, "send", flaky)
    bench.streamer.leave()
    assert bench.arm.stopped
    assert len(bench.arm.sent) > 20
    assert not np.any(bench.arm.sent[-20:])
    _, rows = read_log(tmp_path / "streamer.log")
    assert np.array_equal(rows["sent"], np.array(bench.arm.sent)), "each that was sent is logged"


def test_leaving_ends_though_sends_work_now_and_then(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    begin, send, calls = bench.now, bench.arm.send, 0

    def flaky(velocity: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls % 40:
            raise RuntimeError("broken")
        send(velocity)

    monkeypatch.setattr(bench.arm, "send", flaky)
    bench.streamer.leave()
    assert bench.now - begin == pytest.approx(2.5, abs=0.05)
    assert "look whether the arm rests" in capsys.readouterr().err


@pytest.mark.parametrize("original", [True, False])
def test_a_send_that_never_works_again_is_given_up_and_told(
    bench: Bench,
    original: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    monkeypatch.setattr(bench.arm, "send", Failing(bench.arm.send, np.inf))
    begin = bench.now
    if original:
        with pytest.raises(RuntimeError, match="broken"):
            run_streamer(bench.streamer, lambda: False)
    else:
        run_streamer(bench.streamer, lambda: True)
    assert bench.now - begin == pytest.approx(1.0, abs=0.05)
    assert bench.arm.stopped
    assert bench.streamer._log is not None
    assert bench.streamer._log._file.closed
    assert "look whether the arm rests: RuntimeError: broken" in capsys.readouterr().err


def test_a_log_that_cannot_be_told_of_does_not_hide_what_went_wrong(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(20)
    assert bench.streamer._log is not None
    bench.streamer._log.lost = 1
    monkeypatch.setattr(bench.arm, "read", Failing(bench.arm.read, 1))
    with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as terminal:
        terminal.setattr("sys.stderr", io.TextIOWrapper(full, write_through=True))
        with pytest.raises(RuntimeError, match="broken"):
            run_streamer(bench.streamer, lambda: False)
    assert bench.arm.stopped


def test_a_stop_that_fails_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(20)
    bench.arm.stop = Failing(bench.arm.stop, 1)  # type: ignore[method-assign]
    bench.streamer.leave()
    assert "RuntimeError: broken" in capsys.readouterr().err
    assert bench.streamer._log is not None
    assert bench.streamer._log._file.closed


def test_a_full_disk_ends_the_log_and_not_the_control(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(20)
    log = bench.streamer._log
    assert log is not None
    with open("/dev/full", "wb", buffering=0) as full:
        log._file = full
        bench.pressed = True
        assert bench.run(50) is State.RUNNING
        bench.streamer.leave()
    assert bench.arm.stopped
    assert "No space left" in log.broken
    assert "the log ends here" in capsys.readouterr().err


def test_a_streamer_that_was_held_up_does_not_trust_itself(bench: Bench) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    bench.now += 0.3
    bench.run(60)
    assert bench.streamer.guard.state is State.LATCHED
    assert "held up for 300 ms" in bench.streamer.guard.reason


def test_a_log_that_was_cut_off_is_read_up_to_there(bench: Bench, tmp_path: Path) -> None:
    bench.run(20)
    bench.streamer.leave()
    path = tmp_path / "streamer.log"
    whole = len(read_log(path)[1])
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_log(path)[1]) == whole - 1
    (tmp_path / "other").write_bytes(b"{}\n123")
    with pytest.raises(ValueError, match="no log"):
        read_log(tmp_path / "other")
