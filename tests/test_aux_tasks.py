"""Auxiliary heads: units of the prediction, the loss by hand, a gradient that reaches the CNN."""

from __future__ import annotations

import pytest
import torch

from visuomotor.aux_tasks import AuxHeads, aux_loss


def test_position_error_is_the_mean_length_of_the_error_vectors() -> None:
    target = torch.zeros(1, 6)
    prediction = torch.tensor([[0.03, 0.04, 0.0, 0.0, 0.0, 0.01]])  # 5 cm and 1 cm off
    _, metrics = aux_loss(prediction, target)
    assert metrics["aux_position_error"].item() == pytest.approx(0.03)


def test_loss_counts_errors_in_units_of_the_scale() -> None:
    loss, _ = aux_loss(torch.tensor([[0.2, 0.0, 0.1]]), torch.zeros(1, 3), torch.tensor(0.2))
    assert loss.item() == pytest.approx((1.0 + 0.0 + 0.25) / 3.0)


def test_what_is_far_off_pulls_no_more_than_what_is_one_deviation_off() -> None:
    prediction = torch.tensor([[0.1, 0.2, 20.0]], requires_grad=True)
    loss, _ = aux_loss(prediction, torch.zeros(1, 3), torch.tensor(0.2))
    loss.backward()
    assert prediction.grad is not None
    pulls = prediction.grad[0].tolist()
    assert pulls[0] == pytest.approx(0.5 * pulls[1])
    assert pulls[2] == pytest.approx(pulls[1])


def test_untrained_predictions_lie_near_the_mean_in_metres() -> None:
    torch.manual_seed(0)
    heads = AuxHeads(visual_dim=8, target_dim=3, hidden_sizes=(16,))
    mean = torch.tensor([10.0, -20.0, 30.0])
    heads.set_normalization(mean, torch.full((3,), 0.01))
    prediction = heads(torch.randn(7, 8))
    assert prediction.shape == (7, 3)
    assert float((prediction - mean).detach().abs().max()) < 0.05
    assert heads.scale.tolist() == pytest.approx([0.01] * 3)


def test_the_loss_teaches_the_visual_features() -> None:
    torch.manual_seed(0)
    heads = AuxHeads(visual_dim=8, target_dim=3)
    visual = torch.randn(4, 8, requires_grad=True)
    loss, _ = aux_loss(heads(visual), torch.randn(4, 3), heads.scale)
    (gradient,) = torch.autograd.grad(loss, visual)
    assert float(gradient.abs().amax(dim=-1).min()) > 0.0


def test_targets_that_are_not_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        AuxHeads(visual_dim=8, target_dim=7)
