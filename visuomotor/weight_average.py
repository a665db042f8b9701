"""The moving average of a network's weights, which acts like the network and more steadily.

Imports only torch. While it learns at a large step size a network goes round what it should become,
and each of its versions makes mistakes of its own; their mean makes fewer (Polyak and Juditsky
1992; Izmailov et al. 2018, arXiv 1803.05407).
"""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class WeightAverage(Generic[Network]):
    """Of one network; it never learns from this.

    Args:
      network: whose weights are averaged; of the same shapes at each update.
      updates: over about how many the mean goes, newest most; at first over all there were.
    """

    def __init__(self, network: Network, updates: float):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.count = 0  # updates so far
        self._fastest = 1.0 / max(1.0, updates)

    @torch.no_grad()
    def update(self, network: Network) -> None:
        """Takes the weights as they are now; the first time they are the mean."""
        share = max(self._fastest, 1.0 / (self.count + 1))
        mean = self.network.state_dict()
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                mean[name].lerp_(value, share)
            else:
                mean[name].copy_(value)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.count = int(state["count"])


def average_over(steps: int, network: Network, per_update: int) -> WeightAverage[Network] | None:
    """Over so many env steps of training, `per_update` of which make an update; None: over none."""
    return WeightAverage(network, steps / per_update) if steps > 0 else None


def averaged(average: WeightAverage[Network] | None, network: Network) -> Network:
    """The mean where there is one, else the network."""
    return network if average is None or average.count == 0 else average.network
