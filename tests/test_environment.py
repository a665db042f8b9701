"""The order of a step, episodes, time limits, latency and exact resume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from visuomotor.config import LatencyConfig, RandomizationConfig
from visuomotor.envs import environment, make_env, make_task
from visuomotor.errors import UserError


def _flat(observation):
    return {k: v for k, v in observation._asdict().items() if v is not None}


def _assert_equal(a, b):
    for name, value in _flat(a).items():
        assert torch.equal(value, _flat(b)[name]), name


def _walk(env, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    results = []
    for _ in range(steps):
        results.append(env.step(torch.rand(env.num_envs, 9, generator=generator) * 2 - 1))
    return results


def _latency(**factors) -> RandomizationConfig:
    """Randomization that is all off but for these latency factors, as points."""
    quiet = LatencyConfig(
        camera_delay=(0, 0), action_delay=(0, 0), action_drop=(0.0, 0.0), proprio_noise=(0.0, 0.0)
    )
    config = RandomizationConfig()
    return replace(
        config,
        appearance=replace(config.appearance, enabled=False),
        dynamics=replace(config.dynamics, enabled=False),
        latency=replace(quiet, **factors),
    )


def test_episodes_have_a_fixed_length_and_end_by_truncation(nominal, make):
    env = make(nominal, episode_steps=5)
    env.reset()
    results = _walk(env, 11)
    ends = [bool(r.truncated.all()) for r in results]
    assert [i for i, end in enumerate(ends) if end] == [4, 9]
    assert not any(bool(r.terminated.any()) for r in results)


def test_worlds_that_stand_still_stay_as_they_are_and_change_nothing_in_others(nominal, make):
    env, other = make(nominal), make(nominal)
    env.reset()
    other.reset()
    _walk(env, 3)
    _walk(other, 3)
    before = env.sim.get_state(torch.arange(3))
    action = torch.full((3, 9), 0.5)
    other.step(action)
    alone = other.sim.get_state(torch.arange(3))
    result = env.step(action, torch.tensor([0, 2]))
    after = env.sim.get_state(torch.arange(3))
    assert torch.equal(after[1], before[1])
    assert torch.equal(after[[0, 2]], alone[[0, 2]])
    assert not torch.equal(after[[0, 2]], before[[0, 2]])
    assert torch.isfinite(result.observation.state).all()


def test_without_what_learners_read_everything_else_is_as_with_it(nominal, make):
    config = replace(nominal, randomization=RandomizationConfig())
    whole, lean = make(config, episode_steps=5), make(config, episode_steps=5, privileged=False)
    pairs = [(whole.reset(), lean.reset())]
    for with_it, without in zip(_walk(whole, 7), _walk(lean, 7), strict=True):
        for name in ("reward", "success", "stage", "features", "truncated"):
            assert torch.equal(getattr(with_it, name), getattr(without, name)), name
        pairs.append((with_it.observation, without.observation))
    for with_it, without in pairs:
        assert without.state.shape == without.aux_targets.shape == (3, 0)
        for name in ("proprio", "features", "stage"):
            assert torch.equal(getattr(with_it, name), getattr(without, name)), name


def test_final_observation_is_the_state_in_which_the_time_ran_out(nominal, make):
    env = make(nominal, episode_steps=4)
    longer = make(nominal, episode_steps=100)
    env.reset()
    longer.reset()
    ended = _walk(env, 4)[-1]
    going_on = _walk(longer, 4)[-1]
    assert ended.final_env_ids.tolist() == [0, 1, 2]
    assert torch.equal(ended.final_observation.state, going_on.observation.state)
    assert torch.equal(ended.features, going_on.features)
    assert not torch.equal(ended.observation.state, ended.final_observation.state)


def test_staggered_worlds_end_at_different_steps(nominal, make):
    env = make(nominal, num_envs=4, episode_steps=8, stagger=True)
    env.reset()
    ends = [r.final_env_ids.tolist() for r in _walk(env, 8)]
    assert ends == [[], [3], [], [2], [], [1], [], [0]]


def test_many_staggered_worlds_end_in_a_few_groups(nominal, make, monkeypatch):
    monkeypatch.setattr(environment, "STAGGERED_GROUPS", 2)
    env = make(nominal, num_envs=5, episode_steps=4, stagger=True)
    env.reset()
    ends = [r.final_env_ids.tolist() for r in _walk(env, 8)]
    assert ends == 2 * [[], [3, 4], [], [0, 1, 2]]


def test_same_seed_means_same_episodes_for_any_number_of_worlds(nominal, make):
    config = replace(nominal, randomization=RandomizationConfig(strength=1.0))
    four, two = make(config, num_envs=4, episode_steps=2), make(config, num_envs=2, episode_steps=2)
    four.reset()
    two.reset()
    state_four, factors_four = four.sim.get_state(torch.arange(4)), four.factors.copy()
    first, factors_first = two.sim.get_state(torch.arange(2)), two.factors.copy()
    for _ in range(2):
        two.step(torch.zeros(2, 9))
    second, factors_second = two.sim.get_state(torch.arange(2)), two.factors.copy()
    assert torch.equal(torch.cat((first, second)), state_four)
    assert np.array_equal(np.concatenate((factors_first, factors_second)), factors_four)


def test_an_episode_is_the_same_beside_any_others_with_all_its_noise(nominal, make, monkeypatch):
    """The last of seven one after the other, and of seven worlds, the same actions in all."""
    monkeypatch.setattr(environment, "PART", 4)
    config = replace(nominal, camera=replace(nominal.camera, period=2))
    config = replace(config, randomization=RandomizationConfig())
    steps = 10
    beside = make(config, num_envs=7, episode_steps=steps, render=True)
    after = make(config, num_envs=1, episode_steps=steps, render=True)
    seen = [[beside.reset()], [after.reset()]]
    for env, kept, worlds in ((beside, seen[0], 7), (after, seen[1], 1)):
        for _ in range(7 // worlds):
            kept[:] = kept[-1:]
            generator = torch.Generator().manual_seed(0)
            for _ in range(steps):
                action = torch.rand(1, 9, generator=generator) * 2 - 1
                kept.append(env.step(action.expand(worlds, 9)).observation)
    for with_others, alone in zip(seen[0][:-1], seen[1][:-1], strict=True):
        for name, value in _flat(with_others).items():
            assert torch.equal(value[6:], getattr(alone, name)), name


def test_another_seed_means_other_episodes(nominal, make):
    a, b = make(nominal, seed=0), make(nominal, seed=1)
    a.reset()
    b.reset()
    everyone = torch.arange(3)
    assert not torch.equal(a.sim.get_state(everyone), b.sim.get_state(everyone))


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_action_delay_postpones_the_command_by_that_many_steps(nominal, make, delay):
    config = replace(nominal, randomization=_latency(action_delay=(delay, delay)))
    env = make(config)
    env.reset()
    sent = torch.full((3, 9), 0.5)
    executed = []
    for step in range(4):
        env.step(sent if step == 0 else torch.zeros(3, 9))
        executed.append(bool((env.sim.data("ctrl") != 0).any()))
    assert executed == [step == delay for step in range(4)]


@pytest.mark.parametrize("delay", [0, 1, 2])
def test_the_state_ends_with_the_action_executed_and_the_newest(nominal, make, delay):
    config = replace(nominal, randomization=_latency(action_delay=(delay, delay)))
    env = make(config)
    env.reset()
    sent = [torch.full((3, 9), 0.1 * step) for step in range(1, 5)]
    for action in sent:
        state = env.step(action).observation.state
    assert torch.equal(state[:, -18:], torch.cat((sent[-1 - delay], sent[-1]), dim=1))


def test_a_dropped_action_repeats_the_one_before(nominal, make):
    config = replace(nominal, randomization=_latency(action_drop=(1.0, 1.0)))
    env = make(config)
    env.reset()
    env.step(torch.full((3, 9), 0.7))
    # Nothing was executed before, so nothing moves.
    assert (env.sim.data("ctrl") == 0).all()


def test_proprioception_noise_leaves_the_privileged_state_alone(nominal, make):
    noisy = make(replace(nominal, randomization=_latency(proprio_noise=(0.01, 0.01))))
    clean = make(nominal)
    a, b = noisy.reset(), clean.reset()
    assert torch.equal(a.state, b.state)
    deviation = (a.proprio - b.proprio).std()
    assert 0.005 < float(deviation) < 0.015


def test_actions_beyond_one_are_clipped(nominal, make):
    a, b = make(nominal), make(nominal)
    a.reset()
    b.reset()
    ra, rb = a.step(torch.full((3, 9), 5.0)), b.step(torch.full((3, 9), 1.0))
    assert torch.equal(ra.observation.state, rb.observation.state)


def test_resume_goes_on_bit_for_bit_with_everything_switched_on(nominal):
    config = replace(
        nominal,
        randomization=RandomizationConfig(strength=1.0),
        env=replace(nominal.env, episode_steps=7),
    )
    kept, other = (make_env(config, num_envs=3, seed=0, stagger=True) for _ in range(2))
    kept.reset()
    other.reset()
    _walk(other, 4)
    _walk(kept, 5)
    saved = kept.state_dict()
    expected = _walk(kept, 9, seed=1)
    other.load_state_dict(saved)
    resumed = _walk(other, 9, seed=1)
    for a, b in zip(expected, resumed, strict=True):
        _assert_equal(a.observation, b.observation)
        assert torch.equal(a.reward, b.reward)
        assert torch.equal(a.final_env_ids, b.final_env_ids)


def test_looking_at_the_worlds_does_not_change_their_future(nominal, make):
    looked, left_alone = make(nominal), make(nominal)
    looked.reset()
    left_alone.reset()
    for _ in range(3):
        looked.current()
        looked.sim.data("cinert")
        a, b = _walk(looked, 1)[0], _walk(left_alone, 1)[0]
        assert torch.equal(a.observation.state, b.observation.state)


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown task 'staking'.*stacking.*lifting"):
        make_task("staking")
