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

# Floors are thick: at 10 ms a sphere that falls from a hand into the container is 12 mm in its
# floor before it turns back, a sphere in a mug that is dropped as much in the mug's.
# The mug: walls around a floor, narrower than a hand opens, taller than the container is.
MUG_SIDES = 8
MUG_HEIGHT = 0.07  # m
MUG_INNER = 0.0215  # m from its axis to a wall: room for four of the largest spheres side by side
MUG_WALL = 0.005  # m
MUG_FLOOR = 0.014  # m
MUG_MASS = 0.08  # kg, empty; an enamel mug of that size
# The container: four walls around a square floor; twice as wide as the mug.
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
# How the spheres lie at first: rings of so many, one on the other, each turned by 45 degrees.
RINGS = (4, 4, 2)
LARGEST = 1.05  # of a sphere's size, as DynamicsConfig.prop_size allows

MIN_DISTANCE = 0.115  # m between the axes of mug and container at the start
GRASP_HEIGHT = 0.01  # m of the mug's centre above where it stands
SUCCESS_SPHERES = 5  # of SPHERES in the container at the end; not published


class Pouring(Task):
    """`mug`, `container`, and `liquid/0` to `liquid/9`, in the mug at first.

    The paper's episode has 500 steps (recalled, not certain).
    """

    name = "pouring"
    episode_steps = 300  # 15 s
    stages = ("start", "grasped", *(f"poured_{n}" for n in range(1, SPHERES + 1)))
    stage_rewards = (0.0, 0.05, *(n / 10 for n in range(1, SPHERES + 1)))  # paper
    props = ("mug", "container")
    stage_props = (0, *[1] * (SPHERES + 1))
    prop_symmetry = (MUG_SIDES, 4)
    workspace = 0.1

    def add_props(self, spec: mujoco.MjSpec) -> None:
        scene.add_prop(spec, "mug", MUG_HEIGHT / 2, _mug())
        scene.add_prop(spec, "container", CONTAINER_HEIGHT / 2, _container())
        for index in range(SPHERES):
            name = f"liquid/{index}"
            scene.add_sphere(spec, name, SPHERE_RADIUS, SPHERE_MASS, YELLOW, SPHERE_DRAG)

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
        most = np.pi / np.array(self.prop_symmetry)
        return np.concatenate((xy, rng.uniform(-most, most)[:, None]), axis=1)

    def start_state(
        self, rng: np.random.Generator, heights: np.ndarray | None = None
    ) -> np.ndarray:
        """(nq + nv,) of one episode, with the liquid in the mug."""
        state = super().start_state(rng, heights)
        adr = self._prop_qpos_ids[0]
        size = state[adr + 2] / (MUG_HEIGHT / 2)
        inside = _at_rest(size, rng.uniform(0.0, 2.0 * np.pi))
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
        pos, half = self._seen_from(0)
        across = torch.linalg.vector_norm(pos[:, :, :2], dim=2)
        size = half / (MUG_HEIGHT / 2)
        return (across < MUG_INNER * size) & (pos[:, :, 2].abs() < half)

    def in_container(self) -> Tensor:
        """(N, SPHERES) bool: a sphere's centre is between the container's walls, below its rim, and
        not in the mug: to put the mug there is not to pour."""
        pos, half = self._seen_from(1)
        size = half / (CONTAINER_HEIGHT / 2)
        inside = (pos[:, :, :2].abs() < (CONTAINER_INNER * size).unsqueeze(2)).all(dim=2)
        return inside & (pos[:, :, 2].abs() < half) & ~self.in_mug()

    def _seen_from(self, index: int) -> tuple[Tensor, Tensor]:
        """(N, SPHERES, 3) m: the spheres in a prop's frame; (N, 1) m: half of its height."""
        mat = self.sim.data("xmat")[:, self.prop_body_ids[index]].view(-1, 3, 3)
        offset = self.sphere_pos() - self.prop_pos(index).unsqueeze(1)
        return offset @ mat, self.rest_heights()[:, index : index + 1]

    # What a task is.

    def grasped(self) -> Tensor:
        """(N,) bool: the hand holds the mug off the table."""
        return self.lifted(0, GRASP_HEIGHT) & (self.hand_contacts(0) > 0)

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
        """(N, 18): mug; container; the liquid's mean; the mug's mouth - mug; mug - pinch site;
        mug - container [m]."""
        mug, container = self.prop_pos(0), self.prop_pos(1)
        parts = (mug, container, self.sphere_pos().mean(dim=1), self.mouth_pos() - mug)
        return torch.cat((*parts, mug - self.pinch_pos(), mug - container), dim=1).float()

    def state(self) -> Tensor:
        """As every task's, and of the liquid what does not depend on the spheres' order: shares in
        mug, container and elsewhere; mean place from mug and from container, spread, mean velocity
        and spread of velocities; mean and furthest place along the mug's axis of what is in it."""
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
    """A square floor under the walls, which are as many as a prism has sides."""
    half, width = MUG_HEIGHT / 2, (MUG_INNER + MUG_WALL) * math.tan(math.pi / MUG_SIDES)
    mass = MUG_MASS / (MUG_SIDES + 2)
    floor = (MUG_INNER, MUG_INNER, MUG_FLOOR / 2)
    parts = [Part(floor, 2 * mass, BLUE, pos=(0.0, 0.0, MUG_FLOOR / 2 - half))]
    across = MUG_INNER + MUG_WALL / 2
    size = (MUG_WALL / 2, width, half - LIFTED_WALLS / 2)
    for side in range(MUG_SIDES):
        angle = 2 * math.pi * side / MUG_SIDES
        pos = (across * math.cos(angle), across * math.sin(angle), LIFTED_WALLS / 2)
        quat = (math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2))
        parts.append(Part(size, mass, BLUE, pos, quat))
    return parts


def _container() -> list[Part]:
    half, outer = CONTAINER_HEIGHT / 2, CONTAINER_INNER + CONTAINER_WALL
    mass = CONTAINER_MASS / 8
    floor = (outer, outer, CONTAINER_FLOOR / 2)
    parts = [Part(floor, 4 * mass, GREEN, pos=(0.0, 0.0, CONTAINER_FLOOR / 2 - half))]
    across, height = CONTAINER_INNER + CONTAINER_WALL / 2, half - LIFTED_WALLS / 2
    for sign in (-1.0, 1.0):
        for pos, size in (
            ((sign * across, 0.0, LIFTED_WALLS / 2), (CONTAINER_WALL / 2, outer, height)),
            ((0.0, sign * across, LIFTED_WALLS / 2), (outer, CONTAINER_WALL / 2, height)),
        ):
            parts.append(Part(size, mass, GREEN, pos))
    return parts


def _at_rest(size: float, turn: float) -> np.ndarray:
    """(SPHERES, 3) m from the mug's centre: rings along its walls, each in the gaps of the one
    below. With room for the largest spheres; smaller ones settle by some millimetres.

    size: scale of the mug. turn: rad, of the whole arrangement.
    """
    radius = LARGEST * SPHERE_RADIUS
    ring = size * MUG_INNER - radius  # m, from the axis to a sphere's centre
    gap = math.pi / RINGS[0]  # rad between a sphere and those below
    step = math.sqrt((2 * radius) ** 2 - (2 * ring * math.sin(gap / 2)) ** 2)
    bottom = size * (MUG_FLOOR - MUG_HEIGHT / 2) + radius
    spheres = []
    for layer, count in enumerate(RINGS):
        for index in range(count):
            angle = turn + gap * layer + 2 * math.pi * index / count
            across = (ring * math.cos(angle), ring * math.sin(angle))
            spheres.append((*across, bottom + step * layer))
    return np.array(spheres)
