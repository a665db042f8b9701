"""The mean of policies' weights, as a run folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training import RIL, SMALL, STUDENT
from visuomotor.average import average, mean_weights
from visuomotor.cli import run_command
from visuomotor.errors import UserError
from visuomotor.policy_files import load_policy
from visuomotor.train import train


def _average(*names: Path | str, out: Path) -> int:
    return average([f"policies={', '.join(map(str, names))}", f"out={out}"])


def test_the_mean_is_a_policy_to_judge_and_to_train_on_from(
    demonstrations: str, tmp_path: Path
) -> None:
    first, second, mean = (tmp_path / name for name in ("first", "second", "mean"))
    assert train([*SMALL, *RIL, demonstrations, f"out={first}"]) == 0
    wide = "randomization.latency.camera_delay=0,3"
    settings = [*SMALL, *RIL, demonstrations, f"start_from={first}", "seed=1", wide]
    assert train([*settings, f"out={second}"]) == 0
    assert _average(first, second, out=mean) == 0
    one, other, both = (load_policy(str(run))[0].state_dict() for run in (first, second, mean))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    for name, value in both.items():
        torch.testing.assert_close(value, (one[name] + other[name]) / 2)
    parts = load_policy(str(mean))[2]["mean_of"]
    assert [part["policy"] for part in parts] == [str(first), str(second)]
    assert [part["provenance"]["run"] for part in parts] == ["first", "second"]
    ranges = [part["randomization"] for part in parts]  # but those of the mean: the last one's
    assert ranges == [{"latency": {"camera_delay": [0, 2]}}, {}]

    begin = [*SMALL, *STUDENT, demonstrations, f"start_from={mean}"]
    assert train([*begin, f"out={tmp_path / 'next'}"]) == 0
    with pytest.raises(UserError, match="start_from="):
        train([f"resume={mean}"])
    with pytest.raises(UserError, match=str(mean)):
        _average(first, second, out=mean)


def test_each_counts_the_same_and_keeps_its_type() -> None:
    weights = [
        {"a": torch.full((2,), value), "b": torch.tensor(value)} for value in (1.0, 2.0, 6.0)
    ]
    mean = mean_weights(weights)
    assert mean["a"].tolist() == [3.0, 3.0]
    assert mean["a"].dtype == torch.float32
    assert float(mean["b"]) == 3.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["policies=stacking,lifting"], ["task=stacking", "lifting"]),
        (["policies=stacking"], ["at least two"]),
        (["policies=stacking,,stacking"], ["at least two"]),
        (["policies=stacking,stackin"], ["stackin", "stacking"]),
        (["policy=stacking"], ["policies"]),
    ],
)
def test_what_cannot_be_averaged_is_refused_in_one_line(
    arguments: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mean"
    assert run_command(average, [*arguments, f"out={out}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in expected:
        assert part in error
    assert not out.exists()


def test_a_folder_to_write_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(average, ["policies=stacking,stacking_latency"]) == 2
    assert "out=runs/mean" in capsys.readouterr().err
