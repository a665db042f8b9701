"""The tile caster gives MuJoCo Warp's own pixels, whatever is in the scene."""

from __future__ import annotations

from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.config import CameraConfig, Config, EnvConfig
from visuomotor.envs import make_env
from visuomotor.envs.camera import RayCaster
from visuomotor.envs.mujoco_cpu import MujocoCpuSimulation
from visuomotor.envs.tile_caster import supports

GEOMS = """
<geom type="plane" size="3 3 .1" rgba=".4 .5 .6 1"/>
<geom type="box" size=".1 .06 .04" pos="-.2 .1 .05" euler="10 20 30" material="m"/>
<geom type="sphere" size=".07" pos=".2 0 .1" material="m"/>
<geom type="capsule" size=".03 .1" pos="0 .25 .1" euler="70 20 0" rgba=".2 .8 .3 1"/>
<geom type="cylinder" size=".05 .06" pos="0 -.1 .08" euler="30 0 0" material="m"/>
<geom type="ellipsoid" size=".05 .08 .03" pos=".22 .2 .08" euler="0 40 10" rgba=".8 .3 .9 1"/>
<geom type="mesh" mesh="tetra" pos="-.05 0 .12" rgba=".9 .8 .1 1"/>
"""
SCENE = """
<mujoco>
  <visual><headlight active="0"/></visual>
  <asset>
    <texture name="t" type="2d" builtin="checker" rgb1="1 1 1" rgb2=".5 .5 .5" width="16"
      height="16"/>
    <material name="m" texture="t" rgba=".9 .4 .2 1" texrepeat="2 3"/>
    <mesh name="tetra" vertex="0 0 0 .15 0 0 0 .15 0 0 0 .2"/>
  </asset>
  <worldbody>
    <light pos="0 -1 2" dir="0 .4 -1" {light} ambient=".2 .2 .2" diffuse=".5 .5 .4"/>
    <light pos="1 1 2" dir="-.5 -.5 -1" type="directional" diffuse=".3 .3 .3"/>
    <camera name="front" pos="0 -.9 .6" xyaxes="1 0 0 0 .55 .83" {camera}/>
    {geoms}
    <body><freejoint/><geom type="box" size=".02 .02 .02" pos="0 0 .4" material="m"/></body>
  </worldbody>
</mujoco>
"""
SPOT = 'cutoff="40" exponent="10"'


def images(simulation: MujocoCpuSimulation, config: CameraConfig, **kwargs: bool) -> torch.Tensor:
    caster = RayCaster(simulation, config, num_threads=1, **kwargs)
    return caster.render(torch.arange(simulation.num_envs)).int()


def assert_same_pixels(first: torch.Tensor, second: torch.Tensor, share: float = 0.001) -> None:
    """But for rounding: a unit of 255; and for the few rays that graze an edge, `share` of all."""
    difference = (first - second).abs().amax(dim=1)
    assert float((difference > 1).float().mean()) < share
    assert first.float().std() > 10  # there is something to see


@pytest.mark.parametrize(
    ("light", "camera", "size"),
    [
        (SPOT, 'fovy="40"', (64, 64)),
        ('type="point" attenuation="1 .2 .1"', 'fovy="40"', (64, 64)),
        (SPOT, 'fovy="75"', (33, 50)),
        (SPOT, 'sensorsize=".01 .01" resolution="64 64" focal=".012 .012"', (64, 64)),
    ],
    ids=["spot", "point with attenuation", "odd image size", "intrinsics"],
)
def test_every_kind_of_geom_and_light(light: str, camera: str, size: tuple[int, int]) -> None:
    model = mujoco.MjModel.from_xml_string(SCENE.format(light=light, camera=camera, geoms=GEOMS))
    simulation = MujocoCpuSimulation(model, 2, substeps=1, fields=(), num_threads=1)
    config = CameraConfig(height=size[0], width=size[1])
    assert supports(model, (0, 1, 2))
    assert_same_pixels(images(simulation, config), images(simulation, config, tiles=False))


def test_randomized_worlds_of_a_task() -> None:
    config = Config(task="stacking", env=EnvConfig(num_threads=1))
    env = make_env(config, num_envs=12, seed=5)
    env.reset()
    for _ in range(20):
        env.step(torch.rand(12, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    everyone = torch.arange(12)
    pair = [
        RayCaster(env.sim, config.camera, env.sim.fields, num_threads=1, tiles=tiles)
        for tiles in (True, False)
    ]
    mine, theirs = (caster.render(everyone).int() for caster in pair)
    assert_same_pixels(mine, theirs)
    some = torch.tensor([2, 3, 11])
    assert torch.equal(pair[0].render(some).int(), mine[some])


DIRECTIONAL = 'dir="-.5 -.5 -1" type="directional"'


@pytest.mark.parametrize("kind", [SPOT, 'type="point" attenuation="1 .2 .1"'])
def test_shadows_of_every_kind_of_geom(kind: str) -> None:
    """Against MuJoCo Warp's own: where they are, and how dark."""
    xml = SCENE.format(light=kind, camera='fovy="40"', geoms=GEOMS)
    xml = xml.replace(DIRECTIONAL, DIRECTIONAL + ' castshadow="false"')
    model = mujoco.MjModel.from_xml_string(xml)
    simulation = MujocoCpuSimulation(model, 3, substeps=1, fields=(), num_threads=1)
    pair = [
        RayCaster(simulation, CameraConfig(), num_threads=1, tiles=tiles) for tiles in (True, False)
    ]
    share = torch.tensor([0.0, 0.6, 1.0])
    mine, theirs = (caster.render(torch.arange(3), share).int() for caster in pair)
    for shadows, tiles in ((mine, True), (theirs, False)):
        darker = (shadows[0] - shadows[1:]).amax(dim=1)
        assert float((shadows[0] - shadows[1:]).min()) >= 0  # it takes light away, and adds none
        assert all(float((some > 5).float().mean()) > 0.01 for some in darker)
        assert torch.equal(shadows[0], images(simulation, CameraConfig(), tiles=tiles)[0])
    assert_same_pixels(mine, theirs, share=0.002)


def test_shadows_in_randomized_worlds_of_a_task() -> None:
    config = Config(task="stacking", env=EnvConfig(num_threads=1))
    env = make_env(config, num_envs=12, seed=5)
    env.reset()
    everyone, share = torch.arange(12), torch.linspace(0.0, 1.0, 12)
    pair = [
        RayCaster(env.sim, config.camera, env.sim.fields, num_threads=1, tiles=tiles)
        for tiles in (True, False)
    ]
    plain = pair[0].render(everyone)
    mine, theirs = (caster.render(everyone, share).int() for caster in pair)
    assert_same_pixels(mine, theirs, share=0.002)
    assert torch.equal(mine[0], plain[0].int())
    assert float((plain[1:].int() - mine[1:]).amax(dim=1).gt(3).float().mean()) > 0.02
    some = torch.tensor([2, 3, 11])
    assert torch.equal(pair[0].render(some, share[some]).int(), mine[some])
    assert torch.equal(pair[0].render(everyone), plain)  # the next image is as if there were none
    # Several threads, each with some of the tiles.
    threads = RayCaster(env.sim, config.camera, env.sim.fields, num_threads=2)
    assert torch.equal(threads.render(everyone, share).int(), mine)


def test_a_scene_without_a_light_that_casts_shadows_has_none() -> None:
    xml = SCENE.format(light=SPOT, camera='fovy="40"', geoms=GEOMS).replace(
        "<light ", '<light castshadow="false" '
    )
    simulation = MujocoCpuSimulation(
        mujoco.MjModel.from_xml_string(xml), 1, substeps=1, fields=(), num_threads=1
    )
    for tiles in (True, False):
        caster = RayCaster(simulation, CameraConfig(), num_threads=1, tiles=tiles)
        one = torch.arange(1)
        assert torch.equal(caster.render(one, torch.ones(1)), caster.render(one))


def test_pictures_stay_right_as_worlds_move_and_begin_anew() -> None:
    """What cannot move is drawn once; a new episode brings another camera, other lights and
    colours. Compared with a caster that has drawn nothing before, and with MuJoCo Warp's own."""
    config = Config(task="lifting", env=EnvConfig(num_threads=1, episode_steps=7))
    env = make_env(config, num_envs=6, seed=2, stagger=True)
    env.reset()
    everyone = torch.arange(6)
    caster = RayCaster(env.sim, config.camera, env.sim.fields, num_threads=2)
    generator = torch.Generator().manual_seed(0)
    for step in range(9):
        env.step(torch.rand(6, 9, generator=generator) * 2 - 1)
        ids = everyone[torch.rand(6, generator=generator) < 0.7]
        if len(ids) == 0:
            continue
        fresh = RayCaster(env.sim, config.camera, env.sim.fields, num_threads=1)
        seen = caster.render(ids)
        assert torch.equal(seen, fresh.render(ids)), step
        if step % 4 == 0:
            theirs = RayCaster(
                env.sim, config.camera, env.sim.fields, num_threads=1, tiles=False
            ).render(ids)
            assert_same_pixels(seen.int(), theirs.int())


@pytest.mark.parametrize(
    "field", ["cam_fovy", "light_diffuse", "light_active", "mat_rgba", "mat_texid", "geom_size"]
)
def test_a_changed_field_is_seen_in_what_cannot_move(field: str) -> None:
    config = Config(task="lifting", env=EnvConfig(num_threads=1))
    env = make_env(config, num_envs=2, seed=0)
    env.reset()
    caster = RayCaster(env.sim, config.camera, env.sim.fields, num_threads=1)
    everyone = torch.arange(2)
    before = caster.render(everyone)
    values = env.sim.model_field(field)[1]
    if field == "mat_texid":
        role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
        table = env.sim.model.mat("table").id
        values[table, role] = 1 if int(values[table, role]) != 1 else 2
    elif field == "geom_size":
        table = env.sim.model.geom("table").id
        values[table] *= 0.3
    elif values.dtype == torch.bool:
        values[:] = False
    else:
        values *= 0.7
    after = caster.render(everyone)
    assert torch.equal(after[0], before[0])
    assert float((after[1].int() - before[1].int()).abs().amax(dim=0).gt(2).float().mean()) > 0.2


HEIGHT_FIELD = (
    '<geom type="hfield" hfield="h"/>',
    '<hfield name="h" nrow="4" ncol="4" size="1 1 1 1"/>',
)


def _with_height_field(group: int) -> mujoco.MjModel:
    geom, asset = HEIGHT_FIELD
    xml = SCENE.format(light=SPOT, camera="", geoms=geom.replace("/>", f' group="{group}"/>'))
    return mujoco.MjModel.from_xml_string(xml.replace("<asset>", f"<asset>{asset}"))


def test_what_it_does_not_know_is_left_to_mujoco_warp() -> None:
    model = _with_height_field(0)
    assert not supports(model, (0, 1, 2))
    assert supports(_with_height_field(3), (0, 1, 2))  # unseen
    simulation = MujocoCpuSimulation(model, 1, substeps=1, fields=(), num_threads=1)
    config = CameraConfig()
    assert torch.equal(images(simulation, config), images(simulation, config, tiles=False))


def test_scenes_of_many_geoms() -> None:
    many = "".join(
        f'<geom type="sphere" size=".02" pos="{0.06 * (i % 10) - 0.3} {0.06 * (i // 10)} .03"/>'
        for i in range(90)
    )
    model = mujoco.MjModel.from_xml_string(SCENE.format(light=SPOT, camera="", geoms=many))
    simulation = MujocoCpuSimulation(model, 1, substeps=1, fields=(), num_threads=1)
    assert_same_pixels(
        images(simulation, CameraConfig()), images(simulation, CameraConfig(), tiles=False)
    )


def test_shadows_are_mujoco_warps() -> None:
    config = Config(task="lifting", env=EnvConfig(num_threads=1))
    env = make_env(config, num_envs=2, seed=0)
    env.reset()
    lit = images(env.sim, config.camera)
    shaded = images(env.sim, replace(config.camera, shadows=True))
    assert np.asarray((lit - shaded).abs().amax()) > 8
