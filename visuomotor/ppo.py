"""Proximal policy optimization: pure losses, and the update that steps the optimizers.

Knows no environment. One update serves the recurrent pixel actor and the state teacher: they differ
in `action_means` alone. Method: Schulman et al. 2017 (arXiv 1707.06347); the step size follows the
divergence as in rsl_rl (Rudin et al. 2022), the asymmetric critic is Zhu et al. 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, mse_loss, smooth_l1_loss

from visuomotor.config import PPOConfig
from visuomotor.networks import clip_gradients, load_optimizer_state, optimizer_state
from visuomotor.pixel_actor import PixelActor
from visuomotor.rollout import Batch, RolloutBuffer, Sequences
from visuomotor.state_critic import StateCritic
from visuomotor.state_teacher import StateTeacher

Metrics = dict[str, Tensor]

KL_TOLERANCE = 2.0  # the step size moves when the divergence is off its target by this factor
KL_STEP = 1.5  # ... by this factor
KL_STOP = 4.0  # the actor rests until the next update once the divergence exceeds target times this
LINEAR_FROM = 0.1  # of an action's error, where a cloning loss may be linear: a tenth of its speed

UPDATE_METRICS = (
    "approx_kl",
    "clipfrac",
    "explained_variance",
    "policy_loss",
    "value_loss",
    "entropy",
    "mean_penalty",
    "cloning_loss",
    "learning_rate",
    "grad_norm",
)


@dataclass(frozen=True)
class CloningBatch:
    """Sequences of an expert and what it did there."""

    inputs: Sequences
    action: Tensor  # (T, B, A)
    aux_targets: Tensor | None = None  # (T, B, K) metres


# --- the diagonal Gaussian ------------------------------------------------------------------------


def gaussian_log_prob(action: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Log-density of actions (..., A) in nats -> (...); std: (A,) or (..., A)."""
    z = (action - mean) / std
    return (-0.5 * z.square() - std.log() - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


def gaussian_entropy(std: Tensor) -> Tensor:
    """Entropy in nats; std: (..., A) -> (...)."""
    return (std.log() + 0.5 * math.log(2.0 * math.pi * math.e)).sum(dim=-1)


def gaussian_kl(mean_old: Tensor, std_old: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """KL(old || new) in nats, closed form; (..., A) -> (...)."""
    square = (std_old / std).square() + ((mean - mean_old) / std).square()
    return (0.5 * (square - 1.0) + (std / std_old).log()).sum(dim=-1)


# --- losses: tensors in, (loss, metrics) out ------------------------------------------------------


def surrogate_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantage: Tensor, clip_coef: float
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate (Schulman et al. 2017, eq. 7), negated; all (...) of one shape."""
    ratio = (log_prob - old_log_prob).exp()
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    loss = -torch.minimum(ratio * advantage, clipped * advantage).mean()
    clipfrac = ((ratio.detach() - 1.0).abs() > clip_coef).float().mean()
    return loss, {"policy_loss": loss.detach(), "clipfrac": clipfrac}


def value_loss(
    value: Tensor, returns: Tensor, old_value: Tensor | None = None, clip: float | None = None
) -> tuple[Tensor, Metrics]:
    """Half the mean squared error; with `clip`, the larger of it and the error of the value held
    within +-clip of the old one. All (...) of one shape."""
    error = (value - returns).square()
    if clip is not None:
        if old_value is None:
            raise ValueError("value_loss with a clip needs the old values")
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    loss = 0.5 * error.mean()
    return loss, {"value_loss": loss.detach()}


def mean_penalty(mean: Tensor) -> tuple[Tensor, Metrics]:
    """Squared excess of action means (..., A) beyond [-1, 1], summed over actions.

    The environment clips actions, so the return is flat out there and means would drift away.
    """
    loss = (mean.abs() - 1.0).clamp(min=0.0).square().sum(dim=-1).mean()
    return loss, {"mean_penalty": loss.detach()}


def explained_variance(value: Tensor, returns: Tensor) -> Tensor:
    """1 - Var[returns - value] / Var[returns]; 0 where the returns do not vary."""
    variance = returns.var(unbiased=False)
    if float(variance) == 0.0:
        return torch.zeros_like(variance)
    return 1.0 - (returns - value).var(unbiased=False) / variance


def action_means(
    actor: PixelActor | StateTeacher,
    inputs: Sequences,
    train_encoder: bool = True,
    vision_apart: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Means (T, B, A) of sequences, and the features (M, V) of their frames if it is a pixel actor.

    train_encoder: False keeps the gradient out of the CNN, which saves most of the pass, and all of
    it where the sequences hold the frames' features. vision_apart: that of the means alone is kept
    out of it; the features still have theirs.
    Raises ValueError if the sequences lack what the actor reads.
    """
    if isinstance(actor, StateTeacher):
        if inputs.state is None:
            raise ValueError("a state teacher needs sequences with state")
        return actor(inputs.state), None
    if inputs.frame_index is None or inputs.proprio is None:
        raise ValueError("a pixel actor needs sequences with frame_index and proprio")
    if inputs.visual is not None and not train_encoder:
        visual = inputs.visual
    elif inputs.frames is not None:
        with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
            visual = actor.encode(inputs.frames)
    else:
        raise ValueError("a pixel actor needs sequences with frames or their features")
    num_envs = inputs.frame_index.shape[1]
    hidden = actor.initial_hidden(num_envs) if inputs.hidden is None else inputs.hidden
    start = inputs.episode_start
    if start is None:
        start = torch.zeros_like(inputs.frame_index, dtype=torch.bool)
    # embedding, not indexing: its backward pass adds rows up in order, deterministic and fast.
    seen = embedding(inputs.frame_index, visual.detach() if vision_apart else visual)
    mean, _ = actor.unroll(seen, inputs.proprio, hidden, start)
    return mean, visual


def frame_aux_loss(
    actor: PixelActor, visual: Tensor, frame_index: Tensor, targets: Tensor
) -> tuple[Tensor, Metrics]:
    """Auxiliary loss at every step (T, B, K), the heads run once per frame (M, V).

    Raises ValueError if the actor has no heads.
    """
    return actor.aux_loss(embedding(frame_index, actor.answers(visual)), targets)


def negative_log_likelihood(mean: Tensor, action: Tensor, std: Tensor) -> Tensor:
    """() nats, up to a constant: of actions (..., A) under the means; the deviation (A,), which
    belongs to exploration, gets no gradient."""
    return 0.5 * ((mean - action) / std.detach()).square().sum(dim=-1).mean()


def cloning_loss(
    actor: PixelActor | StateTeacher,
    batch: CloningBatch,
    aux_weight: float = 0.0,
    std: Tensor | None = None,
    linear: Tensor | None = None,
    vision_apart: bool = False,
    train_encoder: bool = True,
) -> tuple[Tensor, Metrics]:
    """Mean squared error between the actor's means and the expert's actions, plus the auxiliary
    loss times aux_weight where there are heads and targets. Serves cloning and DAgger alike.

    linear (A,) bool: actions whose error counts linearly beyond LINEAR_FROM. Where the expert does
    either of two things, as fingers do that hold or let go, the squared error is least halfway,
    which is neither; the linear one is least at the likelier of the two.

    With `std` (A,) the loss is the expert's negative log-likelihood up to a constant, which has
    the size of the surrogate's gradient and so can hold its own beside it; the deviation itself
    belongs to exploration and gets no gradient. The metric is the squared error in both cases.
    vision_apart: the CNN learns from the auxiliary loss alone. train_encoder: False leaves it, and
    the auxiliary loss, out. Fused heads, where there are some, learn in any case.
    """
    mean, visual = action_means(actor, batch.inputs, train_encoder, vision_apart)
    error = mse_loss(mean, batch.action)
    loss = error
    if linear is not None:
        squared = (mean - batch.action).square()
        huber = smooth_l1_loss(mean, batch.action, reduction="none", beta=LINEAR_FROM)
        loss = torch.where(linear, huber, squared).mean()
    if std is not None:
        loss = negative_log_likelihood(mean, batch.action, std)
    metrics = {"cloning_loss": error.detach()}
    targets, frame_index = batch.aux_targets, batch.inputs.frame_index
    if (
        isinstance(actor, PixelActor)
        and actor.aux_heads is not None
        and aux_weight > 0.0
        and visual is not None
        and frame_index is not None
        and targets is not None
    ):
        if train_encoder:
            auxiliary, aux_metrics = frame_aux_loss(actor, visual, frame_index, targets)
            loss = loss + aux_weight * auxiliary
            metrics.update(aux_metrics)
        if actor.fused_heads is not None:
            assert batch.inputs.proprio is not None
            seen = embedding(frame_index, visual.detach())
            fused, fused_metrics = actor.fused_loss(seen, batch.inputs.proprio, targets)
            loss = loss + aux_weight * fused
            metrics.update(fused_metrics)
    return loss, metrics


# --- the update -----------------------------------------------------------------------------------


class PPO:
    """Holds the networks and their optimizers; `update` learns from one finished rollout."""

    def __init__(
        self,
        actor: PixelActor | StateTeacher,
        critic: StateCritic,
        config: PPOConfig,
        *,
        generator: torch.Generator,
    ) -> None:
        """generator: CPU, draws the minibatches; nothing else may draw from it.

        `learning_rate_scale` (1 at first) multiplies every step size: the run's annealing sets it.
        """
        self.actor = actor
        self.critic = critic
        self.config = config
        self.generator = generator
        taught = isinstance(actor, PixelActor) and actor.aux_heads is not None
        epochs = config.encoder_epochs
        self.encoder_epochs: int = (0 if taught else 1) if epochs is None else epochs
        self.learning_rate = config.learning_rate
        self.learning_rate_scale = 1.0
        self._actor_parameters = list(actor.parameters())
        self._critic_parameters = list(critic.parameters())
        self.actor_optimizer = torch.optim.Adam(
            self._actor_parameters, lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.critic_optimizer = torch.optim.Adam(
            self._critic_parameters, lr=config.critic_learning_rate, eps=1e-5, fused=True
        )

    def update(
        self,
        buffer: RolloutBuffer,
        cloning_batch_sampler: Callable[[], CloningBatch] | None = None,
        cloning_weight: float = 0.0,
        train_actor: bool = True,
        labels: Tensor | None = None,
    ) -> dict[str, float]:
        """A few epochs over a finished rollout; metrics are means over its minibatches.

        The rollout must come from the actor as it is now: the old deviation is read from it.
        cloning_batch_sampler: drawn once per minibatch where cloning_weight is above 0.
        labels: (T, N, A) actions of an expert in the rollout's own states, cloned likewise.
        train_actor: False trains the critic alone. Metrics that were not measured are 0.
        Raises DivergedError if a gradient is not finite.
        """
        self._set_step_sizes()
        std_old = self.actor.std().detach().clone()
        advantage_mean, advantage_std = buffer.advantages.mean(), buffer.advantages.std()
        collected: list[Metrics] = []
        last_kls: list[float] = []
        actor_rests = not train_actor
        for epoch in range(self.config.epochs):
            # The CNN is trained last: until then its features are those that the policy acted on.
            train_encoder = epoch >= self.config.epochs - self.encoder_epochs
            epoch_kls: list[float] = []
            batches = buffer.minibatches(
                self.config.minibatches, self.generator, frames=train_encoder
            )
            for batch in batches:
                metrics = self._update_critic(batch)
                if not actor_rests:
                    advantage = (batch.advantage - advantage_mean) / (advantage_std + 1e-8)
                    mean, _ = action_means(self.actor, batch.inputs, train_encoder)
                    actor_loss, actor_metrics = self._actor_loss(batch, mean, advantage, std_old)
                    if labels is not None and cloning_weight > 0.0:
                        label = labels[:, batch.env_ids]
                        actor_metrics["cloning_loss"] = mse_loss(mean.detach(), label)
                        near = negative_log_likelihood(mean, label, self.actor.std())
                        actor_loss = actor_loss + cloning_weight * near
                    kl = float(actor_metrics["approx_kl"])
                    epoch_kls.append(kl)
                    actor_rests = self._kl_exceeds(KL_STOP, kl)
                    if not actor_rests:
                        if cloning_batch_sampler is not None and cloning_weight > 0.0:
                            cloning, cloning_metrics = cloning_loss(
                                self.actor, cloning_batch_sampler(), std=self.actor.std()
                            )
                            actor_loss = actor_loss + cloning_weight * cloning
                            actor_metrics.update(cloning_metrics)
                        actor_metrics["grad_norm"] = self._step_actor(actor_loss)
                    metrics.update(actor_metrics)
                collected.append(metrics)
            if epoch_kls:
                last_kls = epoch_kls
        summary = dict.fromkeys(UPDATE_METRICS, 0.0)
        summary.update(_means(collected))
        summary["entropy"] = float(gaussian_entropy(self.actor.std().detach()))
        summary["explained_variance"] = float(explained_variance(buffer.value, buffer.returns))
        summary["learning_rate"] = self.learning_rate * self.learning_rate_scale
        if last_kls:
            # The last epoch's: earlier minibatches were compared with a policy that had not moved.
            summary["approx_kl"] = sum(last_kls) / len(last_kls)
            self._adapt_learning_rate(summary["approx_kl"])
        return summary

    def _actor_loss(
        self, batch: Batch, mean: Tensor, advantage: Tensor, std_old: Tensor
    ) -> tuple[Tensor, Metrics]:
        std = self.actor.std()
        log_prob = gaussian_log_prob(batch.action, mean, std)
        loss, metrics = surrogate_loss(log_prob, batch.log_prob, advantage, self.config.clip_coef)
        penalty, penalty_metrics = mean_penalty(mean)
        loss = loss + self.config.mean_penalty * penalty
        loss = loss - self.config.ent_coef * gaussian_entropy(std)
        metrics.update(penalty_metrics)
        metrics["approx_kl"] = gaussian_kl(batch.mean, std_old, mean.detach(), std.detach()).mean()
        return loss, metrics

    def _step_actor(self, loss: Tensor) -> Tensor:
        self.actor_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip_gradients(self._actor_parameters, self.config.max_grad_norm, "the actor")
        self.actor_optimizer.step()
        self.actor.deviation.project()
        return norm

    def _update_critic(self, batch: Batch) -> Metrics:
        loss, metrics = value_loss(
            self.critic(batch.state), batch.returns, batch.value, self.config.value_clip
        )
        self.critic_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip_gradients(self._critic_parameters, self.config.max_grad_norm, "the critic")
        self.critic_optimizer.step()
        return metrics

    def _kl_exceeds(self, factor: float, kl: float) -> bool:
        return self.config.target_kl > 0.0 and kl > factor * self.config.target_kl

    def _adapt_learning_rate(self, kl: float) -> None:
        """Keep the divergence of an update within a factor of its target, which falls with the
        square of the annealed step size: else what annealing takes would be given back."""
        target = self.config.target_kl * self.learning_rate_scale**2
        if target <= 0.0:
            return
        if kl > KL_TOLERANCE * target:
            self.learning_rate = max(self.learning_rate / KL_STEP, self.config.min_learning_rate)
        elif kl < target / KL_TOLERANCE:
            self.learning_rate = min(self.learning_rate * KL_STEP, self.config.max_learning_rate)

    def _set_step_sizes(self) -> None:
        for optimizer, rate in (
            (self.actor_optimizer, self.learning_rate),
            (self.critic_optimizer, self.config.critic_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * self.learning_rate_scale

    def state_dict(self) -> dict[str, Any]:
        """Everything that `update` depends on: nested dicts of tensors and floats, text keys."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "actor_optimizer": optimizer_state(self.actor_optimizer),
            "critic_optimizer": optimizer_state(self.critic_optimizer),
            "learning_rate": self.learning_rate,
            "learning_rate_scale": self.learning_rate_scale,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises KeyError or RuntimeError if the state belongs to other networks. The actor's step
        size stays within the bounds of the settings, which may be others by now."""
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        load_optimizer_state(self.actor_optimizer, state["actor_optimizer"])
        load_optimizer_state(self.critic_optimizer, state["critic_optimizer"])
        lowest, highest = self.config.min_learning_rate, self.config.max_learning_rate
        self.learning_rate = min(max(float(state["learning_rate"]), lowest), highest)
        self.learning_rate_scale = float(state["learning_rate_scale"])
        self.generator.set_state(state["generator"].cpu())


def _means(collected: list[Metrics]) -> dict[str, float]:
    """Mean of each metric over the minibatches that measured it."""
    values: dict[str, list[Tensor]] = {}
    for metrics in collected:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    return {name: float(torch.stack(each).mean()) for name, each in values.items()}
