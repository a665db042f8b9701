"""The streamer's log: written behind the control's back, whatever the disk does."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from visuomotor.runtime import streamer
from visuomotor.runtime.errors import LogError
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.streamer import LOG_PERIOD, Log, read_log

ROOT = Path(__file__).parents[1]


class StalledDisk:
    """Takes nothing until it is let go, and then writes to the file behind it."""

    def __init__(self, log: Log):
        self.asked, self.let_go = threading.Event(), threading.Event()
        self._file = log._file
        log._file = self  # type: ignore[assignment]

    def write(self, content: bytes) -> int:
        self.asked.set()
        self.let_go.wait(20.0)
        return self._file.write(content)


def write_rows(log: Log, times: range) -> None:
    for time_s in times:
        log.row["time"] = time_s
        log.write()


def test_rows_come_back_in_their_order_and_whole(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", LIMITS.joint_names)
    write_rows(log, range(50))
    time.sleep(1.5 * LOG_PERIOD)
    write_rows(log, range(50, 100))
    log.close()
    names, rows = read_log(tmp_path / "log")
    assert names == LIMITS.joint_names
    assert rows["time"].tolist() == list(range(100))


def test_a_disk_that_stalls_holds_nobody_up_and_what_did_not_fit_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streamer, "LOG_ROWS", 30)
    log = Log(tmp_path / "log", LIMITS.joint_names)
    disk = StalledDisk(log)
    write_rows(log, range(10))
    assert disk.asked.wait(10.0)
    begin = time.perf_counter()
    write_rows(log, range(10, 50))  # ten more than fit
    assert time.perf_counter() - begin < 5.0, "rows waited for the disk"
    disk.let_go.set()
    log.close()
    assert read_log(tmp_path / "log")[1]["time"].tolist() == list(range(40))
    assert "lacks 10 rows" in capsys.readouterr().err


def test_a_disk_that_never_answers_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streamer, "LOG_CLOSE", 0.1)
    log = Log(tmp_path / "log", LIMITS.joint_names)
    disk = StalledDisk(log)
    write_rows(log, range(10))
    log.close()
    assert "lacks its last rows" in capsys.readouterr().err
    disk.let_go.set()


def test_a_log_that_cannot_be_begun_is_one_clear_error(tmp_path: Path) -> None:
    for path, told in (
        (Path("/dev/full"), "/dev/full cannot be written: No space left on device"),
        (tmp_path / "nowhere" / "log", "log cannot be written: No such file or directory"),
    ):
        with pytest.raises(LogError, match=told):
            Log(path, LIMITS.joint_names)


def test_a_log_is_read_up_to_the_last_second_before_its_process_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    program = f"""
import time
from pathlib import Path
from visuomotor.runtime.streamer import Log
log = Log(Path({str(path)!r}), ("joint",))
for _ in range(100):
    log.write()
print("written", flush=True)
time.sleep(60.0)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        time.sleep(1.0)
        process.kill()
    assert len(read_log(path)[1]) == 100
