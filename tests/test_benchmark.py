"""The benchmark's file and its refusals; how fast it is, is not for a test to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.learning import demonstrations
from visuomotor import benchmark
from visuomotor.cli import run_command
from visuomotor.config import Config


def test_the_file_holds_what_the_house_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = demonstrations()
    monkeypatch.setattr(benchmark, "WARM_UP_ITERATIONS", 1)
    monkeypatch.setattr(benchmark, "START_WARM_UP_ITERATIONS", 0)
    monkeypatch.setattr(benchmark, "demonstrations_for", lambda config: made)
    out = tmp_path / "new" / "benchmark.json"
    argv = ["task=lifting", "num_envs=8", "iterations=1", "device=cpu", f"out={out}"]
    assert run_command(benchmark.benchmark, argv) == 0
    result = json.loads(out.read_text())
    rates = {
        "train_fps", "limit_fps", "physics_steps_per_s", "render_fps", "act_fps", "learn_fps",
        "start_fps", "run_fps",
    }  # fmt: skip
    assert rates | {"cores", "device"} <= result.keys()
    assert all(result[name] > 0 for name in rates)
    # The limit is what the parts cost one after the other, for one environment step.
    parts = result["seconds_per_env_step"]
    assert result["limit_fps"] == pytest.approx(1.0 / sum(parts.values()))
    assert parts.keys() == {"physics", "render", "act", "learn"}
    assert result["share_of_limit"] == pytest.approx(result["train_fps"] / result["limit_fps"])
    # A run's first part is the start under labels, the rest reinforcement.
    config = Config(task="lifting", num_envs=8)
    start = config.starting / config.total_steps
    slowness = start / result["start_fps"] + (1.0 - start) / result["train_fps"]
    assert result["run_fps"] == pytest.approx(1.0 / slowness)
    assert result["device"] == "cpu"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["task=lfting"], ["lfting", "lifting"]),
        (["iterations=0"], ["iterations=0", "at least 1"]),
        (["device=tpu"], ["device=tpu", "cpu"]),
        (["num_worlds=3"], ["num_worlds", "num_envs"]),
        (["num_envs=2"], ["num_envs=2", "a multiple of 4"]),
        (["num_envs=0"], ["num_envs=0", "from 1"]),
        (["out=."], ["'.'", "is a folder"]),
        (["out=/proc/new/benchmark.json"], ["/proc/new", "can be written"]),
    ],
)
def test_bad_input_is_one_clear_line(
    argv: list[str],
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "demonstrations_for", None)  # before any work
    assert run_command(benchmark.benchmark, argv) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(word in error for word in told)
    assert not list(tmp_path.iterdir())
