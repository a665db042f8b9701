"""The runtime as a whole: its processes, what they log, and what they need to be installed."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from visuomotor.cli import run_command
from visuomotor.deploy import beyond_training, deploy, trained_delays
from visuomotor.deployment import PRETRAINED, Deployment
from visuomotor.envs import robot
from visuomotor.runtime.arm import JointState
from visuomotor.runtime.arms import KINDS
from visuomotor.runtime.arms.sim import (
    JOINT_HELLO,
    SimArm,
    _Subscription,
    decode_frame,
    decode_velocity,
    encode_frame,
    encode_velocity,
    in_order,
)
from visuomotor.runtime.files import MANIFEST, read_bundle, seal_manifest
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.slots import Slot, command_type, report_type, state_of
from visuomotor.runtime.streamer import SWITCH, Streamer, read_log, run_streamer
from visuomotor.runtime.switches import ByHand, Confirmation, SwitchError, make_switch

ROOT = Path(__file__).parents[1]
START = np.array(robot.START_QPOS, dtype=float)


# --- installation ----------------------------------------------------------------------------


def test_the_arm_s_side_needs_numpy_onnxruntime_opencv_and_safetensors_alone() -> None:
    program = """
import importlib, pkgutil, sys
ALLOWED = {"numpy", "onnxruntime", "cv2", "safetensors", "visuomotor", "flatbuffers"}
BLOCKED = {"torch", "torchvision", "mujoco", "mujoco_warp", "warp", "dm_control", "dm_env", "yaml",
           "gymnasium", "h5py", "onnx", "onnxscript", "matplotlib", "tqdm", "scipy", "tensorboard",
           "plotly", "imageio_ffmpeg", "cyclonedds", "viser", "mjviser"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Blocker())
import visuomotor.runtime
skipped = []
for module in pkgutil.walk_packages(visuomotor.runtime.__path__, "visuomotor.runtime."):
    try:
        importlib.import_module(module.name)
    except Exception as error:
        skipped.append((module.name, str(error)))
print(skipped)
own = [m for m in sys.modules if m.startswith("visuomotor.")]
assert all(m.startswith("visuomotor.runtime") for m in own), own
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    # What speaks ROS 2 says what it needs.
    skipped = eval(done.stdout)
    assert {name.rpartition(".")[2] for name, _ in skipped} == {"dds", "ros2", "jaco2"}
    told = dict(skipped)
    assert "visuomotor[ros2]" in told["visuomotor.runtime.arms.dds"]


def test_installing_it_brings_no_simulator_and_no_learner() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {line.partition(">")[0] for line in project["dependencies"]}
    assert names == {"numpy", "onnxruntime", "opencv-python", "pyyaml", "safetensors"}
    assert project["optional-dependencies"]["runtime"] == []


def test_deploying_loads_neither_torch_nor_mujoco() -> None:
    program = "import sys, visuomotor.deploy; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not set(done.stdout.split()) & {"torch", "mujoco", "warp", "dm_control"}


@pytest.mark.parametrize("arm", KINDS)
def test_the_streamer_s_process_loads_numpy_alone(arm: str) -> None:
    """Each of the others would be one more way to hang or crash what holds the arm."""
    if arm != "sim":
        pytest.importorskip("cyclonedds")
    settings = {"kind": arm, "port": 9, "settings": {}}
    program = f"""
import sys
from visuomotor.runtime import processes
processes.make_arm({settings})
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert {"numpy", "visuomotor.runtime.streamer", f"visuomotor.runtime.arms.{arm}"} <= loaded
    assert not loaded & {"onnxruntime", "cv2", "safetensors", "torch", "mujoco", "yaml"}


# --- the streamer, tick by tick -----------------------------------------------------------------


class FakeArm:
    """Does at once what it is sent."""

    def __init__(self, clock: Callable[[], float]):
        self.limits = LIMITS
        self.position = START.copy()
        self.sent: list[np.ndarray] = []
        self.stopped = False
        self._clock = clock

    def connect(self) -> None: ...

    def read(self) -> JointState | None:
        return JointState(self.position.copy(), np.zeros(9), self._clock())

    def send(self, velocity: np.ndarray) -> None:
        self.sent.append(velocity.copy())
        self.position = self.position + 0.01 * velocity

    def stop(self) -> None:
        self.stopped = True


class Bench:
    """A streamer whose clock is played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: Path | None):
        self.now = 50.0
        monkeypatch.setattr("visuomotor.runtime.streamer.time.monotonic", lambda: self.now)
        monkeypatch.setattr("visuomotor.runtime.streamer.time.sleep", self._pass)
        self.slots = [Slot.create(t) for t in (command_type(9), report_type(9), SWITCH)]
        self.arm = FakeArm(lambda: self.now)
        self.streamer = Streamer(self.arm, *self.slots, log_path=log)
        self.pressed = False
        self.wanted = 0.2  # rad/s

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def run(self, ticks: int, command: bool = True) -> State:
        for _ in range(ticks):
            self.now += 0.01
            switch = np.zeros((), SWITCH)
            switch["pressed"], switch["stamp"] = int(self.pressed), self.now
            self.slots[2].write(switch)
            if command:
                value = np.zeros((), command_type(9))
                value["velocity"] = self.wanted
                for name in ("stamp", "frame_stamp", "used_frame_stamp", "used_joint_stamp"):
                    value[name] = self.now
                self.slots[0].write(value)
            self.streamer.tick()
        report = self.slots[1].read()[1]
        assert report is not None
        return state_of(report)

    def close(self) -> None:
        for slot in self.slots:
            slot.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    bench = Bench(monkeypatch, tmp_path / "streamer.log")
    yield bench
    bench.close()


def test_the_streamer_sends_what_is_commanded_and_logs_it(bench: Bench, tmp_path: Path) -> None:
    assert bench.run(20) is State.LATCHED
    assert not np.any(bench.arm.sent)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    assert bench.arm.sent[-1] == pytest.approx(0.2)
    bench.streamer.leave()
    assert bench.arm.stopped
    assert not bench.arm.sent[-1].any()
    names, rows = read_log(tmp_path / "streamer.log")
    assert names == LIMITS.joint_names
    assert len(rows) == len(bench.arm.sent)
    assert np.array_equal(rows["sent"], np.array(bench.arm.sent))
    assert rows["requested"][-1] == pytest.approx(0.2)


def test_a_switch_that_is_no_longer_confirmed_is_a_switch_let_go(bench: Bench) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    before = bench.now
    value = np.zeros((), SWITCH)
    value["pressed"], value["stamp"] = 1, before
    for _ in range(60):  # whoever held it is gone; its last word stays in memory
        bench.slots[2].write(value)
        bench.now += 0.01
        bench.streamer.tick()
    assert bench.streamer.guard.state is State.LATCHED
    assert not bench.arm.sent[-1].any()
    bench.pressed = True  # it is back, and was held all the time
    assert bench.run(100) is State.LATCHED
    assert not np.any(bench.arm.sent[-100:])


class Failing:
    """Raises at the first `times` calls, and does what it stands for from then on."""

    def __init__(self, action: Callable[..., object], times: float, told: str = "broken"):
        self.action, self.left, self.told = action, times, told

    def __call__(self, *arguments: object) -> object:
        self.left -= 1
        if self.left >= 0:
            raise RuntimeError(self.told)
        return self.action(*arguments)


@pytest.mark.parametrize(
    ("broken", "times"),
    [
        *[("read", np.inf), ("read", 1), ("report", np.inf), ("report", 1)],
        *[("send", 1), ("send", 30), ("send", 99), ("stop", 1)],
    ],
)
@pytest.mark.parametrize("wanted", [0.2, 0.6])
def test_a_streamer_that_fails_brings_the_arm_to_rest_all_the_same(
    bench: Bench,
    broken: str,
    times: float,
    wanted: float,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At a constant speed, and while it speeds up."""
    bench.run(20)
    bench.pressed = True
    bench.wanted = wanted
    assert bench.run(50 if wanted == 0.2 else 8) is State.RUNNING
    target = bench.slots[1] if broken == "report" else bench.arm
    name = "write" if broken == "report" else broken
    monkeypatch.setattr(target, name, Failing(getattr(target, name), times))
    if broken == "stop":  # after something else, which is what is to be told
        monkeypatch.setattr(bench.arm, "read", Failing(bench.arm.read, 1, "broken before"))
    begin, before = bench.now, len(bench.arm.sent)
    with pytest.raises(RuntimeError, match="broken before" if broken == "stop" else "broken"):
        run_streamer(bench.streamer, lambda: False)
    assert bench.arm.stopped is (broken != "stop")
    assert bench.streamer._log is not None
    assert bench.streamer._log._file.closed
    sent = np.array(bench.arm.sent)
    moving = sent.any(axis=1).nonzero()[0][-1] + 1
    assert 20 <= len(sent) - moving <= 24, "0.2 s of zeros behind it"
    assert (np.abs(np.diff(sent, axis=0)) / 0.01 <= LIMITS.acceleration + 1e-9).all()
    failed = 0.01 * min(times, 99) if broken == "send" else 0.0
    assert bench.now - begin == pytest.approx(0.01 * (len(sent) - before) + failed, abs=0.03), (
        "a message a tick"
    )
    assert ("look whether the arm rests" in capsys.readouterr().err) is (broken == "stop")


def test_sends_that_fail_on_the_way_only_delay_the_stop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.streamer._log is not None
    bench.streamer._log.close()
    bench.streamer._log = None  # of two stops
    bench.run(20)
    bench.pressed = True
    bench.wanted = 0.6
    assert bench.run(50) is State.RUNNING
    before = len(bench.arm.sent)
    bench.streamer.leave()
    stop = np.array(bench.arm.sent[before:])
    ramp = int(stop.any(axis=1).sum())
    assert ramp > 8
    bench.arm.position = START.copy()
    bench.pressed = False
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    bench.arm.sent.clear()
    calls = 0
    send = bench.arm.send

    def flaky(velocity: np.ndarray) -> None:
        nonlocal calls
        calls += 1
        if calls in (3, 4, 7) or calls == ramp + 15:  # the last: while zeros are sent
            raise RuntimeError("broken")
        send(velocity)

    monkeypatch.setattr(bench.arm, "send", flaky)
    bench.streamer.leave()
    sent = np.array(bench.arm.sent)
    assert np.array_equal(sent[: ramp + 1], stop[: ramp + 1]), "the same ramp"
    assert len(sent) - (ramp + 15 - 4) >= 20, "0.2 s of zeros once more"


@pytest.mark.parametrize("original", [True, False])
def test_a_send_that_never_works_again_is_given_up_and_told(
    bench: Bench,
    original: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    monkeypatch.setattr(bench.arm, "send", Failing(bench.arm.send, np.inf))
    begin = bench.now
    if original:
        with pytest.raises(RuntimeError, match="broken"):
            run_streamer(bench.streamer, lambda: False)
    else:
        run_streamer(bench.streamer, lambda: True)
    assert bench.now - begin == pytest.approx(1.0, abs=0.05)
    assert bench.arm.stopped
    assert bench.streamer._log is not None
    assert bench.streamer._log._file.closed
    assert "look whether the arm rests: RuntimeError: broken" in capsys.readouterr().err


def test_a_log_that_cannot_be_told_of_does_not_hide_what_went_wrong(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run(20)
    assert bench.streamer._log is not None
    bench.streamer._log.lost = 1
    monkeypatch.setattr(bench.arm, "read", Failing(bench.arm.read, 1))
    with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as terminal:
        terminal.setattr("sys.stderr", io.TextIOWrapper(full, write_through=True))
        with pytest.raises(RuntimeError, match="broken"):
            run_streamer(bench.streamer, lambda: False)
    assert bench.arm.stopped


def test_a_stop_that_fails_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run(20)
    bench.arm.stop = Failing(bench.arm.stop, 1)  # type: ignore[method-assign]
    bench.streamer.leave()
    assert "RuntimeError: broken" in capsys.readouterr().err
    assert bench.streamer._log is not None
    assert bench.streamer._log._file.closed


def test_a_full_disk_ends_the_log_and_not_the_control(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run(20)
    log = bench.streamer._log
    assert log is not None
    with open("/dev/full", "wb", buffering=0) as full:
        log._file = full
        bench.pressed = True
        assert bench.run(50) is State.RUNNING
        bench.streamer.leave()
    assert bench.arm.stopped
    assert "No space left" in log.broken
    assert "the log ends here" in capsys.readouterr().err


def test_a_streamer_that_was_held_up_does_not_trust_itself(bench: Bench) -> None:
    bench.run(20)
    bench.pressed = True
    assert bench.run(50) is State.RUNNING
    bench.now += 0.3
    bench.run(60)
    assert bench.streamer.guard.state is State.LATCHED
    assert "held up for 300 ms" in bench.streamer.guard.reason


def test_a_log_that_was_cut_off_is_read_up_to_there(bench: Bench, tmp_path: Path) -> None:
    bench.run(20)
    bench.streamer.leave()
    path = tmp_path / "streamer.log"
    whole = len(read_log(path)[1])
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_log(path)[1]) == whole - 1
    (tmp_path / "other").write_bytes(b"{}\n123")
    with pytest.raises(ValueError, match="no log"):
        read_log(tmp_path / "other")


# --- messages and switches ------------------------------------------------------------------------


def test_messages_that_were_cut_off_are_none() -> None:
    velocity = np.arange(9) / 3
    assert (decode_velocity(encode_velocity(velocity)) == velocity).all()
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
    assert (decode_frame(encode_frame(1.0, image)) == image).all()
    assert decode_velocity(encode_velocity(velocity)[:-1]) is None
    assert decode_frame(encode_frame(1.0, image)[:-1]) is None
    assert decode_frame(b"") is None


def test_an_arm_that_is_gone_is_no_error_and_a_computer_that_cannot_send_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arm = SimArm(port)
    arm._subscription = subscription = _Subscription(port, JOINT_HELLO)
    for _ in range(5):  # the second and later ones are refused
        arm.send(np.zeros(9))
    broken = SimpleNamespace(send=Failing(lambda message: None, 1), close=subscription.socket.close)
    monkeypatch.setattr(subscription, "socket", broken)
    with pytest.raises(RuntimeError, match="broken"):
        arm.stop()
    assert arm._subscription is None


def test_joints_are_put_in_order_by_name() -> None:
    assert in_order(["b", "x", "a"], ("a", "b"), [1.0, 9.0, 2.0])[0].tolist() == [2.0, 1.0]
    assert in_order(["a"], ("a", "b"), [1.0]) is None
    assert in_order(["a", "a", "b"], ("a", "b"), [1.0, 2.0, 3.0]) is None
    assert in_order(["a", "b"], ("a", "b"), [1.0]) is None


def test_the_switch_is_told_in_the_background_and_let_go_at_the_end() -> None:
    slot, switch = Slot.create(SWITCH), ByHand()
    confirmation = Confirmation(switch, slot)
    try:
        for down in (False, True, False):
            switch.down = down
            count = slot.read()[0]
            while slot.read()[0] < count + 2:
                pass
            assert int(slot.read()[1]["pressed"]) == int(down)
        # The time is up while the human still holds it: no press for a new start, and no release.
        for down, told in ((True, -1), (True, -1), (False, 0), (True, 1)):
            switch.down = down
            confirmation.let_go = confirmation.let_go or told == -1
            count = slot.read()[0]
            while slot.read()[0] < count + 2:
                pass
            assert int(slot.read()[1]["pressed"]) == told
    finally:
        confirmation.close()
        slot.close()


@pytest.mark.parametrize("name", ["joystick", "joystick:/dev/input/none", "foot", "space:1"])
def test_a_switch_that_is_not_there_is_one_clear_error(name: str) -> None:
    with pytest.raises(SwitchError, match="switch="):
        make_switch(name)


# --- all of it -----------------------------------------------------------------------------------


def test_an_episode_on_the_simulated_arm_is_run_and_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three processes by the clock of this machine; how well it went is not judged here."""
    out = tmp_path / "deployment"
    argv = ["bundle=lifting", "arm=sim", "episodes=1", "episode_seconds=1", f"out={out}"]
    assert run_command(deploy, argv) == 0
    result = json.loads((out / "deployment.json").read_text())
    assert result["episodes"] == 1
    assert result["task"] == "lifting"
    _, rows = read_log(out / "streamer.log")
    assert len(rows) > 50
    sent, latched = rows["sent"], rows["state"] == State.LATCHED.value
    assert (np.abs(sent) <= LIMITS.velocity + 1e-9).all()
    assert not sent[latched][1:].any()
    assert not sent[-1].any()
    assert "log and summary" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "bundle= is missing"),
        (["bundle=nowhere"], "bundle=nowhere"),
        (["bundle=lifting", "arm=ur5"], "sim, ros2, jaco2"),
        (["bundle=lifting", "arm=ros2"], "needs camera="),
        (["bundle=lifting", "episodes=0"], "episodes=0"),
        (["bundel=lifting"], "bundle"),
        (["bundle=lifting", f"out={__file__}"], "cannot be a folder"),
        (["bundle=lifting", "lens=nowhere.yaml"], "lens=nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    argv: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(deploy, argv) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


TRAINED = {"trained": True, "camera_delay_s": [0.0, 0.1], "action_delay_s": [0.0, 0.05]}


def test_what_was_later_than_in_training_is_told_and_nothing_else() -> None:
    trained = trained_delays({"latency": TRAINED})
    on_time = {"frame_to_decision_ms_p99": 100.0, "decision_to_sent_ms_p99": 11.0}
    assert beyond_training(on_time, trained) == []
    assert beyond_training({}, trained) == [], "nothing ran, so nothing was late"
    told = beyond_training(on_time | {"frame_to_decision_ms_p99": 104.0}, trained)
    assert told == [
        "frame_to_decision: 99 % within 104 ms, but the policy was trained for at most 100 ms "
        "(camera_delay_s)"
    ]
    told = beyond_training(on_time | {"decision_to_sent_ms_p99": 60.0}, trained)
    assert len(told) == 1
    assert told[0].endswith("at most 50 ms (action_delay_s)")


def test_a_policy_that_was_trained_without_delays_was_trained_for_none() -> None:
    trained = trained_delays({"latency": TRAINED | {"trained": False}})
    late = {"frame_to_decision_ms_p99": 20.0, "decision_to_sent_ms_p99": 11.0}
    told = beyond_training(late, trained)
    assert len(told) == 2
    assert all("trained for at most 0 ms" in line for line in told)


@pytest.mark.parametrize("latency", [None, {}, {"trained": True, "camera_delay_s": [0.0]}, "none"])
def test_a_bundle_that_does_not_tell_its_delays_is_refused_at_the_start(
    latency: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest, files = read_bundle(PRETRAINED / "lifting")
    del manifest["latency"]
    if latency is not None:
        manifest["latency"] = latency
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, content in (files | {MANIFEST: seal_manifest(manifest, files)}).items():
        (bundle / name).write_bytes(content)
    monkeypatch.setattr(Deployment, "__enter__", None)  # nothing may be started
    out = tmp_path / "out"
    assert run_command(deploy, [f"bundle={bundle}", "arm=sim", f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert "policy.json: latency: expected camera_delay_s" in error
    assert error.count("\n") == 1
    assert not out.exists()
