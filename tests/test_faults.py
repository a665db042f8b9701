"""What goes wrong around a running policy: that it is measured, judged, and found.

The streamer, its guard and the simulated arm meet here in one process, over UDP, by a clock that is
played: what they do does not depend on how busy the machine is.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import careless
from visuomotor.cli import run_command
from visuomotor.deployment import Deployment
from visuomotor.envs import robot
from visuomotor.fault_verdicts import (
    ARM_LATE,
    ASKED_ACCELERATION,
    DELAY,
    LAG,
    REVERSAL,
    Then,
    measured,
    stop_seconds,
    table,
    verdict,
)
from visuomotor.faults import (
    COMMAND_PERIOD,
    FAULTS,
    TRIES,
    _sway,
    _to_limits,
    _to_other_limits,
    _wild,
    faults,
    run_fault,
)
from visuomotor.runtime.arms.sim import JOINT_HELLO, SimArm, _Subscription
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.slots import Slot, command_type, report_type, state_of, untext
from visuomotor.runtime.streamer import SWITCH, Streamer
from visuomotor.sim_arm import TICK, Record, SimArmConfig
from visuomotor.sim_arm import SimArm as SimulatedArm
from visuomotor.stepped_clock import STEP

ROOT = Path(__file__).parents[1]
START = np.array(robot.START_QPOS, dtype=float)


# --- verdicts ------------------------------------------------------------------------------------


def record(asked: np.ndarray, moved: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """(T,) rad/s of the first joint, at the middle of everything."""
    steps = len(asked)
    velocities = np.zeros((2, steps, 9))
    velocities[:, :, 0] = asked, asked if moved is None else moved
    return {
        "time": TICK * np.arange(steps),
        "clock": TICK * np.arange(steps),
        "asked": velocities[0],
        "moved": velocities[1],
        "position": START + TICK * np.cumsum(velocities[1], axis=0),
        "pinch": np.tile((LIMITS.workspace_low + LIMITS.workspace_high) / 2, (steps, 1)),
        "step": np.abs(np.diff(asked, prepend=asked[0])) / (TICK * LIMITS.acceleration[0]),
    }


def judged(
    rows: dict[str, np.ndarray], fault: str = "released", onset: float = 1.0, **facts: Any
) -> dict[str, Any]:
    """A row of the table, of a record (by default of a fault 1 s after its beginning)."""
    kind = FAULTS[fault]
    ends_in = "latched" if kind.then is Then.REST else "running"
    row = measured(rows, onset, onset) | {
        "fault": fault,
        "tells": kind.tells,
        "then": kind.then.value,
        "because": kind.because,
        "unreachable": kind.unreachable,
        "stop_is_cut": kind.stop_is_cut,
        "state": ends_in,
        "still_latched": ends_in == "latched",
        "reason": "",
    }
    if kind.then is Then.REST:
        row["reason"] = {"released": "the dead-man switch was released"}.get(
            fault, "the last frame is"
        )
    return row | facts


def stop(ticks: int, ramp: int = 20, speed: float = 0.3) -> np.ndarray:
    """(350,) so many ticks at a speed, and then to rest."""
    falling = np.linspace(speed, 0.0, ramp)
    return np.concatenate((np.full(ticks, speed), falling, np.zeros(350 - ticks - ramp)))


def test_a_stop_in_time_is_good_and_each_number_is_measured() -> None:
    row = judged(record(stop(110)))
    assert verdict(row) == ""
    assert row["asked_rest_s"] == pytest.approx(0.29, abs=0.011)
    assert row["asked_velocity"] == pytest.approx(0.3 / LIMITS.velocity[0])
    assert row["asked_acceleration"] == pytest.approx(0.3 / 0.19 / LIMITS.acceleration[0])
    assert row["joint_overshoot_rad"] == row["workspace_overshoot_m"] == 0.0
    line = table([row]).splitlines()[2]
    assert "| rest | 290 / 280 ms | 48 / 48 % | 20; 20 / 20 % |" in line
    assert line.endswith("| latched: the dead-man switch was released | good |")


@pytest.mark.parametrize(
    ("fault", "unjudged"),
    [("released", ()), ("streamer-stall", (5, 6)), ("network-cut", (4, 5, 6))],
)
def test_the_table_tells_what_is_not_judged(fault: str, unjudged: tuple[int, ...]) -> None:
    rows = record(stop(110))
    rows["pinch"][200:, 0] = LIMITS.workspace_high[0] + 0.006
    row = judged(rows, fault, reason="held up; the last frame is; switch was released")
    cells = table([row]).splitlines()[2].strip("| ").split(" | ")
    assert cells[6].startswith("6 mm")
    assert tuple(i for i, cell in enumerate(cells) if "not judged" in cell) == unjudged
    assert ("workspace_overshoot_m" in cells[8]) == (6 not in unjudged)


def test_a_stop_is_given_what_the_limiter_takes_from_where_it_begins() -> None:
    # 0.837 rad/s at 8 rad/s^2 and 250 rad/s^3: 105 ms and 32 ms, and as much to begin with.
    wrist = np.where(np.arange(9) == 3, LIMITS.velocity, 0.0)
    assert stop_seconds(wrist) == pytest.approx(0.18, abs=0.011)
    assert stop_seconds(LIMITS.velocity) == pytest.approx(0.20, abs=0.011), "fingers, too"
    assert stop_seconds(-wrist) == stop_seconds(wrist)
    assert stop_seconds(np.zeros(9)) == REVERSAL
    fast, slow = (judged(record(stop(141, ramp=9, speed=v))) for v in (0.6, 0.15))
    assert fast["asked_rest_s"] == slow["asked_rest_s"] == pytest.approx(0.49, abs=0.011)
    assert verdict(fast) == ""
    assert verdict(slow).startswith("asked_rest_s 0.490, at most 0.4")
    # What counts is where it begins, however fast the arm was at the fault.
    slowed = stop(141, ramp=9, speed=0.6)
    slowed[105:141] = np.linspace(0.15, 0.16, 36)
    slowed[141:150] = np.linspace(0.16, 0.0, 9)
    assert "asked_rest_s 0.490, at most 0.4" in verdict(judged(record(slowed)))


def test_what_the_arm_did_is_judged_beside_what_it_was_asked() -> None:
    asked = stop(110)
    late = judged(record(asked, moved=stop(180)))
    assert late["asked_rest_s"] == pytest.approx(0.29, abs=0.011)
    assert late["moved_rest_s"] == pytest.approx(0.98, abs=0.011)
    assert "moved_rest_s" in verdict(late)
    assert "asked_rest_s" not in verdict(late)
    fast = asked.copy()
    fast[50], fast[55] = 1.1 * LIMITS.velocity[0], -1.1 * LIMITS.velocity[0]
    told = verdict(judged(record(asked, moved=fast)))
    assert "moved_velocity 1.1, at most 1.05" in told
    assert "moved_acceleration" in told


def test_each_thing_that_is_wrong_is_told() -> None:
    good = record(stop(110))
    assert "asked_rest_s 0.690, at most 0.475" in verdict(judged(record(stop(150))))
    assert verdict(judged(good, state="running")) == "not latched: running"
    other = verdict(judged(good, reason="the last frame is 280 ms old"))
    assert other == "stopped for another reason: the last frame is 280 ms old"
    assert verdict(judged(good, still_latched=False)) == "did not stay latched"
    sudden = np.concatenate((np.full(101, LIMITS.velocity[0]), np.zeros(150)))
    assert "asked_acceleration" in verdict(judged(record(sudden)))
    # From 70 % in one tick is no more over 50 ms than an arm's lateness may bring.
    cut = np.concatenate((np.full(101, 0.7 * LIMITS.velocity[0]), np.zeros(150)))
    assert verdict(judged(record(cut))) == "asked_step 5.5, at most 1"
    assert "did not move before" in verdict(judged(record(np.zeros(250))))
    beyond = good | {"position": good["position"].copy(), "pinch": good["pinch"].copy()}
    beyond["position"][5, 1] = LIMITS.position_high[1] + 0.01
    beyond["pinch"][5, 2] = LIMITS.workspace_low[2] - 0.02
    row = judged(beyond)
    assert row["joint_overshoot_rad"] == pytest.approx(0.01)
    assert row["workspace_overshoot_m"] == pytest.approx(0.02)
    assert "joint_overshoot_rad" in verdict(row) and "workspace_overshoot_m" in verdict(row)
    creeps = record(stop(110))
    creeps["position"][-1, 3] += 0.06
    assert "0.060 rad on after that" in verdict(judged(creeps))


def test_what_has_to_go_on_is_judged_by_whether_it_does() -> None:
    on = record(np.full(300, 0.3))
    assert verdict(judged(on, "none")) == ""
    assert verdict(judged(on, "none", state="latched", reason="x")) == "stopped: x"
    assert verdict(judged(record(stop(110)), "none")) == "stands still"
    assert "came near no limit" in verdict(judged(on, "limits"))
    near = on | {"position": on["position"].copy()}
    near["position"][:, 1] = LIMITS.position_high[1] - 0.04
    assert verdict(judged(near, "limits")) == ""
    near["position"][9, 1] = LIMITS.position_high[1] + 0.001
    assert "joint_overshoot_rad" in verdict(judged(near, "limits"))


def test_what_nothing_can_reach_is_given_that_time_and_no_more() -> None:
    late = record(stop(200))
    for fault in ("streamer-stall", "network-cut"):
        facts = {"reason": "the last frame is held up"}
        assert verdict(judged(late, fault, injected_for_s=1.0, **facts)) == ""
        assert "asked_rest_s" in verdict(judged(late, fault, injected_for_s=0.3, **facts))
    sudden = record(np.concatenate((np.full(201, LIMITS.velocity[0]), np.zeros(150))))
    assert verdict(judged(sudden, "network-cut", injected_for_s=1.0)) == ""
    assert "acceleration" in verdict(judged(sudden, "streamer-stall", injected_for_s=1.0))


def test_an_arm_that_was_late_itself_measures_nothing() -> None:
    late = record(stop(110))
    late["time"][50:] += ARM_LATE + 0.001
    assert verdict(judged(late)).startswith("not measured: the simulated arm was 26 ms late")
    stopped = record(stop(150))
    stopped["time"][120:] += 0.5
    facts = measured(stopped, onset=1.1, ended=1.7)
    assert facts["arm_late_s"] == pytest.approx(0.0, abs=1e-6), "it was stopped on purpose"


def test_the_documents_tell_of_every_fault_and_of_no_other() -> None:
    lines = (ROOT / "docs" / "safety.md").read_text().splitlines()
    header, rule = table([]).splitlines()
    at = lines.index(header)
    assert lines[at + 1] == rule
    rows = [line.split(" | ") for line in lines[at + 2 : lines.index("", at)]]
    assert [row[0].removeprefix("| ") for row in rows] == [f.tells for f in FAULTS.values()]
    has_to = {Then.REST: "rest", Then.GO_ON: "go on", Then.BE_HELD: "be held"}
    assert [row[1] for row in rows] == [has_to[f.then] for f in FAULTS.values()]
    good = f"**{len(rows)} of {len(rows)}** verdicts are good"
    assert good in "\n".join(lines)
    assert all(row[-1] == "good |" for row in rows)


def test_an_unknown_fault_is_refused_with_those_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(faults, ["only=fire"]) == 2
    assert "policy-killed" in capsys.readouterr().err


def test_the_command_ends_with_an_error_where_a_verdict_is_not_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late = [dict(judged(record(stop(110))), arm_late_s=0.1)] * 3
    found = {"released": [*late, judged(record(stop(110)))], "policy-killed": []}
    found["policy-stall"] = [judged(record(stop(150)), "policy-stall")]
    found["policy-killed"] = [judged(record(stop(110)), "policy-killed", state="running")]

    def run(name: str, bundle: str, folder: Path) -> dict[str, Any]:
        return found[name].pop(0)

    monkeypatch.setattr("visuomotor.faults.run_fault", run)
    assert run_command(faults, ["only=released", f"out={tmp_path / 'late'}"]) == 1
    assert len(found["released"]) == 1, "tried three times"
    assert run_command(faults, ["only=released", f"out={tmp_path / 'good'}"]) == 0
    argv = ["only=policy-stall,policy-killed", f"out={tmp_path / 'bad'}"]
    assert run_command(faults, argv) == 1
    assert "0 of 2 verdicts are good" in capsys.readouterr().out
    told = (tmp_path / "bad" / "faults.md").read_text()
    assert "asked_rest_s" in told
    assert "not latched" in told


# --- the streamer, its guard and the simulated arm -----------------------------------------------


class Played:
    """They meet on loopback; time passes in `run`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, arm: SimulatedArm):
        self.now = 1000.0
        self.wall_ahead = 1e9  # s, of the wall clock to the monotonic one
        self.arm = arm
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        monkeypatch.setattr("time.time", lambda: self.now + self.wall_ahead)
        arm._faults.clear()
        arm._faults["drop"] = 0.0
        arm._subscribers["joints"].clear()
        arm._told = None
        arm.start(0)
        self.adapter = SimArm(arm.port)
        self.adapter._subscription = _Subscription(arm.port, JOINT_HELLO)
        self.slots = [Slot.create(t) for t in (command_type(9), report_type(9), SWITCH)]
        self.streamer = Streamer(self.adapter, *self.slots)
        self.pressed = False
        self.wanted: Callable[[float], np.ndarray] = _sway
        self.ticks = 0

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / TICK)):
            self.now += TICK
            self.arm.tick()
            switch = np.zeros((), SWITCH)
            switch["pressed"], switch["stamp"] = int(self.pressed), self.now
            self.slots[2].write(switch)
            if self.ticks % round(COMMAND_PERIOD / TICK) == 0:
                command = np.zeros((), command_type(9))
                command["velocity"] = self.wanted(self.ticks * TICK)
                for name in ("stamp", "frame_stamp", "used_frame_stamp", "used_joint_stamp"):
                    command[name] = self.now
                self.slots[0].write(command)
            self.streamer.tick()
            self.ticks += 1

    def fault(self, name: str, inject: Callable[[], None]) -> dict[str, Any]:
        """-> the row of a fault that is made half a second after the arm was set in motion."""
        self.run(0.3)
        self.pressed = True
        self.ticks = 0
        self.arm.recording = Record()
        self.run(0.5)
        onset = self.now
        inject()
        self.run(2.0)
        report = self.slots[1].read()[1]
        assert report is not None
        rows = {key: np.array(value) for key, value in vars(self.arm.recording).items()}
        facts = {
            "state": state_of(report).name.lower(),
            "still_latched": state_of(report) is State.LATCHED,
            "reason": untext(report["reason"]),
        }
        return judged(rows, name, onset, **facts)

    def close(self) -> None:
        self.adapter.stop()
        for slot in self.slots:
            slot.close()


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedArm]:
    config = SimArmConfig(command_delay=DELAY, command_jitter=0.0, camera_rate=1.0)
    arm = SimulatedArm(config)
    yield arm
    arm.socket.close()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, simulated: SimulatedArm) -> Iterator[Played]:
    played = Played(monkeypatch, simulated)
    yield played
    played.close()


def nothing() -> None: ...


def test_at_full_speed_the_arm_moves_on_after_it_is_asked_to_rest_but_not_for_long(
    played: Played,
) -> None:
    row = played.fault("released", lambda: setattr(played, "pressed", False))
    assert verdict(row) == ""
    assert row["moving_at_onset"] > 0.99
    assert row["asked_acceleration"] <= 1.0 + 1e-6 < ASKED_ACCELERATION, "nothing is late here"
    assert 0.9 < row["asked_step"] <= 1.0 + 1e-6
    lag = row["moved_rest_s"] - row["asked_rest_s"]
    assert 0.05 < lag <= 0.1 < LAG


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("joints-nan", "joints_nan"),
        ("velocities-inf", "velocities_inf"),
        ("joints-swapped", "joints_swapped"),
        ("names-swapped", "names_swapped"),
        ("names-missing", "names_missing"),
        ("joints-missing", "joints_missing"),
        ("joints-frozen", "joints_freeze"),
    ],
)
def test_joint_states_that_are_wrong_bring_the_arm_to_rest(
    played: Played, name: str, kind: str
) -> None:
    row = played.fault(name, lambda: played.arm._faults.update({kind: 1.0}))
    assert verdict(row) == ""
    assert row["moving_at_onset"] > 0.9


@pytest.mark.parametrize("name", ["limits", "other-limits"])
def test_a_policy_that_drives_at_limits_is_held_before_them(played: Played, name: str) -> None:
    played.wanted = {"limits": _to_limits, "other-limits": _to_other_limits}[name]
    row = played.fault(name, nothing)
    assert verdict(row) == ""


def test_a_policy_that_trembles_asks_no_more_of_the_arm_than_its_limits(played: Played) -> None:
    played.wanted = _wild
    row = played.fault("wild", nothing)
    assert verdict(row) == ""
    assert row["asked_acceleration"] == pytest.approx(1.0, abs=0.01)
    assert row["moved_acceleration"] < 1.3


def test_names_in_another_order_change_nothing_and_a_careless_reader_is_found(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    permute = lambda: played.arm._faults.update({"names_permuted": 1.0})  # noqa: E731
    row = played.fault("names-permuted", permute)
    assert verdict(row) == ""
    played.pressed = False
    played.run(1.0)
    played.arm._faults.pop("names_permuted")
    monkeypatch.setattr(SimArm, "read", careless.read_places)
    row = played.fault("names-permuted", permute)
    assert verdict(row).startswith("stopped: jaco_arm/")


def by_an_hour(reason: str) -> bool:
    """Whether that is why, and not a busy machine: so old, or as from the future."""
    return "never came" in reason or "3600" in reason or "3599" in reason


def set_clocks(played: Played, seconds: float) -> None:
    played.wall_ahead += seconds
    played.arm._faults["clock_step"] = seconds


@pytest.mark.parametrize(("name", "step"), [("clock-ahead", STEP), ("clock-back", -STEP)])
@pytest.mark.parametrize("reader", ["the runtime's", "by senders' stamps", "by the wall clock"])
def test_a_clock_that_is_set_stops_nobody_but_who_believes_it(
    played: Played, monkeypatch: pytest.MonkeyPatch, name: str, step: float, reader: str
) -> None:
    if reader == "by senders' stamps":
        monkeypatch.setattr(SimArm, "read", careless.read_stamps)
    if reader == "by the wall clock":
        monkeypatch.setattr(
            "visuomotor.runtime.streamer.time",
            careless.WallClock(played.wall_ahead, lambda: played.now + played.wall_ahead),
        )
    row = played.fault(name, lambda: set_clocks(played, step))
    if reader == "the runtime's":
        assert verdict(row) == ""
    else:
        assert verdict(row).startswith("stopped: ")
        assert by_an_hour(row["reason"])


def test_nobody_around_the_arm_reads_the_wall_clock() -> None:
    """Not even where no fault looks: in the process that tells of the switch, say."""
    package = ROOT / "visuomotor"
    paths = [*(package / "runtime").rglob("*.py"), package / "deployment.py", package / "deploy.py"]
    found = [
        (path.name, node.attr)
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime")
    ]
    assert {attr for _, attr in found} <= {"monotonic", "perf_counter", "sleep", "strftime"}
    # The name of a folder.
    assert [path for path, attr in found if attr == "strftime"] == ["deploy.py"]


def test_a_program_s_wall_clock_is_set_and_its_monotonic_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "clocks.py").write_text("""
import datetime, os, signal, sys, time
from time import time as taken
def clocks():
    return [taken(), time.time_ns() / 1e9, time.clock_gettime(time.CLOCK_REALTIME),
            datetime.datetime.now().timestamp(), time.monotonic()]
assert __name__ == "__main__" and sys.argv[1:] == ["argument"]
seen = [clocks()]
for number in (signal.SIGUSR1, signal.SIGUSR2):
    os.kill(os.getpid(), number)
    seen.append(clocks())
print([[round((b - a) / 60.0) for a, b in zip(x, y)] for x, y in zip(seen, seen[1:])])
""")
    done = subprocess.run(
        [sys.executable, "-m", "visuomotor.stepped_clock", "clocks", "argument"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    assert eval(done.stdout) == [[60, 60, 60, 60, 0], [-60, -60, -60, -60, 0]]


# --- all processes, by the clock of this machine -------------------------------------------------


@pytest.mark.slow
def test_a_killed_policy_brings_the_arm_to_rest(tmp_path: Path) -> None:
    argv = ["bundle=lifting", "only=policy-killed,released", f"out={tmp_path / 'faults'}"]
    assert run_command(faults, argv) == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stamps", "wall"])
@pytest.mark.parametrize("name", ["clock-ahead", "clock-back"])
def test_processes_that_believe_a_clock_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, how: str
) -> None:
    monkeypatch.setattr(Deployment, "program", ("tests.careless", how))
    for number in range(TRIES):  # on a busy machine the arm may stop for being late before
        row = run_fault(name, "lifting", tmp_path / f"{name}-{number}")
        if by_an_hour(row["reason"]):
            break
    assert by_an_hour(row["reason"])
    assert verdict(row | {"arm_late_s": 0.0}).startswith("stopped: ")
