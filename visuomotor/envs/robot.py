"""The Kinova Jaco: where it stands, its joints and limits, action -> ctrl, proprioception.

Model and meshes come from dm_control (`dm_control.entities.manipulators.kinova`). Knows nothing of
tasks or of learning.
"""

from __future__ import annotations

import functools
import warnings

import mujoco
import numpy as np
import torch
from torch import Tensor

with warnings.catch_warnings():
    # dm_control probes for a window system; nothing here opens a window.
    warnings.simplefilter("ignore")
    from dm_control.entities.manipulators import kinova

PREFIX = "jaco_arm/"
HAND_PREFIX = "jaco_arm/jaco_hand/"
ARM_JOINTS = tuple(f"{PREFIX}joint_{i}" for i in range(1, 7))
FINGER_JOINTS = tuple(f"{HAND_PREFIX}finger_{i}" for i in range(1, 4))
JOINTS = ARM_JOINTS + FINGER_JOINTS
PINCH_SITE = f"{HAND_PREFIX}pinchsite"
FINGERTIPS = tuple(f"{HAND_PREFIX}b_finger_tip_{i}" for i in range(1, 4))
HAND_BODY = f"{HAND_PREFIX}hand"

NUM_JOINTS = len(JOINTS)
PROPRIO_DIM = 24  # sin, cos of 6 joints, 6 joint velocities, sin, cos of 3 fingers

FIRST_JOINT_TURN = -1.0  # rad of the first joint that turn the arm by 1 rad, seen from above
BASE_POS = (0.0, 0.4, 0.0)  # m; the table's far edge, so that the hand works at the origin
# rad; hand some 20 cm above the origin, fingers down, open; tuned: far from self-collision.
START_QPOS = (-1.727, 3.623, 1.245, -0.234, 0.891, -0.39, 0.3, 0.3, 0.3)
START_NOISE_ARM = 0.08  # rad, half width of the uniform spread at reset
START_NOISE_FINGER = 0.1  # rad
START_SPREAD = (*6 * [START_NOISE_ARM], *3 * [START_NOISE_FINGER])  # rad, joint by joint

# rad/s. The hand's actuators allow 5, but saturate their torque at about 0.1 rad/s of velocity
# error: a scale of 1.2 leaves the policy some resolution in closing speed.
FINGER_MAX_VELOCITY = 1.2
# A finger's drive, which its load does not turn back: with dm_control's 0.1 N m of friction the two
# fingers of one side are pushed open by the one of the other, until the block slips. Friction is
# assumed; the actuator's torque is larger by as much, so that a finger presses as before (1 N m),
# and its gain keeps the speed that an action asks for.
FINGER_FRICTION = 0.7  # N m
FINGER_TORQUE = 1.7  # N m
FINGER_GAIN = 20.0  # N m s/rad


def jaco_spec() -> mujoco.MjSpec:
    """The arm with its hand, as dm_control models it, without the torque sensors.

    Gravity is compensated on every link: the real arm's firmware does the same, and without it the
    velocity servo sags by up to 0.02 rad/s. Each call returns a spec of its own.
    """
    return _jaco_spec().copy()


@functools.cache
def _jaco_spec() -> mujoco.MjSpec:
    """Reading the files takes longer than all else in making a scene: once a process."""
    arm = kinova.JacoArm()
    arm.attach(kinova.JacoHand())
    spec = mujoco.MjSpec.from_string(
        arm.mjcf_model.to_xml_string(), assets=arm.mjcf_model.get_assets()
    )
    for sensor in list(spec.sensors):
        spec.delete(sensor)
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1.0
    fingers = [name.removeprefix(PREFIX) for name in FINGER_JOINTS]
    for joint in spec.joints:
        if joint.name in fingers:
            joint.frictionloss = FINGER_FRICTION
    for actuator in spec.actuators:
        if actuator.name in fingers:
            actuator.forcerange = [-FINGER_TORQUE, FINGER_TORQUE]
            actuator.gainprm[0] = FINGER_GAIN
            actuator.biasprm[2] = -FINGER_GAIN
    return spec


class Jaco:
    """Indices of the arm in a compiled model, and the two maps between policy and simulation.

    Actions are 9 joint velocities in [-1, 1] (6 arm joints, 3 fingers; positive fingers close).
    """

    def __init__(self, model: mujoco.MjModel, device: torch.device):
        joints = [model.joint(name) for name in JOINTS]
        self.qpos_ids = torch.tensor([int(j.qposadr[0]) for j in joints], device=device)
        self.dof_ids = torch.tensor([int(j.dofadr[0]) for j in joints], device=device)
        actuators = [model.actuator(name).id for name in JOINTS]
        self.actuator_ids = torch.tensor(actuators, device=device)
        limits = model.actuator_ctrlrange[actuators, 1].copy()
        limits[6:] = FINGER_MAX_VELOCITY
        # (9,) rad/s: what an action of 1 asks for.
        self.velocity_limits = torch.tensor(limits, device=device)
        self.pinch_site_id = int(model.site(PINCH_SITE).id)
        self.fingertip_body_ids = torch.tensor(
            [int(model.body(name).id) for name in FINGERTIPS], device=device
        )
        self.joint_range = torch.tensor(
            np.array([j.range if model.jnt_limited[j.id] else (-np.inf, np.inf) for j in joints]),
            device=device,
        )

    def ctrl(self, action: Tensor) -> Tensor:
        """action (N, 9) in [-1, 1] -> ctrl (N, 9) in rad/s, float64."""
        return action.double().clamp(-1.0, 1.0) * self.velocity_limits

    def proprio(self, qpos: Tensor, qvel: Tensor) -> Tensor:
        """qpos (N, nq), qvel (N, nv) -> (N, 24) float32: sin, cos [6 joints], velocity [rad/s],
        sin, cos [3 fingers] (Zhu et al. 2018)."""
        q = qpos[:, self.qpos_ids]
        arm, fingers = q[:, :6], q[:, 6:]
        arm_velocity = qvel[:, self.dof_ids[:6]]
        parts = (arm.sin(), arm.cos(), arm_velocity, fingers.sin(), fingers.cos())
        return torch.cat(parts, dim=1).float()
