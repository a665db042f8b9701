"""Velocities that an arm can follow, and from which it can always still stop in time.

numpy only, no clock, no input or output: a function of what is wanted and where the arm is. Every
tick the wanted velocity is approached under limits of velocity, acceleration and jerk; then the
whole stop from there is played through. If it would end beyond a joint's limit or out of the
workspace, the arm brakes instead. Since every tick leaves a stop that is good, braking always is.
This is no certified safety function (docs/safety.md).
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from visuomotor.runtime.arm import ArmLimits
from visuomotor.runtime.kinematics import ForwardKinematics

JOINT_MARGIN = 0.03  # rad kept from a joint's limit: what the arm lags behind the command
WORKSPACE_MARGIN = 0.015  # m kept from the workspace's walls
REMEMBERED = 0.5  # s of what was sent
MAX_STOP_TICKS = 200
_SAME = 1e-12  # rad/s: what rounding leaves between a velocity and its target
_NEVER_WORSE = 1e-6  # m or rad: outside already, only the way back is open


class Motion(NamedTuple):
    """What is sent at one tick, and how it changes."""

    velocity: np.ndarray  # (A,) rad/s
    acceleration: np.ndarray  # (A,) rad/s^2


class Limiter:
    """Keeps the last motion; `step` once per tick of `dt` s."""

    def __init__(self, limits: ArmLimits, dt: float):
        if not dt > 0.0:
            raise ValueError(f"dt={dt}: expected a positive period in s")
        self.limits = limits
        self.dt = dt
        self._kinematics = ForwardKinematics(limits.chain)
        self._sent: deque[np.ndarray] = deque(maxlen=round(REMEMBERED / dt))
        self.rest()

    def rest(self) -> None:
        """The arm is sent on from standing still. What was sent before is remembered: an arm that
        is late still has it to do."""
        zeros = np.zeros(len(self.limits.joint_names))
        self.motion = Motion(zeros, zeros.copy())

    @property
    def at_rest(self) -> bool:
        return not (self.motion.velocity.any() or self.motion.acceleration.any())

    def step(self, wanted: np.ndarray, position: np.ndarray, age: float = 0.0) -> np.ndarray:
        """wanted (A,) rad/s, finite; position (A,) rad, where the arm was `age` s ago -> what to
        send, (A,).

        The arm goes on from there by what was sent since, and by what it has not yet done of it:
        both an arm that is as late as `limits.delay` and one that is not late must be able to stop.
        Arrays that are not finite raise ValueError: the caller must brake instead.
        """
        if not (np.isfinite(wanted).all() and np.isfinite(position).all()):
            raise ValueError("wanted and position must be finite")
        limit = self.limits.velocity
        places = np.stack([position + self.way_sent(age + d) for d in (0.0, self.limits.delay)])
        candidate = self._towards(self.motion, np.clip(wanted, -limit, limit))
        braking = self._towards(self.motion, np.zeros_like(limit))
        stop = self.stop_way(candidate)
        # Joints are judged alone, so that one at its limit does not hold the others.
        beyond = self._beyond_joints(places, stop)
        if beyond.any():
            candidate = _where(beyond, braking, candidate)
            stop = self.stop_way(candidate)
        if any(self._leaves_workspace(place, stop) for place in places):
            in_arm = np.arange(len(limit)) < self._kinematics.num_joints
            candidate = _where(in_arm, braking, candidate)
        return self._send(candidate)

    def way_sent(self, seconds: float) -> np.ndarray:
        """(A,) rad: the way of what was sent in the last so many seconds, REMEMBERED at most."""
        ticks = min(math.ceil(seconds / self.dt - 1e-9), len(self._sent))
        if ticks == 0:
            return np.zeros_like(self.motion.velocity)
        way: np.ndarray = self.dt * np.sum(list(self._sent)[-ticks:], axis=0)
        return way

    def _send(self, motion: Motion) -> np.ndarray:
        self.motion = motion
        self._sent.append(motion.velocity)
        return motion.velocity

    def brake(self) -> np.ndarray:
        """One tick towards rest, with no need to know where the arm is -> what to send, (A,)."""
        return self._send(self._towards(self.motion, np.zeros(len(self.limits.velocity))))

    def stop_way(self, motion: Motion) -> np.ndarray:
        """(K, A) rad: where the joints are, from now, after each tick until they rest."""
        way = [np.zeros_like(motion.velocity)]
        rest = np.zeros_like(motion.velocity)
        while (motion.velocity.any() or motion.acceleration.any()) and len(way) < MAX_STOP_TICKS:
            way.append(way[-1] + motion.velocity * self.dt)
            motion = self._towards(motion, rest)
        return np.stack(way)

    def _towards(self, motion: Motion, target: np.ndarray) -> Motion:
        """One tick of the fastest approach to a velocity that does not shoot over it."""
        dt, most = self.dt, self.limits.acceleration
        step = self.limits.jerk * dt
        missing = target - motion.velocity
        # The largest acceleration from which, falling by `step` a tick, a + (a - step) + ... is
        # what is missing. For a = (m + r) step with 0 <= r < 1 that is ((m + 1) r + m (m + 1) / 2).
        ticks = np.abs(missing) / (dt * step)
        whole = np.floor(0.5 * (np.sqrt(1.0 + 8.0 * ticks) - 1.0))
        part = (ticks - 0.5 * whole * (whole + 1.0)) / (whole + 1.0)
        wanted = np.sign(missing) * np.minimum((whole + part) * step, most)
        low = np.maximum(motion.acceleration - step, -most)
        high = np.minimum(motion.acceleration + step, most)
        acceleration = np.clip(wanted, low, high)
        velocity = motion.velocity + acceleration * dt
        velocity = np.where(np.abs(velocity - target) < _SAME, target, velocity)
        limit = self.limits.velocity
        return Motion(np.clip(velocity, -limit, limit), acceleration)

    def _beyond_joints(self, places: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """places (n, A) rad where the arm may be -> (A,) bool: joints whose stop leads from one of
        them beyond their limit and beyond where they are."""
        low, high = stop.min(axis=0), stop.max(axis=0)
        bottom = self.limits.position_low + JOINT_MARGIN
        top = self.limits.position_high - JOINT_MARGIN
        too_low = (places.min(axis=0) + low < bottom) & (low < -_NEVER_WORSE)
        too_high = (places.max(axis=0) + high > top) & (high > _NEVER_WORSE)
        beyond: np.ndarray = too_low | too_high
        return beyond

    def _leaves_workspace(self, position: np.ndarray, stop: np.ndarray) -> bool:
        joints = self._kinematics.num_joints
        if not stop[-1, :joints].any():
            return False
        outside = self._outside(position[:joints] + stop[:, :joints])
        # Each wall by itself: who comes back to one of them must not go through another meanwhile.
        return bool((outside[1:] > outside[0] + _NEVER_WORSE).any())

    def _outside(self, position: np.ndarray) -> np.ndarray:
        """(n, J) rad -> (n, 6) m: how far the hand is beyond each wall; 0 within."""
        point = self._kinematics.tool(position)
        low = self.limits.workspace_low + WORKSPACE_MARGIN
        high = self.limits.workspace_high - WORKSPACE_MARGIN
        return np.maximum(np.concatenate((low - point, point - high), axis=-1), 0.0)


def _where(chosen: np.ndarray, one: Motion, other: Motion) -> Motion:
    """(A,) bool: joints that move as in `one`; the rest as in `other`."""
    return Motion(*(np.where(chosen, a, b) for a, b in zip(one, other, strict=True)))
