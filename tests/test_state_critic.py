"""The critic: shape, clipping, independence of worlds."""

from __future__ import annotations

import torch

from visuomotor.state_critic import StateCritic


def make_critic() -> StateCritic:
    torch.manual_seed(0)
    return StateCritic(state_dim=4, hidden_sizes=(16, 16))


def test_value_has_one_number_per_state_whatever_the_leading_shape() -> None:
    critic = make_critic()
    state = torch.randn(5, 3, 4)
    values = critic(state)
    assert values.shape == (5, 3)
    torch.testing.assert_close(critic(state[2, 1]), values[2, 1])


def test_value_does_not_move_beyond_the_clip() -> None:
    critic = make_critic()
    critic.set_normalization(torch.full((4,), 1.0), torch.full((4,), 2.0))
    far, farther = torch.full((1, 4), 1.0 + 2.0 * 5.0), torch.full((1, 4), 1e6)
    assert torch.equal(critic(far), critic(farther))
    assert not torch.equal(critic(far), critic(torch.full((1, 4), 1.0 + 2.0 * 4.9)))
