"""Scripted demonstrators: where the hand should be, damped least-squares inverse kinematics.

They see the full state and make demonstrations; they never act or label during training. What they
do follows from what is there to be seen, never from a clock or a hidden phase: a policy can learn
that, and it starts over by itself when a block slips. Every episode draws its own speeds, heights
and offsets, as different people would move.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import robot
from visuomotor.envs.environment import VisuomotorEnv
from visuomotor.envs.kinematics import HandMotion

POSITION_GAIN = 4.0  # 1/s, proportional; tuned: no overshoot at 20 Hz
ROTATION_GAIN = 3.0  # 1/s
OPEN = 0.3  # rad, finger angle of an open hand: lets a block pass with 2 cm to spare on each side
FINGER_GAIN = 5.0  # 1/s
# Of a finger's action once it holds: the drive gives all its torque for a tenth of its speed. A
# clone that is not sure yet whether to let go then opens the hand, and does not stop half way.
HOLD = 0.5
GRASP_DEPTH = -0.004  # m, pinch site relative to the block's centre when grasping
# A hand comes down as it gets above its goal: the height it keeps falls over this range of
# horizontal distance (m), and over this range of missing turn (rad).
FUNNEL = (0.006, 0.036)
TURN_FUNNEL = (0.1, 0.4)
# The block is between the fingers, m: horizontally, and in height.
AROUND = (0.02, 0.015)
# ... and they hold it: closed beyond this angle (rad), and slower than this (rad/s).
FIRM = (0.6, 0.12)
CLEARANCE = 0.012  # m of a carried block's centre above where it will lie, before it moves sideways
# m, horizontally and in height: a block there is let go. It rests then: letting go on the way
# down teaches a clone to stop there, half holding on.
PLACED = (0.018, 0.0015)
REACH_BEYOND = 0.003  # m under where a block will lie: the hand presses it down a little
JOINT_DEPTH = -0.013  # m, pinch site relative to where two blocks meet, to grasp both
JOINT_REACHED = 0.008  # m in height
# m from the pinch site: two blocks in the hand are further off once they have slipped.
STILL_HELD = 0.03
OFF_TABLE = 0.004  # m of the lower one: it is in the hand, not on the table
RETREAT = 0.09  # m, straight up from a block that was let go
LET_GO = 0.15  # rad that a finger may still miss of OPEN when the hand goes up


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
    """Acts for all worlds of an environment at once."""

    def __init__(self, env: VisuomotorEnv, seed: int):
        self._env = env
        self._task = env.task
        self._sim = env.sim
        self._jaco = env.jaco
        self._stacking = len(env.task.props) > 1
        self._clearing = env.task.name == "clearing_blocks"
        self._rng = np.random.default_rng([seed, 3])
        self._style = self._draw(env.num_envs)
        self._hand = HandMotion(env.sim, env.jaco)

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
        """Begins anew in these worlds: draws a style."""
        fresh = self._draw(len(env_ids))
        for name, values in vars(fresh).items():
            getattr(self._style, name)[env_ids] = values

    def _grasp_yaw(self) -> Tensor:
        """(N,) rad: heading of the closing axis, along a face normal of the block: the one that
        needs little turning and keeps the fingers away from a neighbour."""
        turns = torch.arange(4, dtype=torch.float64) * (torch.pi / 2)
        candidates = self._task.prop_yaw(0).unsqueeze(1) + turns  # (N, 4)
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
        mat = self._hand.mat()
        return torch.atan2(mat[:, 1, 0], mat[:, 0, 0])

    def act(self) -> Tensor:
        """(N, 9) float32 in [-1, 1]."""
        target, yaw, press = self._goal()
        style = self._style
        linear = POSITION_GAIN * style.speed.unsqueeze(1) * (target - self._task.pinch_pos())
        speed = linear.norm(dim=1, keepdim=True)
        linear = linear * (style.max_speed.unsqueeze(1) / speed.clamp(min=1e-9)).clamp(max=1.0)
        angular = ROTATION_GAIN * self._rotation_error(yaw)
        arm = self._hand.arm_action(torch.cat((linear, angular), dim=1))
        fingers = self._sim.data("qpos")[:, self._jaco.qpos_ids[6:]]
        opening = (FINGER_GAIN * (OPEN - fingers) / robot.FINGER_MAX_VELOCITY).clamp(-1, 1)
        closing = torch.where(self._firm(), HOLD, 1.0).unsqueeze(1).expand_as(opening)
        finger_action = torch.where(press.unsqueeze(1), closing, opening)
        return torch.cat((arm, finger_action), dim=1).float()

    def _goal(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where the pinch site should be (N, 3) [m], its heading (N,) [rad], and whether the
        fingers press (N,)."""
        pinch, block = self._task.pinch_pos(), self._task.prop_pos(0)
        yaw = self._grasp_yaw()
        target, around = self._above_grasp(yaw)
        held = around & self._firm()
        target = _where(held, self._carried(), target)
        yaw = torch.where(held, self._carried_yaw(), yaw)
        press = around
        if self._stacking:
            place = self._place()
            lies = (block - place)[:, :2].norm(dim=1) < PLACED[0]
            lies &= block[:, 2] - place[:, 2] < PLACED[1]
            fingers = self._sim.data("qpos")[:, self._jaco.qpos_ids[6:]]
            free = (fingers.amax(dim=1) < OPEN + LET_GO).double()
            away = pinch.clone()
            away[:, 2] += free * (place[:, 2] + RETREAT - pinch[:, 2])
            grasped = torch.zeros_like(lies)
            if self._clearing:
                away, grasped = self._both(free)
            target = _where(lies, away, target)
            yaw = torch.where(lies, self._heading(), yaw)
            press = (press & ~lies) | (lies & grasped)
        return target, yaw, press

    def _both(self, free: Tensor) -> tuple[Tensor, Tensor]:
        """With one block on the other: down to where they meet, to grasp both, and up with them.

        free: (N,) 1 where the fingers are open. Returns where the pinch site goes (N, 3), and
        whether the fingers press (N,).
        """
        pinch, lower = self._task.pinch_pos(), self._task.prop_pos(1)
        half_edge = self._task.half_edges()[:, 1]
        joint = lower.clone()
        joint[:, 2] += half_edge + JOINT_DEPTH
        offset = joint - pinch
        there = (offset[:, :2].norm(dim=1) < AROUND[0]) & (offset[:, 2].abs() < JOINT_REACHED)
        off_table = lower[:, 2] > half_edge + OFF_TABLE
        press = there | (off_table & (offset.norm(dim=1) < STILL_HELD))
        up = pinch.clone()
        up[:, 2] += self._style.carry_height - lower[:, 2]
        target = _where(there, joint, pinch + free.unsqueeze(1) * offset)
        return _where(press & self._firm(), up, target), press

    def _above_grasp(self, yaw: Tensor) -> tuple[Tensor, Tensor]:
        """Where the pinch site goes to grasp the block (N, 3), and whether it is there (N,)."""
        pinch = self._task.pinch_pos()
        grasp = self._task.prop_pos(0) + self._style.grasp_offset
        grasp = grasp + torch.tensor([0.0, 0.0, GRASP_DEPTH])
        across = (grasp - pinch)[:, :2].norm(dim=1)
        turn = self._rotation_error(yaw).norm(dim=1)
        around = (across < AROUND[0]) & ((grasp - pinch)[:, 2].abs() < AROUND[1])
        height = torch.maximum(_rise(across, FUNNEL), _rise(turn, TURN_FUNNEL))
        target = grasp.clone()
        target[:, 2] += torch.where(around, 0.0, self._style.hover * height)
        return target, around

    def _firm(self) -> Tensor:
        """(N,) bool: the fingers have closed and stand."""
        fingers = self._sim.data("qpos")[:, self._jaco.qpos_ids[6:]]
        speed = self._sim.data("qvel")[:, self._jaco.dof_ids[6:]].abs()
        return (fingers.mean(dim=1) > FIRM[0]) & (speed.amax(dim=1) < FIRM[1])

    def _carried(self) -> Tensor:
        """(N, 3) m: where the pinch site goes with the block in the hand: up, and for a stack then
        over the other block and down onto it."""
        pinch, block = self._task.pinch_pos(), self._task.prop_pos(0)
        target = pinch.clone()
        if not self._stacking:
            target[:, 2] += self._style.carry_height - block[:, 2]
            return target
        place = self._place()
        across = (place - block)[:, :2].norm(dim=1)
        low = place[:, 2] - REACH_BEYOND
        height = low + _rise(across, FUNNEL) * (self._style.carry_height - low)
        target[:, 2] += height - block[:, 2]
        clear = _rise(block[:, 2] - place[:, 2], (CLEARANCE, 2.0 * CLEARANCE))
        clear = torch.where(across < FUNNEL[1], 1.0, clear)
        target[:, :2] += clear.unsqueeze(1) * (place - block)[:, :2]
        return target

    def _carried_yaw(self) -> Tensor:
        """(N,) rad: the hand's heading while it carries; to grasp both blocks afterwards it turns
        them face to face."""
        heading = self._heading()
        if not self._clearing:
            return heading
        turn = self._task.prop_yaw(1) - self._task.prop_yaw(0)
        return heading + _wrap(4.0 * turn) / 4.0  # the nearest of four faces

    def _place(self) -> Tensor:
        """(N, 3) m: where the block's centre comes to lie."""
        place = self._task.prop_pos(1) + self._style.place_offset
        place[:, 2] = self._task.prop_pos(1)[:, 2] + self._task.half_edges().sum(dim=1)
        return place

    def _rotation_error(self, yaw: Tensor) -> Tensor:
        """(N, 3) rad, world frame: from the hand's pose to fingers down, closing along the yaw."""
        x = torch.stack((yaw.cos(), yaw.sin(), torch.zeros_like(yaw)), dim=1)
        z = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(x)
        y = torch.linalg.cross(z, x)
        return self._hand.rotation_to(torch.stack((x, y, z), dim=2))


def _rise(value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """0 below the first bound, 1 beyond the second, a ramp between."""
    low, high = bounds
    return ((value - low) / (high - low)).clamp(0.0, 1.0)


def _where(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows (N, ...) of the first where the condition (N,) holds."""
    return torch.where(condition.unsqueeze(1), first, second)


def _wrap(angle: Tensor) -> Tensor:
    """To [-pi, pi)."""
    return (angle + torch.pi) % (2 * torch.pi) - torch.pi
