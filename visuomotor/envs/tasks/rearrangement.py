"""Toys and boxes elsewhere: states to look at, not to start from.

A student's episodes show few arrangements of toys, and boxes hardly ever where a hand has pushed
them; a CNN that has seen no others does not see them. What the hand is at stays as it is. Knows no
pixels and no learner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from visuomotor.envs.kinematics import planar
from visuomotor.envs.tasks.task import about_z, quat_product, yaw_of

TRIES = 40  # places tried for the toys of a state
# m: how far toys are from the hand, unless it is higher than the second, and from one another.
HAND, ABOVE, BESIDE = 0.09, 0.13, 0.06
STANDS = 0.006  # m off its height: what stands on the table
# m, corners in x, y: where toys come to lie, and how many of them anywhere, beside boxes too.
PUSHED = ((-0.19, -0.14), (0.19, -0.02))
ANYWHERE, ASTRAY = ((-0.22, -0.16), (0.22, 0.17)), 0.3
AROUND = 0.025  # m from a box's inside to the centres of toys beside it
# How many of the boxes are put elsewhere, how far (m, in x and y, and rad), and how far from the
# hand's and the other box's middle they stay (m).
BOXES_PUSHED, BOX_PUSH, BOX_CLEAR = 0.3, (0.06, 0.06, 0.5), (0.16, 0.17)


class Rearrangement:
    """Call it with a state (nq + nv,) and a generator.

    Args:
      qpos_ids, dof_ids: of props, where their free joints begin in a state; toys come first.
      heights: m above the table, of the toys' centres.
      parking: (toys, 3) m, where absent toys are.
      boxes: indices of two of the props.
      inside: m, half the inner edges of a box in its frame.
      hand_at: state -> (3,) m.
      is_parked: state, toy -> bool.
    """

    def __init__(
        self,
        *,
        qpos_ids: Sequence[int],
        dof_ids: Sequence[int],
        heights: Sequence[float],
        parking: np.ndarray,
        boxes: tuple[int, int],
        inside: tuple[float, float],
        hand_at: Callable[[np.ndarray], np.ndarray],
        is_parked: Callable[[np.ndarray, int], bool],
    ):
        self._qpos_ids, self._dof_ids = qpos_ids, dof_ids
        self._heights, self._parking = heights, parking
        self._boxes, self._inside = boxes, inside
        self._hand_at, self._is_parked = hand_at, is_parked

    def __call__(self, state: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Toys that stand on the table, away from the hand, are drawn anew, as to where they are
        and of which kind they are; some boxes, with what is in them, stand as if pushed."""
        hand = self._hand_at(state)
        toys = range(len(self._heights))
        parked = [index for index in toys if self._is_parked(state, index)]
        free = [i for i in toys if i not in parked and self._stands_free(state, i, hand)]
        count = len(free)
        kept = [index for index in toys if index not in parked and index not in free]
        state = state.copy()
        for index in (*free, *parked):
            adr, dof = self._qpos_ids[index], self._dof_ids[index]
            state[adr : adr + 3], state[adr + 3 : adr + 7] = self._parking[index], (1, 0, 0, 0)
            state[dof : dof + 6] = 0.0
        for box in self._boxes:
            push = rng.uniform(-1.0, 1.0, 3) * BOX_PUSH
            if rng.random() < BOXES_PUSHED:
                state = self.pushed_box(state, box, push, hand, kept)
        places = rng.uniform((*PUSHED[0], -np.pi), (*PUSHED[1], np.pi), size=(TRIES, 3))
        anywhere = rng.uniform(*ANYWHERE, size=(TRIES, 2))
        astray = rng.random(TRIES) < ASTRAY
        places[astray, :2] = anywhere[astray]
        by_hand = 0.0 if hand[2] > ABOVE else HAND
        for at, away in ((hand[:2], by_hand), *((self._xy(state, i), BESIDE) for i in kept)):
            places = places[np.linalg.norm(places[:, :2] - at, axis=1) > away]
        for box in self._boxes:
            places = places[~self.is_within(state, box, places[:, :2], AROUND)]
        for index in rng.permutation([*free, *parked])[:count].tolist():
            if len(places) == 0:
                break
            x, y, yaw = places[0]
            adr = self._qpos_ids[index]
            state[adr : adr + 3] = (x, y, self._heights[index])
            state[adr + 3 : adr + 7] = about_z(yaw)
            places = places[np.linalg.norm(places[:, :2] - (x, y), axis=1) > BESIDE]
        return state

    def pushed_box(
        self, state: np.ndarray, box: int, push: np.ndarray, hand: np.ndarray, kept: list[int]
    ) -> np.ndarray:
        """With a box and the toys in it elsewhere; as it is where hand, other box or a toy of those
        that are kept is in the way. push: (3,) m, m, rad."""
        (other,) = set(self._boxes) - {box}
        at = self._xy(state, box).copy()
        to = at + push[:2]
        # However high it is: what it carries over a box is none of what is in there.
        near_hand = min(np.linalg.norm(hand[:2] - place) for place in (at, to)) < BOX_CLEAR[0]
        if near_hand or np.linalg.norm(to - self._xy(state, other)) < BOX_CLEAR[1]:
            return state
        inside = [
            i for i in kept if self.is_within(state, box, self._xy(state, i)[None], AROUND)[0]
        ]
        turn, planar_turn = about_z(push[2]), planar(push[2])
        pushed = state.copy()
        for index in (box, *inside):
            adr = self._qpos_ids[index]
            pushed[adr : adr + 2] = to + planar_turn @ (state[adr : adr + 2] - at)
            pushed[adr + 3 : adr + 7] = quat_product(turn, state[adr + 3 : adr + 7])
        outside = [self._xy(state, i) for i in kept if i not in inside]
        if outside and self.is_within(pushed, box, np.stack(outside), AROUND).any():
            return state
        return pushed

    def is_within(self, state: np.ndarray, box: int, xy: np.ndarray, margin: float) -> np.ndarray:
        """Whether places (n, 2) are above the inside of a box, or so near to it (m): (n,) bool."""
        adr = self._qpos_ids[box]
        in_frame = (xy - state[adr : adr + 2]) @ planar(yaw_of(state[adr + 3 : adr + 7]))
        within: np.ndarray = (np.abs(in_frame) < np.add(self._inside, margin)).all(axis=1)
        return within

    def _stands_free(self, state: np.ndarray, index: int, hand: np.ndarray) -> bool:
        """On the table beside the boxes, and not at the hand (3,)."""
        x, y, z = state[self._qpos_ids[index] :][:3]
        far = hand[2] > ABOVE or np.linalg.norm(hand[:2] - (x, y)) > HAND
        if not far or abs(z - self._heights[index]) > STANDS:
            return False
        at = np.array([[x, y]])
        return not any(self.is_within(state, box, at, AROUND)[0] for box in self._boxes)

    def _xy(self, state: np.ndarray, index: int) -> np.ndarray:
        adr = self._qpos_ids[index]
        xy: np.ndarray = state[adr : adr + 2]
        return xy
