"""Short films of some failures and some successes, from the policy's camera and from a wide one."""

from __future__ import annotations

from collections.abc import Callable
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
    """What episodes showed and how their worlds were, at every second step. Which of them fail is
    known only at their end: of a round those are kept that there may be clips of, up to
    2 * CLIPS failures and as many successes in all."""

    def __init__(self, env: VisuomotorEnv):
        self._env = env
        self._worlds = torch.arange(env.num_envs)
        self._frames: list[np.ndarray] = []  # (N, H, W, 3) uint8 of this round
        self._states: list[Tensor] = []  # (N, nq + nv)
        self._first = 0  # number of the round's first episode
        # By number: frames (T, H, W, 3) and states (T, nq + nv).
        self._kept: dict[bool, dict[int, tuple[np.ndarray, Tensor]]] = {False: {}, True: {}}

    def step(self, step: int, seen: Observation) -> None:
        if step % CLIP_EVERY == 0 and any(len(kept) < 2 * CLIPS for kept in self._kept.values()):
            assert seen.pixels is not None
            self._frames.append(seen.pixels.permute(0, 2, 3, 1).cpu().numpy().copy())
            self._states.append(self._env.sim.get_state(self._worlds))

    def ended(self, success: np.ndarray) -> None:
        for world, succeeded in enumerate(success.tolist()):
            kept = self._kept[succeeded]
            if len(kept) < 2 * CLIPS:
                kept[self._first + world] = (
                    np.stack([frame[world] for frame in self._frames]),
                    torch.stack([state[world] for state in self._states]),
                )
        self._frames, self._states = [], []
        self._first += self._env.num_envs

    def clips(self, episodes: Episodes, make_wide: Callable[[int], VisuomotorEnv]) -> list[Clip]:
        """Of up to CLIPS failures, and of successes beside them; more of the one where there are
        few of the other. make_wide(n): n worlds with the same episodes, before another camera."""
        failures, successes = list(self._kept[False]), list(self._kept[True])
        failures = failures[: 2 * CLIPS - min(CLIPS, len(successes))]
        chosen = [*failures, *successes][: 2 * CLIPS]
        kept = self._kept[False] | self._kept[True]
        wide = make_wide(len(chosen))
        wide.restart(torch.tensor(chosen))
        assert wide.camera is not None
        worlds = torch.arange(len(chosen))
        views = []
        for states in zip(*(kept[number][1] for number in chosen), strict=True):
            wide.sim.reset(worlds, torch.stack(states))
            views.append(wide.camera.caster.render(worlds).permute(0, 2, 3, 1).cpu().numpy().copy())
        return [
            Clip(
                episode=number,
                success=bool(episodes.success[number]),
                stage=episodes.stages[episodes.end_stage[number]],
                policy_view=list(kept[number][0]),
                wide_view=[view[world] for view in views],
                rate=1.0 / (wide.control_dt * CLIP_EVERY),
            )
            for world, number in enumerate(chosen)
        ]
