"""What each randomized factor changes, what it leaves alone, and that nothing accumulates."""

from __future__ import annotations

import colorsys
from dataclasses import fields, replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from visuomotor.config import (
    AppearanceConfig,
    Config,
    DynamicsConfig,
    LatencyConfig,
    RandomizationConfig,
)
from visuomotor.envs import make_env, make_task, scene
from visuomotor.envs.camera import RayCaster
from visuomotor.envs.mujoco_cpu import MujocoCpuSimulation
from visuomotor.envs.tasks.task import WORKSPACE
from visuomotor.randomization import CLUTTER_ANGLES, Randomizer, strength_at
from visuomotor.vision_import import functional

DRAWS = 4000
AXES = ("x", "y", "z")
CHANNELS = ("r", "g", "b")
# Constants that MuJoCo derives from masses, inertias, sizes and armatures.
DERIVED = ("body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0", "actuator_acc0")
GROUPS = {
    "appearance": (
        *("camera_pos", "camera_rotation", "camera_fovy", "num_lights", "light_pos"),
        *("light_direction", "light_colour", "colour", "texture", "texture_repeat"),
        *("brightness", "contrast", "hue", "pixel_noise", "shade", "shade_pattern", "blur"),
        *("cast_shadow", "clutter", "clutter_angle", "clutter_distance", "clutter_size"),
    ),
    "dynamics": (
        *("prop_friction", "prop_mass", "prop_inertia", "prop_size", "joint_damping"),
        *("joint_armature", "joint_friction", "actuator_gain", "gravity_tilt"),
    ),
    "latency": ("camera_delay", "action_delay", "action_drop", "proprio_noise"),
}
# Factors of camera, actuators and joint sensors with their neutral values; no model field.
SENSOR = {
    **{"brightness": 1.0, "contrast": 1.0, "pixel_noise": 0.0, "shade": 0.0, "shade_pattern": 0.0},
    **{"blur": 0.0, "cast_shadow": 0.0},
    **{"camera_delay": 0, "action_delay": 0, "action_drop": 0.0, "proprio_noise": 0.0},
}
LOG_UNIFORM = (
    *("texture_repeat", "prop_mass", "prop_inertia", "joint_damping", "joint_armature"),
    *("joint_friction", "actuator_gain", "clutter_size"),
)
INTEGER = ("num_lights", "texture", "camera_delay", "action_delay", "clutter")
MOST = 4  # things about the workspace
TABLE_BOTTOM = scene.TABLE_CENTRE[2] - scene.TABLE_HALF_SIZE[2]


# Shade, blur and clutter are off by default.
CONFIG = RandomizationConfig(
    appearance=AppearanceConfig(shade=(0.0, 0.8), blur=(0.0, 0.6), clutter=(0, MOST))
)


def _spec():
    """The stacking scene, uncompiled, with a toy of two geoms and two materials, and its task."""
    config, task = Config(), make_task("stacking")
    spec = scene.build_spec(config.env, config.camera)
    task.add_props(spec)
    body = scene.Part(size=(0.03, 0.02, 0.012), mass=0.04, rgba=(0.2, 0.4, 0.6, 1.0))
    wheel = scene.Part(
        size=(0.01, 0.004),
        mass=0.02,
        rgba=(0.3, 0.3, 0.3, 1.0),
        pos=(0.02, 0.025, -0.002),
        quat=(0.8, 0.6, 0.0, 0.0),
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        material="wheel",
    )
    scene.add_prop(spec, "toy", 0.012, [body, wheel])
    spec.body("toy").pos = [0.3, 0.25, 0.012]  # out of the blocks' way
    scene.add_clutter(spec, task.workspace)
    return spec, task


def _geoms(model, prop: str) -> list[int]:
    body = model.body(prop)
    return list(range(int(body.geomadr[0]), int(body.geomadr[0] + body.geomnum[0])))


def _clutter(model) -> list[int]:
    return [model.geom(f"clutter_{i}").id for i in range(MOST)]


@pytest.fixture(scope="module")
def model() -> mujoco.MjModel:
    return _spec()[0].compile()


@pytest.fixture(scope="module")
def randomizer(model) -> Randomizer:
    return Randomizer(CONFIG, model)


@pytest.fixture
def build(model, randomizer):
    """build(num_envs) -> a simulation at the defaults, derived constants readable per world."""

    def simulation(num_envs: int = 3) -> MujocoCpuSimulation:
        declared = randomizer.fields + DERIVED
        return MujocoCpuSimulation(model, num_envs, substeps=5, fields=declared, num_threads=1)

    return simulation


@pytest.fixture(scope="module")
def drawn(randomizer) -> np.ndarray:
    """(DRAWS, K) at strength 1."""
    return _draws(randomizer, 1.0)


def _draws(randomizer: Randomizer, strength: float, count: int = DRAWS) -> np.ndarray:
    return np.stack(
        [randomizer.draw(np.random.default_rng([3, i]), strength) for i in range(count)]
    )


def _default(model, name: str) -> np.ndarray:
    """The field of the model itself, a copy."""
    owner = model
    for part in name.split("."):
        owner = getattr(owner, part)
    return np.array(owner, copy=True)


def _snapshot(sim) -> dict[str, torch.Tensor]:
    return {name: sim.model_field(name).clone() for name in sim.fields}


def _assert_same(a, b, rows=slice(None)):
    for name in a:
        assert torch.equal(a[name][rows], b[name][rows]), name


def _names(randomizer: Randomizer, *groups: str) -> list[str]:
    return [name for name in randomizer.factor_names if name.split("/")[0] in groups]


def _column(randomizer: Randomizer, name: str) -> int:
    return randomizer.factor_names.index(name)


# --- what a factor does, written a second time from its description -------------------------------


def _turn(vector: np.ndarray, axis: int, degrees: float) -> np.ndarray:
    """A vector about a world axis, by MuJoCo's own quaternions."""
    quat, out = np.empty(4), np.empty(3)
    mujoco.mju_axisAngle2Quat(quat, np.eye(3)[axis], np.deg2rad(degrees))
    mujoco.mju_rotVecQuat(out, np.asarray(vector, dtype=float), quat)
    return out


def _materials(model, surface: str) -> list[int]:
    name = "jaco_arm" if surface == "arm" else surface
    return [i for i in range(model.nmat) if model.mat(i).name.split("/")[0] == name]


def _joint_dof(model, name: str) -> int:
    """The degree of freedom of `joint_2` or `finger_1`."""
    joints = [model.joint(j) for j in range(model.njnt)]
    (dof,) = [int(j.dofadr[0]) for j in joints if j.name.rsplit("/", 1)[-1] == name]
    return dof


def _joint_actuator(model, name: str) -> int:
    """The actuator that moves `joint_2` or `finger_1`."""
    dof = _joint_dof(model, name)
    (found,) = [
        a for a in range(model.nu) if model.jnt_dofadr[int(model.actuator_trnid[a, 0])] == dof
    ]
    return found


def _expected(model, name: str, value: float) -> dict[str, np.ndarray]:
    """The fields that a factor changes, with all of their values, for one world."""
    group, *path = name.split("/")
    part = path[0] if path else ""
    axis = -1
    if path and path[-1] in (*AXES, *CHANNELS):
        axis = (AXES if path[-1] in AXES else CHANNELS).index(path[-1])
    changed: dict[str, np.ndarray] = {}

    def field(key: str) -> np.ndarray:
        return changed.setdefault(key, _default(model, key))

    if group == "camera_pos":
        field("cam_pos")[:, axis] += value
    elif group == "camera_rotation":
        turn = np.empty(4)
        mujoco.mju_axisAngle2Quat(turn, np.eye(3)[axis], np.deg2rad(value))
        for quat in field("cam_quat"):
            mujoco.mju_mulQuat(quat, quat.copy(), turn)  # on the right: the camera's own axes
    elif group == "camera_fovy":
        field("cam_fovy")[:] += value
    elif group == "num_lights":
        field("light_active")[int(value) :] = False
    elif group == "light_pos":
        field("light_pos")[model.light(part).id, axis] += value
    elif group == "light_direction":
        light = field("light_dir")[model.light(part).id]
        light[:] = _turn(light, axis, value)
    elif group == "light_colour":
        field("light_diffuse")[model.light(part).id, axis] *= value
    elif group == "colour":
        rgba = field("mat_rgba")
        rgba[_materials(model, part), axis] += value
        rgba.clip(0.0, 1.0, out=rgba)
    elif group == "texture":
        texture = "plain" if value == 0 else f"texture_{int(value) - 1}"
        role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
        field("mat_texid")[_materials(model, part), role] = model.tex(texture).id
    elif group == "texture_repeat":
        field("mat_texrepeat")[_materials(model, part)] *= value
    elif group == "hue":
        for rgba in field("mat_rgba"):
            hue, saturation, brightness = colorsys.rgb_to_hsv(*rgba[:3])
            rgba[:3] = colorsys.hsv_to_rgb((hue + value) % 1.0, saturation, brightness)
    elif group == "prop_friction":
        field("geom_friction")[_geoms(model, part)] *= value
    elif group == "prop_mass":
        field("body_mass")[model.body(part).id] *= value
        field("body_inertia")[model.body(part).id] *= value
    elif group == "prop_inertia":
        field("body_inertia")[model.body(part).id] *= value
    elif group == "prop_size":
        centred = len(_geoms(model, part)) == 1
        for key in ("geom_size", "geom_rbound", "geom_aabb", *(() if centred else ("geom_pos",))):
            field(key)[_geoms(model, part)] *= value
        if not centred:
            field("body_ipos")[model.body(part).id] *= value
        field("body_inertia")[model.body(part).id] *= value**2
    elif group == "clutter":
        for geom, degrees in list(zip(_clutter(model), CLUTTER_ANGLES, strict=True))[: int(value)]:
            away, angle = float(field("geom_pos")[geom, 0]), np.deg2rad(degrees)
            field("geom_pos")[geom, :2] = torch.tensor([np.cos(angle), np.sin(angle)]) * away
            field("geom_pos")[geom, 2] += 1.0
    elif group in ("clutter_angle", "clutter_distance"):
        pass  # of what is there: none, where all else is neutral
    elif group == "clutter_size":
        for key in ("geom_size", "geom_rbound", "geom_aabb"):
            field(key)[model.geom(part).id] *= value
    elif group in ("joint_damping", "joint_armature", "joint_friction"):
        key = {"joint_friction": "dof_frictionloss"}.get(group, group.replace("joint", "dof"))
        field(key)[_joint_dof(model, part)] *= value
    elif group == "actuator_gain":
        actuator = _joint_actuator(model, part)
        field("actuator_gainprm")[actuator, 0] *= value
        field("actuator_biasprm")[actuator, 2] *= value
    elif group == "gravity_tilt":
        field("opt.gravity")[:] = _turn(_default(model, "opt.gravity"), axis, value)
    else:
        assert group in SENSOR, f"{name} is described nowhere"
    return changed


ALL_GROUPS = [(kind, group) for kind, groups in GROUPS.items() for group in groups]


@pytest.mark.parametrize(("kind", "group"), ALL_GROUPS)
def test_a_factor_changes_its_own_field_in_its_own_world_and_nothing_else(
    kind, group, model, randomizer, build
):
    sim = build()
    untouched = _snapshot(sim)
    names = _names(randomizer, group)
    assert names
    for name in names:
        factor = randomizer.factors[_column(randomizer, name)]
        for value in (factor.low, factor.high):
            values = randomizer.default()
            values[_column(randomizer, name)] = value
            randomizer.apply(sim, torch.tensor([1]), values[None])
            expected = _expected(model, name, value)
            for field in randomizer.fields:
                found = sim.model_field(field)
                # Bit for bit where the factor has no business.
                assert torch.equal(found[[0, 2]], untouched[field][[0, 2]]), (name, field)
                if field not in expected or value == factor.neutral:
                    assert torch.equal(found[1], untouched[field][1]), (name, field)
                else:
                    wanted = expected[field].astype(float)
                    np.testing.assert_allclose(
                        found[1].numpy().astype(float), wanted, rtol=1e-6, atol=1e-7, err_msg=name
                    )
                    # A red that is full already cannot grow; its other end shows.
                    full = np.array_equal(wanted, _default(model, field).astype(float))
                    assert not full or (group == "colour" and value > 0), (name, field)


@pytest.mark.parametrize("group", [*SENSOR, "hue", "prop_mass"])
def test_a_factor_of_a_sensor_changes_that_property_in_its_own_world_and_nothing_else(
    group, randomizer
):
    high = randomizer.factors[_column(randomizer, _names(randomizer, group)[0])].high
    values = np.tile(randomizer.default(), (3, 1))
    values[1, _column(randomizer, _names(randomizer, group)[0])] = high
    found = vars(randomizer.sensor(values))
    assert set(found) == set(SENSOR)
    for name, neutral in SENSOR.items():
        wanted = [neutral, high if name == group else neutral, neutral]
        assert found[name].tolist() == pytest.approx(wanted, rel=1e-6), name
        delay = name.endswith("_delay")
        assert found[name].dtype == (torch.int64 if delay else torch.float32), name


def test_every_factor_is_described_here(randomizer):
    groups = {name.split("/")[0] for name in randomizer.factor_names}
    assert groups == {group for _, group in ALL_GROUPS}


def test_every_declared_field_has_a_factor(model, randomizer):
    touched: set[str] = set()
    for factor in randomizer.factors:
        touched |= set(_expected(model, factor.name, factor.high))
    assert touched == set(randomizer.fields)


def test_the_model_and_its_defaults_are_never_written(model, randomizer, build):
    sim = build()
    before = {name: _default(model, name) for name in sim.fields}
    randomizer.apply(sim, torch.arange(3), _draws(randomizer, 1.0, 3))
    for name, values in before.items():
        assert np.array_equal(_default(model, name), values), name
        assert np.array_equal(sim.default_field(name).numpy(), values), name


def test_the_values_that_are_applied_are_not_written(randomizer, build):
    values = _draws(randomizer, 1.0, 3)
    copy = values.copy()
    randomizer.apply(build(), torch.arange(3), values)
    randomizer.sensor(values)
    assert np.array_equal(values, copy)


# --- nothing accumulates, worlds are apart --------------------------------------------------------


def test_many_episodes_and_then_the_default_give_exactly_the_default(model, randomizer, build):
    sim = build()
    everyone = torch.arange(3)
    defaults = np.tile(randomizer.default(), (3, 1))
    randomizer.apply(sim, everyone, defaults)
    at_first = _snapshot(sim)
    for values in _draws(randomizer, 1.0, 60).reshape(20, 3, -1):
        randomizer.apply(sim, everyone, values)
    randomizer.apply(sim, everyone, defaults)
    for name in randomizer.fields:
        wanted = torch.from_numpy(_default(model, name)).expand_as(sim.model_field(name))
        assert torch.equal(sim.model_field(name), wanted), name
    _assert_same(_snapshot(sim), at_first)  # the derived constants too


def test_the_same_values_give_the_same_world_whatever_came_before(randomizer, build):
    fresh, used = build(1), build(1)
    one = torch.zeros(1, dtype=torch.int64)
    episodes = _draws(randomizer, 1.0, 12)
    for values in episodes[:11]:
        randomizer.apply(used, one, values[None])
    for sim in (fresh, used):
        randomizer.apply(sim, one, episodes[11:])
    randomizer.apply(used, one, episodes[11:])  # and twice is once
    _assert_same(_snapshot(used), _snapshot(fresh))


def test_only_the_named_worlds_change(randomizer, build):
    sim = build(5)
    randomizer.apply(sim, torch.arange(5), _draws(randomizer, 1.0, 5))
    before = _snapshot(sim)
    values = _draws(randomizer, 1.0, 7)[5:]
    randomizer.apply(sim, torch.tensor([1, 4]), values)
    after = _snapshot(sim)
    _assert_same(after, before, rows=[0, 2, 3])
    for name in before:
        if name != "light_active" and name != "mat_texid":
            assert not torch.equal(after[name][1], before[name][1]), name
    # Row i of the values belongs to the i-th named world.
    alone = build(1)
    for world, row in ((1, 0), (4, 1)):
        randomizer.apply(alone, torch.zeros(1, dtype=torch.int64), values[row : row + 1])
        for name, found in _snapshot(alone).items():
            assert torch.equal(after[name][world], found[0]), name


# --- strength, ranges, distributions --------------------------------------------------------------


def test_strength_0_gives_exactly_the_defaults(model, randomizer, build):
    for i in range(50):
        found = randomizer.draw(np.random.default_rng(i), 0.0)
        assert np.array_equal(found, randomizer.default())
    sim = build()
    drawn = _draws(randomizer, 0.0, 3)
    randomizer.apply(sim, torch.arange(3), drawn)
    for name in randomizer.fields:
        wanted = torch.from_numpy(_default(model, name)).expand_as(sim.model_field(name))
        assert torch.equal(sim.model_field(name), wanted), name
    for name, values in vars(randomizer.sensor(drawn)).items():
        assert values.tolist() == [SENSOR[name]] * 3, name


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_values_fill_their_range_at_this_strength_and_stay_in_it(randomizer, drawn, strength):
    values = drawn if strength == 1.0 else _draws(randomizer, strength)
    for column, factor in enumerate(randomizer.factors):
        found = values[:, column]
        group = factor.name.split("/")[0]
        log = (lambda x: float(np.log(x))) if group in LOG_UNIFORM else float
        back = (lambda x: float(np.exp(x))) if group in LOG_UNIFORM else float
        low, high = (
            back(log(factor.neutral) + strength * (log(end) - log(factor.neutral)))
            for end in (factor.low, factor.high)
        )
        if group in INTEGER:
            low, high = np.round(low), np.round(high)
            seen, counts = np.unique(found, return_counts=True)
            assert seen.tolist() == list(range(int(low), int(high) + 1)), factor.name
            # Every whole number alike.
            assert counts.min() > 0.8 * DRAWS / len(seen), factor.name
            continue
        reach = 0.01 * (log(high) - log(low))
        assert low - 1e-12 <= found.min() <= back(log(low) + reach), factor.name
        assert back(log(high) - reach) <= found.max() <= high + 1e-12, factor.name
        # Half of the draws lie below the middle: arithmetic or geometric.
        middle = back((log(low) + log(high)) / 2)
        assert abs((found < middle).mean() - 0.5) < 0.03, factor.name


@pytest.mark.parametrize(("first", "second"), [(0.2, 0.4), (0.5, 1.0)])
def test_twice_the_strength_is_twice_as_far_from_neutral(randomizer, first, second):
    """The same episode, so that a run that grows its strength only stretches what it draws."""
    near, far = (_draws(randomizer, s, 50) for s in (first, second))
    neutral = randomizer.default()
    for column, factor in enumerate(randomizer.factors):
        group = factor.name.split("/")[0]
        if group in INTEGER:
            assert (
                np.abs(far[:, column] - neutral[column]).max()
                >= np.abs(near[:, column] - neutral[column]).max()
            )
            continue
        scale = np.log if group in LOG_UNIFORM else np.asarray
        a, b = (scale(v[:, column]) - scale(neutral[column]) for v in (near, far))
        np.testing.assert_allclose(b, 2 * a, rtol=1e-9, atol=1e-12, err_msg=factor.name)


def test_factors_are_drawn_apart(drawn):
    correlation = np.corrcoef(drawn.T)
    np.fill_diagonal(correlation, 0.0)
    assert np.abs(correlation).max() < 0.1


def test_the_same_episode_has_the_same_values(randomizer):
    a, b, c = (randomizer.draw(np.random.default_rng(s), 0.7) for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


# Setting -> the factors that it bounds, where the names differ.
BOUNDS = {
    "arm_colour": ("colour/arm",),
    "prop_colour": ("colour/block_0", "colour/block_1", "colour/toy"),
    "table_colour": ("colour/table",),
    "floor_colour": ("colour/floor",),
}
KINDS = {"appearance": AppearanceConfig, "dynamics": DynamicsConfig, "latency": LatencyConfig}
RANGES = [
    (kind, item.name)
    for kind, cls in KINDS.items()
    for item in fields(cls)
    if item.name not in ("enabled", "textures")
]


def _with(kind: str, **settings) -> RandomizationConfig:
    return replace(CONFIG, **{kind: replace(getattr(CONFIG, kind), **settings)})


@pytest.mark.parametrize(("kind", "setting"), RANGES)
def test_a_setting_bounds_its_own_factors_and_no_other(kind, setting, model, randomizer):
    bounds = (2, 2) if setting in INTEGER else (0.013, 0.017)
    changed = Randomizer(_with(kind, **{setting: bounds}), model)
    prefixes = BOUNDS.get(setting, (setting,))
    for before, after in zip(randomizer.factors, changed.factors, strict=True):
        if any(before.name == p or before.name.startswith(f"{p}/") for p in prefixes):
            assert (after.low, after.high) == bounds, after.name
        else:
            assert after == before


def test_a_range_that_leaves_neutral_out_is_reached_at_full_strength(model):
    changed = Randomizer(_with("latency", action_delay=(2, 3), action_drop=(0.1, 0.2)), model)
    delay, drop = (_column(changed, name) for name in ("action_delay", "action_drop"))
    values = _draws(changed, 1.0, 500)
    assert set(values[:, delay]) == {2.0, 3.0}
    assert values[:, drop].min() >= 0.1
    halves = _draws(changed, 0.5, 500)[:, drop]
    assert 0.05 <= halves.min() <= halves.max() <= 0.1
    assert np.array_equal(_draws(changed, 0.0, 1)[0], changed.default())


def test_without_textures_every_surface_stays_plain(model, randomizer):
    plain = Randomizer(_with("appearance", textures=False), model)
    textures = [_column(plain, name) for name in _names(plain, "texture")]
    assert not _draws(plain, 1.0, 50)[:, textures].any()
    assert _draws(randomizer, 1.0, 50)[:, textures].any()


@pytest.mark.parametrize("off", GROUPS)
def test_a_group_that_is_off_is_neutral_and_leaves_the_others_as_they_were(
    off, model, randomizer, build
):
    switched = Randomizer(_with(off, enabled=False), model)
    columns = [_column(randomizer, name) for name in _names(randomizer, *GROUPS[off])]
    others = np.setdiff1d(np.arange(len(randomizer.factors)), columns)
    values, reference = _draws(switched, 1.0, 30), _draws(randomizer, 1.0, 30)
    assert np.array_equal(values[:, columns], np.tile(switched.default()[columns], (30, 1)))
    assert np.array_equal(values[:, others], reference[:, others])
    assert not np.array_equal(reference[:, columns], values[:, columns])
    # Its fields stay at their defaults, too.
    sim = build(1)
    switched.apply(sim, torch.zeros(1, dtype=torch.int64), values[:1])
    for name in _names(randomizer, *GROUPS[off]):
        factor = randomizer.factors[_column(randomizer, name)]
        low, high = (_expected(model, name, end) for end in (factor.low, factor.high))
        for field in low.keys() | high.keys():
            default = _default(model, field)
            # Sizes of clutter share a field with those of props.
            touched = low.get(field, default) != high.get(field, default)
            found = sim.model_field(field)[0].numpy()
            assert np.array_equal(found[touched], default[touched]), (name, field)


def test_everything_off_is_the_default(model):
    config = RandomizationConfig()
    quiet = {kind: replace(getattr(config, kind), enabled=False) for kind in GROUPS}
    randomizer = Randomizer(replace(config, **quiet), model)
    assert np.array_equal(_draws(randomizer, 1.0, 1)[0], randomizer.default())


# --- values stay meaningful -----------------------------------------------------------------------


def test_tilted_gravity_keeps_its_length_and_its_bounds(model, randomizer, build):
    sim = build(500)
    randomizer.apply(sim, torch.arange(500), _draws(randomizer, 1.0, 500))
    gravity = sim.model_field("opt.gravity").numpy()
    np.testing.assert_allclose(np.linalg.norm(gravity, axis=1), 9.81, rtol=1e-12)
    tilt = np.rad2deg(np.arccos(-gravity[:, 2] / 9.81))
    assert tilt.max() <= np.hypot(1.5, 1.5)
    assert tilt.max() > 1.6  # both axes at once
    assert abs(gravity[:, 0]).max() <= 9.81 * np.sin(np.deg2rad(1.5)) + 1e-9
    assert (gravity[:, :2] > 0).any(axis=0).all()
    assert (gravity[:, :2] < 0).any(axis=0).all()


def test_directions_stay_unit_vectors_and_the_camera_turns_by_degrees(randomizer, build):
    sim = build(200)
    randomizer.apply(sim, torch.arange(200), _draws(randomizer, 1.0, 200))
    unit = torch.ones((), dtype=torch.float64)
    for name in ("light_dir", "cam_quat"):
        length = sim.model_field(name).norm(dim=-1)
        assert torch.allclose(length, unit.expand_as(length), atol=1e-9), name
    default = sim.default_field("cam_quat")
    cosine = (sim.model_field("cam_quat") * default).sum(dim=-1).abs().clamp(max=1.0)
    angle = torch.rad2deg(2 * cosine.acos())
    # About three axes at once: at most the length of the three ranges together.
    most = AppearanceConfig().camera_rotation[1]
    assert most < float(angle.max()) < most * 3**0.5 + 0.01


def test_colours_stay_colours_at_the_largest_valid_ranges(model, build):
    widest = {f"{name}_colour": (-1.0, 1.0) for name in ("arm", "prop", "table", "floor")}
    config = _with("appearance", hue=(-0.5, 0.5), **widest)
    randomizer = Randomizer(config, model)
    sim = build(200)
    randomizer.apply(sim, torch.arange(200), _draws(randomizer, 1.0, 200))
    rgba = sim.model_field("mat_rgba")
    assert bool(rgba.isfinite().all())
    assert float(rgba.min()) >= 0.0
    assert float(rgba.max()) <= 1.0 + 1e-6
    assert torch.equal(rgba[..., 3], sim.default_field("mat_rgba")[:, 3].expand(200, -1))
    assert (sim.model_field("light_diffuse") >= 0).all()


def test_clutter_lies_on_the_table_about_the_workspace_or_out_of_sight(model, randomizer, build):
    sim = build(1)
    one = torch.zeros(1, dtype=torch.int64)
    nearest = np.sqrt(2) * WORKSPACE + 0.04  # a block's corner and a little more
    counts, ids = set(), _clutter(model)
    for values in _draws(randomizer, 1.0, 200):
        randomizer.apply(sim, one, values[None])
        count = int(values[_column(randomizer, "clutter")])
        counts.add(count)
        place = sim.model_field("geom_pos")[0, ids].numpy()
        away = np.hypot(place[:count, 0], place[:count, 1])
        assert (away > nearest).all() and (away < 0.25).all()  # within the picture
        turns = np.empty((MOST, 9))
        for turn, quat in zip(turns, model.geom_quat[ids], strict=True):
            mujoco.mju_quat2Mat(turn, quat)
        boxes = sim.model_field("geom_aabb")[0, ids, 3:].numpy()
        half = (np.abs(turns.reshape(MOST, 3, 3)) @ boxes[:, :, None])[:, 2, 0]
        np.testing.assert_allclose(place[:count, 2], half[:count], atol=1e-9)  # it stands on it
        assert (place[count:, 2] + half[count:] < TABLE_BOTTOM).all()
    assert counts == set(range(MOST + 1))
    assert (model.geom_contype[ids] == 0).all() and (model.geom_conaffinity[ids] == 0).all()


def test_a_scene_without_clutter_has_no_factors_of_it():
    env = make_env(Config(task="lifting"), num_envs=1, render=False)
    assert not [name for name in env.randomizer.factor_names if "clutter" in name]
    assert not [g for g in range(env.sim.model.ngeom) if "clutter" in env.sim.model.geom(g).name]


def test_clutter_is_seen_and_nothing_feels_it():
    """In the environment: the same episode with and without it."""
    looks = AppearanceConfig(clutter=(MOST, MOST))
    configs = (Config(task="lifting"), Config(task="lifting"))
    with_it = replace(configs[0], randomization=RandomizationConfig(appearance=looks))
    envs = [make_env(config, num_envs=4, seed=5) for config in (with_it, configs[1])]
    first, second = (env.reset() for env in envs)
    assert torch.equal(first.proprio, second.proprio)
    differs = (first.pixels.int() - second.pixels.int()).abs().amax(dim=1) > 25
    assert (differs.flatten(1).sum(dim=1) > 8).all()  # pixels, in every world
    for _ in range(5):
        first, second = (env.step(torch.full((4, 9), 0.3)).observation for env in envs)
    shared = envs[1].randomizer.factor_names
    kept = [envs[0].randomizer.factor_names.index(name) for name in shared]
    assert np.array_equal(envs[0].factors[:, kept], envs[1].factors)
    assert torch.equal(envs[0].task.state(), envs[1].task.state())


def test_one_to_three_lights_are_on_and_the_key_light_always_is(randomizer, build):
    sim = build(200)
    values = _draws(randomizer, 1.0, 200)
    randomizer.apply(sim, torch.arange(200), values)
    active = sim.model_field("light_active").bool()
    assert active.sum(dim=1).tolist() == values[:, _column(randomizer, "num_lights")].tolist()
    assert set(active.sum(dim=1).tolist()) == {1, 2, 3}
    assert bool(active[:, 0].all())
    assert len(_names(randomizer, "light_pos")) == 3 * len(scene.LIGHTS)


def test_each_surface_has_a_texture_that_the_model_knows(model, randomizer, build):
    sim = build(200)
    randomizer.apply(sim, torch.arange(200), _draws(randomizer, 1.0, 200))
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    table = sim.model_field("mat_texid")[:, model.mat("table").id, role]
    names = {model.tex(int(i)).name for i in table}
    assert names == {"plain", *(f"texture_{i}" for i in range(scene.NUM_TEXTURES))}


def test_turning_the_palette_is_turning_the_hue_of_the_image(model, randomizer, build):
    sim = build(1)
    one = torch.zeros(1, dtype=torch.int64)
    home = torch.from_numpy(np.concatenate((model.qpos0, np.zeros(model.nv))))[None]
    sim.reset(one, home)
    caster = RayCaster(sim, Config().camera, randomizer.fields, num_threads=1)
    plain = caster.render(one)
    values = randomizer.default()
    values[_column(randomizer, "hue")] = 0.1
    randomizer.apply(sim, one, values[None])
    sim.forward(one)
    turned = caster.render(one).float()
    wanted = functional.adjust_hue(plain.float() / 255, 0.1) * 255
    assert float((turned - plain.float()).abs().max()) > 20  # there is something to turn
    # A channel that is overexposed has lost what a turn would need.
    exposed = (plain < 255).all(dim=1) & (turned < 255).all(dim=1)
    assert float(exposed.float().mean()) > 0.9
    difference = (turned - wanted).abs().amax(dim=1)[exposed]
    assert float(difference.max()) <= 3.0  # rounding of two images


# --- dynamics are those of a model that is compiled with these values -----------------------------


@pytest.fixture(scope="module")
def wide(model) -> Randomizer:
    """Sizes beyond the usual ones, so that a forgotten bound would show in collisions."""
    return Randomizer(_with("dynamics", prop_size=(0.7, 1.3), gravity_tilt=(-20, 20)), model)


def _compiled(randomizer: Randomizer, values: np.ndarray) -> mujoco.MjModel:
    """The scene with the factors of dynamics written into its description."""
    factor = dict(zip(randomizer.factor_names, values, strict=True))
    spec, task = _spec()
    default = _spec()[0].compile()
    for geom in (geom for geom in spec.geoms if geom.name.startswith("toy")):
        geom.size = geom.size * factor["prop_size/toy"]
        geom.pos = geom.pos * factor["prop_size/toy"]
        geom.friction = geom.friction * factor["prop_friction/toy"]
    for i in range(MOST):
        name = f"clutter_{i}"
        geom, size = spec.geom(name), factor[f"clutter_size/{name}"]
        geom.size = geom.size * size
        if i < factor["clutter"]:
            angle = np.deg2rad(factor[f"clutter_angle/{name}"])
            away = geom.pos[0] + factor[f"clutter_distance/{name}"]
            height = size * (geom.pos[2] + 1.0)
            geom.pos = [away * np.cos(angle), away * np.sin(angle), height]
    toy, now = default.body("toy"), spec.body("toy")
    now.explicitinertial = True
    now.mass = toy.mass[0] * factor["prop_mass/toy"]
    inertia = factor["prop_mass/toy"] * factor["prop_size/toy"] ** 2 * factor["prop_inertia/toy"]
    now.inertia = toy.inertia * inertia
    now.ipos, now.iquat = toy.ipos * factor["prop_size/toy"], toy.iquat
    for name in task.props:
        geom, body = spec.geom(name), spec.body(name)
        mass = geom.mass * factor[f"prop_mass/{name}"]
        geom.size = geom.size * factor[f"prop_size/{name}"]
        geom.friction = geom.friction * factor[f"prop_friction/{name}"]
        # Of a solid cube: m a^2 / 6.
        inertia = mass * (2 * geom.size[0]) ** 2 / 6 * factor[f"prop_inertia/{name}"]
        body.explicitinertial = True
        body.mass, body.inertia = mass, [inertia] * 3
        body.ipos, body.iquat = [0, 0, 0], [1, 0, 0, 0]
    for joint in spec.joints:
        if joint.name.startswith("jaco_arm/"):
            name = joint.name.rsplit("/", 1)[1]
            joint.damping = np.array(joint.damping) * factor[f"joint_damping/{name}"]
            joint.armature = joint.armature * factor[f"joint_armature/{name}"]
            joint.frictionloss = joint.frictionloss * factor[f"joint_friction/{name}"]
    for actuator in spec.actuators:
        gain = factor[f"actuator_gain/{actuator.target.rsplit('/', 1)[1]}"]
        actuator.gainprm = np.array(actuator.gainprm) * gain
        actuator.biasprm = np.array(actuator.biasprm) * gain
    gravity = np.array(spec.option.gravity)
    for axis in range(2):
        gravity = _turn(gravity, axis, factor[f"gravity_tilt/{AXES[axis]}"])
    spec.option.gravity = gravity
    return spec.compile()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fields_and_derived_constants_are_those_of_a_compiled_model(seed, wide, build):
    sim = build()
    values = wide.draw(np.random.default_rng(seed), 1.0)
    wide.apply(sim, torch.tensor([1]), values[None])
    reference = _compiled(wide, values)
    dynamics = [f for f in wide.fields if not f.startswith(("cam_", "light_", "mat_"))]
    assert len(dynamics) == 14
    for name in (*dynamics, *DERIVED):
        found, wanted = sim.model_field(name)[1].numpy(), _default(reference, name)
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12, err_msg=name)
        assert not np.allclose(wanted, sim.default_field(name).numpy(), rtol=1e-3), name


def test_a_randomized_world_moves_like_a_compiled_model(model, wide):
    """In the simulation that training uses: with the fields of the randomizer alone."""
    values = _draws(wide, 1.0, 4)
    sim = MujocoCpuSimulation(model, 4, substeps=5, fields=wide.fields, num_threads=1)
    wide.apply(sim, torch.arange(4), values)
    task = make_task("stacking")
    task.bind(sim)
    heights = task.rest_heights().numpy()
    one = torch.zeros(1, dtype=torch.int64)
    action = torch.rand(20, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    starts = np.stack([task.start_state(np.random.default_rng(i), heights[i]) for i in range(4)])
    starts[:, task._prop_qpos_ids[0] + 2] += 0.01  # the orange block falls
    toy = model.joint("toy_joint")  # tumbles, high up: rocking on its wheel it would be chaotic
    starts[:, int(toy.qposadr[0]) + 2] += 6.0
    starts[:, model.nq + int(toy.dofadr[0]) + 3 : model.nq + int(toy.dofadr[0]) + 6] = 3.0
    sim.reset(torch.arange(4), torch.from_numpy(starts))
    others = []
    for world in range(4):
        other = MujocoCpuSimulation(_compiled(wide, values[world]), 1, substeps=5, num_threads=1)
        other.reset(one, torch.from_numpy(starts[world : world + 1]))
        others.append(other)
    for step in range(20):
        for each in (sim, *others):
            each.data("ctrl")[:] = task.jaco.ctrl(action[step : step + 1])
            each.step()
    expected = torch.cat([other.get_state(one) for other in others])
    found = sim.get_state(torch.arange(4))
    assert torch.allclose(found, expected, rtol=0.0, atol=1e-5)
    # The worlds differ from each other by far more.
    arm = found[:, task.jaco.qpos_ids[:6]] - torch.from_numpy(starts)[:, task.jaco.qpos_ids[:6]]
    assert float((arm[0] - arm[1]).abs().max()) > 1e-3


# --- in the environment ---------------------------------------------------------------------------


def test_names_say_which_part_and_which_axis(randomizer):
    names = randomizer.factor_names
    assert len(set(names)) == len(names)
    assert names == tuple(factor.name for factor in randomizer.factors)
    assert {
        *("camera_pos/x", "camera_rotation/z", "light_pos/light_2/y", "light_colour/light_0/g"),
        *("colour/arm/r", "texture/table", "texture_repeat/floor", "prop_friction/block_0"),
        *("prop_mass/block_1", "joint_damping/joint_6", "actuator_gain/finger_3"),
        *("gravity_tilt/x", "camera_delay", "hue"),
    } <= set(names)


def test_the_values_of_every_episode_are_kept_and_are_those_of_the_worlds(make):
    env = make(Config(task="stacking"), episode_steps=2, seed=9)
    env.reset()
    for episodes in ([0, 1, 2], [3, 4, 5]):
        assert env.episode_ids.tolist() == episodes
        drawn = [env.randomizer.draw(np.random.default_rng([9, 2, e]), 1.0) for e in episodes]
        assert np.array_equal(env.factors, np.stack(drawn))
        assert env.factors.shape == (3, len(env.randomizer.factor_names))
        other = MujocoCpuSimulation(env.sim.model, 3, 5, env.randomizer.fields, num_threads=1)
        env.randomizer.apply(other, torch.arange(3), env.factors)
        for name in env.randomizer.fields:
            assert torch.equal(env.sim.model_field(name), other.model_field(name)), name
        for _ in range(2):
            env.step(torch.zeros(3, 9))


def test_blocks_of_any_size_start_on_the_table(make):
    config = Config(task="stacking", randomization=_with("dynamics", prop_size=(0.7, 1.3)))
    env = make(config, num_envs=16)
    env.reset()
    bottom = env.task.prop_pos(0)[:, 2] - env.task.rest_heights()[:, 0]
    assert float(bottom.abs().max()) < 1e-9
    assert float(env.task.rest_heights().max() / env.task.rest_heights().min()) > 1.5


def test_a_new_strength_holds_from_the_next_episode_on(make):
    env = make(Config(task="stacking"), episode_steps=3)
    env.strength = 0.0
    env.reset()
    assert np.array_equal(env.factors, np.tile(env.randomizer.default(), (3, 1)))
    env.strength = 0.5
    for _ in range(2):
        env.step(torch.zeros(3, 9))
    assert np.array_equal(env.factors, np.tile(env.randomizer.default(), (3, 1)))
    env.step(torch.zeros(3, 9))
    drawn = [env.randomizer.draw(np.random.default_rng([0, 2, e]), 0.5) for e in (3, 4, 5)]
    assert np.array_equal(env.factors, np.stack(drawn))


@pytest.mark.parametrize(
    ("steps", "env_steps", "expected"),
    [
        (0, 0, 0.8),
        (0, 500, 0.8),
        (1000, 0, 0.0),
        (1000, 250, 0.2),
        (1000, 1000, 0.8),
        (10, 99, 0.8),
    ],
)
def test_the_curriculum_grows_the_strength_to_its_full_value(steps, env_steps, expected):
    randomization = RandomizationConfig(strength=0.8, curriculum_steps=steps)
    assert strength_at(randomization, env_steps) == pytest.approx(expected)


def test_the_documents_list_every_factor_with_its_range(model):
    page = (Path(__file__).parent.parent / "docs" / "randomization.md").read_text()
    for factor in Randomizer(RandomizationConfig(), model).factors:
        group = factor.name.split("/")[0]
        rows = [line for line in page.splitlines() if line.startswith(f"| `{group}` |")]
        assert any(f"| {factor.low:g} to {factor.high:g} |" in row for row in rows), factor.name
