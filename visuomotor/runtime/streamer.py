"""The streamer's process: 100 times a second it decides what the arm is sent. numpy only.

It owns the arm. It trusts nobody: what to send is `Guard`'s decision, from the newest command, the
newest joint state and the switch that a human holds. Every tick is logged.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from visuomotor.runtime.arm import Arm
from visuomotor.runtime.clock import run_at
from visuomotor.runtime.errors import LogError
from visuomotor.runtime.guard import Guard, Patience, Start, State
from visuomotor.runtime.slots import Slot, report_type, text, to_command

PERIOD = 0.01  # s
GRACE = 1.0  # s for which a send that fails is tried again when the process is asked to leave ...
LEAVING = 2.5  # ... of all of its leaving, in which sends may work again and fail again
SWITCH_AGE = 0.15  # s after which nobody knows of a switch that is not confirmed
LAST_ZEROS = 0.2  # s of zeros behind a stop, before the connection ends: single ones may be lost
LOG_PERIOD = 0.5  # s between writes to the log: what a process that is killed takes with it
LOG_ROWS = 6000  # kept while the disk stalls: a minute, 2 MB
LOG_CLOSE = 2.0  # s that the disk is given for the last rows
MOST_LATE = 0.05  # s that a tick may come late before the streamer no longer trusts itself

# What the human's side tells: 1 pressed, 0 released, UNTOLD, or why the episode ends. Then nobody
# asks whether the switch is held: that is no release, after which a press would arm.
TIME_UP, ASKED, UNTOLD = -1, -2, -3
ENDINGS = {TIME_UP: "the time is up", ASKED: "deploy was asked to end"}
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
    """Rows of `log_type` behind a line of JSON; `read_log` reads them back.

    A thread writes them, twice a second: a disk that stalls or is full does not hold up the arm's
    control. It may be LOG_ROWS behind; further rows are left out, and their number is told.
    """

    def __init__(self, path: Path, joint_names: tuple[str, ...]):
        """Raises LogError if it cannot be begun: on a disk that is full, for instance."""
        header = {"format": "visuomotor-log", "version": 1, "joints": list(joint_names)}
        with ExitStack() as unless_begun:
            try:
                # Unbuffered: what was written is not lost when this process is killed.
                self._file = unless_begun.enter_context(open(path, "wb", buffering=0))
                self._file.write(json.dumps(header).encode() + b"\n")
            except OSError as error:
                raise LogError(f"{path} cannot be written: {error.strerror}") from error
            unless_begun.pop_all()  # the thread closes it
        self.row = np.zeros((), log_type(len(joint_names)))
        self.broken = ""  # why nothing more is written
        self.lost = 0  # rows left out
        # No queue.Queue: its lock could be held by the thread, which has no real-time scheduling.
        self._rows: deque[bytes] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def write(self) -> None:
        """Never waits."""
        if self.broken:
            return
        if len(self._rows) < LOG_ROWS:
            self._rows.append(self.row.tobytes())
        else:
            self.lost += 1

    def _drain(self) -> None:
        """In the thread: writes what there is, until closed."""
        try:
            with self._file:
                while not self._closing.wait(LOG_PERIOD):
                    self._write_rows()
                self._write_rows()
        except OSError as error:
            self.broken = str(error)
            print(f"the log ends here: {error}", file=sys.stderr)

    def _write_rows(self) -> None:
        rest = memoryview(b"".join(self._rows.popleft() for _ in range(len(self._rows))))
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Writes what is left, if the disk takes it within LOG_CLOSE s."""
        self._closing.set()
        self._thread.join(LOG_CLOSE)
        if self.lost:
            print(f"the log lacks {self.lost} rows: the disk was too slow", file=sys.stderr)
        if self._thread.is_alive():
            print("the log lacks its last rows: the disk does not answer", file=sys.stderr)


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
        start: Start | None = None,
    ):
        self.arm = arm
        self.guard = Guard(arm.limits, PERIOD, patience, start)
        self._command, self._report, self._switch = command, report, switch
        self._value = np.zeros((), report_type(len(arm.limits.joint_names)))
        self._log = None if log_path is None else Log(log_path, arm.limits.joint_names)
        self._last_tick: float | None = None
        self._sends = 0  # that succeeded
        self._unsent: np.ndarray | None = None  # (A,) rad/s, what the last send failed with
        self._trouble = ""  # the last, while leaving

    def tick(self, leaving: bool = False) -> None:
        now = time.monotonic()
        number, value = self._command.read()
        command = None if value is None else to_command(value)
        joints = self.arm.read()
        late = 0.0 if self._last_tick is None else now - self._last_tick - PERIOD
        if late > MOST_LATE:
            self.guard.fail(f"the streamer itself was held up for {1000 * late:.0f} ms")
        self._last_tick = now
        if leaving:
            self.guard.fail("the streamer was asked to end")
        decision = self.guard.tick(now, command, joints, None if leaving else self._pressed(now))
        self._send(decision.velocity)
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

    def _send(self, velocity: np.ndarray) -> None:
        self._unsent = velocity
        self.arm.send(velocity)
        self._unsent = None
        self._sends += 1

    def _pressed(self, now: float) -> bool | None:
        """Only what is fresh is known; an episode that is to end stops the arm here."""
        _, switch = self._switch.read()
        if switch is None or not -SWITCH_AGE < now - float(switch["stamp"]) < SWITCH_AGE:
            return None
        told = int(switch["pressed"])
        if told in ENDINGS:
            self.guard.fail(ENDINGS[told])
        return {1: True, 0: False}.get(told)

    def leave(self) -> None:
        """Brings the arm to rest and ends the connection, whatever else fails. Raises nothing: what
        went wrong before must be heard."""
        begun = time.monotonic()
        deadline = begun + GRACE
        rested = None  # s, since when nothing but zeros was sent
        while True:
            sent, now = self._leaving_tick(), time.monotonic()
            if sent:
                deadline = now + GRACE
            elif now >= min(deadline, begun + LEAVING):
                break
            if not sent or self.guard.state is not State.LATCHED:
                rested = None
            elif rested is None:
                rested = now
            elif now - rested >= LAST_ZEROS:
                self._trouble = ""
                break
            time.sleep(PERIOD)
        self._try(self.arm.stop)
        with contextlib.suppress(OSError):  # a terminal that is closed cannot be told
            if self._log is not None:
                self._log.close()
            if self._trouble:
                print(f"look whether the arm rests: {self._trouble}", file=sys.stderr)

    def _leaving_tick(self) -> bool:
        """-> whether the arm was sent something.

        What could not be sent is sent again before the stop goes on: until then the arm does what
        it got last, and that is where its ramp begins.
        """
        sends = self._sends
        if self._unsent is not None:
            unsent = self._unsent
            self._try(lambda: self._send_and_log(unsent))
            return self._sends > sends
        self._try(lambda: self.tick(leaving=True))
        if self._sends == sends and self._unsent is None:
            # What cannot be read any more is not needed in order to brake.
            self._try(lambda: self._send_and_log(self.guard.brake()))
        return self._sends > sends

    def _send_and_log(self, velocity: np.ndarray) -> None:
        """Outside of a tick: what a row tells besides is not known."""
        self._send(velocity)
        if self._log is not None:
            row = self._log.row
            for name in row.dtype.names or ():
                row[name] = 0 if row.dtype[name].kind in "iu" else np.nan
            row["time"], row["state"] = time.monotonic(), self.guard.state.value
            row["sent"] = velocity
            self._log.write()

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._trouble = f"{type(error).__name__}: {error}"
            self.guard.fail(f"{self._trouble}, while leaving")


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
