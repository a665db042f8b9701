"""The imitation reward: a discriminator between demonstrations and policy, its loss, its reward.

Imports only torch. Sees object-centric features alone; joints and actions never enter, because with
them the discriminator wins too easily and learning stalls (Zhu et al. 2018). Method: Ho & Ermon
2016 (arXiv 1606.03476).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from visuomotor.networks import Normalizer, load_optimizer_state, mlp, optimizer_state

REWARD_FORMS = ("gail", "log_d", "airl")


class Discriminator(nn.Module):
    """Features to the log-odds that they come from a demonstration: D = sigmoid(logit)."""

    def __init__(self, *, feature_dim: int, hidden_sizes: Sequence[int] = (100, 64)) -> None:
        super().__init__()
        self.normalizer = Normalizer(feature_dim)
        self.net = mlp((feature_dim, *hidden_sizes, 1), nn.Tanh)

    def set_normalization(self, mean: Tensor, std: Tensor) -> None:
        """Statistics of the features; mean, std: (feature_dim,)."""
        self.normalizer.set(mean, std)

    def forward(self, features: Tensor) -> Tensor:
        """features: (..., F) -> logits (...)."""
        return self.from_normalized(self.normalizer(features))

    def from_normalized(self, features: Tensor) -> Tensor:
        """The same for features that are normalized already; where the penalty is taken."""
        logits: Tensor = self.net(features).squeeze(-1)
        return logits


def discriminator_loss(
    logits_demo: Tensor, logits_policy: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """-E_demo[log D] - E_policy[log(1 - D)], each logits: (B,).

    The negative loss is a lower bound of 2 JSD(demo, policy) - log 4, tight at the optimal
    discriminator (Goodfellow et al. 2014, theorem 1). Metrics: gail_jsd, that estimate of the
    Jensen-Shannon divergence in nats, 0 to log 2 (slightly negative while the discriminator is
    worse than guessing); gail_accuracy_demo and gail_accuracy_policy, shares classified rightly.
    """
    loss = softplus(-logits_demo).mean() + softplus(logits_policy).mean()
    metrics = {
        "gail_loss": loss.detach(),
        "gail_jsd": (math.log(4.0) - loss.detach()) / 2.0,
        "gail_accuracy_demo": (logits_demo > 0.0).float().mean(),
        "gail_accuracy_policy": (logits_policy < 0.0).float().mean(),
    }
    return loss, metrics


def gradient_penalty(discriminator: Discriminator, features: Tensor) -> Tensor:
    """Mean squared length of d logit / d normalized feature; features: (B, F).

    Zero-centred (Mescheder et al. 2018, arXiv 1801.04406): keeps the reward smooth in space.
    """
    inputs = discriminator.normalizer(features).detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(
        discriminator.from_normalized(inputs).sum(), inputs, create_graph=True
    )
    penalty: Tensor = gradient.square().sum(dim=-1).mean()
    return penalty


def imitation_reward(logits: Tensor, form: str = "gail", clip: float = 10.0) -> Tensor:
    """Reward of each state from its logits (...); never beyond +-clip.

    gail: -log(1 - D), positive (the paper's). log_d: log D, negative: it pushes to end episodes.
    airl: log D - log(1 - D), unbiased in sign (Fu et al. 2018). Raises ValueError otherwise.
    """
    if form == "gail":
        return softplus(logits).clamp(max=clip)
    if form == "log_d":
        return (-softplus(-logits)).clamp(min=-clip)
    if form == "airl":
        return logits.clamp(-clip, clip)
    raise ValueError(f"imitation reward {form!r}: expected one of {', '.join(REWARD_FORMS)}")


def mix_rewards(imitation: Tensor, task: Tensor, weight: float, scale: float = 1.0) -> Tensor:
    """weight * scale * imitation + (1 - weight) * task; weight is lambda of Zhu et al. 2018.

    scale brings the imitation reward to the size of the task's; 1 is the paper's formula.
    """
    return weight * scale * imitation + (1.0 - weight) * task


class GailTrainer:
    """Holds the discriminator's optimizer and runs its updates."""

    def __init__(
        self,
        discriminator: Discriminator,
        *,
        learning_rate: float = 3e-4,
        updates: int = 8,
        batch_size: int = 1024,
        gradient_penalty: float = 0.0,
    ) -> None:
        """updates: steps per call of `update`. batch_size: samples of each class per step.
        gradient_penalty: weight of the penalty; 0 leaves it out."""
        self.discriminator = discriminator
        self.updates = updates
        self.batch_size = batch_size
        self.penalty_weight = gradient_penalty
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=learning_rate, fused=True)

    def update(
        self,
        sample_demo: Callable[[int], Tensor],
        policy_features: Tensor,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """`updates` steps; metrics are means over them, each taken before its step.

        sample_demo: n -> (n, F) features of demonstrations. policy_features: (M, F) of the fresh
        rollout. generator: a CPU generator that draws the policy's samples.
        """
        totals: dict[str, Tensor] = {}
        for _ in range(self.updates):
            demo = sample_demo(self.batch_size).to(policy_features)
            chosen = torch.randint(policy_features.shape[0], (len(demo),), generator=generator)
            policy = policy_features[chosen.to(policy_features.device)]
            loss, metrics = discriminator_loss(self.discriminator(demo), self.discriminator(policy))
            if self.penalty_weight > 0.0:
                penalty = gradient_penalty(self.discriminator, torch.cat([demo, policy]))
                metrics["gail_gradient_penalty"] = penalty.detach()
                loss = loss + self.penalty_weight * penalty
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            for name, value in metrics.items():
                totals[name] = totals.get(name, torch.zeros(())) + value.cpu()
        return {name: float(total) / self.updates for name, total in totals.items()}

    def state_dict(self) -> dict[str, Any]:
        """Weights, normalization and optimizer: nested dicts of tensors with text keys."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        load_optimizer_state(self.optimizer, state["optimizer"])
