"""All of `deploy` before an arm on DDS: its two processes, a ROS 2 image topic, and the space bar
of a terminal in a human's hand. Loopback alone.

Nothing here is judged by the clock. A busy machine may latch the arm as soon as it runs; then the
space bar is pressed anew.
"""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("cyclonedds", reason='cyclonedds is missing: pip install "visuomotor[ros2]"')

from tests.dds_arm import DdsArm
from visuomotor.runtime.arms.dds import Float64MultiArray, KinovaJointVelocity
from visuomotor.runtime.streamer import read_log

ROOT = Path(__file__).parents[1]
DOMAIN = 93
PATIENCE = 120.0  # s for each thing that must come about
BETWEEN = 2.0  # s between two presses: one of the space bar holds for 0.7
ZEROS = 20  # messages in a row that show that the arm rests


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    keyboard, screen = pty.openpty()
    yield keyboard, screen
    os.close(keyboard)
    os.close(screen)


def until(what: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        meanwhile()
        time.sleep(0.05)


class Deploy:
    """`python -m visuomotor.deploy`, in a terminal."""

    def __init__(self, terminal: tuple[int, int], folder: Path, arm: str):
        self.out, self._told = folder / "out", folder / "told"
        self._keyboard, screen = terminal
        self._pressed = -BETWEEN
        (folder / "arm.yaml").write_text(f"domain: {DOMAIN}\n")
        options = [f"arm={arm}", f"arm_config={folder / 'arm.yaml'}", f"out={self.out}"]
        options += ["bundle=lifting", "camera=topic:/image", "camera_rate=5", "episodes=1000"]
        options += ["lens=simulated"]
        with open(self._told, "w") as told:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "visuomotor.deploy", *options],
                stdin=screen,
                stdout=told,
                stderr=told,
                cwd=ROOT,
            )

    def says(self, text: str) -> bool:
        told = self._told.read_text()
        assert self.process.poll() is None, told
        return text in told

    def press(self) -> None:
        """Now and then; it is let go in between."""
        if time.monotonic() - self._pressed >= BETWEEN:
            os.write(self._keyboard, b"\n")
            time.sleep(0.2)
            os.write(self._keyboard, b" ")
            self._pressed = time.monotonic()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("kind", "joint_states", "command", "message"),
    [
        (
            "ros2",
            "/joint_states",
            "/forward_velocity_controller/commands",
            Float64MultiArray,
        ),
        (
            "jaco2",
            "/j2n6s300_driver/out/joint_state",
            "/j2n6s300_driver/in/joint_velocity",
            KinovaJointVelocity,
        ),
    ],
    ids=["ros2", "jaco2"],
)
def test_an_arm_on_dds_moves_after_a_press_alone_and_is_left_at_rest(
    kind: str,
    joint_states: str,
    command: str,
    message: type,
    terminal: tuple[int, int],
    tmp_path: Path,
) -> None:
    arm = DdsArm(DOMAIN, joint_states, command=command, kind=message)
    deploy = Deploy(terminal, tmp_path, kind)
    try:
        until(lambda: deploy.says("press Enter, then hold the space bar to start"))
        until(lambda: arm.rests(ZEROS))
        assert not arm.moved, "nobody has pressed"
        until(lambda: arm.moved and deploy.says("episode 1: running"), deploy.press)
        until(lambda: arm.rests(ZEROS))
        code = deploy.end()
    finally:
        deploy.process.kill()
        deploy.process.wait()
        arm.close()
    assert code == 128 + signal.SIGINT
    assert arm.rests(ZEROS)
    result = json.loads((deploy.out / "deployment.json").read_text())
    assert result["arm"] == kind
    assert result["rows"][0]["stopped"]
    _, rows = read_log(deploy.out / "streamer.log")
    assert rows["sent"].any()
    assert not rows["sent"][-1].any()
