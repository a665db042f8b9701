"""Worlds that no training meets: changes to the scene, the physics and the ranges, each by a name.

They are made here and nowhere else, from a policy's own settings; `visuomotor.train` has no key for
them. What stays as in training: the task, its starts, and every range that no change goes beyond.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import cv2
import mujoco
import numpy as np

from visuomotor.config import Config
from visuomotor.envs import make_task, scene
from visuomotor.envs.camera import MakeCaster, RayCaster, Supersampled
from visuomotor.envs.classic_renderer import ClassicRenderer, available
from visuomotor.envs.environment import physics_timestep
from visuomotor.errors import UserError, did_you_mean

DELAYS = ("camera_delay", "action_delay")


@dataclass(frozen=True)
class Change:
    """One thing that is not as in training.

    beyond: groups of factors that are drawn outside of their training range, from its ends to twice
    as far from the neutral value; delays are one step longer than the longest.
    samples: of a pixel, along each side.
    akin: settings of appearance with which training shows a part of it, where they reach above 0.
    """

    tells: str
    beyond: tuple[str, ...] = ()
    samples: int = 1
    akin: tuple[str, ...] = ()
    config: Callable[[Config], Config] | None = None
    spec: Callable[[mujoco.MjSpec], None] | None = None


def _shadows(config: Config) -> Config:
    return replace(config, camera=replace(config.camera, shadows=True))


def _half_timestep(config: Config) -> Config:
    trained = physics_timestep(config.env, make_task(config.task))
    return replace(config, env=replace(config.env, physics_dt=trained / 2))


def _other_solver(spec: mujoco.MjSpec) -> None:
    spec.option.solver = mujoco.mjtSolver.mjSOL_CG
    # With 60 iterations blocks slip out of any hand: the demonstrator lifts 1 of 48, with 400 all.
    spec.option.iterations = 400
    for geom in spec.geoms:
        if geom.conaffinity and geom.solref[0] == 0.02:  # MuJoCo's default
            geom.solref[0] = 0.012


def _other_textures(spec: mujoco.MjSpec) -> None:
    """In the place of checks, stripes and noise: rings of wood, bricks, dots, cracks."""
    assets = dict(spec.assets)
    for i, grey in enumerate(_patterns(np.random.default_rng(1))):
        name = f"texture_{i}.png"
        assert name in assets
        encoded, png = cv2.imencode(".png", np.repeat(grey[..., None], 3, axis=2))
        assert encoded
        assets[name] = png.tobytes()
    spec.assets = assets


def _patterns(rng: np.random.Generator) -> list[np.ndarray]:
    """(32, 32) uint8 each, as bright as those of training."""
    size = scene.TEXTURE_SIZE
    y, x = np.mgrid[0:size, 0:size] / size
    unit = []
    for centre, rings in (((0.3, -0.4), 9.0), ((1.2, 0.6), 14.0)):
        away = np.hypot(x - centre[0], y - centre[1]) + 0.02 * np.sin(9 * x + 5 * y)
        unit.append((away * rings) % 1.0)
    for rows in (4, 6):
        row = (y * rows).astype(int)
        across = (x * rows / 2 + 0.5 * (row % 2)) % 1.0
        unit.append(((across > 0.12) & ((y * rows) % 1.0 > 0.2)).astype(float))
    for count in (5, 8):
        dots = np.hypot((x * count) % 1.0 - 0.5, (y * count) % 1.0 - 0.5)
        unit.append((dots > 0.3).astype(float))
    for count in (6, 14):
        points = rng.random((count, 2))
        away = np.sort(np.hypot(x[..., None] - points[:, 0], y[..., None] - points[:, 1]), axis=2)
        unit.append(np.clip((away[..., 1] - away[..., 0]) * 12.0, 0.0, 1.0))
    return [(255 * (0.6 + 0.4 * u)).astype(np.uint8) for u in unit][: scene.NUM_TEXTURES]


# Shape, half sizes [m], place x, y [m], colour: around the workspace, in the picture.
_DISTRACTORS = (
    (mujoco.mjtGeom.mjGEOM_BOX, (0.02, 0.014, 0.025), (-0.205, -0.06), (0.85, 0.75, 0.15)),
    (mujoco.mjtGeom.mjGEOM_CYLINDER, (0.018, 0.03, 0.0), (0.205, 0.05), (0.5, 0.2, 0.6)),
    (mujoco.mjtGeom.mjGEOM_SPHERE, (0.022, 0.0, 0.0), (0.2, -0.1), (0.2, 0.65, 0.65)),
    (mujoco.mjtGeom.mjGEOM_BOX, (0.03, 0.02, 0.012), (-0.2, 0.11), (0.55, 0.35, 0.2)),
)


def _distractors(spec: mujoco.MjSpec) -> None:
    """Objects that are seen and never touched."""
    for index, (kind, size, (x, y), rgb) in enumerate(_DISTRACTORS):
        height = size[0] if kind == mujoco.mjtGeom.mjGEOM_SPHERE else size[1 if size[2] == 0 else 2]
        spec.worldbody.add_geom(
            name=f"distractor_{index}",
            type=kind,
            size=list(size),
            pos=[x, y, height],
            rgba=[*rgb, 1.0],
            contype=0,
            conaffinity=0,
        )


_FINISH_GRAIN = 4  # how many times as fine the patterns on props are
_PRINT_RADIUS = 0.6  # of a block's half size
_PRINT_HEIGHT = 1.03  # of the same: over the face by 0.7 mm of a block of 45
_PRINT_COLOUR = (0.93, 0.9, 0.84)


def _other_finish(spec: mujoco.MjSpec) -> None:
    """Props of a finer grain; blocks with a pale disc on every face, which nothing feels."""
    grained = set()
    for body in spec.worldbody.bodies:
        if not any(joint.type == mujoco.mjtJoint.mjJNT_FREE for joint in body.joints):
            continue
        geoms = list(body.geoms)
        grained |= {geom.material for geom in geoms}
        if len(geoms) != 1 or geoms[0].type != mujoco.mjtGeom.mjGEOM_BOX:
            continue
        half = np.asarray(geoms[0].size)
        # Which turns a cylinder's z to x, y and z.
        for axis, quat in enumerate(((1, 0, 1, 0), (1, 1, 0, 0), (1, 0, 0, 0))):
            across = np.delete(half, axis).min()
            body.add_geom(
                name=f"{body.name}:print_{axis}",
                type=mujoco.mjtGeom.mjGEOM_CYLINDER,
                size=[_PRINT_RADIUS * across, _PRINT_HEIGHT * half[axis], 0.0],
                pos=geoms[0].pos,
                quat=quat,
                rgba=[*_PRINT_COLOUR, 1.0],
                mass=0.0,
                contype=0,
                conaffinity=0,
            )
    for material in spec.materials:
        if material.name in grained:
            material.texrepeat = [_FINISH_GRAIN * repeat for repeat in material.texrepeat]


CHANGES: dict[str, Change] = {
    "shadows": Change(
        "MuJoCo's classic renderer, with shadows; where there is no EGL the ray-caster, with "
        "shadows and four rays a pixel",
        akin=("cast_shadow", "shade"),
        config=_shadows,
    ),
    "antialiasing": Change(
        "an image of 256x256 averaged down, as a real camera's is: smooth edges",
        samples=4,
        akin=("blur",),
    ),
    "textures": Change("rings, bricks, dots and cracks on all surfaces", spec=_other_textures),
    "distractors": Change(
        "four objects around the workspace", akin=("clutter",), spec=_distractors
    ),
    "camera": Change(
        "the camera stands one to two times the training range from where it should",
        beyond=("camera_pos", "camera_rotation", "camera_fovy"),
    ),
    "actuators": Change(
        "gain, armature and friction of the joints beyond the training range",
        # Not damping too: four times that of the fingers, whose drives its friction has nearly used
        # up, and they close at 0.1 rad/s.
        beyond=("actuator_gain", "joint_armature", "joint_friction"),
    ),
    "physics": Change(
        "half the timestep, another solver, stiffer contacts",
        config=_half_timestep,
        spec=_other_solver,
    ),
    "latency": Change("image and action come one step later than ever in training", beyond=DELAYS),
    "props": Change(
        "size and colour of the props beyond the training range",
        beyond=("prop_size", "prop_colour"),
    ),
    "finish": Change(
        "props of a grain four times as fine, blocks with a pale disc printed on every face",
        spec=_other_finish,
    ),
}


# What draws where `shadows` are held out, and its samples along each side of a pixel.
RENDERERS: dict[str, tuple[MakeCaster, int]] = {
    "classic": (ClassicRenderer, 1),
    "rays": (RayCaster, 2),
}


@dataclass(frozen=True)
class HeldOut:
    """What is changed, put together.

    names: in the order of CHANGES.
    renderer: of RENDERERS, where `shadows` are among it; None: the ray-caster, with shadows.
    """

    names: tuple[str, ...]
    renderer: str | None = None

    @property
    def _changes(self) -> list[Change]:
        return [CHANGES[name] for name in self.names]

    def config(self, config: Config) -> Config:
        """The settings, changed."""
        for change in self._changes:
            if change.config is not None:
                config = change.config(config)
        return config

    def spec(self, spec: mujoco.MjSpec) -> None:
        """Changes the scene before it is compiled."""
        for change in self._changes:
            if change.spec is not None:
                change.spec(spec)

    @property
    def make_caster(self) -> MakeCaster:
        """What draws."""
        make, least = (RayCaster, 1) if self.renderer is None else RENDERERS[self.renderer]
        samples = max([least, *(change.samples for change in self._changes)])
        return make if samples == 1 else partial(Supersampled, samples=samples, make=make)

    @property
    def beyond(self) -> tuple[str, ...]:
        return tuple(group for change in self._changes for group in change.beyond)

    def met_in_training(
        self, worlds: Config, trained: Config, provenance: dict[str, Any]
    ) -> list[str]:
        """Of the groups that are drawn beyond the ranges of `worlds`, those of which a policy has
        met some: a range in which it was trained, or one that it comes from, reaches further. And
        what training showed of other changes: blur of antialiasing, clutter of distractors,
        cast_shadow and shade of shadows. Of these only where the ray-caster draws them, as training
        does; MuJoCo's classic renderer is one that no training has."""
        own = asdict(worlds.randomization)
        before = [origin["randomization"] for origin in _origins(provenance) if _is_known(origin)]
        trainings = [asdict(trained.randomization), *before]
        met = {
            key
            for ranges in trainings
            for group, settings in ranges.items()
            if isinstance(settings, dict)
            for key in settings.keys() & set(self.beyond)
            if settings[key][0] < own[group][key][0] or settings[key][1] > own[group][key][1]
        }
        shown = [
            key
            for name in self.names
            for key in CHANGES[name].akin
            if (name != "shadows" or self.renderer == "rays")
            and any(_shows(ranges, key) for ranges in trainings)
        ]
        return shown + [group for group in self.beyond if group in met]


def untold_origins(provenance: dict[str, Any]) -> list[str]:
    """The policies that this one comes from of which no more than a name was kept, as means once
    did: what they have met in training is unknown."""
    return [str(origin) for origin in _origins(provenance) if not _is_known(origin)]


def _origins(provenance: dict[str, Any]) -> Iterator[Any]:
    """Every policy that this one comes from, back to the first."""
    for origin in (*provenance.get("mean_of", ()), provenance.get("started_from")):
        if origin is not None:
            yield origin
        if _is_known(origin):
            yield from _origins(origin["provenance"])


def _is_known(origin: Any) -> bool:
    return isinstance(origin, dict)


def _shows(ranges: dict[str, Any], key: str) -> bool:
    """Whether a setting of appearance reaches above 0; ranges of before it was there have none."""
    return bool(ranges.get("appearance", {}).get(key, (0.0, 0.0))[1] > 0.0)


@dataclass(frozen=True)
class HeldOutOptions:
    """What a user chooses."""

    only: str | None = None  # changes, with commas between; None: all of them
    # Of `shadows`: classic (MuJoCo's, with EGL), rays; auto: classic where it runs.
    renderer: str = "auto"


def held_out(sims: str, options: HeldOutOptions) -> HeldOut | None:
    """None: `sims` is not held out. Raises UserError for a change or renderer that is not there,
    and for a choice among those where it has no effect."""
    if sims != "heldout":
        if options.only is not None:
            raise UserError("heldout.only= chooses among held-out changes; give sims=heldout")
        if options.renderer != "auto":
            raise UserError("heldout.renderer= draws held-out worlds; give sims=heldout")
        return None
    names = _names(options.only)
    renderer = options.renderer
    if renderer != "auto" and renderer not in RENDERERS:
        valid = ", ".join(("auto", *RENDERERS))
        raise UserError(f"heldout.renderer={renderer} is unknown; valid: {valid}")
    if "shadows" in names:
        return HeldOut(names, _renderer(renderer))
    if renderer != "auto":
        raise UserError(
            f"heldout.renderer={renderer} draws shadows, which heldout.only={options.only} leaves "
            "out; add shadows there, or leave heldout.renderer= away"
        )
    return HeldOut(names)


def _names(only: str | None) -> tuple[str, ...]:
    """Of `heldout.only`, in the order of CHANGES."""
    if only is None:
        return tuple(CHANGES)
    asked = [name.strip() for name in only.split(",")]
    for name in asked:
        if name not in CHANGES:
            hint = did_you_mean(name, CHANGES, most=1)
            raise UserError(
                f"heldout.only: there is no change '{name}'{hint}; valid: {', '.join(CHANGES)}"
            )
    return tuple(name for name in CHANGES if name in asked)


def _renderer(asked: str) -> str:
    """-> one of RENDERERS."""
    if asked == "rays":
        return asked
    if available():
        return "classic"
    if asked == "classic":
        raise UserError(
            "heldout.renderer=classic needs an EGL library (Debian: libegl1 libgl1-mesa-dri); "
            "install one, or give heldout.renderer=rays"
        )
    return "rays"
