"""Runs a policy on an arm: `python -m visuomotor.deploy bundle=lifting arm=sim episodes=10`.

Starts two processes, the policy at its own rate and the streamer at 100 Hz (docs/real_arm.md), and
holds what is between them: shared memory, and the dead-man switch. `arm=sim` also starts a
simulated arm with a clock, delays and noise of its own, holds the switch itself, and counts
successes. Everything is logged in `out`. Needs neither torch nor MuJoCo for a real arm.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from visuomotor.cli import StopSignal, run_command
from visuomotor.errors import UserError
from visuomotor.files import write_atomic
from visuomotor.overrides import load_yaml, parse_overrides
from visuomotor.runtime.arm import ArmError
from visuomotor.runtime.arms import KINDS, settings_type
from visuomotor.runtime.arms.sim import request
from visuomotor.runtime.bundle import load_bundle
from visuomotor.runtime.cameras import CameraError
from visuomotor.runtime.errors import BundleError
from visuomotor.runtime.files import MANIFEST
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.lens import load_calibration
from visuomotor.runtime.policy_loop import check_arm
from visuomotor.runtime.preprocessing import coverage
from visuomotor.runtime.slots import Slot, command_type, report_type, state_of, untext
from visuomotor.runtime.streamer import SWITCH, read_log
from visuomotor.runtime.switches import ByHand, Confirmation, Switch, SwitchError, make_switch

PRETRAINED = Path(__file__).parent / "pretrained"
START_SECONDS = 60.0  # that a process is given to be ready
ARM_SECONDS = 5.0  # until the simulated arm runs after the switch is pressed
SILENCE = 0.5  # s without a report after which the streamer counts as gone
MOST_OFFSET = 0.03  # m, of the camera; training moves it by a centimetre an axis
MOST_FOVY = 2.0  # degrees
LOG, RESULT = "streamer.log", "deployment.json"


@dataclass(frozen=True)
class SimOptions:
    """Of `arm=sim`; the other arms ignore them."""

    strength: float = 0.0  # of the randomization of looks and dynamics
    command_delay: float = 0.05  # s from a velocity's arrival to its execution
    command_jitter: float = 0.02  # s, largest further delay
    camera_delay: float = 0.05  # s from exposure to sending
    drop: float = 0.0  # share of messages that are lost
    seed: int = 0


@dataclass(frozen=True)
class DeployConfig:
    bundle: str = ""  # a bundle's folder, or a shipped policy
    arm: str = "sim"  # sim, ros2 or jaco2
    camera: str = (
        "auto"  # a number, URL or file (OpenCV), topic:<ROS 2 image topic>; auto: arm=sim's
    )
    camera_rate: float = 30.0  # frames/s of that camera; two missing frames stop the arm
    lens: str | None = None  # a calibration (visuomotor.calibrate); None: as the simulated camera
    switch: str = "space"  # space, joystick:<device>[:<button>]; of arm=sim it is held by itself
    episodes: int = 1  # starts by a human; of arm=sim by itself
    episode_seconds: float | None = None  # None: as long as in training
    arm_config: str | None = None  # YAML: topics and names of arm=ros2 and arm=jaco2
    out: str | None = None  # folder for the log; None: deployments/<task>-<time>
    sim: SimOptions = field(default_factory=SimOptions)

    def validate(self) -> None:
        if not self.bundle:
            raise UserError("bundle= is missing: a folder that visuomotor.export wrote, or a name")
        if self.arm not in KINDS:
            raise UserError(f"arm={self.arm}: expected {', '.join(KINDS)}")
        if self.arm != "sim" and self.camera == "auto":
            raise UserError(
                f"arm={self.arm} needs camera=: a number (0 is the first), a URL, a file, or "
                "topic:<ROS 2 image topic>"
            )
        if self.episodes < 1:
            raise UserError(f"episodes={self.episodes}: expected 1 or more")
        if self.episode_seconds is not None and not self.episode_seconds > 0.0:
            raise UserError(f"episode_seconds={self.episode_seconds}: expected more than 0")
        if not 1.0 <= self.camera_rate <= 1000.0:
            raise UserError(f"camera_rate={self.camera_rate}: expected 1 to 1000 frames/s")


def arm_settings(config: DeployConfig) -> dict[str, Any]:
    """Of arm=ros2 and arm=jaco2, from the YAML file, checked here rather than on the arm.

    Raises UserError.
    """
    try:
        kind = settings_type(config.arm)
        settings = kind() if config.arm_config is None else load_yaml(config.arm_config, kind)
        settings.validate()
    except ArmError as error:
        raise UserError(f"arm={config.arm}: {error}") from error
    return asdict(settings)


def check_lens(path: str, manifest: dict[str, Any]) -> None:
    """Raises UserError if the policy was trained for a camera in another place, or looking
    elsewhere: its frames would be turned and cut to what it has never seen."""
    try:
        found = load_calibration(path)
    except CameraError as error:
        raise UserError(str(error)) from error
    camera = manifest["camera"]
    fovy = float(camera["fovy_deg"])
    seen = coverage(64, 64, fovy, found.lens)
    if seen < 1.0:
        raise UserError(
            f"lens={path}: the camera sees {100 * seen:.0f} % of what the policy's camera sees "
            f"({fovy:g} degrees); move it back, or train for it: visuomotor.train calibration="
        )
    if found.pos is None or found.lookat is None or found.fovy is None:
        return
    offsets = {
        "pos": np.linalg.norm(found.pos - np.array(camera["pos_w_m"])),
        "lookat": np.linalg.norm(found.lookat - np.array(camera["lookat_w_m"])),
    }
    for name, offset in offsets.items():
        if offset > MOST_OFFSET:
            raise UserError(
                f"lens={path}: the camera's {name} is {100 * offset:.1f} cm from where the policy "
                f"was trained to have it, at most {100 * MOST_OFFSET:.0f} cm are allowed; move the "
                "camera and calibrate again, or train for it: visuomotor.train calibration="
            )
    if abs(found.fovy - fovy) > MOST_FOVY:
        raise UserError(
            f"lens={path}: calibrated for {found.fovy:g} degrees, the policy sees {fovy:g}; "
            f"calibrate with fovy={fovy:g}"
        )


class Process:
    """A process of the runtime, and the lines of JSON that it prints."""

    def __init__(self, name: str, arguments: list[str]):
        self.name = name
        # A session of its own: what a terminal sends (Ctrl-C, Ctrl-Z, its end) reaches deploy
        # alone, which brings the arm to rest.
        self.popen = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,
        )

    def line(self) -> dict[str, Any]:
        """Its next line; raises UserError if it ended with an error, or without a word."""
        assert self.popen.stdout is not None
        if not select.select([self.popen.stdout], [], [], START_SECONDS)[0]:
            raise UserError(f"{self.name}: said nothing within {START_SECONDS:.0f} s")
        text = self.popen.stdout.readline()
        told = json.loads(text) if text.startswith("{") else {}
        if "error" in told or not told:
            raise UserError(f"{self.name}: {told.get('error', 'ended without a word')}")
        return dict(told)

    def end(self) -> list[dict[str, Any]]:
        """Asks it to end, waits, and returns what else it printed."""
        self.popen.terminate()
        try:
            rest, _ = self.popen.communicate(timeout=5.0)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            rest, _ = self.popen.communicate()
        return [json.loads(line) for line in rest.splitlines() if line.startswith("{")]


class Deployment:
    """The processes around one arm; used by `deploy` and by the suite of faults."""

    def __init__(self, config: DeployConfig, out: Path, switch: Switch | None = None):
        self.config = config
        self.out = out
        folder = PRETRAINED / config.bundle
        self.bundle = folder if (folder / MANIFEST).is_file() else Path(config.bundle)
        try:
            loaded = load_bundle(self.bundle)
        except BundleError as error:
            raise UserError(f"bundle={config.bundle}: {error}") from error
        self.contract, self.manifest = loaded.contract, loaded.manifest
        try:
            check_arm(loaded, LIMITS.joint_names)
        except BundleError as error:
            raise UserError(f"bundle={config.bundle}: {error}") from error
        if config.lens is not None:
            check_lens(config.lens, self.manifest)
        self._stack = ExitStack()
        self._switch = switch
        self.sim_port: int | None = None
        self.notes: list[dict[str, Any]] = []

    def __enter__(self) -> Deployment:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        config, joints = self.config, len(self.contract.joint_names)
        arm, camera = self._arm_and_camera()
        types = {
            "command": command_type(joints),
            "report": report_type(joints),
            "switch": SWITCH,
        }
        self.slots: dict[str, Slot] = {}
        for name, dtype in types.items():
            self.slots[name] = Slot.create(dtype)
            self._stack.callback(self.slots[name].close)
        names = {name: slot.name for name, slot in self.slots.items()}
        period = 1.0 / (20.0 if config.arm == "sim" else config.camera_rate)
        streamer = {
            "arm": arm,
            "slots": names,
            "log": str(self.out / LOG),
            "camera_period": period,
        }
        policy = {
            "bundle": str(self.bundle),
            "camera": camera,
            "lens": config.lens,
            "slots": names,
        }
        # The policy is asked to end last, so first: the streamer brings the arm to rest without it.
        self.policy = self._process("policy", policy)
        self.streamer = self._process("streamer", streamer)
        for process in (self.streamer, self.policy):
            self.notes.append({process.name: process.line()["ready"]})
        switch = self._switch
        if switch is None:
            try:
                switch = ByHand() if config.arm == "sim" else make_switch(config.switch)
            except SwitchError as error:
                raise UserError(str(error)) from error
        self.switch = switch
        self.confirmation = Confirmation(switch, self.slots["switch"])
        self._stack.callback(self.confirmation.close)

    def _process(self, role: str, settings: dict[str, Any]) -> Process:
        module = "visuomotor.runtime.processes"
        process = Process(role, [module, role, json.dumps(settings)])
        self._stack.callback(lambda: self.notes.extend(process.end()))
        return process

    def _arm_and_camera(self) -> tuple[dict[str, Any], dict[str, Any]]:
        config = self.config
        settings: dict[str, Any] = {"domain": 0, "network": "lo"}
        arm: dict[str, Any]
        if config.arm == "sim":
            options = [f"{name}={value}" for name, value in vars(config.sim).items()]
            arguments = ["visuomotor.sim_arm", f"task={self.contract.task}", *options]
            process = Process("sim_arm", arguments)
            self._stack.callback(process.end)
            self.sim_arm = process
            self.sim_port = int(process.line()["port"])
            arm = {"kind": "sim", "port": self.sim_port}
        else:
            settings = arm_settings(config)
            arm = {"kind": config.arm, "settings": settings}
        if config.camera == "auto":
            return arm, {"kind": "sim", "port": self.sim_port}
        if config.camera.startswith("topic:"):
            topic = config.camera.removeprefix("topic:")
            network = {name: settings[name] for name in ("domain", "network")}
            return arm, {"kind": "ros2", "topic": topic, **network}
        camera = {"kind": "capture", "source": config.camera, "rate": config.camera_rate}
        return arm, camera

    # --- while it runs -------------------------------------------------------------------------

    def report(self) -> np.ndarray | None:
        """The streamer's newest report."""
        return self.slots["report"].read()[1]

    @property
    def state(self) -> State:
        report = self.report()
        return State.LATCHED if report is None else state_of(report)

    @property
    def reason(self) -> str:
        report = self.report()
        return "" if report is None else untext(report["reason"])

    def check_alive(self) -> None:
        """Raises UserError if the streamer is gone: then nobody holds the arm."""
        report = self.report()
        silent = report is not None and time.monotonic() - float(report["stamp"]) > SILENCE
        if self.streamer.popen.poll() is not None or silent:
            raise UserError(
                "the streamer is gone, and the arm does what its driver makes of silence: press "
                "the emergency stop"
            )

    def wait(self, state: State, seconds: float) -> bool:
        """Whether the streamer came into this state within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.state is not state:
            self.check_alive()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True

    def press(self) -> bool:
        """Arms by program, as a human would: let go, then press. Whether it runs then."""
        assert isinstance(self.switch, ByHand)
        deadline = time.monotonic() + ARM_SECONDS
        while time.monotonic() < deadline:
            self.switch.down = False
            time.sleep(0.1)
            self.switch.down = True
            if self.wait(State.RUNNING, 0.5):
                return True
        return False

    def release(self) -> bool:
        """Whether the arm rests and is latched then."""
        assert isinstance(self.switch, ByHand)
        self.switch.down = False
        return self.wait(State.LATCHED, ARM_SECONDS)

    def end_episode(self) -> None:
        """The time is up: the arm comes to rest, and the human's next press is the next start."""
        self.confirmation.let_go = True
        self.wait(State.LATCHED, ARM_SECONDS)

    @property
    def episode_seconds(self) -> float:
        asked = self.config.episode_seconds
        return self.contract.episode_s if asked is None else asked

    def ask_sim(self, message: dict[str, Any]) -> dict[str, Any]:
        """A control message to the simulated arm. Raises UserError if it does not answer."""
        assert self.sim_port is not None
        try:
            return request(self.sim_port, message)
        except ArmError as error:
            raise UserError(str(error)) from error

    def start_sim(self, episode: int) -> None:
        assert self.sim_port is not None
        self.ask_sim({"do": "start", "episode": episode})
        time.sleep(0.2)  # joints and a picture of the new start


@contextmanager
def live_line(stream: IO[str]) -> Iterator[Any]:
    """A line that is written over where somebody looks, one below the other in a file."""

    def show(text: str) -> None:
        stream.write(f"\r\x1b[K{text}" if stream.isatty() else f"{text}\n")
        stream.flush()

    yield show
    if stream.isatty():
        stream.write("\n")


def latency(log: Path) -> dict[str, float]:
    """ms, medians and 99th percentiles over the ticks at which a command was first sent."""
    _, rows = read_log(log)
    running = rows[rows["state"] == State.RUNNING.value]
    first = np.append(True, np.diff(running["command_number"]) > 0)[: len(running)]
    fresh = running[first]
    if len(fresh) == 0:
        return {}
    # An image is used for some steps; how old it was at the first of them.
    stamps = fresh["time"] - fresh["used_frame_age"]
    used_first = np.append(True, np.diff(stamps) > 1e-6)
    told = {
        "frame_to_sent": fresh["used_frame_age"],
        "joints_to_sent": fresh["used_joint_age"],
        "decision_to_sent": fresh["command_age"],
        "frame_to_decision": (fresh["used_frame_age"] - fresh["command_age"])[used_first],
    }
    periods = np.diff(rows["time"])
    told["streamer_jitter"] = np.abs(periods - np.median(periods))
    return {
        f"{name}_ms_p{q}": round(1000 * float(np.percentile(values, q)), 3)
        for name, values in told.items()
        for q in (50, 99)
    }


def beyond_training(measured: dict[str, float], trained: dict[str, Any]) -> list[str]:
    """What was later here than ever in training, a line each; what a camera and an arm add before
    and after is not seen here."""
    told = []
    for name, key in (
        ("frame_to_decision", "camera_delay_s"),
        ("decision_to_sent", "action_delay_s"),
    ):
        here, most = measured.get(f"{name}_ms_p99"), 1000 * float(trained[key][1])
        if here is not None and here > most:
            told.append(
                f"{name}: 99 % within {here:.0f} ms, but the policy was trained for at most "
                f"{most:.0f} ms ({key})"
            )
    return told


def run_sim(deployment: Deployment, stop: StopSignal) -> list[dict[str, Any]]:
    """Episodes on the simulated arm, one after the other; success is judged at their end."""
    config, seconds = deployment.config, deployment.episode_seconds
    rows: list[dict[str, Any]] = []
    assert deployment.sim_port is not None
    with live_line(sys.stderr) as show:
        for episode in range(config.episodes):
            deployment.start_sim(episode)
            armed = deployment.press()
            deadline = time.monotonic() + seconds
            while armed and time.monotonic() < deadline and not stop.requested:
                if deployment.wait(State.LATCHED, 0.02):
                    break
            ran = deployment.state is State.RUNNING
            reason = "" if ran else deployment.reason
            score = deployment.ask_sim({"do": "score"})
            deployment.release()
            if stop.requested:
                break
            rows.append(
                {
                    "episode": episode,
                    "success": bool(score["success"]) and ran,
                    "stage": score["stage"],
                    "stopped": reason,
                }
            )
            successes = sum(row["success"] for row in rows)
            show(f"episode {episode + 1} of {config.episodes}: {successes} successes {reason}")
    return rows


def run_arm(deployment: Deployment, stop: StopSignal) -> list[dict[str, Any]]:
    """Episodes on a real arm: each begins when the human presses the switch and ends when the time
    is up (the arm then stops) or the human lets go."""
    config, seconds = deployment.config, deployment.episode_seconds
    rows: list[dict[str, Any]] = []
    with live_line(sys.stderr) as show:
        while len(rows) < config.episodes and not stop.requested:
            show(f"latched: {deployment.reason}; hold the switch to start")
            if not deployment.wait(State.RUNNING, 0.5):
                continue
            show(f"episode {len(rows) + 1}: running for {seconds:.0f} s")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not stop.requested:
                if deployment.wait(State.LATCHED, 0.02):
                    break
            else:
                deployment.end_episode()
            rows.append({"episode": len(rows), "stopped": deployment.reason})
    return rows


def make_folder(out: Path) -> None:
    """Raises UserError if it cannot be made, or is not empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise UserError(f"out={out} cannot be a folder: {error.strerror}") from error
    if occupied:
        raise UserError(f"out={out} is not empty; name another folder")


def deploy(argv: list[str]) -> int:
    config = parse_overrides(argv, DeployConfig)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = Path(config.out or f"deployments/{Path(config.bundle).name}-{stamp}")
    deployment = Deployment(config, out)
    make_folder(out)
    # A terminal that is closed is no reason to leave the arm alone.
    signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    with StopSignal(notice=b"\nbringing the arm to rest\n") as stop, deployment:
        rows = (run_sim if config.arm == "sim" else run_arm)(deployment, stop)
    measured = latency(out / LOG)
    result: dict[str, Any] = {
        "bundle": config.bundle,
        "task": deployment.contract.task,
        "arm": config.arm,
        "episodes": len(rows),
        "latency": measured,
        "beyond_training": beyond_training(measured, deployment.manifest["latency"]),
        "trained_for": deployment.manifest["latency"],
        "processes": deployment.notes,
        "rows": rows,
    }
    if config.arm == "sim":
        result["successes"] = sum(row["success"] for row in rows)
    write_atomic(out / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    if config.arm == "sim":
        print(f"{result['successes']} of {len(rows)} episodes succeeded")
    for name, value in result["latency"].items():
        print(f"{name}: {value}")
    for line in result["beyond_training"]:
        print(f"later than in training: {line}")
    print(f"log and summary in {out}")
    return stop.exit_code


def main() -> None:
    sys.exit(run_command(deploy, sys.argv[1:]))


if __name__ == "__main__":
    main()
