"""The runtime's two processes: `python -m visuomotor.runtime.processes streamer|policy JSON`.

Started by `visuomotor.deploy`, which also holds the shared memory between them. Each prints one
line of JSON when it is ready, or its one error; SIGTERM ends it. What only the policy's process
needs (ONNX Runtime, OpenCV) is imported there: the streamer's loads numpy alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visuomotor.runtime.arm import ArmError
from visuomotor.runtime.arms import make_arm
from visuomotor.runtime.clock import run_at
from visuomotor.runtime.errors import BundleError, CameraError, LogError
from visuomotor.runtime.guard import Patience, Start
from visuomotor.runtime.slots import Slot, command_type, report_type
from visuomotor.runtime.streamer import SWITCH, Streamer, keep_awake, run_streamer

if TYPE_CHECKING:
    from visuomotor.runtime.cameras import Camera
    from visuomotor.runtime.preprocessing import Lens

FIRST_FRAME = 10.0  # s that a camera is given
STREAMER_PRIORITY, POLICY_PRIORITY = 10, 5  # of SCHED_FIFO: the streamer comes first
SWITCH_INTERVAL = 1e-4  # s after which the camera's thread lets the policy's have the interpreter


def camera_settings(source: str, rate: float | None, network: dict[str, Any]) -> dict[str, Any]:
    """What `make_camera` takes.

    source: number, URL, file, or topic:<ROS 2 image topic>; rate: frames/s; network: an arm's
    settings, whose `domain` and `network` are those of the topic, too.
    """
    if not source.startswith("topic:"):
        return {"kind": "capture", "source": source, "rate": rate}
    defaults = {"domain": 0, "network": "lo"}
    place = {name: network.get(name, value) for name, value in defaults.items()}
    return {"kind": "ros2", "topic": source.removeprefix("topic:"), **place}


def make_camera(settings: dict[str, Any], lens: Lens | None = None) -> Camera:
    """settings: `kind` (sim, ros2 or capture) and what its class takes; lens: whose size a camera
    of this computer is asked for. Raises CameraError."""
    rest = {key: value for key, value in settings.items() if key != "kind"}
    match settings["kind"]:
        case "sim":
            from visuomotor.runtime.arms.sim import SimCamera

            return SimCamera(**rest)
        case "ros2":
            from visuomotor.runtime.arms.ros2 import Ros2Camera

            return Ros2Camera(**rest)
        case "capture":
            from visuomotor.runtime.cameras import Capture

            return Capture(**rest, size=None if lens is None else (lens.width, lens.height))
    raise CameraError(f"camera: unknown kind {settings['kind']}")


def streamer_process(settings: dict[str, Any], stop: _Stop) -> None:
    """settings: arm, slots (names), log (path or null), camera_period [s], start (position and
    tolerance, rad; null: anywhere)."""
    arm = make_arm(settings["arm"])
    joints = len(arm.limits.joint_names)
    slots = settings["slots"]
    arm.connect()
    warning = arm.claim()
    told = settings["start"]
    start = None if told is None else Start(np.array(told["position"]), told["tolerance"])
    streamer = Streamer(
        arm,
        Slot.open(slots["command"], command_type(joints)),
        Slot.open(slots["report"], report_type(joints)),
        Slot.open(slots["switch"], SWITCH),
        None if settings["log"] is None else Path(settings["log"]),
        Patience.for_camera(settings["camera_period"]),
        start,
    )
    ready = {"ready": keep_awake(STREAMER_PRIORITY)} | ({"warning": warning} if warning else {})
    print(json.dumps(ready), flush=True)
    run_streamer(streamer, stop.requested)


def policy_process(settings: dict[str, Any], stop: _Stop) -> None:
    """settings: bundle (path), camera, lens (path or null), slots (names)."""
    from visuomotor.runtime.bundle import load_bundle
    from visuomotor.runtime.cameras import Newest
    from visuomotor.runtime.lens import load_lens
    from visuomotor.runtime.policy_loop import WARM_UP, PolicyLoop
    from visuomotor.runtime.preprocessing import Preprocessing

    bundle = load_bundle(settings["bundle"])
    contract = bundle.contract
    lens = None if settings["lens"] is None else load_lens(settings["lens"])
    joints, slots = len(contract.joint_names), settings["slots"]
    preprocessing = Preprocessing(contract.height, contract.width, contract.fovy_deg, lens)
    camera = Newest(make_camera(settings["camera"], lens), preprocessing)
    loop = PolicyLoop(
        bundle,
        camera,
        Slot.open(slots["command"], command_type(joints)),
        Slot.open(slots["report"], report_type(joints)),
    )
    deadline = time.monotonic() + FIRST_FRAME
    while camera.frame is None and not stop.requested():
        if time.monotonic() > deadline:
            why = f": {camera.problem}" if camera.problem else ""
            raise CameraError(f"the camera has sent no frame within {FIRST_FRAME:.0f} s{why}")
        time.sleep(0.01)
    sys.setswitchinterval(SWITCH_INTERVAL)
    awake = keep_awake(POLICY_PRIORITY)
    told = f"replayed {bundle.replay.steps} golden steps; {awake}"
    print(json.dumps({"ready": told}), flush=True)
    period = 1.0 / contract.control_rate_hz
    run_at(period, loop.tick, stop.requested, warm_up=loop.warm_up, lead=WARM_UP)
    camera.close()
    if loop.durations:
        spent = 1000 * np.percentile(loop.durations, [50, 99])
        print(json.dumps({"policy_ms_p50": spent[0], "policy_ms_p99": spent[1]}), flush=True)


class _Stop:
    """Whether to end: asked by a signal, or left alone by whoever started this process."""

    def __init__(self) -> None:
        self._asked = False
        self._parent = os.getppid()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
            signal.signal(number, self._ask)
        # Ctrl-C in a terminal: deploy decides the order in which its processes end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _ask(self, number: int, frame: object) -> None:
        self._asked = True

    def requested(self) -> bool:
        return self._asked or os.getppid() != self._parent


# Each with the settings that it cannot start without.
_ROLES: dict[str, tuple[Callable[[dict[str, Any], _Stop], None], tuple[str, ...]]] = {
    "streamer": (
        streamer_process,
        (
            "arm.kind",
            "slots.command",
            "slots.report",
            "slots.switch",
            "log",
            "camera_period",
            "start",
        ),
    ),
    "policy": (
        policy_process,
        ("bundle", "camera.kind", "lens", "slots.command", "slots.report"),
    ),
}


class _UsageError(Exception):
    """Arguments that deploy does not give."""


def _parse(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """-> role, settings. Raises _UsageError."""
    if len(argv) != 2 or argv[0] not in _ROLES:
        raise _UsageError(f"expected {' or '.join(_ROLES)} and its settings as JSON; see deploy")
    try:
        settings = json.loads(argv[1])
    except ValueError as error:
        raise _UsageError(f"settings: no JSON: {error}") from error
    for path in _ROLES[argv[0]][1]:
        inner = settings
        for name in path.split("."):
            if not isinstance(inner, dict) or name not in inner:
                raise _UsageError(f"settings: {path} is missing")
            inner = inner[name]
    return argv[0], settings


def main(argv: list[str]) -> int:
    try:
        role, settings = _parse(argv)
        _ROLES[role][0](settings, _Stop())
    except (ArmError, BundleError, CameraError, LogError, _UsageError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
