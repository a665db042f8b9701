"""`python -m visuomotor <command> ...`; the same for a file that registers a task of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from visuomotor.cli import run_command, through_own_program
from visuomotor.errors import UserError

COMMANDS = (
    "demonstrate",
    "train",
    "evaluate",
    "average",
    "export",
    "deploy",
    "faults",
    "view",
    "shots",
    "calibrate",
    "overlay",
    "benchmark",
)
# What a command starts beside itself, and no one else.
PARTS = ("sim_arm",)


def run(argv: Sequence[str]) -> int:
    """argv: a command and its arguments. Returns the exit code."""

    def command(arguments: list[str]) -> int | None:
        if not arguments or arguments[0] not in COMMANDS + PARTS:
            given = f"'{arguments[0]}' is no command" if arguments else "no command"
            raise UserError(f"{given}; commands: {', '.join(COMMANDS)}")
        name = arguments[0]
        code: int | None = getattr(import_module(f"visuomotor.{name}"), name)(arguments[1:])
        return code

    through_own_program(argv)
    return run_command(command, argv)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
