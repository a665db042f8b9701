"""The folder of an evaluation: what may be one, and what of an older evaluation gives way there.

Knows files by their names and removes none that an evaluation does not write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from visuomotor.errors import UserError
from visuomotor.files import try_folder
from visuomotor.policy_files import is_policys_folder
from visuomotor.runtime.files import EVALUATION
from visuomotor.video import FILM

REPORT = "report.html"
EPISODES = "episodes.csv"
FACTORS = "factors.csv"
COMPARISON = "comparison.json"
SWEEP = "sweep.json"
SWEEP_TABLE = "sweep.csv"
SWEEP_PLOT = "sweep.png"
# All that any evaluation writes.
FILES = (EVALUATION, EPISODES, FACTORS, COMPARISON, SWEEP, SWEEP_TABLE, SWEEP_PLOT, REPORT, *FILM)
# In evaluation.json and sweep.json of policies side by side: the labels of all of them, which are
# the names of their folders.
BESIDE = "side_by_side"


class EvaluationFolder:
    """Where one evaluation goes; of several policies each has a folder in it, by its label.

    Nothing of an older evaluation stays beside what is new, and nothing is removed before there is
    something new to be written.
    """

    def __init__(
        self, path: Path, labels: Sequence[str], of_each: Sequence[str], of_all: Sequence[str]
    ):
        """Leaves no folder behind: those that lack are made when there is something to write.

        of_each: names of the files that each policy gets; of_all: those beside them. Raises
        UserError where one cannot be written, or where it is a run or a bundle.
        """
        self.path = path
        self._labels = tuple(labels)
        self._cleared = False
        for place in dict.fromkeys((path, *map(self._place, labels))):
            if is_policys_folder(place):
                raise UserError(
                    f"{place} is the folder of a run or a bundle, whose files no evaluation may "
                    "replace; give another one: out=..."
                )
            if place.exists() and not place.is_dir():
                raise UserError(f"{place} is a file; give another folder: out=...")
        for file in (
            *(self._place(label) / name for label in labels for name in of_each),
            *(path / name for name in of_all),
        ):
            if file.is_dir():
                raise UserError(f"cannot write '{file}': it is a folder; give another one: out=...")
        for place in dict.fromkeys((path, *map(self._place, labels))):
            try:
                try_folder(place)
            except OSError as error:
                raise UserError(
                    f"cannot write '{place}': {error.strerror}; give a folder that can be written: "
                    "out=..."
                ) from error

    @property
    def facts(self) -> dict[str, list[str]]:
        """For evaluation.json and sweep.json: what tells the folders of policies from others."""
        return {BESIDE: list(self._labels)} if len(self._labels) > 1 else {}

    def of(self, label: str) -> Path:
        """A policy's folder, made to be written to now."""
        if not self._cleared:
            clear(self.path)
            for other in self._labels:
                clear(self._place(other))
            self._cleared = True
        place = self._place(label)
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _place(self, label: str) -> Path:
        return self.path / label if len(self._labels) > 1 else self.path


def shortened(name: str, most: int = 80) -> str:
    """A name of at most so many characters; where it is cut, a digest tells it from others."""
    if len(name) <= most:
        return name
    return f"{name[: most - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def clear(folder: Path) -> None:
    """Removes an older evaluation; folders of policies too, unless they hold something else."""
    if not folder.is_dir():
        return
    for place in [entry for entry in folder.iterdir() if _of_one_policy(entry)]:
        _remove(place)
        if not any(place.iterdir()):
            place.rmdir()
    _remove(folder)


def _remove(folder: Path) -> None:
    for name in FILES:
        if not (folder / name).is_dir():
            (folder / name).unlink(missing_ok=True)


def _of_one_policy(folder: Path) -> bool:
    """Whether it is a policy's folder in an evaluation of several, as its own record tells: other
    evaluations may lie here too, each on its own."""
    if folder.is_symlink() or not folder.is_dir() or is_policys_folder(folder):
        return False
    for name in (EVALUATION, SWEEP):
        try:
            record = json.loads((folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        beside = record.get(BESIDE) if isinstance(record, dict) else None
        if isinstance(beside, list) and folder.name in beside:
            return True
    return False
