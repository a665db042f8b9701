"""Where the hand is, from what a policy reads of the joints: forward kinematics in a network.

Imports only torch. A picture is up to 0.25 s old and the hand moves meanwhile; where a thing is in
the world, as the picture showed it, less where the hand is now is how far it still has to go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Numbers = Sequence[Sequence[float]]


class HandPosition(nn.Module):
    """A serial arm of J revolute joints, each about the z axis of its own frame.

    Args:
      link_rotations: (J, 3, 3), of joint i's frame, at angle 0, in joint i-1's; flattened by rows.
      link_pos: (J, 3) m, where it is.
      tool: (3,) m, the point between the fingertips in the last joint's frame.
      base: (3,) m, where the first joint's parent frame is in the world; it is not turned.
    """

    rotations: Tensor
    links: Tensor

    def __init__(
        self,
        link_rotations: Numbers,
        link_pos: Numbers,
        tool: Sequence[float],
        base: Sequence[float],
    ) -> None:
        super().__init__()
        rotations = torch.tensor(link_rotations, dtype=torch.float32).view(-1, 3, 3)
        self.num_joints = len(rotations)
        self.tool = tuple(tool)
        # Transposed, for points in rows.
        self.register_buffer("rotations", rotations.transpose(1, 2), persistent=False)
        links = torch.tensor(link_pos, dtype=torch.float64)
        links[0] += torch.tensor(base, dtype=torch.float64)
        self.register_buffer("links", links.float(), persistent=False)

    def forward(self, proprio: Tensor) -> Tensor:
        """proprio (..., P): sines of the joints come first, then their cosines -> (..., 3) m, in
        the world."""
        sines, cosines = proprio[..., : self.num_joints], proprio[..., self.num_joints :]
        one = torch.ones_like(proprio[..., 0])
        x, y, z = (value * one for value in self.tool)
        # From the hand inwards: points are turned, no frame is multiplied with another.
        for i in range(self.num_joints - 1, -1, -1):
            sin, cos = sines[..., i], cosines[..., i]
            turned = torch.stack((cos * x - sin * y, sin * x + cos * y, z), dim=-1)
            point = turned @ self.rotations[i] + self.links[i]
            x, y, z = point.unbind(dim=-1)
        return point
