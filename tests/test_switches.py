"""The dead-man switch: a key of a terminal, a joystick's button; both let go when they are gone."""

from __future__ import annotations

import os
import pty
import select
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from visuomotor.runtime.switches import (
    FIRST_REPEAT,
    NEXT_REPEAT,
    Joystick,
    SpaceBar,
    SwitchError,
    make_switch,
)

BUTTON, AXIS, INIT = 0x01, 0x02, 0x80  # of Linux's joystick events
KEY_DELAY, KEY_PERIOD = 0.5, 0.04  # s, of a keyboard that repeats a held key


class Terminal:
    """A pseudo-terminal, the keys that are typed there, and a clock that is played."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.keyboard, screen = pty.openpty()
        self.stdin = os.fdopen(screen)
        self.now = 50.0
        self.before = termios.tcgetattr(screen)
        monkeypatch.setattr("sys.stdin", self.stdin)
        monkeypatch.setattr("visuomotor.runtime.switches.time.monotonic", lambda: self.now)

    def type(self, keys: bytes) -> None:
        os.write(self.keyboard, keys)
        assert select.select([self.stdin], [], [], 20.0)[0]

    def vanish(self) -> None:
        os.close(self.keyboard)
        self.keyboard = -1

    def close(self) -> None:
        self.stdin.close()
        if self.keyboard >= 0:
            self.vanish()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal(monkeypatch)
    yield terminal
    terminal.close()


def _ready(terminal: Terminal) -> SpaceBar:
    """Enter was pressed: the next space bar counts."""
    switch = SpaceBar()
    terminal.type(b"\n")
    assert switch.pressed() is False
    return switch


def test_a_short_press_of_the_space_bar_lasts_until_a_repeat_would_have_come(
    terminal: Terminal,
) -> None:
    switch = _ready(terminal)
    terminal.type(b" ")
    assert switch.pressed()
    terminal.now += FIRST_REPEAT - 0.01
    assert switch.pressed()
    terminal.now += 0.02
    assert switch.pressed() is None


def test_a_held_space_bar_is_pressed_all_the_time_and_soon_released(terminal: Terminal) -> None:
    switch = _ready(terminal)
    terminal.type(b" ")
    assert switch.pressed()
    for wait in (KEY_DELAY, *[KEY_PERIOD] * 50):
        terminal.now += wait
        assert switch.pressed(), "before the repeat is typed"
        terminal.type(b" ")
        assert switch.pressed()
    terminal.now += NEXT_REPEAT - 0.01
    assert switch.pressed()
    terminal.now += 0.02
    assert switch.pressed() is None


def test_any_other_key_lets_go_at_once(terminal: Terminal) -> None:
    switch = _ready(terminal)
    terminal.type(b" ")
    assert switch.pressed()
    terminal.type(b"x")
    assert switch.pressed() is False


@pytest.mark.parametrize("pause", [0.15, 0.35, 3.0])
def test_a_held_space_bar_whose_repetition_pauses_arms_nothing_until_enter(
    terminal: Terminal, pause: float
) -> None:
    """A slow terminal is no human who lets go and presses again."""
    switch = _ready(terminal)
    terminal.type(b" ")
    terminal.now += KEY_DELAY
    terminal.type(b" ")
    assert switch.pressed()
    terminal.now += pause
    assert switch.pressed() is None
    for _ in range(50):
        terminal.type(b" ")
        assert switch.pressed() is None
        terminal.now += KEY_PERIOD
    terminal.type(b"\n")
    assert switch.pressed() is False
    terminal.type(b" ")
    assert switch.pressed()


def test_a_space_bar_that_is_held_from_before_is_no_press(terminal: Terminal) -> None:
    switch = SpaceBar()
    assert switch.pressed() is None
    terminal.type(b" ")
    assert switch.pressed() is None


def test_keys_are_read_one_by_one_and_the_terminal_is_left_as_it_was(terminal: Terminal) -> None:
    switch = SpaceBar()
    lines = termios.ECHO | termios.ICANON
    assert terminal.before[3] & lines == lines
    assert termios.tcgetattr(terminal.stdin)[3] & lines == 0
    switch.close()
    assert termios.tcgetattr(terminal.stdin) == terminal.before


def test_a_terminal_that_is_gone_is_a_space_bar_let_go(terminal: Terminal) -> None:
    switch = _ready(terminal)
    terminal.type(b" ")
    assert switch.pressed()
    terminal.vanish()
    assert not switch.pressed()
    assert not switch.pressed()
    switch.close()


def test_without_a_terminal_the_space_bar_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null") as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(SwitchError, match="needs a terminal"):
            make_switch("space")


class Device:
    """A pipe in a joystick's place; its end stands for the device that is unplugged."""

    def __init__(self, path: Path, switch: str):
        os.mkfifo(path)
        self.switch = make_switch(switch)
        self._events = os.open(path, os.O_WRONLY)

    def tell(self, kind: int, number: int, value: int) -> None:
        os.write(self._events, struct.pack("<IhBB", 0, value, kind, number))

    def unplug(self) -> None:
        os.close(self._events)
        self._events = -1

    def close(self) -> None:
        self.switch.close()
        if self._events >= 0:
            self.unplug()


@pytest.fixture
def joystick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Its button 2 is the switch, of 3."""
    monkeypatch.setattr("visuomotor.runtime.switches.fcntl.ioctl", lambda *_: bytes([3]))
    device = Device(tmp_path / "js0", f"joystick:{tmp_path / 'js0'}:2")
    yield device
    device.close()


def test_a_joystick_s_button_is_pressed_until_it_is_released(joystick: Device) -> None:
    assert not joystick.switch.pressed()
    joystick.tell(BUTTON, 2, 1)
    assert joystick.switch.pressed()
    assert joystick.switch.pressed(), "with no further event"
    joystick.tell(BUTTON, 2, 0)
    assert not joystick.switch.pressed()
    joystick.tell(BUTTON, 2, 1)
    joystick.tell(BUTTON, 2, 0)
    assert not joystick.switch.pressed(), "the last event counts"


def test_other_buttons_and_axes_are_not_the_switch(joystick: Device) -> None:
    joystick.tell(BUTTON, 0, 1)
    joystick.tell(AXIS, 2, 1)
    assert not joystick.switch.pressed()
    joystick.tell(BUTTON, 2, 1)
    joystick.tell(BUTTON, 0, 0)
    joystick.tell(AXIS, 2, 0)
    assert joystick.switch.pressed()


def test_a_button_that_is_held_when_the_device_is_opened_is_no_press(joystick: Device) -> None:
    joystick.tell(BUTTON | INIT, 2, 1)
    assert not joystick.switch.pressed()


def test_a_joystick_that_is_unplugged_is_a_button_let_go(joystick: Device) -> None:
    joystick.tell(BUTTON, 2, 1)
    assert joystick.switch.pressed()
    joystick.unplug()
    assert not joystick.switch.pressed()


def test_a_joystick_that_cannot_be_read_is_a_button_let_go(
    joystick: Device, tmp_path: Path
) -> None:
    joystick.tell(BUTTON, 2, 1)
    assert joystick.switch.pressed()
    assert isinstance(joystick.switch, Joystick)
    folder = os.open(tmp_path, os.O_RDONLY)
    os.dup2(folder, joystick.switch._descriptor)
    os.close(folder)
    assert not joystick.switch.pressed()


def test_half_an_event_is_a_button_let_go(joystick: Device) -> None:
    joystick.tell(BUTTON, 2, 1)
    assert joystick.switch.pressed()
    os.write(joystick._events, b"\0\0\0")
    assert not joystick.switch.pressed()


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", __file__, str(Path(__file__).parent)])
def test_what_is_no_joystick_is_one_clear_error_and_is_closed_again(path: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(SwitchError, match=f"switch=joystick:{path} is no joystick") as refused:
        make_switch(f"joystick:{path}")
    assert "\n" not in str(refused.value)
    assert os.listdir("/proc/self/fd") == before


def test_a_button_that_the_joystick_lacks_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visuomotor.runtime.switches.fcntl.ioctl", lambda *_: bytes([3]))
    with pytest.raises(SwitchError, match="js0:3: it has 3 buttons"):
        Device(tmp_path / "js0", f"joystick:{tmp_path / 'js0'}:3")
