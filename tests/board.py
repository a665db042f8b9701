"""A ChArUco board in the hand of the simulated arm, photographed through a lens that is known."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import mujoco
import numpy as np
import torch

from visuomotor.charuco import BoardConfig, make_board
from visuomotor.config import CameraConfig, EnvConfig
from visuomotor.envs import robot, scene
from visuomotor.envs.camera import RayCaster
from visuomotor.envs.mujoco_cpu import MujocoCpuSimulation
from visuomotor.runtime.jaco import CHAIN
from visuomotor.runtime.kinematics import hand_pose
from visuomotor.runtime.preprocessing import Lens, looking_at, simulated_matrix

FOVY = 42.0  # degrees of the pinhole pictures that the lens is laid over
SIDE = 1200  # pixels of those
BITS = 6  # cells of a marker, border included
BOARD = BoardConfig(columns=6, rows=5, square=0.036, marker=0.024)
# The board's middle before the palm, in the frame of the hand's last joint.
HOLD = np.array([0.0, 0.0, -0.26])
FINGERS = np.array([0.3, 0.3, 0.3])  # rad
CAMERA = CameraConfig(
    height=SIDE, width=SIDE, fovy=FOVY, pos=(0.06, -0.62, 0.55), lookat=(0.01, 0.05, 0.2)
)
LENS = Lens(
    640,
    480,
    np.array([[830.0, 0.0, 325.0], [0.0, 826.0, 233.0], [0.0, 0.0, 1.0]]),
    np.array([-0.18, 0.06, 0.0008, -0.0006, 0.0]),
)
# As a command is told of the board; calibrate needs to know of the simulated camera, too.
SETTINGS = [
    f"board.columns={BOARD.columns}",
    f"board.rows={BOARD.rows}",
    f"board.square={BOARD.square}",
    f"board.marker={BOARD.marker}",
]
CALIBRATION = [*SETTINGS, "lookat=(0.01,0.05,0.2)", "fovy=24"]


@dataclass(frozen=True)
class Photographs:
    pictures: list[np.ndarray]  # grey
    angles: np.ndarray  # (n, 6) rad
    lens: Lens
    camera: CameraConfig


def add_board(spec: mujoco.MjSpec, hand: str) -> None:
    """White, and a thin black box for each black cell; its face looks out of the palm, turned so
    that the pattern is not seen in a mirror."""
    board = make_board(BOARD)
    columns, rows, square = BOARD.columns, BOARD.rows, BOARD.square
    width, height = columns * square, rows * square
    cells_per_square = 18  # a whole number of pixels for squares' and markers' cells
    body = spec.body(hand).add_body(name="calibration_board", pos=HOLD.tolist())
    body.alt.euler = [180.0, 0.0, 0.0] if spec.compiler.degree else [np.pi, 0.0, 0.0]
    common = {"type": mujoco.mjtGeom.mjGEOM_BOX, "contype": 0, "conaffinity": 0, "density": 1.0}
    body.add_geom(
        size=[width / 2 + 0.01, height / 2 + 0.01, 0.001],
        pos=[0, 0, 0.0],
        rgba=[1, 1, 1, 1],
        **common,
    )
    pixels = cells_per_square * np.array([columns, rows])
    image = board.generateImage(tuple(int(p) for p in pixels), marginSize=0, borderBits=1)
    black = np.asarray(image) < 128
    cell = square / cells_per_square
    for row in range(black.shape[0]):  # runs of black pixels in a row
        edges = np.flatnonzero(np.diff(np.concatenate(([0], black[row].astype(int), [0]))))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            x = 0.5 * (begin + end) * cell - width / 2
            # The picture's rows go down; seen from outside so does the board's y axis.
            y = (row + 0.5) * cell - height / 2
            body.add_geom(
                size=[0.5 * (end - begin) * cell, 0.5 * cell, 0.0002],
                pos=[x, y, -0.0011],
                rgba=[0, 0, 0, 1],
                **common,
            )


class Studio:
    """The simulated arm before CAMERA, seen through LENS, with or without the board in its hand."""

    def __init__(self, with_board: bool):
        spec = scene.build_spec(EnvConfig(), CAMERA)
        if with_board:
            add_board(spec, robot.PREFIX + "b_6")
        self._model = spec.compile()
        self._sim = MujocoCpuSimulation(self._model, 1, substeps=1, fields=(), num_threads=1)
        self._caster = RayCaster(self._sim, CAMERA, (), num_threads=2)
        self._qpos_ids = robot.Jaco(self._model, torch.device("cpu")).qpos_ids
        matrix = simulated_matrix(SIDE, SIDE, FOVY)
        v, u = np.mgrid[0 : LENS.height, 0 : LENS.width].astype(np.float64)
        points = np.stack((u, v), axis=-1).reshape(-1, 1, 2)
        rays = cv2.undistortPoints(points, LENS.matrix, LENS.distortion).reshape(*u.shape, 2)
        self._column = (rays[..., 0] * matrix[0, 0] + matrix[0, 2]).astype(np.float32)
        self._row = (rays[..., 1] * matrix[1, 1] + matrix[1, 2]).astype(np.float32)

    def picture(self, q: np.ndarray) -> np.ndarray:
        """q (6,) rad -> (480, 640, 3) uint8 RGB."""
        model = self._model
        state = torch.zeros(1, model.nq + model.nv, dtype=torch.float64)
        state[0, : model.nq] = torch.from_numpy(model.qpos0)
        state[0, self._qpos_ids] = torch.from_numpy(np.concatenate((q, FINGERS)))
        self._sim.reset(torch.tensor([0]), state)
        image = self._caster.render(torch.tensor([0]))[0].permute(1, 2, 0).numpy()
        return cv2.remap(np.ascontiguousarray(image), self._column, self._row, cv2.INTER_AREA)


def photograph(count: int, seed: int = 0) -> Photographs:
    rng = np.random.default_rng(seed)
    studio = Studio(with_board=True)
    eye = np.array(CAMERA.pos) - np.array(robot.BASE_POS)
    angles = [facing_pose(rng, eye) for _ in range(count)]
    pictures = [cv2.cvtColor(studio.picture(q), cv2.COLOR_RGB2GRAY) for q in angles]
    return Photographs(pictures, np.array(angles), LENS, CAMERA)


def keep(photographs: Photographs, folder: Path) -> None:
    """The pictures and joints.csv, as visuomotor.shots leaves them."""
    with open(folder / "joints.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", *(f"joint_{i}" for i in range(1, 7))])
        for i, picture in enumerate(photographs.pictures):
            cv2.imwrite(str(folder / f"{i:02d}.png"), picture)
            writer.writerow([f"{i:02d}.png", *photographs.angles[i]])


def facing_pose(rng: np.random.Generator, eye: np.ndarray) -> np.ndarray:
    """(6,) rad with the board before the camera, turned towards it; found by trying."""
    start = np.array(robot.START_QPOS[:6], dtype=float)
    ahead = -looking_at(eye, np.array([0.01, -0.35, 0.2]))[:, 2]
    for _ in range(200_000):
        q = start + rng.uniform(-1, 1, 6) * np.array([0.5, 0.7, 0.7, 2.5, 2.5, 3.1])
        pose = hand_pose(CHAIN, q)
        middle = pose[:3, :3] @ HOLD + pose[:3, 3]
        out = -pose[:3, 2]  # the palm's direction
        to_eye = eye - middle
        away = np.linalg.norm(to_eye)
        seen = np.dot(out, to_eye / away)
        side = np.linalg.norm(np.cross(middle - eye, ahead)) / away
        if 0.45 < away < 0.75 and 0.75 < seen < 0.97 and side < 0.12:
            return q
    raise AssertionError("no pose found")
