"""What the factors of dynamics and latency do: a standard motion at both ends of each range.

For `benchmarks/factors.py`, which puts it beside the pictures of the factors that are seen. The
joints follow a sine of velocity, with all else neutral; a block spins, falls, or is pushed in the
air. Bodies move in plain MuJoCo with the fields that the randomizer wrote; what comes late, is
dropped or is noisy goes through the environment.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass, replace

import matplotlib
import mujoco
import numpy as np
import torch
from matplotlib.figure import Figure

from visuomotor.config import Config
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.envs.robot import JOINTS

LOW, HIGH = "#1b6ca8", "#d1660a"
PERIOD = 0.8  # s of the sine that joints are asked to follow
SHARE = 0.4  # of the velocity limit, its amplitude
ARM_JOINT, FINGER = 1, 6  # joint_2, finger_1
COLUMNS = 4
Path = tuple[np.ndarray, np.ndarray]  # s, what is drawn


@dataclass(frozen=True)
class Motion:
    tells: str
    shown: str  # with its unit
    run: Callable[[VisuomotorEnv], Path]


def motions_png(config: Config) -> bytes:
    """A small plot for each of MOTIONS, low end and high end in two colours; PNG."""
    rows = -(-len(MOTIONS) // COLUMNS)
    env = make_worlds(config)
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False}):
        figure = Figure(figsize=(11, 2.35 * rows), layout="constrained")
        places = iter(figure.subplots(rows, COLUMNS).flat)
        for (group, motion), axes in zip(MOTIONS.items(), places, strict=False):
            for end, colour in (("low", LOW), ("high", HIGH)):
                at_end(env, group, end)
                first = env.randomizer.columns(group)[0]
                value, unit = env.factors[0, first], env.randomizer.factors[first].unit
                axes.plot(*motion.run(env), color=colour, lw=1.3, label=f"{value:g} {unit}".strip())
            axes.set_title(f"{group}: {motion.tells}", fontsize=8)
            axes.set(xlabel="s", ylabel=motion.shown)
            bottom, top = axes.get_ylim()
            axes.set_ylim(bottom, top + 0.2 * (top - bottom))  # room for the legend
            short = {"handlelength": 1.0, "columnspacing": 1.0, "handletextpad": 0.4}
            axes.legend(frameon=False, fontsize=6.5, loc="upper center", ncols=2, **short)
        for axes in places:
            axes.set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110, format="png")
    return buffer.getvalue()


def make_worlds(config: Config) -> VisuomotorEnv:
    """One world, with a camera for when its pictures come, not for what is on them."""
    camera = replace(config.camera, height=8, width=8)
    return make_env(replace(config, camera=camera), num_envs=1, seed=3)


def at_end(env: VisuomotorEnv, group: str, end: str) -> None:
    """A start with the group at the end ("low", "high") of its range, all others neutral."""
    columns = env.randomizer.columns(group)
    for column, factor in enumerate(env.randomizer.factors):
        value = getattr(factor, end) if column in columns else factor.neutral
        env.randomizer.pin(factor.name, value)
    env.reset()


# --- in plain MuJoCo ------------------------------------------------------------------------------


def _bodies(env: VisuomotorEnv) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The first world, with its own model fields."""
    model = copy.copy(env.sim.model)
    for field in env.randomizer.fields:
        value = env.sim.model_field(field)[0].numpy()
        owner = model.opt if field.startswith("opt.") else model
        target = getattr(owner, field.removeprefix("opt."))
        target[:] = value.reshape(target.shape)
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    data.qpos[:] = env.sim.data("qpos")[0].numpy()
    return model, data


def _joint(index: int) -> Callable[[VisuomotorEnv], Path]:
    """How far a joint is behind what it is asked for, in mrad."""

    def run(env: VisuomotorEnv) -> Path:
        model, data = _bodies(env)
        actuator = model.actuator(JOINTS[index]).id
        place = int(env.jaco.qpos_ids[index])
        speed = SHARE * float(env.jaco.velocity_limits[index])
        start, asked, times, behind = data.qpos[place], 0.0, [], []
        while data.time < 2 * PERIOD:
            data.ctrl[actuator] = speed * np.sin(2 * np.pi * data.time / PERIOD)
            asked += data.ctrl[actuator] * model.opt.timestep
            mujoco.mj_step(model, data)
            times.append(data.time)
            behind.append(1000 * (asked - (data.qpos[place] - start)))
        return np.array(times), np.array(behind)

    return run


def _block(
    seconds: float,
    read: Callable[[np.ndarray], float],
    *,
    height: float | None = None,
    spin: float = 0.0,
    push: tuple[float, ...] = (0.0,) * 6,
) -> Callable[[VisuomotorEnv], Path]:
    """What `read` says of the block's qpos (7,), relative to its start.

    height: m of its centre; None: on the table. spin: rad/s about the vertical. push: N and N m,
    for 0.1 s.
    """

    def run(env: VisuomotorEnv) -> Path:
        model, data = _bodies(env)
        body = model.body("block_0").id
        joint = model.joint("block_0_joint")
        place, dof = int(joint.qposadr[0]), int(joint.dofadr[0])
        z = data.qpos[place + 2] if height is None else height
        data.qpos[place : place + 7] = (-0.2, -0.2, z, 1.0, 0.0, 0.0, 0.0)  # clear of all else
        data.qvel[dof + 5] = spin
        first, times, values = read(data.qpos[place : place + 7]), [], []
        for step in range(round(seconds / model.opt.timestep)):
            data.xfrc_applied[body] = push if step * model.opt.timestep < 0.0999 else 0.0
            mujoco.mj_step(model, data)
            times.append(data.time)
            values.append(read(data.qpos[place : place + 7]) - first)
        return np.array(times), np.array(values)

    return run


def _along_x(qpos: np.ndarray) -> float:
    """mm"""
    return 1000.0 * float(qpos[0])


def _turned(qpos: np.ndarray) -> float:
    """degrees about the vertical"""
    return float(np.rad2deg(2 * np.arctan2(qpos[6], qpos[3])))


# --- through the environment ----------------------------------------------------------------------


def _played(env: VisuomotorEnv) -> tuple[Path, np.ndarray, list[bool]]:
    """The sine asked of joint_2: its angle [degrees] from the start, its velocity as told less the
    true one [rad/s], and whether a picture has come, at each control step."""
    torch.manual_seed(0)
    angles, told, came = [0.0], [], []
    place = int(env.jaco.qpos_ids[ARM_JOINT])
    start = float(env.sim.data("qpos")[0, place])
    steps = round(2 * PERIOD / env.control_dt)
    for step in range(steps):
        action = torch.zeros(1, len(JOINTS))
        action[0, ARM_JOINT] = SHARE * np.sin(2 * np.pi * step * env.control_dt / PERIOD)
        seen = env.step(action).observation
        angles.append(float(np.rad2deg(float(env.sim.data("qpos")[0, place]) - start)))
        velocity = float(env.sim.data("qvel")[0, env.jaco.dof_ids[ARM_JOINT]])
        told.append(float(seen.proprio[0, 12 + ARM_JOINT]) - velocity)
        came.append(bool(seen.new_frame[0]))
    return (np.arange(steps + 1) * env.control_dt, np.array(angles)), np.array(told), came


def _path(env: VisuomotorEnv) -> Path:
    return _played(env)[0]


def _error(env: VisuomotorEnv) -> Path:
    (times, _), told, _ = _played(env)
    return times[1:], told


def _in_the_image(env: VisuomotorEnv) -> Path:
    """The angle that the newest picture shows, until the next one comes."""
    (times, angles), _, came = _played(env)
    delay = int(env.factors[0, env.randomizer.columns("camera_delay")[0]])
    shown, values = 0.0, [0.0]
    for step, new in enumerate(came, start=1):
        shown = float(angles[max(0, step - delay)]) if new else shown
        values.append(shown)
    # Held in between.
    return np.repeat(times, 2)[1:], np.repeat(values, 2)[:-1]


_ARM, _HAND = "joint_2 behind, mrad", "finger_1 behind, mrad"
MOTIONS: dict[str, Motion] = {
    "actuator_gain": Motion("a finger follows a sine", _HAND, _joint(FINGER)),
    "joint_damping": Motion("a finger follows a sine", _HAND, _joint(FINGER)),
    "joint_friction": Motion("a finger follows a sine", _HAND, _joint(FINGER)),
    "joint_armature": Motion("a joint follows a sine", _ARM, _joint(ARM_JOINT)),
    # Turned, it does not tip over, as it does where friction stops it on its way.
    "prop_friction": Motion(
        "a block spun at 30 rad/s", "degrees", _block(0.15, _turned, spin=30.0)
    ),
    "prop_mass": Motion(
        "in the air, 1 N for 0.1 s",
        "mm",
        _block(0.25, _along_x, height=0.6, push=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ),
    "prop_inertia": Motion(
        "in the air, 1 mN m for 0.1 s",
        "degrees",
        _block(0.25, _turned, height=0.6, push=(0.0, 0.0, 0.0, 0.0, 0.0, 0.001)),
    ),
    "gravity_tilt": Motion("a block falls, to the side", "mm", _block(0.3, _along_x, height=0.6)),
    "action_delay": Motion("a joint follows a sine", "joint_2, degrees", _path),
    "action_drop": Motion("a joint follows a sine", "joint_2, degrees", _path),
    "camera_delay": Motion("as the image shows it", "joint_2, degrees", _in_the_image),
    "proprio_noise": Motion("velocity, told less true", "joint_2, rad/s", _error),
}
