"""A task from outside the package goes through every command (docs/your_own_task.md)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_train import SMALL

from visuomotor import experts
from visuomotor.__main__ import run
from visuomotor.cli import run_command
from visuomotor.envs import TASKS, Task, make_task, register
from visuomotor.envs.tasks.lifting import Lifting
from visuomotor.errors import UserError
from visuomotor.scripted.blocks import LiftingExpert, StackingExpert
from visuomotor.train import train

EXAMPLE = Path(__file__).parent.parent / "examples" / "place.py"


def command(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_demonstrated_trained_evaluated_and_exported(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 120
    command(tmp_path, "demonstrate", "task=place", "episodes=2", "out=place.hdf5")
    settings = [s for s in SMALL if not s.startswith("task=")]
    demos = "demonstrations=place.hdf5"
    command(tmp_path, "train", "task=place", *settings, "total_steps=64", demos, "out=run")
    command(tmp_path, "evaluate", "policy=run", "episodes=2", "out=judged")
    summary = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert summary["task"] == "place"
    assert list(summary["stage_rates"]) == ["start", "reach", "lifted", "placed"]
    command(tmp_path, "export", "policy=run", "out=bundle")
    assert json.loads((tmp_path / "bundle" / "policy.json").read_text())["task"] == "place"
    command(tmp_path, "evaluate", "policy=bundle", "episodes=1", "out=judged-bundle")


def own(**attributes: object) -> type[Task]:
    return type("Own", (Lifting,), {"name": "own", **attributes})


def test_a_registered_task_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "own", own())
    assert type(make_task("own")).__name__ == "Own"


@pytest.mark.parametrize("setting", ["actor.encoder=maps", "actor.from_hand=true"])
def test_a_task_that_names_no_kinds_of_things_is_refused_what_needs_them(
    setting: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TASKS, "own", own(kinds_in_targets=()))
    out = tmp_path / "run"
    assert run_command(train, ["task=own", setting, f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert "kinds_in_targets" in said and setting in said and said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "stacking"}, "a task 'stacking' is there already"),
        ({"name": "clearing"}, "a task 'clearing' is there already"),
        ({"stage_rewards": (0.0, 1.0)}, "has 3 stages and 2 stage_rewards"),
        ({"stage_props": (0,)}, "has 3 stages and 1 stage_props"),
        ({"stage_props": (0, 0, 1)}, "names a prop beyond the 1 in props"),
    ],
)
def test_a_task_that_cannot_be_is_refused(attributes: dict[str, object], message: str) -> None:
    before = dict(TASKS)
    with pytest.raises(UserError, match=message):
        register(own(**attributes))
    assert before == TASKS


def test_a_second_demonstrator_is_refused() -> None:
    with pytest.raises(UserError, match="has a demonstrator already: LiftingExpert"):
        experts.register("lifting", StackingExpert)
    experts.register("lifting", LiftingExpert)  # the same again is no harm


@pytest.mark.parametrize("argv", [[], ["trian"]])
def test_an_unknown_command_names_the_known_ones(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    error = capsys.readouterr().err
    assert "commands: train, evaluate, export, demonstrate, benchmark, view" in error
    assert error.count("\n") == 1
