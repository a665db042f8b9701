"""Files made on first use and kept: $XDG_CACHE_HOME/visuomotor, else ~/.cache/visuomotor.

The renderer's compiled kernels are kept beside them, in <cache>/warp.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import ModuleType

from visuomotor.errors import UserError
from visuomotor.files import partial_path


def cached_path(name: str, *facts: object) -> Path:
    """Where what follows from `facts` is kept: <cache>/<name>-<digest of the facts>.hdf5."""
    digest = hashlib.sha256("|".join(map(str, facts)).encode()).hexdigest()[:12]
    return cache_folder() / "visuomotor" / f"{name}-{digest}.hdf5"


def cache_folder() -> Path:
    # Set but empty means the same as not set (XDG base directory specification).
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def revision(*modules: ModuleType) -> str:
    """Of the code that makes a file, modules and whole packages: another one makes another file."""
    digest = hashlib.sha256()
    for module in modules:
        assert module.__file__ is not None
        path = Path(module.__file__)
        for source in sorted(path.parent.rglob("*.py")) if hasattr(module, "__path__") else [path]:
            digest.update(source.read_bytes())
    return digest.hexdigest()


def check_cache(path: Path) -> None:
    check_writable(path, "set XDG_CACHE_HOME to a folder that can be written")


def check_writable(path: Path, remedy: str) -> None:
    """Makes the folder. Raises UserError before any work is done for a file that cannot be kept."""
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a folder; {remedy}")
    probe = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror}; {remedy}") from error
