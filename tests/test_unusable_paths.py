"""Paths that the system refuses, given to every command that takes one: one line, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from visuomotor import benchmark, demonstrate, evaluate, export, train
from visuomotor.cli import run_command
from visuomotor.envs import camera
from visuomotor.errors import UserError

LONG = "x" * 300  # no file system here takes such a name
NOBODY = 65534
# P: the path.
COMMANDS = [
    (evaluate.evaluate, ["policy=P"]),
    (evaluate.evaluate, ["policy=lifting", "out=P"]),
    (export.export, ["policy=lifting", "out=P"]),
    (demonstrate.demonstrate, ["out=P"]),
    (benchmark.benchmark, ["out=P"]),
    (train.train, ["resume=P"]),
    (train.train, ["calibration=P"]),
    (train.train, ["out=P"]),
]
# What is opened after the place to write, or files of the package, which may be closed as well.
LATER = [
    (train.train, ["algorithm=distill", "distill.teacher_run=P"]),
    (train.train, ["start_from=P"]),
    (export.export, ["policy=P", "out=bundle"]),
    (evaluate.evaluate, ["policy=lifting", "calibration=P"]),
    (train.train, ["demonstrations=P"]),
]


def names(commands: list[tuple[Callable[[list[str]], int], list[str]]]) -> list[str]:
    return [f"{command.__name__} {argv[-1]}" for command, argv in commands]


@pytest.fixture(autouse=True)
def _no_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "demonstrations_for", None)
    monkeypatch.setattr(demonstrate, "collect", None)
    monkeypatch.setattr(export, "export_bundle", None)


def assert_one_line(
    command: Callable[[list[str]], int],
    argv: list[str],
    path: str,
    capsys: pytest.CaptureFixture[str],
) -> str:
    """The line."""
    assert run_command(command, [argument.replace("=P", f"={path}") for argument in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and len(error.splitlines()) == 1
    assert path[:150] in error
    return error


@pytest.mark.parametrize(("command", "argv"), [*COMMANDS, *LATER], ids=names([*COMMANDS, *LATER]))
def test_a_name_beyond_the_systems_is_one_line(
    command: Callable[[list[str]], int],
    argv: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "too long" in assert_one_line(command, argv, LONG, capsys)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
@pytest.mark.parametrize(("command", "argv"), COMMANDS, ids=names(COMMANDS))
def test_a_folder_that_may_not_be_entered_is_one_line(
    command: Callable[[list[str]], int],
    argv: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0o700)
    os.seteuid(NOBODY)
    try:
        error = assert_one_line(command, argv, str(closed / "below"), capsys)
    finally:
        os.seteuid(0)
    assert "Permission denied" in error
    assert not list((closed / "below").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else for a while")
def test_a_calibration_that_may_not_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to others
        os.chmod(folder, 0o755)
        path = Path(folder) / "camera.yaml"
        path.write_text("")
        path.chmod(0o600)
        os.seteuid(NOBODY)
        try:
            error = assert_one_line(train.train, ["calibration=P"], str(path), capsys)
        finally:
            os.seteuid(0)
    assert "cannot be read: Permission denied" in error


@pytest.fixture
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The renderer as if it had not started in this process yet; it only makes its folder."""
    monkeypatch.delenv("WARP_CACHE_PATH", raising=False)
    monkeypatch.setattr(camera.wp.config, "kernel_cache_dir", None)
    monkeypatch.setattr(
        camera.wp, "init", lambda: Path(camera.wp.config.kernel_cache_dir).mkdir(parents=True)
    )


@pytest.mark.usefixtures("_kernels")
def test_kernels_are_kept_in_the_home_folder_where_no_cache_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    camera.start_warp()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert (tmp_path / "home/.cache/warp").is_dir()


@pytest.mark.usefixtures("_kernels")
def test_kernels_that_cannot_be_kept_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"kernels in .*file.*: Not a directory; set XDG_CACHE"):
        camera.start_warp()


def test_a_machine_without_a_gpu_is_not_told_so_by_every_process() -> None:
    """And what is written after the renderer's start arrives."""
    start = "import sys; from visuomotor.envs import camera; camera.start_warp()"
    program = f"{start}; sys.stderr.write('on')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "on")


def test_the_renderer_starts_where_stderr_is_closed() -> None:
    program = "from visuomotor.envs import camera; camera.start_warp(); print('started')"
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "{program}" 2>&-', sys.executable], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "started\n")
