"""Appearance, dynamics and latency of each world and episode, drawn around the defaults.

One function per model field turns the factors' values into that field, always from the field's
*default*, so that nothing accumulates. The drawn values are kept beside the episode: evaluation can
tell which factor breaks a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any, Protocol

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.config import MOST_BLUR, MOST_CLUTTER, RandomizationConfig
from visuomotor.errors import UserError
from visuomotor.factors import (
    OWN,
    Distributions,
    Factor,
    OwnFactor,
    beyond,
    register_factor,
    unit_of,
)
from visuomotor.image_noise import SensorFactors, distort
from visuomotor.vision_import import functional

__all__ = ["Factor", "Randomizer", "SensorFactors", "distort", "register_factor"]

ARM_PREFIX = "jaco_arm/"
CHANNELS = ("r", "g", "b")
AXES = ("x", "y", "z")
NOT_NEGATIVE = (0.0, math.inf)
SMALLEST = 0.1  # scale of a prop's size, at least
CLUTTER = "clutter_"  # + a number: a geom of the world's and its material (envs/scene.py)
CLUTTER_DEPTH = 1.0  # m that it waits below its place, out of sight, where a world has none
# Degrees about the origin at which they lie where nothing is drawn: each at a place of its own.
CLUTTER_ANGLES = (20.0, 160.0, -60.0, -145.0)
CLUTTER_BEYOND = (0.0, 0.08)  # m from the nearest it may come to the origin
CLUTTER_COLOUR = (-0.5, 0.5)  # added to each colour channel of a middle grey
CLUTTER_SIZE = (0.6, 1.5)
FIELDS_OF_VIEW = (1.0, 179.0)  # degrees


class WorldFields(Protocol):
    """What is asked of a simulation (see envs/simulation.py)."""

    def model_field(self, name: str) -> Tensor:
        """(N, ...), live."""
        ...

    def default_field(self, name: str) -> Tensor:
        """(...)."""
        ...

    def recompute_constants(self, env_ids: Tensor) -> None:
        """env_ids: (n,) int64."""
        ...


def strength_at(config: RandomizationConfig, env_steps: int) -> float:
    """The curriculum: grows from 0 to `strength` over `curriculum_steps`, then stays."""
    if config.curriculum_steps == 0:
        return config.strength
    return config.strength * min(1.0, env_steps / config.curriculum_steps)


class Randomizer:
    """Draws and applies every factor of a model.

    Args:
      config: ranges and switches. A group that is off keeps its factors at neutral, but draws them
        all the same: switching it does not change the other groups' values.
      model: the compiled scene; free bodies are props, materials and joints under `jaco_arm/` the
        arm.
    """

    def __init__(self, config: RandomizationConfig, model: mujoco.MjModel):
        self._config = config
        self._model = model
        self._props = [
            body
            for body in range(model.nbody)
            if model.body_jntnum[body] > 0
            and model.jnt_type[model.body_jntadr[body]] == mujoco.mjtJoint.mjJNT_FREE
        ]
        groups = [model.body(body).name.split("/")[0] for body in self._props]
        self._prop_names = list(dict.fromkeys(groups))  # props named <group>/<index> share factors
        self._prop_columns = [self._prop_names.index(group) for group in groups]
        self._prop_geoms = [
            geom
            for body in self._props
            for geom in range(
                model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body]
            )
        ]
        self._geom_columns = [
            self._prop_columns[self._props.index(int(model.geom_bodyid[geom]))]
            for geom in self._prop_geoms
        ]
        self._clutter = [
            geom
            for geom in range(model.ngeom)
            if model.geom(geom).name.startswith(CLUTTER) and model.geom_bodyid[geom] == 0
        ]
        self._joints = [j for j in range(model.njnt) if model.joint(j).name.startswith(ARM_PREFIX)]
        self._dofs = [int(model.jnt_dofadr[j]) for j in self._joints]
        self._factors: list[Factor] = []
        self._enabled: list[bool] = []
        self._columns: dict[str, list[int]] = {}
        self._pinned: dict[int, float] = {}
        self._beyond: set[int] = set()
        self._declare_appearance()
        self._declare_dynamics()
        self._declare_latency()
        self._declare_later_appearance()
        self._own = tuple(OWN.values())
        for own in self._own:
            if own.group in {factor.name.split("/")[0] for factor in self._factors}:
                raise UserError(f"a factor '{own.group}' is there already; give yours another name")
            bounds, parts = (own.low, own.high), list(own.parts)
            self._add(own.group, parts, bounds, own.neutral, True, own.distribution)
            self._try(own)
        self.factors: tuple[Factor, ...] = tuple(self._factors)
        self._distributions = Distributions(self._factors, self._enabled)
        self.factor_names: tuple[str, ...] = tuple(f.name for f in self._factors)
        named = dict.fromkeys((*_FIELDS, *(own.field for own in self._own)))
        self.fields: tuple[str, ...] = tuple(named)

    # --- what is drawn ----------------------------------------------------------------------------

    def _add(
        self,
        group: str,
        names: list[str],
        bounds: tuple[float, float],
        neutral: float | Sequence[float],
        enabled: bool,
        distribution: str = "uniform",
        limits: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        """Factors `group/name` of one group; without names the group is one factor. neutral: of
        all, or of each. limits: what a world can have."""
        full = [f"{group}/{name}" for name in names] if names else [group]
        start = len(self._factors)
        self._columns[group] = list(range(start, start + len(full)))
        each = neutral if isinstance(neutral, Sequence) else [neutral] * len(full)
        for name, value in zip(full, each, strict=True):
            factor = Factor(name, *bounds, value, distribution, *limits, unit_of(name))
            self._factors.append(factor)
            self._enabled.append(enabled)

    def _declare_appearance(self) -> None:
        c, model = self._config.appearance, self._model
        lights = [model.light(i).name for i in range(model.nlight)]
        on = c.enabled

        def product(parts: list[str], axes: tuple[str, ...]) -> list[str]:
            return [f"{part}/{axis}" for part in parts for axis in axes]

        self._add("camera_pos", list(AXES), c.camera_pos, 0.0, on)
        self._add("camera_rotation", list(AXES), c.camera_rotation, 0.0, on)
        narrowest, widest = (end - float(model.cam_fovy[0]) for end in FIELDS_OF_VIEW)
        self._add("camera_fovy", [], c.camera_fovy, 0.0, on, limits=(narrowest, widest))
        count = (max(1, min(c.num_lights[0], len(lights))), min(c.num_lights[1], len(lights)))
        lit = (1.0, float(len(lights)))
        self._add("num_lights", [], count, lit[1], on, "integer", lit)
        self._add("light_pos", product(lights, AXES), c.light_pos, 0.0, on)
        self._add("light_direction", product(lights, ("x", "y")), c.light_direction, 0.0, on)
        self._add(
            "light_colour", product(lights, CHANNELS), c.light_colour, 1.0, on, limits=NOT_NEGATIVE
        )
        self._surfaces = {
            "table": [model.mat("table").id],
            "floor": [model.mat("floor").id],
            "arm": [i for i in range(model.nmat) if model.mat(i).name.startswith(ARM_PREFIX)],
        }
        for name in self._prop_names:
            self._surfaces[name] = [
                i for i in range(model.nmat) if model.mat(i).name.split("/")[0] == name
            ]
        ranges = {"table": c.table_colour, "floor": c.floor_colour, "arm": c.arm_colour}
        names = [model.tex(i).name for i in range(model.ntex)]
        self._textures = [names.index("plain")]
        self._textures += [i for i, name in enumerate(names) if name.startswith("texture_")]
        for surface in self._surfaces:
            self._declare_surface(surface, ranges.get(surface, c.prop_colour))
        self._add("brightness", [], c.brightness, 1.0, on, limits=NOT_NEGATIVE)
        self._add("contrast", [], c.contrast, 1.0, on, limits=NOT_NEGATIVE)
        self._add("hue", [], c.hue, 0.0, on, limits=(-0.5, 0.5))
        self._add("pixel_noise", [], c.pixel_noise, 0.0, on, limits=NOT_NEGATIVE)

    def _declare_surface(self, surface: str, colour: tuple[float, float]) -> None:
        c = self._config.appearance
        on, patterns = c.enabled, (0.0, float(len(self._textures) - 1))
        self._add(f"colour/{surface}", list(CHANNELS), colour, 0.0, on)
        chosen = patterns if c.textures else (0.0, 0.0)
        self._add(f"texture/{surface}", [], chosen, 0.0, on, "integer", patterns)
        self._add(f"texture_repeat/{surface}", [], c.texture_repeat, 1.0, on, "log_uniform")

    def _declare_dynamics(self) -> None:
        c, props = self._config.dynamics, self._prop_names
        on = c.enabled
        joints = [self._model.joint(j).name.rsplit("/", 1)[1] for j in self._joints]
        self._add("prop_friction", props, c.prop_friction, 1.0, on, limits=NOT_NEGATIVE)
        self._add("prop_mass", props, c.prop_mass, 1.0, on, "log_uniform")
        self._add("prop_inertia", props, c.prop_inertia, 1.0, on, "log_uniform")
        self._add("prop_size", props, c.prop_size, 1.0, on, limits=(SMALLEST, math.inf))
        self._add("joint_damping", joints, c.joint_damping, 1.0, on, "log_uniform")
        self._add("joint_armature", joints, c.joint_armature, 1.0, on, "log_uniform")
        self._add("joint_friction", joints, c.joint_friction, 1.0, on, "log_uniform")
        self._add("actuator_gain", joints, c.actuator_gain, 1.0, on, "log_uniform")
        self._add("gravity_tilt", ["x", "y"], c.gravity_tilt, 0.0, on)

    def _declare_latency(self) -> None:
        c = self._config.latency
        on = c.enabled
        self._add("camera_delay", [], c.camera_delay, 0.0, on, "integer", NOT_NEGATIVE)
        self._add("action_delay", [], c.action_delay, 0.0, on, "integer", NOT_NEGATIVE)
        self._add("action_drop", [], c.action_drop, 0.0, on, limits=(0.0, 1.0))
        self._add("proprio_noise", [], c.proprio_noise, 0.0, on, limits=NOT_NEGATIVE)

    def _declare_later_appearance(self) -> None:
        """Behind all others, whose values stay as they were drawn without these."""
        c = self._config.appearance
        self._add("shade", [], c.shade, 0.0, c.enabled, limits=(0.0, 1.0))
        patterns = (0.0, 1.0) if c.shade[1] > 0.0 else (0.0, 0.0)
        self._add("shade_pattern", [], patterns, 0.0, c.enabled, limits=(0.0, 1.0))
        self._add("blur", [], c.blur, 0.0, c.enabled, limits=(0.0, MOST_BLUR))
        self._add("cast_shadow", [], c.cast_shadow, 0.0, c.enabled, limits=(-1.0, 1.0))
        if self._clutter:
            self._declare_clutter()

    def _declare_clutter(self) -> None:
        """Things about the workspace: how many, and of each its place, size and looks."""
        c, on = self._config.appearance, self._config.appearance.enabled
        names = [self._model.geom(geom).name for geom in self._clutter]
        most = (0.0, float(MOST_CLUTTER))
        self._add("clutter", [], c.clutter, 0.0, on, "integer", most)
        self._add("clutter_angle", names, (-180.0, 180.0), CLUTTER_ANGLES, on)
        self._add("clutter_distance", names, CLUTTER_BEYOND, 0.0, on, limits=NOT_NEGATIVE)
        self._add("clutter_size", names, CLUTTER_SIZE, 1.0, on, "log_uniform")
        for name in names:
            self._surfaces[name] = [self._model.mat(name).id]
            self._declare_surface(name, CLUTTER_COLOUR)

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups of factors."""
        return tuple(self._columns)

    def columns(self, name: str) -> list[int]:
        """Of a group's factors, or of the one factor of that name; none for an unknown name."""
        if name in self._columns:
            return self._columns[name]
        return [i for i, factor in enumerate(self.factor_names) if factor == name]

    @property
    def pinned(self) -> list[str]:
        """The factors that have one value in every world, in their order."""
        return [self.factor_names[column] for column in sorted(self._pinned)]

    def pin(self, name: str, value: float) -> None:
        """From now on a group's factors, or one factor, have this value in every episode, at any
        strength; the others are drawn as they were. Raises KeyError for an unknown name."""
        columns = self.columns(name)
        if not columns:
            raise KeyError(name)
        for column in columns:
            self._pinned[column] = value

    def draw_beyond(self, group: str) -> None:
        """From now on a group's factors are drawn outside of their range: from its ends to twice as
        far from the neutral value, on either side that the range has; whole numbers one beyond the
        highest. Others are drawn as they were. `prop_colour` means every prop's colour.

        Raises KeyError for an unknown name.
        """
        groups = [group]
        if group == "prop_colour":
            groups = [f"colour/{name}" for name in self._prop_names]
        elif group not in self._columns:
            raise KeyError(group)
        self._beyond.update(column for name in groups for column in self._columns[name])

    def nothing_beyond(self) -> list[str]:
        """Of the factors that are to be drawn outside of their range, those that have none and so
        stay as they are."""
        asked = [self.factors[column] for column in sorted(self._beyond)]
        return [
            factor.name
            for factor in asked
            if factor.distribution != "integer" and factor.low == factor.high == factor.neutral
        ]

    def default(self) -> np.ndarray:
        """(K,) the neutral values."""
        return self._distributions.neutral.copy()

    def draw(self, rng: np.random.Generator, strength: float) -> np.ndarray:
        """(K,) values of one episode; always the same number of draws from `rng`."""
        uniform = rng.random(len(self.factors))
        values = self._distributions.values(uniform, strength)
        for column in self._beyond:
            values[column] = beyond(self.factors[column], float(uniform[column]))
        for column, value in self._pinned.items():
            values[column] = value
        return values

    # --- where it goes ----------------------------------------------------------------------------

    def apply(self, sim: WorldFields, env_ids: Tensor, values: np.ndarray) -> None:
        """Writes values (n, K) into the model fields of worlds env_ids (n,), and nothing else."""
        rows = torch.from_numpy(np.ascontiguousarray(values))
        for field in self.fields:
            default = sim.default_field(field)
            # Default first, then the factors: an entry that no factor touches is restored too.
            fresh = default.unsqueeze(0).repeat(len(env_ids), *([1] * default.dim()))
            drawn = rows.to(fresh.dtype) if fresh.is_floating_point() else rows
            if field in _FIELDS:
                _FIELDS[field](self, fresh, drawn)
            for own in self._own:
                if own.field == field:
                    self._apply_own(own, fresh, self.column(drawn, own.group))
            sim.model_field(field)[env_ids] = fresh.to(sim.model_field(field).dtype)
        sim.recompute_constants(env_ids)

    def _try(self, own: OwnFactor) -> None:
        """A user's factor at both ends and at neutral, on what no world is made of."""
        read = attrgetter(own.field)
        default = np.array(read(self._model))
        field = torch.from_numpy(np.stack([default] * 3))
        values = torch.tensor([own.low, own.neutral, own.high], dtype=torch.float64)
        values = values.to(field.dtype) if field.is_floating_point() else values
        self._apply_own(own, field, values.unsqueeze(1).repeat(1, max(1, len(own.parts))))
        if not np.array_equal(read(self._model), default):
            raise UserError(
                f"factor '{own.group}': its function writes to model.{own.field}, which is every "
                "world's; it has to change the field that it is given, in place"
            )

    def _apply_own(self, own: OwnFactor, field: Tensor, values: Tensor) -> None:
        """A user's factor into fresh defaults (n, ...). Raises UserError where that fails."""
        try:
            returned: object = own.apply(self._model, field, values)  # type: ignore[func-returns-value]
        except Exception as error:  # a stranger's function may raise anything
            told = " ".join(str(error).split())
            raise UserError(
                f"factor '{own.group}': its function raised {type(error).__name__}: {told}; it is "
                f"called with the model, {own.field} {tuple(field.shape)} and values "
                f"{tuple(values.shape)}"
            ) from error
        if returned is not None:
            raise UserError(
                f"factor '{own.group}': its function returns a {type(returned).__name__}; it has "
                "to change the field in place and return nothing"
            )
        if field.is_floating_point() and not bool(torch.isfinite(field).all()):
            raise UserError(
                f"factor '{own.group}': its function makes infinite or no numbers of {own.field}; "
                f"valid: finite ones for all values from {own.low:g} to {own.high:g}"
            )

    def sensor(self, values: np.ndarray) -> SensorFactors:
        """(n, K) -> what camera, actuators and joint sensors need, (n,) each."""
        rows = torch.from_numpy(np.ascontiguousarray(values))
        parts: dict[str, Any] = {}
        for item in fields(SensorFactors):
            column = rows[:, self._columns[item.name][0]]
            parts[item.name] = column.long() if item.name.endswith("_delay") else column.float()
        return SensorFactors(**parts)

    def column(self, rows: Tensor, group: str) -> Tensor:
        """(n, number of factors in the group)."""
        return rows[:, self._columns[group]]

    def of_props(self, rows: Tensor, group: str) -> Tensor:
        """(n, bodies): a factor of every prop's."""
        return self.column(rows, group)[:, self._prop_columns]

    def of_geoms(self, rows: Tensor, group: str) -> Tensor:
        """(n, geoms): the same for every geom of a prop."""
        return self.column(rows, group)[:, self._geom_columns]


# --- one function per model field: (randomizer, fresh defaults (n, ...), values (n, K)) -----------


def _cam_pos(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, cameras, 3) m, along the world's axes."""
    field += r.column(rows, "camera_pos").unsqueeze(1)


def _cam_quat(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Small rotations about the camera's own axes, one after the other."""
    angles = torch.deg2rad(r.column(rows, "camera_rotation"))
    for axis in range(3):
        turn = _axis_quat(angles[:, axis], axis).unsqueeze(1).expand_as(field)
        field.copy_(_quat_product(field, turn))


def _cam_fovy(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, cameras) degrees."""
    field += r.column(rows, "camera_fovy")


def _light_active(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """The first `num_lights` lights stay on; the renderer skips the others."""
    order = torch.arange(field.shape[1])
    field &= order < r.column(rows, "num_lights")


def _light_pos(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, lights, 3) m."""
    field += r.column(rows, "light_pos").view(field.shape)


def _light_dir(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Tilts about world x, then y; keeps the length."""
    angles = torch.deg2rad(r.column(rows, "light_direction")).view(*field.shape[:2], 2)
    for axis in range(2):
        field.copy_(_rotate(field, angles[..., axis], axis))


def _light_diffuse(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, lights, 3), each colour channel."""
    field *= r.column(rows, "light_colour").view(field.shape)


def _mat_rgba(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Colours, and the camera's hue error: a turn of the hue circle commutes with grey textures and
    with shading, so turning the palette once an episode saves turning every pixel of every frame.
    """
    for surface, materials in r._surfaces.items():
        shift = r.column(rows, f"colour/{surface}").unsqueeze(1)
        field[:, materials, :3] = (field[:, materials, :3] + shift).clamp(0.0, 1.0)
    for i, turn in enumerate(r.column(rows, "hue").squeeze(1).tolist()):
        if turn != 0.0:
            palette = field[i, :, :3].T.unsqueeze(1)  # an image: (3, 1, materials)
            field[i, :, :3] = functional.adjust_hue(palette, turn).squeeze(1).T


def _mat_texid(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, materials, roles): which texture a surface has."""
    choices = torch.tensor(r._textures)
    role = int(mujoco.mjtTextureRole.mjTEXROLE_RGB)
    for surface, materials in r._surfaces.items():
        chosen = choices[r.column(rows, f"texture/{surface}").long()]
        field[:, materials, role] = chosen.to(field.dtype)


def _mat_texrepeat(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, materials, 2) repetitions."""
    for surface, materials in r._surfaces.items():
        field[:, materials] *= r.column(rows, f"texture_repeat/{surface}").unsqueeze(1)


def _geom_friction(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, geoms, 3): sliding, torsional, rolling."""
    field[:, r._prop_geoms] *= r.of_geoms(rows, "prop_friction").unsqueeze(2)


def _scale_props(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Every length of a prop's geoms, and where they are in its frame."""
    scale = r.of_geoms(rows, "prop_size")
    field[:, r._prop_geoms] *= scale.view(*scale.shape, *([1] * (field.dim() - 2)))


def _scale_geoms(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Every length of the geoms of props, and of clutter."""
    _scale_props(r, field, rows)
    if r._clutter:
        scale = r.column(rows, "clutter_size")
        field[:, r._clutter] *= scale.view(*scale.shape, *([1] * (field.dim() - 2)))


def _geom_pos(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, geoms, 3) m: of props, in their frames, and of clutter on the table."""
    _scale_props(r, field, rows)
    if not r._clutter:
        return
    there = torch.arange(len(r._clutter)) < r.column(rows, "clutter")
    angle = torch.deg2rad(r.column(rows, "clutter_angle"))
    place = field[:, r._clutter]
    away = place[..., 0] + r.column(rows, "clutter_distance")
    height = (place[..., 2] + CLUTTER_DEPTH) * r.column(rows, "clutter_size")
    on_table = torch.stack((away * angle.cos(), away * angle.sin(), height), dim=-1)
    field[:, r._clutter] = torch.where(there.unsqueeze(2), on_table, place)


def _body_ipos(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, bodies, 3) m: a centre of mass moves with the size."""
    field[:, r._props] *= r.of_props(rows, "prop_size").unsqueeze(2)


def _body_mass(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, bodies) kg."""
    field[:, r._props] *= r.of_props(rows, "prop_mass")


def _body_inertia(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Inertia of a solid body goes with its mass and with the square of its size."""
    scale = r.of_props(rows, "prop_mass") * r.of_props(rows, "prop_size").square()
    field[:, r._props] *= (scale * r.of_props(rows, "prop_inertia")).unsqueeze(2)


def _dof_damping(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, dofs) N m s/rad."""
    field[:, r._dofs] *= r.column(rows, "joint_damping")


def _dof_armature(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, dofs) kg m^2."""
    field[:, r._dofs] *= r.column(rows, "joint_armature")


def _dof_frictionloss(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """(n, dofs) N m."""
    field[:, r._dofs] *= r.column(rows, "joint_friction")


def _actuator_gainprm(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """Velocity servo: force = kv * (ctrl - velocity); kv stands here ..."""
    field[..., 0] *= r.column(rows, "actuator_gain")


def _actuator_biasprm(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """... and here, negated."""
    field[..., 2] *= r.column(rows, "actuator_gain")


def _gravity(r: Randomizer, field: Tensor, rows: Tensor) -> None:
    """A table that is not level: gravity turns about world x and y and keeps its length."""
    angles = torch.deg2rad(r.column(rows, "gravity_tilt"))
    for axis in range(2):
        field.copy_(_rotate(field, angles[:, axis], axis))


_FIELDS: dict[str, Callable[[Randomizer, Tensor, Tensor], None]] = {
    "cam_pos": _cam_pos,
    "cam_quat": _cam_quat,
    "cam_fovy": _cam_fovy,
    "light_active": _light_active,
    "light_pos": _light_pos,
    "light_dir": _light_dir,
    "light_diffuse": _light_diffuse,
    "mat_rgba": _mat_rgba,
    "mat_texid": _mat_texid,
    "mat_texrepeat": _mat_texrepeat,
    "geom_friction": _geom_friction,
    "geom_size": _scale_geoms,
    "geom_pos": _geom_pos,
    "geom_rbound": _scale_geoms,
    "geom_aabb": _scale_geoms,
    "body_ipos": _body_ipos,
    "body_mass": _body_mass,
    "body_inertia": _body_inertia,
    "dof_damping": _dof_damping,
    "dof_armature": _dof_armature,
    "dof_frictionloss": _dof_frictionloss,
    "actuator_gainprm": _actuator_gainprm,
    "actuator_biasprm": _actuator_biasprm,
    "opt.gravity": _gravity,
}


def _axis_quat(angle: Tensor, axis: int) -> Tensor:
    """(n,) rad about an axis -> (n, 4), w first."""
    quat = torch.zeros(*angle.shape, 4, dtype=angle.dtype)
    quat[..., 0] = (angle / 2).cos()
    quat[..., 1 + axis] = (angle / 2).sin()
    return quat


def _quat_product(a: Tensor, b: Tensor) -> Tensor:
    """(..., 4) Hamilton product, w first."""
    aw, av, bw, bv = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    w = aw * bw - (av * bv).sum(dim=-1, keepdim=True)
    return torch.cat((w, aw * bv + bw * av + torch.linalg.cross(av, bv)), dim=-1)


def _rotate(vector: Tensor, angle: Tensor, axis: int) -> Tensor:
    """(..., 3) vectors about a world axis by (...) rad."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    out = vector.clone()
    out[..., i] = angle.cos() * vector[..., i] - angle.sin() * vector[..., j]
    out[..., j] = angle.sin() * vector[..., i] + angle.cos() * vector[..., j]
    return out
