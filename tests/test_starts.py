"""benchmarks/starts.py sees what the policy's camera sees, and finds what is wrong with a start."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch

from benchmarks import starts
from visuomotor.config import Config
from visuomotor.envs import TASKS, VisuomotorEnv, make_env

SHAPE = (64, 64)  # pixels
DEEPEST = 1e-3  # m of any contact at a start


def _env(task: str, num_envs: int, *, render: bool = False) -> VisuomotorEnv:
    config = replace(Config(task=task), env=replace(Config().env, num_threads=1))
    env = make_env(config, num_envs=num_envs, seed=1, render=render)
    env.reset()
    return env


def _look(env: VisuomotorEnv, *moved: tuple[int, tuple[float, float, float]]) -> starts.Starts:
    """At the first world, with props moved there (m)."""
    state = env.sim.get_state(torch.arange(1))[0].numpy()
    for prop, place in moved:
        adr = env.task._prop_qpos_ids[prop]
        state[adr : adr + 7] = (*place, 1.0, 0.0, 0.0, 0.0)
    return starts.look(env.task, env.sim.world_model(0), state, SHAPE)


@pytest.mark.parametrize("task", TASKS)
def test_the_segmentation_image_is_that_of_the_policys_camera(task: str) -> None:
    """A prop's pixels are those that change in the camera's image when it is painted anew."""
    env = _env(task, 6, render=True)
    assert env.camera is not None
    everyone, model = torch.arange(6), env.sim.model
    pictures = []
    for world, state in enumerate(env.sim.get_state(everyone).numpy()):
        own = env.sim.world_model(world)
        data = mujoco.MjData(own)
        data.qpos[:] = state[: own.nq]
        mujoco.mj_forward(own, data)
        pictures.append(starts.segmentation(own, data, SHAPE))
    segmented = torch.from_numpy(np.stack(pictures))
    paint = env.sim.model_field("mat_rgba")
    for prop, body in zip(env.task.props, env.task.prop_body_ids, strict=True):
        names = [model.material(i).name for i in range(model.nmat)]
        materials = [i for i, name in enumerate(names) if name.split("/")[0] == prop]
        images = []
        for colour in (0.0, 1.0):
            paint[:, materials, :3] = colour
            images.append(env.camera.caster.render(everyone))
        changed = (images[0] != images[1]).any(dim=1)
        shown = segmented == body
        assert bool(shown.any()), prop  # in one world or another
        wrong = (changed != shown).flatten(1).sum(dim=1)
        assert int(wrong.max()) <= 1, prop  # a ray that grazes an edge


def test_a_start_is_sound_where_nothing_is_wrong_with_it() -> None:
    found = _look(_env("stacking", 1), (0, (-0.05, 0.0, 0.03)), (1, (0.05, 0.0, 0.03)))
    assert (found.deepest, found.touching, found.off, found.hidden) == (0.0, 0, 0, 0)
    assert min(found.fewest[name] for name in ("block_0", "block_1")) > 20


def test_what_is_wrong_with_a_start_is_found() -> None:
    env = _env("stacking", 1)
    low = float(env.task.rest_heights()[0, 0])  # m
    apart = (1, (0.05, 0.0, 0.03))
    sunk = _look(env, (0, (-0.05, 0.0, low - 0.002)), apart)
    assert sunk.deepest == pytest.approx(0.002, abs=1e-6)
    inside = _look(env, (0, (0.06, 0.0, 0.04)), apart)
    assert inside.touching > 0 and inside.deepest > 0.01
    beyond = _look(env, (0, (0.0, 0.55, 0.03)), apart)  # on the table, out of sight
    assert (beyond.off, beyond.hidden, beyond.fewest["block_0"]) == (0, 1, 0)
    for place in ((0.0, 0.65, 0.03), (0.0, 0.0, -0.2)):  # beside the table, and under it
        fallen = _look(env, (0, place), apart)
        assert (fallen.off, fallen.hidden) == (1, 1)


def test_a_prop_behind_another_one_is_hidden() -> None:
    env = _env("stacking", 1)
    eye = env.sim.data("cam_xpos")[0, env.sim.model.camera("front").id].numpy()
    near = np.array((0.0, 0.0, 0.2))
    behind = near + 0.06 * (near - eye) / np.linalg.norm(near - eye)
    env.sim.model_field("geom_size")[:, env.task._prop_geom_ids[0]] = 0.01
    found = _look(env, (0, tuple(behind)), (1, tuple(near)))
    assert (found.hidden, found.fewest["block_0"]) == (1, 0)
    assert found.fewest["block_1"] > 20


def test_pixels_of_absent_props_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    env = _env("order_fulfillment", 1)
    sound = _look(env)
    assert sound.absent == 0 and set(sound.fewest) >= {"green_box", "red_box"}
    monkeypatch.setattr(env.task, "props_present", lambda state: np.zeros(6, dtype=bool))
    assert _look(env).absent == sum(sound.fewest.values())


def test_a_world_that_mujoco_set_back_did_not_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    assert starts.stays_finite("lifting", steps=20, worlds=2)

    def breaking(*args: object, **kwargs: object) -> VisuomotorEnv:
        env = make_env(*args, **kwargs)
        step = env.sim.step

        def broken() -> None:
            if int(env.elapsed[0]) == 10:
                env.sim.data("qvel")[1, 0] = torch.nan
            step()

        monkeypatch.setattr(env.sim, "step", broken)
        return env

    monkeypatch.setattr(starts, "make_env", breaking)
    assert not starts.stays_finite("lifting", steps=20, worlds=2)


def _all_sound(found: starts.Starts) -> bool:
    wrong = (found.touching, found.off, found.hidden, found.absent)
    return found.deepest < DEEPEST and not any(wrong)


@pytest.mark.parametrize("task", ["clearing_blocks", "clearing_box"])
def test_some_starts_are_sound_and_some_noise_breaks_nothing(task: str) -> None:
    """The other tasks' tests look at theirs."""
    assert _all_sound(starts.starts(task, count=6, worlds=6))
    assert starts.stays_finite(task, steps=20, worlds=2)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_1000_starts_are_sound(task: str) -> None:
    found = starts.starts(task)
    assert _all_sound(found), found


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_1000_steps_of_noise_break_nothing(task: str) -> None:
    assert starts.stays_finite(task)
