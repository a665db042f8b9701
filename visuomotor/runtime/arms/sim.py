"""The simulated arm as the runtime sees it: UDP on loopback; and its messages, for both sides.

numpy only. The other side is `visuomotor.sim_arm`, a process with a clock of its own.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from typing import Any

import numpy as np

from visuomotor.runtime.arm import ArmError, ArmLimits, JointState
from visuomotor.runtime.jaco import LIMITS

JOINT_HELLO, CAMERA_HELLO = b"joints?", b"frames?"
HELLO_PERIOD = 1.0  # s
PATIENCE = 5.0  # s that `connect` waits for a first answer
MAX_MESSAGE = 65536
MAX_DATAGRAM = 65507  # bytes, of UDP over IPv4
_VELOCITY = b"V"
_FRAME = struct.Struct("<cHHd")


def encode_velocity(velocity: np.ndarray) -> bytes:
    """velocity: (9,) rad/s."""
    return _VELOCITY + np.asarray(velocity, "<f8").tobytes()


def decode_velocity(message: bytes) -> np.ndarray | None:
    """(9,) rad/s; None if the message is none of them."""
    if message[:1] != _VELOCITY or len(message) != 1 + 8 * len(LIMITS.joint_names):
        return None
    return np.frombuffer(message, "<f8", offset=1).copy()


def encode_joints(
    stamp: float, names: list[str], position: np.ndarray, velocity: np.ndarray
) -> bytes:
    """stamp: s, the arm's clock; position, velocity: (J,) rad, rad/s, in the order of `names`."""
    state = {
        "stamp": stamp,
        "name": names,
        "position": position.tolist(),
        "velocity": velocity.tolist(),
    }
    return json.dumps(state).encode()


def encode_frame(stamp: float, image: np.ndarray) -> bytes:
    """image (H, W, 3) uint8 RGB, of a size that `refused_size` does not refuse."""
    return _FRAME.pack(b"F", *image.shape[:2], stamp) + image.tobytes()


def refused_size(height: int, width: int) -> str:
    """Why images of this size [pixels] cannot be sent; empty: they can."""
    if _FRAME.size + 3 * height * width <= MAX_DATAGRAM:
        return ""
    most = int(((MAX_DATAGRAM - _FRAME.size) / 3) ** 0.5)
    return (
        f"the simulated arm sends an image in one datagram, which holds {most}x{most} pixels, "
        f"not {width}x{height}"
    )


def decode_frame(message: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB; None if the message is no frame, or a part of one."""
    if len(message) < _FRAME.size:
        return None
    kind, height, width, _ = _FRAME.unpack_from(message)
    if kind != b"F" or len(message) != _FRAME.size + 3 * height * width:
        return None
    return np.frombuffer(message, np.uint8, offset=_FRAME.size).reshape(height, width, 3).copy()


def in_order(names: list[str], wanted: tuple[str, ...], **values: list[float]) -> list[np.ndarray]:
    """Values by name -> in the order wanted, each (A,). Further joints are left out.

    Raises ValueError if a joint is missing or doubled, or there are not as many values as names.
    """
    for what, told in values.items():
        if len(told) != len(names):
            raise ValueError(f"{len(names)} names, but {len(told)} numbers of {what}")
    place = {name: i for i, name in enumerate(names)}
    if len(place) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{doubled} stands twice among the names")
    missing = [name for name in wanted if name not in place]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing among the names {', '.join(names)}")
    index = [place[name] for name in wanted]
    return [np.array(told, dtype=np.float64)[index] for told in values.values()]


def request(port: int, message: dict[str, Any], timeout: float = 5.0) -> dict[str, Any]:
    """A control message to the simulated arm, and its answer. Raises ArmError if none comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(timeout)
        channel.connect(("127.0.0.1", port))
        try:
            channel.send(json.dumps(message).encode())
            answer = json.loads(channel.recv(MAX_MESSAGE))
        except OSError as error:
            raise ArmError(f"no simulated arm answers at 127.0.0.1:{port}: {error}") from error
    if "error" in answer:
        raise ArmError(f"the simulated arm refused {message}: {answer['error']}")
    return dict(answer)


class _Subscription:
    """A socket that keeps telling the simulated arm that it listens."""

    def __init__(self, port: int, hello: bytes):
        self._hello = hello
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._greeted = -HELLO_PERIOD

    def messages(self) -> list[bytes]:
        """All that arrived, oldest first; never waits."""
        now = time.monotonic()
        if now - self._greeted > HELLO_PERIOD:
            self._greeted = now
            self.send(self._hello)
        arrived = []
        while True:
            try:
                arrived.append(self.socket.recv(MAX_MESSAGE))
            except (BlockingIOError, ConnectionRefusedError):
                return arrived

    def send(self, message: bytes) -> None:
        """Raises OSError where this computer cannot send. That nobody is there is no error, as the
        guard acts on silence; nor is a message that is lost for want of room: the next follows."""
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            self.socket.send(message)


class SimArm:
    """An `Arm`; `port` is what `visuomotor.sim_arm` printed."""

    def __init__(self, port: int, delay: float = LIMITS.delay):
        """delay: s, of `ArmLimits`."""
        self.port = port
        self._limits = LIMITS._replace(delay=delay)
        self._subscription: _Subscription | None = None
        self._state: JointState | None = None

    @property
    def limits(self) -> ArmLimits:
        return self._limits

    def connect(self) -> None:
        self._subscription = _Subscription(self.port, JOINT_HELLO)
        deadline = time.monotonic() + PATIENCE
        while self.read() is None:
            if time.monotonic() > deadline:
                raise ArmError(
                    f"no simulated arm tells its joints at 127.0.0.1:{self.port}; start one: "
                    "python -m visuomotor.sim_arm"
                )
            time.sleep(0.01)

    def claim(self) -> str:
        return ""

    def read(self) -> JointState | None:
        assert self._subscription is not None, "connect() first"
        for message in self._subscription.messages():
            try:
                told = json.loads(message)
                position, velocity = in_order(
                    told["name"],
                    LIMITS.joint_names,
                    position=told["position"],
                    velocity=told["velocity"],
                )
            except (ValueError, KeyError, TypeError):
                continue
            # When it came, by our own clock: the sender's may be stepped.
            self._state = JointState(position, velocity, time.monotonic())
        return self._state

    def send(self, velocity: np.ndarray) -> None:
        assert self._subscription is not None, "connect() first"
        self._subscription.send(encode_velocity(velocity))

    def stop(self) -> None:
        if self._subscription is not None:
            try:
                self.send(np.zeros(len(LIMITS.joint_names)))
            finally:
                self._subscription.socket.close()
                self._subscription = None


class SimCamera:
    """Images of the simulated arm's camera; a `Camera` (runtime/cameras.py)."""

    channels = "RGB"

    def __init__(self, port: int):
        self._subscription = _Subscription(port, CAMERA_HELLO)

    def read(self) -> np.ndarray | None:
        """The newest image that arrived since the last call; never waits."""
        newest = None
        for message in self._subscription.messages():
            image = decode_frame(message)
            newest = newest if image is None else image
        return newest

    def close(self) -> None:
        self._subscription.socket.close()
