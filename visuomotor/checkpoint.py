"""Checkpoints: a nested state -> safetensors + JSON, whole at every instant, no pickle.

A checkpoint is a folder `step_<env_steps, 12 digits>` with `tensors.safetensors` (tensors and
arrays, named by their path in the state) and `state.json` (everything else, and the SHA-256 of
both). It is written under a hidden name and renamed once it is complete and on the disk, so a
process that is killed at any instant leaves the checkpoints before it and nothing that looks like
one. Knows nothing of what it saves.

A checkpoint folder has one writer at a time; the lock of `run_folder.RunFolder` sees to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visuomotor.errors import UserError
from visuomotor.files import partial_path, remove_leftovers, remove_tree, sync, write_atomic

__all__ = [
    "list_checkpoints",
    "load_checkpoint",
    "newest_facts",
    "save_checkpoint",
    "write_atomic",
]

FORMAT = 1  # of state.json; raise it when a reader of the old form would misread the new one
TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"

# A step that is saved again gets a suffix: renaming cannot replace a folder that is not empty.
_NAME = re.compile(r"step_(\d{12,})(?:\.(\d+))?", re.ASCII)
# What safetensors holds and NumPy and torch agree on.
_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
}  # fmt: skip
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)", re.ASCII)


class _DamagedError(Exception):
    """Why a checkpoint cannot be used."""


# --- folders ------------------------------------------------------------------------------------


def save_checkpoint(folder: Path | str, step: int, state: dict[Any, Any], keep: int = 3) -> Path:
    """Writes a checkpoint and removes all but the newest `keep`. Returns its folder.

    step: env steps, not negative. Saving a step again makes a newer checkpoint of it. Checkpoints
      of later steps are removed: they belong to a course that was left by going on from an
      earlier one.
    state: nested dicts (keys str or int), lists and tuples of tensors, NumPy arrays and scalars,
      int, float, str, bool and None. Tensors are loaded back on the CPU.

    Raises TypeError, with the path in the state, for anything else; OSError if the disk is full.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step={step}, keep={keep}: expected step >= 0 and keep >= 1")
    folder = Path(folder)
    tensors: dict[str, Tensor] = {}
    content = {"format": FORMAT, "step": step, "state": _Encoder(tensors).encode(state, "")}
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)

    same = [attempt for known, attempt, _ in _scan(folder) if known == step]
    name = f"step_{step:012d}" + (f".{max(same) + 1}" if same else "")
    partial = partial_path(folder / name)
    partial.mkdir()
    try:
        _write_tensors(tensors, partial / TENSORS_FILE)
        sync(partial / TENSORS_FILE)
        content["tensors_sha256"] = _file_digest(partial / TENSORS_FILE)
        content["sha256"] = _content_digest(content)
        text = json.dumps(content, allow_nan=False, separators=(",", ":"))
        (partial / STATE_FILE).write_text(text, encoding="utf-8")
        # safetensors lets only the owner read its file; the umask is to decide.
        shutil.copymode(partial / STATE_FILE, partial / TENSORS_FILE)
        sync(partial / STATE_FILE)
        sync(partial)
        partial.rename(folder / name)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    # The new one must be on the disk under its name before an old one goes.
    sync(folder)

    found = _scan(folder)
    current = [path for known, _, path in found if known <= step]
    for path in [path for known, _, path in found if known > step] + current[:-keep]:
        remove_tree(path)
    return folder / name


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file. Raises OSError where the system refuses: safetensors has an error of its
    own for that, with the system's number in the text alone."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        found = _SYSTEM_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def load_checkpoint(
    folder: Path | str, step: int | None = None
) -> tuple[dict[Any, Any], int, list[str]]:
    """The newest sound checkpoint, or the one of `step`: (state, its step, notes).

    notes: one line for each newer checkpoint that is damaged and was passed over.
    Raises UserError if there is none, or none that is sound.
    """
    folder = Path(folder)
    found = _scan(folder)
    if not found:
        raise UserError(
            f"no checkpoint in '{folder}'; expected folders named step_<env steps>; "
            "name a run that has saved one, or start a new run"
        )
    if step is not None:
        steps = sorted({known for known, _, _ in found})
        found = [entry for entry in found if entry[0] == step]
        if not found:
            raise UserError(
                f"no checkpoint of step {step} in '{folder}'; "
                f"valid steps: {', '.join(map(str, steps))}"
            )
    reasons: list[str] = []
    for known, _, path in reversed(found):
        try:
            state = _read(path, known)
        except _DamagedError as error:
            reasons.append(f"checkpoint '{path}' is damaged ({error})")
            continue
        notes = [f"warning: {reason}; falling back to '{path.name}'" for reason in reasons]
        return state, known, notes
    raise UserError(f"no sound checkpoint in '{folder}': {'; '.join(reasons)}; start a new run")


def newest_facts(folder: Path | str) -> dict[str, Any] | None:
    """The newest sound state.json of a folder, tensors unread: the state as JSON has it; None if
    there is none. Quick: of plain entries and of what is there, not to go on from."""
    for step, _, path in reversed(_scan(Path(folder))):
        try:
            state = _read_content(path, step)["state"]
        except _DamagedError:
            continue
        return state if isinstance(state, dict) else None
    return None


def list_checkpoints(folder: Path | str) -> list[int]:
    """Steps of the checkpoints in a folder, oldest first; sound or not."""
    return sorted({step for step, _, _ in _scan(Path(folder))})


def _scan(folder: Path) -> list[tuple[int, int, Path]]:
    """(step, attempt, folder) of every checkpoint, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is not None and path.is_dir():
            found.append((int(match[1]), int(match[2] or 0), path))
    return sorted(found)


def _read_content(path: Path, step: int) -> dict[str, Any]:
    """state.json of a checkpoint's folder. Raises _DamagedError."""
    try:
        content = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _DamagedError(f"{STATE_FILE}: {error}") from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _content_digest(content):
        raise _DamagedError(f"{STATE_FILE} does not match its checksum")
    if content["format"] != FORMAT:
        raise _DamagedError(f"format {content['format']}, this version reads {FORMAT}")
    if content["step"] != step:
        raise _DamagedError(f"it holds step {content['step']}")
    return content


def _read(path: Path, step: int) -> dict[Any, Any]:
    """The state in a checkpoint's folder. Raises _DamagedError."""
    content = _read_content(path, step)
    try:
        if _file_digest(path / TENSORS_FILE) != content["tensors_sha256"]:
            raise _DamagedError(f"{TENSORS_FILE} does not match its checksum")
        tensors = load_file(path / TENSORS_FILE)
    except (OSError, SafetensorError) as error:
        raise _DamagedError(f"{TENSORS_FILE}: {error}") from error
    state = _decode(content["state"], tensors)
    assert isinstance(state, dict)
    return state


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content_digest(content: dict[str, Any]) -> str:
    # The order of keys counts: the state's dicts keep theirs.
    return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


# --- nested state <-> JSON and tensors ----------------------------------------------------------
# JSON's own types stand for themselves. All else is an object with one key that begins with "$":
# {"$tensor": name}, {"$array": name}, {"$scalar": name}, {"$float": "nan"}, {"$tuple": [...]},
# and {"$dict": [[key, value], ...]} where keys are not all plain strings.


class _Encoder:
    """Moves tensors out of a state; a tensor that stands in it twice is stored once."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors
        self._names: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any, path: str) -> Any:
        """value as JSON; raises TypeError for what cannot be restored exactly."""
        if isinstance(value, Tensor):
            return {"$tensor": self._store(value.detach(), path)}
        if isinstance(value, np.ndarray):
            return {"$array": self._store_array(value, path)}
        # Before float and str: NumPy's float64 and str_ are subclasses of Python's.
        if isinstance(value, np.generic):
            return {"$scalar": self._store_array(np.asarray(value), path)}
        if type(value) is float and not math.isfinite(value):
            return {"$float": repr(value)}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) in (list, tuple):
            entries = [self.encode(entry, f"{path}/{i}") for i, entry in enumerate(value)]
            return entries if type(value) is list else {"$tuple": entries}
        if isinstance(value, dict):
            return self._encode_dict(value, path)
        raise TypeError(f"cannot save {type(value).__name__} at '{path}'")

    def _encode_dict(self, value: dict[Any, Any], path: str) -> Any:
        for key in value:
            if type(key) not in (str, int):
                raise TypeError(f"cannot save key {key!r} at '{path}': expected str or int")
        entries = {key: self.encode(entry, f"{path}/{key}") for key, entry in value.items()}
        if all(type(key) is str and not key.startswith("$") for key in entries):
            return entries
        return {"$dict": [[key, entry] for key, entry in entries.items()]}

    def _store_array(self, array: np.ndarray, path: str) -> str:
        # A copy in native byte order is writable and contiguous, as torch wants it.
        native = array.astype(array.dtype.newbyteorder("="), order="C", copy=True)
        if native.dtype != array.dtype:
            raise TypeError(f"cannot save array of {array.dtype} at '{path}': foreign byte order")
        try:
            return self._store(torch.from_numpy(native), path)
        except TypeError as error:
            raise TypeError(f"cannot save array of {array.dtype} at '{path}'") from error

    def _store(self, tensor: Tensor, path: str) -> str:
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES:
            raise TypeError(f"cannot save tensor of {tensor.dtype}, {tensor.layout} at '{path}'")
        # The storage's address tells tensors apart while the state keeps them all alive; a
        # temporary one (of a NumPy array) lives on in self.tensors.
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() > 0 and place in self._names:
            return self._names[place]
        name = path.lstrip("/") or "state"
        while name in self.tensors or name == "__metadata__":  # keys 1 and "1"; safetensors' own
            name += "'"
        host = tensor.cpu().contiguous()
        # safetensors refuses views that share a storage; a view would also drag its base along.
        if host.untyped_storage().data_ptr() in self._storages or _is_view(host):
            host = host.clone()
        self.tensors[name] = host
        self._names[place] = name
        self._storages.add(host.untyped_storage().data_ptr())
        return name


def _is_view(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(entry, tensors) for entry in value]
    if not isinstance(value, dict):
        return value
    tag: str
    content: Any
    tag, content = next(iter(value.items()), ("", None))
    if not tag.startswith("$"):
        return {key: _decode(entry, tensors) for key, entry in value.items()}
    if tag == "$tensor":
        # A copy: load_file maps the file into memory, and two names may mean one tensor.
        return tensors[content].clone()
    if tag == "$array":
        return tensors[content].numpy().copy()
    if tag == "$scalar":
        return tensors[content].numpy()[()]
    if tag == "$float":
        return float(content)
    if tag == "$tuple":
        return tuple(_decode(entry, tensors) for entry in content)
    return {key: _decode(entry, tensors) for key, entry in content}
