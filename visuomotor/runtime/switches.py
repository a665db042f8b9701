"""The dead-man switch: what a human holds as long as the arm may move.

Nothing but Python. Whoever reads the switch confirms it 50 times a second; a process that dies or a
cable that is pulled lets go of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import struct
import sys
import termios
import threading
import time
import tty
from pathlib import Path
from typing import Protocol

import numpy as np

from visuomotor.runtime.slots import Slot
from visuomotor.runtime.streamer import SWITCH, UNTOLD

CONFIRM_PERIOD = 0.02  # s
HOLD = "hold the switch to start"
# A key that is held repeats: first after half a second, then 25 to 30 times a second.
FIRST_REPEAT, NEXT_REPEAT = 0.7, 0.12  # s
_JS_EVENT = struct.Struct("<IhBB")  # Linux joystick API: time, value, type, number
_JS_BUTTON, _JS_INIT = 0x01, 0x80
_JSIOCGBUTTONS = 0x80016A12  # asks for the number of buttons, a byte


class SwitchError(Exception):
    """A switch that is not there; one line that says what to do."""


class Switch(Protocol):
    start: str  # what a human does to start

    def pressed(self) -> bool | None:
        """None: it cannot be told, which stops the arm and is no release."""
        ...

    def close(self) -> None: ...


class ByHand:
    """Pressed by a program: for the simulated arm, where nobody can be hurt."""

    start = HOLD

    def __init__(self) -> None:
        self.down = False

    def pressed(self) -> bool:
        return self.down

    def close(self) -> None:
        self.down = False


class SpaceBar:
    """The space bar of this terminal. Its release is noticed NEXT_REPEAT s late (and a short press
    lasts FIRST_REPEAT s): a joystick's button is better.

    A key whose repetition pauses, over ssh for instance, looks like one that is let go and pressed
    again. So only another key, Enter, says that it was let go; until then it cannot be told.
    """

    start = "press Enter, then hold the space bar to start"

    def __init__(self) -> None:
        if not sys.stdin.isatty():
            raise SwitchError("switch=space needs a terminal; take switch=joystick:/dev/input/js0")
        self._descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        self._let_go = False  # another key came, and no space bar since
        self._until = -math.inf  # s: it is held until then

    def pressed(self) -> bool | None:
        while select.select([self._descriptor], [], [], 0.0)[0]:
            now = time.monotonic()
            try:
                key = os.read(self._descriptor, 1)
            except OSError:
                key = b""
            if not key:
                return False  # the terminal is gone
            held = now < self._until
            if key != b" ":
                self._let_go, self._until = True, -math.inf
            elif held or self._let_go:
                self._let_go, self._until = False, now + (NEXT_REPEAT if held else FIRST_REPEAT)
        if time.monotonic() < self._until:
            return True
        return False if self._let_go else None

    def close(self) -> None:
        with contextlib.suppress(termios.error):  # a terminal that is gone needs nothing
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)


class Joystick:
    """A button of a Linux joystick device. A device that goes away is a button let go."""

    start = HOLD

    def __init__(self, path: str, button: int = 0):
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            there = ", ".join(sorted(map(str, Path("/dev/input").glob("js*")))) or "none"
            raise SwitchError(
                f"switch=joystick:{path}: {error.strerror}; joysticks here: {there}"
            ) from error
        try:
            buttons = fcntl.ioctl(self._descriptor, _JSIOCGBUTTONS, b"\0")[0]
        except OSError as error:
            self.close()
            raise SwitchError(f"switch=joystick:{path} is no joystick: {error.strerror}") from error
        if button >= buttons:
            self.close()
            raise SwitchError(
                f"switch=joystick:{path}:{button}: it has {buttons} buttons, counted from 0"
            )
        self._button = button
        self._down = False

    def pressed(self) -> bool:
        try:
            while True:
                _, value, kind, number = _JS_EVENT.unpack(os.read(self._descriptor, _JS_EVENT.size))
                if kind & ~_JS_INIT == _JS_BUTTON and number == self._button:
                    self._down = value == 1 and not kind & _JS_INIT
        except BlockingIOError:
            pass
        except (OSError, struct.error):
            self._down = False
        return self._down

    def close(self) -> None:
        os.close(self._descriptor)


def make_switch(name: str) -> Switch:
    """`space`, `joystick:<device>` or `joystick:<device>:<button>`. Raises SwitchError."""
    kind, _, rest = name.partition(":")
    if kind == "space" and not rest:
        return SpaceBar()
    if kind == "joystick" and rest:
        path, _, button = rest.partition(":")
        if not button or button.isdecimal():
            return Joystick(path, int(button or 0))
    raise SwitchError(
        f"switch={name}: expected space, joystick:/dev/input/js0 or, for another button than 0, "
        "joystick:/dev/input/js0:<button>"
    )


class Confirmation:
    """Tells the streamer, in the background, whether the switch is pressed."""

    def __init__(self, switch: Switch, slot: Slot):
        self.switch = switch
        # Of streamer.ENDINGS: told in the switch's place until the human has really let go, as what
        # is held down is no press for a new start. None: no episode is to end.
        self.ending: int | None = None
        self.paused = False  # for tests: nothing is told
        self._slot = slot
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._confirm, daemon=True)
        self._thread.start()

    def _confirm(self) -> None:
        value = np.zeros((), SWITCH)
        while not self._stop.wait(CONFIRM_PERIOD):
            if self.paused:
                continue
            pressed = self.switch.pressed()
            if pressed is False:
                self.ending = None
            told = UNTOLD if pressed is None else int(pressed)
            value["pressed"] = told if self.ending is None else self.ending
            value["stamp"] = time.monotonic()
            self._slot.write(value)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)
        self.switch.close()
