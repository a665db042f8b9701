"""The processes around an arm: what becomes of a deployment when one of them dies."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from visuomotor.cli import run_command
from visuomotor.deploy import deploy, run_arm
from visuomotor.deployment import Deployment, Process
from visuomotor.envs import robot
from visuomotor.runtime.arms.sim import CAMERA_HELLO, JOINT_HELLO, encode_frame, encode_joints
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.streamer import read_log

START = np.array(robot.START_QPOS, dtype=float)


class Peer:
    """A simulated arm that stands still, and a camera before it; started in no time."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.01)
        self.port = self._socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        listeners: dict[bytes, tuple[str, int]] = {}
        joints = encode_joints(0.0, list(LIMITS.joint_names), START, np.zeros(9))
        rng = np.random.default_rng(0)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                message, address = self._socket.recvfrom(100)
                listeners[message] = address
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            for hello, answer in ((JOINT_HELLO, joints), (CAMERA_HELLO, encode_frame(0.0, image))):
                if hello in listeners:
                    self._socket.sendto(answer, listeners[hello])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def test_a_policy_that_dies_ends_the_deployment_after_the_arm_came_to_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a real arm: a human could hold the switch for ever after."""

    class Enough:
        until = time.monotonic() + 20.0
        requested = property(lambda self: time.monotonic() > self.until)

    def run(deployment: Deployment, stop: object) -> list[dict[str, object]]:
        assert deployment.press()
        deployment.policy.popen.kill()
        while deployment.state is not State.LATCHED:
            time.sleep(0.01)
        return run_arm(deployment, Enough())  # type: ignore[arg-type]

    peer = Peer()
    settings = {"kind": "sim", "port": peer.port}
    monkeypatch.setattr(Deployment, "_arm_and_camera", lambda self: (settings, settings))
    monkeypatch.setattr("visuomotor.deploy.run_sim", run)
    out = tmp_path / "deployment"
    try:
        assert run_command(deploy, ["bundle=lifting", "arm=sim", f"out={out}"]) == 2
    finally:
        peer.close()
    assert "error: policy: killed by signal 9" in capfd.readouterr().err
    _, rows = read_log(out / "streamer.log")
    assert rows["sent"].any()
    assert not rows["sent"][-1].any()


def test_a_process_that_ended_says_why() -> None:
    settings = json.dumps({"bundle": "nowhere"})
    refused = Process("policy", ["visuomotor.runtime.processes", "policy", settings])
    crashed = Process("policy", ["visuomotor.runtime.processes", "nobody", "{}"])
    for process in (refused, crashed):
        process.popen.wait(timeout=60.0)
    assert refused.death() == "policy: nowhere is no folder, so no bundle"
    assert crashed.death() == "policy: ended with exit code 1"
