"""The teacher: small first actions, a floor under its deviation, statistics in its weights."""

from __future__ import annotations

import pytest
import torch

from visuomotor.state_teacher import StateTeacher


def make_teacher(seed: int = 0) -> StateTeacher:
    torch.manual_seed(seed)
    return StateTeacher(
        state_dim=4,
        action_dim=2,
        hidden_sizes=(16, 16),
        init_log_std=torch.tensor([0.0, -5.0]),
        min_std=torch.tensor([0.15, 0.45]),
    )


def test_the_first_actions_are_near_zero() -> None:
    mean = make_teacher()(torch.randn(5, 3, 4))
    assert mean.shape == (5, 3, 2)
    assert float(mean.detach().abs().max()) < 0.05


def test_std_starts_as_told_and_obeys_its_floor() -> None:
    assert make_teacher().std().tolist() == pytest.approx([1.0, 0.45], rel=1e-5)


def test_saved_weights_carry_the_normalization() -> None:
    teacher, other = make_teacher(0), make_teacher(1)
    teacher.set_normalization(torch.full((4,), 0.5), torch.full((4,), 0.1))
    other.load_state_dict(teacher.state_dict())
    state = torch.randn(3, 4)
    assert torch.equal(teacher(state), other(state))


def test_a_deviation_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="init_log_std"):
        StateTeacher(state_dim=4, action_dim=2, init_log_std=torch.ones(3), min_std=torch.ones(3))
