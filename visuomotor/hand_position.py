"""Where the hand is, from what a policy reads of the joints: forward kinematics in a network.

Imports only torch. A picture is up to 0.25 s old and the hand moves meanwhile; where a thing is in
the world, as the picture showed it, less where the hand is now is how far it still has to go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

Numbers = Sequence[Sequence[float]]


class HandPosition(nn.Module):
    """A serial arm of J revolute joints, each about the z axis of its own frame.

    Args:
      link_rotations: (J, 3, 3), of joint i's frame, at angle 0, in joint i-1's; flattened by rows.
      link_pos: (J, 3) m, where it is.
      tool: (3,) m, the point between the fingertips in the last joint's frame.
      base: (3,) m, where the first joint's parent frame is in the world; it is not turned.
    """

    turning: Tensor
    still: Tensor
    tool: Tensor

    def __init__(
        self,
        link_rotations: Numbers,
        link_pos: Numbers,
        tool: Sequence[float],
        base: Sequence[float],
    ) -> None:
        super().__init__()
        rotations = torch.tensor(link_rotations, dtype=torch.float64).view(-1, 3, 3)
        self.num_joints = len(rotations)
        links = torch.tensor(link_pos, dtype=torch.float64)
        links[0] += torch.tensor(base, dtype=torch.float64)
        # Of joint i's frame in joint i-1's, for points (x, y, z, 1) in rows.
        frames = torch.eye(4, dtype=torch.float64).repeat(self.num_joints, 1, 1)
        frames[:, :3, :3] = rotations.transpose(1, 2)
        frames[:, 3, :3] = links
        # A turn about z is linear in its sine and its cosine, so all frames come out of one matrix:
        # few large operations, of which a step on the arm has to do every one.
        cosine, sine, rest = torch.zeros(3, 4, 4, dtype=torch.float64).unbind()
        cosine[0, 0] = cosine[1, 1] = sine[0, 1] = rest[2, 2] = rest[3, 3] = 1.0
        sine[1, 0] = -1.0
        of_sines, of_cosines = (
            torch.block_diag(*(part @ frame).reshape(-1, 1, 16).unbind())
            for part, frame in ((sine, frames), (cosine, frames))
        )
        turning = torch.cat((of_sines, of_cosines)).T.contiguous()
        self.register_buffer("turning", turning.float(), persistent=False)
        self.register_buffer("still", (rest @ frames).flatten().float(), persistent=False)
        point = torch.tensor([[*tool, 1.0]], dtype=torch.float32)
        self.register_buffer("tool", point, persistent=False)

    def forward(self, proprio: Tensor) -> Tensor:
        """proprio (..., P): sines of the joints come first, then their cosines -> (..., 3) m, in
        the world."""
        turned = linear(proprio[..., : 2 * self.num_joints], self.turning, self.still)
        frames = turned.unflatten(-1, (self.num_joints, 4, 4)).split(1, dim=-3)
        point = self.tool
        for frame in reversed(frames):
            point = point @ frame
        return point[..., 0, 0, :3]
