"""What policy.json says of an exported policy: everything a control loop or a reader must know.

Facts come from the compiled model and the configuration, never from a second list of them.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

import visuomotor
from visuomotor.config import CameraConfig, Config
from visuomotor.envs import VisuomotorEnv, robot
from visuomotor.policy_files import PRETRAINED

CAMERA = "front"
# Distributions whose versions decide what a policy does.
_DISTRIBUTIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy", "mujoco", "mujoco-warp")
# Of an evaluation, what is worth reading beside the policy; the rest is in evaluation.json.
_EVALUATION_KEYS = (
    "sims",
    "strength",
    "seed",
    "episodes",
    "successes",
    "success_rate",
    "success_low",
    "success_high",
    "mean_return",
)


def describe(
    config: Config,
    env: VisuomotorEnv,
    memory: int,
    recurrent: bool,
    evaluation: dict[str, Any] | None,
    provenance: dict[str, Any] | None,
) -> dict[str, Any]:
    """policy.json without the hashes; floats in full precision, units in the names.

    memory: length of h and of c; recurrent: False if the memory is only handed through.
    """
    camera = config.camera
    return {
        "task": config.task,
        "control": {
            "rate_hz": 1.0 / config.env.control_dt,
            "period_s": config.env.control_dt,
            "episode_steps": env.episode_steps,
        },
        "joints": {
            "names": list(robot.JOINTS),
            "velocity_limits": env.jaco.velocity_limits.tolist(),
            "unit": "rad/s",
            "sign": "as in the model of dm_control's Jaco; positive fingers close",
        },
        "start": _start(env),
        "pixels": {
            "shape": [1, camera.height, camera.width, 3],
            "type": "uint8",
            "channels": "RGB",
            "range": [0, 255],
        },
        "proprio": {
            "size": robot.PROPRIO_DIM,
            "type": "float32",
            "entries": _proprio_entries(),
            "unit": "sin and cos without unit, velocities in rad/s",
            "normalization": "inside policy.onnx",
        },
        "recurrent": {
            "kind": "lstm" if recurrent else "none",
            "shape": [1, memory],
            "inputs": ["h_in", "c_in"],
            "outputs": ["h_out", "c_out"],
            "at_episode_start": 0.0,
        },
        "joint_velocities": {
            "shape": [1, robot.NUM_JOINTS],
            "type": "float32",
            "unit": "rad/s",
            "within": "plus and minus joints.velocity_limits",
        },
        "inputs_finite": {
            "type": "bool",
            "meaning": "false if proprio, h_in or c_in held NaN or infinity; velocities are then 0 "
            "and the memory is handed back as it came",
        },
        "camera": _camera(camera, env),
        "preprocessing": {
            "steps": [
                "undistort to camera.intrinsics",
                "resize to camera.height x camera.width (area averaging)",
                "order channels as RGB",
            ],
            "scaling": "inside policy.onnx",
        },
        "randomization": dataclasses.asdict(config.randomization),
        "latency": _latency(config),
        "evaluation": None
        if evaluation is None
        else {key: evaluation[key] for key in _EVALUATION_KEYS if key in evaluation},
        "provenance": provenance,
        "versions": _versions(),
        "git_commit": _git_commit(),
    }


def _start(env: VisuomotorEnv) -> dict[str, Any] | None:
    """Where the joints stand when an episode begins; None for a task that puts them elsewhere."""
    drawn = env.task.start_state(np.random.default_rng(0))[env.jaco.qpos_ids.cpu().numpy()]
    if (np.abs(drawn - robot.START_QPOS) > robot.START_SPREAD).any():
        return None
    return {
        "positions": list(robot.START_QPOS),
        "spread": list(robot.START_SPREAD),
        "unit": "rad",
        "meaning": "in training each joint began within plus and minus spread of its position",
    }


def _proprio_entries() -> list[str]:
    """The order of `Jaco.proprio`."""
    arm, fingers = robot.ARM_JOINTS, robot.FINGER_JOINTS
    groups = (("sin", arm), ("cos", arm), ("velocity", arm), ("sin", fingers), ("cos", fingers))
    return [f"{what}({joint})" for what, joints in groups for joint in joints]


def _camera(camera: CameraConfig, env: VisuomotorEnv) -> dict[str, Any]:
    """The nominal camera. Pixel (0, 0) covers x and y from 0 to 1: its centre is at 0.5."""
    model = env.sim.model
    camera_id = model.camera(CAMERA).id
    fovy = float(model.cam_fovy[camera_id])
    focal = 0.5 * camera.height / math.tan(math.radians(fovy) / 2)  # square pixels
    return {
        "name": CAMERA,
        "height": camera.height,
        "width": camera.width,
        "fovy_deg": fovy,
        "intrinsics": {
            "fx": focal,
            "fy": focal,
            "cx": camera.width / 2,
            "cy": camera.height / 2,
            "distortion": [],
        },
        "pixel_convention": "cx and cy count from the image's upper left corner, so the centre of "
        "the first pixel is at (0.5, 0.5); in OpenCV, where it is at (0, 0), both are 0.5 less",
        "pos_w_m": model.cam_pos[camera_id].tolist(),
        "quat_wxyz_camera_to_world": model.cam_quat[camera_id].tolist(),
        "axes": "x right, y up, looks along -z",
        "lookat_w_m": list(camera.lookat),
        "arm_base_pos_w_m": list(robot.BASE_POS),
        "refresh_period_steps": camera.period,
        "refresh_period_s": camera.period * env.control_dt,
    }


def _latency(config: Config) -> dict[str, Any]:
    """What the policy was trained to bear, at strength 1; see randomization.strength."""
    latency, dt = config.randomization.latency, config.env.control_dt
    return {
        "trained": latency.enabled and config.randomization.strength > 0.0,
        "camera_delay_s": [steps * dt for steps in latency.camera_delay],
        "action_delay_s": [steps * dt for steps in latency.action_delay],
        "action_drop_probability": list(latency.action_drop),
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "visuomotor": visuomotor.__version__,
        "python": platform.python_version(),
    }
    for name in _DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _git_commit() -> str | None:
    """The commit of this source tree, with "-dirty" if it was changed; None outside a checkout.

    Shipped bundles do not count: exporting one does not change the source that exports the next.
    """
    package = Path(__file__).resolve().parent
    root = _git(package, "rev-parse", "--show-toplevel")
    # Installed into an environment inside some other repository, git would answer for that one.
    if root is None or Path(root).resolve() / package.name != package:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    but = (":(top)", f":(top,exclude){package.name}/{PRETRAINED.name}")
    changes = _git(package, "status", "--porcelain", "--untracked-files=no", "--", *but)
    return commit if commit is None or not changes else f"{commit}-dirty"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ("git", "-C", str(folder), *arguments), capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
