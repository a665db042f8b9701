"""From what the hand should do to what the joints should do: damped least squares.

Serves whoever moves the hand by its pose. Knows nothing of tasks or of learning.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import robot
from visuomotor.envs.simulation import Simulation

DAMPING = 0.05  # of the least squares, on Jacobians in m/rad and rad/rad; bounds joint speed at
# singularities at the price of some lag
# Where the forearm points straight down, the fourth joint and the last turn the hand about the same
# axis, and what the fourth takes over the fifth then lacks: the hand stands still before a goal. So
# as far as the hand's motion leaves it free, the fourth joint returns to where it starts.
POSTURE_JOINT = 3
POSTURE_GAIN = 2.0  # 1/s


class HandMotion:
    """The pinch site of N worlds: where it is, and joint velocities that move it."""

    def __init__(self, sim: Simulation, jaco: robot.Jaco):
        self._sim, self._jaco = sim, jaco
        joints = [sim.model.joint(name).id for name in robot.ARM_JOINTS]
        self._joint_ids = torch.tensor(joints)

    def pos(self) -> Tensor:
        """(N, 3) m, world frame."""
        return self._sim.data("site_xpos")[:, self._jaco.pinch_site_id]

    def mat(self) -> Tensor:
        """(N, 3, 3): the site's axes in the world frame; x closes, z points out of the hand."""
        return self._sim.data("site_xmat")[:, self._jaco.pinch_site_id].view(-1, 3, 3)

    def rotation_to(self, goal: Tensor) -> Tensor:
        """goal (N, 3, 3) -> (N, 3) rad, world frame: the turn that is missing.

        Half the sum of the axes' cross products: the rotation vector up to third order, and well
        behaved beyond.
        """
        return 0.5 * torch.linalg.cross(self.mat(), goal, dim=1).sum(dim=2)

    def joint_velocity(self, twist: Tensor) -> Tensor:
        """twist (N, 6) m/s, rad/s of the site -> (N, 6) rad/s: J+ v + (I - J+ J) u, where J+ is
        J^T (J J^T + d^2 I)^-1 and u draws one joint to its posture."""
        axis = self._sim.data("xaxis")[:, self._joint_ids]
        lever = self.pos().unsqueeze(1) - self._sim.data("xanchor")[:, self._joint_ids]
        jacobian = torch.cat((torch.linalg.cross(axis, lever), axis), dim=2).transpose(1, 2)
        gram = jacobian @ jacobian.transpose(1, 2)
        gram = gram + DAMPING**2 * torch.eye(6, dtype=gram.dtype)
        free = torch.zeros(len(twist), 6, 1, dtype=gram.dtype)
        angle = self._sim.data("qpos")[:, self._jaco.qpos_ids[POSTURE_JOINT]]
        away = (robot.START_QPOS[POSTURE_JOINT] - angle + torch.pi) % (2 * torch.pi) - torch.pi
        free[:, POSTURE_JOINT, 0] = POSTURE_GAIN * away
        wanted = twist.unsqueeze(2) - jacobian @ free
        solved = jacobian.transpose(1, 2) @ torch.linalg.solve(gram, wanted)
        return (solved + free).squeeze(2)

    def arm_action(self, twist: Tensor) -> Tensor:
        """twist (N, 6) m/s, rad/s -> (N, 6) in [-1, 1]; where a joint cannot go so fast all of them
        go slower, so that the hand keeps its direction."""
        limits = self._jaco.velocity_limits[:6]
        velocity = self.joint_velocity(twist)
        excess = (velocity.abs() / limits).amax(dim=1, keepdim=True).clamp(min=1.0)
        return velocity / excess / limits


def planar(angle: float) -> np.ndarray:
    """(2, 2) rotation by an angle [rad], counter-clockwise."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])
