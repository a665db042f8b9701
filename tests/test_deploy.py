"""The runtime as a whole: its processes, what they log, and what they need to be installed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.failing import Failing
from visuomotor.cli import run_command
from visuomotor.deploy import beyond_guard, beyond_training, deploy, trained_delays
from visuomotor.deployment import PRETRAINED, Deployment
from visuomotor.factors import Distributions, Factor
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
from visuomotor.runtime.errors import BundleError
from visuomotor.runtime.files import MANIFEST, read_bundle, seal_manifest
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.slots import Slot
from visuomotor.runtime.streamer import SWITCH, TIME_UP, read_log
from visuomotor.runtime.switches import ByHand, Confirmation, SwitchError, make_switch

ROOT = Path(__file__).parents[1]


# --- installation ----------------------------------------------------------------------------


def test_the_arm_s_side_needs_numpy_onnxruntime_opencv_and_safetensors_alone() -> None:
    program = """
import importlib, pkgutil, sys
# What these import of their own is standard library: none of onnxruntime's other requirements
# (flatbuffers, protobuf, packaging) is loaded.
ALLOWED = {"visuomotor", "numpy", "onnxruntime", "cv2", "safetensors"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "cyclonedds":  # which visuomotor[ros2] brings
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)
sys.meta_path.insert(0, Blocker())
before = set(sys.modules)  # of the interpreter itself: what an environment's .pth files load
import visuomotor.runtime
skipped = []
for module in pkgutil.walk_packages(visuomotor.runtime.__path__, "visuomotor.runtime."):
    try:
        importlib.import_module(module.name)
    except Exception as error:
        skipped.append((module.name, str(error)))
print(skipped)
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
foreign = loaded - sys.stdlib_module_names - {"__mp_main__"}  # multiprocessing's name of __main__
assert foreign == ALLOWED, foreign
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
    assert names == {"numpy", "onnxruntime", "opencv-python-headless", "pyyaml", "safetensors"}
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
    (found,) = in_order(["b", "x", "a"], ("a", "b"), position=[1.0, 9.0, 2.0])
    assert found.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("names", "position", "velocity", "told"),
    [
        ("xb", [1.0, 2.0], [1.0, 2.0], "a, c missing among the names x, b"),
        ("aabc", [1.0] * 4, [1.0] * 4, "a stands twice"),
        ("abc", [1.0] * 3, [], "3 names, but 0 numbers of velocity"),
        ("", [1.0] * 3, [1.0] * 3, "0 names, but 3 numbers of position"),
    ],
)
def test_joints_that_cannot_be_put_in_order_say_why(
    names: str, position: list[float], velocity: list[float], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        in_order(list(names), ("a", "b", "c"), position=position, velocity=velocity)


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
        for down, told in ((True, TIME_UP), (True, TIME_UP), (False, 0), (True, 1)):
            switch.down = down
            confirmation.ending = TIME_UP if told == TIME_UP else confirmation.ending
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
    assert result["rows"][0]["stopped"], "by the time, or by what was late on this machine"
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
        (["bundle=liftin"], "did you mean lifting or lifting_wide?"),
        (["bundle=nowhere"], "a shipped policy: clearing_blocks, "),
        (["bundle=lifting", "arm=ur5"], "sim, ros2, jaco2"),
        (["bundle=lifting", "arm=ros2"], "needs camera="),
        (["bundle=lifting", "arm=ros2", "camera=0"], "needs lens="),
        (["bundle=lifting", "arm=jaco2", f"camera={__file__}"], "a film shows nothing"),
        (["bundle=lifting", "arm_delay=0.5"], "expected 0 to 0.3 s"),
        (["bundle=lifting", "episodes=0"], "episodes=0"),
        (["bundle=lifting", "start_tolerance=0"], "or none to begin wherever the arm stands"),
        (["bundle=lifting", "start_tolerance=7"], "start_tolerance=7.0: expected more than 0"),
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


def test_an_arm_that_is_later_than_the_limiter_allows_for_is_told() -> None:
    assert beyond_guard({}, 0.1) == []
    assert beyond_guard({"arm_delay_ms_most": 99.0}, 0.1) == []
    (told,) = beyond_guard({"arm_delay_ms_most": 136.2}, 0.1)
    assert told.endswith("takes up to 136 ms, and the limiter allows for 100: give arm_delay=0.15")
    (told,) = beyond_guard({"arm_delay_ms_most": 296.0}, 0.1)
    assert told.endswith("arm_delay=0.3 is the most, so this arm is too late"), "0.31 is refused"


TRAINED = {"trained": True, "camera_delay_s": [0.0, 0.1], "action_delay_s": [0.0, 0.05]}
SAID = {"latency": TRAINED, "randomization": {"strength": 1.0}, "control": {"period_s": 0.05}}


def test_what_was_later_than_in_training_is_told_and_nothing_else() -> None:
    trained = trained_delays(SAID)
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


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.6, 0.4, 0.2])
def test_the_longest_trained_delay_is_the_longest_that_training_draws(strength: float) -> None:
    factors = Distributions(
        [
            Factor("camera_delay", 0.0, 2.0, 0.0, "integer"),
            Factor("action_delay", 0.0, 1.0, 0.0, "integer"),
        ],
        [True, True],
    )
    drawn = factors.values(np.full(2, 0.999), strength)
    trained = trained_delays(SAID | {"randomization": {"strength": strength}})
    assert list(trained.values()) == pytest.approx(0.05 * drawn)


@pytest.mark.parametrize("strength", [None, "much"])
def test_a_bundle_that_does_not_tell_how_much_was_drawn_is_refused(strength: object) -> None:
    with pytest.raises(BundleError, match=r"beside randomization\.strength"):
        trained_delays(SAID | {"randomization": {"strength": strength}})


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
