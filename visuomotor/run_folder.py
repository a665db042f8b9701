"""A run's folder on disk: settings, versions, metrics, TensorBoard, checkpoints.

    config.yaml      every setting, resolved
    versions.json    what the run was started with, and in which folder
    metrics.jsonl    one object per update
    tensorboard/     the same as events
    checkpoints/     see checkpoint.py

Knows nothing of learners and environments.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import visuomotor
from visuomotor.config import Config
from visuomotor.errors import UserError
from visuomotor.files import remove_leftovers, try_folder, write_atomic
from visuomotor.overrides import load_yaml, save_yaml
from visuomotor.progress import plain_number

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["RunFolder", "versions_record"]

LOCK_FILE = ".lock"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.jsonl"
PARTS = ("checkpoints", "evaluations", "tensorboard")  # folders in a run's
STARTED_IN = "started_in"  # in versions.json: where relative paths of the settings begin
RECORDED_PACKAGES = ("torch", "mujoco", "mujoco-warp", "numpy")
GIT_SECONDS = 5.0  # limit for each question to git
EVENT_SECONDS = 30.0  # between flushes of TensorBoard's events


class RunFolder:
    """The folder of one run, held by one process at a time."""

    def __init__(self, path: Path | str, config: Config):
        """Of an existing folder; `create` and `open` are the doors. Raises UserError if another
        process holds it."""
        self.path = Path(path)
        self.config = config
        self._lock = _lock(self.path)
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        # Unbuffered and appending: a line is with the system as soon as it is logged.
        self._metrics = self.metrics_path.open("ab", buffering=0)

    @classmethod
    def create(cls, path: Path | str, config: Config) -> RunFolder:
        """A new run's folder. Raises UserError where something is in the way."""
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_make(path, error) from error
        refuse_occupied(path)
        try:
            folder = cls(path, config)
            record = versions_record() | {STARTED_IN: str(Path.cwd())}
            versions = json.dumps(record, indent=2) + "\n"
            write_atomic(path / "versions.json", versions.encode())
            save_yaml(config, path / CONFIG_FILE)
        except OSError as error:
            raise UserError(
                f"cannot write to '{path}': {error.strerror}; name another folder with out="
            ) from error
        return folder

    @classmethod
    def open(
        cls, path: Path | str, check: Callable[[Path, Config], None] | None = None
    ) -> RunFolder:
        """The folder of a run that goes on. Raises UserError if it is none.

        check: has its say before anything in the folder is touched.

        Says so on stderr if the run was started with other versions: it goes on all the same.
        """
        path = Path(path)
        if not (path / CONFIG_FILE).is_file():
            matter = "does not exist" if not path.exists() else f"holds no run (no {CONFIG_FILE})"
            raise UserError(
                f"'{path}' {matter}; name a run's folder{_runs_beside(path)}, or start a run with "
                "task=..."
            )
        config = load_yaml(path / CONFIG_FILE, Config)
        if check is not None:
            check(path, config)
        _refuse_occupied_parts(path)
        if (path / METRICS_FILE).is_file():
            _logged(path / METRICS_FILE)
        try:
            folder = cls(path, config)
        except OSError as error:
            raise UserError(f"cannot write to '{path}': {error.strerror}") from error
        remove_leftovers(path)
        for line in _changed_versions(path / "versions.json"):
            print(f"warning: {line}; the run goes on, but not bit for bit", file=sys.stderr)
        return folder

    def started_in(self) -> Path | None:
        """The folder where relative paths of the settings begin; None for a run of before, which
        does not say."""
        try:
            record = json.loads((self.path / "versions.json").read_text(encoding="utf-8"))
            return Path(record[STARTED_IN])
        except (OSError, ValueError, LookupError, TypeError):
            return None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics_path(self) -> Path:
        return self.path / METRICS_FILE

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Appends one object to metrics.jsonl and adds its numbers to TensorBoard.

        metrics: `env_steps` (int) and any numbers (also of NumPy and torch) and words. A number
          that is not finite becomes null: JSON has none.
        """
        row = {name: plain_number(value) for name, value in metrics.items()}
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        while line:  # a disk that is full takes a part, and refuses the rest
            line = line[self._metrics.write(line) :]
        if not self.config.run.tensorboard:
            return
        if self._events is None:
            self._events = self._open_events()
        for name, value in row.items():
            if isinstance(value, int | float) and name != "env_steps":
                self._events.add_scalar(name, value, row["env_steps"])

    def truncate_log(self, step: int) -> None:
        """Forgets metrics beyond `step` env steps, and a last line that was only half written.

        What comes after a checkpoint is done again when a run goes on from it. Raises UserError,
        and leaves the log as it is, if another line cannot be read.
        """
        kept = [line for steps, line in _logged(self.metrics_path) if steps <= step]
        self._metrics.close()
        write_atomic(self.metrics_path, b"".join(kept))
        self._metrics = self.metrics_path.open("ab", buffering=0)
        # TensorBoard hides events from this step on that were written before.
        self._purge_step = step + 1

    def close(self) -> None:
        """Writes out what is buffered and lets other processes have the folder."""
        self._metrics.close()
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_events(self) -> SummaryWriter:
        # Late: the import takes a second, which a run without TensorBoard need not pay.
        from torch.utils.tensorboard import SummaryWriter

        # Its own thread writes, so that an update does not wait for the disk.
        events = SummaryWriter(
            str(self.path / "tensorboard"),
            purge_step=self._purge_step,
            flush_secs=int(EVENT_SECONDS),
        )
        # That thread dies with the process, and what it has not flushed with it.
        atexit.register(events.close)
        return events


def _logged(path: Path) -> list[tuple[int, bytes]]:
    """(env steps, line) of each line that was written to the end. Raises UserError, naming the
    first that is damaged."""
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            steps = json.loads(line)["env_steps"]
            if type(steps) is not int:
                raise TypeError("env_steps is no whole number")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"'{path}', line {number} is damaged ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); mend that line, or remove it: nothing else "
                "depends on it"
            ) from error
        found.append((steps, line + b"\n"))
    return found


def _refuse_occupied_parts(path: Path) -> None:
    """Raises UserError where something else is in the place of a run's own folders."""
    for name in PARTS:
        part = path / name
        if (part.exists() or part.is_symlink()) and not part.is_dir():
            raise UserError(
                f"'{part}' is no folder, and the run keeps its {name} there; move it away, or put "
                "the folder back that was there"
            )


def refuse_occupied(path: Path | str) -> None:
    """Raises UserError if there is something in the folder already, a run or anything else."""
    path = Path(path)
    try:
        entries = list(path.iterdir()) if path.exists() else []
    except OSError as error:
        raise _cannot_make(path, error) from error
    content = sorted(entry.name for entry in entries if entry.name != LOCK_FILE)
    if CONFIG_FILE in content:
        raise UserError(
            f"'{path}' holds a run already; go on with it by resume={path}, "
            "or name a new folder with out="
        )
    if content:
        raise UserError(
            f"'{path}' is not empty and holds no run (there is '{content[0]}'); name a new "
            "folder with out=, or go on with a run by resume=<its folder>"
        )


def check_makeable(path: Path | str) -> None:
    """Raises UserError where no run's folder can be made or written to. Leaves nothing."""
    path = Path(path)
    try:
        try_folder(path)
    except OSError as error:
        raise _cannot_make(path, error) from error


def _cannot_make(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot make the run folder '{path}': {error.strerror}; name another with out="
    )


def _lock(path: Path) -> TextIO | None:
    """Holds a folder until the file is closed or the process ends, by whatever cause.

    Returns None on a file system that knows no locks. Raises UserError if another process holds it.
    """
    file = (path / LOCK_FILE).open("a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise UserError(
            f"'{path}' is in use: another process is training there; stop it first, "
            "or name another folder with out="
        ) from error
    except OSError as error:
        file.close()
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return None
    return file


def _runs_beside(path: Path) -> str:
    """', such as ...' with the newest runs in the folder where `path` was looked for."""
    if not path.parent.is_dir():
        return ""
    configs = sorted(path.parent.glob(f"*/{CONFIG_FILE}"), key=lambda p: p.stat().st_mtime)
    return "".join(f", such as {config.parent}" for config in configs[-1:])


# --- versions -----------------------------------------------------------------------------------


def versions_record() -> dict[str, Any]:
    """What this process runs on, for the record: `git_commit` is None outside of a checkout."""
    record: dict[str, Any] = {
        "visuomotor": visuomotor.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in RECORDED_PACKAGES:
        try:
            record[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            record[name] = None
    package = Path(visuomotor.__file__).parent
    # An installed copy may lie in somebody else's repository: git must know our own files.
    ours = _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None
    record["git_commit"] = _git(package, "rev-parse", "HEAD") if ours else None
    changes = _git(package, "status", "--porcelain", "--", ".") if ours else None
    record["git_changed"] = None if changes is None else changes != ""
    return record


def _git(folder: Path, *question: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *question],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _changed_versions(path: Path) -> list[str]:
    """'torch was 2.11.0 when the run began and is 2.12.0 now' for all that differs."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"'{path}' cannot be read, so versions are unchecked"]
    now = versions_record()
    return [
        f"{name} was {before.get(name)} when the run began and is {now[name]} now"
        for name in ("visuomotor", "python", *RECORDED_PACKAGES)
        if before.get(name) != now[name]
    ]
