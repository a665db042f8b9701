"""How fast this project's worlds are: environment steps per second, one camera image a step.

    OMP_NUM_THREADS=1 python benchmarks/worlds.py

The counterpart of `benchmarks/peers.py`: random actions, full randomization, one 64x64 image a
step (`camera.period=1`) or none. 64 worlds step together on one thread; seconds are CPU seconds and
wall seconds of the process, medians over repeats, divided by the worlds.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch

from visuomotor.config import Config
from visuomotor.envs import make_env

WORLDS, STEPS, REPEATS = 64, 10, 5


def measure(task: str, images: bool) -> tuple[float, float]:
    """-> steps per CPU second and per wall second."""
    default = Config(task=task)
    config = replace(
        default,
        env=replace(default.env, num_threads=1),
        camera=replace(default.camera, period=1),
    )
    env = make_env(config, num_envs=WORLDS, seed=0, render=images)
    generator = torch.Generator().manual_seed(0)
    env.reset()
    cpu, wall = [], []
    for repeat in range(REPEATS + 1):
        cpu_begin, wall_begin = time.process_time(), time.perf_counter()
        for _ in range(STEPS):
            env.step(2.0 * torch.rand(WORLDS, 9, generator=generator) - 1.0)
        if repeat > 0:  # the first one warms up
            cpu.append(time.process_time() - cpu_begin)
            wall.append(time.perf_counter() - wall_begin)
    steps = WORLDS * STEPS
    return steps / statistics.median(cpu), steps / statistics.median(wall)


def main() -> None:
    for task in ("lifting", "stacking"):
        for images in (True, False):
            cpu, wall = measure(task, images)
            label = "with image" if images else "without image"
            print(f"{task}, {label}: {cpu:.0f} steps per CPU s, {wall:.0f} per wall s")


if __name__ == "__main__":
    main()
