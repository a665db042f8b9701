"""Files that are there whole or not at all, at whatever instant the writer dies.

Standard library only: the arm's side uses it too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from pathlib import Path

PARTIAL_SUFFIX = ".partial"

_count = itertools.count()  # two threads of one process never share a temporary name


def partial_path(path: Path) -> Path:
    """A hidden temporary name beside `path`; on the same file system, so that renaming is atomic.

    Unique among living writers. A dead writer's leftover may be overwritten or removed.
    """
    return path.parent / f".{path.name}.{os.getpid()}.{next(_count)}{PARTIAL_SUFFIX}"


def write_atomic(path: Path | str, content: bytes) -> None:
    """Writes a file so that other processes, and a crash, see the old or the new content whole.

    Raises OSError (no such folder, disk full, ...); the old file is untouched then.
    """
    path = Path(path)
    partial = partial_path(path)
    try:
        # "wb", not a private temporary file: the umask decides who may read the result.
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            # Without this a power cut may leave the new name with an empty file behind it.
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def try_folder(folder: Path) -> None:
    """Makes a folder with all above it and a file in it, and removes what was made.

    Raises OSError where that is impossible: before hours of work for what is to be kept there.
    """
    made: list[Path] = []
    try:
        for place in reversed((folder, *folder.parents)):
            if place.exists() and not place.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
            if not place.is_dir():
                place.mkdir()
                made.append(place)
        probe = partial_path(folder / "probe")
        probe.touch()
        probe.unlink()
    finally:
        for place in reversed(made):
            # Not empty: somebody else has taken it meanwhile.
            with contextlib.suppress(OSError):
                place.rmdir()


def remove_tree(folder: Path) -> None:
    """Removes a folder so that no instant shows half of it under its own name."""
    doomed = partial_path(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Removes what dead writers left in a folder. Only for the folder's one living writer."""
    for path in folder.glob(f".*{PARTIAL_SUFFIX}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
