"""Our ROS 2 arm beside programs that are not ours: Fast DDS (what rmw_fastrtps speaks), and Cyclone
DDS's own command-line tool. Loopback alone, but for a Fast DDS that comes as it does by default."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


@pytest.fixture
def tool(started: list[subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts Cyclone DDS's command, its input and all that it prints as pipes."""
    program = Path(sys.executable).with_name("cyclonedds")
    if not program.is_file():
        pytest.skip("the cyclonedds command is missing")

    def start(action: str, topic: str, domain: int, *options: str) -> subprocess.Popen[str]:
        command = [str(program), action, "--domain-id", str(domain), *options]
        started.append(
            subprocess.Popen(
                [*command, "--suppress-progress-bar", "--color", "none", topic],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"CYCLONEDDS_URI": _configuration("lo"), "PYTHONUNBUFFERED": "1"},
            )
        )
        return started[-1]

    return start


@pytest.mark.parametrize(
    ("mode", "shown"),
    [("velocity", ("0.0625",)), ("trajectory", ("0.0625", KINOVA_JOINTS[8], "time_from_start"))],
)
def test_cyclone_s_own_tool_reads_what_is_sent(
    mode: str,
    shown: tuple[str, ...],
    tool: Callable[..., subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.PATIENCE", PATIENCE)
    peer = DdsArm(94)
    arm = Ros2Arm(Ros2Settings(domain=94, command=f"/tool/{mode}", mode=mode))
    try:
        arm.connect()
        arm.claim()
    finally:
        peer.close()
    told = Lines(tool("subscribe", f"rt/tool/{mode}", 94, "--runtime", "3s"))
    deadline = time.monotonic() + PATIENCE

    def lacking() -> list[str]:
        return [text for text in shown if not any(text in line for line in told.lines)]

    while lacking() and time.monotonic() < deadline:
        arm.send(VELOCITY)
        time.sleep(0.02)
    assert not lacking(), "".join(told.lines[-20:])
    arm.stop()


def test_joint_states_of_cyclone_s_own_tool_are_read(
    tool: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the type of what our reader tells of it, and writes what it is told line by line."""
    monkeypatch.setattr("visuomotor.runtime.arms.ros2.PATIENCE", 2 * PATIENCE)
    position, velocity = np.linspace(0.1, 0.9, 9), np.linspace(-0.4, 0.4, 9)
    message = f"{list(KINOVA_JOINTS)}, {position.tolist()}, {velocity.tolist()}, []"
    lines = (
        "import time\n"
        f"message = JointState_(Header_(Time_(0, 0), ''), {message})\n"
        "while True: writer.write(message); time.sleep(0.02)\n\n"
    )
    arm = Ros2Arm(Ros2Settings(domain=91))
    connecting = threading.Thread(target=arm.connect)
    connecting.start()
    while connecting.is_alive():
        process = tool("publish", "rt/joint_states", 91, "--runtime", "2s", "--qos", "dds-default")
        told = Lines(process)
        assert process.stdin is not None
        process.stdin.write(lines)
        process.stdin.flush()
        # Without a type within its 2 s it gives up; it is then asked anew.
        while connecting.is_alive() and process.poll() is None:
            time.sleep(0.05)
    state = arm.read()
    assert state is not None, "".join(told.lines)
    assert state.position == pytest.approx(position)
    assert state.velocity == pytest.approx(velocity)
