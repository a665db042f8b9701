"""How long the policy's process takes from joints to a velocity, as on an arm, without the arm.

    python benchmarks/policy_step.py [bundle ...] [seconds=30] [camera=ros2]

Runs the loop of `visuomotor.deploy`'s policy process at the policy's rate, with a camera of 640x480
pixels at 30 Hz in its thread (camera=ros2: on a ROS 2 topic, which another process publishes), for
every shipped policy unless bundles (or shipped names) are given, and prints the median, the 99th
percentile and the largest of the durations. With real-time scheduling where the machine allows it,
and says whether it does. On a machine with other work the caches, and with them the figures, are
shared.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from visuomotor.policy_files import find_policy, shipped_names
from visuomotor.runtime.bundle import load_bundle
from visuomotor.runtime.cameras import Camera, Newest
from visuomotor.runtime.clock import run_at
from visuomotor.runtime.guard import State
from visuomotor.runtime.policy_loop import WARM_UP, PolicyLoop
from visuomotor.runtime.preprocessing import Preprocessing
from visuomotor.runtime.processes import POLICY_PRIORITY, SWITCH_INTERVAL
from visuomotor.runtime.slots import Slot, command_type, report_type
from visuomotor.runtime.streamer import keep_awake

CAMERA_RATE = 30.0  # frames/s
DOMAIN, TOPIC = 92, "/image"
SETTLING = 20  # steps that are not counted


class Noise:
    """A camera of a computer, as far as its work goes."""

    channels = "BGR"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._frames = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(4)]
        self._number = 0

    def read(self) -> np.ndarray:
        time.sleep(1.0 / CAMERA_RATE)
        self._number += 1
        return self._frames[self._number % len(self._frames)].copy()

    def close(self) -> None: ...


def publish() -> None:
    """The pictures of Noise on TOPIC, until the process is ended."""
    from cyclonedds.pub import DataWriter
    from cyclonedds.topic import Topic

    from visuomotor.runtime.arms import dds

    camera = Noise()
    member = dds.Participant(DOMAIN, "lo").participant
    topic = Topic(member, dds.topic_name(TOPIC), dds.ImageMessage)
    writer = DataWriter(member, topic, qos=dds.NEWEST)
    head = dds.Header(dds.Time(0, 0), "")
    while True:
        pixels = camera.read().tobytes()
        writer.write(dds.ImageMessage(head, 480, 640, "bgr8", 0, 3 * 640, pixels))


def ros2_camera() -> Camera:
    from visuomotor.runtime.arms.ros2 import Ros2Camera

    return Ros2Camera(TOPIC, DOMAIN)


CAMERAS: dict[str, Callable[[], Camera]] = {"noise": Noise, "ros2": ros2_camera}


def durations(path: Path, seconds: float, source: Camera) -> np.ndarray:
    """ms of every step of so many seconds."""
    bundle = load_bundle(path)
    contract = bundle.contract
    joints = len(contract.joint_names)
    command, report = Slot.create(command_type(joints)), Slot.create(report_type(joints))
    preprocessing = Preprocessing(contract.height, contract.width, contract.fovy_deg)
    camera = Newest(source, preprocessing)
    try:
        value = np.zeros((), report_type(joints))
        value["joint_stamp"], value["state"] = time.monotonic(), State.RUNNING.value
        report.write(value)
        loop = PolicyLoop(bundle, camera, command, report)
        while camera.frame is None:
            time.sleep(0.01)
        end = time.monotonic() + seconds
        run_at(
            1.0 / contract.control_rate_hz,
            loop.tick,
            lambda: time.monotonic() > end,
            warm_up=loop.warm_up,
            lead=WARM_UP,
        )
    finally:
        camera.close()
        command.close()
        report.close()
    return 1000.0 * np.array(loop.durations[SETTLING:])


def main() -> None:
    seconds, kind = 30.0, "noise"
    names = []
    for argument in sys.argv[1:]:
        if argument.startswith("seconds="):
            seconds = float(argument.removeprefix("seconds="))
        elif argument.startswith("camera="):
            kind = argument.removeprefix("camera=")
        else:
            names.append(argument)
    if kind not in CAMERAS:
        sys.exit(f"camera={kind}: expected {' or '.join(CAMERAS)}")
    if kind == "ros2":
        multiprocessing.get_context("spawn").Process(target=publish, daemon=True).start()
    sys.setswitchinterval(SWITCH_INTERVAL)
    print(keep_awake(POLICY_PRIORITY))
    for name in names or shipped_names():
        spent = durations(find_policy(name), seconds, CAMERAS[kind]())
        middle, late = np.percentile(spent, [50, 99])
        print(
            f"{name}: median {middle:.3f} ms, 99 % within {late:.3f} ms, at most {spent.max():.3f} "
            f"ms, of {len(spent)} steps",
            flush=True,
        )


if __name__ == "__main__":
    main()
