"""Shared memory between the runtime's processes: whole values, the newest, and nobody waits."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from multiprocessing.synchronize import Event

import numpy as np

from visuomotor.runtime.slots import Slot, command_type, text, to_command, untext

WIDE = np.dtype([("number", "<i8"), ("filled", "<i8", (4096,))])


def _write(name: str, enough: Event) -> None:
    """One value, and more until it is enough."""
    slot = Slot.open(name, WIDE)
    value = np.zeros((), WIDE)
    for number in itertools.count(1):
        value["number"] = number
        value["filled"] = number
        slot.write(value)
        if enough.is_set():
            break
    slot.close()


def test_nothing_is_read_before_the_first_value_and_then_always_the_newest() -> None:
    slot = Slot.create(WIDE)
    other = Slot.open(slot.name, WIDE)
    try:
        assert other.read() == (0, None)
        value = np.zeros((), WIDE)
        for number in (1, 2, 3):
            value["number"] = number
            slot.write(value)
        count, read = other.read()
        assert read is not None
        assert (count, int(read["number"])) == (3, 3)
        value["number"] = 4
        slot.write(value)
        assert int(read["number"]) == 3, "what was read is a copy"
    finally:
        other.close()
        slot.close()


def test_a_reader_never_sees_halves_of_two_values() -> None:
    """The writer goes on until so many values were read, however the two take turns."""
    slot = Slot.create(WIDE)
    spawn = multiprocessing.get_context("spawn")
    enough = spawn.Event()
    writer = spawn.Process(target=_write, args=(slot.name, enough))
    try:
        writer.start()
        last, seen = 0, 0
        while seen < 50:
            number, value = slot.read()
            if value is None:
                assert writer.is_alive() or slot.read()[1] is not None
                continue
            assert (value["filled"] == value["number"]).all()
            assert int(value["number"]) == number >= last
            assert number > last or writer.is_alive()
            seen += number > last
            last = number
    finally:
        enough.set()
        writer.join()
        slot.close()


def test_a_value_that_was_torn_reads_as_the_one_before() -> None:
    slot = Slot.create(WIDE)
    other = Slot.open(slot.name, WIDE)
    try:
        value = np.zeros((), WIDE)
        value["filled"] = 7
        slot.write(value)
        assert other.read()[0] == 1
        slot._value["filled"] = 8  # a writer that was killed in the middle
        slot._header["after"] = 2
        number, read = other.read()
        assert read is not None
        assert number == 1
        assert (read["filled"] == 7).all()
    finally:
        other.close()
        slot.close()


def test_a_reader_that_ends_does_not_take_the_memory_away() -> None:
    slot = Slot.create(WIDE)
    try:
        spawn = multiprocessing.get_context("spawn")
        enough = spawn.Event()
        enough.set()
        reader = spawn.Process(target=_write, args=(slot.name, enough))
        reader.start()
        reader.join()
        assert reader.exitcode == 0
        time.sleep(0.2)  # its resource tracker would clean up now
        again = Slot.open(slot.name, WIDE)
        assert again.read()[0] == 1
        again.close()
    finally:
        slot.close()
    assert not os.path.exists(f"/dev/shm/{slot.name}")


def test_a_command_survives_the_way() -> None:
    value = np.zeros((), command_type(9))
    value["velocity"] = np.arange(9)
    value["stamp"], value["frame_stamp"] = 1.5, 1.25
    value["problem"] = text("x" * 1000)
    command = to_command(value)
    assert command.velocity.tolist() == list(range(9))
    assert (command.stamp, command.frame_stamp) == (1.5, 1.25)
    assert command.problem == "x" * 256
    assert untext(np.array(b"")) == ""
