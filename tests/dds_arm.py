"""A driver of an arm on DDS, in a thread of its own: it tells joints and pictures, and keeps what
it is sent. How fast it is does not matter: it goes as far with each tick as with the one before."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from visuomotor.envs import robot
from visuomotor.runtime.arms.dds import (
    COMMANDS,
    Float64MultiArray,
    Header,
    ImageMessage,
    JointStateMessage,
    KinovaJointVelocity,
    Participant,
    Time,
    topic_name,
)
from visuomotor.runtime.arms.ros2 import KINOVA_JOINTS

TICK = 0.01  # s, at least
SIDE = 64  # pixels
FRAME_TICKS = 4
NOISE = 0.0005  # rad, standard deviation: no arm tells the same numbers twice
HEAD = Header(Time(0, 0), "")


class DdsArm:
    """Of loopback."""

    def __init__(
        self,
        domain: int,
        joint_states: str = "/joint_states",
        image: str = "/image",
        command: str = "/unheard",
        kind: type = Float64MultiArray,
    ):
        """kind: of the commands, Float64MultiArray or KinovaJointVelocity."""
        self.tells = True  # joints; False: it is silent, but goes on hearing
        self.received: list[np.ndarray] = []  # (9,) or (6,) rad/s, oldest first
        self._position = np.array(robot.START_QPOS, dtype=float)
        self._velocity = np.zeros(9)
        self._rng = np.random.default_rng(0)
        member = Participant(domain, "lo").participant
        self._joints, self._images = (
            DataWriter(member, Topic(member, topic_name(topic), message), qos=COMMANDS)
            for topic, message in ((joint_states, JointStateMessage), (image, ImageMessage))
        )
        self._commands = DataReader(member, Topic(member, topic_name(command), kind), qos=COMMANDS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        ticks = 0
        while not self._stop.wait(TICK):
            for message in self._commands.take(N=16):
                self._hear(message)
            self._position += TICK * self._velocity
            told = self._position + self._rng.normal(scale=NOISE, size=9)
            names, velocity = list(KINOVA_JOINTS), self._velocity.tolist()
            if self.tells:
                self._joints.write(JointStateMessage(HEAD, names, told.tolist(), velocity, []))
            if ticks % FRAME_TICKS == 0:
                pixels = self._rng.bytes(3 * SIDE * SIDE)
                self._images.write(ImageMessage(HEAD, SIDE, SIDE, "rgb8", 0, 3 * SIDE, pixels))
            ticks += 1

    def _hear(self, message: Any) -> None:
        if isinstance(message, Float64MultiArray):
            velocity = np.array(message.data)
        elif isinstance(message, KinovaJointVelocity):
            velocity = np.deg2rad([getattr(message, f"joint{i}") for i in range(1, 7)])
        else:
            return  # that a writer left
        self.received.append(velocity)
        self._velocity[: len(velocity)] = velocity

    def moved(self, since: int = 0) -> bool:
        """Whether any message from that one on asked for motion."""
        return any(velocity.any() for velocity in self.received[since:])

    def rests(self, messages: int) -> bool:
        """Whether so many messages on end, the newest of all, were zeros."""
        last = self.received[-messages:]
        return len(last) == messages and not np.any(last)

    def close(self) -> None:
        """It leaves the domain."""
        self._stop.set()
        self._thread.join()
        for entity in ("_joints", "_images", "_commands"):
            self.__dict__.pop(entity, None)
