"""What cannot be gone on with: said in one line, and left as it is."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import small_run, write_run
from tests.training import DISTILL, ITERATION, RIL, SMALL, metrics, stop_at
from visuomotor.average import average
from visuomotor.checkpoint import load_checkpoint, save_checkpoint
from visuomotor.cli import run_command
from visuomotor.config import Config
from visuomotor.evaluate import evaluate
from visuomotor.export import export
from visuomotor.policy_files import PRETRAINED
from visuomotor.predecessors import TEACHERS
from visuomotor.resuming import open_run
from visuomotor.run_folder import RunFolder
from visuomotor.train import train


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(argv: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What is told of a folder, in which nothing is touched."""
    before = contents(folder)
    capsys.readouterr()
    assert run_command(train, argv) == 2
    assert contents(folder) == before
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "Warp" not in text]
    assert line.startswith("error: ") and str(folder) in line
    return line


def test_relative_paths_are_found_from_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "runs" / "teacher").mkdir(parents=True)
    (first / "stacking").mkdir()  # a shipped name comes first
    second.mkdir()
    (first / "demos.hdf5").touch()
    monkeypatch.chdir(first)
    config = Config(demonstrations="demos.hdf5", start_from="stacking")
    config = replace(config, distill=replace(config.distill, teacher_run="runs/teacher"))
    RunFolder.create(first / "run", config).close()
    kept = (first / "run" / "config.yaml").read_bytes()
    monkeypatch.chdir(second)
    with open_run(first / "run") as folder:
        assert folder.config.demonstrations == str(first / "demos.hdf5")
        assert folder.config.start_from == "stacking"
        assert folder.config.distill.teacher_run == str(first / "runs" / "teacher")
    # What is exported names no folder of this machine.
    assert (first / "run" / "config.yaml").read_bytes() == kept
    assert str(tmp_path).encode() not in kept


@pytest.mark.parametrize("gone", [True, False])
def test_paths_of_a_run_that_does_not_say_where_it_was_started_are_as_given(
    gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demos.hdf5").touch()
    RunFolder.create(tmp_path / "run", Config(demonstrations="demos.hdf5")).close()
    versions = tmp_path / "run" / "versions.json"
    record = json.loads(versions.read_text())
    record["started_in"] = str(tmp_path / "gone")
    versions.write_text(json.dumps(record if gone else {}))
    with open_run(tmp_path / "run") as folder:
        assert folder.config.demonstrations == "demos.hdf5"


def mean(folder: Path) -> Path:
    """As visuomotor.average leaves it."""
    runs = [write_run(folder / name, small_run(4), seed=i) for i, name in enumerate("ab")]
    policies = ",".join(map(str, runs))
    assert run_command(average, [f"policies={policies}", f"out={folder / 'mean'}"]) == 0
    (folder / "mean" / ".lock").unlink()
    return folder / "mean"


def test_a_bundle_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(PRETRAINED / "lifting", folder)
    line = refused([f"resume={folder}"], folder, capsys)
    assert "is a bundle" in line and f"start_from={folder}" in line


@pytest.mark.parametrize("content", ["", "num_envs: 4\nseed: 1\n"], ids=["empty", "partial"])
def test_a_damaged_config_does_not_make_another_task_of_a_run(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", small_run(4))
    (folder / "config.yaml").write_text(content)
    told = f"'{folder / 'config.yaml'}': it is empty, cut short or damaged"
    assert told in refused([f"resume={folder}"], folder, capsys)
    argv = ["task=lifting", f"start_from={folder}", f"out={tmp_path / 'new'}"]
    assert told in refused(argv, folder, capsys)
    for command, out in ((evaluate, "judged"), (export, "bundle")):
        argv = [f"policy={folder}", f"out={tmp_path / out}"]
        assert run_command(command, argv) == 2
        assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_no_run_goes_on_in_the_shadows_that_are_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", small_run(4))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("shadows: false", "shadows: true"))
    line = refused([f"resume={folder}"], folder, capsys)
    assert "camera.shadows=true" in line and "held out" in line


def test_a_shipped_teacher_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(TEACHERS / "pouring", folder)
    line = refused([f"resume={folder}"], folder, capsys)
    assert f"distill.teacher_run={folder}" in line and "start_from" not in line


def test_a_mean_is_no_run_and_no_teacher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mean(tmp_path)
    (folder / "metrics.jsonl").unlink()
    line = refused([f"resume={folder}"], folder, capsys)
    assert "is a mean of policies" in line and f"start_from={folder}" in line
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("algorithm: ril", "algorithm: distill"))
    settings = ["task=lifting", "algorithm=distill", f"distill.teacher_run={folder}"]
    line = refused([*settings, f"out={tmp_path / 'new'}"], folder, capsys)
    assert "holds no teacher" in line and "pouring" in line
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("policy", [True, False])
def test_a_run_of_an_older_format_is_left_as_it_is(
    policy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", small_run(4), learner={}, format=4)
    if not policy:
        state, step, _ = load_checkpoint(folder / "checkpoints")
        del state["policy"]
        save_checkpoint(folder / "checkpoints", step + 1, state)
    line = refused([f"resume={folder}"], folder, capsys)
    assert "another version" in line and "format 4, not" in line
    assert (f"start_from={folder}" in line) == policy


def test_a_run_of_another_version_is_not_gone_on_with(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train([*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"]) == 0
    monkeypatch.setattr("visuomotor.resuming.CHECKPOINT_FORMAT", 99)
    assert run_command(train, [f"resume={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert "another version" in said
    assert f"start_from={tmp_path / 'run'}" in said


def test_a_run_whose_checkpoints_are_all_damaged_says_so(
    demonstrations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train([*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"]) == 0
    for path in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert run_command(train, [f"resume={tmp_path / 'run'}"]) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_finished_run_is_left_as_it_is(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    small = [setting for setting in SMALL if setting != "run.final_episodes=0"]
    settings = [*small, *RIL, "run.final_episodes=4", demonstrations]
    assert run_command(train, [*settings, f"out={folder}"]) == 0
    # As `evaluate policy=run` leaves it.
    better = folder / "evaluation.json"
    facts = json.loads(better.read_text())
    facts |= {"episodes": 500, "provenance": {"env_steps": 4 * ITERATION}}
    better.write_text(json.dumps(facts))
    before = contents(folder)
    with monkeypatch.context() as patch:
        patch.setattr("visuomotor.train.replay_of", None)  # no work is done for it
        capsys.readouterr()
        assert run_command(train, [f"resume={folder}"]) == 0
    said = capsys.readouterr().out
    assert "is finished" in said and str(better) in said and "a larger total_steps" in said
    assert contents(folder) == before
    # What is missing is made: the final evaluation, which replaces no better one.
    shutil.rmtree(folder / "evaluations" / "final")
    assert run_command(train, [f"resume={folder}"]) == 0
    assert (folder / "evaluations" / "final" / "evaluation.json").is_file()
    after = contents(folder)
    assert after.keys() == before.keys()
    changed = {name for name in before if after[name] != before[name]}
    assert all(name.startswith("evaluations/final/") for name in changed)
    # As it says: it is trained longer.
    config = folder / "config.yaml"
    was, now = (f"\ntotal_steps: {count * ITERATION}\n" for count in (4, 6))
    assert was in config.read_text()
    config.write_text(config.read_text().replace(was, now))
    assert run_command(train, [f"resume={folder}"]) == 0
    assert len(metrics(folder)) == 6
    assert json.loads(better.read_text())["episodes"] == 4  # another policy now


@pytest.mark.parametrize("algorithm", ["teacher", "student"])
def test_a_finished_run_of_distill_is_left_as_it_is(
    algorithm: str, demonstrations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    steps = f"distill.dagger_steps={ITERATION if algorithm == 'student' else 0}"
    settings = [*SMALL, *DISTILL[:1], f"distill.teacher.total_steps={ITERATION}", steps]
    settings += ["distill.finetune_steps=0", demonstrations]
    assert run_command(train, [*settings, f"out={folder}"]) == 0
    before = contents(folder)
    assert run_command(train, [f"resume={folder}"]) == 0
    key = "distill.dagger_steps" if algorithm == "student" else "distill.teacher_run="
    said = capsys.readouterr().out
    assert "is finished" in said and key in said
    assert contents(folder) == before


@pytest.fixture(scope="module")
def stopped(demonstrations: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were stopped in their first phase, and in that of a student; only read."""
    runs = {}
    for name, algorithm, iteration in (
        ("ril", RIL, 1),
        ("teacher", DISTILL, 1),
        ("student", DISTILL, 5),
    ):
        runs[name] = tmp_path_factory.mktemp("runs") / name
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, iteration, signal.SIGTERM)
            argv = [*SMALL, *algorithm, demonstrations, f"out={runs[name]}"]
            assert train(argv) == 143
    return runs


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [
        ("ril", "hidden_dim: 16", "hidden_dim: 8"),
        ("ril", "recurrent: true", "recurrent: false"),
        ("ril", "encoder: compact", "encoder: keypoints"),
        ("ril", "num_envs: 4\ntotal", "num_envs: 8\ntotal"),
        ("ril", "num_steps: 8", "num_steps: 16"),
        ("ril", "  height: 64", "  height: 32"),
        ("ril", "algorithm: ril", "algorithm: distill"),
        ("teacher", "algorithm: distill", "algorithm: ril"),
        ("teacher", "    num_envs: 4\n", "    num_envs: 8\n"),
        ("student", "  memory: 2\n", "  memory: 1\n"),
        ("student", "    hidden_sizes: [256, 256]", "    hidden_sizes: [16]"),
    ],
    ids=lambda value: value.strip().partition("\n")[0],
)
def test_settings_that_no_longer_fit_the_checkpoint_are_told(
    name: str,
    before: str,
    now: str,
    stopped: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped[name], folder)
    text = (folder / "config.yaml").read_text()
    assert before in text
    (folder / "config.yaml").write_text(text.replace(before, now))
    line = refused([f"resume={folder}"], folder, capsys)
    assert f"'{folder / 'config.yaml'}'" in line and "checkpoint" in line
    assert "put its settings back" in line
