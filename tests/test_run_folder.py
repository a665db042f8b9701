"""A run's folder and its metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from visuomotor.config import Config, RunConfig
from visuomotor.errors import UserError
from visuomotor.overrides import load_yaml
from visuomotor.run_folder import RunFolder, check_makeable, versions_record

QUIET = Config(task="lifting", run=RunConfig(tensorboard=False))


def rows(folder: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]


# --- making and finding -------------------------------------------------------------------------


def test_a_new_folder_holds_settings_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a"
    with RunFolder.create(path, QUIET):
        pass
    assert load_yaml(path / "config.yaml", Config) == QUIET
    versions = json.loads((path / "versions.json").read_text())
    assert versions["torch"] == torch.__version__
    assert {"python", "mujoco", "visuomotor", "git_commit"} <= set(versions)


def test_an_empty_folder_may_be_taken(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, QUIET).close()
    assert RunFolder.open(tmp_path).config == QUIET


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, QUIET).close()
    with pytest.raises(UserError, match=f"holds a run already.*resume={tmp_path}"):
        RunFolder.create(tmp_path, QUIET)


def test_a_folder_with_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"not empty.*thesis\.txt.*out=.*resume="):
        RunFolder.create(tmp_path, QUIET)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot make the run folder.*out="):
            RunFolder.create(path, QUIET)


@pytest.mark.parametrize(
    ("name", "reason"), [("file/below", "Not a directory"), ("x" * 300, "too long")]
)
def test_a_folder_that_cannot_be_made_is_told_before_and_nothing_is_left(
    name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=rf"cannot make the run folder.*{reason}.*out="):
        check_makeable(tmp_path / name)
    check_makeable(tmp_path / "new" / "deep")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    check_makeable(tmp_path / "empty")
    assert not list((tmp_path / "empty").iterdir())


def test_opening_what_is_no_run_names_one_that_is(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "good", QUIET).close()
    with pytest.raises(UserError, match=f"goood' does not exist.*{tmp_path / 'good'}"):
        RunFolder.open(tmp_path / "goood")
    with pytest.raises(UserError, match=r"holds no run \(no config.yaml\)"):
        RunFolder.open(tmp_path)


def test_a_damaged_config_is_refused_by_name(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, QUIET).close()
    (tmp_path / "config.yaml").write_text("ppo: {gama: 1}")
    with pytest.raises(UserError, match=r"config\.yaml.*ppo\.gamma"):
        RunFolder.open(tmp_path)


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    program = (
        "import sys; from visuomotor.run_folder import RunFolder;"
        "from visuomotor.cli import run_command;"
        "sys.exit(run_command(lambda argv: RunFolder.open(argv[0]).close(), sys.argv[1:]))"
    )

    def open_elsewhere() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=30,
        )

    with RunFolder.create(tmp_path, QUIET):
        refused = open_elsewhere()
        assert refused.returncode == 2
        assert "in use" in refused.stderr and "Traceback" not in refused.stderr
    assert open_elsewhere().returncode == 0


def test_other_versions_are_told_when_a_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create(tmp_path, QUIET).close()
    RunFolder.open(tmp_path).close()
    assert capsys.readouterr().err == ""
    versions = json.loads((tmp_path / "versions.json").read_text())
    (tmp_path / "versions.json").write_text(json.dumps(versions | {"torch": "1.0"}))
    RunFolder.open(tmp_path).close()
    told = capsys.readouterr().err
    assert "torch was 1.0" in told and torch.__version__ in told and told.count("\n") == 1


def test_a_commit_is_recorded_only_if_it_is_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    record = versions_record()
    assert record["git_commit"] is None or len(record["git_commit"]) == 40
    monkeypatch.setenv("PATH", "")
    assert versions_record()["git_commit"] is None


# --- metrics ------------------------------------------------------------------------------------


def test_every_update_is_one_object_at_once_on_the_disk(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, QUIET)
    folder.log({"env_steps": 10, "fps": 2.5, "phase": "ril"})
    assert rows(folder) == [{"env_steps": 10, "fps": 2.5, "phase": "ril"}]
    folder.log({"env_steps": 20, "fps": np.float32(0.5), "kl": torch.tensor(0.25)})
    assert rows(folder)[1] == {"env_steps": 20, "fps": 0.5, "kl": 0.25}


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, QUIET)
    folder.log({"env_steps": 1, "a": float("nan"), "b": np.float64("inf"), "c": torch.tensor(1e39)})
    assert rows(folder) == [{"env_steps": 1, "a": None, "b": None, "c": None}]


def test_going_on_forgets_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, QUIET) as folder:
        for step in (10, 20, 30, 40):
            folder.log({"env_steps": step})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"env_steps": 15, "half')
    with RunFolder.open(tmp_path) as again:
        again.truncate_log(20)
        assert rows(again) == [{"env_steps": 10}, {"env_steps": 20}]
        again.log({"env_steps": 30, "new": True})
        assert [row["env_steps"] for row in rows(again)] == [10, 20, 30]


def test_a_whole_object_without_its_line_end_is_half_written_too(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, QUIET) as folder:
        folder.log({"env_steps": 10})
    with folder.metrics_path.open("ab") as file:
        file.write(b'{"env_steps": 20}')
    with RunFolder.open(tmp_path) as again:
        again.truncate_log(100)
        again.log({"env_steps": 20})
        assert rows(again) == [{"env_steps": 10}, {"env_steps": 20}]


@pytest.mark.parametrize(
    "damaged", [b'{"env_steps": 2', b"\0\0\0\0", b"3", b'{"fps": 1}', b'{"env_steps": "20"}', b""]
)
def test_a_damaged_line_in_the_middle_is_told_and_nothing_is_lost(
    damaged: bytes, tmp_path: Path
) -> None:
    with RunFolder.create(tmp_path, QUIET) as folder:
        for step in (10, 20, 30):
            folder.log({"env_steps": step})
    lines = folder.metrics_path.read_bytes().splitlines()
    content = b"\n".join((lines[0], damaged, lines[2], b'{"env_st'))
    folder.metrics_path.write_bytes(content)
    with pytest.raises(UserError, match=rf"'{folder.metrics_path}', line 2 is damaged"):
        RunFolder.open(tmp_path)
    with RunFolder(tmp_path, QUIET) as held, pytest.raises(UserError, match="line 2 is damaged"):
        held.truncate_log(100)
    assert folder.metrics_path.read_bytes() == content


def test_a_line_of_which_the_disk_takes_a_part_is_written_on(tmp_path: Path) -> None:
    class Slow:
        def write(self, line: bytes) -> int:
            return file.write(line[:5])

        def close(self) -> None:
            file.close()

    with RunFolder.create(tmp_path, QUIET) as folder:
        file, folder._metrics = folder._metrics, Slow()  # type: ignore[assignment]
        folder.log({"env_steps": 10, "fps": 1.5})
        assert rows(folder) == [{"env_steps": 10, "fps": 1.5}]


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "tensorboard"])
def test_a_file_in_the_place_of_a_part_is_refused_and_left_alone(name: str, tmp_path: Path) -> None:
    RunFolder.create(tmp_path, QUIET).close()
    (tmp_path / name).write_text("mine")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=rf"'{tmp_path / name}' is no folder.*move it away"):
        RunFolder.open(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_going_on_before_anything_was_logged_is_fine(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, QUIET) as folder:
        folder.truncate_log(0)
        folder.log({"env_steps": 10})
        assert rows(folder) == [{"env_steps": 10}]


def test_tensorboard_gets_the_numbers_and_hides_what_was_forgotten(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = replace(QUIET, run=RunConfig(tensorboard=True))
    with RunFolder.create(tmp_path, config) as folder:
        for step in (10, 20, 30):
            folder.log({"env_steps": step, "fps": step / 2, "phase": "ril", "gap": float("nan")})
    with RunFolder.open(tmp_path) as again:
        again.truncate_log(10)
        again.log({"env_steps": 20, "fps": 99.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["fps"]
    assert [(event.step, event.value) for event in events.Scalars("fps")] == [(10, 5.0), (20, 99.0)]


def test_without_tensorboard_there_are_no_events(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, QUIET) as folder:
        folder.log({"env_steps": 1, "fps": 1.0})
    assert not (tmp_path / "tensorboard").exists()
