"""Pictures of every task for docs/tasks.md: start and success, by the scripted demonstrator.

    python benchmarks/pictures.py [task ...]

Writes docs/images/task-<name>.png, 256x256 each: the start and the success from the policy's own
place of the camera, and the success from low at the side, where it shows what is off the table.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from visuomotor.config import CameraConfig, Config, RandomizationConfig
from visuomotor.envs import TASKS, Observation, make_env
from visuomotor.experts import make_expert

SIZE = 256  # pixels
# From beside the table, 2 cm above it: what is off the table has a gap under it.
SIDE = CameraConfig(pos=(0.8, -0.3, 0.02), lookat=(0.0, 0.0, 0.07), fovy=24.0)
SKY = 205  # grey behind the table, which would be as black as the arm


def play(task: str, camera: CameraConfig) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last successful picture of one nominal episode, (SIZE, SIZE, 3) uint8 RGB
    each; the same episode for every camera."""
    config = Config(task=task, randomization=RandomizationConfig(strength=0.0))
    config = replace(config, camera=replace(camera, height=SIZE, width=SIZE, period=1))
    env = make_env(config, num_envs=1, seed=3)
    first = last = picture(env.reset())
    expert = make_expert(env, seed=0)
    for _ in range(env.episode_steps - 1):
        result = env.step(expert.act())
        if bool(result.success[0]):
            last = picture(result.observation)
    return first, last


def picture(seen: Observation) -> np.ndarray:
    """(SIZE, SIZE, 3) uint8 RGB of the first world."""
    assert seen.pixels is not None
    return seen.pixels[0].permute(1, 2, 0).numpy()


def main() -> None:
    for task in sys.argv[1:] or TASKS:
        start, success = play(task, CameraConfig())
        _, aside = play(task, SIDE)
        aside[(aside == 0).all(axis=2)] = SKY
        path = Path("docs") / "images" / f"task-{task}.png"
        shown = np.concatenate((start, success, aside), axis=1)
        cv2.imwrite(str(path), cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))
        print(path, flush=True)


if __name__ == "__main__":
    main()
