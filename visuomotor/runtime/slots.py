"""Newest-value exchange between two processes: one writer, one reader, nobody waits.

Shared memory with a sequence number before and after, and a checksum, so that a reader never takes
half of one value and half of another, on any processor. A value that keeps changing under the
reader counts as none: it reads the one before.
"""

from __future__ import annotations

import zlib
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np

from visuomotor.runtime.guard import Command, State

_HEADER = np.dtype([("before", "<u8"), ("checksum", "<u4"), ("_", "<u4"), ("after", "<u8")])
_TRIES = 20
TEXT_BYTES = 256


def command_type(num_joints: int) -> np.dtype:
    """What the policy's process tells the streamer."""
    return np.dtype(
        [
            ("velocity", "<f8", (num_joints,)),
            ("stamp", "<f8"),
            ("frame_stamp", "<f8"),
            ("used_frame_stamp", "<f8"),  # of the frame that the decision was made from
            ("used_joint_stamp", "<f8"),
            ("problem", f"S{TEXT_BYTES}"),
        ]
    )


def report_type(num_joints: int) -> np.dtype:
    """What the streamer tells the policy's process and whoever watches."""
    return np.dtype(
        [
            ("position", "<f8", (num_joints,)),
            ("velocity", "<f8", (num_joints,)),
            ("joint_stamp", "<f8"),  # 0: the arm has said nothing yet
            ("stamp", "<f8"),
            ("state", "<i4"),
            ("armed", "<i4"),
            ("reason", f"S{TEXT_BYTES}"),
        ]
    )


class Slot:
    """One value of a NumPy structured type in shared memory.

    Made by one process (`create`) and opened by name by others; whoever made it removes it.
    """

    def __init__(self, memory: shared_memory.SharedMemory, dtype: np.dtype, owner: bool):
        self._memory = memory
        self._owner = owner
        self._header = np.ndarray((), _HEADER, memory.buf)
        self._value = np.ndarray((), dtype, memory.buf, offset=_HEADER.itemsize)
        self._last: tuple[int, Any] = (0, None)

    @classmethod
    def create(cls, dtype: np.dtype) -> Slot:
        memory = shared_memory.SharedMemory(create=True, size=_HEADER.itemsize + dtype.itemsize)
        assert memory.buf is not None
        memory.buf[:] = bytes(len(memory.buf))
        return cls(memory, dtype, owner=True)

    @classmethod
    def open(cls, name: str, dtype: np.dtype) -> Slot:
        memory = shared_memory.SharedMemory(name=name)
        # Until Python 3.13 every process that opens a block also claims to own it, and would take
        # it away from the others when it ends or is killed.
        resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
        return cls(memory, dtype, owner=False)

    @property
    def name(self) -> str:
        return self._memory.name

    def write(self, value: np.ndarray) -> None:
        """value: () of the slot's type."""
        number = int(self._header["before"]) + 1
        self._header["before"] = number
        self._value[...] = value
        self._header["checksum"] = zlib.crc32(self._value.tobytes(), number & 0xFFFFFFFF)
        self._header["after"] = number

    def read(self) -> tuple[int, np.ndarray | None]:
        """-> how many values were written, and the newest, () of the slot's type; (0, None) before
        the first. A copy."""
        for _ in range(_TRIES):
            after = int(self._header["after"])
            if after == self._last[0]:
                break
            copy = self._value.copy()
            checksum = int(self._header["checksum"])
            before = int(self._header["before"])
            if before == after and zlib.crc32(copy.tobytes(), after & 0xFFFFFFFF) == checksum:
                self._last = (after, copy)
                break
        return self._last

    def close(self) -> None:
        del self._header, self._value
        self._memory.close()
        if self._owner:
            self._memory.unlink()


def to_command(value: np.ndarray) -> Command:
    """value: one record of `command_type`."""
    return Command(
        velocity=value["velocity"].copy(),
        stamp=float(value["stamp"]),
        frame_stamp=float(value["frame_stamp"]),
        problem=untext(value["problem"]),
    )


def text(message: str) -> bytes:
    """A message as a slot holds it, cut to what fits."""
    return message.encode()[:TEXT_BYTES]


def untext(value: np.ndarray) -> str:
    """What `text` made, as it is read from a slot."""
    return bytes(value.item()).decode(errors="replace")


def state_of(value: np.ndarray) -> State:
    """value: one record of `report_type`."""
    return State(int(value["state"]))
