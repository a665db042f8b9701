"""Short films of some failures and some successes, from the policy's camera and from a wide one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import Observation, VisuomotorEnv
from visuomotor.evaluation import Episodes
from visuomotor.video import Clip

CLIPS = 4  # of each kind in a report
CLIP_EVERY = 2  # control steps a frame
# A second camera, for people: the arm, the table and all that lies on it.
WIDE: dict[str, Any] = {
    "pos": (0.62, -0.72, 0.72),
    "lookat": (0.0, 0.1, 0.12),
    "fovy": 42.0,
    "height": 128,
    "width": 128,
}


class Seen:
    """What every world of the first round showed and how it was, at every second step: which of
    its episodes fail is known only at their end."""

    def __init__(self, env: VisuomotorEnv):
        self._env = env
        self._worlds = torch.arange(env.num_envs)
        self.frames: list[np.ndarray] = []  # (N, H, W, 3) uint8
        self.states: list[Tensor] = []  # (N, nq + nv)

    def __call__(self, step: int, seen: Observation) -> None:
        if step % CLIP_EVERY == 0:
            assert seen.pixels is not None
            self.frames.append(seen.pixels.permute(0, 2, 3, 1).cpu().numpy().copy())
            self.states.append(self._env.sim.get_state(self._worlds))

    def clips(self, episodes: Episodes, wide: VisuomotorEnv) -> list[Clip]:
        """Of up to CLIPS failures, and of successes beside them; `wide` has the same episodes,
        before another camera."""
        succeeds = episodes.success[: len(self._worlds)]
        numbers = np.arange(len(succeeds))
        failures, successes = numbers[~succeeds], numbers[succeeds]
        several = 2 * CLIPS - min(CLIPS, len(failures))
        failures = failures[: 2 * CLIPS - min(CLIPS, len(successes))]
        chosen = [*failures, *successes[:several]][: 2 * CLIPS]
        wide.reset()
        assert wide.camera is not None
        views: dict[int, list[np.ndarray]] = {int(world): [] for world in chosen}
        ids = torch.tensor(sorted(views))
        for state in self.states:
            wide.sim.reset(ids, state[ids])
            images = wide.camera.caster.render(ids).permute(0, 2, 3, 1).cpu().numpy()
            for world, image in zip(ids.tolist(), images, strict=True):
                views[world].append(image.copy())
        return [
            Clip(
                episode=int(world),
                success=bool(succeeds[world]),
                stage=episodes.stages[episodes.end_stage[world]],
                policy_view=[frame[world] for frame in self.frames],
                wide_view=views[int(world)],
                rate=1.0 / (wide.control_dt * CLIP_EVERY),
            )
            for world in chosen
        ]
