"""Errors that a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message names what was given, what is valid and what to do.

    The commands print it as one line on stderr and leave with exit code 2.
    """


def did_you_mean(name: str, valid: Iterable[str], most: int = 2, cutoff: float = 0.4) -> str:
    """ " (did you mean a or b?)" with the nearest of the valid names, or nothing."""
    near = difflib.get_close_matches(name, list(valid), n=most, cutoff=cutoff)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
