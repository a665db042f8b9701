"""What all commands share: exit codes, stopping on request, the choice of a device.

Exit codes: 0 done; 1 a training diverged (one line on stderr says how to go on); 2 bad input, a
full disk or too little memory (one line on stderr says what is wrong and what is valid); 130
ended by Ctrl-C and 143 by SIGTERM (training saves before it leaves, so `resume=` goes on); 141
where nobody reads what is printed any more (`| head`), with nothing said.

Imports torch only when a device is asked for: the arm's side has none.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from visuomotor.errors import UserError

if TYPE_CHECKING:
    import torch

EXIT_DONE = 0
EXIT_DIVERGED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT  # 130, as a shell reports it
EXIT_UNREAD = 128 + signal.SIGPIPE  # 141, likewise

# A full disk, a user's quota, and the largest file that a process may write.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the system says of a path that somebody gave, and no code of ours is to blame for. Not that
# there is nothing: a command that looks in vain for its own file is broken.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
MOST_SHOWN = 200  # characters of a path in a message
# torch's allocator of the CPU has no exception of its own.
_REFUSED_BYTES = re.compile(r"can't allocate memory: you tried to allocate (\d+) bytes")
_CUDA = re.compile(r"cuda:(\d+)", re.ASCII)

# What Python was given before a command's name, where a file with tasks of its own runs it.
_own_program: list[str] = []

NOTICE = b"\nstopping after this iteration; Ctrl-C ends at once\n"


def run_command(main: Callable[[list[str]], int | None], argv: Sequence[str]) -> int:
    """Runs a command on its arguments (without the program's name). Returns its exit code.

    main: returns its exit code; None means done. Errors that a user can mend become one line on
    stderr; every other exception is a defect and keeps its traceback.
    """
    try:
        try:
            code = main(list(argv))
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        if not _leave_unread():
            raise
        return EXIT_UNREAD
    except (MemoryError, RuntimeError) as error:
        asked = lacking_memory(error)
        if asked is None:
            raise
        print(f"error: not enough memory: {asked}; smaller settings need less", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if error.errno in _UNUSABLE and isinstance(error.filename, str):
            print(
                f"error: '{_shown(error.filename)}': {error.strerror}; name another path, or make "
                "this one usable",
                file=sys.stderr,
            )
            return EXIT_BAD_INPUT
        if error.errno not in _FULL:
            raise
        where = f" for '{error.filename}'" if error.filename else ""
        print(
            f"error: no room{where} ({error.strerror}); what was written before is whole: free "
            "some space and start again, training with resume=<its folder>",
            file=sys.stderr,
        )
        return EXIT_BAD_INPUT
    return EXIT_DONE if code is None else code


def _leave_unread() -> bool:
    """Whether what this process prints has lost its reader, and not another pipe. Nothing more is
    printed there then, nor tried at the process's end."""
    lost = False
    for stream in (1, 2):
        poll = select.poll()
        poll.register(stream, 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
            lost = True
    return lost


def lacking_memory(error: BaseException) -> str | None:
    """What was asked for that the machine does not have, of Python's, NumPy's and torch's errors;
    None: it is something else that is wrong."""
    said = " ".join(str(error).split())
    refused = _REFUSED_BYTES.search(said)
    if refused is not None:
        return f"{int(refused[1]) / 2**30:.1f} GiB were asked for at once"
    # By name: torch, whose error for GPUs it is, may not be there.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return said.partition(". GPU ")[0] or "there is no more"
    return None


def _shown(path: str) -> str:
    """A path as one line of bounded length."""
    line = " ".join(path.splitlines())
    return line if len(line) <= MOST_SHOWN else f"{line[:MOST_SHOWN]}..."


def through_own_program(argv: Sequence[str]) -> None:
    """The commands `argv` came from Python's command line through a file that registers tasks:
    whatever else this process starts, and that needs them, goes through it as well."""
    given = sys.orig_argv
    if argv and given[-len(argv) :] == list(argv):
        _own_program[:] = given[1 : -len(argv)]


def program(command: str) -> list[str]:
    """Arguments of Python that run a command in a process of its own, behind which come the
    command's."""
    return [*_own_program, command] if _own_program else ["-m", f"visuomotor.{command}"]


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag, so that a loop can finish its iteration and save.

        with StopSignal() as stop:
            while not stop.requested:
                ...

    A second Ctrl-C raises KeyboardInterrupt at once. The handlers that stood before come back at
    the end of the block. To be entered in the main thread: Python delivers signals to it alone.
    """

    def __init__(self, notice: bytes = NOTICE) -> None:
        """notice: told on stderr at the first signal."""
        self._notice = notice
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._received is not None

    @property
    def exit_code(self) -> int:
        """128 + the number of the first signal; 0 if there was none."""
        return EXIT_DONE if self._received is None else 128 + self._received

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._received = number
        # Not print(): the signal may have come in the middle of another write to sys.stderr,
        # whose buffer does not allow to be entered twice.
        os.write(2, self._notice)


def resolve_device(name: str) -> torch.device:
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.

    Raises UserError, with the devices of this machine, for any other name and for a device that is
    not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count > 0 else "cpu")
    if name == "cpu" or (name == "cuda" and count > 0):
        return torch.device(name)
    match = _CUDA.fullmatch(name)
    if match is not None and int(match[1]) < count:
        return torch.device("cuda", int(match[1]))
    choices = ["auto", "cpu"] + ["cuda"] * (count > 0) + [f"cuda:{i}" for i in range(count)]
    known = name == "cuda" or match is not None
    matter = "is not available here" if known else "is no device"
    none = ", as torch finds no CUDA device" if known and count == 0 else ""
    raise UserError(f"device={name} {matter}{none}; valid on this machine: {', '.join(choices)}")
