"""What `device=cuda` promises: the same pixels, and a run that trains, goes on, judges, exports.

All of it needs a CUDA device and is skipped without one: make test ARGS="-m gpu". Bits may differ
from the CPU's, pictures hardly.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training import DISTILL, RIL, SMALL, metrics, stop_at
from visuomotor.config import Config
from visuomotor.envs import make_env
from visuomotor.evaluate import evaluate
from visuomotor.export import export
from visuomotor.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ON_GPU = [setting for setting in SMALL if not setting.startswith("device=")] + ["device=cuda"]


@pytest.mark.parametrize("task", ["stacking", "order_fulfillment"])
def test_pixels_are_those_of_the_cpu(task: str) -> None:
    config = Config(task=task)
    one, other = (
        make_env(config, num_envs=8, seed=1, render=True, device=torch.device(name))
        for name in ("cpu", "cuda")
    )
    seen, again = one.reset().pixels, other.reset().pixels
    assert seen is not None
    assert again is not None
    assert again.device.type == "cuda"
    away = (seen.int() - again.cpu().int()).abs()
    # A ray through an edge may hit what lies on its other side.
    assert float((away > 2).float().mean()) < 0.01


@pytest.mark.parametrize("algorithm", [RIL, DISTILL], ids=["ril", "distill"])
def test_a_run_on_the_gpu_is_stopped_goes_on_is_judged_and_exported(
    algorithm: tuple[str, ...],
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, bundle, judged = (tmp_path / name for name in ("run", "bundle", "judged"))
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        assert train([*ON_GPU, *algorithm, demonstrations, f"out={run}"]) == 143
    assert train([f"resume={run}"]) == 0
    assert len(metrics(run)) == (4 if algorithm is RIL else 10)
    arguments = ["episodes=2", "sims=randomized", "video=false", "report=false", "device=cuda"]
    assert evaluate([f"policy={run}", *arguments, f"out={judged}"]) == 0
    assert json.loads((judged / "evaluation.json").read_text())["device"].startswith("cuda")
    assert export([f"policy={run}", f"out={bundle}"]) == 0  # parity is of the CPU, as on the arm


def test_worlds_are_the_same_on_both() -> None:
    config = replace(Config(task="stacking"), num_envs=4)
    one, other = (
        make_env(config, num_envs=4, seed=3, render=False, device=torch.device(name))
        for name in ("cpu", "cuda")
    )
    actions = torch.zeros(4, 9)
    first, second = one.reset(), other.reset()
    for _ in range(5):
        assert torch.equal(first.state, second.state.cpu())
        assert torch.equal(first.proprio, second.proprio.cpu())
        first = one.step(actions).observation
        second = other.step(actions.to("cuda")).observation
