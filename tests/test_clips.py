"""Clips of an evaluation: failures of any round, each as it was."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from tests.runs import CPU, small_run
from visuomotor import clips
from visuomotor.envs import VisuomotorEnv
from visuomotor.evaluation import evaluation_env

STEPS = 4
CONFIG = small_run(episode_steps=STEPS)


def _worlds(count: int) -> VisuomotorEnv:
    return evaluation_env(CONFIG, num_envs=count, seed=3, strength=1.0, device=CPU)


def _clips(success: list[bool]) -> tuple[list[clips.Clip], dict[tuple[int, int], np.ndarray]]:
    """Of so many episodes in two worlds, and every frame by episode and step."""
    env = _worlds(2)
    seen, shown, frames = clips.Seen(env), env.reset(), {}
    for first in range(0, len(success), 2):
        for step in range(STEPS):
            seen.step(step, shown)
            assert shown.pixels is not None
            for world in range(2):
                image = shown.pixels[world].permute(1, 2, 0).numpy().copy()
                frames[first + world, step] = image
            shown = env.step(torch.full((2, 9), 0.5)).observation
        seen.ended(np.array(success[first : first + 2]))
    count = len(success)
    episodes = SimpleNamespace(
        success=np.array(success), end_stage=np.arange(count) % 2, stages=("start", "reach")
    )
    return seen.clips(episodes, _worlds), frames  # type: ignore[arg-type]


def test_failures_of_later_rounds_are_shown_as_they_were() -> None:
    success = [True, True, True, True, False, True, True]  # the eighth is not asked for
    made, frames = _clips(success)
    assert [clip.episode for clip in made] == [4, 0, 1, 2, 3, 5, 6]
    for clip in made:
        assert clip.success == success[clip.episode]
        assert clip.stage == ("start", "reach")[clip.episode % 2]
        assert len(clip.policy_view) == len(clip.wide_view) == 2
        for image, step in zip(clip.policy_view, (0, 2), strict=True):
            assert np.array_equal(image, frames[clip.episode, step])
        alone = _worlds(1)
        alone.restart(torch.tensor([clip.episode]))
        assert alone.camera is not None
        (image,) = alone.camera.caster.render(torch.tensor([0])).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(clip.wide_view[0], image)


def test_no_more_are_kept_than_there_may_be_clips_of() -> None:
    made, _ = _clips([False] * 12 + [True, False])
    assert [clip.episode for clip in made] == [0, 1, 2, 3, 4, 5, 6, 12]
    assert [clip.success for clip in made] == [False] * 7 + [True]
    made, _ = _clips([True] * 12)
    assert [clip.episode for clip in made] == list(range(2 * clips.CLIPS))
