"""The discriminator, its loss, its divergence and the reward, against numbers worked by hand."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from torch import Tensor

from visuomotor.gail_reward import (
    Discriminator,
    GailTrainer,
    discriminator_loss,
    gradient_penalty,
    imitation_reward,
    mix_rewards,
)


def logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


def test_a_guessing_discriminator_estimates_no_divergence() -> None:
    loss, metrics = discriminator_loss(torch.zeros(4), torch.zeros(6))
    assert loss.item() == pytest.approx(2.0 * math.log(2.0))
    assert metrics["gail_jsd"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_perfect_discriminator_estimates_log_2() -> None:
    loss, metrics = discriminator_loss(torch.full((4,), 50.0), torch.full((6,), -50.0))
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert metrics["gail_jsd"].item() == pytest.approx(math.log(2.0))
    assert metrics["gail_accuracy_demo"].item() == 1.0
    assert metrics["gail_accuracy_policy"].item() == 1.0


def test_the_optimal_discriminator_of_two_coins_estimates_their_divergence() -> None:
    # Demonstrations show a 1 in 3 of 4 draws, the policy in 1 of 4. D*(1) = 3/4, D*(0) = 1/4.
    # JSD = H(1/2) - (H(3/4) + H(1/4)) / 2 = log 2 - H(1/4) = log 2 - (log 4 - 3/4 log 3).
    high, low = logit(0.75), logit(0.25)
    _, metrics = discriminator_loss(
        torch.tensor([high, high, high, low]), torch.tensor([low, low, low, high])
    )
    assert metrics["gail_jsd"].item() == pytest.approx(0.75 * math.log(3.0) - math.log(2.0))
    assert metrics["gail_accuracy_demo"].item() == 0.75


def test_the_loss_gradient_matches_finite_differences() -> None:
    demo = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    policy = torch.tensor([0.7, 2.0, -0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: discriminator_loss(a, b)[0], (demo, policy))


@pytest.mark.parametrize(
    "form, expected",
    [
        ("gail", math.log(4.0)),  # -log(1 - 3/4)
        ("log_d", math.log(0.75)),
        ("airl", math.log(3.0)),  # log 3/4 - log 1/4
    ],
)
def test_reward_forms_at_three_quarters(form: str, expected: float) -> None:
    assert imitation_reward(torch.tensor([logit(0.75)]), form).item() == pytest.approx(expected)


@pytest.mark.parametrize("form, low, high", [("gail", 0, 10), ("log_d", -10, 0), ("airl", -10, 10)])
def test_rewards_stay_within_the_clip(form: str, low: float, high: float) -> None:
    rewards = imitation_reward(torch.tensor([-1e4, 1e4]), form, clip=10.0)
    assert rewards.tolist() == [low, high]


def test_an_unknown_reward_form_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"wgan.*gail, log_d, airl"):
        imitation_reward(torch.zeros(1), "wgan")


def test_mixed_reward_weighs_both_parts() -> None:
    imitation, task = torch.tensor([4.0]), torch.tensor([1.0])
    assert mix_rewards(imitation, task, 0.25).item() == 1.75
    assert mix_rewards(imitation, task, 0.25, scale=0.5).item() == 1.25
    assert mix_rewards(imitation, task, 0.0).item() == 1.0
    assert mix_rewards(imitation, task, 1.0).item() == 4.0


def test_the_discriminator_takes_features_alone() -> None:
    assert set(inspect.signature(Discriminator.forward).parameters) == {"self", "features"}


def test_gradient_penalty_of_a_linear_discriminator_is_its_squared_weight() -> None:
    discriminator = Discriminator(feature_dim=2, hidden_sizes=())
    weight, _ = discriminator.net.parameters()
    with torch.no_grad():
        weight.copy_(torch.tensor([[3.0, 4.0]]))
    penalty = gradient_penalty(discriminator, torch.randn(5, 2))
    assert penalty.item() == pytest.approx(25.0)
    (gradient,) = torch.autograd.grad(penalty, weight)
    assert gradient.tolist() == [[6.0, 8.0]]


def make_trainer(seed: int = 0, penalty: float = 0.0) -> GailTrainer:
    torch.manual_seed(seed)
    discriminator = Discriminator(feature_dim=2, hidden_sizes=(16,))
    return GailTrainer(
        discriminator, learning_rate=0.01, updates=5, batch_size=64, gradient_penalty=penalty
    )


def samples(mean: float, generator: torch.Generator, count: int) -> Tensor:
    return mean + torch.randn(count, 2, generator=generator)


def test_training_tells_demonstrations_from_policy() -> None:
    trainer = make_trainer(penalty=0.01)
    generator = torch.Generator().manual_seed(0)
    history = [
        trainer.update(
            lambda n: samples(1.0, generator, n), samples(-1.0, generator, 256), generator
        )
        for _ in range(20)
    ]
    assert history[-1]["gail_jsd"] > history[0]["gail_jsd"] + 0.2
    assert history[-1]["gail_accuracy_demo"] > 0.8
    assert history[-1]["gail_gradient_penalty"] > 0.0
    logits = trainer.discriminator(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    assert logits[0].item() > 0.0 > logits[1].item()


def test_equal_samples_end_near_zero_divergence() -> None:
    trainer = make_trainer()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        metrics = trainer.update(
            lambda n: samples(0.0, generator, n), samples(0.0, generator, 1024), generator
        )
    assert abs(metrics["gail_jsd"]) < 0.02


def test_a_restored_trainer_goes_on_identically() -> None:
    first, second = make_trainer(0), make_trainer(1)

    def update(trainer: GailTrainer, seed: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(seed)
        demo = samples(1.0, generator, 64)
        return trainer.update(lambda n: demo[:n], samples(-1.0, generator, 64), generator)

    update(first, 0)
    second.load_state_dict(first.state_dict())
    assert update(first, 1) == update(second, 1)
    for a, b in zip(
        first.discriminator.parameters(), second.discriminator.parameters(), strict=True
    ):
        assert torch.equal(a, b)
