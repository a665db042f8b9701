"""The streamer's process: 100 times a second it decides what the arm is sent. numpy only.

It owns the arm. It trusts nobody: what to send is `Guard`'s decision, from the newest command, the
newest joint state and the switch that a human holds. Every tick is logged.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from visuomotor.runtime.arm import Arm
from visuomotor.runtime.clock import run_at
from visuomotor.runtime.guard import Guard, Patience, State
from visuomotor.runtime.slots import Slot, report_type, text, to_command

PERIOD = 0.01  # s
GRACE = 1.0  # s that the arm is given to come to rest when the process is asked to leave
SWITCH_AGE = 0.15  # s after which nobody knows of a switch that is not confirmed
LAST_ZEROS = 0.2  # s of zeros behind a stop, before the connection ends: single ones may be lost
MOST_LATE = 0.05  # s that a tick may come late before the streamer no longer trusts itself

# What the human's side tells: 1 pressed, 0 released, -1 not to be known.
SWITCH = np.dtype([("pressed", "<i1"), ("stamp", "<f8")])


def log_type(num_joints: int) -> np.dtype:
    """A row a tick."""
    return np.dtype(
        [
            ("time", "<f8"),  # s, time.monotonic()
            ("state", "<i4"),
            ("requested", "<f8", (num_joints,)),  # rad/s; NaN: nothing
            ("sent", "<f8", (num_joints,)),  # rad/s
            ("position", "<f8", (num_joints,)),
            ("velocity", "<f8", (num_joints,)),
            ("command_number", "<u8"),
            ("command_age", "<f8"),  # s
            ("joint_age", "<f8"),
            ("frame_age", "<f8"),  # since the picture last changed
            ("used_frame_age", "<f8"),  # of the picture that the command was made from
            ("used_joint_age", "<f8"),
        ]
    )


class Log:
    """Rows of `log_type` behind a line of JSON; `read_log` reads them back."""

    def __init__(self, path: Path, joint_names: tuple[str, ...]):
        self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115  (closed in close)
        header = {"format": "visuomotor-log", "version": 1, "joints": list(joint_names)}
        self._file.write(json.dumps(header).encode() + b"\n")
        self._file.flush()
        self.row = np.zeros((), log_type(len(joint_names)))
        self._flushed = time.monotonic()
        self.broken = ""  # why nothing more is written

    def write(self) -> None:
        """A full disk ends the log, not the arm's control."""
        if self.broken:
            return
        try:
            self._file.write(self.row.tobytes())
            if time.monotonic() - self._flushed > 1.0:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError as error:
            self.broken = str(error)
            print(f"the log ends here: {error}", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def read_log(path: Path | str) -> tuple[tuple[str, ...], np.ndarray]:
    """-> joint names, rows of `log_type`. A last row that was cut off is left out.

    Raises ValueError if the file is no log.
    """
    content = Path(path).read_bytes()
    line, _, rows = content.partition(b"\n")
    try:
        header = json.loads(line)
        names = tuple(header["joints"]) if header["format"] == "visuomotor-log" else None
    except (ValueError, KeyError, TypeError):
        names = None
    if names is None:
        raise ValueError(f"{path} is no log of the streamer")
    dtype = log_type(len(names))
    whole = len(rows) // dtype.itemsize
    return names, np.frombuffer(rows[: whole * dtype.itemsize], dtype)


class Streamer:
    """Call `tick` every PERIOD s, and `leave` in the end."""

    def __init__(
        self,
        arm: Arm,
        command: Slot,
        report: Slot,
        switch: Slot,
        log_path: Path | None = None,
        patience: Patience | None = None,
    ):
        self.arm = arm
        self.guard = Guard(arm.limits, PERIOD, patience)
        self._command, self._report, self._switch = command, report, switch
        self._value = np.zeros((), report_type(len(arm.limits.joint_names)))
        self._log = None if log_path is None else Log(log_path, arm.limits.joint_names)
        self._last_tick: float | None = None

    def tick(self, leaving: bool = False) -> None:
        now = time.monotonic()
        number, value = self._command.read()
        command = None if value is None else to_command(value)
        joints = self.arm.read()
        late = 0.0 if self._last_tick is None else now - self._last_tick - PERIOD
        if late > MOST_LATE:
            self.guard.fail(f"the streamer itself was held up for {1000 * late:.0f} ms")
        self._last_tick = now
        decision = self.guard.tick(now, command, joints, None if leaving else self._pressed(now))
        self.arm.send(decision.velocity)
        report = self._value
        if joints is not None:
            report["position"], report["velocity"] = joints.position, joints.velocity
            report["joint_stamp"] = joints.stamp
        report["stamp"] = now
        report["state"] = decision.state.value
        report["armed"] = decision.armed
        report["reason"] = text(decision.reason)
        self._report.write(report)
        if self._log is not None:
            row = self._log.row
            row["time"], row["state"], row["sent"] = now, decision.state.value, decision.velocity
            row["requested"] = np.nan if command is None else command.velocity
            row["position"], row["velocity"] = report["position"], report["velocity"]
            row["command_number"] = number
            row["joint_age"] = np.nan if joints is None else now - joints.stamp
            for name in ("command_age", "frame_age", "used_frame_age", "used_joint_age"):
                stamp = name.removesuffix("_age") + "_stamp" if name != "command_age" else "stamp"
                row[name] = np.nan if value is None else now - float(value[stamp])
            self._log.write()

    def _pressed(self, now: float) -> bool | None:
        """Only what is fresh is known."""
        _, switch = self._switch.read()
        if switch is None or not -SWITCH_AGE < now - float(switch["stamp"]) < SWITCH_AGE:
            return None
        return {1: True, 0: False}.get(int(switch["pressed"]))

    def leave(self) -> None:
        """Brings the arm to rest and ends the connection, whatever else fails."""
        try:
            deadline = time.monotonic() + GRACE
            rested = None
            while time.monotonic() < deadline:
                self._leaving_tick()
                if self.guard.state is State.LATCHED:
                    rested = time.monotonic() if rested is None else rested
                    if time.monotonic() - rested >= LAST_ZEROS:
                        break
                time.sleep(PERIOD)
        finally:
            self.arm.stop()
            if self._log is not None:
                self._log.close()

    def _leaving_tick(self) -> None:
        try:
            self.tick(leaving=True)
        except Exception as error:
            # What cannot be read any more is not needed in order to brake.
            self.guard.fail(f"{type(error).__name__} while leaving: {error}")
            self.arm.send(self.guard.brake())


def keep_awake(priority: int) -> str:
    """Asks for real-time scheduling; -> what came of it, a line."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, AttributeError) as error:
        return f"no real-time scheduling ({error}); docs/real_arm.md says how to allow it"
    return f"real-time scheduling, SCHED_FIFO {priority}"


def run_streamer(streamer: Streamer, should_stop: Callable[[], bool]) -> None:
    """Ticks by the clock until asked to stop; then brings the arm to rest, whatever happened."""
    try:
        run_at(PERIOD, streamer.tick, should_stop)
    except Exception as error:
        streamer.guard.fail(f"{type(error).__name__}: {error}")
        raise
    finally:
        streamer.leave()
