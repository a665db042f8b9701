"""Where a policy's own joints say that its hand is."""

from __future__ import annotations

import torch

from visuomotor.config import Config
from visuomotor.envs import make_env
from visuomotor.policies import _hand


def test_it_is_the_pinch_site_of_the_simulated_arm() -> None:
    env = make_env(Config(task="lifting"), num_envs=16, seed=0, render=False)
    env.reset()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        env.step(torch.rand(16, 9, generator=generator) * 2.0 - 1.0)
    proprio = env.jaco.proprio(env.sim.data("qpos"), env.sim.data("qvel"))
    found = _hand()(proprio)
    pinch = env.task.pinch_pos()
    assert float((pinch[0] - pinch).norm(dim=1).max()) > 0.05  # the hands are apart
    torch.testing.assert_close(found, pinch.float(), atol=2e-4, rtol=0.0)


def test_any_number_of_dimensions_goes_before() -> None:
    proprio = torch.randn(3, 5, 24)
    hand = _hand()
    assert torch.equal(hand(proprio)[1], hand(proprio[1]))
