"""What every scripted demonstrator shares: a hand that goes where it should, grasps and carries.

What they do follows from what is there to be seen, never from a clock or a hidden phase: a policy
can learn that, and it starts over by itself when a block slips. Every episode draws its own speeds,
heights and offsets, as different people would move.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

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
PRESHAPE = 0.4  # of a finger's action, at most, where it closes and does not press
# Of a finger's action once it holds: the drive gives all its torque for a tenth of its speed. A
# clone that is not sure yet whether to let go then opens the hand, and does not stop half way.
HOLD = 0.5
GRASP_DEPTH = -0.004  # m, pinch site relative to a prop's centre when grasping
# A hand comes down as it gets above its goal: the height it keeps falls over this range of
# horizontal distance (m), and over this range of missing turn (rad).
FUNNEL = (0.006, 0.036)
TURN_FUNNEL = (0.1, 0.4)
# A prop is between the fingers, m: horizontally, and in height.
AROUND = (0.02, 0.015)
# ... and they hold it: closed beyond this angle (rad), and slower than this (rad/s).
FIRM = (0.6, 0.12)
CLEARANCE = 0.012  # m of a carried prop's centre above where it will lie, before it moves sideways
RETREAT = 0.09  # m, straight up from what was let go
LET_GO = 0.15  # rad that a finger may still miss of OPEN when the hand goes up
# A neighbour stands in the way of a finger: from this distance on (m), over this range (m).
NEIGHBOUR = (0.14, 0.05)


@dataclass
class Style:
    """One episode's way of moving; each (N,) or (N, 3)."""

    speed: Tensor  # scale of the gains
    max_speed: Tensor  # m/s of the hand
    hover: Tensor  # m above a prop before the descent
    carry_height: Tensor  # m of a prop's centre while carried
    grasp_offset: Tensor  # (N, 3) m
    place_offset: Tensor  # (N, 3) m
    yaw_offset: Tensor  # rad


class Goal(NamedTuple):
    """What the hand should do next."""

    pos: Tensor  # (N, 3) m, of the pinch site
    mat: Tensor  # (N, 3, 3), its axes: x closes, z points out of the hand
    press: Tensor  # (N,) bool: the fingers close, else they open
    opening: Tensor | float = OPEN  # (N, 1) rad: to which angle


class Expert(ABC):
    """Acts for all worlds of an environment at once."""

    def __init__(self, env: VisuomotorEnv, seed: int):
        self._env = env
        self._task = env.task
        self._sim = env.sim
        self._jaco = env.jaco
        self._rng = np.random.default_rng([seed, 3])
        self._style = self._draw(env.num_envs)
        self._hand = HandMotion(env.sim, env.jaco)

    @abstractmethod
    def _goal(self) -> Goal: ...

    def _draw(self, n: int) -> Style:
        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return torch.from_numpy(self._rng.uniform(low, high, size=(n, *shape)))

        return Style(
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

    def act(self) -> Tensor:
        """(N, 9) float32 in [-1, 1]."""
        goal = self._goal()
        style = self._style
        linear = POSITION_GAIN * style.speed.unsqueeze(1) * (goal.pos - self._task.pinch_pos())
        speed = linear.norm(dim=1, keepdim=True)
        linear = linear * (style.max_speed.unsqueeze(1) / speed.clamp(min=1e-9)).clamp(max=1.0)
        angular = ROTATION_GAIN * self._hand.rotation_to(goal.mat)
        arm = self._hand.arm_action(torch.cat((linear, angular), dim=1))
        opening = FINGER_GAIN * (goal.opening - self._fingers()) / robot.FINGER_MAX_VELOCITY
        opening = opening.clamp(-1, PRESHAPE)
        closing = torch.where(self._firm(), HOLD, 1.0).unsqueeze(1).expand_as(opening)
        finger_action = torch.where(goal.press.unsqueeze(1), closing, opening)
        return torch.cat((arm, finger_action), dim=1).float()

    # What there is to be seen.

    def _fingers(self) -> Tensor:
        """(N, 3) rad."""
        return self._sim.data("qpos")[:, self._jaco.qpos_ids[6:]]

    def _firm(self, closed: float = FIRM[0]) -> Tensor:
        """(N,) bool: the fingers have closed, beyond an angle [rad], and stand."""
        speed = self._sim.data("qvel")[:, self._jaco.dof_ids[6:]].abs()
        return (self._fingers().mean(dim=1) > closed) & (speed.amax(dim=1) < FIRM[1])

    def _free(self, opening: float = OPEN) -> Tensor:
        """(N,) 1.0 where the fingers are open, to an angle [rad]."""
        return (self._fingers().amax(dim=1) < opening + LET_GO).double()

    def _heading(self) -> Tensor:
        """(N,) rad: direction of the hand's closing axis, the pinch site's x, on the table."""
        return self._task.hand_yaw()

    # What to do about it.

    def _grasp_yaw(self, prop: int, neighbours: tuple[int, ...] = ()) -> Tensor:
        """(N,) rad: heading of the closing axis, along a face normal of the prop: the one that
        needs little turning and keeps the fingers away from neighbours."""
        ways = self._task.symmetry(prop)
        # A hand closes on a prop from both of its sides.
        turns = torch.arange(max(ways, 2), dtype=torch.float64) * (2 * torch.pi / max(ways, 2))
        candidates = self._task.prop_yaw(prop).unsqueeze(1) + turns  # (N, ways)
        cost = wrap(candidates - self._heading().unsqueeze(1)).abs()
        for other in neighbours:
            offset = self._task.prop_pos(other) - self._task.prop_pos(prop)
            direction = torch.atan2(offset[:, 1], offset[:, 0]).unsqueeze(1)
            apart = offset[:, :2].norm(dim=1)
            near = ((NEIGHBOUR[0] - apart) / NEIGHBOUR[1]).clamp(0, 1).unsqueeze(1)
            cost = cost + 2.5 * near * (candidates - direction).cos().abs()
        best = cost.argmin(dim=1)
        chosen = candidates.gather(1, best.unsqueeze(1)).squeeze(1)
        return chosen + self._style.yaw_offset

    def _above_grasp(self, grasp: Tensor, mat: Tensor) -> tuple[Tensor, Tensor]:
        """Where the pinch site goes to come to `grasp` (N, 3) from above with the axes `mat`
        (N, 3, 3): (N, 3), and whether it is there (N,)."""
        offset = grasp - self._task.pinch_pos()
        across = offset[:, :2].norm(dim=1)
        turn = self._hand.rotation_to(mat).norm(dim=1)
        around = (across < AROUND[0]) & (offset[:, 2].abs() < AROUND[1])
        height = torch.maximum(rise(across, FUNNEL), rise(turn, TURN_FUNNEL))
        target = grasp.clone()
        target[:, 2] += torch.where(around, 0.0, self._style.hover * height)
        return target, around

    def _grasp_point(self, prop: int) -> Tensor:
        """(N, 3) m: where this episode's hand takes a prop."""
        grasp = self._task.prop_pos(prop) + self._style.grasp_offset
        return grasp + torch.tensor([0.0, 0.0, GRASP_DEPTH])

    def _raised(self, prop: int) -> Tensor:
        """(N, 3) m: where the pinch site goes to bring a prop straight up to the height at which
        it is carried."""
        target = self._task.pinch_pos().clone()
        target[:, 2] += self._style.carry_height - self._task.prop_pos(prop)[:, 2]
        return target

    def _carried(self, prop: int | Tensor, place: Tensor, low: Tensor) -> Tensor:
        """(N, 3) m: where the pinch site goes with a prop (one, or of each world) in the hand: up,
        over `place` (N, 3), and down until the prop's centre is at the height `low` (N,)."""
        pinch, pos = self._task.pinch_pos(), self._task.prop_pos(prop)
        target = pinch.clone()
        across = (place - pos)[:, :2].norm(dim=1)
        height = low + rise(across, FUNNEL) * (self._style.carry_height - low)
        target[:, 2] += height - pos[:, 2]
        clear = rise(pos[:, 2] - place[:, 2], (CLEARANCE, 2.0 * CLEARANCE))
        clear = torch.where(across < FUNNEL[1], 1.0, clear)
        target[:, :2] += clear.unsqueeze(1) * (place - pos)[:, :2]
        return target

    def _away(self, height: Tensor) -> Tensor:
        """(N, 3) m: straight up to `height` (N,) once the fingers are open."""
        target = self._task.pinch_pos().clone()
        target[:, 2] += self._free() * (height - target[:, 2])
        return target


def down(yaw: Tensor) -> Tensor:
    """(N,) rad -> (N, 3, 3): fingers down, closing along the yaw."""
    x = torch.stack((yaw.cos(), yaw.sin(), torch.zeros_like(yaw)), dim=1)
    z = torch.tensor([0.0, 0.0, -1.0], dtype=torch.float64).expand_as(x)
    return torch.stack((x, torch.linalg.cross(z, x), z), dim=2)


def rise(value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """0 below the first bound, 1 beyond the second, a ramp between."""
    low, high = bounds
    return ((value - low) / (high - low)).clamp(0.0, 1.0)


def rows(condition: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Rows (N, ...) of the first where the condition (N,) holds, else of the second."""
    return torch.where(condition.view(-1, *([1] * (first.dim() - 1))), first, second)


def wrap(angle: Tensor) -> Tensor:
    """To [-pi, pi)."""
    return (angle + torch.pi) % (2 * torch.pi) - torch.pi
