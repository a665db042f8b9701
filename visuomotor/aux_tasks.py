"""Heads on the actor's visual features that are asked where things are, and their loss.

Imports only torch. The gradient teaches the CNN to see the blocks (Zhu et al. 2018, section III-D:
L2 regression of object positions from the CNN's features); beyond the paper, what is far off counts
linearly, and the policy may read the answers. Targets are 3-vectors in metres, one after the
other: object positions and gripper-to-object displacements.

Maps ask the convolutions themselves, at every place of the image, what is there: an answer that is
one position cannot say where two things of a kind are, and a CNN that learns positions of many
things alone learns them slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from visuomotor.networks import Normalizer, mlp, shrink_output

BUMP = 0.6  # cells, the deviation of the bump that is drawn at a thing's place
MAP_WEIGHT = 10.0  # of the maps' loss beside the positions'; most cells are empty and soon learned

# Of every kind of thing that maps are made of, its things: which vector of the targets tells where
# it is, and which one it is equal to where there is no such thing; None: there always is.
Kinds = Sequence[Sequence[tuple[int, int | None]]]


class View(NamedTuple):
    """What maps are drawn of, and from where: a camera without roll."""

    kinds: Kinds
    pos: tuple[float, float, float]  # m
    lookat: tuple[float, float, float]  # m
    fovy: float  # degrees


class PlaceMaps(nn.Module):
    """Targets in metres to maps: for each kind a bump wherever the image shows a thing of it.

    As in "Objects as points" (Zhou et al. 2019, arXiv 1904.07850). The camera is the nominal one;
    by how much a world's own differs is less than a cell.
    """

    origin: Tensor
    axes: Tensor
    x: Tensor
    y: Tensor

    def __init__(self, view: View, *, height: int, width: int, x: Tensor, y: Tensor) -> None:
        """height, width: pixels of the image. x (columns,), y (rows,): pixels, the middles of a
        map's cells; evenly spaced, x as y."""
        super().__init__()
        self.kinds = view.kinds
        origin = torch.tensor(view.pos, dtype=torch.float64)
        ahead = torch.tensor(view.lookat, dtype=torch.float64) - origin
        ahead = ahead / ahead.norm()
        right = torch.linalg.cross(ahead, ahead.new_tensor([0.0, 0.0, 1.0]))
        right = right / right.norm()
        axes = torch.stack((right, torch.linalg.cross(ahead, right), ahead))  # x, y, depth
        self.middle = (width / 2, height / 2)
        self.focal = height / 2 / math.tan(math.radians(view.fovy) / 2)  # pixels
        self.cell = float(y[1] - y[0])  # pixels
        for name, value in (("origin", origin), ("axes", axes), ("x", x), ("y", y)):
            self.register_buffer(name, value.float(), persistent=False)

    def pixels(self, places: Tensor) -> Tensor:
        """(..., 3) m -> (..., 2): x to the right and y down, from the image's upper left corner."""
        seen = (places - self.origin) @ self.axes.T
        middle = seen.new_tensor(self.middle)
        return middle + self.focal * seen[..., :2] / seen[..., 2:].clamp(min=1e-3)

    def forward(self, targets: Tensor) -> Tensor:
        """(..., K) m -> (..., kinds, rows, columns) in [0, 1]."""
        vectors = targets.unflatten(-1, (-1, 3))
        maps = []
        for things in self.kinds:
            bumps = []
            for index, missing in things:
                place = vectors[..., index, :]
                at = self.pixels(place)
                x = torch.exp(-0.5 * ((at[..., :1] - self.x) / (BUMP * self.cell)).square())
                y = torch.exp(-0.5 * ((at[..., 1:] - self.y) / (BUMP * self.cell)).square())
                bump = y.unsqueeze(-1) * x.unsqueeze(-2)
                if missing is not None:
                    there = (place != vectors[..., missing, :]).any(dim=-1)
                    bump = bump * there[..., None, None]
                bumps.append(bump)
            maps.append(torch.stack(bumps).amax(dim=0))
        return torch.stack(maps, dim=-3)


def map_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of maps (..., kinds, rows, columns) with those of `PlaceMaps`, averaged."""
    return MAP_WEIGHT * functional.binary_cross_entropy_with_logits(logits, target)


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


class FusedHeads(nn.Module):
    """What the heads see, put right by what the joints tell: an MLP from both to a correction.

    A picture does not tell where its camera stands, nor how old it is. The joints do, in part: they
    say where the hand is that the picture shows, and how fast it moves.
    """

    def __init__(
        self, *, target_dim: int, proprio_dim: int, hidden_sizes: Sequence[int] = (128, 128)
    ) -> None:
        super().__init__()
        self.net = mlp((target_dim + proprio_dim, *hidden_sizes, target_dim), nn.ELU)
        # At first nothing is corrected: an actor may get these heads at any time.
        shrink_output(self.net[-1], 0.0)

    def forward(self, answers: Tensor, proprio: Tensor) -> Tensor:
        """answers (..., K) in deviations, proprio (..., P) normalized -> (..., K) in deviations."""
        corrected: Tensor = answers + self.net(torch.cat((answers, proprio), dim=-1))
        return corrected


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
