"""Where the hand is: forward kinematics of a serial arm. numpy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Chain(NamedTuple):
    """Revolute joints one after the other, each about the z axis of its own frame.

    link_pos[i] (3,) m and link_quat[i] (4,) wxyz place joint i's frame, at angle 0, in joint i-1's
    (the first in the base's); tool_pos (3,) m is a point in the last joint's frame.
    """

    link_pos: np.ndarray  # (J, 3)
    link_quat: np.ndarray  # (J, 4)
    tool_pos: np.ndarray  # (3,)


def rotation(quat: np.ndarray) -> np.ndarray:
    """Unit quaternions (..., 4) wxyz -> (..., 3, 3)."""
    w, x, y, z = np.moveaxis(quat, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


class ForwardKinematics:
    """`tool(q)` of one chain, with the constant rotations worked out once."""

    def __init__(self, chain: Chain):
        self.num_joints = len(chain.link_pos)
        self._link_rotations = rotation(chain.link_quat)
        self._chain = chain

    def tool(self, position: np.ndarray) -> np.ndarray:
        """position (..., J) rad -> (..., 3) m in the base's frame."""
        point = np.broadcast_to(self._chain.tool_pos, (*position.shape[:-1], 3))
        # From the hand inwards: points are turned, no frame is multiplied with another.
        for i in range(self.num_joints - 1, -1, -1):
            sin, cos = np.sin(position[..., i]), np.cos(position[..., i])
            x, y, z = point[..., 0], point[..., 1], point[..., 2]
            turned = np.stack((cos * x - sin * y, sin * x + cos * y, z), axis=-1)
            point = turned @ self._link_rotations[i].T + self._chain.link_pos[i]
        return point


def hand_pose(chain: Chain, position: np.ndarray) -> np.ndarray:
    """position (J,) rad -> (4, 4): the last joint's frame in the base's."""
    pose = np.eye(4)
    links = zip(rotation(chain.link_quat), chain.link_pos, position, strict=True)
    for link_rotation, link_pos, angle in links:
        sin, cos = np.sin(angle), np.cos(angle)
        turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        step = np.eye(4)
        step[:3, :3], step[:3, 3] = link_rotation @ turn, link_pos
        pose = pose @ step
    return pose
