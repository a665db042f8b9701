"""Errors that a user can mend."""


class UserError(Exception):
    """Bad input: the message names what was given, what is valid and what to do.

    The commands print it as one line on stderr and leave with exit code 2.
    """
