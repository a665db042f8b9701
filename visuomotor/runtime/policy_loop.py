"""The policy's process: newest image and joints in, a velocity out, at the policy's rate.

It talks to nobody but the streamer, over shared memory. Whatever happens to it, the arm is the
streamer's: when this process is late, stopped or gone, the streamer slows the arm down.
"""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np

from visuomotor.runtime.bundle import Bundle, BundleError
from visuomotor.runtime.cameras import Newest
from visuomotor.runtime.guard import POLICY_PERIOD, State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.proprioception import entries, proprioception
from visuomotor.runtime.slots import Slot, command_type, state_of, text

WARM_UP = 0.004  # s of steps for nothing before each that counts: docs/results.md, "On the arm"


def check_arm(bundle: Bundle, joint_names: tuple[str, ...]) -> None:
    """Raises BundleError if the policy moves other joints than the arm's, in its order, reads
    anything but what `proprioception` gives, or decides at another rate than the guard expects."""
    if bundle.contract.joint_names != joint_names:
        raise BundleError(
            f"policy.json: joints.names: the arm has {list(joint_names)}, the policy moves "
            f"{list(bundle.contract.joint_names)}"
        )
    expected = entries(bundle.contract.joint_names)
    received = bundle.manifest["proprio"].get("entries")
    if received != expected:
        raise BundleError(
            f"policy.json: proprio.entries: this runtime gives {expected}, the policy wants "
            f"{received}"
        )
    rate = bundle.contract.control_rate_hz
    if not math.isclose(rate * POLICY_PERIOD, 1.0, rel_tol=1e-6):
        raise BundleError(
            f"policy.json: control.rate_hz: the guard expects a command {1.0 / POLICY_PERIOD:g} "
            f"times a second, the policy decides {rate:g} times"
        )


class PolicyLoop:
    """Call `tick` at the policy's rate, and `warm_up` before it.

    The memory is empty as long as the arm is latched and when it has been armed anew, however short
    it was latched in between: every start by a human is a new episode. An image is taken every
    `camera.refresh_period_steps` and held in between, as in training.
    """

    def __init__(
        self,
        bundle: Bundle,
        camera: Newest,
        command: Slot,
        report: Slot,
    ):
        check_arm(bundle, LIMITS.joint_names)
        self.bundle = bundle
        self._camera = camera
        self._command = command
        self._report = report
        self._refresh = bundle.contract.refresh_steps
        self._pixels: np.ndarray | None = None
        self._frame_stamp = 0.0
        self._steps = 0
        self._armed = 0  # how often a human had armed the arm at the last tick
        self._value = np.zeros((), command_type(len(bundle.contract.joint_names)))
        self.durations: list[float] = []  # s that a step of the policy took, without the camera

    def warm_up(self) -> None:
        """What `tick` is about to do, for nothing: in the 50 ms since the last one other work has
        taken the processor's caches, and the processor has gone to sleep. To be called for the
        WARM_UP before each tick; without, the step that counts takes up to three times as long."""
        _, report = self._report.read()
        frame = self._camera.frame
        if report is None or frame is None:
            return
        with contextlib.suppress(BundleError, ValueError):
            proprio = proprioception(report["position"], report["velocity"])
            self.bundle.infer(frame.image, proprio, self.bundle.initial_hidden())

    def tick(self) -> None:
        _, report = self._report.read()
        frame = self._camera.frame
        if report is None or not report["joint_stamp"] or frame is None:
            return  # nothing to act on yet: the streamer sees no command
        armed = int(report["armed"])
        if state_of(report) is State.LATCHED or armed != self._armed:
            self.bundle.reset()
            self._steps = 0
        self._armed = armed
        problem = ""
        velocity = np.zeros(len(self.bundle.contract.joint_names))
        try:
            if self._steps % self._refresh == 0:
                self._pixels = frame.image
                self._frame_stamp = frame.stamp
            assert self._pixels is not None
            begin = time.perf_counter()
            proprio = proprioception(report["position"], report["velocity"])
            velocity = self.bundle.step(self._pixels, proprio)
            self.durations.append(time.perf_counter() - begin)
        except (BundleError, ValueError) as error:
            problem = str(error)
        self._steps += 1
        value = self._value
        value["velocity"] = velocity
        value["stamp"] = time.monotonic()
        value["frame_stamp"] = frame.changed
        value["used_frame_stamp"] = self._frame_stamp
        value["used_joint_stamp"] = report["joint_stamp"]
        value["problem"] = text(problem)
        self._command.write(value)
