"""Order fulfilment: toy planes into the green box, toy cars into the red one (Zhu et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.envs import scene
from visuomotor.envs.scene import Part
from visuomotor.envs.simulation import Simulation
from visuomotor.envs.tasks import toys
from visuomotor.envs.tasks.rearrangement import Rearrangement
from visuomotor.envs.tasks.task import Task, along, yaw_of

OF_A_KIND = 2  # toys, at most
PLANES, CARS = (0, 1), (2, 3)  # toys by index: kind and box follow from the slot
TOYS = PLANES + CARS
GREEN_BOX, RED_BOX = 4, 5  # props by index
BOX_OF = (GREEN_BOX, GREEN_BOX, RED_BOX, RED_BOX)  # of each toy
OTHER = (1, 0, 3, 2)  # of each toy the other one of its kind
GREEN, RED = (0.10, 0.55, 0.20, 1.0), (0.75, 0.10, 0.10, 1.0)

# m. A box holds two toys side by side. Its walls are lower than the tips of an open hand that takes
# a toy beside it; a toy that lies on another one is above the rim.
INNER_HALF = (0.064, 0.048)  # x, y in the box's frame
WALL = 0.004  # thickness
RIM = 0.03  # height of the walls above the table
FLOOR = 0.003  # thickness of a box's floor
# m of a toy's centre above its box's floor: a toy that nothing holds and that leans on a wall is in
# the box; one that lies across a wall, or on another toy, is not.
LEANING = 0.045
BOX_MASS = 0.4  # kg; a toy or a finger that runs against it hardly moves it
# x, y [m], yaw [rad]; seen from the camera green stands at the left, behind the toys, red at the
# right, with their longer edges in the line of sight. At the start of an episode they stand as far
# from there (m, in x and in y), and are turned by so much (rad).
BOX_PLACES = ((-0.14, 0.09, np.pi / 2), (0.14, 0.09, np.pi / 2))
BOX_SPREAD = (0.01, 0.12)
TOY_AREA = ((-0.15, -0.108), (0.15, -0.042))  # m, corners in x, y: before the boxes
MIN_DISTANCE = 0.09  # m between toys' centres at the start: no two touch
# Room for fingers at the start: on both sides of a toy, so far from its centre (m), no other toy
# has its centre nearer than so much (m), and no box stands: their fronts are behind y = 0.005.
FINGERS = (0.06, 0.038)
FINGERS_Y = -0.012  # m, the furthest back
TRIES = 40  # places tried for a set of toys before it is begun anew
# Absent toys lie on a shelf under the table and below the floor, which hides them.
SHELF_Z = -1.0  # m
PARKING = ((-0.15, 0.0), (0.15, 0.0), (-0.15, 0.2), (0.15, 0.2))  # m, x, y of each toy
PARKED = 0.05  # m from its place there: a toy is absent; one that falls off the table gets not near
# m from the pinch site to a toy that the hand touches: nearer it holds it, further off it brushes
# it on its way up.
HELD = 0.025
HEADING_LENGTH = 0.03  # m, of a vector that tells how a toy is turned; half a turn is none
CARRIED = (0.01, 0.05)  # m above where it lies, m from the pinch site: the hand has a toy
FIRST = 10.0  # m that it comes before the others by: more than any toy is away


class OrderFulfillment(Task):
    """`toy_0` and `toy_1` are planes, `toy_2` and `toy_3` cars, of another shape and colour every
    episode; one to four of them are present, of either kind the first ones.

    Which are present is part of the physical state, and what a demonstration does not keep, the
    shapes, makes no difference of more than some mm where a toy is grasped. What is told about toys
    is sorted and never depends on the slot. A demonstration takes about 130 steps a toy.
    """

    name = "order_fulfillment"
    episode_steps = 1000  # 50 s (paper)
    # Most are done by then, and all see many more starts so. One with four toys is not always.
    training_steps = 600
    stages = ("none", "one", "two", "three", "all")
    stage_rewards = (0.0, 1.0, 2.0, 3.0, 4.0)  # of an episode with four; see `reward`
    props = ("toy_0", "toy_1", "toy_2", "toy_3", "green_box", "red_box")
    stage_props = (0, 0, 0, 0, 0)  # see `moved_by`
    # Planes, which are told where the first box is when there are none, and cars.
    kinds_in_targets = (((2, 0), (3, 0)), ((4, 1), (5, 1)))

    def add_props(self, spec: mujoco.MjSpec) -> None:
        middle = np.full(toys.NUMBERS, 0.5)
        for index in TOYS:
            scene.add_prop(spec, self.props[index], _height(index), _shape(index)(middle))
        for index, rgba in ((GREEN_BOX, GREEN), (RED_BOX, RED)):
            scene.add_prop(spec, self.props[index], FLOOR / 2, _box(rgba))
        spec.worldbody.add_geom(
            name="shelf",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=[0.3, 0.3, 0.02],
            pos=[0.0, 0.1, SHELF_Z - 0.02],
            group=3,  # not rendered
        )

    def bind(self, sim: Simulation) -> None:
        super().bind(sim)
        model = sim.model
        self._toy_body_ids = torch.tensor([self.prop_body_ids[i] for i in TOYS])
        self._box_body_ids = torch.tensor([self.prop_body_ids[b] for b in BOX_OF])
        self._toy_dofs = torch.tensor([self._prop_dof_ids[i] for i in TOYS])[:, None]
        self._toy_dofs = self._toy_dofs + torch.arange(6)
        self._toy_contacts = torch.tensor([self._contact_ids[i] for i in TOYS])
        parking = [(*PARKING[i], SHELF_Z + _height(i)) for i in TOYS]
        self._parking = torch.tensor(parking, dtype=torch.float64)
        firsts = [int(model.body(self.props[i]).geomadr[0]) for i in TOYS]
        counts = [int(model.body(self.props[i]).geomnum[0]) for i in TOYS]
        self._toy_geoms = [range(g, g + n) for g, n in zip(firsts, counts, strict=True)]
        self._box_ids = torch.tensor(BOX_OF)
        self._rest = torch.tensor([_height(index) for index in TOYS], dtype=torch.float64)
        self._scratch = mujoco.MjData(model)
        self._rearrangement = Rearrangement(
            qpos_ids=self._prop_qpos_ids,
            dof_ids=[model.nq + dof for dof in self._prop_dof_ids],
            heights=self._rest.tolist(),
            parking=self._parking.numpy(),
            boxes=(GREEN_BOX, RED_BOX),
            inside=INNER_HALF,
            hand_at=self._hand_at,
            is_parked=self._lies_parked,
        )

    # --- episodes -------------------------------------------------------------------------------

    def place(self, rng: np.random.Generator) -> np.ndarray:
        count = int(rng.integers(1, len(TOYS) + 1))
        planes = int(rng.integers(max(0, count - OF_A_KIND), min(OF_A_KIND, count) + 1))
        present = [*PLANES[:planes], *CARS[: count - planes]]
        places = np.zeros((len(self.props), 3))
        places[list(TOYS), :2] = PARKING
        spread = np.array([BOX_SPREAD[0], BOX_SPREAD[0], BOX_SPREAD[1]])
        places[GREEN_BOX:] = BOX_PLACES + spread * rng.uniform(-1.0, 1.0, (2, 3))
        toys_at: list[np.ndarray] = []
        while len(toys_at) < count:
            free, toys_at = _before_the_boxes(rng), []
            while len(toys_at) < count and len(free) > 0:
                toys_at.append(free[0])
                free = free[_apart(free, free[0])]
        places[present] = rng.permutation(toys_at)
        return places

    def start_state(
        self, rng: np.random.Generator, heights: np.ndarray | None = None
    ) -> np.ndarray:
        state = super().start_state(rng, heights)
        for index in TOYS:
            adr = self._prop_qpos_ids[index]
            if tuple(state[adr : adr + 2]) == PARKING[index]:
                state[adr + 2] += SHELF_Z
        return state

    def rearranged(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Toys away from the hand and boxes that stand elsewhere: `rearrangement.py`."""
        return self._rearrangement(state, rng)

    def may_start(self, state: np.ndarray) -> bool:
        for index, adr in enumerate(self._prop_qpos_ids):
            at = state[adr : adr + 3]
            if index not in TOYS:
                yaw = yaw_of(state[adr + 3 : adr + 7])
                moved = np.abs((*at[:2], yaw) - np.array(BOX_PLACES[index - GREEN_BOX]))
                if moved[:2].max() > BOX_SPREAD[0] or moved[2] > BOX_SPREAD[1]:
                    return False
            elif not self._lies_parked(state, index):
                low, high = np.asarray(TOY_AREA)
                if (at[:2] < low).any() or (at[:2] > high).any():
                    return False
        return True

    def turned(self, states: np.ndarray, angle: float) -> np.ndarray:
        """Absent toys stay where they are."""
        turned = super().turned(states, angle)
        nq = self.sim.model.nq
        for index in TOYS:
            if self._lies_parked(states[0], index):
                adr, dof = self._prop_qpos_ids[index], nq + self._prop_dof_ids[index]
                turned[:, adr : adr + 7] = states[:, adr : adr + 7]
                turned[:, dof : dof + 6] = states[:, dof : dof + 6]
        return turned

    def grasp_symmetry(self, index: int) -> int:
        """A toy is taken across, from either side."""
        return 2 if index in TOYS else 1

    def props_present(self, state: np.ndarray) -> np.ndarray:
        absent = [
            index in TOYS and self._lies_parked(state, index) for index in range(len(self.props))
        ]
        return ~np.array(absent)

    def order_of(self, state: np.ndarray) -> tuple[int, ...]:
        """From right to left."""
        there = np.flatnonzero(self.props_present(state)[list(TOYS)])
        return tuple(sorted(there.tolist(), key=lambda toy: -state[self._prop_qpos_ids[toy]]))

    def exchanged(self, states: np.ndarray) -> list[np.ndarray]:
        """Toys of a kind that are both present."""
        ways, nq = [states], self.sim.model.nq
        for first, second in (PLANES, CARS):
            if self._lies_parked(states[0], first) or self._lies_parked(states[0], second):
                continue
            for way in list(ways):
                other = way.copy()
                for ids, count in ((self._prop_qpos_ids, 7), (self._prop_dof_ids, 6)):
                    offset = 0 if count == 7 else nq
                    a, b = (
                        slice(offset + ids[i], offset + ids[i] + count) for i in (first, second)
                    )
                    other[:, a], other[:, b] = way[:, b], way[:, a]
                ways.append(other)
        return ways

    def _hand_at(self, state: np.ndarray) -> np.ndarray:
        """(3,) m: the pinch site in a physical state, of the arm that is compiled."""
        model, data = self.sim.model, self._scratch
        data.qpos[:] = state[: model.nq]
        mujoco.mj_kinematics(model, data)
        at: np.ndarray = data.site_xpos[self.jaco.pinch_site_id].copy()
        return at

    def _lies_parked(self, state: np.ndarray, index: int) -> bool:
        adr = self._prop_qpos_ids[index]
        away = np.linalg.norm(state[adr : adr + 3] - self._parking[index].numpy())
        return bool(away < PARKED)

    def vary(self, env_ids: Tensor, rngs: list[np.random.Generator]) -> None:
        """Draws the toys' shapes and colours. The factors of randomization scale, or shift, what is
        drawn as they would what was compiled."""
        sim = self.sim
        geoms = torch.tensor([geom for of_toy in self._toy_geoms for geom in of_toy])
        bodies, materials = self._toy_body_ids, torch.from_numpy(sim.model.geom_matid)[geoms].long()
        shapes = [
            [part for index in TOYS for part in _shape(index)(rng.random(toys.NUMBERS))]
            for rng in rngs
        ]
        # Of their size in this world: the first part's is the same in every shape.
        first = torch.tensor([of_toy[0] for of_toy in self._toy_geoms])
        scale = self._values("geom_size", env_ids, first)[:, :, 0]
        scale = scale / sim.default_field("geom_size")[first, 0]  # (n, toys)
        counts = torch.tensor([len(of_toy) for of_toy in self._toy_geoms])
        of_geom = scale.repeat_interleave(counts, dim=1).unsqueeze(2)  # (n, geoms, 1)

        def column(value: Callable[[Part], Sequence[float]]) -> Tensor:
            rows = [[value(part) for part in shape] for shape in shapes]
            return torch.tensor(rows, dtype=torch.float64)

        size = column(lambda part: (*part.size, 0.0, 0.0)[:3])
        pos = column(lambda part: part.pos)
        radius = column(lambda part: (toys.bounds(part)[0],))
        half = column(lambda part: toys.bounds(part)[1])
        colour = column(lambda part: part.rgba)
        self._write("geom_size", env_ids, geoms, size * of_geom)
        self._write("geom_pos", env_ids, geoms, pos * of_geom)
        self._write("geom_rbound", env_ids, geoms, (radius * of_geom).squeeze(2))
        self._write("geom_aabb", env_ids, geoms, torch.cat((0.0 * half, half * of_geom), dim=2))
        shifted = self._values("mat_rgba", env_ids, materials)
        shifted = shifted - sim.default_field("mat_rgba")[materials] + colour
        self._write("mat_rgba", env_ids, materials, shifted.clamp(0.0, 1.0))
        # All of the mass is in one part of a toy.
        heavy = torch.tensor([i for i, part in enumerate(shapes[0]) if part.mass > 0.0])
        inertia = toys.inertia(size[:, heavy])
        inertia *= self._values("body_inertia", env_ids, bodies)
        inertia /= sim.default_field("body_inertia")[bodies]
        self._write("body_inertia", env_ids, bodies, inertia)
        self._write("body_ipos", env_ids, bodies, pos[:, heavy] * scale.unsqueeze(2))
        sim.recompute_constants(env_ids)

    def _values(self, name: str, env_ids: Tensor, columns: Tensor) -> Tensor:
        return self.sim.model_field(name)[env_ids[:, None], columns]

    def _write(self, name: str, env_ids: Tensor, columns: Tensor, values: Tensor) -> None:
        field = self.sim.model_field(name)
        field[env_ids[:, None], columns] = values.to(field.dtype)

    # --- what is where --------------------------------------------------------------------------

    def toy_pos(self) -> Tensor:
        """(N, toys, 3) m, world frame."""
        return self.sim.data("xpos")[:, self._toy_body_ids]

    def present(self) -> Tensor:
        """(N, toys) bool: not parked."""
        return torch.linalg.vector_norm(self.toy_pos() - self._parking, dim=2) > PARKED

    def in_box_frame(self) -> Tensor:
        """(N, toys, 3) m: each toy's centre seen from the floor of its own box."""
        mat = self.sim.data("xmat")[:, self._box_body_ids].view(-1, len(TOYS), 3, 3)
        offset = self.toy_pos() - self.sim.data("xpos")[:, self._box_body_ids]
        return (mat.transpose(2, 3) @ offset.unsqueeze(3)).squeeze(3)

    def in_box(self) -> Tensor:
        """(N, toys) bool: present, and the centre is between the walls of the right box: below its
        rim, or, where the hand does not touch it, where it is when it leans on a wall. All of it
        at the box's size in this world."""
        scale = self.scales()[:, self._box_ids].unsqueeze(2)
        x, y, z = (self.in_box_frame() / scale).unbind(dim=2)
        between = (x.abs() < INNER_HALF[0]) & (y.abs() < INNER_HALF[1]) & (z > 0.0)
        low = (z < RIM) | ((z < LEANING) & ~self._touched())
        return between & low & self.present()

    def delivered(self) -> Tensor:
        """(N, toys) bool: in the right box, and the hand does not hold it."""
        near = torch.linalg.vector_norm(self.toy_pos() - self.pinch_pos().unsqueeze(1), dim=2)
        return self.in_box() & ~(self._touched() & (near < HELD))

    def _touched(self) -> Tensor:
        """(N, toys) bool: by the hand."""
        return self.sim.data("sensordata")[:, self._toy_contacts] > 0

    def _precedence(self) -> Tensor:
        """(N, toys) m: of those that are still to be delivered the one with the lowest is next.

        From right to left, as the camera sees them, and what the hand carries before all. Toys
        begin MIN_DISTANCE apart in an area that is less deep, so hardly two are as far right; which
        one is nearest to the hand cannot be told between two of them, and a policy that is not sure
        of it stays there.
        """
        return -self.toy_pos()[:, :, 0] - FIRST * self._carried()

    def _carried(self) -> Tensor:
        """(N, toys) bool: in the hand, off what it stood on."""
        pos = self.toy_pos()
        near = torch.linalg.vector_norm(pos - self.pinch_pos().unsqueeze(1), dim=2) < CARRIED[1]
        return near & (pos[:, :, 2] > self._rest + CARRIED[0])

    def next_toy(self) -> tuple[Tensor, Tensor]:
        """The toy to take next of those that are not in their box: (N,) its index, and whether
        there is one (N,) bool."""
        left = self.present() & ~self.in_box()
        return self._precedence().masked_fill(~left, torch.inf).argmin(dim=1), left.any(dim=1)

    def moved_by(self, stage: Tensor) -> Tensor:
        """The toy that is taken next; with a toy in the hand its box, and in the end the last
        one."""
        toy, left = self.next_toy()
        n = len(stage)
        carried = self._carried()[torch.arange(len(toy)), toy]
        boxes = torch.tensor((GREEN_BOX, RED_BOX))
        last = torch.stack([self.prop_pos(int(box)) for box in boxes], dim=1)
        last = torch.linalg.vector_norm(last - self.pinch_pos().unsqueeze(1), dim=2).argmin(dim=1)
        by = torch.where(carried, self._box_ids[toy], toy)
        return torch.where(left, by, boxes[last])[:n]

    # --- stages, reward, views ------------------------------------------------------------------

    def stage(self) -> Tensor:
        delivered = self.delivered().sum(dim=1)
        everything = delivered == self.present().sum(dim=1)
        return torch.where(everything, len(self.stages) - 1, delivered)

    def reward(self, stage: Tensor) -> Tensor:
        """The number of toys in the right box (paper)."""
        return self.delivered().sum(dim=1).float()

    def _sorted(self, values: Tensor) -> Tensor:
        """(N, toys, D) -> the same without regard to slots: of each kind the toys that are to be
        delivered first, as they are taken; zeros where a toy is absent."""
        present, key = self.present(), self._precedence()
        key = torch.where(self.in_box(), key + 2.0 * FIRST, key)
        key = key.masked_fill(~present, torch.inf)
        order = torch.cat([key[:, kind].argsort(dim=1) + kind[0] for kind in (PLANES, CARS)], dim=1)
        values = torch.where(present.unsqueeze(2), values, 0.0)
        return values.gather(1, order.unsqueeze(2).expand_as(values))

    def _boxes(self) -> list[Tensor]:
        return [self.prop_pos(box) for box in (GREEN_BOX, RED_BOX)]

    def object_features(self) -> Tensor:
        """(N, 65) m and 0 or 1. Of each toy: where it is, relative to the pinch site and to its
        box; present, in its box. Both boxes. The next toy relative to each fingertip."""
        pos, pinch = self.toy_pos(), self.pinch_pos()
        box = self.sim.data("xpos")[:, self._box_body_ids]
        flags = torch.stack((self.present(), self.in_box()), dim=2).to(pos.dtype)
        of_toys = torch.cat((pos, pos - pinch.unsqueeze(1), pos - box, flags), dim=2)
        toy, left = self.next_toy()
        tips = (self.prop_pos(toy).unsqueeze(1) - self.fingertip_pos()).flatten(1)
        tips = torch.where(left.unsqueeze(1), tips, 0.0)
        boxes = [part for box in self._boxes() for part in (box, box - pinch)]
        return torch.cat((self._sorted(of_toys).flatten(1), *boxes, tips), dim=1).float()

    def aux_targets(self) -> Tensor:
        """(N, 36) m: both boxes; of each kind the leftmost and the rightmost toy that is still to
        be delivered, where it is and, at HEADING_LENGTH, twice its heading; the next toy relative
        to the pinch site and to its box. A toy that is not there is where its box is, with no
        heading.

        Which of the first is which does not depend on the hand: a picture that does not show the
        hand, or shows it between two toys, tells as much. The last tells whether a toy in the hand,
        which hides it, is a plane or a car.
        """
        pos, left = self.toy_pos(), self.present() & ~self.in_box()
        boxes = self._boxes()
        places, headings = [*boxes], []
        everyone = torch.arange(len(pos))
        for box, kind in zip(boxes, (PLANES, CARS), strict=True):
            across = pos[:, kind, 0]
            leftmost = across.masked_fill(~left[:, kind], torch.inf).argmin(dim=1)
            rightmost = across.masked_fill(~left[:, kind], -torch.inf).argmax(dim=1)
            some = left[:, kind].any(dim=1, keepdim=True)
            for chosen in (leftmost, rightmost):
                toy = chosen + kind[0]
                places.append(torch.where(some, pos[everyone, toy], box))
                heading = along(2.0 * self.prop_yaw(toy), HEADING_LENGTH)
                headings.append(torch.where(some, heading, 0.0))
        toy, some = self.next_toy()
        own = self.prop_pos(self._box_ids[toy])
        near = torch.where(some.unsqueeze(1), self.prop_pos(toy), own)
        parts = (*places, *headings, near - self.pinch_pos(), near - own)
        return torch.cat(parts, dim=1).float()

    def state(self) -> Tensor:
        """(N, S) float32, as of every task, with the toys sorted; absent toys are zeros. The next
        toy stands once more by itself: what is done with it is the same for all."""
        sim, n = self.sim, self.sim.num_envs
        qvel, pinch, tips = sim.data("qvel"), self.pinch_pos(), self.fingertip_pos()
        pos, box = self.toy_pos(), sim.data("xpos")[:, self._box_body_ids]
        contacts = sim.data("sensordata")[:, self._toy_contacts].clamp(max=4.0)
        flags = (contacts, self.present().double(), self.in_box().double())
        of_toys = (
            pos,
            sim.data("xmat")[:, self._toy_body_ids].view(n, -1, 9)[:, :, :6],
            qvel[:, self._toy_dofs],
            pos - pinch.unsqueeze(1),
            (pos.unsqueeze(2) - tips.unsqueeze(1)).flatten(2),
            pos - box,
            self.in_box_frame(),
            torch.stack(flags, dim=2),
        )
        parts = self._robot_state()
        parts.append(self._sorted(torch.cat(of_toys, dim=2)).flatten(1))
        for index in (GREEN_BOX, RED_BOX):
            parts += self._prop_state(index)
        parts.append(self._next_toy_state())
        stage = torch.nn.functional.one_hot(self.stage(), len(self.stages))
        parts.append(stage.double())
        return torch.cat(parts, dim=1).float()

    def _next_toy_state(self) -> Tensor:
        """(N, 38) m, cosines and sines, contacts, 0 or 1: where the next toy is for the hand, and
        its box for it; zeros where there is none."""
        toy, left = self.next_toy()
        everyone = torch.arange(len(toy))
        box, other = self._box_ids[toy], torch.tensor(OTHER)[toy]
        pos, pinch, in_box = self.prop_pos(toy), self.pinch_pos(), self.in_box_frame()
        heading, of_box = self.prop_yaw(toy), self.prop_yaw(box)
        # Half a turn of a toy, a hand or a box is none.
        turns = [2.0 * (heading - self.hand_yaw()), 2.0 * (heading - of_box), 2.0 * heading]
        taken = self.in_box()[everyone, other].double()
        parts = [
            pos - pinch,
            (pos.unsqueeze(1) - self.fingertip_pos()).flatten(1),
            self._of_prop("xmat", toy).view(len(toy), 9)[:, :6],
            pos - self.prop_pos(box),
            in_box[everyone, toy],
            *(torch.stack((turn.cos(), turn.sin()), dim=1) for turn in turns),
            self.prop_pos(box) - pinch,
            torch.isin(toy, torch.tensor(PLANES)).double().unsqueeze(1),
            self.sim.data("sensordata")[everyone, self._toy_contacts[toy]].clamp(max=4.0)[:, None],
            # The place that another toy of its kind has taken: it goes beside it.
            torch.stack((taken, taken * in_box[everyone, other, 0]), dim=1),
            left.double().unsqueeze(1),
        ]
        return torch.where(left.unsqueeze(1), torch.cat(parts, dim=1), 0.0)


def _shape(index: int) -> toys.Shape:
    return toys.plane if index in PLANES else toys.car


def _fingers(place: np.ndarray) -> np.ndarray:
    """(..., 3) x, y [m], yaw [rad] of toys -> (..., 2 sides, 2) m: where fingers take them."""
    across = np.stack((-np.sin(place[..., 2]), np.cos(place[..., 2])), axis=-1)
    sides = np.array([[-FINGERS[0]], [FINGERS[0]]])
    fingers: np.ndarray = place[..., None, :2] + sides * across[..., None, :]
    return fingers


def _before_the_boxes(rng: np.random.Generator) -> np.ndarray:
    """(up to TRIES, 3) x, y [m], yaw [rad] where a toy and fingers on both of its sides have room
    before the boxes."""
    xy = rng.uniform(*TOY_AREA, size=(TRIES, 2))
    place = np.concatenate((xy, rng.uniform(-np.pi, np.pi, (TRIES, 1))), axis=1)
    free: np.ndarray = place[(_fingers(place)[:, :, 1] < FINGERS_Y).all(axis=1)]
    return free


def _apart(places: np.ndarray, toy: np.ndarray) -> np.ndarray:
    """Whether a toy at each of some places (n, 3), and one at another (3,), are neither in the way
    of each other nor of fingers that take them: (n,) bool."""
    far: np.ndarray = np.linalg.norm(places[:, :2] - toy[:2], axis=1) >= MIN_DISTANCE
    for fingers, other in ((_fingers(places), toy[:2]), (_fingers(toy), places[:, None, :2])):
        far &= np.linalg.norm(fingers - other, axis=2).min(axis=1) >= FINGERS[1]
    return far


def _height(index: int) -> float:
    """m of a toy's origin above what it stands on."""
    return toys.PLANE_HEIGHT if index in PLANES else toys.CAR_HEIGHT


def _box(rgba: tuple[float, float, float, float]) -> list[Part]:
    """An open box; its origin is the middle of its floor."""
    x, y = INNER_HALF
    half = WALL / 2
    # Walls stand a little above the table: the floor alone touches it.
    low, high = 0.001 - FLOOR / 2, RIM - FLOOR / 2
    z, height = (low + high) / 2, (high - low) / 2
    walls = [Part((half, y + WALL, height), 0.0, rgba, (s * (x + half), 0.0, z)) for s in (-1, 1)]
    walls += [Part((x, half, height), 0.0, rgba, (0.0, s * (y + half), z)) for s in (-1, 1)]
    return [Part((x + WALL, y + WALL, FLOOR / 2), BOX_MASS, rgba), *walls]
