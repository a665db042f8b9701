"""DAgger: who acts, who labels, what is fitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.learning import NUM_ENVS, NUM_STEPS, demonstrations, small
from visuomotor import distillation
from visuomotor.config import Config
from visuomotor.demonstrations import Demonstrations
from visuomotor.distillation import Distillation
from visuomotor.policies import make_teacher
from visuomotor.ppo import CloningBatch, cloning_loss
from visuomotor.replay import DemonstrationReplay

ITERATION = NUM_ENVS * NUM_STEPS


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return demonstrations()


def learner(demos: Demonstrations, config: Config, iterations: int = 10) -> Distillation:
    replay = DemonstrationReplay(config, demos)
    torch.manual_seed(5)
    teacher = make_teacher(config, replay.all_state.shape[1])
    torch.nn.init.normal_(teacher.net[-1].weight, std=0.3)  # actions worth imitating
    return Distillation(
        config,
        replay,
        teacher,
        num_envs=NUM_ENVS,
        total_steps=iterations * ITERATION,
        device=torch.device("cpu"),
    )


def test_a_student_has_training_episodes_as_its_task_says(
    demos: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visuomotor.envs.tasks.lifting.Lifting.training_steps", 7)
    assert learner(demos, small(env={"episode_steps": None})).env.episode_steps == 7
    assert learner(demos, small()).env.episode_steps == 12


def executed(run: Distillation) -> list[torch.Tensor]:
    """Actions handed to the environment in one rollout."""
    actions: list[torch.Tensor] = []
    step = run.env.step

    def spy(action: torch.Tensor):  # type: ignore[no-untyped-def]
        actions.append(action.clone())
        return step(action)

    run.env.step = spy  # type: ignore[method-assign]
    run.iterate()
    run.env.step = step  # type: ignore[method-assign]
    return actions


def test_labels_are_what_the_teacher_would_do_in_the_states_that_are_met(
    demos: Demonstrations,
) -> None:
    run = learner(demos, small())
    states: list[torch.Tensor] = []
    teacher = run.teacher.forward
    run.teacher.forward = lambda state: states.append(state.clone()) or teacher(state)  # type: ignore
    run.iterate()
    wanted = torch.stack([teacher(state).clamp(-1.0, 1.0) for state in states])
    assert torch.equal(run._buffers[0].action, wanted)
    assert wanted.std() > 0.1


@pytest.mark.parametrize(("final", "expected"), [(0.0, [2, 1, 1, 0, 0]), (0.25, [2, 2, 1, 1, 1])])
def test_the_teacher_acts_in_a_share_of_worlds_that_falls(
    final: float, expected: list[int], demos: Demonstrations
) -> None:
    shares_of = {"teacher_share": 0.5, "final_teacher_share": final, "action_noise": 0.0}
    run = learner(demos, small(distill=shares_of))
    shares = []
    for _ in range(5):
        slot = run.iterations % 2
        actions = torch.stack(executed(run))
        by_teacher = (actions == run._buffers[slot].action).all(dim=2).all(dim=0)
        by_student = (actions == run._buffers[slot].mean).all(dim=2).all(dim=0)
        assert bool((by_teacher ^ by_student).all())
        shares.append(int(by_teacher.sum()))
    # 0.5 (1 - done) + final done, done = steps / (0.3 total), of four worlds: 2, 4/3, 2/3, 0, 0
    # without a final share; 2, 5/3, 4/3, 1, 1 with one of a quarter.
    assert shares == expected


@pytest.mark.parametrize(
    ("fraction", "expected"), [(1.0, [1.0, 0.75, 0.5, 0.25]), (0.5, [1.0, 1.0, 1.0, 0.5])]
)
def test_the_step_size_falls_over_the_last_share_of_the_run(
    fraction: float, expected: list[float], demos: Demonstrations
) -> None:
    settings = {"anneal_fraction": fraction, "learning_rate": 2e-3}
    run = learner(demos, small(distill=settings), iterations=4)
    rates = [run.iterate()["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([2e-3 * share for share in expected])


@pytest.mark.parametrize("fused", [False, True])
def test_a_vision_apart_learns_from_the_auxiliary_losses_alone(
    fused: bool, demos: Demonstrations
) -> None:
    config = small(distill={"vision_learning_rate": 2e-3, "learning_rate": 1e-3})
    config = replace(config, actor=replace(config.actor, fused_heads=fused))
    run = learner(demos, config, iterations=4)
    modules = [run.actor.encoder, run.actor.aux_heads, *([run.actor.fused_heads] if fused else [])]
    seeing = {id(p) for module in modules for p in module.parameters()}
    others, vision = (group["params"] for group in run.optimizer.param_groups)
    assert {id(p) for p in vision} == seeing
    assert len(others) + len(vision) == len(list(run.actor.parameters()))
    assert not seeing & {id(p) for p in others}

    run.iterate()
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([1e-3, 2e-3])
    batch = next(run._buffers[0].minibatches(1, torch.Generator()))
    labels = CloningBatch(batch.inputs, batch.action, batch.aux_targets)
    for apart in (False, True):
        for weight in (0.0, 1.0):
            run.actor.zero_grad(set_to_none=True)
            cloning_loss(run.actor, labels, weight, vision_apart=apart)[0].backward()
            learns = any(p.grad is not None and bool(p.grad.any()) for p in vision)
            assert learns == (weight > 0.0 or not apart)
            assert all(p.grad is not None for p in run.actor.lstm.parameters())


def test_fused_heads_learn_from_older_rollouts_too(demos: Demonstrations) -> None:
    config = small(distill={"replays_train_encoder": False})
    config = replace(config, actor=replace(config.actor, fused_heads=True))
    run = learner(demos, config, iterations=2)
    metrics = run.iterate()
    assert metrics["fused_position_error"] > 0.0
    batch = next(run._buffers[0].minibatches(1, torch.Generator()))
    labels = CloningBatch(batch.inputs, batch.action, batch.aux_targets)
    run.actor.zero_grad(set_to_none=True)
    loss, metrics = cloning_loss(run.actor, labels, 2.0, vision_apart=True, train_encoder=False)
    expected = metrics["cloning_loss"] + 2.0 * metrics["fused_loss"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(
        p.grad is not None and bool(p.grad.any()) for p in run.actor.fused_heads.parameters()
    )
    assert all(p.grad is None for p in run.actor.encoder.parameters())


@pytest.mark.parametrize("replays", [False, True])
def test_the_cnn_learns_from_older_rollouts_if_it_is_to(
    replays: bool, demos: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else from the fresh one, and from scattered frames beside every third update."""
    settings = {"replays_train_encoder": replays, "replayed": 2, "minibatches": 2, "memory": 1}
    run = learner(demos, small(distill=settings))
    told: list[str] = []  # of each update, what the CNN learns from
    original, scattered = cloning_loss, run._scattered_loss

    def loss(*args: Any, train_encoder: bool, **kwargs: Any) -> Any:
        told.append("rollout" if train_encoder else "")
        return original(*args, train_encoder=train_encoder, **kwargs)

    def and_scattered() -> Any:
        told[-1] += "+scattered"
        return scattered()

    monkeypatch.setattr(distillation, "cloning_loss", loss)
    monkeypatch.setattr(run, "_scattered_loss", and_scattered)
    run.iterate()
    both = ["rollout+scattered"] * 2
    assert told == both + (both * 2 if replays else ["+scattered", "", "", "+scattered"])

    batch = next(run._buffers[0].minibatches(1, torch.Generator()))
    labels = CloningBatch(batch.inputs, batch.action, batch.aux_targets)
    run.actor.zero_grad(set_to_none=True)
    cloned, metrics = original(run.actor, labels, 1.0, train_encoder=replays)
    cloned.backward()
    assert all(p.grad is not None for p in run.actor.lstm.parameters())
    assert any(p.grad is not None for p in run.actor.encoder.parameters()) == replays
    assert ("aux_loss" in metrics) == replays


def test_an_actor_that_sees_already_begins_with_frames_to_remember(demos: Demonstrations) -> None:
    run = learner(demos, small())
    before = {name: value.clone() for name, value in run.actor.state_dict().items()}
    run.remember_starts()
    assert run._vision is not None
    assert len(run._vision.memory) == run.config.aux.start_frames
    for name, value in run.actor.state_dict().items():
        assert torch.equal(value, before[name])


def test_noise_disturbs_what_is_done_and_not_the_labels(demos: Demonstrations) -> None:
    settings = {"teacher_share": 0.0, "action_noise": 0.2, "noisy_share": 0.5}
    run = learner(demos, small(distill=settings))
    actions = torch.stack(executed(run))
    noise = actions - run._buffers[0].mean
    disturbed = (noise != 0.0).any(dim=2).any(dim=0)
    assert disturbed.tolist() == [False, True, False, True]
    assert 0.15 < float(noise[:, disturbed].std()) < 0.25
    assert float(run._buffers[0].action.abs().max()) <= 1.0


def test_the_student_comes_nearer_and_the_teacher_stays(demos: Demonstrations) -> None:
    run = learner(demos, small(distill={"replayed": 4}), iterations=40)
    before = [p.clone() for p in run.teacher.parameters()]
    losses = [run.iterate()["cloning_loss"] for _ in range(12)]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert all(torch.equal(p, q) for p, q in zip(run.teacher.parameters(), before, strict=True))


def test_the_memory_keeps_so_many_rollouts(demos: Demonstrations) -> None:
    run = learner(demos, small())
    run.iterate()
    first = run._buffers[0].proprio.clone()
    run.iterate()
    assert torch.equal(run._buffers[0].proprio, first)
    assert run._filled == 2
    run.iterate()
    assert not torch.equal(run._buffers[0].proprio, first)
    assert run._filled == 2


def test_without_auxiliary_losses_there_are_no_heads(demos: Demonstrations) -> None:
    run = learner(demos, small(aux={"weight": 0.0}))
    assert run.actor.aux_heads is None
    assert "aux_loss" not in run.iterate()


def test_episodes_in_which_the_teacher_acts_do_not_count(demos: Demonstrations) -> None:
    config = small(distill={"teacher_share": 1.0}, curriculum={"enabled": False})
    run = learner(demos, config, iterations=1000)
    for _ in range(4):
        metrics = run.iterate()
    assert "success_rate" not in metrics
