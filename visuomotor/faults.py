"""Makes things go wrong around a running policy and measures what the arm does:
`python -m visuomotor.faults bundle=lifting`.

For each fault the two processes of the runtime and a simulated arm are started, the arm is set in
motion, the fault is injected, and the arm's own record tells what it was asked and how it moved.
Writes `faults.json` and `faults.md`, the table of docs/safety.md; ends with exit code 1 if a fault
has another verdict (fault_verdicts.py) than good.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from visuomotor.cli import run_command
from visuomotor.deployment import DeployConfig, Deployment, SimOptions, make_folder
from visuomotor.errors import UserError
from visuomotor.fault_verdicts import ARM_LATE, DELAY, Then, measured, table, verdict
from visuomotor.files import write_atomic
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.slots import command_type
from visuomotor.stepped_clock import STEP

# s of motion before the fault: lifting then moves fast, its hand still 10 cm above the table, which
# would stop it, too; and of watching after it.
BEFORE, AFTER = 0.8, 2.0
COMMAND_PERIOD = 0.05  # s, of a policy that the suite plays itself
ARM_PRIORITY = 3  # of SCHED_FIFO, where allowed, below the runtime's own
TRIES = 3  # of a fault, where the simulated arm was late itself


@dataclass(frozen=True)
class FaultConfig:
    bundle: str = "lifting"  # a bundle's folder, or a shipped policy
    only: str | None = None  # names of faults, separated by commas; None: all
    out: str = "faults"  # folder

    def validate(self) -> None:
        unknown = sorted(set(self.chosen()) - FAULTS.keys())
        if unknown:
            raise UserError(f"only={','.join(unknown)}: expected some of {', '.join(FAULTS)}")

    def chosen(self) -> list[str]:
        return list(FAULTS) if self.only is None else self.only.split(",")


class PlayedPolicy:
    """Writes commands in the place of the policy's process, which is stopped."""

    def __init__(self, deployment: Deployment, wanted: Callable[[float], np.ndarray]):
        """wanted: s since the start -> (A,) rad/s."""
        deployment.policy.popen.send_signal(signal.SIGSTOP)
        self.wanted = wanted
        self._slot = deployment.slots["command"]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self) -> None:
        begin = time.monotonic()
        value = np.zeros((), command_type(len(LIMITS.joint_names)))
        while not self._stop.wait(COMMAND_PERIOD):
            now = time.monotonic()
            value["velocity"] = self.wanted(now - begin)
            for stamp in ("stamp", "frame_stamp", "used_frame_stamp", "used_joint_stamp"):
                value[stamp] = now
            self._slot.write(value)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(frozen=True)
class Fault:
    """inject: makes it happen; what it returns undoes it before the end. wanted: a policy that the
    suite plays itself. because: pattern of the reason that is told for a stop. unreachable: nothing
    reaches the arm while it is made to happen. stop_is_cut: the stop is on its way meanwhile, and
    only its end arrives."""

    tells: str
    inject: Callable[[Deployment], Callable[[], None] | None]
    wanted: Callable[[float], np.ndarray] | None = None
    then: Then = Then.REST
    because: str = ""
    unreachable: bool = False
    stop_is_cut: bool = False
    program: tuple[str, ...] = ()  # what runs the runtime's processes' program; (): nothing else


def _sim(kind: str, value: float = 1.0) -> Callable[[Deployment], Callable[[], Any]]:
    def inject(deployment: Deployment) -> Callable[[], Any]:
        deployment.ask_sim({"do": "fault", "kind": kind, "value": value})
        return lambda: deployment.ask_sim({"do": "fault", "kind": kind, "value": 0.0})

    return inject


def _kill_policy(deployment: Deployment) -> None:
    deployment.policy.popen.kill()


def _stop_policy(deployment: Deployment) -> Callable[[], None]:
    process = deployment.policy.popen
    process.send_signal(signal.SIGSTOP)
    return lambda: process.send_signal(signal.SIGCONT)


def _stall(name: str, seconds: float) -> Callable[[Deployment], None]:
    def inject(deployment: Deployment) -> None:
        process = getattr(deployment, name).popen
        process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        process.send_signal(signal.SIGCONT)

    return inject


def _set_clocks(number: signal.Signals, seconds: float) -> Callable[[Deployment], Any]:
    """The wall clocks of the runtime's processes, and the time stamps of all that the arm and the
    camera send."""

    def inject(deployment: Deployment) -> Callable[[], Any]:
        for process in (deployment.policy, deployment.streamer):
            process.popen.send_signal(number)
        return _sim("clock_step", seconds)(deployment)

    return inject


def _spoil(value: float, what: str = "velocity") -> Callable[[Deployment], None]:
    """The policy's next command holds what is no number."""

    def inject(deployment: Deployment) -> None:
        deployment.policy.popen.send_signal(signal.SIGSTOP)
        slot = deployment.slots["command"]
        _, command = slot.read()
        assert command is not None
        command = command.copy()
        command["stamp"] = time.monotonic()
        if what == "velocity":
            command["velocity"][4] = value
        else:
            command[what] = value
        slot.write(command)

    return inject


def _cut(deployment: Deployment) -> None:
    undo = _sim("drop", 1.0)(deployment)
    time.sleep(1.0)
    undo()


def _unconfirmed(deployment: Deployment) -> None:
    """A human holds the switch all the time; whoever tells the streamer so is held up."""
    deployment.confirmation.paused = True
    time.sleep(0.5)
    deployment.confirmation.paused = False


def _let_go(deployment: Deployment) -> None:
    deployment.switch.down = False  # type: ignore[attr-defined]


def _nothing(deployment: Deployment) -> None:
    return


def _to_limits(t: float) -> np.ndarray:
    """Every joint at full speed, always the same way."""
    return np.array([1, 1, -1, -1, 1, -1, 1, 1, 1]) * 10.0 * LIMITS.velocity


def _to_other_limits(t: float) -> np.ndarray:
    return -_to_limits(t)


def _wild(t: float) -> np.ndarray:
    """Another direction with every command, at ten times what is allowed."""
    rng = np.random.default_rng(int(t / COMMAND_PERIOD))
    return rng.choice([-10.0, 10.0], len(LIMITS.velocity)) * LIMITS.velocity


def _sway(t: float) -> np.ndarray:
    """Back and forth at full speed: something to stop."""
    way = 1.0 if int(t) % 2 == 0 else -1.0
    return way * np.array([1, 0, 0, 1, 1, 1, 0, 0, 0]) * LIMITS.velocity


CLOCK = ("visuomotor.stepped_clock",)

FAULTS: dict[str, Fault] = {
    "none": Fault("nothing goes wrong", _nothing, then=Then.GO_ON),
    "released": Fault("the dead-man switch is released", _let_go, because="switch was released"),
    "policy-killed": Fault(
        "the policy's process is killed (SIGKILL)", _kill_policy, because="last (frame|command) is"
    ),
    "policy-stopped": Fault(
        "the policy's process is stopped (SIGSTOP)", _stop_policy, because="last (frame|command) is"
    ),
    "policy-stall": Fault(
        "the policy's process is held up for 300 ms",
        _stall("policy", 0.3),
        because="last (frame|command) is",
    ),
    "streamer-stall": Fault(
        "the streamer itself is held up for 300 ms",
        _stall("streamer", 0.3),
        unreachable=True,
        because="held up",
    ),
    "command-nan": Fault("a command is NaN", _spoil(float("nan")), because="not finite: nan"),
    "command-inf": Fault("a command is infinite", _spoil(float("inf")), because="not finite: inf"),
    "stamp-nan": Fault(
        "a command's time stamp is NaN", _spoil(float("nan"), "stamp"), because="command never came"
    ),
    "stamp-inf": Fault(
        "a command's time stamp is infinite",
        _spoil(float("inf"), "stamp"),
        because="command never came",
    ),
    "joints-nan": Fault(
        "a joint's position is NaN", _sim("joints_nan"), because="joints that are not finite"
    ),
    "joints-inf": Fault(
        "a joint's position is infinite", _sim("joints_inf"), because="joints that are not finite"
    ),
    "velocities-nan": Fault(
        "a joint's velocity is NaN", _sim("velocities_nan"), because="joints that are not finite"
    ),
    "velocities-inf": Fault(
        "a joint's velocity is infinite",
        _sim("velocities_inf"),
        because="joints that are not finite",
    ),
    "joints-swapped": Fault(
        "two joints' values are swapped", _sim("joints_swapped"), because="may be swapped"
    ),
    "names-swapped": Fault(
        "two joints' names are swapped", _sim("names_swapped"), because="may be swapped"
    ),
    "names-permuted": Fault(
        "joints come in another order, with their names", _sim("names_permuted"), then=Then.GO_ON
    ),
    "names-missing": Fault(
        "joint states come without names", _sim("names_missing"), because="last joint state is"
    ),
    "joints-missing": Fault(
        "joints are missing in every state", _sim("joints_missing"), because="last joint state is"
    ),
    "joints-stale": Fault("joint states end", _sim("joints_stop"), because="last joint state is"),
    "joints-frozen": Fault(
        "joint states repeat, each with a new stamp", _sim("joints_freeze"), because="are stuck"
    ),
    "frames-frozen": Fault(
        "the camera repeats one picture", _sim("frames_freeze"), because="last frame is"
    ),
    "frames-gone": Fault("the camera sends nothing", _sim("frames_stop"), because="last frame is"),
    "frames-broken": Fault(
        "the camera sends what is no picture", _sim("frames_broken"), because="last frame is"
    ),
    "network-cut": Fault(
        "no message arrives for 1 s, either way",
        _cut,
        unreachable=True,
        stop_is_cut=True,
        because="last (frame|joint state) is",
    ),
    "peer-gone": Fault(
        "the arm's driver is stopped for 1 s, and back",
        _stall("sim_arm", 1.0),
        unreachable=True,
        stop_is_cut=True,
        because="last (frame|joint state) is",
    ),
    "switch-unknown": Fault(
        "nobody confirms the held switch for 0.5 s", _unconfirmed, because="nobody tells whether"
    ),
    "clock-ahead": Fault(
        "wall clocks and time stamps jump an hour ahead",
        _set_clocks(signal.SIGUSR1, STEP),
        then=Then.GO_ON,
        program=CLOCK,
    ),
    "clock-back": Fault(
        "wall clocks and time stamps jump an hour back",
        _set_clocks(signal.SIGUSR2, -STEP),
        then=Then.GO_ON,
        program=CLOCK,
    ),
    "loss": Fault("10 % of all messages are lost", _sim("drop", 0.1), then=Then.GO_ON),
    "limits": Fault(
        "a policy drives all joints at limits", _nothing, _to_limits, then=Then.BE_HELD
    ),
    "other-limits": Fault("the same the other way", _nothing, _to_other_limits, then=Then.BE_HELD),
    "wild": Fault(
        "a policy changes direction with every command", _nothing, _wild, then=Then.GO_ON
    ),
    "full-speed": Fault(
        "the policy ends at full speed", _kill_policy, _sway, because="last command is"
    ),
}


def run_fault(name: str, bundle: str, folder: Path) -> dict[str, Any]:
    """Runs one fault; -> a row for `verdict` and `table`."""
    fault = FAULTS[name]
    # Late, but always by as much: otherwise several ticks' velocities arrive in one of the arm's,
    # and what looks like acceleration there is the jitter.
    sim = SimOptions(command_delay=DELAY, command_jitter=0.0, priority=ARM_PRIORITY)
    config = DeployConfig(bundle=bundle, arm="sim", sim=sim)
    folder.mkdir(parents=True)
    deployment = Deployment(config, folder)
    deployment.program = (*fault.program, *deployment.program)
    with deployment:
        deployment.start_sim(0)
        played = None if fault.wanted is None else PlayedPolicy(deployment, fault.wanted)
        if not deployment.press():
            raise UserError(f"{name}: the arm did not start: {deployment.reason}")
        deployment.ask_sim({"do": "record"})
        time.sleep(BEFORE)
        onset = time.monotonic()
        if played is not None and fault.inject is _kill_policy:
            played.close()  # this policy lives here
        undo = fault.inject(deployment)
        ended = time.monotonic()
        time.sleep(AFTER)
        state, reason = deployment.state, deployment.reason
        if undo is not None:
            undo()
        time.sleep(0.5)
        state_after = deployment.state
        if played is not None:
            played.close()
        deployment.policy.popen.send_signal(signal.SIGCONT)
        record_path = folder / "arm.npz"
        deployment.ask_sim({"do": "record_to", "path": str(record_path.resolve())})
    return measured(dict(np.load(record_path)), onset, ended) | {
        "fault": name,
        "tells": fault.tells,
        "then": fault.then.value,
        "because": fault.because,
        "unreachable": fault.unreachable,
        "stop_is_cut": fault.stop_is_cut,
        "state": state.name.lower(),
        "still_latched": state_after is State.LATCHED,
        "reason": reason if state is not State.RUNNING else "",
    }


def measure(name: str, bundle: str, folder: Path) -> dict[str, Any]:
    """`run_fault`, once more where the simulated arm was late itself: a real one is not."""
    for number in range(TRIES):
        row = run_fault(name, bundle, folder / f"{name}-{number}")
        if row["arm_late_s"] <= ARM_LATE:
            break
    return row | {"tries": number + 1}


def faults(argv: list[str]) -> int:
    config = parse_overrides(argv, FaultConfig)
    out = Path(config.out)
    make_folder(out)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(config.chosen(), desc="faults", disable=not sys.stderr.isatty()):
            row = measure(name, config.bundle, Path(folder))
            row["verdict"] = verdict(row) or "good"
            rows.append(row)
            print(f"{name}: {row['verdict']}; {row['state']} {row['reason']}".strip(), flush=True)
            facts = {"bundle": config.bundle, "cores": os.cpu_count(), "rows": rows}
            write_atomic(out / "faults.json", (json.dumps(facts, indent=2) + "\n").encode())
            write_atomic(out / "faults.md", table(rows).encode())
    bad = [row["fault"] for row in rows if verdict(row)]
    print(f"{len(rows) - len(bad)} of {len(rows)} verdicts are good; {out}/faults.md")
    return 1 if bad else 0


def main() -> None:
    sys.exit(run_command(faults, sys.argv[1:]))


if __name__ == "__main__":
    main()
