"""The folder of an evaluation: one evaluation's files, and never fewer of anybody else's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import visuomotor.evaluate
from tests.runs import assert_refused, small_run, write_run
from visuomotor.cli import run_command
from visuomotor.evaluate import evaluate
from visuomotor.evaluation import run_episodes
from visuomotor.evaluation_folder import BESIDE, FILES, clear
from visuomotor.policy_files import PRETRAINED

CONFIG = small_run(episode_steps=3)
BARE = ("episodes=1", "video=false", "report=false", "device=cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs; only read."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate("ab"):
        write_run(folder / name, CONFIG, seed=seed)
    return folder


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _evaluated(folder: Path, *labels: str) -> None:
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(json.dumps({BESIDE: labels}))


def test_what_an_older_evaluation_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _evaluated(out)
    (out / "notes.txt").write_text("mine")
    _evaluated(out / "a", "a", "b", "run")
    _evaluated(out / "b", "a", "b", "run")
    (out / "b" / "notes.txt").write_text("mine")
    _evaluated(out / "randomized-seed0")  # an evaluation of its own
    _evaluated(out / "copied", "a", "b")  # somebody keeps it under another name
    _evaluated(out / "run", "a", "b", "run")
    (out / "run" / "checkpoints").mkdir()
    (out / "empty").mkdir()
    (tmp_path / "c").mkdir()
    _evaluated(tmp_path / "elsewhere", "elsewhere")
    (out / "elsewhere").symlink_to(tmp_path / "elsewhere")
    others = {name: _tree(out / name) for name in ("randomized-seed0", "copied", "run")}
    clear(out)
    kept = {"notes.txt", "b", "randomized-seed0", "copied", "run", "empty", "elsewhere"}
    assert {entry.name for entry in out.iterdir()} == kept
    assert _tree(out / "b") == {"notes.txt"}
    assert {name: _tree(out / name) for name in others} == others
    assert _tree(tmp_path / "elsewhere") == set(FILES)
    clear(tmp_path / "nowhere")


def test_no_evaluation_is_mixed_with_an_older_one(runs: Path, tmp_path: Path) -> None:
    one, two = f"policy={runs / 'a'}", f"policy={runs / 'a'},{runs / 'b'}"
    sweep = ("sims=sweep:friction", "values=1")
    numbers = {"evaluation.json", "episodes.csv", "factors.csv"}
    swept = {"sweep.json", "sweep.csv", "episodes.csv"}

    def of_both(names: set[str]) -> set[str]:
        return {"a", "b", *(f"{label}/{name}" for label in "ab" for name in names)}

    out = tmp_path / "out"
    for arguments, written in (
        ((two, *sweep), of_both(swept) | {"sweep.png"}),
        ((two,), of_both(numbers) | {"comparison.json"}),
        ((one, *sweep), swept | {"sweep.png"}),
        ((one,), numbers),
        ((two, *sweep), of_both(swept) | {"sweep.png"}),
        ((one,), numbers),
    ):
        assert run_command(evaluate, [*arguments, *BARE, f"out={out}"]) == 0
        assert _tree(out) == written
        assert {path.name for path in out.rglob("*") if path.is_file()} <= set(FILES)


def test_an_older_evaluation_stays_until_there_is_something_new(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    _evaluated(out)
    _evaluated(out / "a", "a", "b")
    before = _contents(out)
    calls: list[None] = []

    def second_fails(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) != 2:
            raise OSError(5, "Input/output error")
        return run_episodes(*arguments, **options)

    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", second_fails)
    given = [f"policy={runs / 'b'},{runs / 'a'}", *BARE, f"out={out}"]
    with pytest.raises(OSError):
        evaluate(given)
    assert _contents(out) == before
    with pytest.raises(OSError):
        evaluate(given)
    assert _tree(out) == {"b", *(f"b/{n}" for n in ("evaluation.json", "episodes.csv"))} | {
        "b/factors.csv"
    }


@pytest.mark.parametrize("sims", [[], ["sims=sweep:friction"]])
@pytest.mark.parametrize(
    ("policy", "out", "told"),
    [
        ("RUNS/a", "RUNS/a", "RUNS/a is the folder of a run or a bundle"),
        ("RUNS/a", "BUNDLE", "lifting is the folder of a run or a bundle"),
        ("RUNS/a,RUNS/b", "RUNS", "RUNS/a is the folder of a run or a bundle"),
        ("RUNS/a", "RUNS/b/../b", "is the folder of a run or a bundle"),
        ("RUNS/a,lifting", "FILED", "FILED/a is a file; give another folder"),
    ],
)
def test_the_folder_of_a_run_or_a_bundle_is_no_place_for_an_evaluation(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    out: str,
    told: str,
    sims: list[str],
) -> None:
    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", None)
    (tmp_path / "a").write_text("mine")
    places = {"RUNS": runs, "BUNDLE": PRETRAINED / "lifting", "FILED": tmp_path}
    for name, place in places.items():
        policy, out, told = (text.replace(name, str(place)) for text in (policy, out, told))
    before = _contents(runs)
    steps = "episode_steps=3"
    assert_refused(capsys, evaluate, [f"policy={policy}", *sims, steps, f"out={out}"], told)
    assert _contents(runs) == before and (tmp_path / "a").read_text() == "mine"
