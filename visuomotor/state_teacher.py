"""State to an action distribution: the teacher that a pixel actor learns from.

Imports only torch. It exists in simulation only and never leaves it; it has no memory, because the
state already says everything.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from visuomotor.networks import GaussianHead, Normalizer, mlp, shrink_output

MEAN_GAIN = 0.01  # of the last layer: the first actions are noise around zero, as PPO wants


class StateTeacher(nn.Module):
    """A diagonal Gaussian over A actions, from the normalized, clipped state."""

    def __init__(
        self,
        *,
        state_dim: int,
        action_dim: int = 9,
        hidden_sizes: Sequence[int] = (256, 256),
        init_log_std: Tensor,
        min_std: Tensor,
    ) -> None:
        """init_log_std, min_std: (A,), in units of the action. Raises ValueError on a shape."""
        super().__init__()
        if init_log_std.shape != (action_dim,):
            raise ValueError(
                f"init_log_std: expected shape ({action_dim},), "
                f"received {tuple(init_log_std.shape)}"
            )
        self.normalizer = Normalizer(state_dim)
        self.net = mlp((state_dim, *hidden_sizes, action_dim), nn.ELU)
        shrink_output(self.net[-1], MEAN_GAIN)
        self.deviation = GaussianHead(init_log_std, min_std)

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of the state; mean, std: (state_dim,)."""
        self.normalizer.set(mean, std)

    def std(self) -> Tensor:
        """-> (A,), in units of the action."""
        deviation: Tensor = self.deviation()
        return deviation

    def forward(self, state: Tensor) -> Tensor:
        """state: (..., S) -> mean (..., A)."""
        mean: Tensor = self.net(self.normalizer(state))
        return mean
