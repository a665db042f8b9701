"""Scripted demonstrators: waypoints of the hand, damped least-squares inverse kinematics.

They see the full state and make demonstrations; they never act or label during training. Every
episode draws its own speeds, heights and offsets, as different people would move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import robot
from visuomotor.envs.environment import VisuomotorEnv
from visuomotor.envs.tasks.task import BLOCK_EDGE

DAMPING = 0.05  # of the least squares, on Jacobians in m/rad and rad/rad; bounds joint speed at
# singularities at the price of some lag
POSITION_GAIN = 4.0  # 1/s, proportional; tuned: no overshoot at 20 Hz
ROTATION_GAIN = 3.0  # 1/s
OPEN = 0.3  # rad, finger angle of an open hand: lets a block pass with 2 cm to spare on each side
FINGER_GAIN = 5.0  # 1/s
CLOSE_STEPS = 14  # control steps: long enough to close and press
OPEN_STEPS = 8  # control steps
GRASP_DEPTH = -0.004  # m, pinch site relative to the block's centre when grasping

# Phases, in order; lifting ends with LIFT.
APPROACH, DESCEND, CLOSE, LIFT, CARRY, LOWER, RELEASE, RETREAT = range(8)


@dataclass
class _Style:
    """One episode's way of moving; each (N,) or (N, 3)."""

    speed: Tensor  # scale of the gains
    max_speed: Tensor  # m/s of the hand
    hover: Tensor  # m above the block before the descent
    carry_height: Tensor  # m of the block's centre while carried
    grasp_offset: Tensor  # (N, 3) m
    place_offset: Tensor  # (N, 3) m
    yaw_offset: Tensor  # rad


class Expert:
    """Acts for all worlds of an environment at once; worlds are told apart by their phase."""

    def __init__(self, env: VisuomotorEnv, seed: int):
        self._env = env
        self._task = env.task
        self._sim = env.sim
        self._jaco = env.jaco
        self._stacking = len(env.task.props) > 1
        self._rng = np.random.default_rng([seed, 3])
        n = env.num_envs
        self._phase = torch.zeros(n, dtype=torch.int64)
        self._since = torch.zeros(n, dtype=torch.int64)  # control steps in this phase
        self._yaw = torch.zeros(n, dtype=torch.float64)
        self._hold = torch.zeros(n, 3, dtype=torch.float64)
        self._style = self._draw(n)
        joints = [env.sim.model.joint(name).id for name in robot.ARM_JOINTS]
        self._joint_ids = torch.tensor(joints)
        self.reset(torch.arange(n))

    def _draw(self, n: int) -> _Style:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.from_numpy(self._rng.uniform(low, high, size=(n, *shape)))

        return _Style(
            speed=uniform(0.8, 1.2),
            max_speed=uniform(0.16, 0.26),
            hover=uniform(0.07, 0.1),
            carry_height=uniform(0.11, 0.15),
            grasp_offset=uniform(-0.003, 0.003, 3),
            place_offset=uniform(-0.002, 0.002, 3),
            yaw_offset=uniform(-0.08, 0.08),
        )

    def reset(self, env_ids: Tensor) -> None:
        """Begins anew in these worlds: draws a style and chooses how to turn the hand."""
        fresh = self._draw(len(env_ids))
        for name, values in vars(fresh).items():
            getattr(self._style, name)[env_ids] = values
        self._phase[env_ids] = APPROACH
        self._since[env_ids] = 0
        self._yaw[env_ids] = self._choose_yaw()[env_ids]

    def _choose_yaw(self) -> Tensor:
        """(N,) rad: heading of the closing axis, along a face normal of the block: the one that
        needs little turning and keeps the fingers away from a neighbour."""
        mat = self._sim.data("xmat")[:, self._task._prop_body_ids[0]].view(-1, 3, 3)
        block_yaw = torch.atan2(mat[:, 1, 0], mat[:, 0, 0])
        turns = torch.arange(4, dtype=torch.float64) * (torch.pi / 2)
        candidates = block_yaw.unsqueeze(1) + turns  # (N, 4)
        turn = _wrap(candidates - self._heading().unsqueeze(1))
        cost = turn.abs()
        if self._stacking:
            offset = self._task.prop_pos(1) - self._task.prop_pos(0)
            direction = torch.atan2(offset[:, 1], offset[:, 0]).unsqueeze(1)
            near = ((0.14 - offset[:, :2].norm(dim=1)) / 0.05).clamp(0, 1).unsqueeze(1)
            cost = cost + 2.5 * near * (candidates - direction).cos().abs()
        best = cost.argmin(dim=1)
        chosen = candidates.gather(1, best.unsqueeze(1)).squeeze(1)
        return chosen + self._style.yaw_offset

    def _heading(self) -> Tensor:
        """(N,) rad: direction of the hand's closing axis, the pinch site's x, on the table."""
        mat = self._sim.data("site_xmat")[:, self._jaco.pinch_site_id].view(-1, 3, 3)
        return torch.atan2(mat[:, 1, 0], mat[:, 0, 0])

    def act(self) -> Tensor:
        """(N, 9) float32 in [-1, 1]."""
        target, finger_goal = self._waypoint()
        pinch = self._task.pinch_pos()
        style = self._style
        linear = POSITION_GAIN * style.speed.unsqueeze(1) * (target - pinch)
        speed = linear.norm(dim=1, keepdim=True)
        linear = linear * (style.max_speed.unsqueeze(1) / speed.clamp(min=1e-9)).clamp(max=1.0)
        angular = ROTATION_GAIN * self._rotation_error()
        joint_velocity = self._inverse_kinematics(torch.cat((linear, angular), dim=1))
        arm_limits = self._jaco.velocity_limits[:6]
        excess = (joint_velocity.abs() / arm_limits).amax(dim=1, keepdim=True).clamp(min=1.0)
        arm = joint_velocity / excess / arm_limits
        fingers = self._sim.data("qpos")[:, self._jaco.qpos_ids[6:]]
        opening = (FINGER_GAIN * (OPEN - fingers) / robot.FINGER_MAX_VELOCITY).clamp(-1, 1)
        finger_action = torch.where(finger_goal.unsqueeze(1), torch.ones_like(opening), opening)
        self._advance(target)
        return torch.cat((arm, finger_action), dim=1).float()

    def _waypoint(self) -> tuple[Tensor, Tensor]:
        """Target of the pinch site (N, 3) [m], and whether the fingers press (N,)."""
        style, phase = self._style, self._phase
        block = self._task.prop_pos(0)
        pinch = self._task.pinch_pos()
        grasp = block + style.grasp_offset
        grasp = grasp + torch.tensor([0.0, 0.0, GRASP_DEPTH])
        above = grasp.clone()
        above[:, 2] = grasp[:, 2] + style.hover
        carried = pinch - block  # how the hand holds the block
        lift = self._hold.clone()
        lift[:, 2] = style.carry_height + carried[:, 2]
        options = [above, grasp, self._hold, lift]
        if self._stacking:
            base = self._task.prop_pos(1) + style.place_offset
            carry = base + carried
            carry[:, 2] = style.carry_height + carried[:, 2]
            lower = base + carried
            lower[:, 2] = base[:, 2] + BLOCK_EDGE + 0.002 + carried[:, 2]
            retreat = self._hold.clone()
            retreat[:, 2] = self._hold[:, 2] + 0.09
            options += [carry, lower, self._hold, retreat]
        stacked = torch.stack(options, dim=1)
        target = stacked[torch.arange(len(phase)), phase]
        return target, (phase >= CLOSE) & (phase < RELEASE)

    def _rotation_error(self) -> Tensor:
        """(N, 3) rad, world frame: from the hand's pose to fingers down, closing along the yaw."""
        mat = self._sim.data("site_xmat")[:, self._jaco.pinch_site_id].view(-1, 3, 3)
        zero = torch.zeros_like(self._yaw)
        x = torch.stack((self._yaw.cos(), self._yaw.sin(), zero), dim=1)
        z = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(x)
        y = torch.linalg.cross(z, x)
        goal = torch.stack((x, y, z), dim=2)
        # Half the sum of the axes' cross products: the rotation vector up to third order, and well
        # behaved beyond.
        return 0.5 * torch.linalg.cross(mat, goal, dim=1).sum(dim=2)

    def _inverse_kinematics(self, twist: Tensor) -> Tensor:
        """twist (N, 6) m/s, rad/s of the pinch site -> (N, 6) rad/s: J^T (J J^T + d^2 I)^-1 v."""
        axis = self._sim.data("xaxis")[:, self._joint_ids]
        lever = self._task.pinch_pos().unsqueeze(1) - self._sim.data("xanchor")[:, self._joint_ids]
        jacobian = torch.cat((torch.linalg.cross(axis, lever), axis), dim=2).transpose(1, 2)
        gram = jacobian @ jacobian.transpose(1, 2)
        gram = gram + DAMPING**2 * torch.eye(6, dtype=gram.dtype)
        return (jacobian.transpose(1, 2) @ torch.linalg.solve(gram, twist.unsqueeze(2))).squeeze(2)

    def _advance(self, target: Tensor) -> None:
        """Moves worlds that reached their waypoint to the next phase."""
        phase = self._phase
        pinch = self._task.pinch_pos()
        error = (target - pinch).norm(dim=1)
        turned = self._rotation_error().norm(dim=1) < 0.12
        done = torch.zeros_like(phase, dtype=torch.bool)
        done |= (phase == APPROACH) & (error < 0.02) & turned
        done |= (phase == DESCEND) & (error < 0.008)
        done |= (phase == CLOSE) & (self._since >= CLOSE_STEPS)
        done |= (phase == LIFT) & (error < 0.02)
        done |= (phase == CARRY) & (error < 0.01)
        done |= (phase == LOWER) & (error < 0.005)
        done |= (phase == RELEASE) & (self._since >= OPEN_STEPS)
        last = RETREAT if self._stacking else LIFT
        done &= phase < last
        self._hold[done] = pinch[done]
        # A block that slipped: start over.
        far = (self._task.prop_pos(0) - pinch).norm(dim=1) > 0.07
        lost = far & (phase >= LIFT) & (phase <= LOWER)
        self._since = torch.where(done | lost, 0, self._since + 1)
        self._phase = torch.where(lost, APPROACH, phase + done.long())


def _wrap(angle: Tensor) -> Tensor:
    """To [-pi, pi)."""
    return (angle + torch.pi) % (2 * torch.pi) - torch.pi
