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
    Config,
    EnvConfig,
    LatencyConfig,
    RandomizationConfig,
)
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import MIN_STD, Demonstration, Demonstrations
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.errors import UserError
from visuomotor.replay import EARLIER_ACTIONS, DemonstrationReplay, PixelReplay

PERIOD = 4  # control steps between frames
CONFIG = Config(
    task="lifting",
    camera=CameraConfig(height=24, width=32, period=PERIOD),
    env=EnvConfig(num_threads=1),
)
LENGTHS = (22, 30)


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
    """Two whole episodes, longer than the replay has worlds."""
    demos, _ = collect(CONFIG, 2, seed=7)
    return demos


@pytest.fixture(scope="module")
def replay(recorded: Demonstrations) -> DemonstrationReplay:
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
    assert max(len(demo.states) for demo in recorded.demos) > visuomotor.replay.REPLAY_WORLDS
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


def test_a_batch_of_states_has_earlier_actions_of_other_steps(replay: DemonstrationReplay) -> None:
    batch = replay.state_batch(200, 0.0, torch.Generator().manual_seed(0))
    assert batch.inputs.state is not None
    assert batch.inputs.state.shape == (1, 200, replay.all_state.shape[1])
    state, action = batch.inputs.state[0], batch.action[0]
    steps = _row_of(replay.all_state[:, :-EARLIER_ACTIONS], state[:, :-EARLIER_ACTIONS])
    assert torch.equal(replay.all_actions[steps], action)
    others = _row_of(replay.all_state[:, -EARLIER_ACTIONS:], state[:, -EARLIER_ACTIONS:])
    same = sum(step == other for step, other in zip(steps, others, strict=True))
    assert same < 10  # by chance one in as many as there are steps
    assert len(set(steps)) > 80 and len(set(others)) > 80


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


def _image(env: VisuomotorEnv, state: np.ndarray) -> Tensor:
    """(3, H, W) of a state in the nominal world."""
    assert env.camera is not None
    only = torch.tensor([0])
    env.sim.reset(only, torch.from_numpy(state[None]))
    return env.camera.caster.render(only)[0]


def _stream(pixels: PixelReplay, pair: int) -> Tensor:
    """(T, 3, H, W): what the actor would see at each step of one rendering."""
    return pixels.frames[pixels._frame_index[pair]]


@pytest.mark.parametrize("delay", [0, 2])
def test_frames_come_at_the_cameras_period_and_arrive_after_the_delay(
    short: DemonstrationReplay, nominal_env: VisuomotorEnv, delay: int
) -> None:
    pixels = PixelReplay(_randomized(camera_delay=(delay, delay)), short, variations=3, seed=5)
    demos = short.demos.demos
    first_arrivals, moved = set(), 0
    assert len(pixels._frame_index) == 6
    for pair, index in enumerate(pixels._frame_index):
        states = demos[pair % 2].states
        assert index.shape == (LENGTHS[pair % 2],)
        arrivals = (index[1:] != index[:-1]).nonzero().squeeze(1) + 1
        assert (arrivals.diff() == PERIOD).all()
        assert len(arrivals) >= (len(states) - delay) // PERIOD - 1
        first_arrivals.add(int(arrivals[0]))
        # The episode's first frame is there at once, the others show the arm as it was.
        assert torch.equal(pixels.frames[index[0]], _image(nominal_env, states[0]))
        for t in arrivals.tolist():
            exposed = _image(nominal_env, states[t - delay])
            assert torch.equal(pixels.frames[index[t]], exposed)
            moved += not torch.equal(exposed, _image(nominal_env, states[t - delay - 1]))
    assert moved > 20  # a frame of the step before would have been another
    assert first_arrivals <= set(range(1 + delay, PERIOD + 1 + delay))
    assert len(first_arrivals) > 1  # each rendering has a phase of its own


def test_every_exposure_is_kept_once(short: DemonstrationReplay) -> None:
    pixels = PixelReplay(_randomized(), short, variations=2, seed=0)
    used = torch.unique(torch.cat(pixels._frame_index))
    assert used.tolist() == list(range(len(pixels.frames)))
    assert pixels.frames.shape[1:] == (3, 24, 32)
    assert pixels.frames.dtype == torch.uint8


def test_variations_of_a_demonstration_look_different(short: DemonstrationReplay) -> None:
    wild = PixelReplay(_randomized(appearance=True), short, variations=3, seed=0)
    for demo in range(2):
        first = [_stream(wild, demo + 2 * variation)[0].float() for variation in range(3)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert float((first[a] - first[b]).abs().mean()) > 3.0  # of 255
    quiet = PixelReplay(_randomized(), short, variations=2, seed=0)
    assert torch.equal(_stream(quiet, 0)[0], _stream(quiet, 2)[0])


def test_images_are_those_of_the_seed(short: DemonstrationReplay) -> None:
    config = _randomized(appearance=True, camera_delay=(0, 2))
    first, again, other = (PixelReplay(config, short, variations=1, seed=s) for s in (3, 3, 4))
    assert torch.equal(first.frames, again.frames)
    for a, b in zip(first._frame_index, again._frame_index, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(_stream(first, 0), _stream(other, 0))


def test_a_rendering_does_not_depend_on_how_many_worlds_share_the_work(
    short: DemonstrationReplay, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = _randomized(appearance=True, camera_delay=(0, 2), proprio_noise=(0.0, 0.01))
    appearance = replace(config.randomization.appearance, pixel_noise=(0.0, 0.0))
    config = replace(config, randomization=replace(config.randomization, appearance=appearance))
    together = PixelReplay(config, short, variations=2, seed=1)
    monkeypatch.setattr(visuomotor.replay, "REPLAY_WORLDS", 3)
    apart = PixelReplay(config, short, variations=2, seed=1)
    for pair in range(4):
        assert torch.equal(_stream(together, pair), _stream(apart, pair))
    # Nor does the joint noise that goes with it.
    joints = [
        pixels.batch(20, 8, torch.Generator().manual_seed(0)).inputs.proprio
        for pixels in (together, apart)
    ]
    assert joints[0] is not None and joints[1] is not None
    assert torch.equal(joints[0], joints[1])


# --- windows ------------------------------------------------------------------------------------


def _find(short: DemonstrationReplay, action: Tensor) -> tuple[int, int]:
    """(demonstration, first step) of a window by its actions (T, 9)."""
    found = [
        (demo, start)
        for demo, actions in enumerate(short.actions)
        for start in range(len(actions) - len(action) + 1)
        if torch.equal(actions[start : start + len(action)], action)
    ]
    assert len(found) == 1
    return found[0]


def test_a_window_is_a_stretch_of_one_rendering(short: DemonstrationReplay) -> None:
    variations, size, steps = 2, 60, 10
    config = _randomized(appearance=True, camera_delay=(2, 2))
    pixels = PixelReplay(config, short, variations=variations, seed=2)
    batch = pixels.batch(size, steps, torch.Generator().manual_seed(0))
    inputs = batch.inputs
    assert inputs.frames is not None and inputs.frame_index is not None
    assert inputs.proprio is not None and batch.aux_targets is not None
    assert inputs.frame_index.shape == (steps, size)
    assert inputs.proprio.shape == (steps, size, 24)
    assert batch.action.shape == (steps, size, 9)
    assert batch.aux_targets.shape == (steps, size, 6)
    # Each frame once, and none that no window shows.
    assert torch.unique(inputs.frame_index).tolist() == list(range(len(inputs.frames)))
    assert inputs.frames.dtype == torch.uint8
    starts: list[list[int]] = [[], []]
    renderings = set()
    for b in range(size):
        demo, start = _find(short, batch.action[:, b])
        starts[demo].append(start)
        window = slice(start, start + steps)
        assert torch.equal(inputs.proprio[:, b], short.proprio[demo][window])
        assert torch.equal(batch.aux_targets[:, b], short.aux_targets[demo][window])
        seen = inputs.frames[inputs.frame_index[:, b]]
        fits = [
            variation
            for variation in range(variations)
            if torch.equal(seen, _stream(pixels, demo + 2 * variation)[window])
        ]
        assert len(fits) == 1
        renderings.add((demo, fits[0]))
    assert len(renderings) == 4
    # Every second window begins where an episode does, the others anywhere.
    from_start = sum(start == 0 for demo in starts for start in demo)
    assert 20 <= from_start <= 45
    assert len(set(starts[0])) > 5 and len(set(starts[1])) > 5


def test_windows_reach_the_end_and_no_further_than_the_shortest(
    short: DemonstrationReplay,
) -> None:
    pixels = PixelReplay(_randomized(), short, variations=1, seed=0)
    generator = torch.Generator().manual_seed(0)
    batch = pixels.batch(200, 1000, generator)
    assert len(batch.action) == min(LENGTHS)
    found = [_find(short, batch.action[:, b]) for b in range(200)]
    assert {start for demo, start in found if demo == 0} == {0}
    last = LENGTHS[1] - LENGTHS[0]
    assert {start for demo, start in found if demo == 1} == set(range(last + 1))


def test_windows_have_the_joint_noise_of_their_rendering(short: DemonstrationReplay) -> None:
    pixels = PixelReplay(_randomized(proprio_noise=(0.01, 0.01)), short, variations=1, seed=0)
    batch = pixels.batch(40, 20, torch.Generator().manual_seed(0))
    assert batch.inputs.proprio is not None
    noise = []
    for b in range(40):
        demo, start = _find(short, batch.action[:, b])
        noise.append(batch.inputs.proprio[:, b] - short.proprio[demo][start : start + 20])
    spread = torch.stack(noise)
    assert float(spread.std()) == pytest.approx(0.01, rel=0.05)
    assert abs(float(spread.mean())) < 0.001


def test_windows_follow_their_generator(short: DemonstrationReplay) -> None:
    config = _randomized(proprio_noise=(0.01, 0.01))
    pixels = PixelReplay(config, short, variations=1, seed=0)
    first, again, other = (
        pixels.batch(6, 8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first.action, again.action)
    assert first.inputs.proprio is not None and again.inputs.proprio is not None
    assert torch.equal(first.inputs.proprio, again.inputs.proprio)
    assert not torch.equal(first.action, other.action)
