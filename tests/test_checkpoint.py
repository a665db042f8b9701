"""Checkpoints: exact round trips, damage, and death at any instant."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn

import visuomotor.checkpoint
from visuomotor.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint, write_atomic
from visuomotor.errors import UserError


def round_trip(folder: Path, state: dict[Any, Any]) -> dict[Any, Any]:
    save_checkpoint(folder, 7, state)
    loaded, step, notes = load_checkpoint(folder)
    assert (step, notes) == (7, [])
    return loaded


def assert_identical(left: Any, right: Any, path: str = "") -> None:
    """Same types, dtypes, shapes, order of keys and bits, all the way down."""
    assert type(left) is type(right), path
    if isinstance(left, dict):
        assert list(left) == list(right), path
        assert [type(key) for key in left] == [type(key) for key in right], path
        for key in left:
            assert_identical(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_identical(a, b, f"{path}/{i}")
    elif isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and left.shape == right.shape, path
        bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
        assert torch.equal(*bits), path
    elif isinstance(left, np.ndarray | np.generic):
        assert left.dtype == right.dtype and left.shape == right.shape, path
        assert left.tobytes() == right.tobytes(), path
    else:
        assert repr(left) == repr(right), path  # repr: nan is nan, and -0.0 is not 0.0


# --- round trips --------------------------------------------------------------------------------


def test_every_kind_of_value_comes_back_exactly(tmp_path: Path) -> None:
    state = {
        "tensors": {
            "float64": torch.tensor([0.1, float("nan"), -0.0, float("inf")], dtype=torch.float64),
            "float32": torch.tensor([[1 / 3, 1e-45]]),
            "bfloat16": torch.tensor([1.5], dtype=torch.bfloat16),
            "int64": torch.tensor([2**63 - 1, -(2**63)]),
            "uint8": torch.arange(256, dtype=torch.uint8),
            "bool": torch.tensor([True, False]),
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 4),
            "empty_int": torch.zeros(3, 0, dtype=torch.int64),
        },
        "arrays": {
            "float64": np.array([0.1, np.nan]),
            "uint32": np.array([2**32 - 1], dtype=np.uint32),
            "uint64": np.array(2**64 - 1, dtype=np.uint64),
            "bool": np.array([True, False]),
            "empty": np.zeros((0, 2), dtype=np.float32),
            "scalar": np.float64(0.1),
            "count": np.int64(5),
            "flag": np.bool_(True),
        },
        "plain": [1, 2**200, 0.1, -0.0, float("nan"), float("-inf"), True, None, "", "é\n\ud800"],
        "nested": {"a": {}, "b": [], "c": (), "d": ({"e": (1, [2.0])}, None)},
        "int_keys": {0: {"exp_avg": torch.ones(2)}, 1: "x", "1": "y"},
        "$tensor": "no tensor",
        "__metadata__": torch.zeros(1),
        "a/b": torch.zeros(1),
        "a": {"b": torch.ones(1)},
    }
    assert_identical(state, round_trip(tmp_path, state))


def test_views_and_tensors_that_stand_in_the_state_twice_come_back_apart(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    array = np.arange(12.0).reshape(3, 4)
    state = {
        "base": base,
        "again": base,
        "row": base[1],
        "transposed": base.T,
        "flat": base.view(-1),
        "reversed": array[::-1],
        "column": array[:, 1],
    }
    loaded = round_trip(tmp_path, state)
    for name, value in state.items():
        assert np.array_equal(np.asarray(loaded[name]), np.asarray(value)), name
    loaded["base"].zero_()
    assert torch.equal(loaded["again"], base)


def test_a_tensor_that_stands_in_the_state_twice_is_stored_once(tmp_path: Path) -> None:
    weights = torch.zeros(100_000)
    path = save_checkpoint(tmp_path, 0, {"learner": weights, "policy": {"actor": weights}})
    assert (path / "tensors.safetensors").stat().st_size < 1.1 * 4 * 100_000


def test_saving_a_view_leaves_its_base_out(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 0, {"view": torch.zeros(1_000_000)[:10]})
    assert (path / "tensors.safetensors").stat().st_size < 1000


def test_what_is_loaded_survives_the_files(tmp_path: Path) -> None:
    loaded = round_trip(tmp_path, {"weights": torch.arange(1000.0), "array": np.arange(5)})
    save_checkpoint(tmp_path, 8, {}, keep=1)
    loaded["weights"] += 1
    loaded["array"] += 1
    assert loaded["weights"][999] == 1000 and loaded["array"][4] == 5


def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return model, torch.optim.Adam(model.parameters(), 0.1), torch.Generator().manual_seed(1)

    def train(
        model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 3, generator=generator)).square().sum().backward()
            optimizer.step()

    straight = make()
    train(*straight)
    train(*straight)

    model, optimizer, generator = make()
    train(model, optimizer, generator)
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": generator.get_state(),
    }
    assert_identical(state | {"model": dict(state["model"])}, round_trip(tmp_path, state))

    model, optimizer, generator = make()
    loaded, _, _ = load_checkpoint(tmp_path)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    generator.set_state(loaded["generator"])
    train(model, optimizer, generator)
    assert_identical(dict(model.state_dict()), dict(straight[0].state_dict()))


def test_numpys_generators_come_back(tmp_path: Path) -> None:
    modern, legacy = np.random.default_rng(3), np.random.RandomState(3)
    state = {"modern": modern.bit_generator.state, "legacy": legacy.get_state(legacy=False)}
    loaded = round_trip(tmp_path, state)
    again, again_legacy = np.random.default_rng(), np.random.RandomState()
    again.bit_generator.state = loaded["modern"]
    again_legacy.set_state(loaded["legacy"])
    assert again.random() == modern.random()
    assert again_legacy.rand() == legacy.rand()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "object at '/a/0/b'"),
        ({1, 2}, "set at '/a/0/b'"),
        (b"x", "bytes at '/a/0/b'"),
        ({1.5: 0}, "key 1.5 at '/a/0/b'"),
        ({True: 0}, "key True at '/a/0/b'"),
        (np.array([object()]), "object at '/a/0/b'"),
        (np.array(["x"]), "at '/a/0/b'"),
        (np.array([1], dtype=">i4"), "byte order"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.zeros(2, 2).to_sparse(), "sparse"),
    ],
)
def test_what_cannot_come_back_exactly_is_refused_by_its_place(
    tmp_path: Path, value: object, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        save_checkpoint(tmp_path, 0, {"a": [{"b": value}]})
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 12, {"a": torch.zeros(1), "b": 3})
    assert path.name == "step_000000000012"
    assert sorted(entry.name for entry in path.iterdir()) == ["state.json", "tensors.safetensors"]
    content = json.loads((path / "state.json").read_text())
    tensors = (path / "tensors.safetensors").read_bytes()
    assert content["tensors_sha256"] == hashlib.sha256(tensors).hexdigest()
    assert content["state"] == {"a": {"$tensor": "a"}, "b": 3}


def test_all_files_of_a_checkpoint_are_as_readable_as_the_umask_says(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "checkpoints", 0, {"a": torch.zeros(1)})
    (tmp_path / "plain").write_bytes(b"")
    modes = {entry.stat().st_mode for entry in [tmp_path / "plain", *path.iterdir()]}
    assert len(modes) == 1


# --- which one ----------------------------------------------------------------------------------


def test_the_last_three_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    for step in (5, 10, 100, 1000, 20000):
        save_checkpoint(tmp_path, step, {"step": step})
    assert list_checkpoints(tmp_path) == [100, 1000, 20000]
    assert load_checkpoint(tmp_path) == ({"step": 20000}, 20000, [])
    assert load_checkpoint(tmp_path, 100) == ({"step": 100}, 100, [])
    with pytest.raises(UserError, match=r"step 10 .*valid steps: 100, 1000, 20000"):
        load_checkpoint(tmp_path, 10)


def test_a_step_that_is_saved_again_counts_as_newer(tmp_path: Path) -> None:
    for attempt in range(12):
        save_checkpoint(tmp_path, 5, {"attempt": attempt}, keep=3)
    assert load_checkpoint(tmp_path) == ({"attempt": 11}, 5, [])
    assert len(list(tmp_path.iterdir())) == 3
    save_checkpoint(tmp_path, 6, {})
    assert load_checkpoint(tmp_path)[1] == 6


def test_going_on_from_an_earlier_step_drops_the_course_that_was_left(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, {})
    save_checkpoint(tmp_path, 15, {"new": True})
    assert list_checkpoints(tmp_path) == [10, 15]
    assert load_checkpoint(tmp_path)[0] == {"new": True}


def test_leftovers_of_a_dead_writer_are_removed_at_the_next_save(tmp_path: Path) -> None:
    leftover = tmp_path / ".step_000000000005.99.0.partial"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, 5, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000000000005"]


def test_a_save_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, 1, {"good": True})

    def full(*arguments: object) -> None:  # as safetensors tells of it
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    with monkeypatch.context() as patch:
        patch.setattr(visuomotor.checkpoint, "save_file", full)
        with pytest.raises(OSError, match="No space") as caught:
            save_checkpoint(tmp_path, 2, {"good": False})
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).name == "tensors.safetensors"
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000000000001"]
    assert load_checkpoint(tmp_path) == ({"good": True}, 1, [])


def test_other_trouble_of_safetensors_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise SafetensorError("Error while serializing: InvalidTensorView")

    monkeypatch.setattr(visuomotor.checkpoint, "save_file", broken)
    with pytest.raises(SafetensorError, match="InvalidTensorView"):
        save_checkpoint(tmp_path, 1, {})
    assert not list(tmp_path.iterdir())


def test_a_command_that_has_no_room_for_its_checkpoint_says_so_in_one_line(
    tmp_path: Path,
) -> None:
    """The system's own refusal, of a file beyond the largest that the process may write."""
    program = (
        "import resource, sys, torch\n"
        "from visuomotor.checkpoint import save_checkpoint\n"
        "from visuomotor.cli import run_command\n"
        "def command(argv):\n"
        "    save_checkpoint(argv[0], 1, {'small': True})\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "    save_checkpoint(argv[0], 2, {'large': torch.zeros(10_000)})\n"
        "sys.exit(run_command(command, sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no room for") and "resume=" in line
    assert load_checkpoint(tmp_path) == ({"small": True}, 1, [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["step_000000000001"]


# --- damage -------------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_last_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 9 // 10] ^= 1
    path.write_bytes(content)


def flip_first_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("damage", [truncate, flip_last_bits, flip_first_bits, empty, Path.unlink])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {"weights": torch.full((50,), float(step)), "n": step})
    damage(tmp_path / "step_000000000003" / name)
    state, step, notes = load_checkpoint(tmp_path)
    assert (step, state["n"]) == (2, 2)
    assert torch.equal(state["weights"], torch.full((50,), 2.0))
    assert len(notes) == 1
    assert "step_000000000003" in notes[0] and "step_000000000002" in notes[0] and name in notes[0]
    with pytest.raises(UserError, match=name):
        load_checkpoint(tmp_path, 3)


def test_any_flipped_bit_of_the_json_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 3, {"weight": 0.25, "phase": "ril"}) / "state.json"
    sound = path.read_bytes()
    for position in range(len(sound)):
        content = bytearray(sound)
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match="no sound checkpoint"):
            load_checkpoint(tmp_path)


def test_a_checkpoint_under_another_steps_name_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, {}).rename(tmp_path / "step_000000000004")
    with pytest.raises(UserError, match="it holds step 3"):
        load_checkpoint(tmp_path)


def test_without_a_sound_checkpoint_every_reason_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        empty(save_checkpoint(tmp_path, step, {}) / "state.json")
    with pytest.raises(UserError) as caught:
        load_checkpoint(tmp_path)
    assert "step_000000000001" in str(caught.value) and "step_000000000002" in str(caught.value)
    with pytest.raises(UserError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere")


# --- death at any instant -----------------------------------------------------------------------

# Forks a writer for each line on stdin, so that torch is imported once; says who it is and when it
# has died. A writer says each step that it has saved, from the one after the newest it finds.
WRITERS = """
import os, sys
import torch
from visuomotor.checkpoint import list_checkpoints, save_checkpoint
torch.set_num_threads(1)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        step = max(list_checkpoints(sys.argv[1]), default=0)
        while True:
            step += 1
            state = {"weights": torch.full((100_000,), float(step)), "step": step}
            save_checkpoint(sys.argv[1], step, state)
            os.write(1, f"saved {step}\\n".encode())
    os.write(1, f"pid {pid}\\n".encode())
    os.waitpid(pid, 0)
    os.write(1, b"dead 0\\n")
"""


def test_a_writer_that_is_killed_at_any_instant_loses_at_most_the_save_it_was_in(
    tmp_path: Path,
) -> None:
    instants = random.Random(0)
    step = 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as writers:
        assert writers.stdin is not None and writers.stdout is not None
        for _ in range(12):
            writers.stdin.write("go\n")
            said: dict[str, int] = {"saved": step}
            while "pid" not in said:
                word, number = writers.stdout.readline().split()
                said[word] = int(number)
            time.sleep(instants.uniform(0.0, 0.15))
            os.kill(said["pid"], signal.SIGKILL)
            while "dead" not in said:
                word, number = writers.stdout.readline().split()
                said[word] = int(number)
            if list_checkpoints(tmp_path) == []:
                continue
            state, step, notes = load_checkpoint(tmp_path)
            assert notes == []
            assert step in (said["saved"], said["saved"] + 1)  # it may die before it can say so
            assert state["step"] == step
            assert torch.equal(state["weights"], torch.full((100_000,), float(step)))
        writers.stdin.close()
    assert step > 0
    save_checkpoint(tmp_path, step + 1, {})
    assert all(entry.name.startswith("step_") for entry in tmp_path.iterdir())


class Killed(BaseException):
    """Stands for a SIGKILL: no cleaning up gets done after it either."""


def save_until(folder: Path, calls: int) -> bool:
    """Saves step 4, and dies before the change of the file system number `calls`; True if done."""
    made = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            if made >= calls:
                raise Killed
            made += 1
            return function(*arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (
            (Path, "mkdir"),
            (Path, "rename"),
            (Path, "write_text"),
            (visuomotor.checkpoint, "save_file"),
            (visuomotor.checkpoint, "sync"),
            (shutil, "rmtree"),
        ):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        try:
            save_checkpoint(folder, 4, {"step": 4})
        except Killed:
            return False
    return True


def test_a_save_that_dies_between_any_two_changes_leaves_a_sound_folder(tmp_path: Path) -> None:
    calls, done = 0, False
    while not done:
        folder = tmp_path / str(calls)
        for step in (1, 2, 3):
            save_checkpoint(folder, step, {"step": step})
        done = save_until(folder, calls)
        state, step, notes = load_checkpoint(folder)
        assert notes == []
        assert state == {"step": step}
        assert step == 4 if done else step in (3, 4)
        assert {2, 3} <= set(list_checkpoints(folder))
        save_checkpoint(folder, 5, {"step": 5})
        assert all(entry.name.startswith("step_") for entry in folder.iterdir())
        calls += 1
    assert calls > 8


# --- single files -------------------------------------------------------------------------------


def test_an_atomic_file_is_replaced_whole_and_readable_as_the_umask_says(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    (tmp_path / "plain").write_bytes(b"")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.json", "plain"]


def test_an_atomic_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
