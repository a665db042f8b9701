"""Gymnasium's and dm_env's own checks, and what their views promise beyond them."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import dm_env
import gymnasium
import numpy as np
import pytest
import torch
from absl.testing import absltest
from dm_env.test_utils import EnvironmentTestMixin
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from visuomotor.config import CameraConfig, Config, EnvConfig, RandomizationConfig
from visuomotor.envs import TASKS, make_env
from visuomotor.envs.adapters import VisuomotorDmEnv, VisuomotorGymEnv, VisuomotorVectorEnv
from visuomotor.errors import UserError

STEPS = 3  # control steps of an episode
# Small pictures and one core: these tests are about interfaces.
SMALL = Config(
    task="lifting",
    env=EnvConfig(episode_steps=STEPS, num_threads=1),
    camera=CameraConfig(height=12, width=16),
)
NOMINAL = replace(SMALL, randomization=RandomizationConfig(strength=0.0))


def _actions(steps: int, num_envs: int) -> np.ndarray:
    """(steps, N, 9)"""
    rng = np.random.default_rng(0)
    return rng.uniform(-1.0, 1.0, (steps, num_envs, 9)).astype(np.float32)


def test_every_task_is_registered_with_gymnasium():
    names = {name for name in gymnasium.registry if name.startswith("visuomotor/")}
    assert {"visuomotor/Lifting-v0", "visuomotor/Stacking-v0"} <= names
    assert len(names) == len(TASKS)


def test_gymnasium_accepts_the_single_environment():
    env = gymnasium.make(
        "visuomotor/Lifting-v0", config=SMALL, privileged=True, render_mode="rgb_array"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped)
    messages = [str(w.message) for w in caught if "gymnasium" in w.filename]
    # Proprioception carries Gaussian noise, so it is unbounded.
    assert [m for m in messages if not re.search(r"value is -?infinity", m)] == []


def test_make_vec_gives_worlds_that_reset_in_the_step_that_ends_them():
    env = gymnasium.make_vec("visuomotor/Lifting-v0", num_envs=2, config=SMALL)
    assert isinstance(env, VisuomotorVectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    env.action_space.seed(0)
    seen, _ = env.reset(seed=0)
    assert seen in env.observation_space
    for _ in range(STEPS + 1):
        seen, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert seen in env.observation_space
        assert reward.shape == terminated.shape == truncated.shape == (2,)
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (float, bool, bool)
    env.close()


def test_gymnasium_counts_the_episodes_of_the_vector_environment():
    env = RecordEpisodeStatistics(VisuomotorVectorEnv(num_envs=2, config=NOMINAL))
    env.reset(seed=0)
    for action in _actions(2 * STEPS, 2):
        env.step(action)
    assert list(env.length_queue) == [STEPS] * 4


def test_vector_environment_shows_what_the_environment_shows():
    env = VisuomotorVectorEnv(num_envs=2, config=SMALL, privileged=True)
    worlds = make_env(SMALL, num_envs=2, seed=5)
    expected = worlds.reset()
    seen, info = env.reset(seed=5)
    for action in _actions(STEPS + 2, 2):
        assert np.array_equal(seen["pixels"].transpose(0, 3, 1, 2), expected.pixels.numpy())
        assert np.array_equal(seen["proprio"], expected.proprio.numpy())
        assert np.array_equal(info["privileged"]["state"], expected.state.numpy())
        assert np.array_equal(info["stage"], expected.stage.numpy())
        seen, reward, terminated, truncated, info = env.step(action)
        result = worlds.step(torch.from_numpy(action))
        assert np.array_equal(reward, result.reward.numpy())
        assert np.array_equal(truncated, result.truncated.numpy())
        assert not terminated.any()
        expected = result.observation


def test_final_observation_is_of_the_episode_that_ended():
    env = VisuomotorVectorEnv(num_envs=2, config=NOMINAL, privileged=True)
    longer = replace(NOMINAL, env=replace(NOMINAL.env, episode_steps=100))
    endless = VisuomotorVectorEnv(num_envs=2, config=longer, privileged=True)
    env.reset(seed=0)
    endless.reset(seed=0)
    for step, action in enumerate(_actions(STEPS, 2)):
        seen, _, _, truncated, info = env.step(action)
        goes_on, _, _, _, expected = endless.step(action)
        assert ("final_obs" in info) == (step == STEPS - 1) == truncated.all()
    assert info["_final_obs"].all() and info["_final_info"].all()
    for world in range(2):
        final = info["final_obs"][world]
        assert final in env.single_observation_space
        assert np.array_equal(final["proprio"], goes_on["proprio"][world])
        assert not np.array_equal(final["proprio"], seen["proprio"][world])
    final_state = info["final_info"]["privileged"]["state"]
    assert np.array_equal(final_state, expected["privileged"]["state"])
    assert not np.array_equal(final_state, info["privileged"]["state"])
    assert info["final_info"]["_success"].all()


def test_final_observation_holds_the_last_picture():
    # A picture every step, so that the one before the end is the end's neighbour.
    config = replace(NOMINAL, camera=replace(NOMINAL.camera, period=1))
    env = VisuomotorVectorEnv(num_envs=1, config=config)
    env.reset(seed=0)
    pictures = []
    for action in _actions(STEPS, 1):
        seen, *_, info = env.step(action)
        pictures.append(seen["pixels"][0])
    assert np.array_equal(info["final_obs"][0]["pixels"], pictures[-2])
    assert not np.array_equal(info["final_obs"][0]["pixels"], pictures[-1])


@pytest.mark.parametrize("view", [VisuomotorGymEnv, VisuomotorVectorEnv])
def test_a_seed_fixes_everything_that_follows(view):
    env = view(config=SMALL, privileged=True)
    actions = _actions(STEPS, 1)
    actions = actions[:, 0] if view is VisuomotorGymEnv else actions

    def story() -> list:
        told = [env.reset(seed=3)]
        told += [env.step(action) for action in actions]
        told += [env.reset(), env.step(actions[0]), env.reset()]
        return told

    assert data_equivalence(story(), story(), exact=True)


@pytest.mark.parametrize("view", [VisuomotorGymEnv, VisuomotorVectorEnv])
def test_a_reset_without_a_seed_is_another_episode(view):
    env = view(config=NOMINAL, privileged=True)
    starts = [env.reset(seed=0)] + [env.reset() for _ in range(3)]
    states = {info["privileged"]["state"].tobytes() for _, info in starts}
    assert len(states) == 4


def test_single_and_vector_environment_play_the_same_episode():
    single = VisuomotorGymEnv(config=SMALL)
    vector = VisuomotorVectorEnv(num_envs=1, config=SMALL)
    seen, _ = single.reset(seed=9)
    seen_by_vector, _ = vector.reset(seed=9)
    assert np.array_equal(seen["pixels"], seen_by_vector["pixels"][0])
    for action in _actions(STEPS, 1):
        last, reward, terminated, truncated, info = single.step(action[0])
        now, vector_reward, _, _, vector_info = vector.step(action)
        assert reward == vector_reward[0]
    assert (terminated, truncated) == (False, True)
    assert np.array_equal(last["proprio"], vector_info["final_obs"][0]["proprio"])
    assert np.array_equal(last["pixels"], vector_info["final_obs"][0]["pixels"])
    assert info["stage"] == vector_info["final_info"]["stage"][0]
    following, _ = single.reset()
    assert np.array_equal(following["pixels"], now["pixels"][0])


def test_a_step_outside_an_episode_asks_for_a_reset():
    env = VisuomotorGymEnv(config=NOMINAL)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before step"):
        env.step(np.zeros(9, np.float32))
    env.reset(seed=0)
    for action in _actions(STEPS, 1):
        env.step(action[0])
    with pytest.raises(gymnasium.error.ResetNeeded, match="over"):
        env.step(np.zeros(9, np.float32))


def test_privileged_state_is_in_info_and_only_when_asked_for():
    for view in (VisuomotorGymEnv, VisuomotorVectorEnv):
        for privileged in (False, True):
            env = view(config=NOMINAL, privileged=privileged)
            seen, info = env.reset(seed=0)
            assert set(seen) == {"pixels", "proprio"}
            assert ("privileged" in info) == privileged
            if privileged:
                assert set(info["privileged"]) >= {"state", "features", "aux_targets"}


def test_render_is_the_picture_the_policy_sees():
    env = VisuomotorGymEnv(config=NOMINAL, render_mode="rgb_array")
    seen, _ = env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (12, 16, 3)
    assert np.array_equal(frame, seen["pixels"])
    assert VisuomotorVectorEnv(config=NOMINAL).render() is None


@pytest.mark.parametrize(
    ("action", "named"),
    [
        (np.zeros(7), r"\(1, 7\)"),
        (np.full(9, np.nan), "finite"),
        (np.zeros((1, 9)), r"\(1, 1, 9\)"),
    ],
)
def test_a_wrong_action_is_refused(action, named):
    env = VisuomotorGymEnv(config=NOMINAL)
    env.reset(seed=0)
    with pytest.raises(UserError, match=named):
        env.step(action)


def test_wrong_arguments_are_refused():
    with pytest.raises(UserError, match="did you mean lifting"):
        VisuomotorGymEnv("liftin")
    with pytest.raises(UserError, match="num_envs=0"):
        VisuomotorVectorEnv(num_envs=0)
    with pytest.raises(UserError, match="rgb_array"):
        VisuomotorGymEnv(render_mode="human")
    env = VisuomotorVectorEnv(num_envs=2, config=NOMINAL)
    with pytest.raises(UserError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False])})


class DmEnvTest(EnvironmentTestMixin, absltest.TestCase):
    """dm_env's own tests, through the end of an episode."""

    def make_object_under_test(self):
        return VisuomotorDmEnv(SMALL)

    def make_action_sequence(self):
        yield from _actions(2 * STEPS + 3, 1)[:, 0]


def test_dm_env_discount_is_one_where_the_time_runs_out():
    env = VisuomotorDmEnv(NOMINAL)
    steps = [env.reset()] + [env.step(action) for action in _actions(STEPS, 1)[:, 0]]
    assert [s.step_type for s in steps] == [
        dm_env.StepType.FIRST,
        dm_env.StepType.MID,
        dm_env.StepType.MID,
        dm_env.StepType.LAST,
    ]
    assert [s.discount for s in steps] == [None, 1.0, 1.0, 1.0]


def test_dm_env_seed_fixes_the_episodes_and_privilege_stays_out_of_the_observation():
    def states() -> list[np.ndarray]:
        env = VisuomotorDmEnv(replace(SMALL, seed=4), privileged=True)
        told = []
        for _ in range(3):
            assert set(env.reset().observation) == {"pixels", "proprio"}
            told.append(env.info["privileged"]["state"])
        return told

    first = states()
    assert all(np.array_equal(a, b) for a, b in zip(first, states(), strict=True))
    assert len({state.tobytes() for state in first}) == 3
    assert "privileged" not in VisuomotorDmEnv(SMALL).info
