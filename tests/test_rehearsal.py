"""A teacher that learns beside its student: where its episodes begin, and when it learns."""

from __future__ import annotations

import copy

import numpy as np
import torch

from tests.learning import NUM_ENVS, NUM_STEPS, demonstrations, small
from visuomotor.config import Config, TeacherConfig
from visuomotor.distillation import Distillation
from visuomotor.rehearsal import MEMORY, Rehearsal, teacher_networks
from visuomotor.reinforcement import Reinforcement
from visuomotor.replay import DemonstrationReplay

ITERATION = NUM_ENVS * NUM_STEPS
CPU = torch.device("cpu")


def rehearsal(config: Config, replay: DemonstrationReplay, steps: int = 4 * ITERATION) -> Rehearsal:
    finished = Reinforcement(
        config, replay, pixels=False, num_envs=NUM_ENVS, total_steps=ITERATION, device=CPU
    )
    networks = copy.deepcopy(teacher_networks(finished))
    return Rehearsal(config, replay, networks, total_steps=steps, device=CPU)


def config() -> Config:
    teacher = TeacherConfig(num_envs=NUM_ENVS, hidden_sizes=(16,))
    return small(distill={"teacher": teacher})


def test_half_of_the_episodes_begin_in_the_latest_states_that_were_met() -> None:
    replay = DemonstrationReplay(config(), demonstrations())
    rehearsed = rehearsal(config(), replay)
    rng = np.random.default_rng(0)
    assert all(rehearsed._start(rng) is None for _ in range(20))
    width = rehearsed.learner.env.sim.get_state(torch.arange(1)).shape[1]
    rehearsed.meet(torch.full((10, width), 1.0))
    rehearsed.meet(torch.full((MEMORY, width), 2.0))
    starts = [rehearsed._start(rng) for _ in range(400)]
    met = [start for start in starts if start is not None]
    assert 150 < len(met) < 250
    assert all((start == 2.0).all() for start in met)


def test_the_worlds_of_the_teacher_are_reset_to_met_states() -> None:
    replay = DemonstrationReplay(config(), demonstrations())
    rehearsed = rehearsal(config(), replay)
    env = rehearsed.learner.env
    marked = env.sim.get_state(torch.arange(1))
    marked[:, 0] += 0.25  # rad, of the arm's first joint
    rehearsed.meet(marked)
    starts = []
    for episode in range(10):
        env.restart(torch.arange(NUM_ENVS) + episode * NUM_ENVS)
        starts.append(env.sim.get_state(torch.arange(NUM_ENVS)))
    share = torch.isclose(torch.cat(starts), marked).all(dim=1).float().mean()
    assert 0.3 < float(share) < 0.7


def test_it_goes_on_with_the_critic_and_the_scale_it_learned_at() -> None:
    settings = config()
    replay = DemonstrationReplay(settings, demonstrations())
    finished = Reinforcement(
        settings, replay, pixels=False, num_envs=2, total_steps=ITERATION, device=CPU
    )
    finished.normalizer.update(3.0 * torch.randn(NUM_STEPS, 2), torch.zeros(NUM_STEPS, 2).bool())
    scale = float(finished.normalizer.deviation)
    networks = copy.deepcopy(teacher_networks(finished))
    begun = Rehearsal(settings, replay, networks, total_steps=ITERATION, device=CPU).learner
    assert float(begun.normalizer.deviation) == scale > 1.0
    torch.testing.assert_close(begun.critic.state_dict(), finished.critic.state_dict())
    del networks["normalizer"]  # as runs of before left it
    begun = Rehearsal(settings, replay, networks, total_steps=ITERATION, device=CPU).learner
    assert float(begun.normalizer.deviation) == begun.normalizer.min_deviation


def test_it_learns_in_step_with_its_student_who_hears_the_teacher_as_it_is_now() -> None:
    settings = config()
    replay = DemonstrationReplay(settings, demonstrations())
    rehearsed = rehearsal(settings, replay)
    student = Distillation(
        settings,
        replay,
        rehearsed.learner.actor,
        num_envs=NUM_ENVS,
        total_steps=10 * ITERATION,
        device=CPU,
        rehearsal=rehearsed,
    )
    before = copy.deepcopy(rehearsed.learner.actor.state_dict())
    learned = []
    for _ in range(10):
        student.iterate()
        learned.append(rehearsed.learner.env_steps // ITERATION)
    # From 0.3 to 0.8 of the student's steps: 4 iterations in 5, each begun when it is due.
    assert learned == [0, 0, 0, 1, 2, 3, 4, 4, 4, 4]
    assert student.teacher is rehearsed.learner.actor
    after = rehearsed.learner.actor.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert not any(p.grad is None for p in rehearsed.learner.actor.net.parameters())
    assert len(rehearsed._met) > 0
