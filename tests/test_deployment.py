"""The processes around an arm: what they are started with, when episodes begin and end, and what
becomes of a deployment when one of them dies."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from visuomotor.calibrate import save_calibration
from visuomotor.cli import run_command
from visuomotor.config import CameraConfig, Config
from visuomotor.deploy import deploy, live_line, run_arm
from visuomotor.deployment import (
    LOG,
    PRETRAINED,
    DeployConfig,
    Deployment,
    Process,
    check_lens,
    simulated_camera,
    start_of,
)
from visuomotor.envs import VisuomotorEnv, robot
from visuomotor.errors import UserError
from visuomotor.evaluation import evaluation_env
from visuomotor.overrides import parse_overrides
from visuomotor.runtime import processes
from visuomotor.runtime.arms.sim import CAMERA_HELLO, JOINT_HELLO, encode_frame, encode_joints
from visuomotor.runtime.cameras import Capture
from visuomotor.runtime.errors import BundleError, CameraError
from visuomotor.runtime.files import MANIFEST, read_bundle, seal_manifest
from visuomotor.runtime.guard import RELEASED, Start, State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.lens import Calibration
from visuomotor.runtime.preprocessing import Lens, simulated_matrix
from visuomotor.runtime.processes import make_camera
from visuomotor.runtime.slots import report_type
from visuomotor.runtime.streamer import ASKED, ENDINGS, TIME_UP, read_log
from visuomotor.runtime.switches import ByHand
from visuomotor.sim_arm import SimArmConfig, make_world

START = np.array(robot.START_QPOS, dtype=float)
STREAMER = {
    "arm": {"kind": "sim"},
    "slots": {"command": "-", "report": "-", "switch": "-"},
    "log": None,
    "camera_period": 0.05,
}


class Peer:
    """A simulated arm that stands still, and a camera before it; started in no time."""

    def __init__(self, position: np.ndarray = START) -> None:
        """position: (9,) rad."""
        self.position = position
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(0.01)
        self.port = self._socket.getsockname()[1]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        listeners: dict[bytes, tuple[str, int]] = {}
        rng = np.random.default_rng(0)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                message, address = self._socket.recvfrom(100)
                listeners[message] = address
            image = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            names = list(LIMITS.joint_names)
            joints = encode_joints(0.0, names, self.position, np.zeros(9))
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

    def run(deployment: Deployment, stop: object) -> Iterator[dict[str, object]]:
        yield {"episode": 0, "success": True}
        assert deployment.press()
        deployment.policy.popen.kill()
        while deployment.state is not State.LATCHED:
            time.sleep(0.01)
        yield from run_arm(deployment, Enough())  # type: ignore[arg-type]

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
    result = json.loads((out / "deployment.json").read_text())
    assert result["error"] == "policy: killed by signal 9"
    assert result["rows"] == [{"episode": 0, "success": True}], "what there was until then"
    _, rows = read_log(out / "streamer.log")
    assert rows["sent"].any()
    assert not rows["sent"][-1].any()


def test_a_process_that_ended_says_why() -> None:
    slots = {"command": "-", "report": "-"}
    told = {"bundle": "nowhere", "camera": {"kind": "sim"}, "lens": None, "slots": slots}
    refused = Process("policy", ["-m", "visuomotor.runtime.processes", "policy", json.dumps(told)])
    crashed = Process("policy", ["-m", "visuomotor.runtime.nowhere"])
    for process in (refused, crashed):
        process.popen.wait(timeout=60.0)
    assert refused.death() == "policy: nowhere is no folder, so no bundle"
    assert crashed.death() == "policy: ended with exit code 1"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "expected streamer or policy and its settings"),
        (["policy"], "expected streamer or policy and its settings"),
        (["nobody", "{}"], "expected streamer or policy and its settings"),
        (["policy", "{}", "more"], "expected streamer or policy and its settings"),
        (["policy", "{"], "no JSON"),
        (["policy", "[]"], "bundle is missing"),
        (["policy", '{"bundle": "x"}'], "camera.kind is missing"),
        (["policy", '{"bundle": "x", "camera": "sim"}'], "camera.kind is missing"),
        (["streamer", "{}"], "arm.kind is missing"),
        (["streamer", '{"arm": {"kind": "sim"}, "slots": {}}'], "slots.command is missing"),
        (["streamer", json.dumps(STREAMER)], "start is missing"),
    ],
)
def test_a_process_that_is_started_otherwise_says_so_in_one_line(
    argv: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert processes.main(argv) == 2
    said, errors = capsys.readouterr()
    assert said.count("\n") == 1
    assert told in json.loads(said)["error"]
    assert errors == ""


# --- a human's episodes -------------------------------------------------------------------------


class Played(Deployment):
    """A deployment whose clock, human and streamer are played; the arm rests at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, holds: list[tuple[float, float]]):
        """holds: s, from when until when the human holds the switch."""
        self.config = DeployConfig(bundle="-", arm="ros2", camera="0", episodes=len(holds))
        self.contract = SimpleNamespace(episode_s=5.0)  # type: ignore[assignment]
        self.confirmation = SimpleNamespace(ending=None)  # type: ignore[assignment]
        self.switch = ByHand()
        self.now, self.holds = 0.0, holds
        self.start: Start | None = None
        self.position = START.copy()
        self.running = self.released = False
        self.why = "not armed yet"
        self.spans: list[list[float]] = []  # s, from when until when the arm ran
        monkeypatch.setattr("visuomotor.deployment.time.monotonic", lambda: self.now)
        monkeypatch.setattr("visuomotor.deployment.time.sleep", self._pass)

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def report(self) -> np.ndarray:
        value = np.zeros((), report_type(9))
        value["position"], value["joint_stamp"] = self.position, 1.0 + self.now
        return value

    def check_alive(self) -> None:
        assert self.now < 100.0, "an episode without end"

    @property
    def state(self) -> State:
        held = any(begin <= self.now < end for begin, end in self.holds)
        told = self.confirmation
        if not held:
            told.ending = None  # as `Confirmation` does
        pressed = held and told.ending is None
        if pressed and self.released and not self.running and not self.off_start():
            self.running, self.released = True, False
            self.spans.append([self.now, np.nan])
        elif self.running and not pressed:
            self.running, self.spans[-1][1] = False, self.now
            self.why = RELEASED if told.ending is None else ENDINGS[told.ending]
        self.released = self.released or not held
        return State.RUNNING if self.running else State.LATCHED

    @property
    def reason(self) -> str:
        return self.why


class Never:
    requested = False


def test_an_episode_ends_when_its_time_is_up_or_the_human_lets_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first is held through its end, which is no press for the next; the second is short."""
    deployment = Played(monkeypatch, [(1.0, 9.0), (12.0, 14.0)])
    rows = list(run_arm(deployment, Never()))  # type: ignore[arg-type]
    assert deployment.spans[0] == pytest.approx([1.0, 6.0], abs=0.05)
    assert deployment.spans[1] == pytest.approx([12.0, 14.0], abs=0.05)
    assert [row["stopped"] for row in rows] == [ENDINGS[TIME_UP], RELEASED]
    told = capsys.readouterr().err
    assert "hold the switch to start" in told
    assert "episode 2: running for 5 s" in told
    assert f"episode 1: {ENDINGS[TIME_UP]}\n" in told
    assert told.endswith(f"episode 2: {RELEASED}\n"), "nothing hides why the last one ended"


def test_a_human_is_told_to_bring_the_arm_to_its_start_for_every_episode(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment = Played(monkeypatch, [(1.0, 9.0), (12.0, 13.0), (16.0, 20.0)])
    deployment.config = replace(deployment.config, episodes=2)
    deployment.start = Start(START, 0.2)
    told: dict[str, list[str]] = {"at the start": [], "away": []}
    passes = deployment._pass

    def moved(seconds: float) -> None:
        passes(seconds)
        away = 6.0 < deployment.now < 15.0  # from the first episode's end until a human moves it
        deployment.position[[2, 4]] = START[[2, 4]] + (np.array([-0.3, 0.25]) if away else 0.0)
        lines = capsys.readouterr().err.splitlines()
        told["away" if away else "at the start"] += lines

    monkeypatch.setattr("visuomotor.deployment.time.sleep", moved)
    assert len(list(run_arm(deployment, Never()))) == 2  # type: ignore[arg-type]
    assert deployment.spans[0] == pytest.approx([1.0, 6.0], abs=0.05)
    assert deployment.spans[1] == pytest.approx([16.0, 20.0], abs=0.05)
    line = (
        f"jaco_arm/joint_3 is at {START[2] - 0.3:.3f} rad, 0.300 from the start's "
        f"{START[2]:.3f}, at most 0.2 are allowed; move it by +0.300 rad (+17 degrees), or say "
        "start_tolerance=none"
    )
    assert told["away"].count(line) == 1, "once, and not twice a second"
    assert sum(line.startswith("jaco_arm/joint_5 is at") for line in told["away"]) == 1
    assert "latched: jaco_arm/joint_3, jaco_arm/joint_5 off the start" in "\n".join(told["away"])
    assert not any("off the start" in line for line in told["at the start"])
    assert any("hold the switch to start" in line for line in told["at the start"][-5:])


def test_a_human_who_asks_to_stop_gets_no_further_episode(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Played(monkeypatch, [(1.0, 4.0), (5.0, 90.0)])

    class AfterTheFirst:
        requested = property(lambda self: deployment.now > 5.5)

    rows = list(run_arm(deployment, AfterTheFirst()))  # type: ignore[arg-type]
    assert [row["stopped"] for row in rows] == [RELEASED, ENDINGS[ASKED]]
    assert deployment.spans[1] == pytest.approx([5.0, 5.5], abs=0.1)
    assert deployment.state is State.LATCHED


def test_the_streamer_arms_no_arm_away_from_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes themselves, whatever deploy tells a human."""
    turned = START.copy()
    turned[3] += 2 * np.pi  # as good as none
    away = turned.copy()
    away[1] += 0.45
    peer = Peer(away)
    settings = {"kind": "sim", "port": peer.port}
    monkeypatch.setattr(Deployment, "_arm_and_camera", lambda self: (settings, settings))
    try:
        deployment = unstarted(arm="sim")
        deployment.out = tmp_path
        with deployment:
            assert not deployment.press()
            assert "joint_2 is 0.4" in deployment.reason, "the start is the bundle's"
            assert "rad from the start" in deployment.reason
            assert list(deployment.off_start()) == ["jaco_arm/joint_2"]
            peer.position = turned
            deadline = time.monotonic() + 20.0
            while deployment.off_start():
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        peer.close()


def test_the_start_of_a_bundle_is_on_the_turn_of_the_arm_s_joints() -> None:
    told = unstarted(arm="sim").contract
    # As golden episodes tell it, where policy.json does not: by sines and cosines.
    wrapped = np.arctan2(np.sin(START), np.cos(START))
    contract = told._replace(start=wrapped)
    start = start_of(contract, 0.2)
    assert start is not None
    assert start.tolerance == 0.2
    assert wrapped[1] < 0.0 < LIMITS.position_low[1] < start.position[1]
    assert start.position == pytest.approx(START)
    assert start_of(contract, None) is None
    assert start_of(told, 0.3).position.tolist() == START.tolist()  # type: ignore[union-attr]
    wrong = START.copy()
    wrong[2] = 6.3
    with pytest.raises(BundleError, match=r"joint_3 at 6\.300 rad is beyond its limits, 0\.332"):
        start_of(contract._replace(start=wrong), 0.2)


LINES = (
    (False, "one\nstays\ntwo\n"),
    (True, "\r\x1b[Kone\r\x1b[Kstays\n\r\x1b[Ktwo\n"),
)


def test_the_line_of_progress_is_written_over_on_a_terminal_alone(tmp_path: Path) -> None:
    path = tmp_path / "told"
    for isatty, expected in LINES:
        with open(path, "w") as stream:
            stream.isatty = lambda isatty=isatty: isatty  # type: ignore[method-assign]
            with live_line(stream) as show:
                show("one")
                show("stays", stays=True)
                show("two")
        assert path.read_bytes().decode() == expected


# --- what is started, and with what -------------------------------------------------------------


def unstarted(**changed: Any) -> Deployment:
    return Deployment(DeployConfig(bundle="lifting", **changed), Path("unused"))


def test_an_arm_and_a_camera_are_started_with_what_the_user_said(tmp_path: Path) -> None:
    pytest.importorskip("cyclonedds")
    said = tmp_path / "arm.yaml"
    said.write_text("domain: 7\nnetwork: eth0\njoint_states: /states\n")
    common = {"arm": "ros2", "arm_config": str(said)}
    arm, camera = unstarted(**common, camera="2", camera_rate=15.0)._arm_and_camera()
    assert arm["kind"] == "ros2"
    assert arm["settings"]["joint_states"] == "/states"
    assert camera == {"kind": "capture", "source": "2", "rate": 15.0}
    _, camera = unstarted(**common, camera="topic:/image")._arm_and_camera()
    assert camera == {"kind": "ros2", "topic": "/image", "domain": 7, "network": "eth0"}


ELSEWHERE = CameraConfig(pos=(0.1, -0.6, 0.7), lookat=(0.0, 0.05, 0.1), fovy=36.0)


def picture(env: VisuomotorEnv) -> np.ndarray:
    """(H, W, 3) uint8 at the start of an episode."""
    pixels = env.restart(torch.tensor([3])).pixels
    assert pixels is not None
    return pixels[0].permute(1, 2, 0).numpy()


def test_the_simulated_arm_s_camera_is_that_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, files = read_bundle(PRETRAINED / "lifting")
    manifest["camera"] |= {
        "pos_w_m": list(ELSEWHERE.pos),
        "lookat_w_m": list(ELSEWHERE.lookat),
        "fovy_deg": ELSEWHERE.fovy,
    }
    for name, content in (files | {MANIFEST: seal_manifest(manifest, files)}).items():
        (tmp_path / name).write_bytes(content)
    said: list[str] = []

    class Told:
        def __init__(self, name: str, arguments: list[str]):
            said.extend(arguments)

        line = staticmethod(lambda: {"port": 1})
        end = staticmethod(list)

    monkeypatch.setattr("visuomotor.deployment.Process", Told)
    deployment = Deployment(DeployConfig(bundle=str(tmp_path), arm="sim"), Path("unused"))
    deployment._arm_and_camera()
    assert said[:2] == ["-m", "visuomotor.sim_arm"]
    seen = picture(make_world(parse_overrides(said[2:], SimArmConfig)))
    config = Config(task="lifting", camera=ELSEWHERE)
    device = torch.device("cpu")
    there = evaluation_env(config, num_envs=1, seed=0, strength=0.0, device=device)
    assert (seen == picture(there)).all()
    assert (seen != picture(make_world(SimArmConfig()))).any()


def test_a_bundle_s_camera_is_taken_whole_or_refused(manifest: dict[str, Any]) -> None:
    assert simulated_camera(manifest) == CameraConfig()
    camera = manifest["camera"] | {"height": 80, "width": 96}
    assert simulated_camera({"camera": camera}) == CameraConfig(height=80, width=96)
    for wrong, told in (
        ({"pos_w_m": None}, "pos_w_m and lookat_w_m of three numbers each"),
        ({"lookat_w_m": [0.0, 0.1]}, "three numbers each"),
        ({"pos_w_m": [0.0, 0.1, 11.0]}, "valid: from -10 up to 10"),
        ({"height": 148, "width": 148}, "147x147 pixels, not 148x148"),
    ):
        with pytest.raises(BundleError, match=told):
            simulated_camera({"camera": camera | wrong})


def test_the_guard_s_patience_is_that_of_the_camera_that_is_used() -> None:
    assert unstarted(arm="sim", camera_rate=7.0).camera_rate == 20.0, "its own"
    for rate in (5.0, 30.0):
        assert unstarted(arm="sim", camera="0", camera_rate=rate).camera_rate == rate


def test_a_camera_slower_than_the_policy_s_images_is_refused() -> None:
    with pytest.raises(UserError, match="camera_rate=4: the policy takes 5 images a second"):
        unstarted(arm="sim", camera="0", camera_rate=4.0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("domian: 1", "domian"),
        ("mode: force", "mode"),
        ("workspace_low: [0.0, 0.0, 0.6]", "workspace_high"),
        ("signs: [1, 1]", "signs: expected 9"),
        ("domain: [", "no valid YAML"),
        (None, "cannot read settings"),
    ],
)
def test_an_arm_s_settings_that_cannot_be_are_refused_before_anything_is_made(
    content: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cyclonedds")
    said, out = tmp_path / "arm.yaml", tmp_path / "out"
    if content is not None:
        said.write_text(content)
    argv = ["bundle=lifting", "arm=ros2", "camera=0", "lens=simulated", f"out={out}"]
    argv.append(f"arm_config={said}")
    assert run_command(deploy, argv) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_camera_is_made_of_its_settings(tmp_path: Path) -> None:
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter.fourcc(*"MJPG"), 30.0, (64, 48))
    writer.write(np.full((48, 64, 3), 200, np.uint8))
    writer.release()
    camera = make_camera({"kind": "capture", "source": str(film), "rate": 30.0})
    assert isinstance(camera, Capture)
    image = camera.read()
    camera.close()
    assert image is not None
    assert image.shape == (48, 64, 3)
    assert image.mean() == pytest.approx(200, abs=3)
    with pytest.raises(CameraError, match="unknown kind eye"):
        make_camera({"kind": "eye"})


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return read_bundle(PRETRAINED / "lifting")[0]


def calibration(manifest: dict[str, Any]) -> Calibration:
    """Of a camera that stands where the policy's does, and sees a little more."""
    camera = manifest["camera"]
    fovy = camera["fovy_deg"]
    lens = Lens(640, 480, simulated_matrix(480, 640, fovy + 2.0), np.zeros(5))
    pos, lookat = np.array(camera["pos_w_m"]), np.array(camera["lookat_w_m"])
    return Calibration(lens, {}, pos, lookat, fovy)


def test_a_camera_near_the_place_of_training_is_taken(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    path, right = tmp_path / "camera.yaml", calibration(manifest)
    for near in (
        right,
        right._replace(pos=right.pos + np.array([0.0, 0.02, 0.02])),
        right._replace(fovy=right.fovy + 1.5),
        Calibration(right.lens, {}),  # no place is known
    ):
        save_calibration(path, near)
        check_lens(str(path), manifest)


def test_a_camera_that_sees_something_else_is_refused(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    path, right = tmp_path / "camera.yaml", calibration(manifest)
    narrow = right.lens._replace(matrix=simulated_matrix(480, 640, right.fovy / 2))
    turned = right.lens._replace(rectification=cv2.Rodrigues(np.array([0.0, 0.2, 0.0]))[0])
    aside = np.array([0.04, 0.0, 0.0])
    for wrong, told in (
        (right._replace(pos=right.pos + aside), "pos is 4.0 cm"),
        (right._replace(lookat=right.lookat + aside), "lookat is 4.0 cm"),
        (right._replace(fovy=right.fovy - 3.0), "calibrated for"),
        (right._replace(lens=narrow), "sees 32 %"),
        (right._replace(lens=turned), "of what the policy's camera sees"),
    ):
        save_calibration(path, wrong)
        with pytest.raises(UserError, match=told):
            check_lens(str(path), manifest)


@pytest.mark.parametrize("entry", ["pos_w_m", "lookat_w_m"])
@pytest.mark.parametrize("value", [None, "front", [0.0, 0.1], [0.0, "up", 0.8], [0.0, 11.0, 0.8]])
def test_a_bundle_that_does_not_tell_where_its_camera_was_is_one_line_with_a_real_arm(
    entry: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cyclonedds")
    manifest, files = read_bundle(PRETRAINED / "lifting")
    lens, out = tmp_path / "camera.yaml", tmp_path / "out"
    save_calibration(lens, calibration(manifest))
    del manifest["camera"][entry]
    if value is not None:
        manifest["camera"][entry] = value
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, content in (files | {MANIFEST: seal_manifest(manifest, files)}).items():
        (bundle / name).write_bytes(content)
    argv = [f"bundle={bundle}", "arm=ros2", "camera=0", f"lens={lens}", f"out={out}"]
    assert run_command(deploy, argv) == 2
    error = capsys.readouterr().err
    assert f"bundle={bundle}: policy.json: camera: expected" in error
    assert "pos_w_m and lookat_w_m of three numbers each" in error
    assert "export the policy again" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_a_start_that_fails_ends_what_had_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no arm: the streamer says so, and the policy's process does not stay behind."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        settings = {"kind": "sim", "port": silent.getsockname()[1]}
        monkeypatch.setattr(Deployment, "_arm_and_camera", lambda self: (settings, settings))
        deployment = unstarted(arm="sim")
        deployment.out = tmp_path
        with pytest.raises(UserError, match="streamer: no simulated arm"):
            deployment.__enter__()
    for process in (deployment.streamer, deployment.policy):
        assert process.popen.poll() is not None


def test_a_log_that_cannot_be_begun_is_one_line_of_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LOG).symlink_to("/dev/full")
    peer = Peer()
    settings = {"kind": "sim", "port": peer.port}
    monkeypatch.setattr(Deployment, "_arm_and_camera", lambda self: (settings, settings))
    deployment = unstarted(arm="sim")
    deployment.out = tmp_path
    try:
        with pytest.raises(UserError, match=r"streamer: .*cannot be written: No space left"):
            deployment.__enter__()
    finally:
        peer.close()
    assert capfd.readouterr().err == ""
