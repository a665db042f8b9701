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

from visuomotor import rows
from visuomotor.config import AuxConfig
from visuomotor.networks import (
    Progress,
    clip_gradients,
    descend,
    load_optimizer_state,
    optimizer_state,
)
from visuomotor.pixel_actor import PixelActor
from visuomotor.ppo import action_means, gaussian_kl
from visuomotor.rollout import RolloutBuffer

MAX_GRAD_NORM = 1.0
START_LEARNING_RATE = 3e-3
CHUNK = 256  # frames encoded at a time where no gradient is wanted
KL_WORLDS = 16  # of a rollout, in which the policy's motion is measured
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
        rows.put(self._frames, where, frames)
        self._targets[where] = targets
        self._next = (self._next + count) % self.capacity
        self._size = min(self.capacity, self._size + count)

    def sample(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` frames and their targets, with replacement; generator: a CPU generator."""
        chosen = torch.randint(self._size, (count,), generator=generator).to(self._frames.device)
        return rows.take(self._frames, chosen), self._targets[chosen]

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
        # The core's first layer follows the CNN, so that it reads on what it read before.
        self._parameters = [
            *actor.encoder.parameters(),
            *actor.aux_heads.parameters(),
            actor.reading_weight,
        ]
        self.optimizer = torch.optim.Adam(self._parameters, lr=config.learning_rate, fused=True)

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
        """The auxiliary loss of a batch from the memory."""
        frames, targets = self._remembered(self.config.batch_size)
        return self.actor.aux_loss(self.actor.answers(self.actor.encode(frames)), targets)

    def _remembered(self, count: int) -> tuple[Tensor, Tensor]:
        """Frames from the memory, each in a colour cast of its own, and their targets."""
        frames, targets = self.memory.sample(count, self.generator)
        cast = torch.rand(len(frames), 3, 1, 1, generator=self.generator) * 2.0 - 1.0
        shift = cast.to(frames.device) * COLOUR_CAST * 255.0
        return (frames.float() + shift).clamp_(0.0, 255.0).to(torch.uint8), targets

    def update(
        self, buffer: RolloutBuffer, scale: float, visual: Tensor | None = None
    ) -> dict[str, float]:
        """One pass over a finished rollout's frames, with older ones beside them, which they join.

        What the core reads of a fresh frame is held where it was, through the core's first layer:
        then the policy is, too. scale: of the step size. Metrics are means over the minibatches;
        held_kl is how far the policy moved all the same, in nats, over some worlds. visual: (M, V),
        the rollout's frames as the CNN encodes them now, where that is known.
        Raises DivergedError if a gradient is not finite.
        """
        assert buffer.frames is not None
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * scale
        frames, targets = buffer.frames, buffer.frame_targets()
        some = torch.randperm(buffer.num_envs, generator=self.generator)[:KL_WORLDS]
        some = some.to(frames.device)
        before = self._means(buffer, some, encoded=visual is not None)
        with torch.no_grad():
            if visual is None:
                visual = torch.cat([self.actor.encode(part) for part in frames.split(CHUNK)])
            held = self.actor.reading(visual)
        totals: dict[str, list[Tensor]] = {}
        order = torch.randperm(len(frames), generator=self.generator).to(frames.device)
        for chosen in order.tensor_split(self.minibatches(buffer)):
            fresh = rows.take(frames, chosen)
            loss, metrics = self.loss(fresh, targets[chosen], held[chosen])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            clip_gradients(self._parameters, MAX_GRAD_NORM, "the auxiliary losses")
            self.optimizer.step()
            for name, value in metrics.items():
                totals.setdefault(name, []).append(value)
        self.memory.add(frames, targets)
        std = self.actor.std().detach()
        moved = gaussian_kl(before, std, self._means(buffer, some), std).mean()
        means = {name: float(torch.stack(values).mean()) for name, values in totals.items()}
        return means | {"held_kl": float(moved)}

    def loss(
        self, fresh: Tensor, targets: Tensor, held: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of fresh frames (M, 3, H, W), their targets (M, K) and what was read of them (M, R), with
        remembered ones beside them."""
        count = len(fresh)
        older = self.config.replayed * self.config.batch_size if len(self.memory) > 0 else 0
        if older > 0:
            remembered, their_targets = self._remembered(older)
            fresh = torch.cat((fresh, remembered))
        visual = self.actor.encode(fresh)
        answers = self.actor.answers(visual)
        loss, metrics = self.actor.aux_loss(answers[:count], targets)
        if older > 0:
            remembered_loss, _ = self.actor.aux_loss(answers[count:], their_targets)
            loss = loss + self.config.replayed * remembered_loss
        drift = (self.actor.reading(visual[:count]) - held).square().sum(dim=1).mean()
        metrics["reading_drift"] = drift.detach()
        return self.config.weight * loss + self.config.hold * drift, metrics

    def minibatches(self, buffer: RolloutBuffer) -> int:
        """Groups of frames in a pass: as many as configured, where there are so many frames."""
        assert buffer.frames is not None
        return min(self.config.minibatches, len(buffer.frames))

    @torch.no_grad()
    def _means(self, buffer: RolloutBuffer, env_ids: Tensor, encoded: bool = False) -> Tensor:
        """(T, B, A): the policy as it is now, in these worlds of the rollout; encoded: what its
        frames were encoded to while acting still holds."""
        inputs = buffer.batch(env_ids, frames=not encoded).inputs
        return action_means(self.actor, inputs, train_encoder=not encoded)[0]

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
