"""Runs a policy on an arm: `python -m visuomotor.deploy bundle=lifting arm=sim episodes=10`.

Starts two processes, the policy at its own rate and the streamer at 100 Hz (docs/real_arm.md), and
holds what is between them: shared memory, and the dead-man switch. `arm=sim` also starts a
simulated arm with a clock, delays and noise of its own, holds the switch itself, and counts
successes. Everything is logged in `out`. Needs neither torch nor MuJoCo for a real arm.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from visuomotor.cli import StopSignal, run_command
from visuomotor.deployment import LOG, DeployConfig, Deployment, make_folder
from visuomotor.errors import UserError
from visuomotor.files import write_atomic
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.arm import MOST_DELAY
from visuomotor.runtime.arm_delay import SIMULATED, arm_delays
from visuomotor.runtime.errors import BundleError
from visuomotor.runtime.guard import State
from visuomotor.runtime.streamer import ASKED, ENDINGS, TIME_UP, read_log

RESULT = "deployment.json"


@contextmanager
def live_line(stream: IO[str]) -> Iterator[Any]:
    """A line that is written over where somebody looks, unless it `stays`; in a file, one below the
    other."""

    def show(text: str, stays: bool = False) -> None:
        if stream.isatty():
            stream.write(f"\r\x1b[K{text}" + ("\n" if stays else ""))
        else:
            stream.write(f"{text}\n")
        stream.flush()

    yield show
    if stream.isatty():
        stream.write("\n")


def latency(log: Path) -> dict[str, float]:
    """ms, medians and 99th percentiles over the ticks at which a command was first sent; and of
    the arm's own delay, as far as its motion tells it, the joints' median, least and most."""
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
    measured = {
        f"{name}_ms_p{q}": round(1000 * float(np.percentile(values, q)), 3)
        for name, values in told.items()
        for q in (50, 99)
    }
    delays = 1000 * arm_delays(rows)
    if len(delays) > 0:
        names = ("arm_delay_ms", "arm_delay_ms_least", "arm_delay_ms_most")
        values = np.percentile(delays, [50, 0, 100])
        measured |= {name: round(float(v), 3) for name, v in zip(names, values, strict=True)}
    return measured


def trained_delays(manifest: dict[str, Any]) -> dict[str, float]:
    """policy.json -> s, the longest `camera_delay_s` and `action_delay_s` that training had: those
    of full strength, less at less, in whole control steps as they were drawn (factors.py).

    Raises BundleError if it does not say.
    """
    latency = manifest.get("latency")
    told = latency if isinstance(latency, dict) else {}
    names = ("camera_delay_s", "action_delay_s")
    if told.get("trained") is False:
        return dict.fromkeys(names, 0.0)
    try:
        strength = float(manifest["randomization"]["strength"])
        step = float(manifest["control"]["period_s"])
        full = {name: round(float(told[name][1]) / step) for name in names}
        return {name: step * round(strength * steps) for name, steps in full.items()}
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
        raise BundleError(
            f"policy.json: latency: expected {' and '.join(names)}, each [least, most] in s, "
            f"received {latency!r}, beside randomization.strength and control.period_s; export the "
            "policy again"
        ) from error


def beyond_training(measured: dict[str, float], trained: dict[str, float]) -> list[str]:
    """What was later here than ever in training, a line each; what a camera adds before its picture
    arrives is not seen here.

    measured: as `latency` gives it, ms; trained: as `trained_delays` gives it, s.
    """
    told = []
    for name, key in (
        ("frame_to_decision", "camera_delay_s"),
        ("decision_to_sent", "action_delay_s"),
    ):
        here, most = measured.get(f"{name}_ms_p99"), 1000 * trained[key]
        if here is not None and here > most:
            told.append(
                f"{name}: 99 % within {here:.0f} ms, but the policy was trained for at most "
                f"{most:.0f} ms ({key})"
            )
    if "arm_delay_ms" in measured:
        here = measured.get("decision_to_sent_ms_p50", 0.0) + measured["arm_delay_ms"]
        most = 1000 * (trained["action_delay_s"] + SIMULATED)
        if here > most:
            told.append(
                f"decision_to_motion: {here:.0f} ms, of which the arm takes about "
                f"{measured['arm_delay_ms']:.0f}, but the policy was trained for at most "
                f"{most:.0f} ms (action_delay_s, and {1000 * SIMULATED:.0f} of the arm)"
            )
    return told


def beyond_guard(measured: dict[str, float], allowed: float) -> list[str]:
    """Whether the arm was later than the limiter allows for, as a line: it may then go beyond joint
    limits and walls by what it does in the meantime.

    measured: as `latency` gives it, ms; allowed: s, `arm_delay`.
    """
    here = measured.get("arm_delay_ms_most", 0.0)
    if here <= 1000 * allowed:
        return []
    enough = math.ceil(here / 10 + 1) / 100
    advice = f"give arm_delay={enough:g}"
    if enough > MOST_DELAY:
        advice = f"arm_delay={MOST_DELAY:g} is the most, so this arm is too late"
    return [
        f"the arm takes up to {here:.0f} ms, and the limiter allows for {1000 * allowed:.0f}: "
        f"{advice}"
    ]


def run_sim(deployment: Deployment, stop: StopSignal) -> Iterator[dict[str, Any]]:
    """Episodes on the simulated arm, one after the other; success is judged at their end."""
    config, seconds = deployment.config, deployment.episode_seconds
    successes = 0
    assert deployment.sim_port is not None
    with live_line(sys.stderr) as show:
        for episode in range(config.episodes):
            deployment.start_sim(episode)
            armed = deployment.press()
            deadline = time.monotonic() + seconds
            while armed and time.monotonic() < deadline and not stop.requested:
                if deployment.wait(State.LATCHED, 0.02):
                    break
            # At the end it may have slowed down for one message: only a stop ends it early.
            ran = deployment.state in (State.RUNNING, State.SLOWING)
            reason = ENDINGS[TIME_UP] if ran else deployment.reason
            score = deployment.ask_sim({"do": "score"})
            deployment.release()
            if stop.requested:
                break
            success = bool(score["success"]) and ran
            successes += success
            told = "" if ran else f"; {reason}"
            show(f"episode {episode + 1} of {config.episodes}: {successes} successes{told}")
            yield {
                "episode": episode,
                "success": success,
                "stage": score["stage"],
                "stopped": reason,
            }


def run_arm(deployment: Deployment, stop: StopSignal) -> Iterator[dict[str, Any]]:
    """Episodes on a real arm: each begins when the human presses the switch, with the arm at its
    start, and ends when the time is up (the arm then stops) or the human lets go."""
    config, seconds = deployment.config, deployment.episode_seconds
    episode = 0
    told: set[str] = set()  # joints off the start that a human knows of
    with live_line(sys.stderr) as show:
        while episode < config.episodes and not stop.requested:
            off = deployment.off_start()
            if off.keys() != told:
                for line in off.values():
                    show(line, stays=True)
                told = set(off)
            if off:
                show(f"latched: {', '.join(off)} off the start: bring the arm there, see above")
            else:
                show(f"latched: {deployment.reason}; {deployment.switch.start}")
            if not deployment.wait(State.RUNNING, 0.5):
                continue
            show(f"episode {episode + 1}: running for {seconds:.0f} s")
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline and not stop.requested:
                if deployment.wait(State.LATCHED, 0.02):
                    break
            else:
                deployment.end_episode(ASKED if stop.requested else TIME_UP)
            show(f"episode {episode + 1}: {deployment.reason}")
            yield {"episode": episode, "stopped": deployment.reason}
            episode += 1


def deploy(argv: list[str]) -> int:
    config = parse_overrides(argv, DeployConfig)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    out = Path(config.out or f"deployments/{Path(config.bundle).name}-{stamp}")
    deployment = Deployment(config, out)
    try:
        trained = trained_delays(deployment.manifest)
    except BundleError as error:
        raise UserError(f"bundle={config.bundle}: {error}") from error
    make_folder(out)
    # A terminal that is closed is no reason to leave the arm alone.
    signal.signal(signal.SIGHUP, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))
    rows: list[dict[str, Any]] = []
    failure: UserError | None = None
    with StopSignal(notice=b"\nbringing the arm to rest\n") as stop, deployment:
        try:
            for row in (run_sim if config.arm == "sim" else run_arm)(deployment, stop):
                rows.append(row)
        except UserError as error:
            failure = error  # of a process that died; what was run until then is kept
    measured = latency(out / LOG)
    for note in deployment.notes:  # the last line of the policy's process
        measured |= {name: round(v, 3) for name, v in note.items() if name.startswith("policy_ms")}
    result: dict[str, Any] = {
        "bundle": config.bundle,
        "task": deployment.contract.task,
        "arm": config.arm,
        "episodes": len(rows),
        "latency": measured,
        "beyond_training": beyond_training(measured, trained),
        "beyond_guard": beyond_guard(measured, config.arm_delay),
        "trained_for": deployment.manifest["latency"],
        "processes": deployment.notes,
        "rows": rows,
        "error": None if failure is None else str(failure),
    }
    if config.arm == "sim":
        result["successes"] = sum(row["success"] for row in rows)
    write_atomic(out / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    if failure is not None:
        raise failure
    if config.arm == "sim":
        print(f"{result['successes']} of {len(rows)} episodes succeeded")
    for name, value in result["latency"].items():
        print(f"{name}: {value}")
    for line in result["beyond_training"]:
        print(f"later than in training: {line}")
    for line in result["beyond_guard"]:
        print(f"later than is safe: {line}")
    print(f"log and summary in {out}")
    return stop.exit_code


def main() -> None:
    sys.exit(run_command(deploy, sys.argv[1:]))


if __name__ == "__main__":
    main()
