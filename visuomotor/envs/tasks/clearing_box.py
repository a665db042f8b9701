"""Clearing the table with a box: the toy car into it, then the box lifted (Zhu et al. 2018)."""

from __future__ import annotations

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs.kinematics import planar
from visuomotor.envs.scene import Part, add_prop
from visuomotor.envs.tasks.task import Task, along

# m; full lengths of the car along x (the way the hand closes), y and z, wheels included.
CAR_SIZE = (0.034, 0.064, 0.034)
CAR_MASS = 0.06  # kg
WHEEL_RADIUS = 0.009  # m
WHEEL_WIDTH = 0.004  # m
# m; outside. The hand takes the box across x: opened to 94 mm it leaves 13 mm on each side.
BOX_SIZE = (0.068, 0.104, 0.042)
# kg; the fingers press themselves 2 mm and more into a lighter one, and through its walls: of 48
# randomized episodes with 0.1 kg, 13 saw the box slip out of the hand, with 0.2 none.
BOX_MASS = 0.2
WALL = 0.005  # m; the car falls 30 mm into the box, at less than 1 m/s
BLUE = (0.1, 0.35, 0.9, 1.0)
LIGHT_BLUE = (0.6, 0.8, 1.0, 1.0)
BLACK = (0.06, 0.06, 0.06, 1.0)
GREEN = (0.2, 0.75, 0.2, 1.0)

PLACES = 0.09  # m; car and box start within so much of the origin, in x and in y
MIN_DISTANCE = 0.11  # m between their centres at the start
# m; no wall of the box is nearer than MARGIN to where the fingers come down beside the car: so far
# from its centre across it, and up to so far along it.
FINGERS = (0.065, 0.05)
MARGIN = 0.015
GRASP_HEIGHT = 0.015  # m of the car's centre above where it lies on the table
# m of the box's lowest corner above the table. Its centre is as high where the box stands on an end
# with the car in it, for as long as it likes.
LIFT_HEIGHT = 0.03


class ClearingBox(Task):
    """`car` and `box`, both alike from their two ends.

    The demonstrations take about 150 steps: the episode leaves time for many attempts.
    """

    name = "clearing_box"
    episode_steps = 500  # 25 s (paper)
    stages = ("start", "reach", "grasped", "in box", "lifted")
    stage_rewards = (0.0, 0.125, 0.25, 1.0, 2.0)  # paper
    props = ("car", "box")
    stage_props = (0, 0, 1, 1, 1)
    kinds_in_targets = (((0, None),), ((1, None),))
    prop_symmetry = (2, 2)
    workspace = PLACES

    def add_props(self, spec: mujoco.MjSpec) -> None:
        add_prop(spec, "car", CAR_SIZE[2] / 2, _car())
        add_prop(spec, "box", BOX_SIZE[2] / 2, _box())

    def place(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            xy = rng.uniform(-PLACES, PLACES, size=(2, 2))
            yaw = rng.uniform(-np.pi / 2, np.pi / 2, size=(2, 1))
            places = np.concatenate((xy, yaw), axis=1)
            if np.linalg.norm(xy[0] - xy[1]) >= MIN_DISTANCE and _room(*places):
                return places

    def grasped(self) -> Tensor:
        """(N,) bool: the hand holds the car off the table."""
        return self.lifted(0, GRASP_HEIGHT) & self.held(0)

    def in_box(self) -> Tensor:
        """(N,) bool: the car's centre is between the box's walls and under its rim, and the hand
        does not touch the car."""
        own = self.in_frame_of(1, self.prop_pos(0).unsqueeze(1)).squeeze(1)
        return (own.abs() < self._box_half()).all(dim=1) & ~self.held(0)

    def _box_half(self) -> Tensor:
        """(N, 3) m: half the box's edges, in its frame."""
        return self.scales()[:, 1:] * torch.tensor(BOX_SIZE, dtype=torch.float64) / 2

    def box_lifted(self) -> Tensor:
        """(N,) bool: the hand holds the box, no corner of which is near the table."""
        upward = self.sim.data("xmat")[:, self.prop_body_ids[1]].view(-1, 3, 3)[:, 2]
        lowest = self.prop_pos(1)[:, 2] - (upward.abs() * self._box_half()).sum(dim=1)
        return (lowest > LIFT_HEIGHT) & self.held(1)

    def stage(self) -> Tensor:
        stage = self.reaching(0).long()
        stage = torch.where(self.grasped(), 2, stage)
        in_box = self.in_box()
        stage = torch.where(in_box, 3, stage)
        return torch.where(in_box & self.box_lifted(), 4, stage)

    def object_features(self) -> Tensor:
        """(N, 24): car, box, car - box, car - pinch site, box - pinch site, car - each fingertip
        [m]."""
        car, box, pinch = self.prop_pos(0), self.prop_pos(1), self.pinch_pos()
        tips = (car.unsqueeze(1) - self.fingertip_pos()).flatten(1)
        return torch.cat((car, box, car - box, car - pinch, box - pinch, tips), dim=1).float()

    def aux_targets(self) -> Tensor:
        """(N, 18): car; box; car - pinch site; box - pinch site; of both, half their length along
        twice their heading [m], which is the same for either end."""
        car, box, pinch = self.prop_pos(0), self.prop_pos(1), self.pinch_pos()
        lengths = (CAR_SIZE[1], BOX_SIZE[1])
        turns = [along(2.0 * self.prop_yaw(i), length / 2) for i, length in enumerate(lengths)]
        return torch.cat(
            (car.float(), box.float(), (car - pinch).float(), (box - pinch).float(), *turns), dim=1
        )


def _room(car: np.ndarray, box: np.ndarray) -> bool:
    """Places (3,): x, y [m], yaw [rad]. Whether the fingers have room beside the car."""
    across, along = FINGERS
    fingers = np.array([(x * across, y * along) for x in (-1, 1) for y in (-1, 0, 1)])
    from_box = fingers @ planar(car[2]).T + car[:2] - box[:2]
    beyond = np.abs(from_box @ planar(box[2])) - np.array(BOX_SIZE[:2]) / 2
    return bool((beyond.max(axis=1) >= MARGIN).all())


def _car() -> list[Part]:
    """A body, a cabin and four wheels that do not turn."""
    width, length, height = CAR_SIZE
    # The wheels stand out of the body; over them it is as wide as the hand's grasp expects.
    bottom, cabin = WHEEL_RADIUS / 2, 0.4 * height
    body = height - cabin - bottom
    parts = [
        Part(
            size=(width / 2 - WHEEL_WIDTH / 2, length / 2, body / 2),
            mass=0.5 * CAR_MASS,
            rgba=BLUE,
            pos=(0.0, 0.0, bottom + body / 2 - height / 2),
        ),
        Part(
            size=(width / 2 - WHEEL_WIDTH / 2, 0.27 * length, cabin / 2),
            mass=0.1 * CAR_MASS,
            rgba=LIGHT_BLUE,
            pos=(0.0, 0.0, height / 2 - cabin / 2),
            material="cabin",
        ),
    ]
    for x in (-1, 1):
        for y in (-1, 1):
            parts.append(
                Part(
                    size=(WHEEL_RADIUS, WHEEL_WIDTH / 2),
                    mass=0.1 * CAR_MASS,
                    rgba=BLACK,
                    pos=(
                        x * (width / 2 - WHEEL_WIDTH / 2),
                        y * (length / 2 - 1.2 * WHEEL_RADIUS),
                        WHEEL_RADIUS - height / 2,
                    ),
                    quat=(np.sqrt(0.5), 0.0, np.sqrt(0.5), 0.0),  # axle along x
                    type=mujoco.mjtGeom.mjGEOM_CYLINDER,
                    material="wheels",
                )
            )
    return parts


def _box() -> list[Part]:
    """A floor and four walls."""
    width, length, height = BOX_SIZE
    wall, high = WALL / 2, height / 2
    sizes = {
        (0, 0, -1): (width / 2, length / 2, wall),
        (-1, 0, 0): (wall, length / 2, high),
        (1, 0, 0): (wall, length / 2, high),
        (0, -1, 0): (width / 2, wall, high),
        (0, 1, 0): (width / 2, wall, high),
    }
    return [
        Part(
            size=size,
            mass=BOX_MASS / len(sizes),
            rgba=GREEN,
            pos=(x * (width / 2 - wall), y * (length / 2 - wall), z * (high - wall)),
        )
        for (x, y, z), size in sizes.items()
    ]
