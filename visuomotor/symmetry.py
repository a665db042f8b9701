"""Demonstrations turned about the arm's base: one episode shows a task at many places.

Turning everything about the vertical through the base changes nothing that physics could tell: the
first joint turns, the props move along arcs, and the joint velocities that were asked for stay what
they were. So a turned copy is an episode that would have happened. Knows no simulator.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from visuomotor.demonstrations import Demonstration, Demonstrations
from visuomotor.envs import Task

MAX_TURN = 0.45  # rad; about the angle under which the base sees the workspace
TRIES = 50  # angles tried for a copy
_TURNS = 22  # concern of the random stream


def with_turned_copies(
    task: Task, demonstrations: Demonstrations, copies: int, seed: int
) -> Demonstrations:
    """The demonstrations, and up to `copies` turned ones of each behind them.

    task: bound to a simulation of the scene. Angles are uniform among those that leave the props
    where an episode may begin (`Task.may_start`); an episode for which no such angle is found in
    TRIES has no copies. Whatever else a file holds of an episode (features, proprioception) is left
    out of its copies: it follows from the states.
    """
    rng = np.random.default_rng([seed, _TURNS])
    turned = []
    for demo in demonstrations.demos:
        for _ in range(copies):
            angle = _allowed_angle(task, demo, rng)
            if angle is None:
                break
            states = task.turned(demo.states, angle)
            turned.append(replace(demo, states=states, proprio=None, features=None))
    return replace(demonstrations, demos=[*demonstrations.demos, *turned])


def _allowed_angle(task: Task, demo: Demonstration, rng: np.random.Generator) -> float | None:
    for angle in rng.uniform(-MAX_TURN, MAX_TURN, size=TRIES).tolist():
        if task.may_start(task.turned(demo.states[:1], angle)[0]):
            return float(angle)
    return None
