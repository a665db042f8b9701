"""PPO: closed forms, hand-worked losses, learning, exact resume, what each switch turns off."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.bandit import (
    CONFIG,
    A,
    P,
    S,
    collect,
    copies,
    make_pixel_ppo,
    make_teacher_ppo,
    unchanged,
)
from visuomotor.config import PPOConfig
from visuomotor.errors import DivergedError
from visuomotor.ppo import (
    PPO,
    UPDATE_METRICS,
    CloningBatch,
    action_means,
    cloning_loss,
    explained_variance,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    mean_penalty,
    surrogate_loss,
    value_loss,
)
from visuomotor.rollout import RolloutBuffer, Sequences
from visuomotor.state_teacher import StateTeacher


def gaussians() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(5, A, generator=generator, dtype=torch.float64) for _ in range(5)]
    return draws[0], draws[1], draws[2].exp(), draws[3], draws[4].exp()


def test_gaussian_closed_forms_agree_with_torch() -> None:
    action, mean, std, mean_new, std_new = gaussians()
    old = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
    new = torch.distributions.Independent(torch.distributions.Normal(mean_new, std_new), 1)
    torch.testing.assert_close(gaussian_log_prob(action, mean, std), old.log_prob(action))
    torch.testing.assert_close(gaussian_entropy(std), old.entropy())
    torch.testing.assert_close(
        gaussian_kl(mean, std, mean_new, std_new), torch.distributions.kl_divergence(old, new)
    )


def test_kl_of_a_policy_with_itself_is_zero() -> None:
    _, mean, std, _, _ = gaussians()
    assert gaussian_kl(mean, std, mean, std).abs().max().item() == 0.0


def test_surrogate_by_hand_clips_gains_but_not_losses() -> None:
    # Ratios 2, 2, 1/2, 1/2 with advantages 1, -1, 1, -1 and a clip of 0.2:
    # min(2, 1.2) = 1.2, min(-2, -1.2) = -2, min(.5, .8) = .5, min(-.5, -.8) = -.8.
    ratio = torch.tensor([2.0, 2.0, 0.5, 0.5])
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss, metrics = surrogate_loss(ratio.log(), torch.zeros(4), advantage, clip_coef=0.2)
    assert loss.item() == pytest.approx(-(1.2 - 2.0 + 0.5 - 0.8) / 4.0)
    assert metrics["clipfrac"].item() == 1.0


def test_surrogate_gradient_matches_finite_differences() -> None:
    # Away from the kinks at ratios 0.8, 1 and 1.2.
    log_prob = torch.tensor([0.05, -0.1, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, -2.0, 0.5, -0.5], dtype=torch.float64)
    old = torch.zeros(4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: surrogate_loss(x, old, advantage, clip_coef=0.2)[0], (log_prob,)
    )


def test_value_loss_by_hand_with_and_without_clip() -> None:
    value, returns, old = torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([1.0])
    assert value_loss(value, returns)[0].item() == 0.5
    # Held within 1 +- 0.5 the value would be 1.5: the larger error is (4 - 1.5) squared.
    assert value_loss(value, returns, old, clip=0.5)[0].item() == pytest.approx(0.5 * 6.25)
    with pytest.raises(ValueError, match="old values"):
        value_loss(value, returns, clip=0.5)


def test_mean_penalty_counts_only_the_excess() -> None:
    assert mean_penalty(torch.tensor([[1.0, -0.3]]))[0].item() == 0.0
    assert mean_penalty(torch.tensor([[1.5, -3.0]]))[0].item() == pytest.approx(0.25 + 4.0)


def test_explained_variance_of_perfect_constant_and_opposite_values() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(torch.full((3,), 7.0), returns).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns).item() == pytest.approx(-3.0)
    assert explained_variance(returns, torch.ones(3)).item() == 0.0


# --- updates on small rollouts --------------------------------------------------------------------


def mean_error(ppo: PPO, buffer: RolloutBuffer) -> float:
    """Mean squared distance of the policy's means from the bandit's targets."""
    batch = next(iter(buffer.minibatches(1, torch.Generator())))
    with torch.no_grad():
        means, _ = action_means(ppo.actor, batch.inputs)
    return float((means - batch.state[..., :1]).square().mean())


def test_unrolling_a_rollout_gives_back_the_means_that_acted() -> None:
    ppo = make_pixel_ppo()
    buffer = collect(ppo, seed=0)
    for batch in buffer.minibatches(2, torch.Generator()):
        means, _ = action_means(ppo.actor, batch.inputs)
        torch.testing.assert_close(means, batch.mean, rtol=1e-5, atol=1e-6)


def test_updates_solve_a_contextual_bandit() -> None:
    ppo = make_teacher_ppo()
    probe = collect(ppo, seed=999, num_envs=64)
    before = mean_error(ppo, probe)
    for seed in range(60):
        metrics = ppo.update(collect(ppo, seed, num_envs=64))
    assert mean_error(ppo, probe) < 0.25 * before
    assert set(metrics) == set(UPDATE_METRICS)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["explained_variance"] > -1.0


def test_a_pixel_update_moves_every_parameter_and_reports_every_metric() -> None:
    ppo = make_pixel_ppo()
    before = [(module, copies(module)) for module in (ppo.actor, ppo.critic)]
    metrics = ppo.update(collect(ppo, seed=0))
    for module, old in before:
        for (name, parameter), was in zip(module.named_parameters(), old, strict=True):
            assert not torch.equal(parameter, was), name
    assert set(metrics) == set(UPDATE_METRICS)
    assert metrics["grad_norm"] > 0.0
    assert metrics["approx_kl"] > 0.0
    assert metrics["cloning_loss"] == 0.0


def test_the_encoder_learns_in_the_last_epochs_alone() -> None:
    """Until then its features stand still, and the gradient is the same with and without them."""
    never, last = (
        make_pixel_ppo(config=replace(CONFIG, encoder_epochs=count, target_kl=0.0))
        for count in (0, 1)
    )
    before = copies(never.actor.encoder)
    buffer = collect(never, seed=0)
    never.update(buffer)
    last.update(buffer)
    assert unchanged(never.actor.encoder, before)
    assert not unchanged(last.actor.encoder, before)


def test_by_default_the_encoder_learns_from_advantages_only_without_heads() -> None:
    assert PPOConfig().encoder_epochs is None
    for target_dim, epochs in ((0, 1), (3, 0)):
        ppo = make_pixel_ppo(target_dim=target_dim, config=replace(CONFIG, encoder_epochs=None))
        assert ppo.encoder_epochs == epochs
        encoder = copies(ppo.actor.encoder)
        ppo.update(collect(ppo, seed=0))
        assert unchanged(ppo.actor.encoder, encoder) == (epochs == 0)


def test_features_kept_while_acting_give_the_update_of_frames_encoded_again() -> None:
    config = replace(CONFIG, encoder_epochs=0, target_kl=0.0)
    once, again = make_pixel_ppo(config=config), make_pixel_ppo(config=config)
    buffer = collect(once, seed=0)
    assert buffer.visual is not None
    once.update(buffer)
    buffer._visual = None
    again.update(buffer)
    for mine, other in zip(once.actor.parameters(), again.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def without_advantages(ppo: PPO) -> RolloutBuffer:
    """A rollout from which the surrogate learns nothing, so that the other terms show."""
    buffer = collect(ppo, seed=0)
    buffer.advantages.zero_()
    return buffer


def test_the_entropy_bonus_widens_the_policy() -> None:
    ppo = make_teacher_ppo(config=replace(CONFIG, ent_coef=0.1))
    before = ppo.actor.std().tolist()
    ppo.update(without_advantages(ppo))
    assert all(after > was for after, was in zip(ppo.actor.std().tolist(), before, strict=True))


def test_the_deviation_is_put_back_on_its_floor_after_every_step() -> None:
    ppo = make_teacher_ppo(config=replace(CONFIG, ent_coef=-1.0))
    floor = ppo.actor.deviation.min_std.log()
    with torch.no_grad():
        ppo.actor.deviation.log_std.copy_(floor + 1e-6)
    ppo.update(without_advantages(ppo))
    assert bool((ppo.actor.deviation.log_std >= floor).all())


def test_the_mean_penalty_draws_means_back_into_the_action_range() -> None:
    ppo = make_teacher_ppo(config=replace(CONFIG, mean_penalty=1.0))
    assert isinstance(ppo.actor, StateTeacher)
    with torch.no_grad():
        ppo.actor.net[-1].get_parameter("bias").fill_(2.0)
    state = torch.zeros(1, S)
    before = ppo.actor(state).max().item()
    metrics = ppo.update(without_advantages(ppo))
    assert ppo.actor(state).max().item() < before
    assert metrics["mean_penalty"] > 0.0


def test_a_feed_forward_pixel_actor_learns_through_the_same_update() -> None:
    ppo = make_pixel_ppo(recurrent=False)
    before = copies(ppo.actor)
    ppo.update(collect(ppo, seed=0))
    assert not unchanged(ppo.actor, before)


def test_critic_warm_up_leaves_the_actor_and_its_step_size_alone() -> None:
    ppo = make_pixel_ppo()
    actor, critic = copies(ppo.actor), copies(ppo.critic)
    metrics = ppo.update(collect(ppo, seed=0), train_actor=False)
    assert unchanged(ppo.actor, actor)
    assert not unchanged(ppo.critic, critic)
    assert metrics["approx_kl"] == 0.0
    assert ppo.learning_rate == CONFIG.learning_rate


def test_a_learning_rate_scale_of_zero_freezes_everything() -> None:
    ppo = make_teacher_ppo()
    actor, critic = copies(ppo.actor), copies(ppo.critic)
    ppo.learning_rate_scale = 0.0
    metrics = ppo.update(collect(ppo, seed=0))
    assert unchanged(ppo.actor, actor)
    assert unchanged(ppo.critic, critic)
    assert metrics["learning_rate"] == 0.0


@pytest.mark.parametrize(
    "target_kl, expected", [(1e9, 0.2 * 1.5), (1e-9, 0.2 / 1.5), (0.0, 0.2)], ids=str
)
def test_step_size_follows_the_divergence(target_kl: float, expected: float) -> None:
    config = replace(CONFIG, learning_rate=0.2, max_learning_rate=1.0, target_kl=target_kl)
    ppo = make_teacher_ppo(config=config)
    ppo.update(collect(ppo, seed=0))
    assert ppo.learning_rate == pytest.approx(expected)


def test_what_annealing_takes_is_not_given_back() -> None:
    """Half of a step moves the policy by a quarter of the divergence: that is what is wanted."""
    ppo = make_teacher_ppo(config=replace(CONFIG, learning_rate=1e-3, target_kl=0.01))
    for scale, kl, expected in (
        (0.5, 0.0025, 1e-3),
        (0.1, 0.0001, 1e-3),
        (0.1, 0.01, 1e-3 / 1.5),  # as far as in full steps: too far
        (0.1, 0.00001, 1e-3),  # back up
        (0.0, 0.0, 1e-3),
    ):
        ppo.learning_rate_scale = scale
        ppo._adapt_learning_rate(kl)
        assert ppo.learning_rate == pytest.approx(expected), (scale, kl)


def test_step_size_stays_within_its_bounds() -> None:
    bounded = replace(CONFIG, min_learning_rate=3e-3, max_learning_rate=3e-3)
    for target_kl in (1e9, 1e-9):
        ppo = make_teacher_ppo(config=replace(bounded, target_kl=target_kl))
        ppo.update(collect(ppo, seed=0))
        assert ppo.learning_rate == 3e-3


def test_the_actor_rests_once_the_divergence_is_far_beyond_its_target() -> None:
    bold = replace(CONFIG, learning_rate=0.01, max_learning_rate=1.0, epochs=20)
    free = make_teacher_ppo(config=replace(bold, target_kl=0.0))
    held = make_teacher_ppo(config=replace(bold, target_kl=0.005))
    buffer = collect(free, seed=0)
    held_kl, free_kl = held.update(buffer)["approx_kl"], free.update(buffer)["approx_kl"]
    assert 4.0 * 0.005 < held_kl < 0.2 * free_kl


def cloning_batch(ppo: PPO, seed: int) -> CloningBatch:
    """The bandit's targets, as an expert's actions in sequences that start with empty memory."""
    batch = next(iter(collect(ppo, seed, num_envs=16).minibatches(1, torch.Generator())))
    inputs = replace(batch.inputs, hidden=None)
    return CloningBatch(inputs, batch.state[..., :1].expand(-1, -1, A), batch.aux_targets)


@pytest.mark.parametrize("make", [make_teacher_ppo, make_pixel_ppo])
def test_cloning_alone_brings_the_means_to_the_expert(make: Callable[..., PPO]) -> None:
    ppo = make()
    optimizer = torch.optim.Adam(ppo.actor.parameters(), lr=0.01)
    losses = []
    for seed in range(60):
        loss, metrics = cloning_loss(ppo.actor, cloning_batch(ppo, seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(metrics["cloning_loss"].item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert ppo.actor.deviation.log_std.grad is None


def test_cloning_loss_is_the_mean_squared_error_of_the_means() -> None:
    ppo = make_teacher_ppo()
    assert isinstance(ppo.actor, StateTeacher)
    for parameter in ppo.actor.net[-1].parameters():
        nn.init.zeros_(parameter)
    action = torch.tensor([[[3.0, 1.0]]])
    batch = CloningBatch(Sequences(state=torch.randn(1, 1, S)), action)
    assert cloning_loss(ppo.actor, batch)[0].item() == pytest.approx((9.0 + 1.0) / 2.0)


def test_a_linear_cloning_error_is_least_at_the_likelier_of_two_labels_not_between_them() -> None:
    ppo = make_teacher_ppo()
    labels = torch.tensor([[[1.0, 1.0]], [[1.0, 1.0]], [[-1.0, -1.0]]])
    batch = CloningBatch(Sequences(state=torch.zeros(3, 1, S)), labels)
    linear = torch.tensor([False, True])
    optimizer = torch.optim.Adam(ppo.actor.parameters(), lr=0.01)
    for _ in range(400):
        loss, metrics = cloning_loss(ppo.actor, batch, linear=linear)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    squared, absolute = ppo.actor(torch.zeros(S)).tolist()
    assert squared == pytest.approx(1 / 3, abs=0.05)
    # Least where 2 (1 - x) / 0.1 = 1: half a tenth below the likelier label.
    assert absolute == pytest.approx(0.95, abs=0.05)
    assert metrics["cloning_loss"].item() == pytest.approx(
        torch.nn.functional.mse_loss(ppo.actor(torch.zeros(3, 1, S)), labels).item(), abs=0.02
    )


def test_cloning_loss_adds_the_auxiliary_loss_by_its_weight() -> None:
    ppo = make_pixel_ppo(target_dim=3)
    batch = cloning_batch(ppo, 0)
    alone, _ = cloning_loss(ppo.actor, batch)
    both, metrics = cloning_loss(ppo.actor, batch, aux_weight=2.0)
    expected = alone.item() + 2.0 * metrics["aux_loss"].item()
    assert both.item() == pytest.approx(expected, rel=1e-5)


def test_the_cloning_term_pulls_the_update_and_weight_zero_turns_it_off() -> None:
    plain, off, pulled = (make_teacher_ppo() for _ in range(3))
    buffer = collect(plain, seed=0)
    sampled: list[int] = []

    def sampler() -> CloningBatch:
        sampled.append(1)
        return cloning_batch(pulled, len(sampled))

    plain.update(buffer)
    off.update(buffer, sampler, cloning_weight=0.0)
    assert not sampled
    assert unchanged(off.actor, copies(plain.actor))
    metrics = pulled.update(buffer, sampler, cloning_weight=1.0)
    assert len(sampled) >= 1
    assert metrics["cloning_loss"] > 0.0
    assert not unchanged(pulled.actor, copies(plain.actor))


def test_labels_pull_the_means_towards_the_expert_in_the_rollouts_own_states() -> None:
    pulled, off = make_teacher_ppo(), make_teacher_ppo()
    buffer = without_advantages(pulled)
    labels = torch.full_like(buffer.action, 0.5)

    def distance(ppo: PPO) -> float:
        batch = next(iter(buffer.minibatches(1, torch.Generator())))
        with torch.no_grad():
            means, _ = action_means(ppo.actor, batch.inputs)
        return float((means - 0.5).square().mean())

    before = distance(pulled)
    metrics = pulled.update(buffer, cloning_weight=1.0, labels=labels)
    assert distance(pulled) < before
    assert metrics["cloning_loss"] == pytest.approx(before, rel=0.2)
    assert off.update(buffer, cloning_weight=0.0, labels=labels)["cloning_loss"] == 0.0


def test_actors_refuse_sequences_that_lack_their_inputs() -> None:
    with pytest.raises(ValueError, match="state teacher"):
        action_means(make_teacher_ppo().actor, Sequences(proprio=torch.zeros(1, 1, P)))
    with pytest.raises(ValueError, match="pixel actor"):
        action_means(make_pixel_ppo().actor, Sequences(state=torch.zeros(1, 1, S)))


def test_a_gradient_that_is_not_finite_stops_the_update() -> None:
    ppo = make_teacher_ppo()
    buffer = collect(ppo, seed=0)
    buffer.returns[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="critic is non-finite"):
        ppo.update(buffer)


@pytest.mark.parametrize("make", [make_teacher_ppo, make_pixel_ppo])
def test_save_load_go_on_equals_never_stopped(make: Callable[..., PPO]) -> None:
    stopped, restored = make(seed=0), make(seed=1)
    stopped.learning_rate_scale = 0.7
    stopped.update(collect(stopped, seed=0))
    state = stopped.state_dict()
    frozen = {
        name: {key: value.clone() for key, value in part.items()}
        for name, part in state.items()
        if name in ("actor", "critic")
    }
    restored.load_state_dict({**state, **frozen})
    first = stopped.update(collect(stopped, seed=1))
    second = restored.update(collect(restored, seed=1))
    assert first == second
    assert unchanged(restored.actor, copies(stopped.actor))
    assert unchanged(restored.critic, copies(stopped.critic))
    assert torch.equal(stopped.generator.get_state(), restored.generator.get_state())
