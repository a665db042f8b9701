"""What the camera shows, and when: period, delay, noise, worlds, threads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from visuomotor.config import Config, EnvConfig, LatencyConfig, RandomizationConfig
from visuomotor.envs import make_env
from visuomotor.envs.camera import RayCaster

ORANGE_RATIO = 1.6  # red over blue: the orange block's pixels, nothing else in the scene


def _orange(image):
    red, blue = image[0].float(), image[2].float()
    return (red > 90) & (red > ORANGE_RATIO * blue + 20)


@pytest.fixture(scope="module")
def env():
    config = Config(task="stacking", randomization=RandomizationConfig(strength=0.0))
    world = make_env(config, num_envs=5, seed=3)
    world.reset()
    return world


@pytest.fixture(scope="module")
def caster(env):
    return RayCaster(env.sim, env.config.camera, env.sim.fields, num_threads=2)


def test_the_block_is_seen_where_it_stands(env, caster):
    """Projects the block's centre by hand and looks for orange there."""
    images = caster.render(torch.arange(5))
    cam = env.sim.model.camera("front").id
    for world in range(5):
        rotation = env.sim.data("cam_xmat")[world, cam].view(3, 3)
        offset = env.task.prop_pos(0)[world] - env.sim.data("cam_xpos")[world, cam]
        x, y, z = (rotation.T @ offset).tolist()
        focal = 32.0 / torch.tan(torch.deg2rad(torch.tensor(env.config.camera.fovy) / 2)).item()
        column, row = 32 + focal * x / -z, 32 - focal * y / -z
        assert bool(_orange(images[world])[int(row), int(column)]), (world, row, column)


def test_every_block_is_visible_from_every_start(env, caster):
    assert all(int(_orange(image).sum()) >= 12 for image in caster.render(torch.arange(5)))


def test_a_subset_of_worlds_gives_the_same_pixels(caster):
    everyone = caster.render(torch.arange(5))
    some = torch.tensor([1, 4])
    assert torch.equal(caster.render(some), everyone[some])


def test_one_thread_and_two_give_the_same_pixels(env, caster):
    single = RayCaster(env.sim, env.config.camera, env.sim.fields, num_threads=1)
    assert torch.equal(single.render(torch.arange(5)), caster.render(torch.arange(5)))


def _sensor_env(period, delay):
    latency = LatencyConfig(
        camera_delay=(delay, delay),
        action_delay=(0, 0),
        action_drop=(0.0, 0.0),
        proprio_noise=(0.0, 0.0),
    )
    base = RandomizationConfig()
    randomization = replace(
        base,
        appearance=replace(base.appearance, enabled=False),
        dynamics=replace(base.dynamics, enabled=False),
        latency=latency,
    )
    config = Config(task="lifting", randomization=randomization, env=EnvConfig(episode_steps=9))
    return make_env(replace(config, camera=replace(config.camera, period=period)), num_envs=2)


@pytest.mark.parametrize(("period", "delay"), [(1, 0), (4, 0), (4, 2), (4, 4), (1, 2), (2, 5)])
def test_frames_arrive_at_the_period_and_after_the_delay(period, delay):
    """Every shown image equals one rendered `delay` steps before it appeared, and what the
    auxiliary heads are to tell is what was there then."""
    env = _sensor_env(period, delay)
    seen = env.reset()
    everyone = torch.arange(2)
    rendered = {0: env.camera.caster.render(everyone)}
    told = {0: env.task.aux_targets().clone()}
    shown = 0
    assert bool(seen.new_frame.all())
    for step in range(1, 9):
        seen = env.step(torch.full((2, 9), 0.8)).observation
        rendered[step] = env.camera.caster.render(everyone)
        told[step] = env.task.aux_targets().clone()
        assert not torch.equal(told[step], told[step - 1])
        exposure = step - delay
        arrives = exposure > 0 and exposure % period == 0
        shown = exposure if arrives else shown
        assert bool(seen.new_frame.all()) == arrives, step
        assert torch.equal(seen.pixels, rendered[shown]), step
        assert torch.equal(seen.aux_targets, told[shown]), step


def test_a_reset_world_shows_its_new_start_at_once():
    env = _sensor_env(4, 2)
    env.reset()
    for _ in range(9):
        seen = env.step(torch.zeros(2, 9)).observation
    assert bool(seen.new_frame.all())
    assert torch.equal(seen.pixels, env.camera.caster.render(torch.arange(2)))
    assert torch.equal(seen.aux_targets, env.task.aux_targets())


def test_observations_are_not_overwritten_by_later_steps():
    env = _sensor_env(1, 0)
    first = env.reset().pixels
    copy = first.clone()
    env.step(torch.ones(2, 9))
    assert torch.equal(first, copy)
