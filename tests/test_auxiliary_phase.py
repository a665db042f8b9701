"""The CNN's own phase: it learns to see, the policy stays where it is, and it resumes exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.bandit import FRAME, collect, copies, make_pixel_ppo, unchanged
from visuomotor.auxiliary_phase import AuxiliaryPhase, FrameMemory
from visuomotor.config import AuxConfig
from visuomotor.errors import DivergedError
from visuomotor.pixel_actor import PixelActor
from visuomotor.ppo import PPO, action_means
from visuomotor.rollout import RolloutBuffer

CONFIG = AuxConfig(
    start_updates=60, minibatches=2, batch_size=16, replayed=1, memory=200, learning_rate=3e-3
)


def make_phase(ppo: PPO, seed: int = 0, config: AuxConfig = CONFIG) -> AuxiliaryPhase:
    torch.manual_seed(seed)
    assert isinstance(ppo.actor, PixelActor)
    generator = torch.Generator().manual_seed(seed)
    return AuxiliaryPhase(ppo.actor, config, generator=generator)


def frames_of(buffer: RolloutBuffer) -> tuple[torch.Tensor, torch.Tensor]:
    assert buffer.frames is not None
    return buffer.frames, buffer.frame_targets()


def means(ppo: PPO, buffer: RolloutBuffer) -> torch.Tensor:
    batch = next(iter(buffer.minibatches(1, torch.Generator().manual_seed(0))))
    with torch.no_grad():
        return action_means(ppo.actor, batch.inputs)[0]


def test_memory_keeps_the_last_frames() -> None:
    memory = FrameMemory(5)
    count = torch.arange(12)
    frames = count.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
    memory.add(frames[:3], count[:3, None].float())
    assert len(memory) == 3
    memory.add(frames[3:7], count[3:7, None].float())
    assert len(memory) == 5
    seen, targets = memory.sample(200, torch.Generator().manual_seed(0))
    assert set(targets.flatten().tolist()) == {2.0, 3.0, 4.0, 5.0, 6.0}
    assert torch.equal(seen[:, 0, 0, 0].float(), targets[:, 0])
    memory.add(frames, count[:, None].float())
    _, targets = memory.sample(200, torch.Generator().manual_seed(0))
    assert set(targets.flatten().tolist()) == {7.0, 8.0, 9.0, 10.0, 11.0}


def test_a_frames_target_is_the_mean_over_the_steps_that_saw_it() -> None:
    buffer = RolloutBuffer(
        3, 1, action_dim=1, proprio_dim=1, state_dim=1, feature_dim=1, aux_dim=3, frame_shape=FRAME
    )
    buffer.start()
    zero = torch.zeros(1, 1)
    for step, new in enumerate((True, False, True)):
        buffer.add_decision(
            proprio=zero,
            state=zero,
            episode_start=torch.zeros(1, dtype=torch.bool),
            action=zero,
            mean=zero,
            log_prob=zero[0],
            value=zero[0],
            aux_targets=torch.full((1, 3), float(step)),
            pixels=torch.full((1, *FRAME), step, dtype=torch.uint8),
            new_frame=torch.tensor([new]),
        )
        buffer.add_outcome(
            task_reward=zero[0],
            features=zero,
            next_value=zero[0],
            terminated=torch.zeros(1, dtype=torch.bool),
            truncated=torch.zeros(1, dtype=torch.bool),
        )
    assert buffer.frame_targets().tolist() == [[0.5] * 3, [2.0] * 3]


def test_the_start_teaches_encoder_and_heads_and_nothing_else() -> None:
    ppo = make_pixel_ppo(target_dim=3)
    phase = make_phase(ppo)
    actor = ppo.actor
    assert isinstance(actor, PixelActor)
    rest = [copies(part) for part in (actor.lstm, actor.mean_head, actor.proprio_mlp)]
    seen: list[dict[str, float]] = []
    phase.start(*frames_of(collect(ppo, seed=0)), seen.append)
    assert phase.frames_loss()[0].item() < 0.3 * seen[0]["aux_loss"]
    for part, before in zip((actor.lstm, actor.mean_head, actor.proprio_mlp), rest, strict=True):
        assert unchanged(part, before)


def test_vision_gets_better_while_the_policy_is_held() -> None:
    moved = {}
    for hold in (0.0, 10.0):
        ppo = make_pixel_ppo(target_dim=3)
        with torch.no_grad():
            for parameter in ppo.actor.mean_head.parameters():
                parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
        config = replace(CONFIG, minibatches=4, hold=hold)
        phase = make_phase(ppo, config=config)
        buffer = collect(ppo, seed=0, num_envs=32)
        before, std = means(ppo, buffer), copies(ppo.actor.deviation)
        first = phase.update(buffer, 1.0)
        for _ in range(15):
            last = phase.update(buffer, 1.0)
        assert last["aux_loss"] < 0.7 * first["aux_loss"]
        assert unchanged(ppo.actor.deviation, std)
        moved[hold] = float((means(ppo, buffer) - before).square().mean())
    assert moved[10.0] < 0.5 * moved[0.0]


def test_a_rollout_joins_the_memory_after_its_pass() -> None:
    ppo = make_pixel_ppo(target_dim=3)
    phase = make_phase(ppo)
    buffer = collect(ppo, seed=0)
    phase.update(buffer, 1.0)
    assert buffer.frames is not None
    assert len(phase.memory) == len(buffer.frames)


def test_fewer_frames_than_minibatches_make_a_pass_of_one_frame_each() -> None:
    ppo = make_pixel_ppo(target_dim=3)
    phase = make_phase(ppo, config=replace(CONFIG, minibatches=99))
    buffer = collect(ppo, seed=0)
    assert buffer.frames is not None
    assert phase.minibatches(buffer) == len(buffer.frames) < 99
    assert phase.update(buffer, 1.0)["aux_loss"] > 0.0


def test_a_scale_of_zero_leaves_every_weight() -> None:
    ppo = make_pixel_ppo(target_dim=3)
    phase = make_phase(ppo)
    actor, heads = copies(ppo.actor), copies(phase.aux_heads)
    phase.update(collect(ppo, seed=0), 0.0)
    assert unchanged(ppo.actor, actor)
    assert unchanged(phase.aux_heads, heads)


def test_a_gradient_that_is_not_finite_stops_the_phase() -> None:
    ppo = make_pixel_ppo(target_dim=3)
    phase = make_phase(ppo)
    buffer = collect(ppo, seed=0)
    buffer.aux_targets[0, 0] = float("nan")
    with pytest.raises(DivergedError, match="non-finite"):
        phase.update(buffer, 1.0)


def test_an_actor_without_heads_has_no_such_phase() -> None:
    with pytest.raises(ValueError, match="auxiliary heads"):
        make_phase(make_pixel_ppo())


def test_save_load_go_on_equals_never_stopped() -> None:
    first, second = make_pixel_ppo(seed=0, target_dim=3), make_pixel_ppo(seed=1, target_dim=3)
    stopped, restored = make_phase(first, seed=0), make_phase(second, seed=1)
    buffers = [collect(first, seed) for seed in (0, 1)]
    stopped.start(*frames_of(buffers[0]))
    stopped.update(buffers[0], 1.0)
    restored.load_state_dict(stopped.state_dict())
    second.actor.load_state_dict(first.actor.state_dict())
    assert stopped.update(buffers[1], 1.0) == restored.update(buffers[1], 1.0)
    assert unchanged(second.actor, copies(first.actor))
    assert unchanged(restored.aux_heads, copies(stopped.aux_heads))
    assert len(restored.memory) == len(stopped.memory)


def test_features_kept_while_acting_give_the_pass_of_frames_encoded_again() -> None:
    results = []
    for kept in (True, False):
        ppo = make_pixel_ppo(target_dim=3)
        phase = make_phase(ppo)
        buffer = collect(ppo, seed=0)
        metrics = phase.update(buffer, 1.0, buffer.visual if kept else None)
        results.append((metrics, copies(ppo.actor)))
    (first, some), (second, others) = results
    for name, value in first.items():
        assert value == pytest.approx(second[name], abs=1e-5)
    for one, other in zip(some, others, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
