"""Demonstrations put back into the simulator: what networks see there is what was recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import visuomotor.replay
from visuomotor.config import (
    CameraConfig,
    CloningConfig,
    Config,
    EnvConfig,
    LatencyConfig,
    RandomizationConfig,
)
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import MIN_STD, Demonstration, Demonstrations, ResetStates
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.errors import UserError
from visuomotor.replay import EARLIER_ACTIONS, DemonstrationReplay, ScatteredFrames

PERIOD = 4  # control steps between frames
CONFIG = Config(
    task="lifting",
    turned_copies=0,
    camera=CameraConfig(height=24, width=32, period=PERIOD),
    env=EnvConfig(num_threads=1),
)
LENGTHS = (22, 30)
AT_ONCE = 48  # states that are put back side by side


def _randomized(*, appearance: bool = False, **latency: tuple[float, float]) -> Config:
    """Randomization that is off but for the appearance or for these latency factors."""
    default = RandomizationConfig()
    quiet = LatencyConfig(
        camera_delay=(0, 0), action_delay=(0, 0), action_drop=(0.0, 0.0), proprio_noise=(0.0, 0.0)
    )
    randomization = replace(
        default,
        appearance=replace(default.appearance, enabled=appearance),
        dynamics=replace(default.dynamics, enabled=False),
        latency=replace(quiet, **latency),
    )
    return replace(CONFIG, randomization=randomization)


def _part(demo: Demonstration, start: int, length: int) -> Demonstration:
    columns = {
        name: values[start : start + length]
        for name, values in vars(demo).items()
        if isinstance(values, np.ndarray)
    }
    return replace(demo, **columns)


@pytest.fixture(scope="module")
def recorded() -> Demonstrations:
    """Two whole episodes."""
    demos, _ = collect(CONFIG, 2, seed=7)
    return demos


@pytest.fixture(scope="module")
def replay(recorded: Demonstrations) -> DemonstrationReplay:
    """Made of so few states at once that one part has the end of an episode and a beginning."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(visuomotor.replay, "STATES_AT_ONCE", AT_ONCE)
        return DemonstrationReplay(CONFIG, recorded)


@pytest.fixture(scope="module")
def short(recorded: Demonstrations) -> DemonstrationReplay:
    """Parts of them in which the arm moves."""
    demos = [_part(demo, 20, length) for demo, length in zip(recorded.demos, LENGTHS, strict=True)]
    return DemonstrationReplay(CONFIG, replace(recorded, demos=demos))


@pytest.fixture(scope="module")
def nominal_env() -> VisuomotorEnv:
    quiet = replace(CONFIG, randomization=RandomizationConfig(strength=0.0))
    return make_env(quiet, num_envs=1, seed=0)


# --- states put back ----------------------------------------------------------------------------


def test_states_put_back_show_what_was_recorded(
    recorded: Demonstrations, replay: DemonstrationReplay
) -> None:
    assert len(replay.all_state) > 2 * AT_ONCE
    assert len(recorded.demos[0].states) % AT_ONCE > 0
    for index, demo in enumerate(recorded.demos):
        assert demo.features is not None and demo.proprio is not None
        assert demo.stages is not None and demo.actions is not None
        np.testing.assert_allclose(replay.features[index].numpy(), demo.features, atol=1e-6)
        np.testing.assert_allclose(replay.proprio[index].numpy(), demo.proprio, atol=1e-6)
        assert replay.stage[index].tolist() == demo.stages.tolist()
        assert np.array_equal(replay.actions[index].numpy(), demo.actions)
    assert replay.has_actions
    assert max(int(stage.max()) for stage in replay.stage) == 2  # lifted


def test_critic_states_and_targets_are_those_of_the_environment(
    recorded: Demonstrations, replay: DemonstrationReplay, nominal_env: VisuomotorEnv
) -> None:
    only = torch.tensor([0])
    for index, demo in enumerate(recorded.demos):
        for step in (0, 1, 40, 63, 64, len(demo.states) - 1):
            nominal_env.sim.reset(only, torch.from_numpy(demo.states[step : step + 1]))
            seen = nominal_env.current()
            ours = replay.state[index][step]
            assert ours.shape == seen.state[0].shape
            torch.testing.assert_close(ours[:-EARLIER_ACTIONS], seen.state[0, :-EARLIER_ACTIONS])
            torch.testing.assert_close(replay.aux_targets[index][step], seen.aux_targets[0])


def test_a_state_ends_with_the_action_before_it(
    recorded: Demonstrations, replay: DemonstrationReplay
) -> None:
    for index, demo in enumerate(recorded.demos):
        earlier = replay.state[index][:, -EARLIER_ACTIONS:]
        assert demo.actions is not None
        assert not earlier[0].any()
        for half in earlier[1:].split(9, dim=1):
            assert np.array_equal(half.numpy(), demo.actions[:-1])


def test_all_steps_stand_in_one_table(replay: DemonstrationReplay) -> None:
    assert torch.equal(replay.all_state, torch.cat(replay.state))
    assert torch.equal(replay.all_features, torch.cat(replay.features))
    assert torch.equal(replay.all_actions, torch.cat(replay.actions))
    mean, std = replay.statistics(replay.features)
    torch.testing.assert_close(mean, replay.all_features.mean(dim=0))
    torch.testing.assert_close(std, replay.all_features.std(dim=0).clamp(min=MIN_STD))


def test_the_randomization_of_a_run_does_not_reach_the_replay(
    recorded: Demonstrations, short: DemonstrationReplay
) -> None:
    wild = replace(CONFIG, randomization=RandomizationConfig(strength=1.0))
    again = DemonstrationReplay(wild, short.demos)
    assert torch.equal(again.all_state, short.all_state)


def test_a_file_without_actions_serves_all_but_cloning(recorded: Demonstrations) -> None:
    first = _part(recorded.demos[0], 0, 5)
    second = replace(_part(recorded.demos[1], 0, 5), actions=None)
    replay = DemonstrationReplay(CONFIG, replace(recorded, demos=[first, second]))
    assert not replay.has_actions
    assert replay.actions[0].any()
    assert not replay.actions[1].any() and replay.actions[1].shape == (5, 9)
    assert not replay.state[1][:, -EARLIER_ACTIONS:].any()
    assert replay.features[1].shape == (5, 15)


@pytest.mark.parametrize("width", [1, 30, 44])
def test_states_of_another_scene_are_refused(recorded: Demonstrations, width: int) -> None:
    good = _part(recorded.demos[0], 0, 5)
    other = replace(good, states=np.zeros((5, width)))
    expected = good.states.shape[1]
    with pytest.raises(UserError) as caught:
        DemonstrationReplay(CONFIG, replace(recorded, demos=[good, other]))
    message = str(caught.value)
    assert f"demonstration 1: states have {width} numbers" in message
    assert f"'lifting' has {expected}" in message
    assert "\n" not in message


def test_demonstrations_of_another_task_are_refused(recorded: Demonstrations) -> None:
    with pytest.raises(UserError, match="the scene of task 'stacking' has"):
        DemonstrationReplay(replace(CONFIG, task="stacking"), recorded)


def test_states_that_the_simulator_would_replace_are_refused(recorded: Demonstrations) -> None:
    good = _part(recorded.demos[0], 0, 5)
    states = good.states.copy()
    states[3, -1] = -1e11
    absurd = replace(good, states=states)
    with pytest.raises(UserError, match=r"demonstration 1: states reach 1e\+11; expected"):
        DemonstrationReplay(CONFIG, replace(recorded, demos=[good, absurd]))


# --- batches of states --------------------------------------------------------------------------


def _row_of(table: Tensor, rows: Tensor) -> list[int]:
    """Which row of the table each row is."""
    same = (table.unsqueeze(0) == rows.unsqueeze(1)).all(dim=2)
    assert same.any(dim=1).all()
    return same.int().argmax(dim=1).tolist()


@pytest.mark.parametrize("sees_velocities", [True, False])
def test_a_batch_of_states_has_earlier_actions_of_other_steps_and_velocities_if_asked(
    sees_velocities: bool, recorded: Demonstrations
) -> None:
    cloning = CloningConfig(sees_velocities=sees_velocities)
    replay = DemonstrationReplay(replace(CONFIG, cloning=cloning), recorded)
    # Lifting: 24 numbers of proprioception, 3 finger velocities, which stay, the pinch pose (3 and
    # 6), the block's position (3) and orientation (6), its velocities.
    told = [] if sees_velocities else [*range(12, 18), *range(45, 51)]
    told += range(replay.all_state.shape[1] - EARLIER_ACTIONS, replay.all_state.shape[1])
    shown = sorted(set(range(replay.all_state.shape[1])) - set(told))
    batch = replay.state_batch(200, 0.0, torch.Generator().manual_seed(0))
    assert batch.inputs.state is not None
    assert batch.inputs.state.shape == (1, 200, replay.all_state.shape[1])
    state, action = batch.inputs.state[0], batch.action[0]
    steps = _row_of(replay.all_state[:, shown], state[:, shown])
    assert torch.equal(replay.all_actions[steps], action)
    others = _row_of(replay.all_state[:, told], state[:, told])
    same = sum(step == other for step, other in zip(steps, others, strict=True))
    assert same < 10  # by chance one in as many as there are steps
    assert len(set(steps)) > 80 and len(set(others)) > 80


@pytest.mark.parametrize("task", ["pouring", "order_fulfillment"])
def test_whatever_tells_of_a_velocity_but_the_fingers_is_of_motion(task: str) -> None:
    config = Config(
        task=task,
        turned_copies=0,
        env=EnvConfig(num_threads=1),
        cloning=CloningConfig(sees_velocities=False),
    )
    env = make_env(config, num_envs=12, seed=0, render=False)  # with one toy to four
    env.reset()
    states = env.sim.get_state(torch.arange(12)).numpy()
    one, none = np.zeros(1, dtype=np.float32), np.zeros(1, dtype=bool)
    demos = [
        Demonstration(state[None], None, one, none, None, None, None, seed=i)
        for i, state in enumerate(states)
    ]
    replay = DemonstrationReplay(config, Demonstrations(task, 0.05, demos))
    still = env.task.state().clone()
    velocities = torch.randn(12, env.sim.model.nv).double()
    velocities[:, env.jaco.dof_ids[6:]] = env.sim.data("qvel")[:, env.jaco.dof_ids[6:]]
    env.sim.data("qvel").copy_(velocities)
    moved = (env.task.state() != still).any(dim=0).nonzero().squeeze(1).tolist()
    width = still.shape[1]
    assert len(moved) >= 18  # joints, two props with six each
    assert replay._of_motion.tolist() == [*moved, *range(width, width + EARLIER_ACTIONS)]


def test_noise_on_states_is_in_deviations_of_the_state(replay: DemonstrationReplay) -> None:
    clean, noisy = (
        replay.state_batch(4000, noise, torch.Generator().manual_seed(1)) for noise in (0.0, 0.2)
    )
    assert torch.equal(clean.action, noisy.action)
    assert clean.inputs.state is not None and noisy.inputs.state is not None
    _, std = replay.statistics(replay.state)
    deviation = (noisy.inputs.state - clean.inputs.state)[0] / std
    torch.testing.assert_close(deviation.std(dim=0), torch.full_like(std, 0.2), atol=0.02, rtol=0.0)


def test_a_batch_of_states_follows_its_generator(replay: DemonstrationReplay) -> None:
    first, again, other = (
        replay.state_batch(20, 0.1, torch.Generator().manual_seed(seed)).inputs.state
        for seed in (3, 3, 4)
    )
    assert first is not None and again is not None and other is not None
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- images -------------------------------------------------------------------------------------


def _scattered(
    replay: DemonstrationReplay, count: int, seed: int, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    starts = ResetStates(replay.demos, stages=replay.stage)
    frames = ScatteredFrames(_randomized(appearance=True), starts, seed)
    return frames.draw(count, strength=strength)


def test_scattered_frames_are_as_many_as_asked_and_all_different(
    short: DemonstrationReplay,
) -> None:
    frames, targets = _scattered(short, 70, seed=0)
    assert frames.shape == (70, 3, 24, 32)
    assert frames.dtype == torch.uint8
    assert targets.shape == (70, 6)
    assert len({frame.numpy().tobytes() for frame in frames}) == 70
    assert len({tuple(target.tolist()) for target in targets}) > 35


def test_scattered_frames_show_start_states_and_demonstration_states(
    short: DemonstrationReplay,
) -> None:
    _, targets = _scattered(short, 128, seed=1)
    recorded = torch.cat(short.aux_targets)
    nearest = torch.cdist(targets, recorded).min(dim=1).values
    share = float((nearest < 1e-3).float().mean())
    assert 0.3 < share < 0.7


def test_scattered_frames_are_as_strange_as_the_strength_says(short: DemonstrationReplay) -> None:
    nominal, half, full = (_scattered(short, 32, 3, strength) for strength in (0.0, 0.5, 1.0))
    for _, targets in (half, full):
        assert torch.equal(targets, nominal[1])  # the same states
    near, far = ((seen[0].float() - nominal[0].float()).abs().mean() for seen in (half, full))
    assert 2.0 < float(near) < 0.8 * float(far)  # grey levels


def test_scattered_frames_follow_their_seed(short: DemonstrationReplay) -> None:
    first, again, other = (_scattered(short, 8, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


def test_most_states_that_were_met_are_seen_rearranged(
    short: DemonstrationReplay, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = ResetStates(short.demos, stages=short.stage)
    scattered = ScatteredFrames(_randomized(appearance=True), starts, 0)
    met = torch.from_numpy(short.demos.demos[0].states[:1])
    adr = scattered.env.task._prop_qpos_ids[0]

    def moved(state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        other = state.copy()
        other[adr] += 0.05
        return other

    _, targets = scattered.draw(256, met, strength=1.0)
    assert torch.allclose(targets, targets[:1], atol=1e-5)  # a block has no other place
    monkeypatch.setattr(scattered.env.task, "rearranged", moved)
    _, others = scattered.draw(256, met, strength=1.0)
    share = float(((others[:, 0] - targets[0, 0]).abs() > 0.04).float().mean())
    assert share == pytest.approx(visuomotor.replay.REARRANGED, abs=0.1)
