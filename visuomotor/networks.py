"""What the networks share: input normalization, small MLPs, optimizer state as plain tensors.

Imports only torch; knows no environment, no algorithm and no configuration.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from visuomotor.errors import DivergedError

MIN_DEVIATION = 1e-3  # of any input, in its own unit: a constant input must not be blown up
Progress = Callable[[dict[str, float]], None]  # told {"step": ..., metrics} now and then
FLOOR_MARGIN = 1e-6  # nats above the floor's logarithm: exp never rounds to below the floor


class Normalizer(nn.Module):
    """Shift, scale and clip inputs with statistics that are saved with the weights.

    The statistics are frozen: they are set once (from demonstrations), so that the meaning of a
    network's input never moves under its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, clip: float = 5.0) -> None:
        """clip: largest absolute value handed on, in standard deviations."""
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def set(self, mean: Tensor, std: Tensor) -> None:
        """mean, std: (dim,). Deviations below MIN_DEVIATION are raised to it.

        Raises ValueError if a shape differs or a value is not finite.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.mean.shape:
                raise ValueError(
                    f"normalization {name}: expected shape {tuple(self.mean.shape)}, "
                    f"received {tuple(value.shape)}"
                )
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"normalization {name} holds values that are not finite")
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=MIN_DEVIATION))

    def forward(self, values: Tensor) -> Tensor:
        """values: (..., dim) -> (..., dim)."""
        return ((values - self.mean) / self.std).clamp(-self.clip, self.clip)


class SpatialSoftmax(nn.Module):
    """Where in the image each channel responds: the expected position under a softmax over pixels
    (Levine et al. 2016, arXiv 1504.00702).

    A position is all that passes, so that what moves in the image moves in the output, however
    the scene is coloured: it generalizes from far fewer appearances than a fully connected layer.
    """

    places: Tensor

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        # The logarithm of the softmax's sharpness, learned.
        self.log_sharpness = nn.Parameter(torch.ones(()))
        y, x = torch.linspace(-1.0, 1.0, rows), torch.linspace(-1.0, 1.0, columns)
        self.register_buffer("places", torch.cartesian_prod(y, x), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """maps: (B, C, rows, columns) -> (B, 2 C): y of every channel, then x, in [-1, 1]."""
        weights = (maps.flatten(2) * self.log_sharpness.exp()).softmax(dim=-1)
        return (weights @ self.places).transpose(1, 2).flatten(1)


def mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of the given sizes, with `activation` between them but not after the last."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        if i > 0:
            layers.append(activation())
        layers.append(nn.Linear(inputs, outputs))
    return nn.Sequential(*layers)


def shrink_output(layer: nn.Module, gain: float) -> None:
    """Orthogonal weights of the given gain and zero bias: the first outputs are near zero."""
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"expected nn.Linear, received {type(layer).__name__}")
    nn.init.orthogonal_(layer.weight, gain=gain)
    nn.init.zeros_(layer.bias)


class GaussianHead(nn.Module):
    """The state-independent deviation of a diagonal Gaussian policy, with a floor.

    The floor keeps exploration alive: grasping needs noisy fingers long after the arm has become
    precise. `scale` takes back floor and deviation alike, once there is little left to explore.
    """

    min_std: Tensor
    scale: float

    def __init__(self, init_log_std: Tensor, min_std: Tensor) -> None:
        """init_log_std, min_std: (A,), in units of the action."""
        super().__init__()
        if init_log_std.shape != min_std.shape or init_log_std.dim() != 1:
            raise ValueError(
                f"init_log_std and min_std: expected equal shapes (A,), received "
                f"{tuple(init_log_std.shape)} and {tuple(min_std.shape)}"
            )
        self.log_std = nn.Parameter(init_log_std.detach().clone().float())
        self.register_buffer("min_std", min_std.detach().clone().float())
        self.scale = 1.0  # set by whoever trains; not part of the weights
        self.project()

    def forward(self) -> Tensor:
        """-> (A,), never below the floor times `scale`."""
        return torch.maximum(self.log_std.exp(), self.min_std) * self.scale

    def project(self) -> None:
        """Move parameters that fell under the floor back onto it; call it after each step.

        Below the floor the gradient is zero, and a deviation that got there could never grow again.
        """
        with torch.no_grad():
            self.log_std.clamp_(min=self.min_std.log() + FLOOR_MARGIN)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, owner: str) -> Tensor:
    """Cuts gradients that are longer together than max_norm to it. Returns their length before.

    Raises DivergedError, which names the owner, if it is not finite.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    if not bool(norm.isfinite()):
        raise DivergedError(f"the gradient of {owner} is non-finite")
    return norm


def descend(
    parameters: Sequence[nn.Parameter],
    loss_and_metrics: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    *,
    updates: int,
    learning_rate: float,
    max_grad_norm: float,
    progress: Progress | None = None,
) -> None:
    """Adam over fresh batches, its step size falling to 0 over the last quarter.

    progress: told every 50th step's number and metrics. Raises DivergedError if a gradient is not
    finite.
    """
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    for step in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, 4.0 * (1.0 - step / updates))
        loss, metrics = loss_and_metrics()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(parameters, max_grad_norm, f"a fit with step size {learning_rate:g}")
        optimizer.step()
        if progress is not None and step % 50 == 0:
            progress({name: float(value) for name, value in metrics.items()} | {"step": step})


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """State as {parameter index: {name: tensor}}: text keys and tensors only, so that it fits any
    file format. Hyper-parameters are not in it; their owner keeps them.
    """
    return {
        str(index): dict(entry.items()) for index, entry in optimizer.state_dict()["state"].items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Tensor]]
) -> None:
    """The inverse of `optimizer_state`; hyper-parameters stay as they are."""
    optimizer.load_state_dict(
        {
            "state": {
                int(index): {name: value.clone() for name, value in entry.items()}
                for index, entry in state.items()
            },
            "param_groups": optimizer.state_dict()["param_groups"],
        }
    )
