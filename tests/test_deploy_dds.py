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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("cyclonedds", reason='cyclonedds is missing: pip install "visuomotor[ros2]"')

from tests.dds_arm import DdsArm
from visuomotor.cli import EXIT_BAD_INPUT
from visuomotor.runtime.arms.dds import Float64MultiArray, KinovaJointVelocity
from visuomotor.runtime.guard import State
from visuomotor.runtime.streamer import read_log

ROOT = Path(__file__).parents[1]
DOMAIN = 93
PATIENCE = 120.0  # s for each thing that must come about
BETWEEN = 2.0  # s between two presses: one of the space bar holds for 0.7
REPEAT = 0.03  # s, of a key that is held
COMMAND = "/forward_velocity_controller/commands"
LONG = 100  # messages, about a second of them
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

    def __init__(self, terminal: tuple[int, int], folder: Path, arm: str, *more: str):
        self.out, self._told = folder / "out", folder / "told"
        self._keyboard, screen = terminal
        self._pressed = -BETWEEN
        self._holding: threading.Thread | None = None
        self._let_go = threading.Event()
        (folder / "arm.yaml").write_text(f"domain: {DOMAIN}\n")
        options = [f"arm={arm}", f"arm_config={folder / 'arm.yaml'}", f"out={self.out}"]
        options += ["bundle=lifting", "camera=topic:/image", "camera_rate=5", "episodes=1000"]
        options += ["lens=simulated", *more]
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

    @property
    def told(self) -> str:
        return self._told.read_text()

    @property
    def latched(self) -> str:
        """Why the arm is latched, by the newest line; empty: it is not."""
        lines = self.told.splitlines()
        return lines[-1] if lines and lines[-1].startswith("latched: ") else ""

    def hold(self) -> None:
        """Pressed anew now and then, and held by repetition from there on."""
        if time.monotonic() - self._pressed < BETWEEN:
            return
        self.let_go()
        self.press()
        self._let_go.clear()
        self._holding = threading.Thread(target=self._repeat)
        self._holding.start()

    def _repeat(self) -> None:
        while not self._let_go.wait(REPEAT):
            os.write(self._keyboard, b" ")

    def let_go(self) -> None:
        self._let_go.set()
        if self._holding is not None:
            self._holding.join()

    def kill(self, role: str) -> None:
        """The process of this role, at once."""
        parent = self.process.pid
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if role.encode() in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                os.kill(int(child), signal.SIGKILL)
                return
        raise AssertionError(f"no process of {role}")

    def close(self) -> None:
        self.let_go()
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@pytest.mark.parametrize(
    ("kind", "joint_states", "command", "message"),
    [
        (
            "ros2",
            "/joint_states",
            COMMAND,
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
        assert not arm.moved(), "nobody has pressed"
        until(lambda: arm.moved() and deploy.says("episode 1: running"), deploy.press)
        until(lambda: arm.rests(ZEROS))
        code = deploy.end()
    finally:
        deploy.close()
        arm.close()
    assert code == 128 + signal.SIGINT
    assert arm.rests(ZEROS)
    result = json.loads((deploy.out / "deployment.json").read_text())
    assert result["arm"] == kind
    assert result["rows"][0]["stopped"]
    _, rows = read_log(deploy.out / "streamer.log")
    assert rows["sent"].any()
    assert not rows["sent"][-1].any()
    assert rows["state"][-1] == State.LATCHED.value


def moving(deploy: Deploy, arm: DdsArm) -> None:
    """Under a switch that is held from here on."""
    until(lambda: bool(deploy.latched))
    before = len(arm.received)
    until(lambda: arm.moved(before) and not deploy.latched, deploy.hold)


def come_back(arm: DdsArm, fault: str) -> DdsArm:
    if fault == "replaced":
        return DdsArm(DOMAIN, command=COMMAND)
    until(lambda: arm.rests(ZEROS))
    arm.tells = True
    return arm


@pytest.mark.parametrize("fault", ["silent", "replaced"])
def test_an_arm_that_was_gone_is_sent_zeros_until_it_is_armed_anew(
    fault: str, terminal: tuple[int, int], tmp_path: Path
) -> None:
    """Gone: it tells no joints for a while, or leaves DDS and another one takes its place. The
    switch is held all the time."""
    arm = DdsArm(DOMAIN, command=COMMAND)
    deploy = Deploy(terminal, tmp_path, "ros2", "episode_seconds=600")
    try:
        because = ""
        while "the last joint state is" not in because:  # a busy machine may latch it before
            moving(deploy, arm)
            arm.tells = False
            if fault == "replaced":
                arm.close()
            until(lambda: bool(deploy.latched))
            because = deploy.latched
            arm = come_back(arm, fault)
        mark = len(arm.received) if fault == "silent" else 0
        until(lambda: len(arm.received) >= mark + LONG)
        assert not arm.moved(mark), "it is back, and the switch is held"
        assert deploy.latched == because
        until(lambda: arm.moved(mark), deploy.hold)
        deploy.let_go()
        until(lambda: arm.rests(ZEROS))
        assert deploy.end() == 128 + signal.SIGINT
    finally:
        deploy.close()
        arm.close()


def test_an_arm_comes_to_rest_when_the_policy_s_process_is_killed(
    terminal: tuple[int, int], tmp_path: Path
) -> None:
    arm = DdsArm(DOMAIN, command=COMMAND)
    deploy = Deploy(terminal, tmp_path, "ros2", "episode_seconds=600")
    try:
        moving(deploy, arm)
        deploy.kill("policy")
        assert deploy.process.wait(PATIENCE) == EXIT_BAD_INPUT, deploy.told
        until(lambda: arm.rests(1))
    finally:
        deploy.close()
        arm.close()
    assert "policy: killed by signal 9" in deploy.told
    _, rows = read_log(deploy.out / "streamer.log")
    assert rows["sent"].any()
    assert not rows["sent"][-1].any()
    assert rows["state"][-1] == State.LATCHED.value
