"""How late an arm is: from a velocity that was sent until its joint states tell of it.

Estimated after a run, from the streamer's log: the delay at which what a joint was sent explains
best how it moved. The way of both messages and the arm's own sluggishness are in it. numpy only.
"""

from __future__ import annotations

import numpy as np

from visuomotor.runtime.guard import State
from visuomotor.runtime.streamer import PERIOD

LONGEST = 0.5  # s; what seems later is told as nothing
COARSE, FINE = 0.01, 0.001  # s between the delays that are tried
COAST = 0.5  # s after a stop that still belong to the motion
MOST_ROWS = 60_000  # of the motion, the last: 10 minutes
FEWEST_ROWS = 100
MOVED = 0.02  # rad/s, the standard deviation of what a joint must have been sent
SIMULATED = 0.01  # s, of training's own arm where nothing delays it: the joints' median (a test)
EXPLAINED = 0.7  # share of a joint's motion that what it was sent must explain


def arm_delays(rows: np.ndarray) -> np.ndarray:
    """rows of a log -> s, of each joint whose motion tells; none may."""
    moving = rows["state"] != State.LATCHED.value
    last = np.maximum.accumulate(np.where(moving, rows["time"], -np.inf))
    stamps = rows["time"] - rows["joint_age"]
    fresh = np.append(True, np.diff(stamps) > 1e-6)[: len(rows)]
    told = (rows["time"] - last < COAST) & fresh & np.isfinite(rows["velocity"]).all(axis=1)
    chosen = np.flatnonzero(told)[-MOST_ROWS:]
    if len(chosen) < FEWEST_ROWS:
        return np.zeros(0)
    # A velocity is held until the next: it stands for the middle of its tick.
    times = rows["time"] + 0.5 * PERIOD
    found = []
    for joint in np.flatnonzero(rows["sent"][chosen].std(axis=0) > MOVED):
        sent, moved = rows["sent"][:, joint], rows["velocity"][chosen, joint]

        def explained(delay: float, sent: np.ndarray = sent, moved: np.ndarray = moved) -> float:
            return _explained(np.interp(stamps[chosen] - delay, times, sent), moved)

        coarse = max(np.arange(0.0, LONGEST + COARSE, COARSE), key=explained)
        near = coarse + np.arange(-COARSE, COARSE + FINE, FINE)
        best = max(near[near > -FINE / 2], key=explained)
        if explained(best) >= EXPLAINED and best < LONGEST:
            found.append(best)
    return np.array(found)


def _explained(cause: np.ndarray, effect: np.ndarray) -> float:
    """The share of an effect's variance that a multiple of its cause explains; 0 if it is opposed
    to it."""
    cause, effect = cause - cause.mean(), effect - effect.mean()
    both = float(cause @ effect)
    size = float(cause @ cause) * float(effect @ effect)
    return both * both / size if both > 0.0 and size > 0.0 else 0.0
