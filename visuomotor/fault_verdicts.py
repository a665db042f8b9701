"""What a fault did to the arm, by the arm's own record, and whether that is as it should be.

Two things are told apart: what the arm was *asked*, the velocities that arrived there and were
carried out, and how it *moved*, its joints' velocities and positions in the simulator. Pure
functions: numpy, no clock and no process.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

import numpy as np

from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.limiter import Limiter, Motion

TICK = 0.01  # s, of the streamer and of the arm's record
DELAY = 0.07  # s from a velocity's arrival at the simulated arm to its execution
ARM_LATE = 0.025  # s that the simulated arm's own clock may be late; beyond, nothing was measured

# When it has to rest.
ALLOWED = 0.25  # s from a fault's onset until the stop begins, at most
# s until what is sent no longer grows, as the stop may begin while a joint is being sped up.
REVERSAL = float(np.ceil((LIMITS.acceleration / LIMITS.jerk).max() / TICK)) * TICK
TRANSIT = DELAY + 2 * TICK + ARM_LATE  # s from a decision until the arm is asked
# s that the arm moves on after the last velocity that is not zero was carried out: its wrist has
# torque for half the acceleration that is allowed. 0.09 s from full speed in tests/test_faults.py.
LAG = 0.12
# rad/s below which a joint rests: 3 % of its top speed, and 4 % of a finger's. The simulated wrist
# may tremble about where it stands, at 0.015 rad/s. A finger that holds a block settles on it, as a
# servo of velocity holds no place: by 0.02 rad, measured.
STILL = np.array([*6 * [0.02], *3 * [0.05]])
SETTLES = 0.05  # rad that a joint may go after LAG

# What it may do until then.
WINDOW = 0.05  # s over which accelerations are taken, by the arm's clock
# What one velocity that arrives may differ by from the one before, whenever either came: a share of
# what the limit of acceleration allows in a tick. Rounding is left.
ASKED_STEP = 1.0 + 1e-6
# Shares of the limits. What is sent keeps to 1 (a test); if the arm's clock is late, velocities of
# ARM_LATE more come in one window.
ASKED_ACCELERATION = 1.0 + ARM_LATE / WINDOW
# Fingers stick and slip: 1.28 in tests/test_faults.py, where nothing is late; the wrist's servo
# overshoots by 1.7 %.
MOVED_ACCELERATION = 1.3 * ASKED_ACCELERATION
MOVED_VELOCITY = 1.05

# What shows that there was something to see.
MOVING = 0.2  # share of its top speed that a joint must move with before a fault that stops the arm
MOVED_ON = 0.1  # rad that a joint must still go, later than a second after one that does not
CLOSE_JOINT, CLOSE_WALL = 0.1, 0.05  # rad, m: so near a limit must one come who drives at them


class Then(Enum):
    """What an arm has to do when a fault has happened."""

    REST = "rests"
    GO_ON = "goes on"
    BE_HELD = "is held"  # goes on, up to the limits and no further


def measured(record: dict[str, np.ndarray], onset: float, ended: float) -> dict[str, Any]:
    """record: (T, ...) as `sim_arm.Record`; onset and ended: s of `record["time"]`, between which
    the fault was made to happen."""
    times, clock = record["time"], record["clock"]
    asked, moved, position, pinch = (record[k] for k in ("asked", "moved", "position", "pinch"))
    later = times > onset
    asked_rest = _rest(times, np.abs(asked).max(axis=1) > 0.0, onset)
    gaps = np.diff(times) - np.clip(
        np.minimum(times[1:], ended) - np.maximum(times[:-1], onset), 0.0, None
    )
    limited = np.isfinite(LIMITS.position_low)
    beyond = np.maximum(LIMITS.position_low - position, position - LIMITS.position_high)
    outside = np.maximum(LIMITS.workspace_low - pinch, pinch - LIMITS.workspace_high)
    return {
        "arm_late_s": float(max(gaps.max() - TICK, 0.0)),
        "injected_for_s": ended - onset,
        "moving_at_onset": float(np.abs(moved[~later][-10:] / LIMITS.velocity).max()),
        "asked_rest_s": asked_rest,
        "ramp_s": stop_seconds(_last_fall(asked[later])),
        "moved_rest_s": _rest(times, (np.abs(moved) > STILL).any(axis=1), onset),
        "moved_after_rad": _way(position[times > onset + asked_rest + LAG]),
        "asked_velocity": float(np.abs(asked / LIMITS.velocity).max()),
        "moved_velocity": float(np.abs(moved / LIMITS.velocity).max()),
        "asked_acceleration": _acceleration(clock, asked),
        "moved_acceleration": _acceleration(clock, moved),
        "asked_step": float(record["step"].max()),
        "joint_overshoot_rad": float(max(beyond.max(), 0.0)),
        "workspace_overshoot_m": float(max(outside.max(), 0.0)),
        "closest_joint_rad": float(-beyond[:, limited].max()),
        "closest_wall_m": float(-outside.max()),
        "moved_on_rad": _way(position[times > onset + 1.0]),
    }


def stop_seconds(speed: np.ndarray) -> float:
    """s that the limiter takes to rest from these speeds, (A,) rad/s, which grew until then."""
    limiter = Limiter(LIMITS, TICK)
    limiter.motion = Motion(speed, np.zeros_like(speed))
    ticks = 0
    while not limiter.at_rest:
        limiter.brake()
        ticks += 1
    return ticks * TICK + REVERSAL


def _last_fall(asked: np.ndarray) -> np.ndarray:
    """(T, A) rad/s that end at rest -> (A,) speed of each joint after which it only fell."""
    speed = np.abs(asked)
    rises = np.diff(speed, axis=0, prepend=0.0) > 0.0
    last = len(speed) - 1 - rises[::-1].argmax(axis=0)
    found: np.ndarray = np.where(rises.any(axis=0), speed[last, np.arange(speed.shape[1])], 0.0)
    return found


def _rest(times: np.ndarray, moving: np.ndarray, onset: float) -> float:
    """s from the onset until it no longer moves."""
    late = times[moving & (times > onset)]
    return float(late.max() - onset + TICK) if len(late) else 0.0


def _acceleration(clock: np.ndarray, velocity: np.ndarray) -> float:
    """The largest share of a joint's limit. Over a while: on a busy machine the arm takes in
    several velocities at once."""
    ends = np.searchsorted(clock, clock + WINDOW - 1e-9)
    ends = ends[ends < len(clock)]
    begins = np.arange(len(ends))
    change = np.abs(velocity[ends] - velocity[begins]) / (clock[ends] - clock[begins])[:, None]
    return float((change / LIMITS.acceleration).max(initial=0.0))


def _way(position: np.ndarray) -> float:
    """rad that the joint that went furthest went, back and forth."""
    return float(np.abs(np.diff(position, axis=0)).sum(axis=0).max(initial=0.0))


def verdict(row: dict[str, Any]) -> str:
    """What is wrong with a row (what `measured` gives, and what faults.py adds); empty: nothing."""
    if row["arm_late_s"] > ARM_LATE:
        return f"not measured: the simulated arm was {1000 * row['arm_late_s']:.0f} ms late itself"
    problems = _beyond_limits(row)
    then = Then(row["then"])
    if then is Then.REST:
        problems += _not_at_rest(row)
    else:
        if row["state"] not in ("running", "slowing"):
            problems.append(f"stopped: {row['reason']}")
        if then is Then.GO_ON and row["moved_on_rad"] < MOVED_ON:
            problems.append("stands still")
        near = row["closest_joint_rad"] < CLOSE_JOINT or row["closest_wall_m"] < CLOSE_WALL
        if then is Then.BE_HELD and not near:
            problems.append("came near no limit: nothing to see")
    return "; ".join(problems)


def _beyond_limits(row: dict[str, Any]) -> list[str]:
    most = {"asked_velocity": 1.0 + 1e-9, "moved_velocity": MOVED_VELOCITY}
    if not row["unreachable"]:  # nothing brakes it there: docs/safety.md
        most |= {"joint_overshoot_rad": 0.0, "workspace_overshoot_m": 0.0}
    if not row["stop_is_cut"]:
        most |= {
            "asked_step": ASKED_STEP,
            "asked_acceleration": ASKED_ACCELERATION,
            "moved_acceleration": MOVED_ACCELERATION,
        }
    return [
        f"{name} {row[name]:.3g}, at most {limit:.3g}"
        for name, limit in most.items()
        if row[name] > limit
    ]


def _not_at_rest(row: dict[str, Any]) -> list[str]:
    problems = []
    if row["moving_at_onset"] < MOVING:
        problems.append("did not move before: nothing to see")
    most = (
        ALLOWED + row["ramp_s"] + TRANSIT + (row["injected_for_s"] if row["unreachable"] else 0.0)
    )
    for name, limit in (("asked_rest_s", most), ("moved_rest_s", most + LAG)):
        if row[name] > limit:
            problems.append(f"{name} {row[name]:.3f}, at most {limit:.3f}")
    if row["moved_after_rad"] > SETTLES:
        problems.append(f"went {row['moved_after_rad']:.3f} rad on after that")
    if row["state"] != "latched":
        problems.append(f"not latched: {row['state']}")
    elif not re.search(row["because"], row["reason"]):
        problems.append(f"stopped for another reason: {row['reason']}")
    elif not row["still_latched"]:
        problems.append("did not stay latched")
    return problems


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown; where there are two numbers: what the arm was asked / how it moved."""
    unjudged = {True: ", not judged", False: ""}
    lines = [
        "| fault | has to | rests after | largest velocity | largest acceleration | "
        "beyond joints | beyond workspace | then | verdict |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rests = Then(row["then"]) is Then.REST
        cells = [
            row["tells"],
            {Then.REST: "rest", Then.GO_ON: "go on", Then.BE_HELD: "be held"}[Then(row["then"])],
            f"{1000 * row['asked_rest_s']:.0f} / {1000 * row['moved_rest_s']:.0f} ms"
            if rests
            else "",
            f"{100 * row['asked_velocity']:.0f} / {100 * row['moved_velocity']:.0f} %",
            f"{100 * row['asked_step']:.0f}; {100 * row['asked_acceleration']:.0f} / "
            f"{100 * row['moved_acceleration']:.0f} %" + unjudged[row["stop_is_cut"]],
            f"{row['joint_overshoot_rad']:.3f} rad" + unjudged[row["unreachable"]],
            f"{1000 * row['workspace_overshoot_m']:.0f} mm" + unjudged[row["unreachable"]],
            f"{row['state']}{': ' + row['reason'] if row['reason'] else ''}",
            verdict(row) or "good",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
