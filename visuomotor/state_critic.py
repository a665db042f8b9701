"""State to value: the critic, which exists in simulation only and shares nothing with the actor.

Imports only torch; must not know pixels. After Zhu et al. 2018: the critic sees the full state,
because it is thrown away at deployment.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visuomotor.networks import Normalizer, mlp, shrink_output


class StateCritic(nn.Module):
    """An MLP from normalized, clipped state to the expected scaled return."""

    def __init__(self, *, state_dim: int, hidden_sizes: Sequence[int] = (256, 256)) -> None:
        super().__init__()
        self.normalizer = Normalizer(state_dim)
        self.net = mlp((state_dim, *hidden_sizes, 1), nn.ELU)
        shrink_output(self.net[-1], 1.0)

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of the state; mean, std: (state_dim,)."""
        self.normalizer.set(mean, std)

    def forward(self, state: Tensor) -> Tensor:
        """state: (..., S) -> value (...)."""
        value: Tensor = self.net(self.normalizer(state)).squeeze(-1)
        return value
