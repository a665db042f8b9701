"""Advantages by hand, frames stored once, minibatches of whole worlds, reward scaling."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from visuomotor.rollout import ReturnNormalizer, RolloutBuffer, compute_gae


def column(*values: float) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def flags(*values: bool) -> Tensor:
    return torch.tensor(values).unsqueeze(1)


def gae(
    next_values: Tensor, terminated: Tensor, done: Tensor, gae_lambda: float = 0.5
) -> tuple[list[float], list[float]]:
    """Rewards 1, 2, 4; values 1, 1, 1; gamma 1/2."""
    advantages, returns = compute_gae(
        column(1.0, 2.0, 4.0),
        column(1.0, 1.0, 1.0),
        next_values,
        terminated,
        done,
        gamma=0.5,
        gae_lambda=gae_lambda,
    )
    return advantages.flatten().tolist(), returns.flatten().tolist()


NEVER = flags(False, False, False)


def test_gae_matches_a_sum_worked_by_hand() -> None:
    # deltas: 1 + 1/2 - 1 = 1/2, 2 + 1/2 - 1 = 3/2, 4 + 1/2 * 8 - 1 = 7; factor 1/4 per step.
    advantages, returns = gae(column(1.0, 1.0, 8.0), NEVER, NEVER)
    assert advantages == [0.5 + (1.5 + 7.0 / 4.0) / 4.0, 1.5 + 7.0 / 4.0, 7.0]
    assert returns == [advantage + 1.0 for advantage in advantages]


def test_gae_terminated_takes_no_bootstrap_and_cuts_the_sum() -> None:
    # The second step ends the task: its delta is 2 - 1 = 1, and the third is another episode.
    middle = flags(False, True, False)
    advantages, _ = gae(column(1.0, 100.0, 8.0), middle, middle)
    assert advantages == [0.5 + 1.0 / 4.0, 1.0, 7.0]


def test_gae_truncated_bootstraps_from_the_final_state_and_cuts_the_sum() -> None:
    # The second step runs out of time in a state worth 6: its delta is 2 + 3 - 1 = 4.
    advantages, _ = gae(column(1.0, 6.0, 8.0), NEVER, flags(False, True, False))
    assert advantages == [0.5 + 4.0 / 4.0, 4.0, 7.0]


def test_gae_with_lambda_0_is_the_one_step_error_and_with_1_the_whole_return() -> None:
    one_step, _ = gae(column(1.0, 1.0, 8.0), NEVER, NEVER, gae_lambda=0.0)
    assert one_step == [0.5, 1.5, 7.0]
    _, returns = gae(column(1.0, 1.0, 8.0), NEVER, NEVER, gae_lambda=1.0)
    assert returns == [1.0 + 2.0 / 2 + 4.0 / 4 + 8.0 / 8, 2.0 + 4.0 / 2 + 8.0 / 4, 4.0 + 8.0 / 2]


T, N, FRAME = 5, 4, (3, 2, 2)


def fill(
    buffer: RolloutBuffer, seed: int = 0, frame_share: float = 0.3, with_frames: bool = True
) -> Tensor:
    """One rollout of noise; returns the pixels that were shown, (T, N, 3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    buffer.start((torch.arange(4.0).unsqueeze(1), -torch.arange(4.0).unsqueeze(1)))
    pixels = torch.randint(0, 256, (N, *FRAME), dtype=torch.uint8, generator=generator)
    shown = []
    for t in range(T):
        new_frame = torch.rand(N, generator=generator) < frame_share
        fresh = torch.randint(0, 256, (N, *FRAME), dtype=torch.uint8, generator=generator)
        pixels[new_frame] = fresh[new_frame]  # in place, as an environment may do it
        shown.append(pixels.clone())
        ends = torch.tensor([t == 1, False, t == 3, False])
        buffer.add_decision(
            pixels=pixels if with_frames else None,
            new_frame=new_frame if with_frames else None,
            proprio=torch.full((N, 2), float(t)),
            state=torch.arange(4.0).unsqueeze(1) + 10.0 * t,
            aux_targets=torch.zeros(N, 3),
            episode_start=torch.tensor([t == 2, False, t == 4, False]),
            action=torch.zeros(N, 1),
            mean=torch.zeros(N, 1),
            log_prob=torch.zeros(N),
            value=torch.zeros(N),
        )
        buffer.add_outcome(
            task_reward=torch.full((N,), float(t)),
            features=torch.zeros(N, 6),
            next_value=torch.zeros(N),
            terminated=torch.zeros(N, dtype=torch.bool),
            truncated=ends,
        )
    return torch.stack(shown)


def make_buffer(frame_shape: tuple[int, int, int] | None = FRAME) -> RolloutBuffer:
    return RolloutBuffer(
        T,
        N,
        action_dim=1,
        proprio_dim=2,
        state_dim=1,
        feature_dim=6,
        aux_dim=3,
        frame_shape=frame_shape,
    )


def test_frames_give_back_every_pixel_and_none_is_stored_twice() -> None:
    buffer = make_buffer()
    shown = fill(buffer)
    assert buffer.frames is not None
    assert torch.equal(buffer.frames[buffer.frame_index], shown)
    changes = sum(int((shown[t] != shown[t - 1]).flatten(1).any(1).sum()) for t in range(1, T))
    assert len(buffer.frames) == N + changes


def test_frames_survive_growth_and_the_next_rollout_starts_afresh() -> None:
    buffer = make_buffer()
    stored = []
    for seed, share in ((0, 1.0), (1, 0.2)):  # the first needs more than the first allocation
        shown = fill(buffer, seed, share)
        assert buffer.frames is not None
        assert torch.equal(buffer.frames[buffer.frame_index], shown)
        stored.append(len(buffer.frames))
    assert stored[0] == T * N > stored[1]


def test_minibatches_hold_whole_worlds_and_their_own_frames() -> None:
    buffer = make_buffer()
    shown = fill(buffer)
    buffer.finish(buffer.task_reward, gamma=0.9, gae_lambda=0.9)
    seen: list[int] = []
    for batch in buffer.minibatches(2, torch.Generator().manual_seed(0)):
        env_ids = batch.env_ids
        seen += env_ids.tolist()
        inputs = batch.inputs
        assert inputs.frames is not None and inputs.frame_index is not None
        assert torch.equal(inputs.frames[inputs.frame_index], shown[:, env_ids])
        assert len(inputs.frames) == len(inputs.frame_index.unique())
        assert inputs.hidden is not None
        assert inputs.hidden[0].flatten().tolist() == env_ids.tolist()
        assert torch.equal(batch.state[3, :, 0], 30.0 + env_ids)
        assert torch.equal(batch.advantage, buffer.advantages[:, env_ids])
    assert sorted(seen) == list(range(N))


def test_each_epoch_draws_a_fresh_permutation() -> None:
    buffer = RolloutBuffer(1, 50, action_dim=1, proprio_dim=1, state_dim=1, feature_dim=1)
    generator = torch.Generator().manual_seed(0)
    epochs = [
        torch.cat([batch.env_ids for batch in buffer.minibatches(4, generator)]) for _ in range(2)
    ]
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)


def test_a_buffer_without_frames_serves_the_state_teacher() -> None:
    buffer = make_buffer(frame_shape=None)
    fill(buffer, with_frames=False)
    assert buffer.frames is None
    batch = next(iter(buffer.minibatches(1, torch.Generator())))
    assert batch.inputs.frames is None
    assert batch.inputs.state is not None and batch.inputs.state.shape == (T, N, 1)


def test_finish_bootstraps_truncated_worlds() -> None:
    buffer = make_buffer()
    fill(buffer)
    buffer.next_value.fill_(10.0)
    buffer.finish(torch.ones(T, N), gamma=0.5, gae_lambda=1.0)
    # World 0 runs out of time at step 1. With values of 0 every delta is 1 + 10 / 2 = 6, so the
    # return is 6 at step 1, where the sum is cut, and 6 + 6 / 2 at step 0.
    assert buffer.returns[:2, 0].tolist() == [9.0, 6.0]
    assert buffer.done[:, 0].tolist() == [False, True, False, False, False]


def test_steps_out_of_order_are_refused() -> None:
    buffer = make_buffer()
    with pytest.raises(RuntimeError, match="0 of 5 steps"):
        buffer.finish(torch.zeros(T, N), 0.9, 0.9)
    fill(buffer)
    with pytest.raises(RuntimeError, match="decision 5 of 5"):
        fill_one = dict.fromkeys(("action", "mean", "state"), torch.zeros(N, 1))
        buffer.add_decision(
            **fill_one,
            proprio=torch.zeros(N, 2),
            episode_start=torch.zeros(N, dtype=torch.bool),
            log_prob=torch.zeros(N),
            value=torch.zeros(N),
        )


def test_more_minibatches_than_worlds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 minibatches.*1 to 4"):
        next(make_buffer().minibatches(5, torch.Generator()))


def test_return_deviation_matches_returns_worked_by_hand() -> None:
    normalizer = ReturnNormalizer(1, gamma=0.5)
    normalizer.update(column(4.0, 2.0, 1.0, 8.0), flags(False, True, False, False))
    # Running returns 4, 4, (cut) 1, 8.5: mean 4.375, variance 7.171875.
    assert normalizer.deviation.item() == pytest.approx(7.171875**0.5)
    assert normalizer.scale(torch.tensor([7.171875**0.5])).item() == pytest.approx(1.0)


def test_return_deviation_does_not_depend_on_how_rollouts_are_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(12, 3, generator=generator)
    done = torch.rand(12, 3, generator=generator) < 0.2
    whole, parts = ReturnNormalizer(3, gamma=0.9), ReturnNormalizer(3, gamma=0.9)
    whole.update(rewards, done)
    for begin, end in ((0, 5), (5, 6), (6, 12)):
        parts.update(rewards[begin:end], done[begin:end])
    assert parts.deviation.item() == pytest.approx(whole.deviation.item(), rel=1e-12)


def test_the_first_rare_reward_is_not_blown_up() -> None:
    normalizer = ReturnNormalizer(1, gamma=0.9, min_deviation=0.1)
    normalizer.update(torch.zeros(100, 1), torch.zeros(100, 1, dtype=torch.bool))
    assert normalizer.scale(torch.tensor([0.125])).item() == pytest.approx(1.25)
    assert normalizer.scale(torch.tensor([100.0])).item() == 10.0


def test_a_restored_normalizer_goes_on_identically() -> None:
    first, second = ReturnNormalizer(2, gamma=0.9), ReturnNormalizer(2, gamma=0.9)
    done = torch.zeros(3, 2, dtype=torch.bool)
    first.update(torch.rand(3, 2), done)
    second.load_state_dict(first.state_dict())
    rewards = torch.rand(3, 2)
    for normalizer in (first, second):
        normalizer.update(rewards, done)
    assert torch.equal(first.deviation, second.deviation)
