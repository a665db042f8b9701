"""The processes around an arm, and what is between them: shared memory and the dead-man switch.

Used by `visuomotor.deploy` and by the suite of faults. Needs neither torch nor MuJoCo; of `arm=sim`
the third process does.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visuomotor.cli import program
from visuomotor.config import CameraConfig
from visuomotor.errors import UserError, did_you_mean
from visuomotor.limits import show, validate
from visuomotor.overrides import load_yaml
from visuomotor.runtime.arm import MOST_DELAY, ArmError
from visuomotor.runtime.arms import KINDS, settings_type
from visuomotor.runtime.arms.sim import refused_size, request
from visuomotor.runtime.bundle import Contract, load_bundle
from visuomotor.runtime.errors import BundleError, CameraError
from visuomotor.runtime.files import MANIFEST
from visuomotor.runtime.guard import OUTSIDE, Start, State, off_start
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.lens import load_calibration
from visuomotor.runtime.policy_loop import check_arm
from visuomotor.runtime.preprocessing import coverage
from visuomotor.runtime.processes import camera_settings
from visuomotor.runtime.slots import Slot, command_type, report_type, state_of, untext
from visuomotor.runtime.streamer import SWITCH
from visuomotor.runtime.switches import ByHand, Confirmation, Switch, SwitchError, make_switch

PRETRAINED = Path(__file__).parent / "pretrained"
START_SECONDS = 120.0  # that a process is given to be ready: one imports MuJoCo and torch
ARM_SECONDS = 5.0  # until the simulated arm runs after the switch is pressed
SILENCE = 0.5  # s without a report after which the streamer counts as gone
MOST_OFFSET = 0.03  # m, of the camera; training moves it by a centimetre an axis
MOST_FOVY = 2.0  # degrees
SIM_CAMERA_RATE = 20.0  # frames/s, of arm=sim (visuomotor.sim_arm)
LOG = "streamer.log"
NO_LENS = "simulated"


@dataclass(frozen=True)
class SimOptions:
    """Of `arm=sim`; the other arms ignore them."""

    strength: float = 0.0  # of the randomization of looks and dynamics
    command_delay: float = 0.05  # s from a velocity's arrival to its execution
    command_jitter: float = 0.02  # s, largest further delay
    camera_delay: float = 0.05  # s from exposure to sending
    drop: float = 0.0  # share of messages that are lost
    seed: int = 0
    priority: int = 0  # of SCHED_FIFO, where allowed; 0: as any other process


@dataclass(frozen=True)
class DeployConfig:
    bundle: str = ""  # a bundle's folder, or a shipped policy
    arm: str = "sim"  # sim, ros2 or jaco2
    camera: str = "auto"  # number, URL, file, topic:<ROS 2 image topic>; auto: that of arm=sim
    camera_rate: float = 30.0  # frames/s of that camera; two missing frames stop the arm
    # A calibration (visuomotor.calibrate). simulated, the default of arm=sim alone: the camera is
    # as the policy's was, and the middle of its picture is taken as it is.
    lens: str | None = None
    switch: str = "space"  # space, joystick:<device>[:<button>]; of arm=sim it is held by itself
    # s from a velocity that is sent until the arm does it, at most: what the limiter allows for
    # when it brakes before joint limits and walls.
    arm_delay: float = LIMITS.delay
    # rad that a joint of the arm may be off from where training's episodes began when one is to
    # begin; none: it begins wherever the arm stands.
    start_tolerance: float | None = 0.2
    episodes: int = 1  # starts by a human; of arm=sim by itself
    episode_seconds: float | None = None  # None: as long as in training
    arm_config: str | None = None  # YAML: topics and names of arm=ros2 and arm=jaco2
    out: str | None = None  # folder for the log; None: deployments/<bundle>-<time>
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
        if self.arm != "sim" and Path(self.camera).is_file():
            raise UserError(
                f"arm={self.arm} camera={self.camera}: a film shows nothing of what the arm does; "
                "give a camera: a number (0 is the first), a URL, or topic:<ROS 2 image topic>"
            )
        if self.arm != "sim" and self.lens is None:
            raise UserError(
                f"arm={self.arm} needs lens=: a calibration that visuomotor.calibrate wrote; "
                f"lens={NO_LENS} takes the middle of the picture as it is, and trusts that the "
                "camera stands where the policy was trained to have it"
            )
        if not 0.0 <= self.arm_delay <= MOST_DELAY:
            raise UserError(f"arm_delay={self.arm_delay}: expected 0 to {MOST_DELAY:g} s")
        if self.start_tolerance is not None and not 0.0 < self.start_tolerance <= np.pi:
            raise UserError(
                f"start_tolerance={self.start_tolerance}: expected more than 0, up to pi rad, or "
                "none to begin wherever the arm stands"
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
    elsewhere: its frames would be turned and cut to what it has never seen. Raises BundleError if
    policy.json does not say where it was."""
    trained = trained_camera(manifest)
    try:
        found = load_calibration(path)
    except CameraError as error:
        raise UserError(str(error)) from error
    fovy = trained.fovy
    seen = coverage(64, 64, fovy, found.lens)
    if seen < 1.0:
        raise UserError(
            f"lens={path}: the camera sees {100 * seen:.0f} % of what the policy's camera sees "
            f"({fovy:g} degrees); move it back, or train for it: visuomotor.train calibration="
        )
    if found.pos is None or found.lookat is None or found.fovy is None:
        print(
            f"lens={path} does not say where the camera stands: whether it stands where the policy "
            "was trained to have it is not checked",
            file=sys.stderr,
        )
        return
    offsets = {
        "pos": np.linalg.norm(found.pos - np.array(trained.pos)),
        "lookat": np.linalg.norm(found.lookat - np.array(trained.lookat)),
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


def trained_camera(manifest: dict[str, Any]) -> CameraConfig:
    """policy.json -> the camera that the policy was trained with; how often it takes an image is
    the policy's own affair.

    Raises BundleError if it does not say.
    """
    told = manifest["camera"]
    try:
        x, y, z = map(float, told["pos_w_m"])
        u, v, w = map(float, told["lookat_w_m"])
        camera = CameraConfig(
            told["height"], told["width"], (x, y, z), (u, v, w), float(told["fovy_deg"])
        )
        validate(camera)
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise BundleError(
            "policy.json: camera: expected height, width, fovy_deg, and pos_w_m and lookat_w_m of "
            f"three numbers each ({error}); export the policy again"
        ) from error
    return camera


def simulated_camera(manifest: dict[str, Any]) -> CameraConfig:
    """As `trained_camera`; raises BundleError also of an image that arm=sim cannot send."""
    camera = trained_camera(manifest)
    if refused := refused_size(camera.height, camera.width):
        raise BundleError(f"policy.json: camera: {refused}")
    return camera


def find_bundle(name: str) -> Path:
    """Of a shipped policy, or of any other. Raises UserError, with what is shipped, if there is
    no such folder."""
    shipped = sorted(path.parent.name for path in PRETRAINED.glob(f"*/{MANIFEST}"))
    if name in shipped:
        return PRETRAINED / name
    if not Path(name).is_dir():
        raise UserError(
            f"bundle={name} is no folder{did_you_mean(name, shipped, cutoff=0.5)}; give a bundle, "
            f"or a shipped policy: {', '.join(shipped)}"
        )
    return Path(name)


def camera_rate(config: DeployConfig, contract: Contract) -> float:
    """frames/s. Raises UserError if the policy takes images more often: it would see one picture
    again and again, later than in training, and nothing would be late for the guard."""
    if config.camera == "auto":
        return SIM_CAMERA_RATE
    wanted = contract.control_rate_hz / contract.refresh_steps
    if config.camera_rate < 0.999 * wanted:
        raise UserError(
            f"camera_rate={config.camera_rate:g}: the policy takes {wanted:g} images a second; a "
            "camera must send as many, better three times as many"
        )
    return config.camera_rate


def start_of(contract: Contract, tolerance: float | None) -> Start | None:
    """None without a tolerance: anywhere. Raises BundleError if no arm can stand there."""
    if tolerance is None:
        return None
    low, high = LIMITS.position_low - OUTSIDE, LIMITS.position_high + OUTSIDE
    assert contract.start is not None  # check_arm: the policy reads sines and cosines of the arm's
    # Recorded as sine and cosine, a joint with limits is on the one turn that lies within them.
    turns = np.where(np.isfinite(low), np.ceil((low - contract.start) / (2 * np.pi)), 0.0)
    position = contract.start + 2 * np.pi * np.maximum(turns, 0.0)
    beyond = ~((position >= low) & (position <= high))
    if beyond.any():
        i = int(beyond.argmax())
        raise BundleError(
            f"{MANIFEST}: start.positions: {LIMITS.joint_names[i]} at {position[i]:.3f} rad is "
            f"beyond its limits, {LIMITS.position_low[i]:.3f} to {LIMITS.position_high[i]:.3f}; "
            "export the policy again"
        )
    return Start(position, tolerance)


class Process:
    """A process of the runtime, and the lines of JSON that it prints."""

    def __init__(self, name: str, arguments: list[str]):
        """arguments: of Python."""
        self.name = name
        # A session of its own: what a terminal sends (Ctrl-C, Ctrl-Z, its end) reaches deploy
        # alone, which brings the arm to rest.
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
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

    def death(self) -> str:
        """Why it ended by itself: the error that it printed, or its exit code; empty: it runs."""
        code = self.popen.poll()
        if code is None:
            return ""
        errors = [str(told["error"]) for told in self.end() if "error" in told]
        how = f"ended with exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return f"{self.name}: {errors[-1] if errors else how}"

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

    # What runs the policy and the streamer, as arguments of `python -m`.
    program: tuple[str, ...] = ("visuomotor.runtime.processes",)

    def __init__(self, config: DeployConfig, out: Path, switch: Switch | None = None):
        self.config = config
        self.out = out
        self.bundle = find_bundle(config.bundle)
        try:
            loaded = load_bundle(self.bundle)
        except BundleError as error:
            raise UserError(f"bundle={config.bundle}: {error}") from error
        self.contract, self.manifest = loaded.contract, loaded.manifest
        try:
            check_arm(loaded, LIMITS.joint_names)
            self._sim_camera = simulated_camera(self.manifest) if config.arm == "sim" else None
            self.start = start_of(loaded.contract, config.start_tolerance)
            self.lens = None if config.lens == NO_LENS else config.lens
            if self.lens is not None:
                check_lens(self.lens, self.manifest)
        except BundleError as error:
            raise UserError(f"bundle={config.bundle}: {error}") from error
        self.camera_rate = camera_rate(config, loaded.contract)
        self._settings = {} if config.arm == "sim" else arm_settings(config)
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
        streamer = {
            "arm": arm,
            "slots": names,
            "log": str(self.out / LOG),
            "camera_period": 1.0 / self.camera_rate,
            "start": None
            if self.start is None
            else {"position": self.start.position.tolist(), "tolerance": self.start.tolerance},
        }
        policy = {
            "bundle": str(self.bundle),
            "camera": camera,
            "lens": self.lens,
            "slots": names,
        }
        # The policy is asked to end last, so first: the streamer brings the arm to rest without it.
        self.policy = self._process("policy", policy)
        self.streamer = self._process("streamer", streamer)
        for process in (self.streamer, self.policy):
            told = process.line()
            self.notes.append({process.name: told["ready"]})
            if "warning" in told:
                print(f"{process.name}: {told['warning']}", file=sys.stderr)
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
        process = Process(role, ["-m", *self.program, role, json.dumps(settings)])
        self._stack.callback(lambda: self.notes.extend(process.end()))
        return process

    def _arm_and_camera(self) -> tuple[dict[str, Any], dict[str, Any]]:
        config = self.config
        arm: dict[str, Any]
        if config.arm == "sim":
            options = [f"{name}={value}" for name, value in vars(config.sim).items()]
            assert self._sim_camera is not None
            seen = asdict(self._sim_camera)
            options += [f"camera.{name}={show(value)}" for name, value in seen.items()]
            arguments = [*program("sim_arm"), f"task={self.contract.task}", *options]
            process = Process("sim_arm", arguments)
            self._stack.callback(process.end)
            self.sim_arm = process
            self.sim_port = int(process.line()["port"])
            arm = {"kind": "sim", "port": self.sim_port, "delay": config.arm_delay}
        else:
            arm = {"kind": config.arm, "settings": self._settings, "delay": config.arm_delay}
        if config.camera == "auto":
            return arm, {"kind": "sim", "port": self.sim_port}
        return arm, camera_settings(config.camera, config.camera_rate, self._settings)

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

    def off_start(self) -> dict[str, str]:
        """Joints that keep the next episode from beginning -> what to tell a human of each."""
        report = self.report()
        if self.start is None or report is None or not report["joint_stamp"]:
            return {}
        told = {}
        for i, off in off_start(LIMITS, self.start, report["position"]).items():
            name, here = LIMITS.joint_names[i], float(report["position"][i])
            told[name] = (
                f"{name} is at {here:.3f} rad, {abs(off):.3f} from the start's {here - off:.3f}, "
                f"at most {self.start.tolerance:g} are allowed; move it by {-off:+.3f} rad "
                f"({np.rad2deg(-off):+.0f} degrees), or say start_tolerance=none"
            )
        return told

    def check_alive(self) -> None:
        """Raises UserError if the streamer is gone, as nobody holds the arm then, or the policy, as
        the arm cannot be armed again then."""
        report = self.report()
        silent = report is not None and time.monotonic() - float(report["stamp"]) > SILENCE
        if self.streamer.popen.poll() is not None or silent:
            raise UserError(
                "the streamer is gone, and the arm does what its driver makes of silence: press "
                "the emergency stop"
            )
        if death := self.policy.death():
            raise UserError(death)

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

    def end_episode(self, ending: int) -> None:
        """The arm comes to rest, and the human's next press is the next start.

        ending: of streamer.ENDINGS.
        """
        self.confirmation.ending = ending
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


def make_folder(out: Path) -> None:
    """Raises UserError if it cannot be made, or is not empty."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise UserError(f"out={out} cannot be a folder: {error.strerror}") from error
    if occupied:
        raise UserError(f"out={out} is not empty; name another folder")
