"""Our ROS 2 arm beside programs that are not ours: Fast DDS (what rmw_fastrtps speaks), and Cyclone
DDS's own command-line tool. Loopback alone, but for a Fast DDS that comes as it does by default."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cyclonedds", reason='cyclonedds is missing: pip install "visuomotor[ros2]"')

from tests.dds_arm import DdsArm
from visuomotor.runtime.arms.dds import _configuration
from visuomotor.runtime.arms.ros2 import KINOVA_JOINTS, Ros2Arm, Ros2Settings

SOURCE = Path(__file__).parent / "fastdds" / "driver.cpp"
HEADER = Path("/usr/include/fastdds/dds/domain/DomainParticipant.hpp")
PATIENCE = 60.0  # s on a machine that is busy with other things
VELOCITY = np.arange(9) / 16


class Lines:
    """What a process prints, as it comes."""

    def __init__(self, process: subprocess.Popen[str]):
        self.process = process
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not HEADER.is_file() or shutil.which("g++") is None:
        pytest.skip("Fast DDS or g++ is missing: apt-get install libfastrtps-dev g++")
    program = tmp_path_factory.mktemp("fastdds") / "driver"
    command = ["g++", "-std=c++17", str(SOURCE), "-o", str(program), "-lfastrtps", "-lfastcdr"]
    subprocess.run(command, check=True)
    return program


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("qos", ["loopback", "default"])
def test_a_driver_on_fast_dds_is_read_and_commanded_and_may_go_and_come_back(
    qos: str,
    driver: Path,
    started: list[subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.PATIENCE", PATIENCE)
    topic = f"/fast/{qos}"
    arm = Ros2Arm(Ros2Settings(domain=95, command=topic))
    for step in (0.1, 0.2):  # rad; the second driver tells another place than the first
        command = [str(driver), "95", f"rt{topic}", "120", qos, str(step)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        told = Lines(process)
        if step == 0.1:
            arm.connect()
            arm.claim()
        place = step * np.arange(1, 10)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            state = arm.read()
            assert state is not None
            arm.send(VELOCITY)
            if told.lines and np.allclose(state.position, place):
                break
            time.sleep(0.01)
        assert state.position == pytest.approx(place)
        assert state.velocity == pytest.approx(0.01 * np.arange(1, 10))
        assert told.lines, "the driver read nothing"
        assert [float(number) for number in told.lines[0].split()] == pytest.approx(VELOCITY)
        process.kill()
        process.wait()
    arm.stop()


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("velocity", ("0.0625",)), ("trajectory", ("0.0625", KINOVA_JOINTS[8], "time_from_start"))],
)
def test_cyclone_s_own_tool_reads_what_is_sent(
    mode: str,
    shown: tuple[str, ...],
    started: list[subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tool = Path(sys.executable).with_name("cyclonedds")
    if not tool.is_file():
        pytest.skip("the cyclonedds command is missing")
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.PATIENCE", PATIENCE)
    peer = DdsArm(94)
    arm = Ros2Arm(Ros2Settings(domain=94, command=f"/tool/{mode}", mode=mode))
    try:
        arm.connect()
        arm.claim()
    finally:
        peer.close()
    options = ["--suppress-progress-bar", "--color", "none", "--runtime", "3s"]
    command = [str(tool), "subscribe", "--domain-id", "94", *options, f"rt/tool/{mode}"]
    environment = os.environ | {"CYCLONEDDS_URI": _configuration("lo"), "PYTHONUNBUFFERED": "1"}
    started.append(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
    )
    told = Lines(started[0])
    deadline = time.monotonic() + PATIENCE

    def lacking() -> list[str]:
        return [text for text in shown if not any(text in line for line in told.lines)]

    while lacking() and time.monotonic() < deadline:
        arm.send(VELOCITY)
        time.sleep(0.02)
    assert not lacking(), "".join(told.lines[-20:])
    arm.stop()
