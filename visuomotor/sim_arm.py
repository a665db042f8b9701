"""A simulated Jaco that behaves like hardware: `python -m visuomotor.sim_arm task=lifting`.

A process of its own, with its own clock: it moves on in real time whatever anybody sends, holds the
last velocity without asking how old it is (as ROS 2's forward_command_controller does), is late,
drops messages and is noisy. It speaks UDP on loopback alone: joint states and camera images to
whoever subscribed, velocities from whoever sends them, and a control message a line of JSON, with
which a test starts episodes, asks for the score and makes things go wrong. What the arm itself met
(velocities that arrived, the ones it moved with) is recorded there, at the arm's side.

The first line on stdout is a JSON object with the port.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from visuomotor.cli import StopSignal, run_command
from visuomotor.config import CameraConfig, Config
from visuomotor.envs import VisuomotorEnv, robot
from visuomotor.errors import UserError
from visuomotor.evaluation import evaluation_env
from visuomotor.limits import validate
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.arms.sim import (
    CAMERA_HELLO,
    JOINT_HELLO,
    decode_velocity,
    encode_frame,
    encode_joints,
    refused_size,
)
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.streamer import PERIOD, keep_awake

TICK = 0.01  # s between physics steps of this clock, and between joint states
SUBSCRIPTION = 5.0  # s after its last hello that a subscriber is kept
MAX_BEHIND = 0.25  # s: a clock further behind (a stopped machine) starts anew
RECORD_SECONDS = 120.0
FAULTS = (
    "drop",  # share of all messages, both ways
    "joints_stop",
    "joints_nan",
    "joints_inf",
    "velocities_nan",
    "velocities_inf",
    "joints_swapped",
    "joints_missing",
    "joints_freeze",  # the same numbers again and again, under new time stamps
    "names_permuted",  # joints in another order, numbers with them
    "names_swapped",  # two joints' names, not their numbers
    "names_missing",
    "frames_stop",
    "frames_freeze",
    "frames_broken",  # bytes that are no image
    "clock_step",  # s added to the time stamps that it sends
)


@dataclass(frozen=True)
class SimArmConfig:
    task: str = "lifting"
    seed: int = 0
    strength: float = 0.0  # of the randomization of looks and dynamics; delays stand below
    port: int = 0  # on 127.0.0.1; 0: any that is free
    command_delay: float = 0.05  # s from a velocity's arrival to its execution
    command_jitter: float = 0.02  # s, largest further delay, uniform
    camera_delay: float = 0.05  # s from exposure to sending
    camera_rate: float = 20.0  # frames/s
    # Half width, of 255: no camera sends one picture twice, and one that does counts as frozen.
    pixel_noise: int = 2
    joint_noise: float = 0.002  # rad and rad/s, standard deviation
    drop: float = 0.0  # share of messages that are lost, both ways
    priority: int = 0  # of SCHED_FIFO, where allowed: an arm is not late when a computer is busy
    # As the policy was trained with; how often it sends is camera_rate's, not camera.period's.
    camera: CameraConfig = field(default_factory=CameraConfig)

    def validate(self) -> None:
        for name in ("command_delay", "command_jitter", "camera_delay", "joint_noise"):
            if not 0.0 <= getattr(self, name) <= 10.0:
                raise UserError(f"{name}={getattr(self, name)}: expected 0 to 10")
        if not 0 <= self.pixel_noise <= 50:
            raise UserError(f"pixel_noise={self.pixel_noise}: expected 0 to 50")
        if not 0.0 <= self.drop < 1.0:
            raise UserError(f"drop={self.drop}: expected 0 up to, not with, 1")
        if not 1.0 <= self.camera_rate <= 1.0 / TICK:
            raise UserError(f"camera_rate={self.camera_rate}: expected 1 to {1 / TICK:.0f}")
        if not 0.0 <= self.strength <= 1.0:
            raise UserError(f"strength={self.strength}: expected 0 to 1")
        if not 0 <= self.priority <= 99:
            raise UserError(f"priority={self.priority}: expected 0 to 99")
        if not 0 <= self.port <= 65535:
            raise UserError(f"port={self.port}: expected 0 to 65535")
        if refused := refused_size(self.camera.height, self.camera.width):
            raise UserError(f"camera.height, camera.width: {refused}")


def make_world(config: SimArmConfig) -> VisuomotorEnv:
    """One world of the task at the clock's rate; delays and drops are this module's.

    Raises UserError if the camera cannot be.
    """
    settings = Config(task=config.task)
    randomization = settings.randomization
    latency = replace(randomization.latency, enabled=False)
    settings = replace(
        settings,
        env=replace(settings.env, control_dt=TICK, num_threads=1, episode_steps=2**31),
        camera=replace(config.camera, period=round(1.0 / (TICK * config.camera_rate))),
        randomization=replace(randomization, latency=latency),
    )
    validate(settings)
    return evaluation_env(
        settings,
        num_envs=1,
        seed=config.seed,
        strength=config.strength,
        device=torch.device("cpu"),
    )


@dataclass
class Record:
    """What the arm met, a row a tick."""

    time: list[float] = field(default_factory=list)  # s, time.monotonic()
    clock: list[float] = field(default_factory=list)  # s, by the arm's own clock
    asked: list[np.ndarray] = field(default_factory=list)  # (9,) rad/s, executed velocity command
    moved: list[np.ndarray] = field(default_factory=list)  # (9,) rad/s, what the joints really did
    position: list[np.ndarray] = field(default_factory=list)  # (9,) rad
    pinch: list[np.ndarray] = field(default_factory=list)  # (3,) m, in the base's frame
    # Of the velocities that arrived since the last row, lost ones too: the largest change from one
    # to the next, as a share of what a tick's acceleration allows.
    step: list[float] = field(default_factory=list)


class SimArm:
    """The world, its clock and its messages; `tick` once every TICK s."""

    def __init__(self, config: SimArmConfig):
        self.config = config
        self.env = make_world(config)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", config.port))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self._rng = np.random.default_rng([config.seed, 77])
        self._faults: dict[str, float] = {"drop": config.drop}
        self._subscribers: dict[str, dict[Any, float]] = {"joints": {}, "camera": {}}
        self._commands: deque[tuple[float, np.ndarray]] = deque()
        self._images: deque[tuple[float, np.ndarray]] = deque()
        self._frozen: np.ndarray | None = None
        self._told: tuple[np.ndarray, np.ndarray] | None = None  # joints: position, velocity
        self._limits = self.env.jaco.velocity_limits.numpy()
        self._arrived = np.zeros(robot.NUM_JOINTS)  # rad/s, the last velocity that came
        self._step = 0.0
        self.recording: Record | None = None
        self.start(0)

    def start(self, episode: int) -> None:
        """The start of an evaluation's episode of this number; the arm stands still."""
        self._commands.clear()
        self._images.clear()
        self._asked = np.zeros(robot.NUM_JOINTS)
        self.env.restart(torch.tensor([episode]))
        self.ticks = 0
        self._success, self._stage = False, 0

    def tick(self) -> None:
        """One step of the world with what has arrived, and what is to be told."""
        now = time.monotonic()
        self._receive(now)
        while self._commands and self._commands[0][0] <= now:
            self._asked = self._commands.popleft()[1]
        # An arm's own driver knows its largest speed, too.
        action = torch.from_numpy(self._asked / self._limits).clamp(-1.0, 1.0)
        result = self.env.step(action.unsqueeze(0))
        self.ticks += 1
        self._success = bool(result.success[0])
        self._stage = int(result.stage[0])
        qpos = self.env.sim.data("qpos")[0, self.env.jaco.qpos_ids].numpy()
        qvel = self.env.sim.data("qvel")[0, self.env.jaco.dof_ids].numpy()
        self._record(now, qpos, qvel)
        self._tell_joints(now, qpos, qvel)
        seen = result.observation
        assert seen.pixels is not None
        if bool(seen.new_frame[0]):
            image = self._noisy(seen.pixels[0].permute(1, 2, 0).numpy())
            self._images.append((now + self.config.camera_delay, image))
        self._tell_images(now)

    def _noisy(self, image: np.ndarray) -> np.ndarray:
        half = self.config.pixel_noise
        noise = self._rng.integers(-half, half + 1, image.shape)
        return np.clip(image + noise, 0, 255).astype(np.uint8)

    # --- messages -----------------------------------------------------------------------------

    def _receive(self, now: float) -> None:
        while True:
            try:
                message, sender = self.socket.recvfrom(65536)
            except (BlockingIOError, ConnectionRefusedError):
                return
            if message == JOINT_HELLO:
                self._subscribers["joints"][sender] = now
            elif message == CAMERA_HELLO:
                self._subscribers["camera"][sender] = now
            elif message[:1] == b"{":
                reply = self._control(message)
                self.socket.sendto(json.dumps(reply).encode(), sender)
            else:
                velocity = decode_velocity(message)
                # A driver refuses what is no number.
                if velocity is None or not np.isfinite(velocity).all():
                    continue
                change = np.abs(velocity - self._arrived) / (LIMITS.acceleration * PERIOD)
                self._step = max(self._step, float(change.max()))
                self._arrived = velocity
                if not self._lost():
                    delay = self.config.command_delay
                    delay += self.config.command_jitter * self._rng.random()
                    due = max(now + delay, self._commands[-1][0] if self._commands else 0.0)
                    self._commands.append((due, velocity))

    def _control(self, message: bytes) -> dict[str, Any]:
        try:
            request = json.loads(message)
        except ValueError:
            return {"error": "no JSON"}
        match request.get("do"):
            case "start":
                self.start(int(request["episode"]))
            case "score":
                return {
                    "success": self._success,
                    "stage": self._stage,
                    "seconds": self.ticks * TICK,
                }
            case "fault" if request.get("kind") in FAULTS:
                self._faults[request["kind"]] = float(request["value"])
            case "record":
                self.recording, self._step = Record(), 0.0
            case "record_to":
                return self._save_record(request["path"])
            case _:
                return {
                    "error": f"expected do=start, score, record, record_to or fault of {FAULTS}"
                }
        return {"ok": True}

    def _tell_joints(self, now: float, qpos: np.ndarray, qvel: np.ndarray) -> None:
        if self._faults.get("joints_stop"):
            return
        noise = self._rng.normal(scale=self.config.joint_noise, size=(2, len(qpos)))
        position, velocity = qpos + noise[0], qvel + noise[1]
        names = list(robot.JOINTS)
        if self._told is None or not self._faults.get("joints_freeze"):
            self._told = position.copy(), velocity.copy()
        position, velocity = (told.copy() for told in self._told)
        if self._faults.get("joints_nan"):
            position[2] = np.nan
        if self._faults.get("joints_inf"):
            position[2] = np.inf
        if self._faults.get("velocities_nan"):
            velocity[2] = np.nan
        if self._faults.get("velocities_inf"):
            velocity[2] = np.inf
        if self._faults.get("joints_swapped"):  # the values, under the same names
            position[[1, 2]] = position[[2, 1]]
        if self._faults.get("joints_missing"):
            names, position, velocity = names[:-4], position[:-4], velocity[:-4]
        if self._faults.get("names_permuted"):
            names, position, velocity = names[::-1], position[::-1], velocity[::-1]
        if self._faults.get("names_swapped"):
            names[1], names[2] = names[2], names[1]
        if self._faults.get("names_missing"):
            names = []
        message = encode_joints(self._stamp(now), names, position, velocity)
        self._publish("joints", message, now)

    def _stamp(self, now: float) -> float:
        """What its messages say of the time, s."""
        return now + self._faults.get("clock_step", 0.0)

    def _tell_images(self, now: float) -> None:
        while self._images and self._images[0][0] <= now:
            image = self._images.popleft()[1]
            if self._faults.get("frames_stop"):
                continue
            if self._faults.get("frames_freeze"):
                self._frozen = image if self._frozen is None else self._frozen
                image = self._frozen
            else:
                self._frozen = None
            message = encode_frame(self._stamp(now), image)
            if self._faults.get("frames_broken"):
                message = message[:40]
            self._publish("camera", message, now)

    def _publish(self, what: str, message: bytes, now: float) -> None:
        for address, since in list(self._subscribers[what].items()):
            if now - since > SUBSCRIPTION:
                del self._subscribers[what][address]
            elif not self._lost():
                try:
                    self.socket.sendto(message, address)
                except (BlockingIOError, ConnectionRefusedError):
                    continue  # a subscriber that is gone, or does not read

    def _lost(self) -> bool:
        return bool(self._rng.random() < self._faults["drop"])

    # --- what the arm met ------------------------------------------------------------------------

    def _record(self, now: float, qpos: np.ndarray, qvel: np.ndarray) -> None:
        record = self.recording
        if record is None or len(record.time) > RECORD_SECONDS / TICK:
            return
        record.time.append(now)
        record.clock.append(self.ticks * TICK)
        record.asked.append(self._asked.copy())
        record.moved.append(qvel.copy())
        record.position.append(qpos.copy())
        record.step.append(self._step)
        self._step = 0.0
        pinch = self.env.sim.data("site_xpos")[0, self.env.jaco.pinch_site_id].numpy()
        record.pinch.append(pinch - np.array(robot.BASE_POS))

    def _save_record(self, path: str) -> dict[str, Any]:
        """As an npz file: it is too long for a datagram."""
        if self.recording is None:
            return {"error": "nothing was recorded; send do=record first"}
        with open(path, "wb") as file:
            rows: dict[str, Any] = {k: np.array(v) for k, v in vars(self.recording).items()}
            np.savez(file, **rows)
        return {"ok": True}


def sim_arm(argv: list[str]) -> int:
    config = parse_overrides(argv, SimArmConfig)
    torch.set_num_threads(1)
    arm = SimArm(config)
    if config.priority:
        keep_awake(config.priority)
    print(json.dumps({"port": arm.port}), flush=True)
    due, parent = time.monotonic(), os.getppid()
    with StopSignal(notice=b"") as stop:
        while not stop.requested and os.getppid() == parent:
            arm.tick()
            due += TICK
            wait = due - time.monotonic()
            if wait > 0.0:
                time.sleep(wait)
            elif wait < -MAX_BEHIND:
                due = time.monotonic()
    arm.socket.close()
    return 0


def main() -> None:
    sys.exit(run_command(sim_arm, sys.argv[1:]))


if __name__ == "__main__":
    main()
