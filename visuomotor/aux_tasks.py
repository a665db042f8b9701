"""Heads on the actor's visual features that are asked where things are, and their loss.

Imports only torch. The gradient teaches the CNN to see the blocks (Zhu et al. 2018, section III-D:
L2 regression of object positions from the CNN's features); beyond the paper, what is far off counts
linearly, and the policy may read the answers. Targets are 3-vectors in metres, one after the
other: object positions and gripper-to-object displacements.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from visuomotor.networks import Normalizer, mlp


class AuxHeads(nn.Module):
    """An MLP from visual features to K = 3 * (number of vectors) numbers in metres."""

    def __init__(
        self, *, visual_dim: int, target_dim: int, hidden_sizes: Sequence[int] = (200, 100)
    ) -> None:
        """Raises ValueError if target_dim is not a multiple of 3."""
        super().__init__()
        if target_dim % 3 != 0:
            raise ValueError(f"target_dim: expected a multiple of 3, received {target_dim}")
        self.normalizer = Normalizer(target_dim)
        self.net = mlp((visual_dim, *hidden_sizes, target_dim), nn.ELU)

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of the targets; mean, std: (K,) in metres."""
        self.normalizer.set(mean, std)

    def normalized(self, visual: Tensor) -> Tensor:
        """visual: (..., V) -> predictions (..., K) in deviations from the targets' mean."""
        prediction: Tensor = self.net(visual)
        return prediction

    def in_metres(self, normalized: Tensor) -> Tensor:
        """(..., K) -> (..., K): the unit of `normalized` to metres."""
        return normalized * self.normalizer.std + self.normalizer.mean

    def forward(self, visual: Tensor) -> Tensor:
        """visual: (..., V) -> predictions (..., K) in metres."""
        return self.in_metres(self.normalized(visual))

    @property
    def scale(self) -> Tensor:
        """(K,) metres: the deviation of each target, in which `aux_loss` counts errors."""
        return self.normalizer.std


def aux_loss(
    prediction: Tensor, target: Tensor, scale: Tensor | float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error in units of `scale`, linear beyond one of them, averaged (twice Huber 1964): a
    prop that fell off the table would else count more than all that are in sight.

    prediction, target: (..., K) metres. scale: (K,) metres, `AuxHeads.scale`.
    Metrics: aux_position_error, the mean length of the error vectors in metres.
    """
    error = prediction - target
    relative = error / scale
    loss = 2.0 * functional.smooth_l1_loss(relative, torch.zeros_like(relative))
    with torch.no_grad():
        distance = error.reshape(*error.shape[:-1], -1, 3).norm(dim=-1).mean()
    return loss, {"aux_loss": loss.detach(), "aux_position_error": distance}
