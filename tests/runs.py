"""A small run and how commands refuse: what the tests of commands and of evaluation share."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from visuomotor.checkpoint import save_checkpoint
from visuomotor.cli import run_command
from visuomotor.config import ActorConfig, CameraConfig, Config, CurriculumConfig, EnvConfig
from visuomotor.overrides import to_yaml
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import make_actor

CPU = torch.device("cpu")
SMALL = Config(
    task="lifting",
    camera=CameraConfig(height=24, width=24),
    actor=ActorConfig(visual_dim=16, proprio_dim=8, hidden_dim=12),
    env=EnvConfig(num_threads=1),
)


def small_run(episode_steps: int) -> Config:
    return replace(SMALL, env=replace(SMALL.env, episode_steps=episode_steps))


# What an evaluation and its command are tried on.
EVALUATED = replace(
    small_run(episode_steps=6),
    camera=CameraConfig(height=24, width=32),
    # Both are of training alone.
    curriculum=CurriculumConfig(enabled=True, initial_share=0.0, final_share=0.0),
    randomization=replace(Config().randomization, curriculum_steps=1000),
)


def moving_actor(config: Config, seed: int = 0) -> PixelActor:
    """Untrained, with an arm that moves."""
    torch.manual_seed(seed)
    actor = make_actor(config, 6)
    torch.nn.init.normal_(actor.mean_head.weight, std=1.0)
    return actor.eval()


def write_run(folder: Path, config: Config, *, seed: int = 0, **state: Any) -> Path:
    """As training leaves it; state: what else its checkpoint holds."""
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    policy = {"actor": moving_actor(config, seed).state_dict()}
    save_checkpoint(
        folder / "checkpoints", 4096, {"policy": policy, "phase": "ril", "wall_s": 1.5, **state}
    )
    return folder


def assert_refused(
    capsys: pytest.CaptureFixture[str],
    command: Callable[[list[str]], int | None],
    arguments: Sequence[str],
    told: str,
) -> None:
    """Exit code 2 and one line on stderr, in which `told` is found."""
    assert run_command(command, [*arguments, "device=cpu"]) == 2
    captured = capsys.readouterr()
    (line,) = [text for text in captured.err.splitlines() if "Warp" not in text]
    assert line.startswith("error: ") and captured.out == ""
    assert re.search(told, line), line
