"""The policy's process, tick by tick: when its memory is emptied, which image it reads, what it
tells the streamer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visuomotor.envs import robot
from visuomotor.runtime.bundle import BundleError, Contract
from visuomotor.runtime.cameras import Frame
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.policy_loop import PolicyLoop, check_arm
from visuomotor.runtime.proprioception import entries
from visuomotor.runtime.slots import Slot, command_type, report_type, untext

REFRESH = 3  # ticks that an image is held
NAMES = LIMITS.joint_names


class FakeBundle:
    """Asks for as many rad/s as it has made steps since the last reset."""

    def __init__(self, **changed: Any):
        facts: dict[str, Any] = {
            "task": "lifting",
            "joint_names": NAMES,
            "velocity_limits": LIMITS.velocity,
            "control_rate_hz": 20.0,
            "height": 2,
            "width": 2,
            "proprio_dim": 24,
            "memory": 1,
            "refresh_steps": REFRESH,
            "fovy_deg": 30.0,
            "episode_s": 5.0,
        }
        self.contract = Contract(**(facts | changed))
        self.manifest: dict[str, Any] = {"proprio": {"entries": entries(NAMES)}}
        self.steps = 0
        self.problem = ""
        self.pixels: list[int] = []  # a number of each image that it was given

    def reset(self) -> None:
        self.steps = 0

    def step(self, pixels: np.ndarray, proprio: np.ndarray) -> np.ndarray:
        assert proprio.shape == (24,)
        if self.problem:
            raise BundleError(self.problem)
        self.steps += 1
        self.pixels.append(int(pixels[0, 0, 0]))
        return np.full(len(NAMES), self.steps, np.float32)


class FakeCamera:
    frame: Frame | None = None


class Bench:
    """A loop between a streamer and a camera that are played."""

    def __init__(self) -> None:
        self.bundle, self.camera = FakeBundle(), FakeCamera()
        self.command, self.report = Slot.create(command_type(9)), Slot.create(report_type(9))
        self.loop = PolicyLoop(
            self.bundle,  # type: ignore[arg-type]
            self.camera,  # type: ignore[arg-type]
            self.command,
            self.report,
        )
        self.frames = 0

    def see(self) -> None:
        """The camera's next frame, full of its number; it came at 100 s and so many more."""
        image = np.full((2, 2, 3), self.frames, np.uint8)
        stamp = 100.0 + self.frames
        self.camera.frame = Frame(image, stamp, stamp)
        self.frames += 1

    def tell(self, state: State, armed: int, joint_stamp: float = 50.0) -> None:
        """The streamer's report."""
        value = np.zeros((), report_type(9))
        value["position"] = robot.START_QPOS
        value["joint_stamp"] = joint_stamp
        value["state"], value["armed"] = state.value, armed
        self.report.write(value)

    def tick(self) -> np.ndarray:
        """-> the command that was written."""
        before = self.command.read()[0]
        self.loop.tick()
        number, value = self.command.read()
        assert number == before + 1
        assert value is not None
        return value

    def close(self) -> None:
        self.command.close()
        self.report.close()


@pytest.fixture
def bench():
    bench = Bench()
    yield bench
    bench.close()


def test_the_memory_stays_empty_while_latched_and_grows_while_running(bench: Bench) -> None:
    bench.see()
    bench.tell(State.LATCHED, armed=0)
    assert [bench.tick()["velocity"][0] for _ in range(3)] == [1.0, 1.0, 1.0]
    bench.tell(State.RUNNING, armed=1)
    assert [bench.tick()["velocity"][0] for _ in range(3)] == [1.0, 2.0, 3.0]
    bench.tell(State.SLOWING, armed=1)
    assert bench.tick()["velocity"][0] == 4.0, "to slow down is no new episode"
    bench.tell(State.RUNNING, armed=1)
    assert bench.tick()["velocity"][0] == 5.0
    bench.tell(State.LATCHED, armed=1)
    assert bench.tick()["velocity"][0] == 1.0


def test_a_release_and_press_between_two_ticks_is_a_new_episode(bench: Bench) -> None:
    bench.see()
    bench.tell(State.RUNNING, armed=1)
    assert [bench.tick()["velocity"][0] for _ in range(2)] == [1.0, 2.0]
    bench.see()
    bench.tell(State.LATCHED, armed=1)  # nobody looks at this one
    bench.tell(State.RUNNING, armed=2)
    assert bench.tick()["velocity"][0] == 1.0
    assert bench.bundle.pixels[-1] == 1, "the old episode's image is held no longer"
    assert bench.tick()["velocity"][0] == 2.0


def test_an_image_is_held_as_long_as_in_training(bench: Bench) -> None:
    bench.tell(State.RUNNING, armed=1)
    used, newest = [], []
    for _ in range(2 * REFRESH + 1):
        bench.see()
        command = bench.tick()
        used.append(command["used_frame_stamp"] - 100.0)
        newest.append(command["frame_stamp"] - 100.0)
    assert bench.bundle.pixels == used == [0, 0, 0, 3, 3, 3, 6]
    assert newest == [0, 1, 2, 3, 4, 5, 6], "the camera's health is told at every tick"


def test_a_policy_that_refuses_its_input_says_so_and_asks_for_nothing(bench: Bench) -> None:
    bench.see()
    bench.tell(State.RUNNING, armed=1)
    assert untext(bench.tick()["problem"]) == ""
    bench.bundle.problem = "inputs are not finite: proprio[0] = nan"
    command = bench.tick()
    assert untext(command["problem"]) == bench.bundle.problem
    assert not command["velocity"].any()
    bench.bundle.problem = ""
    command = bench.tick()
    assert untext(command["problem"]) == ""
    assert command["velocity"].all()


def test_nothing_is_told_before_joints_and_a_frame_are_there(bench: Bench) -> None:
    bench.loop.tick()  # neither
    bench.tell(State.LATCHED, armed=0)
    bench.loop.tick()  # no frame
    bench.see()
    bench.tell(State.LATCHED, armed=0, joint_stamp=0.0)
    bench.loop.tick()  # the arm has said nothing yet
    assert bench.command.read() == (0, None)
    bench.tell(State.LATCHED, armed=0)
    assert bench.tick()["used_joint_stamp"] == 50.0


def test_other_joints_or_another_order_are_refused() -> None:
    check_arm(FakeBundle(), NAMES)  # type: ignore[arg-type]
    turned = (NAMES[1], NAMES[0], *NAMES[2:])
    with pytest.raises(BundleError, match=r"joints\.names"):
        check_arm(FakeBundle(joint_names=turned), NAMES)  # type: ignore[arg-type]


@pytest.mark.parametrize("received", [None, entries(NAMES)[:-1], entries(NAMES)[::-1]])
def test_other_entries_of_proprioception_are_refused(received: list[str] | None) -> None:
    bundle = FakeBundle()
    bundle.manifest["proprio"]["entries"] = received
    with pytest.raises(BundleError, match=r"proprio\.entries"):
        check_arm(bundle, NAMES)  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [10.0, 19.9, 40.0])
def test_another_rate_than_the_guard_expects_is_refused(rate: float) -> None:
    with pytest.raises(BundleError, match=r"control\.rate_hz: the guard expects .* 20 times"):
        check_arm(FakeBundle(control_rate_hz=rate), NAMES)  # type: ignore[arg-type]
