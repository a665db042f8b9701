"""Table, lights, camera, robot and a task's props -> one MjModel.

Knows nothing of learning. Every name that other modules look up is listed in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import mujoco
import numpy as np

from visuomotor.config import MOST_CLUTTER, CameraConfig, EnvConfig
from visuomotor.envs import robot
from visuomotor.randomization import CLUTTER, CLUTTER_DEPTH

# m; the top is z = 0 and reaches well beyond the hand's workspace and the camera's view.
TABLE_HALF_SIZE = (0.55, 0.5, 0.02)
TABLE_CENTRE = (0.0, 0.1, -0.02)
FLOOR_Z = -0.75  # m; below the table, only seen, never touched

TABLE_RGBA = (0.62, 0.6, 0.57, 1.0)
FLOOR_RGBA = (0.35, 0.37, 0.4, 1.0)
# (position [m], direction, diffuse): one key light in front, two weak fills from the sides. Wide
# spots, so that both position and direction show in the image.
LIGHTS = (
    ((0.3, -0.8, 1.8), (-0.15, 0.4, -0.9), (0.6, 0.6, 0.6)),
    ((-0.9, -0.2, 1.4), (0.54, 0.12, -0.84), (0.25, 0.25, 0.25)),
    ((0.9, 0.3, 1.4), (-0.54, -0.18, -0.84), (0.25, 0.25, 0.25)),
)
LIGHT_CUTOFF = 70.0  # degrees
LIGHT_EXPONENT = 1.0  # fall-off towards the rim of the cone
AMBIENT = (0.35, 0.35, 0.35)
HAND_CONTACT_SENSOR = "hand_contact/"  # + prop name: number of contacts of the hand with the prop

# Shape, half sizes [m] and turn about x [degrees] of each: rounded things. Held-out worlds have
# boxes, a cylinder and a sphere (heldout.py).
_CLUTTER = (
    (mujoco.mjtGeom.mjGEOM_ELLIPSOID, (0.035, 0.018, 0.012), 0.0),
    (mujoco.mjtGeom.mjGEOM_CAPSULE, (0.012, 0.025, 0.0), 90.0),
    (mujoco.mjtGeom.mjGEOM_ELLIPSOID, (0.014, 0.02, 0.03), 0.0),
    (mujoco.mjtGeom.mjGEOM_CAPSULE, (0.016, 0.02, 0.0), 0.0),
)
_CLUTTER_RGBA = (0.5, 0.5, 0.5, 1.0)
_CLUTTER_CLEARANCE = 0.05  # m from the farthest corner where props start to the ring's inner edge

TEXTURE_SIZE = 32  # pixels; on a 64x64 image more detail only aliases
NUM_TEXTURES = 8


def build_spec(env: EnvConfig, camera: CameraConfig) -> mujoco.MjSpec:
    """The scene without props. Physics options carry their reason here.

    Returns an uncompiled MjSpec; a task adds its props with `add_prop`, then `spec.compile()`.
    """
    spec = mujoco.MjSpec()
    spec.modelname = "visuomotor"
    spec.compiler.degree = False
    option = spec.option
    option.timestep = env.physics_dt
    # implicitfast: the velocity servos (kv = 500) are stiff; explicit Euler would need 1 ms.
    option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    # Friction is soft, and a held block creeps out of the fingers: with impratio 10, 11 % of 128
    # randomized worlds dropped it within 15 s, with 100 1.6 %, and none with the fingers' friction
    # in robot.py besides.
    option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    option.impratio = 100.0
    _add_textures(spec)
    world = spec.worldbody
    _material(spec, "floor", FLOOR_RGBA)
    _material(spec, "table", TABLE_RGBA)
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[3.0, 3.0, 0.1],
        pos=[0.0, 0.0, FLOOR_Z],
        material="floor",
        contype=0,
        conaffinity=0,
    )
    world.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=list(TABLE_HALF_SIZE),
        pos=list(TABLE_CENTRE),
        material="table",
    )
    for i, (pos, direction, diffuse) in enumerate(LIGHTS):
        world.add_light(
            name=f"light_{i}",
            pos=list(pos),
            dir=list(direction),
            type=mujoco.mjtLightType.mjLIGHT_SPOT,
            cutoff=LIGHT_CUTOFF,
            exponent=LIGHT_EXPONENT,
            diffuse=list(diffuse),
            ambient=list(AMBIENT) if i == 0 else [0.0, 0.0, 0.0],
            specular=[0.1, 0.1, 0.1] if i == 0 else [0.0, 0.0, 0.0],
            castshadow=i == 0,
        )
    spec.visual.headlight.active = 0
    _add_camera(spec, camera)
    base = world.add_frame(pos=list(robot.BASE_POS))
    jaco = robot.jaco_spec()
    spec.assets = {**spec.assets, **jaco.assets}  # attaching does not carry the meshes over
    base.attach_body(jaco.body("b_base"), robot.PREFIX, "")
    for material in spec.materials:
        if material.name.startswith(robot.PREFIX):
            material.textures = _texture_names("plain")  # so that randomization may swap it
    return spec


def add_block(
    spec: mujoco.MjSpec,
    name: str,
    edge: float,
    mass: float,
    rgba: tuple[float, float, float, float],
) -> None:
    """A cube of `edge` [m] and `mass` [kg] as a prop."""
    add_prop(spec, name, edge / 2, [Part(size=(edge / 2,) * 3, mass=mass, rgba=rgba)])


def add_clutter(spec: mujoco.MjSpec, workspace: float) -> None:
    """`clutter_<i>`: things that are seen and never touched. Each waits below the table, as near to
    the origin as it may come; randomization turns it about the origin and lifts it.

    workspace: m, within which props start, in x and in y.
    """
    nearest = np.sqrt(2.0) * workspace + _CLUTTER_CLEARANCE
    assert len(_CLUTTER) == MOST_CLUTTER
    for i, (kind, size, turn) in enumerate(_CLUTTER):
        name = f"{CLUTTER}{i}"
        _material(spec, name, _CLUTTER_RGBA)
        upright = size[0] + size[1] if kind == mujoco.mjtGeom.mjGEOM_CAPSULE else size[2]
        height = size[0] if turn else upright
        half = np.deg2rad(turn) / 2
        spec.worldbody.add_geom(
            name=name,
            type=kind,
            size=list(size),
            pos=[nearest, 0.0, height - CLUTTER_DEPTH],
            quat=[np.cos(half), np.sin(half), 0.0, 0.0],
            material=name,
            contype=0,
            conaffinity=0,
        )


@dataclass(frozen=True)
class Part:
    """A geom of a prop, in the prop's own frame."""

    size: tuple[float, ...]  # m, as MuJoCo's geom sizes
    mass: float  # kg
    rgba: tuple[float, float, float, float]
    pos: tuple[float, float, float] = (0.0, 0.0, 0.0)  # m
    quat: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)  # w first
    type: mujoco.mjtGeom = mujoco.mjtGeom.mjGEOM_BOX
    # Parts of one material are drawn alike: "" or the word behind `<prop>/` in its name.
    material: str = ""


def add_prop(spec: mujoco.MjSpec, name: str, height: float, parts: Sequence[Part]) -> None:
    """A body with a free joint, and a sensor that counts its contacts with the hand.

    name: `<prop>`, or `<group>/<index>` for props that share materials and randomized factors.
    height: m of the body's origin above the table when it lies there. condim 4 adds torsional
    friction, so that a prop pinched by two fingertips does not spin; priority 1 makes its friction
    decide against the arm's and the table's.
    """
    group = name.split("/")[0]
    body = spec.worldbody.add_body(name=name, pos=[0.0, 0.0, height])
    body.add_joint(name=f"{name}_joint", type=mujoco.mjtJoint.mjJNT_FREE)
    known = {material.name for material in spec.materials}
    for index, part in enumerate(parts):
        material = f"{group}/{part.material}" if part.material else group
        if material not in known:
            _material(spec, material, part.rgba)
            known.add(material)
        body.add_geom(
            name=name if index == 0 else f"{name}:{index}",
            type=part.type,
            size=list(part.size) + [0.0] * (3 - len(part.size)),
            pos=list(part.pos),
            quat=list(part.quat),
            mass=part.mass,
            material=material,
            condim=4,
            friction=[1.0, 0.02, 0.0005],  # sliding, torsional [m], rolling [m]
            priority=1,
        )
    if len(parts) > 1:
        # Boxes around groups of geoms are made for the sizes that were compiled; sizes differ
        # between worlds.
        spec.option.disableflags |= mujoco.mjtDisableBit.mjDSBL_MIDPHASE
    # The hand with all that hangs on it.
    add_contact_sensor(spec, f"{HAND_CONTACT_SENSOR}{name}", robot.HAND_BODY, name, subtree=True)


def add_contact_sensor(
    spec: mujoco.MjSpec, name: str, first: str, second: str, *, subtree: bool = False
) -> None:
    """Counts the contacts between two bodies. subtree: of the first one with its children."""
    sensor = spec.add_sensor(
        name=name,
        type=mujoco.mjtSensor.mjSENS_CONTACT,
        objtype=mujoco.mjtObj.mjOBJ_XBODY if subtree else mujoco.mjtObj.mjOBJ_BODY,
        objname=first,
        reftype=mujoco.mjtObj.mjOBJ_BODY,
        refname=second,
    )
    found = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)
    sensor.intprm[:3] = [found, 0, 1]


def add_sphere(
    spec: mujoco.MjSpec,
    name: str,
    radius: float,
    mass: float,
    rgba: tuple[float, float, float, float],
    *,
    drag: float,
    solref: tuple[float, float],
) -> None:
    """A small sphere, a drop of what is poured: a free body that no hand deals with on its own.

    name: `<group>/<index>`, as of a prop. drag: N s/m, through the air and along what it lies on.
    solref: of its contacts with anything, as MuJoCo's.
    It has no friction (condim 1, and priority 2 makes that hold against props too): it flows as a
    liquid does, and ten that lie in a heap are solved 1.1 to 6 times as fast as with friction.
    """
    group = name.split("/")[0]
    body = spec.worldbody.add_body(name=name, pos=[0.0, 0.0, radius])
    joint = body.add_joint(name=f"{name}_joint", type=mujoco.mjtJoint.mjJNT_FREE)
    joint.damping = [drag, 0.0, 0.0]
    if group not in {material.name for material in spec.materials}:
        _material(spec, group, rgba)
    body.add_geom(
        name=name,
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[radius, 0.0, 0.0],
        mass=mass,
        material=group,
        condim=1,
        priority=2,
        solref=list(solref),
    )


def _add_camera(spec: mujoco.MjSpec, camera: CameraConfig) -> None:
    pos = np.asarray(camera.pos, dtype=float)
    backward = pos - np.asarray(camera.lookat, dtype=float)
    backward /= np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, rotation.ravel())
    spec.worldbody.add_camera(name="front", pos=pos, quat=quat, fovy=camera.fovy)


def _material(spec: mujoco.MjSpec, name: str, rgba: tuple[float, float, float, float]) -> None:
    spec.add_material(
        name=name,
        rgba=list(rgba),
        textures=_texture_names("plain"),
        specular=0.3,
        shininess=0.3,
        texrepeat=[2, 2],
    )


def _texture_names(name: str) -> list[str]:
    """The texture in the colour role of a material, nothing in the others."""
    names = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
    names[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = name
    return names


def _add_textures(spec: mujoco.MjSpec) -> None:
    """`plain` (white) and `texture_<i>`: grey patterns that multiply the material's colour."""
    plain = np.full((TEXTURE_SIZE, TEXTURE_SIZE), 255, dtype=np.uint8)
    patterns = [plain, *_patterns(np.random.default_rng(0))]
    for i, grey in enumerate(patterns):
        name = "plain" if i == 0 else f"texture_{i - 1}"
        # As an image file in memory: MJCF cannot be written with raw texture buffers.
        encoded, png = cv2.imencode(".png", np.repeat(grey[..., None], 3, axis=2))
        assert encoded
        spec.assets = {**spec.assets, f"{name}.png": png.tobytes()}
        spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=f"{name}.png")


def _patterns(rng: np.random.Generator) -> list[np.ndarray]:
    """Checks, stripes, gradients and smooth noise, (32, 32) uint8, mean about 0.8 of white."""
    y, x = np.mgrid[0:TEXTURE_SIZE, 0:TEXTURE_SIZE] / TEXTURE_SIZE
    unit = [
        ((x * 4).astype(int) + (y * 4).astype(int)) % 2,
        (x * 6).astype(int) % 2,
        0.5 + 0.5 * np.sin(2 * np.pi * (3 * x + 2 * y)),
        np.hypot(x - 0.5, y - 0.5) / np.sqrt(0.5),
    ]
    for octave in (4, 8, 16, 32):
        coarse = rng.random((octave, octave))
        unit.append(np.kron(coarse, np.ones((TEXTURE_SIZE // octave,) * 2)))
    return [(255 * (0.6 + 0.4 * u)).astype(np.uint8) for u in unit][:NUM_TEXTURES]
