"""The folder of an evaluation: one evaluation's files, and never fewer of anybody else's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import visuomotor.evaluate
import visuomotor.heldout
from tests.runs import assert_refused, small_run, write_run
from visuomotor.calibrate import save_calibration
from visuomotor.cli import run_command
from visuomotor.evaluate import evaluate
from visuomotor.evaluation import run_episodes
from visuomotor.evaluation_folder import BESIDE, FILES, clear, shortened
from visuomotor.policy_files import PRETRAINED
from visuomotor.runtime.lens import Calibration
from visuomotor.runtime.preprocessing import Lens

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


@pytest.mark.parametrize(
    ("policies", "given", "folder"),
    [
        ("a", [], "evaluation.json"),
        ("a", [], "episodes.csv"),
        ("a", [], "factors.csv"),
        ("a", ["video"], "evaluation.mp4"),
        ("a", ["video"], "evaluation.png"),
        ("a", ["report"], "report.html"),
        ("a,b", [], "comparison.json"),
        ("a,b", [], "b/factors.csv"),
        ("a", ["sims=sweep:friction"], "sweep.csv"),
        ("a,b", ["sims=sweep:friction"], "sweep.png"),
        ("a,b", ["sims=sweep:friction"], "b/sweep.json"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_found_before_any_work(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    policies: str,
    given: list[str],
    folder: str,
) -> None:
    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", None)
    out = tmp_path / "out"
    (out / folder).mkdir(parents=True)
    before = _tree(out)
    policy = ",".join(str(runs / name) for name in policies.split(","))
    told = f"cannot write '{out / folder}': it is a folder; give another one: out="
    switches = [f"{name}={str(name in given).lower()}" for name in ("video", "report")]
    sims = [text for text in given if text.startswith("sims=")]
    arguments = [f"policy={policy}", "episodes=1", *switches, *sims, f"out={out}"]
    assert_refused(capsys, evaluate, arguments, told)
    assert _tree(out) == before


def test_folders_of_what_is_not_written_are_no_matter(runs: Path, tmp_path: Path) -> None:
    for name in ("evaluation.mp4", "report.html", "comparison.json", "sweep.json"):
        (tmp_path / name).mkdir()
    assert run_command(evaluate, [f"policy={runs / 'a'}", *BARE, f"out={tmp_path}"]) == 0
    assert (tmp_path / "evaluation.json").is_file()


def test_a_folder_in_the_place_of_a_runs_own_evaluation_is_found_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", CONFIG)
    (run / "evaluation.json").mkdir()
    given = [f"policy={run}", "episodes=1", "video=false", "report=false"]
    # Nominal worlds back no export.
    assert run_command(evaluate, [*given, "sims=nominal", "device=cpu"]) == 0
    capsys.readouterr()
    before = _tree(run)
    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", None)
    assert_refused(capsys, evaluate, given, "run/evaluation.json': it is a folder; remove it")
    assert _tree(run) == before


@pytest.mark.parametrize("sims", ["randomized", "sweep:friction"])
def test_what_is_interrupted_before_anything_is_written_leaves_no_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sims: str
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", interrupted)
    (tmp_path / "there").mkdir()
    for policy in (f"{runs / 'a'}", f"{runs / 'a'},{runs / 'b'}"):
        for out in ("deep/out", "there"):
            given = [f"policy={policy}", f"sims={sims}", *BARE, f"out={tmp_path / out}"]
            assert run_command(evaluate, given) == 130
            assert _tree(tmp_path) == {"there"}


# --- without out= -------------------------------------------------------------------------------


def _written_to(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of a command, which does no work."""
    found: list[str] = []

    class Stop(Exception):
        pass

    def note(path: Path, *names: Any) -> None:
        found.append(str(path))
        raise Stop

    monkeypatch.setattr(visuomotor.evaluate, "EvaluationFolder", note)
    with pytest.raises(Stop):
        evaluate([*argv, "device=cpu", "report=false"])
    return found[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ([], "randomized-seed0"),
        (["sims=nominal", "seed=3"], "nominal-seed3"),
        (["strength=1"], "randomized-seed0"),
        (["strength=0.5"], "randomized-seed0-strength0.5"),
        (["strength=0"], "randomized-seed0-strength0"),
        (["episode_steps=3"], "randomized-seed0"),  # as trained
        (["episode_steps=300"], "randomized-seed0-300steps"),
        (["sims=heldout"], "heldout-seed0"),
        (["sims=heldout", "heldout.renderer=rays"], "heldout-seed0-rays"),
        (["sims=heldout", "heldout.renderer=classic"], "heldout-seed0"),  # as auto
        (["sims=heldout", "heldout.only=camera, shadows"], "heldout-shadows-camera-seed0"),
        (["sims=heldout", "heldout.only=shadows,camera,camera"], "heldout-shadows-camera-seed0"),
        (["sims=sweep:friction"], "sweep-friction-seed0"),
        (["sims=sweep:camera_pos/y", "episode_steps=4"], "sweep-camera_pos-y-seed0-4steps"),
        (["sims=sweep:friction", "values=2,0.5"], "sweep-friction-seed0-values0.5_1_2"),
        (["sims=sweep:friction", "values=0.5, 1,2"], "sweep-friction-seed0-values0.5_1_2"),
        (
            ["strength=0.25", "episode_steps=7", "seed=2"],
            "randomized-seed2-strength0.25-7steps",
        ),
    ],
)
def test_a_folder_is_named_by_what_makes_its_worlds(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str
) -> None:
    monkeypatch.setattr(visuomotor.heldout, "available", lambda: True)
    found = _written_to([f"policy={runs / 'a'}", *arguments], monkeypatch)
    assert found == str(runs / "a" / "evaluations" / name)


def test_every_calibration_has_a_folder_of_its_own(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = np.array([[60.0, 0.0, 32.0], [0.0, 60.0, 32.0], [0.0, 0.0, 1.0]])
    lens = Lens(64, 64, matrix, np.zeros(5), np.eye(3))
    folders = []
    for number, height in enumerate((0.5, 0.6, 0.5)):
        pos, lookat = np.array([0.0, -0.6, height]), np.array([0.0, 0.0, 0.1])
        path = tmp_path / f"{number}.yaml"
        save_calibration(path, Calibration(lens, {}, pos, lookat, 50.0))
        argv = [f"policy={runs / 'a'}", f"calibration={path}"]
        folders.append(Path(_written_to(argv, monkeypatch)).name)
    assert folders[0] == folders[2] != folders[1]  # the place counts, not the file
    assert all(re.fullmatch("randomized-seed0-calibrated-[0-9a-f]{8}", name) for name in folders)


def test_policies_side_by_side_are_named_together(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*names: str) -> str:
        policies = ",".join(name if name == "lifting" else str(runs / name) for name in names)
        return _written_to([f"policy={policies}", "episode_steps=3"], monkeypatch)

    assert found("a", "b") == "evaluations/a+b-randomized-seed0"
    assert found("a", "a", "lifting") == "evaluations/a+a-2+lifting-randomized-seed0"
    assert found("lifting") == "evaluations/lifting-randomized-seed0-3steps"


def test_long_names_are_cut_and_stay_apart() -> None:
    names = ["+".join(f"policy{i}" for i in range(last)) for last in (20, 21)]
    short = [shortened(name) for name in names]
    assert short[0] != short[1] and {len(name) for name in short} == {80}
    assert short[0].startswith("policy0+policy1+") and shortened("a+b") == "a+b"
