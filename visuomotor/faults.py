"""Makes things go wrong around a running policy and measures what the arm meets:
`python -m visuomotor.faults bundle=lifting`.

For each fault the two processes of the runtime and a simulated arm are started, the arm is set in
motion, the fault is injected, and the arm's own record tells what arrived there: how long until
nothing but zeros, the largest velocity, acceleration and overshoot of limits. Writes `faults.json`
and `faults.md`, the table of docs/safety.md.
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
from visuomotor.files import write_atomic
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.guard import State
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.slots import command_type

BEFORE, AFTER = 1.2, 2.0  # s of motion before the fault, and of watching after it
ALLOWED = 0.25  # s from a fault's onset until the stop begins, at most
RAMP = 0.25  # s that a stop takes at most
# s: the simulated arm's lateness in carrying out a velocity; beside it a tick of the streamer, one
# of the arm's clock, and what is between.
DELAY = 0.07  # s
TRANSIT = 0.03 + DELAY
SILENT = ("streamer-stall", "network-cut")  # nothing can reach the arm as long as these last
COMMAND_PERIOD = 0.05  # s, of a policy that the suite plays itself
TICK = 0.01  # s, of the arm's record
WINDOW = 0.05  # s over which acceleration is measured there
LATENESS = 0.5  # share by which the arm's own late ticks may make that look larger


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
    suite plays itself. stops: whether the arm has to come to rest."""

    tells: str
    inject: Callable[[Deployment], Callable[[], None] | None]
    wanted: Callable[[float], np.ndarray] | None = None
    stops: bool = True


def _sim(kind: str, value: float = 1.0) -> Callable[[Deployment], Callable[[], None]]:
    def inject(deployment: Deployment) -> Callable[[], None]:
        deployment.ask_sim({"do": "fault", "kind": kind, "value": value})
        return lambda: _undo(deployment, kind)

    return inject


def _undo(deployment: Deployment, kind: str) -> None:
    deployment.ask_sim({"do": "fault", "kind": kind, "value": 0.0})


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


def _spoil(value: float) -> Callable[[Deployment], None]:
    """The policy's next commands are no numbers."""

    def inject(deployment: Deployment) -> None:
        deployment.policy.popen.send_signal(signal.SIGSTOP)
        slot = deployment.slots["command"]
        _, command = slot.read()
        assert command is not None
        command = command.copy()
        command["velocity"][4] = value
        command["stamp"] = time.monotonic()
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


FAULTS: dict[str, Fault] = {
    "none": Fault("nothing goes wrong", _nothing, stops=False),
    "released": Fault("the dead-man switch is released", _let_go),
    "policy-killed": Fault("the policy's process is killed (SIGKILL)", _kill_policy),
    "policy-stopped": Fault("the policy's process is stopped (SIGSTOP)", _stop_policy),
    "policy-stall": Fault("the policy's process is held up for 300 ms", _stall("policy", 0.3)),
    "streamer-stall": Fault("the streamer itself is held up for 300 ms", _stall("streamer", 0.3)),
    "command-nan": Fault("a command is NaN", _spoil(float("nan"))),
    "command-inf": Fault("a command is infinite", _spoil(float("inf"))),
    "joints-nan": Fault("a joint's position is NaN", _sim("joints_nan")),
    "joints-inf": Fault("a joint's position is infinite", _sim("joints_inf")),
    "velocities-nan": Fault("a joint's velocity is NaN", _sim("velocities_nan")),
    "velocities-inf": Fault("a joint's velocity is infinite", _sim("velocities_inf")),
    "joints-swapped": Fault("two joints' values are swapped", _sim("joints_swapped")),
    "joints-missing": Fault("joints are missing in every state", _sim("joints_missing")),
    "joints-stale": Fault("joint states end", _sim("joints_stop")),
    "frames-frozen": Fault("the camera repeats one picture", _sim("frames_freeze")),
    "frames-gone": Fault("the camera sends nothing", _sim("frames_stop")),
    "frames-broken": Fault("the camera sends what is no picture", _sim("frames_broken")),
    "network-cut": Fault("no message arrives for 1 s, either way", _cut),
    "peer-gone": Fault("the arm's driver is stopped for 1 s, and back", _stall("sim_arm", 1.0)),
    "switch-unknown": Fault("nobody confirms the held switch for 0.5 s", _unconfirmed),
    "clock-step": Fault("time stamps jump by an hour", _sim("clock_step", 3600.0), stops=False),
    "loss": Fault("10 % of all messages are lost", _sim("drop", 0.1), stops=False),
    "limits": Fault("a policy drives all joints at limits", _nothing, _to_limits, False),
    "other-limits": Fault("the same the other way", _nothing, _to_other_limits, False),
    "wild": Fault("a policy changes direction with every command", _nothing, _wild, False),
    "full-speed": Fault("the policy ends at full speed", _kill_policy, _sway),
}


def run_fault(name: str, bundle: str, folder: Path) -> dict[str, Any]:
    """Runs one fault; -> what the arm met."""
    fault = FAULTS[name]
    # Late, but always by as much: otherwise several ticks' velocities arrive in one of the arm's,
    # and what looks like acceleration there is the jitter.
    sim = SimOptions(command_delay=DELAY, command_jitter=0.0)
    config = DeployConfig(bundle=bundle, arm="sim", sim=sim)
    folder.mkdir(parents=True, exist_ok=True)
    with Deployment(config, folder) as deployment:
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
    record = dict(np.load(record_path))
    return _measured(fault, record, onset, ended) | {
        "fault": name,
        "tells": fault.tells,
        "state": state.name.lower(),
        "still_latched": state_after is State.LATCHED,
        "reason": reason if state is not State.RUNNING else "",
    }


def _measured(
    fault: Fault, record: dict[str, np.ndarray], onset: float, ended: float
) -> dict[str, Any]:
    """Of the arm's record (T, ...); onset and ended in s of the same clock."""
    times, asked = record["time"], record["asked"]
    moving = np.abs(asked).max(axis=1) > 0.0
    late = times[moving & (times > onset)]
    rest = float(late.max() - onset + TICK) if len(late) else 0.0
    # Over a while: on a busy machine the arm's clock, too, takes in several velocities at once.
    ends = np.searchsorted(times, times + WINDOW)
    ends = ends[ends < len(times)]
    begins = np.arange(len(ends))
    change = np.abs(asked[ends] - asked[begins]) / (times[ends] - times[begins])[:, None]
    acceleration = change / LIMITS.acceleration
    low, high = LIMITS.position_low, LIMITS.position_high
    out = np.maximum(low - record["position"], record["position"] - high).max()
    hand = np.maximum(
        LIMITS.workspace_low - record["pinch"], record["pinch"] - LIMITS.workspace_high
    )
    result = {
        "moving_at_onset": float(np.abs(asked[times <= onset][-20:] / LIMITS.velocity).max()),
        "rest_after_s": rest,
        "injected_for_s": ended - onset,
        "largest_velocity": float(np.abs(asked / LIMITS.velocity).max()),
        "largest_acceleration": float(acceleration.max(initial=0.0)),
        "joint_overshoot_rad": float(max(out, 0.0)),
        "workspace_overshoot_m": float(max(hand.max(), 0.0)),
    }
    kept = (
        result["largest_velocity"] <= 1.0 + 1e-9
        and result["largest_acceleration"] <= 1.0 + LATENESS
        and result["joint_overshoot_rad"] <= 0.0
        and result["workspace_overshoot_m"] <= 0.0
    )
    return result | {"limits_kept": kept, "has_to_stop": fault.stops}


def verdict(row: dict[str, Any]) -> str:
    """What is wrong with a row; empty: nothing."""
    # Where nothing can reach the arm, nothing can hold it, either.
    if not row["limits_kept"] and row["fault"] not in SILENT:
        return "a limit was exceeded"
    if row["has_to_stop"]:
        stalled = row["injected_for_s"] if row["fault"] in SILENT else 0.0
        if row["rest_after_s"] > ALLOWED + RAMP + TRANSIT + stalled:
            return "too late"
        if row["state"] != "latched" or not row["still_latched"]:
            return "not latched"
    elif row["state"] not in ("running", "slowing"):
        return f"stopped: {row['reason']}"
    return ""


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| fault | rest after | largest velocity | largest acceleration | beyond joints | "
        "beyond workspace | then |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rest = f"{1000 * row['rest_after_s']:.0f} ms" if row["has_to_stop"] else "goes on"
        cells = [
            row["tells"],
            rest,
            f"{100 * row['largest_velocity']:.0f} %",
            f"{100 * row['largest_acceleration']:.0f} %",
            f"{row['joint_overshoot_rad']:.3f} rad",
            f"{1000 * row['workspace_overshoot_m']:.0f} mm",
            f"{row['state']}{': ' + row['reason'] if row['reason'] else ''}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def faults(argv: list[str]) -> int:
    config = parse_overrides(argv, FaultConfig)
    out = Path(config.out)
    make_folder(out)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in tqdm(config.chosen(), desc="faults", disable=not sys.stderr.isatty()):
            rows.append(run_fault(name, config.bundle, Path(folder) / name))
            wrong = verdict(rows[-1])
            print(f"{name}: {wrong or 'as it should be'} ({json.dumps(rows[-1])})", flush=True)
    facts = {"bundle": config.bundle, "cores": os.cpu_count(), "rows": rows}
    write_atomic(out / "faults.json", (json.dumps(facts, indent=2) + "\n").encode())
    write_atomic(out / "faults.md", table(rows).encode())
    bad = [row["fault"] for row in rows if verdict(row)]
    print(f"{len(rows) - len(bad)} of {len(rows)} faults as they should be; {out}/faults.md")
    return 1 if bad else 0


def main() -> None:
    sys.exit(run_command(faults, sys.argv[1:]))


if __name__ == "__main__":
    main()
