"""Pouring: a mug of small spheres, its liquid, into a container (Zhu et al. 2018)."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import scene
from visuomotor.envs.scene import Part
from visuomotor.envs.simulation import Simulation
from visuomotor.envs.tasks.task import Task

BLUE = (0.1, 0.35, 0.85, 1.0)
YELLOW = (1.0, 0.8, 0.1, 1.0)
GREEN = (0.15, 0.6, 0.3, 1.0)

# s. A mug that falls from where it is carried, 15 cm, stops within a step, and the spheres press
# those below apart: at 10 ms 91 of 960 got through a wall, at 5 ms with contacts as stiff as that
# allows (two steps) none, from 40 cm neither.
PHYSICS_DT = 0.005
STIFFNESS = (2 * PHYSICS_DT, 1.0)  # of a sphere's contacts: time constant [s], damping ratio
# The mug: four walls around a floor, narrower than a hand opens, taller than the container is.
# Square, as wide as the two fingers of one side stand apart (5 cm): they pass an octagon's sides.
MUG_HEIGHT = 0.07  # m
MUG_INNER = 0.02  # m from its axis to a wall
MUG_WALL = 0.005  # m
MUG_FLOOR = 0.014  # m
# kg, empty. With 0.08 the demonstrator failed in 10 of 200 randomized episodes, all with a mug of
# 0.04 to 0.06; with this in 1.
MUG_MASS = 0.14
# The container: twice as wide as the mug.
CONTAINER_HEIGHT = 0.042  # m
CONTAINER_INNER = 0.045  # m from its centre to a wall
CONTAINER_WALL = 0.006  # m
CONTAINER_FLOOR = 0.014  # m
CONTAINER_MASS = 0.4  # kg: stays where it is when spheres fall into it
# Walls end above the table: only floors stand on it, with 4 contacts instead of 36.
LIFTED_WALLS = 0.002  # m
SPHERES = 10  # paper
SPHERE_RADIUS = 0.008  # m; 2 pixels wide
SPHERE_MASS = 0.004  # kg
SPHERE_DRAG = 0.016  # N s/m; brings a sphere to rest in 0.25 s, frictionless as it is
# Where the spheres are put into the mug, one after the other, as shares of the way from its axis to
# where they touch a wall: into the corners, then between them.
INTO_MUG = (
    *((-1, -1), (-1, 1), (1, -1), (1, 1)),
    *((-1, 0), (1, 0), (0, -1), (0, 1), (-1, 0), (1, 0)),
)
LARGEST = 1.05  # of a sphere's size, as DynamicsConfig.prop_size allows

MIN_DISTANCE = 0.115  # m between the axes of mug and container at the start
GRASP_HEIGHT = 0.01  # m of the mug's centre above where it stands
SEEN = ((-0.18, -0.18, 0.0), (0.18, 0.18, 0.25))  # m: where the camera sees the liquid
SUCCESS_SPHERES = 5  # of SPHERES in the container at the end; not published


class Pouring(Task):
    """`mug`, `container`, and `liquid/0` to `liquid/9`, in the mug at first.

    The demonstrations take about 160 steps to pour: the episode leaves time to fetch a mug again
    that slipped.
    """

    name = "pouring"
    episode_steps = 500  # 25 s (paper)
    stages = ("start", "grasped", *(f"poured_{n}" for n in range(1, SPHERES + 1)))
    stage_rewards = (0.0, 0.05, *(n / 10 for n in range(1, SPHERES + 1)))  # paper
    props = ("mug", "container")
    stage_props = (0, *[1] * (SPHERES + 1))
    kinds_in_targets = (((0, None),), ((1, None),))
    prop_symmetry = (4, 4)
    turning = ("prop", "arm")
    longest_physics_dt = PHYSICS_DT
    workspace = 0.1

    def add_props(self, spec: mujoco.MjSpec) -> None:
        scene.add_prop(spec, "mug", MUG_HEIGHT / 2, _mug())
        scene.add_prop(spec, "container", CONTAINER_HEIGHT / 2, _container())
        for index in range(SPHERES):
            name = f"liquid/{index}"
            scene.add_sphere(
                spec, name, SPHERE_RADIUS, SPHERE_MASS, YELLOW, drag=SPHERE_DRAG, solref=STIFFNESS
            )

    def bind(self, sim: Simulation) -> None:
        super().bind(sim)
        model = sim.model
        names = [f"liquid/{index}" for index in range(SPHERES)]
        self._sphere_body_ids = [int(model.body(name).id) for name in names]
        joints = [model.joint(f"{name}_joint") for name in names]
        self._sphere_qpos_ids = [int(joint.qposadr[0]) for joint in joints]
        dofs = [int(joint.dofadr[0]) for joint in joints]
        self._sphere_dof_ids = torch.tensor([[dof, dof + 1, dof + 2] for dof in dofs])

    def place(self, rng: np.random.Generator) -> np.ndarray:
        while True:
            xy = rng.uniform(-self.workspace, self.workspace, size=(2, 2))
            if np.linalg.norm(xy[0] - xy[1]) >= MIN_DISTANCE:
                break
        return np.concatenate((xy, rng.uniform(-np.pi / 4, np.pi / 4, size=(2, 1))), axis=1)

    def start_state(
        self, rng: np.random.Generator, heights: np.ndarray | None = None
    ) -> np.ndarray:
        """(nq + nv,) of one episode, with the liquid in the mug."""
        state = super().start_state(rng, heights)
        adr = self._prop_qpos_ids[0]
        size = state[adr + 2] / (MUG_HEIGHT / 2)
        inside = _at_rest(size)
        yaw = 2.0 * np.arctan2(state[adr + 6], state[adr + 3])
        cos, sin = np.cos(yaw), np.sin(yaw)
        inside = inside @ np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        for pos, sphere in zip(inside, self._sphere_qpos_ids, strict=True):
            state[sphere : sphere + 3] = state[adr : adr + 3] + pos
        return state

    # Where the liquid is.

    def sphere_pos(self) -> Tensor:
        """(N, SPHERES, 3) m, world frame."""
        return self.sim.data("xpos")[:, self._sphere_body_ids]

    def sphere_velocity(self) -> Tensor:
        """(N, SPHERES, 3) m/s, world frame."""
        return self.sim.data("qvel")[:, self._sphere_dof_ids]

    def mug_axis(self) -> Tensor:
        """(N, 3) unit vector from the mug's floor to its mouth, world frame."""
        return self.sim.data("xmat")[:, self.prop_body_ids[0]].view(-1, 3, 3)[:, :, 2]

    def mouth_pos(self) -> Tensor:
        """(N, 3) m, world frame: the middle of the mug's rim."""
        return self.prop_pos(0) + self.rest_heights()[:, :1] * self.mug_axis()

    def in_mug(self) -> Tensor:
        """(N, SPHERES) bool: a sphere's centre is between the mug's walls, below its rim."""
        return self._inside(0, MUG_INNER, MUG_HEIGHT)

    def in_container(self) -> Tensor:
        """(N, SPHERES) bool: a sphere's centre is between the container's walls, below its rim, and
        not in the mug: to put the mug there is not to pour."""
        return self._inside(1, CONTAINER_INNER, CONTAINER_HEIGHT) & ~self.in_mug()

    def _inside(self, index: int, inner: float, height: float) -> Tensor:
        """(N, SPHERES) bool: between a prop's walls, which are `inner` [m] from its axis, and below
        its rim, at `height` [m] above its bottom; both at the size without randomization."""
        pos, half = self._seen_from(index)
        wall = inner / (height / 2) * half
        between = (pos[:, :, :2].abs() < wall.unsqueeze(2)).all(dim=2)
        return between & (pos[:, :, 2].abs() < half)

    def _seen_from(self, index: int) -> tuple[Tensor, Tensor]:
        """(N, SPHERES, 3) m: the spheres in a prop's frame; (N, 1) m: half of its height."""
        return self.in_frame_of(index, self.sphere_pos()), self.rest_heights()[:, index : index + 1]

    # What a task is.

    def grasped(self) -> Tensor:
        """(N,) bool: the hand holds the mug off the table."""
        return self.lifted(0, GRASP_HEIGHT) & self.held(0)

    def stage(self) -> Tensor:
        poured = self.in_container().sum(dim=1)
        return torch.where(poured > 0, poured + 1, self.grasped().long())

    def success(self, stage: Tensor) -> Tensor:
        """stage (N,) -> (N,) bool: SUCCESS_SPHERES or more are in the container."""
        return stage >= SUCCESS_SPHERES + 1

    def object_features(self) -> Tensor:
        """(N, 32): mug, container, mug - container, the mug's axis, mug - pinch site, mug - each
        fingertip, the liquid's mean - mug and - container, its spread [m]; shares of it in the mug
        and in the container."""
        mug, container, spheres = self.prop_pos(0), self.prop_pos(1), self.sphere_pos()
        mean, spread = spheres.mean(dim=1), spheres.std(dim=1)
        tips = (mug.unsqueeze(1) - self.fingertip_pos()).flatten(1)
        shares = torch.stack((self.in_mug(), self.in_container()), dim=2).double().mean(dim=1)
        parts = (mug, container, mug - container, self.mug_axis(), mug - self.pinch_pos(), tips)
        liquid = (mean - mug, mean - container, spread, shares)
        return torch.cat((*parts, *liquid), dim=1).float()

    def aux_targets(self) -> Tensor:
        """(N, 18): mug; container; the liquid's mean, of what was spilled where it left the
        workspace; the mug's mouth - mug; mug - pinch site; mug - container [m]."""
        mug, container = self.prop_pos(0), self.prop_pos(1)
        low, high = (torch.tensor(corner, dtype=mug.dtype) for corner in SEEN)
        liquid = self.sphere_pos().clamp(low, high).mean(dim=1)
        parts = (mug, container, liquid, self.mouth_pos() - mug)
        return torch.cat((*parts, mug - self.pinch_pos(), mug - container), dim=1).float()

    def state(self) -> Tensor:
        """(N, S): as every task's, and of the liquid what does not depend on the spheres' order:
        shares in mug, container and elsewhere; mean place from mug and from container, spread,
        mean velocity and spread of velocities; of what is in the mug the mean place in its frame
        and the furthest along its axis."""
        spheres, velocity = self.sphere_pos(), self.sphere_velocity()
        in_mug, in_container = self.in_mug().double(), self.in_container().double()
        shares = [in_mug.mean(dim=1), in_container.mean(dim=1)]
        shares.append(1.0 - shares[0] - shares[1])
        seen, half = self._seen_from(0)
        count = in_mug.sum(dim=1, keepdim=True).clamp(min=1.0)
        along = torch.where(in_mug > 0, seen[:, :, 2], -half)
        parts = (
            torch.stack(shares, dim=1),
            spheres.mean(dim=1) - self.prop_pos(0),
            spheres.mean(dim=1) - self.prop_pos(1),
            spheres.std(dim=1),
            velocity.mean(dim=1),
            velocity.std(dim=1),
            (seen * in_mug.unsqueeze(2)).sum(dim=1) / count,
            along.amax(dim=1, keepdim=True),
        )
        return torch.cat((super().state(), torch.cat(parts, dim=1).float()), dim=1)


def _mug() -> list[Part]:
    return _vessel(MUG_HEIGHT, MUG_INNER, MUG_WALL, MUG_FLOOR, MUG_MASS, BLUE)


def _container() -> list[Part]:
    size = (CONTAINER_HEIGHT, CONTAINER_INNER, CONTAINER_WALL, CONTAINER_FLOOR)
    return _vessel(*size, CONTAINER_MASS, GREEN)


def _vessel(
    height: float,
    inner: float,
    wall: float,
    floor: float,
    mass: float,
    rgba: tuple[float, float, float, float],
) -> list[Part]:
    """A square floor and four walls of that height, open at the top; m and kg. inner: from the axis
    to a wall. The floor has half of the mass."""
    half, outer = height / 2, inner + wall
    parts = [Part((outer, outer, floor / 2), mass / 2, rgba, pos=(0.0, 0.0, floor / 2 - half))]
    across, up, high = inner + wall / 2, LIFTED_WALLS / 2, half - LIFTED_WALLS / 2
    for sign in (-1.0, 1.0):
        parts += [
            Part((wall / 2, outer, high), mass / 8, rgba, pos=(sign * across, 0.0, up)),
            Part((outer, wall / 2, high), mass / 8, rgba, pos=(0.0, sign * across, up)),
        ]
    return parts


def _at_rest(size: float) -> np.ndarray:
    """(SPHERES, 3) m from the mug's centre, in its frame: each sphere lies on those before it.

    size: scale of the mug. There is room for the largest spheres; smaller ones settle.
    """
    radius = LARGEST * SPHERE_RADIUS
    spheres: list[np.ndarray] = []
    for share in INTO_MUG:
        x, y = (size * MUG_INNER - radius) * np.array(share)
        height = size * (MUG_FLOOR - MUG_HEIGHT / 2) + radius
        for other in spheres:
            across = float(np.hypot(x - other[0], y - other[1]))
            if across < 2 * radius:
                height = max(height, other[2] + math.sqrt((2 * radius) ** 2 - across**2))
        spheres.append(np.array([x, y, height]))
    return np.array(spheres)
