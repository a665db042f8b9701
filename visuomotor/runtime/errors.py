"""Errors of the arm's side that every process knows, whatever it loads."""

MAX_MESSAGE = 500  # characters; a damaged file must not flood a log


class BundleError(Exception):
    """A bundle that must not run, or an input that it must not be given; always one short line."""

    def __init__(self, message: str):
        line = "".join(c if c.isprintable() else " " for c in message)
        line = " ".join(line.split())
        super().__init__(line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 3] + "...")


class LogError(Exception):
    """A log that cannot be begun; one line that says why."""


class CameraError(Exception):
    """A camera, or a calibration of one, that is not there; one line that says what to do."""
