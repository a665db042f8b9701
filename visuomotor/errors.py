"""Errors that a user can mend, and a training that diverged."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from numbers import Real


class UserError(Exception):
    """Bad input: the message names what was given, what is valid and what to do.

    The commands print it as one line on stderr and leave with exit code 2.
    """


class DivergedError(RuntimeError):
    """A gradient or a weight is no longer finite: nothing that is learned from here on is worth
    anything. `train` prints one line on stderr and leaves with exit code 1."""


def did_you_mean(name: str, valid: Iterable[str], most: int = 2, cutoff: float = 0.4) -> str:
    """ " (did you mean a or b?)" with the nearest of the valid names, or nothing."""
    near = difflib.get_close_matches(name, list(dict.fromkeys(valid)), n=most, cutoff=cutoff)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


NAMES = "letters from a to z, digits, _ and -, and no - at the beginning"


def is_name(name: object) -> bool:
    """Whether it can stand in a file's name, a table and a command, see NAMES."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) is not None


def is_finite(value: object) -> bool:
    """Whether it is a number, and neither infinite nor NaN."""
    return type(value) is not bool and isinstance(value, Real) and math.isfinite(value)
