"""Pictures of every task for docs/tasks.md: start and success, by the scripted demonstrator.

    python benchmarks/pictures.py

Writes docs/images/task-<name>.png, from the policy's own place of the camera, at 256x256.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from visuomotor.config import Config, RandomizationConfig
from visuomotor.envs import TASKS, make_env
from visuomotor.experts import make_expert

SIZE = 256  # pixels


def picture(task: str) -> np.ndarray:
    """(SIZE, 2 SIZE, 3) uint8 RGB: start and end of one nominal episode."""
    config = Config(task=task, randomization=RandomizationConfig(strength=0.0))
    camera = replace(config.camera, height=SIZE, width=SIZE, period=1)
    config = replace(config, camera=camera)
    env = make_env(config, num_envs=1, seed=3)
    seen = env.reset()
    expert = make_expert(env, seed=0)
    assert seen.pixels is not None
    shown = [seen.pixels[0].permute(1, 2, 0).numpy()]
    for step in range(env.episode_steps - 1):
        result = env.step(expert.act())
        pixels = result.observation.pixels
        assert pixels is not None
        if bool(result.success[0]) and step > 0:
            last = pixels[0].permute(1, 2, 0).numpy()
    shown.append(last)
    return np.concatenate(shown, axis=1)


def main() -> None:
    for task in TASKS:
        path = Path("docs") / "images" / f"task-{task}.png"
        cv2.imwrite(str(path), cv2.cvtColor(picture(task), cv2.COLOR_RGB2BGR))
        print(path)


if __name__ == "__main__":
    main()
