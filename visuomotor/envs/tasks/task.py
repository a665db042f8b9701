"""What a task is: props, start states, stages, reward, success, and what privileged modules see.

Knows nothing of cameras, randomization or learning. Everything is written once, in torch, on the
tensors of a Simulation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import robot
from visuomotor.envs.scene import HAND_CONTACT_SENSOR
from visuomotor.envs.simulation import Simulation

BLOCK_EDGE = 0.045  # m; fits between the fingers with 2 cm to spare
BLOCK_MASS = 0.1  # kg; a wooden cube of that size weighs about 0.06, a plastic one up to 0.12
ORANGE = (1.0, 0.45, 0.05, 1.0)
PINK = (0.95, 0.35, 0.6, 1.0)
WORKSPACE = 0.08  # m; props start within so much of the origin, in x and in y
REACH_DISTANCE = 0.05  # m from the pinch site to the prop's centre: stage "reach"
NEIGHBOUR = 0.1  # m to another prop, which a hand has to mind when it comes
TABLE = -1  # in the place of a prop: the hand moves by the table


class Task(ABC):
    """One task. `bind` is called once with the simulation before any of the others but
    `add_props`; N = worlds."""

    name: str
    episode_steps: int  # control steps
    stages: tuple[str, ...]  # names, in order; the last one is success
    stage_rewards: tuple[float, ...]  # per control step while in the stage
    props: tuple[str, ...]  # body names, each with a free joint
    # Of each stage: the prop that the hand moves by; TABLE: none, it goes to a place.
    stage_props: tuple[int, ...]
    # Turns about its vertical that leave a prop as it is: 4 for a cube; empty: 1 for every prop.
    prop_symmetry: tuple[int, ...] = ()
    # With what a hand's motion by each prop is turned where a demonstration is carried over to
    # another start (visuomotor.retargeting): "prop", with that one, of its symmetric ways in that
    # which demonstrations use; "ways", by one of these alone, as neighbours leave room, however it
    # is turned; "neighbours", with where the nearest one stands, so that the hand closes across its
    # direction where it is close, and as it was at first where none is; "arm", with its direction
    # from the arm's base; "hand", not at all: as the hand comes. () for "prop". What demonstrations
    # pay no heed to, copies must not follow: that a hand turns with what can hardly be seen is
    # nothing that a policy learns from pixels.
    turning: tuple[str, ...] = ()
    # What maps of the image are made of (actor.encoder=maps): of every kind of thing its things, of
    # each the vector of `aux_targets` that tells where it is, and the vector that this one is equal
    # to where there is no such thing; None: there always is. () where there are no maps.
    kinds_in_targets: tuple[tuple[tuple[int, int | None], ...], ...] = ()
    # Whether `state` also tells from where other props stand, as seen from the hand and from each
    # prop: for tasks whose props begin so close that a hand has to choose how it comes. A network
    # of the state has to multiply to find it out, and seldom does.
    neighbours_in_state: bool = False
    # Control steps after which a pixel policy's training episodes end, where env.episode_steps does
    # not say: of a task whose end is to hold still for long it would meet little else. None: those
    # of the task's own.
    training_steps: int | None = None
    longest_physics_dt: float = math.inf  # s; where the configured one is longer, this one is used
    workspace: float = WORKSPACE  # m; props start within so much of the origin, in x and in y

    @abstractmethod
    def add_props(self, spec: mujoco.MjSpec) -> None:
        """Adds the props to an uncompiled scene."""

    @abstractmethod
    def place(self, rng: np.random.Generator) -> np.ndarray:
        """(P, 3): x [m], y [m], yaw [rad] of each prop at the start of an episode."""

    @abstractmethod
    def stage(self) -> Tensor:
        """(N,) int64, index into `stages`."""

    @abstractmethod
    def object_features(self) -> Tensor:
        """(N, F) float32 for the discriminator: objects only, no joints, no actions."""

    @abstractmethod
    def aux_targets(self) -> Tensor:
        """(N, K) float32 in m: points that the auxiliary heads tell from pixels, K a multiple of
        3."""

    def bind(self, sim: Simulation) -> None:
        self.sim = sim
        model = sim.model
        self.jaco = robot.Jaco(model, sim.device)
        self.prop_body_ids = [int(model.body(p).id) for p in self.props]
        self._prop_geom_ids = [int(model.body(p).geomadr[0]) for p in self.props]
        joints = [model.joint(f"{p}_joint") for p in self.props]
        self._prop_qpos_ids = [int(j.qposadr[0]) for j in joints]
        self._prop_dof_ids = [int(j.dofadr[0]) for j in joints]
        self._contact_ids = [
            int(model.sensor(f"{HAND_CONTACT_SENSOR}{p}").adr[0]) for p in self.props
        ]
        self._rewards = torch.tensor(self.stage_rewards, device=sim.device)
        # Every free joint of the scene: the props', in their order, then what else can move.
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        others = [j for j in free.tolist() if model.jnt_qposadr[j] not in self._prop_qpos_ids]
        self._free_qpos_ids = self._prop_qpos_ids + model.jnt_qposadr[others].tolist()
        self._free_dof_ids = self._prop_dof_ids + model.jnt_dofadr[others].tolist()
        self._default_height = model.qpos0[[adr + 2 for adr in self._prop_qpos_ids]]
        self._default_size = model.geom_size[self._prop_geom_ids, 0].copy()

    # What every task of this house shares.

    def reward(self, stage: Tensor) -> Tensor:
        """stage (N,) -> (N,) float32: the sparse staged reward of this control step."""
        return self._rewards[stage]

    def success(self, stage: Tensor) -> Tensor:
        """stage (N,) -> (N,) bool: in the final stage. An episode succeeds if so at its last
        step."""
        return stage == len(self.stages) - 1

    def start_state(
        self, rng: np.random.Generator, heights: np.ndarray | None = None
    ) -> np.ndarray:
        """(nq + nv,) of one episode: the arm near its start pose, the props at rest on the table.

        heights: (P,) m, of this world's props where they lie, if their size is randomized.
        """
        model = self.sim.model
        state = np.concatenate((model.qpos0, np.zeros(model.nv)))
        noise = np.array(robot.START_SPREAD)
        arm = np.asarray(robot.START_QPOS) + rng.uniform(-noise, noise)
        state[self.jaco.qpos_ids.cpu().numpy()] = arm
        heights = self._default_height if heights is None else heights
        for (x, y, yaw), z, adr in zip(self.place(rng), heights, self._prop_qpos_ids, strict=True):
            state[adr : adr + 7] = (x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2))
        return state

    def vary(  # noqa: B027  (a hook: most tasks have nothing to draw)
        self, env_ids: Tensor, rngs: list[np.random.Generator]
    ) -> None:
        """Draws what else differs between episodes of the task itself, such as shapes, into the
        model fields of these worlds (n,), one generator each. The factors of randomization have
        just been applied, which start from the model's defaults; the start states come after."""

    def symmetry(self, index: int) -> int:
        """Turns about its vertical that leave a prop as it is."""
        return self.prop_symmetry[index] if self.prop_symmetry else 1

    def grasp_symmetry(self, index: int) -> int:
        """Turns about its vertical after which a hand can take a prop as before."""
        return self.symmetry(index)

    def moved_by(self, stage: Tensor) -> Tensor:
        """stage (n,), the furthest so far, of the first n worlds -> (n,) int64: the prop that the
        hand moves by, index into `props`, or TABLE."""
        by = torch.tensor(self.stage_props)
        now = self.stage()[: len(stage)]
        # Where what was brought to a place is lost again, the hand goes back to a prop.
        return torch.where(by[stage] == TABLE, by[now], by[stage])

    def props_present(self, state: np.ndarray) -> np.ndarray:
        """state (nq + nv,) -> (P,) bool: the props that take part in the episode."""
        return np.ones(len(self.props), dtype=bool)

    def exchanged(self, states: np.ndarray) -> list[np.ndarray]:
        """(T, nq + nv) of an episode -> the same, and with props exchanged that are alike."""
        return [states]

    def order_of(self, state: np.ndarray) -> tuple[int, ...]:
        """In which order the props of a start state (nq + nv,) are taken; () if always in one."""
        return ()

    def rearranged(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A state (nq + nv,) -> one in which what the hand is not at lies elsewhere, to be looked
        at; the same where a task does not say how."""
        return state

    def may_start(self, state: np.ndarray) -> bool:
        """Whether the props of a state (nq + nv,) stand where an episode may begin."""
        return all(
            bool(np.abs(state[adr : adr + 2]).max() <= self.workspace)
            for adr in self._prop_qpos_ids
        )

    def turned(self, states: np.ndarray, angle: float) -> np.ndarray:
        """An episode turned about the vertical through the arm's base: (T, nq + nv) -> the same.

        angle: rad, counter-clockwise from above. A symmetric prop is described by the one of its
        faces that makes its yaw at the first step the smallest, as at the task's own starts.
        """
        model = self.sim.model
        turned = states.copy()
        turned[:, self.jaco.qpos_ids[0]] += robot.FIRST_JOINT_TURN * angle
        cos, sin = np.cos(angle), np.sin(angle)
        rotation = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        base = np.asarray(robot.BASE_POS)
        for index, (adr, dof) in enumerate(
            zip(self._free_qpos_ids, self._free_dof_ids, strict=True)
        ):
            ways = self.symmetry(index) if index < len(self.props) else 1
            position, quat = slice(adr, adr + 3), slice(adr + 3, adr + 7)
            linear = slice(model.nq + dof, model.nq + dof + 3)
            angular = slice(model.nq + dof + 3, model.nq + dof + 6)
            turned[:, position] = (states[:, position] - base) @ rotation.T + base
            turned[:, linear] = states[:, linear] @ rotation.T
            turned[:, quat] = quat_product(about_z(angle), states[:, quat])
            yaw = yaw_of(turned[0, quat])
            step = 2.0 * np.pi / ways
            own = -step * np.round(yaw / step)  # about the prop's own axis: another face of it
            turned[:, quat] = quat_product(turned[:, quat], about_z(own))
            # A free joint's angular velocity is given in the prop's own frame.
            x, y = states[:, angular][:, 0], states[:, angular][:, 1]
            cos_own, sin_own = np.cos(own), np.sin(own)
            turned[:, angular.start] = cos_own * x + sin_own * y
            turned[:, angular.start + 1] = cos_own * y - sin_own * x
        return turned

    def rest_heights(self) -> Tensor:
        """(N, P) m: of each prop's centre where it lies on the table, in this world's size."""
        scales = self.scales()
        return scales * torch.as_tensor(
            self._default_height, dtype=scales.dtype, device=scales.device
        )

    def scales(self) -> Tensor:
        """(N, P): each prop's size in this world, as a share of its compiled one."""
        sizes = self._field("geom_size")[:, self._prop_geom_ids, 0]
        return sizes / torch.as_tensor(self._default_size, dtype=sizes.dtype, device=sizes.device)

    def _field(self, name: str) -> Tensor:
        if name in self.sim.fields:
            return self.sim.model_field(name)
        return self.sim.default_field(name).unsqueeze(0)

    def _of_prop(self, name: str, index: int | Tensor) -> Tensor:
        """(N, ...) of a prop; a tensor (N,) names another one in each world."""
        values = self.sim.data(name)
        if isinstance(index, int):
            return values[:, self.prop_body_ids[index]]
        return values[torch.arange(len(index)), torch.tensor(self.prop_body_ids)[index]]

    def prop_pos(self, index: int | Tensor) -> Tensor:
        """(N, 3) m, world frame."""
        return self._of_prop("xpos", index)

    def prop_yaw(self, index: int | Tensor) -> Tensor:
        """(N,) rad: heading of the prop's x axis on the table."""
        mat = self._of_prop("xmat", index).view(-1, 3, 3)
        return torch.atan2(mat[:, 1, 0], mat[:, 0, 0])

    def in_frame_of(self, index: int, points: Tensor) -> Tensor:
        """points (N, K, 3) m, world frame -> (N, K, 3) m, in the frame of a prop."""
        mat = self._of_prop("xmat", index).view(-1, 3, 3)
        return (points - self.prop_pos(index).unsqueeze(1)) @ mat

    def pinch_pos(self) -> Tensor:
        """(N, 3) m, world frame: the point between the fingertips."""
        return self.sim.data("site_xpos")[:, self.jaco.pinch_site_id]

    def hand_yaw(self) -> Tensor:
        """(N,) rad: direction on the table of the axis along which the hand closes."""
        mat = self.sim.data("site_xmat")[:, self.jaco.pinch_site_id].view(-1, 3, 3)
        return torch.atan2(mat[:, 1, 0], mat[:, 0, 0])

    def fingertip_pos(self) -> Tensor:
        """(N, 3 fingers, 3) m, world frame."""
        return self.sim.data("xpos")[:, self.jaco.fingertip_body_ids]

    def hand_contacts(self, index: int) -> Tensor:
        """(N,) number of contacts between the hand and a prop."""
        return self.sim.data("sensordata")[:, self._contact_ids[index]]

    def held(self, index: int) -> Tensor:
        """(N,) bool: the hand touches a prop. What is to be lifted has to be: a block that was
        thrown is in the air, too."""
        return self.hand_contacts(index) > 0

    def reaching(self, index: int) -> Tensor:
        """(N,) bool: the pinch site is at the prop."""
        distance = torch.linalg.vector_norm(self.prop_pos(index) - self.pinch_pos(), dim=1)
        return distance < REACH_DISTANCE

    def lifted(self, index: int, height: float) -> Tensor:
        """(N,) bool: the prop's centre is `height` [m] above where it lies on the table."""
        return self.prop_pos(index)[:, 2] > self.rest_heights()[:, index] + height

    def state(self) -> Tensor:
        """(N, S) float32: the full physical state for critic and teacher; m, rad, s.

        Joints (as proprioception, without noise), finger velocities, pinch pose, and for each prop
        position, orientation (two columns of its rotation), velocities, position relative to the
        pinch site and to every fingertip, contacts with the hand; pairwise prop offsets; how each
        prop is turned against the hand and against each other prop, as cosine and sine of the angle
        times the prop's symmetry, so that faces that are alike read alike; with
        `neighbours_in_state` the direction of each other prop, as seen from the hand and from this
        prop; and the stage, one-hot.
        """
        parts = self._robot_state()
        for i in range(len(self.props)):
            parts += self._prop_state(i)
            parts += [self.prop_pos(j) - self.prop_pos(i) for j in range(i)]
            turns = [(self.prop_yaw(i) - self.hand_yaw(), self.symmetry(i))]
            for j in range(i):
                ways = min(self.symmetry(i), self.symmetry(j))
                turns.append((self.prop_yaw(i) - self.prop_yaw(j), ways))
            parts += [torch.stack(((w * t).cos(), (w * t).sin()), dim=1) for t, w in turns]
            if self.neighbours_in_state:
                parts += self._neighbours(i)
        stage = torch.nn.functional.one_hot(self.stage(), len(self.stages))
        parts.append(stage.double())
        return torch.cat(parts, dim=1).float()

    def _neighbours(self, index: int) -> list[Tensor]:
        """(N, 2) each, of every other prop: cosine and sine of its direction from this one against
        the hand's (and three times that: fingers) and against this prop's (times its symmetry), as
        they are and times the distance in units of NEIGHBOUR."""
        frames = [(self.hand_yaw(), 1), (self.hand_yaw(), len(robot.FINGER_JOINTS))]
        frames.append((self.prop_yaw(index), self.symmetry(index)))
        parts = []
        for other in range(len(self.props)):
            if other == index:
                continue
            offset = self.prop_pos(other) - self.prop_pos(index)
            direction = torch.atan2(offset[:, 1], offset[:, 0])
            distance = offset[:, :2].norm(dim=1, keepdim=True)
            for yaw, ways in frames:
                angle = ways * (direction - yaw)
                unit = torch.stack((angle.cos(), angle.sin()), dim=1)
                parts += [unit, unit * distance / NEIGHBOUR]
        return parts

    def _robot_state(self) -> list[Tensor]:
        sim, jaco = self.sim, self.jaco
        qpos, qvel = sim.data("qpos"), sim.data("qvel")
        return [
            jaco.proprio(qpos, qvel).double(),
            qvel[:, jaco.dof_ids[6:]],
            self.pinch_pos(),
            sim.data("site_xmat")[:, jaco.pinch_site_id].view(-1, 9)[:, :6],
        ]

    def _prop_state(self, index: int) -> list[Tensor]:
        sim, pos, dof = self.sim, self.prop_pos(index), self._prop_dof_ids[index]
        return [
            pos,
            sim.data("xmat")[:, self.prop_body_ids[index]].view(-1, 9)[:, :6],
            sim.data("qvel")[:, dof : dof + 6],
            pos - self.pinch_pos(),
            (pos.unsqueeze(1) - self.fingertip_pos()).flatten(1),
            self.hand_contacts(index).unsqueeze(1).clamp(max=4.0),
        ]


def along(angle: Tensor, length: float) -> Tensor:
    """(N,) rad, length in m -> (N, 3) float32 m: a point, for heads that tell places."""
    return length * torch.stack((angle.cos(), angle.sin(), torch.zeros_like(angle)), dim=1).float()


def about_z(angle: float) -> np.ndarray:
    """(4,) quaternion w, x, y, z."""
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])


def yaw_of(quat: np.ndarray) -> float:
    """(4,) w first -> rad about z."""
    w, x, y, z = quat
    return float(np.arctan2(2.0 * (w * z + x * y), 1.0 - 2.0 * (y * y + z * z)))


def quat_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of quaternions (..., 4), w first."""
    w1, x1, y1, z1 = np.moveaxis(first, -1, 0)
    w2, x2, y2, z2 = np.moveaxis(second, -1, 0)
    parts = (
        w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
        w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
        w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
    )
    return np.stack(np.broadcast_arrays(*parts), axis=-1)
