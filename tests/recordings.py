"""Demonstrations of no scene in particular, for tests."""

from __future__ import annotations

import numpy as np

from visuomotor.demonstrations import Demonstration, Demonstrations

WIDTH = 7  # nq + nv of no scene in particular


def some_demonstration(length: int, seed: int) -> Demonstration:
    rng = np.random.default_rng(seed)
    dones = np.zeros(length, dtype=bool)
    dones[-1] = True
    return Demonstration(
        states=rng.normal(size=(length, WIDTH)),
        actions=rng.uniform(-1, 1, (length, 9)).astype(np.float32),
        rewards=rng.random(length).astype(np.float32),
        dones=dones,
        stages=rng.integers(0, 4, length),
        proprio=rng.normal(size=(length, 24)).astype(np.float32),
        features=rng.normal(size=(length, 21)).astype(np.float32),
        seed=100 + seed,
        success=seed % 2 == 0,
    )


def some_demonstrations(lengths: tuple[int, ...] = (5, 8)) -> Demonstrations:
    demos = [some_demonstration(length, seed) for seed, length in enumerate(lengths)]
    return Demonstrations("stacking", 0.05, demos, model_xml="<mujoco model='é'/>")
