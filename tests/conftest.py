"""A tiny configuration, small environments, and what takes long to make, shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests import board, learning
from visuomotor.calibrate import calibrate
from visuomotor.cli import run_command
from visuomotor.config import Config, RandomizationConfig
from visuomotor.demonstrations import save_demonstrations
from visuomotor.envs import VisuomotorEnv, make_env


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def nominal() -> Config:
    """Stacking without randomization."""
    return Config(task="stacking", num_envs=4, randomization=RandomizationConfig(strength=0.0))


@pytest.fixture
def make() -> Callable[..., VisuomotorEnv]:
    """make(config, **changes of EnvConfig) -> 3 worlds; render=False unless asked for."""

    def build(config: Config, *, num_envs: int = 3, render: bool = False, seed: int = 0, **kwargs):
        episode_steps = kwargs.pop("episode_steps", config.env.episode_steps)
        config = replace(config, env=replace(config.env, episode_steps=episode_steps))
        return make_env(config, num_envs=num_envs, seed=seed, render=render, **kwargs)

    return build


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A setting of training: two demonstrations of lifting in a file."""
    path = tmp_path_factory.mktemp("demonstrations") / "lifting.hdf5"
    save_demonstrations(path, learning.demonstrations())
    return f"demonstrations={path}"


@pytest.fixture(scope="session")
def photographs() -> board.Photographs:
    """Of a board in the arm's hand; only read."""
    return board.photograph(20)


@pytest.fixture(scope="session")
def shots(photographs: board.Photographs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of these pictures; only read."""
    folder = tmp_path_factory.mktemp("shots")
    board.keep(photographs, folder)
    return folder


@pytest.fixture(scope="session")
def camera_file(shots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What calibrate makes of them; only read."""
    out = tmp_path_factory.mktemp("calibration") / "camera.yaml"
    assert run_command(calibrate, [f"images={shots}", f"out={out}", *board.CALIBRATION]) == 0
    return out
