"""The loop of PPO + GAIL: what each switch turns off, and what moves when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.learning import NUM_ENVS, NUM_STEPS, SMALL, demonstrations, small
from visuomotor.config import Config
from visuomotor.demonstrations import Demonstrations
from visuomotor.envs import StepResult
from visuomotor.evaluation import evaluation_env
from visuomotor.policies import make_teacher
from visuomotor.reinforcement import Reinforcement
from visuomotor.replay import DemonstrationReplay

ITERATION = NUM_ENVS * NUM_STEPS


@pytest.fixture(scope="module")
def demos() -> Demonstrations:
    return demonstrations()


def learner(demos: Demonstrations, config: Config, pixels: bool = False) -> Reinforcement:
    replay = DemonstrationReplay(config, demos)
    return Reinforcement(
        config,
        replay,
        pixels=pixels,
        num_envs=NUM_ENVS,
        total_steps=10 * ITERATION,
        device=torch.device("cpu"),
        expert=make_teacher(config, replay.all_state.shape[1]) if pixels else None,
    )


def weights(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


def test_an_iteration_counts_its_steps_and_moves_every_network(demos: Demonstrations) -> None:
    run = learner(demos, small(ppo={"critic_warmup": 0}), pixels=True)
    assert run.vision is not None
    parts = (run.actor, run.critic, run.gail.discriminator, run.vision.aux_heads)
    before = [weights(part) for part in parts]
    metrics = run.iterate()
    assert run.env_steps == ITERATION
    for part, old in zip(parts, before, strict=True):
        assert not torch.equal(weights(part), old)
    assert {"gail_jsd", "aux_loss", "cloning_loss", "approx_kl", "mean_reward"} <= metrics.keys()


@pytest.mark.parametrize(
    ("longest", "pixels", "expected"),
    [(5, False, 5), (50, False, 12), (None, False, 12), (5, True, 12)],
)
def test_only_a_teachers_episodes_may_be_shorter_than_the_tasks(
    longest: int | None, pixels: bool, expected: int, demos: Demonstrations
) -> None:
    teacher = replace(SMALL.distill.teacher, episode_steps=longest)
    run = learner(demos, small(distill={"teacher": teacher}), pixels)
    assert run.env.episode_steps == expected  # SMALL's have 12


@pytest.mark.parametrize(
    ("given", "pixels", "expected"), [(None, True, 7), (9, True, 9), (None, False, 100)]
)
def test_a_task_may_say_how_long_a_pixel_policys_training_episodes_are(
    given: int | None,
    pixels: bool,
    expected: int,
    demos: Demonstrations,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visuomotor.envs.tasks.lifting.Lifting.training_steps", 7)
    config = small(env={"episode_steps": given})
    assert learner(demos, config, pixels).env.episode_steps == expected
    assert evaluation_env(
        config, num_envs=1, seed=0, strength=1.0, device=torch.device("cpu"), render=False
    ).episode_steps == (given or 100)


def test_the_value_is_trained_alone_at_first(demos: Demonstrations) -> None:
    run = learner(demos, small(ppo={"critic_warmup": 2}))
    actor, critic = weights(run.actor), weights(run.critic)
    run.iterate()
    run.iterate()
    assert torch.equal(weights(run.actor), actor)
    assert not torch.equal(weights(run.critic), critic)
    run.iterate()
    assert not torch.equal(weights(run.actor), actor)


def test_without_imitation_the_discriminator_rests_and_the_reward_is_the_tasks(
    demos: Demonstrations,
) -> None:
    run = learner(demos, small(gail={"weight": 0.0}))
    before = weights(run.gail.discriminator)
    metrics = run.iterate()
    assert torch.equal(weights(run.gail.discriminator), before)
    assert "gail_jsd" not in metrics
    scaled = run.normalizer.scale(run.buffer.task_reward)
    assert torch.equal(run.buffer.rewards, scaled)


def test_with_imitation_alone_the_tasks_reward_does_not_matter(demos: Demonstrations) -> None:
    run = learner(demos, small(gail={"weight": 1.0}))
    run.iterate()
    metrics: dict[str, float] = {}
    mixed = run._mixed_rewards(metrics)
    run.buffer.task_reward += 100.0
    assert torch.equal(run._mixed_rewards(metrics), mixed)
    assert mixed.std() > 0


def test_the_curriculum_starts_episodes_from_demonstrations_or_not_at_all(
    demos: Demonstrations,
) -> None:
    run = learner(demos, small(curriculum={"initial_share": 0.0, "final_share": 0.0}))
    assert not bool(run.env.from_initial.any())
    run = learner(demos, small(curriculum={"enabled": False}))
    assert bool(run.env.from_initial.all())


def test_a_world_whose_time_is_up_is_worth_what_its_last_state_is(demos: Demonstrations) -> None:
    run = learner(demos, small())
    step, results = run.env.step, []

    def spy(action: torch.Tensor) -> StepResult:
        results.append(step(action))
        return results[-1]

    run.env.step = spy  # type: ignore[method-assign]
    run._rollout()
    ended = 0
    with torch.no_grad():
        for result, found in zip(results, run.buffer.next_value, strict=True):
            ids, reached = result.final_env_ids, result.observation.state.clone()
            ended += len(ids)
            if len(ids) > 0:
                assert not torch.equal(reached[ids], result.final_observation.state)
                reached[ids] = result.final_observation.state
            assert torch.allclose(found, run.critic(reached), atol=1e-6)
    assert ended > 0


@pytest.mark.parametrize("pixels", [False, True])
def test_the_cloning_term_fades(pixels: bool, demos: Demonstrations) -> None:
    kept = {"weight": 0.5, "final_weight": 0.1, "decay_steps": 4 * ITERATION}
    labels = {"label_weight": 0.4, "final_label_weight": 0.0, "label_decay_steps": 2 * ITERATION}
    run = learner(demos, small(cloning=kept | labels), pixels=pixels)
    found = [run.iterate()["cloning_weight"] for _ in range(6)]
    expected = [0.4, 0.2, 0.0, 0.0, 0.0, 0.0] if pixels else [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]
    assert found == pytest.approx(expected)


def test_without_cloning_no_action_of_a_demonstration_is_used(demos: Demonstrations) -> None:
    run = learner(demos, small(cloning={"enabled": False}))
    run._replay.actions.clear()
    run._replay.all_actions = torch.full_like(run._replay.all_actions, torch.nan)
    assert not run.cloning
    for _ in range(3):
        assert run.iterate()["cloning_loss"] == 0.0
    assert bool(torch.isfinite(weights(run.actor)).all())


def test_the_step_size_falls_to_0_over_the_last_third(demos: Demonstrations) -> None:
    run = learner(demos, small(ppo={"anneal_fraction": 0.5}))
    scales = []
    for _ in range(10):
        run.iterate()
        scales.append(run.ppo.learning_rate_scale)
    assert scales == pytest.approx([1.0] * 6 + [0.8, 0.6, 0.4, 0.2])


def test_exploration_is_taken_back_over_the_last_part_of_the_run(demos: Demonstrations) -> None:
    run = learner(demos, small(ppo={"final_noise": 0.2, "noise_anneal_fraction": 0.4}))
    scales = []
    for _ in range(10):
        run.iterate()
        scales.append(run.actor.deviation.scale)
    assert scales == pytest.approx([1.0] * 7 + [0.8, 0.6, 0.4])


def test_without_auxiliary_losses_nothing_but_reward_and_cloning_teaches_to_see(
    demos: Demonstrations,
) -> None:
    run = learner(demos, small(aux={"weight": 0.0}), pixels=True)
    run.vision_start()
    assert run.vision is None
    assert "aux_loss" not in run.iterate()


def test_the_vision_start_teaches_encoder_and_heads_alone(demos: Demonstrations) -> None:
    run = learner(demos, small(aux={"start_updates": 40, "learning_rate": 1e-2}), pixels=True)
    assert run.vision is not None
    lstm, encoder = weights(run.actor.lstm), weights(run.actor.encoder)
    seen: list[dict[str, float]] = []
    run.vision_start(seen.append)
    assert torch.equal(weights(run.actor.lstm), lstm)
    assert not torch.equal(weights(run.actor.encoder), encoder)
    assert float(run.vision.frames_loss()[1]["aux_loss"]) < seen[0]["aux_loss"]
    assert len(run.vision.memory) == run.config.aux.start_frames


def test_the_cloning_start_brings_the_clone_nearer(demos: Demonstrations) -> None:
    run = learner(demos, small(cloning={"start_updates": 200}))
    seen: list[dict[str, float]] = []
    run.clone_start(seen.append)
    assert seen[-1]["cloning_loss"] < 0.5 * seen[0]["cloning_loss"]
