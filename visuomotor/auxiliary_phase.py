"""A pixel actor learns to see: the auxiliary loss on its CNN, with the policy held where it is.

Reinforcement alone moves a CNN too slowly, because the step size that a policy bears is smaller
than the one that vision wants; so the two take turns (phasic policy gradient, Cobbe et al. 2021,
arXiv 2009.04416). What is learned here are the auxiliary targets of Zhu et al. 2018 in place of
Cobbe's values. Knows no environment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from visuomotor.aux_tasks import aux_loss
from visuomotor.config import AuxConfig
from visuomotor.networks import Progress, descend, load_optimizer_state, optimizer_state
from visuomotor.pixel_actor import PixelActor
from visuomotor.ppo import action_means, frame_aux_loss, gaussian_kl
from visuomotor.rollout import RolloutBuffer

MAX_GRAD_NORM = 1.0
START_LEARNING_RATE = 1e-3
COLOUR_CAST = 0.1  # largest shift of a colour channel, of 1: appearances beyond those drawn


class FrameMemory:
    """The last frames seen, with the auxiliary targets of each; the oldest make room."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._frames = torch.zeros(0, dtype=torch.uint8)  # (capacity, 3, H, W) once in use
        self._targets = torch.zeros(0)  # (capacity, K), metres
        self._size = 0
        self._next = 0

    def __len__(self) -> int:
        return self._size

    def add(self, frames: Tensor, targets: Tensor) -> None:
        """frames: (M, 3, H, W) uint8; targets: (M, K) metres. Of more than fit, the last stay."""
        if self._size == 0:
            self._frames = frames.new_zeros(self.capacity, *frames.shape[1:])
            self._targets = targets.new_zeros(self.capacity, targets.shape[1])
        frames, targets = frames[-self.capacity :], targets[-self.capacity :]
        count = len(frames)
        where = (self._next + torch.arange(count, device=frames.device)) % self.capacity
        self._frames[where] = frames
        self._targets[where] = targets
        self._next = (self._next + count) % self.capacity
        self._size = min(self.capacity, self._size + count)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` frames and their targets, with replacement; generator: a CPU generator."""
        chosen = torch.randint(self._size, (count,), generator=generator).to(self._frames.device)
        return self._frames[chosen], self._targets[chosen]

    def state_dict(self) -> dict[str, Any]:
        return {
            "frames": self._frames[: self._size].clone(),
            "targets": self._targets[: self._size].clone(),
            "next": self._next,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self._size = self._next = 0
        if len(state["frames"]) > 0:
            self.add(state["frames"].to(device), state["targets"].to(device))
        self._next = int(state["next"])


class AuxiliaryPhase:
    """Holds the memory and an optimizer of its own for the actor.

    Args:
      actor: whose CNN and heads learn.
      generator: CPU, draws minibatches, older frames and colour casts; nothing else may draw.
    """

    def __init__(
        self,
        actor: PixelActor,
        config: AuxConfig,
        *,
        generator: torch.Generator,
    ):
        """Raises ValueError if the actor has no heads."""
        if actor.aux_heads is None:
            raise ValueError("an auxiliary phase needs an actor with auxiliary heads")
        self.actor = actor
        self.aux_heads = actor.aux_heads
        self.config = config
        self.generator = generator
        self.memory = FrameMemory(config.memory)
        # The deviation belongs to exploration, and stays out of this.
        self._parameters = [
            p for name, p in actor.named_parameters() if not name.startswith("deviation.")
        ]
        self.optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate)

    def start(self, frames: Tensor, targets: Tensor, progress: Progress | None = None) -> None:
        """Before anything acts: teaches encoder and heads alone, on frames (M, 3, H, W) and their
        targets (M, K), which also begin the memory."""
        self.memory.add(frames, targets)
        seeing = [*self.actor.encoder.parameters(), *self.aux_heads.parameters()]
        descend(
            seeing,
            self.frames_loss,
            updates=self.config.start_updates,
            learning_rate=START_LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            progress=progress,
        )

    def frames_loss(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The auxiliary loss of a batch from the memory, each frame in a colour cast of its own."""
        frames, targets = self.memory.sample(self.config.batch_size, self.generator)
        cast = torch.rand(len(frames), 3, 1, 1, generator=self.generator) * 2.0 - 1.0
        shift = cast.to(frames.device) * COLOUR_CAST * 255.0
        shifted = (frames.float() + shift).clamp_(0.0, 255.0).to(torch.uint8)
        predictions = self.actor.located(self.actor.encode(shifted))
        return aux_loss(predictions, targets, self.aux_heads.scale)

    def update(self, buffer: RolloutBuffer, scale: float) -> dict[str, float]:
        """One pass over a finished rollout, with older frames beside it; the rollout joins them.

        scale: of the step size. Metrics are means over the minibatches.
        Raises RuntimeError if a gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * scale
        held = self._means(buffer)
        std = self.actor.std().detach()
        totals: dict[str, list[Tensor]] = {}
        for batch in buffer.minibatches(self.minibatches(buffer), self.generator):
            mean, visual = action_means(self.actor, batch.inputs)
            index = batch.inputs.frame_index
            assert visual is not None and index is not None
            fresh, metrics = frame_aux_loss(self.actor, visual, index, batch.aux_targets)
            divergence = gaussian_kl(held[:, batch.env_ids], std, mean, std).mean()
            losses = [fresh] + [
                self.frames_loss()[0] for _ in range(self.config.replayed) if len(self.memory) > 0
            ]
            loss = self.config.weight * torch.stack(losses).sum() + self.config.hold * divergence
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRAD_NORM, error_if_nonfinite=True)
            self.optimizer.step()
            for name, value in (metrics | {"held_kl": divergence.detach()}).items():
                totals.setdefault(name, []).append(value)
        assert buffer.frames is not None
        self.memory.add(buffer.frames, buffer.frame_targets())
        return {name: float(torch.stack(values).mean()) for name, values in totals.items()}

    def minibatches(self, buffer: RolloutBuffer) -> int:
        """Groups of worlds in a pass: as many as configured, where there are so many worlds."""
        return min(self.config.minibatches, buffer.num_envs)

    @torch.no_grad()
    def _means(self, buffer: RolloutBuffer) -> Tensor:
        """(T, N, A): the policy before the pass, on the rollout."""
        everyone = torch.Generator().manual_seed(0)
        means = torch.zeros_like(buffer.mean)
        for batch in buffer.minibatches(min(4, buffer.num_envs), everyone):
            means[:, batch.env_ids] = action_means(self.actor, batch.inputs)[0]
        return means

    def state_dict(self) -> dict[str, Any]:
        """All but the actor, which is another's."""
        return {
            "optimizer": optimizer_state(self.optimizer),
            "memory": self.memory.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.aux_heads.scale.device
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.memory.load_state_dict(state["memory"], device)
        self.generator.set_state(state["generator"].cpu())
