"""Where the real camera is and what it sees: `python -m visuomotor.calibrate images=shots/`.

Takes pictures of a ChArUco board, and, for the camera's place, the arm's joint angles at each of
them with the board held by the hand. Writes a YAML file: for the runtime (`deploy lens=...`) the
lens, and the turn that makes the camera look where the simulated one looks; for `train` and
`evaluate` (`calibration=...`) the place that the simulated camera then takes. A calibration that
does not hold on pictures that it has not seen is refused. `board_out=board.png` writes the board
to print.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from visuomotor.charuco import BoardConfig, board_png, make_board
from visuomotor.cli import run_command
from visuomotor.config import CameraConfig
from visuomotor.errors import UserError
from visuomotor.files import write_atomic
from visuomotor.limits import check_camera
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.jaco import CHAIN
from visuomotor.runtime.kinematics import hand_pose
from visuomotor.runtime.lens import Calibration, calibration_yaml
from visuomotor.runtime.preprocessing import Lens, coverage, looking_at

JOINTS_FILE = "joints.csv"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
MIN_CORNERS = 8  # of a board in a picture that counts
MIN_PICTURES = 8
MOST_FOCAL_DEVIATION = 0.01  # of the focal length, its standard deviation
TURNS = 15.0  # degrees that the hand must have been turned by, about axes that differ by as much
HELD_OUT = 5  # every so many pictures one is kept for the proof
METHODS = {
    "tsai": cv2.CALIB_HAND_EYE_TSAI,
    "park": cv2.CALIB_HAND_EYE_PARK,
    "horaud": cv2.CALIB_HAND_EYE_HORAUD,
    "daniilidis": cv2.CALIB_HAND_EYE_DANIILIDIS,
}
BASE_POS_W = np.array([0.0, 0.4, 0.0])  # m; the arm's base in the simulated world


@dataclass(frozen=True)
class CalibrateConfig:
    images: str = ""  # folder with pictures, and joints.csv: file, joint_1 ... joint_6 [rad]
    out: str = "camera.yaml"
    board: BoardConfig = field(default_factory=BoardConfig)
    lookat: tuple[float, float, float] = (0.0, 0.02, 0.08)  # m, world; the simulated default
    fovy: float = 30.0  # degrees of the simulated camera
    max_reprojection: float = 1.0  # pixels, held-out pictures; worse is refused
    max_disagreement: float = 0.01  # m between the methods' places of the camera; more is refused
    overwrite: bool = False
    board_out: str | None = None  # .png: the board to print is written there, and nothing else
    board_dpi: int = 300  # dots an inch of it, nearly

    def validate(self) -> None:
        self.board.validate()
        if self.board_out is not None:
            self._validate_board()
        elif not self.images:
            raise UserError("images= is missing: a folder with pictures of the board")
        for name in ("max_reprojection", "max_disagreement"):
            if not getattr(self, name) > 0.0:
                raise UserError(f"{name}={getattr(self, name)}: expected more than 0")
        if not 1.0 <= self.fovy <= 120.0:
            raise UserError(f"fovy={self.fovy}: expected 1 to 120 degrees")

    def _validate_board(self) -> None:
        if self.images:
            raise UserError("board_out= writes a board and calibrates nothing; leave out images=")
        if not str(self.board_out).lower().endswith(".png"):
            raise UserError(f"board_out={self.board_out}: expected a name that ends in .png")
        if not 72 <= self.board_dpi <= 1200:
            raise UserError(f"board_dpi={self.board_dpi}: expected 72 to 1200")


class View(NamedTuple):
    """A picture in which the board was found."""

    name: str
    corners: np.ndarray  # (n, 2) float32 pixels
    points: np.ndarray  # (n, 3) float32 m, on the board


class HandEye(NamedTuple):
    camera_to_base: np.ndarray  # (4, 4)
    board_to_hand: np.ndarray  # (4, 4)
    places: dict[str, np.ndarray]  # each method's place of the camera, (3,) m in the base's frame
    disagreement: float  # m, the largest distance of two of them


def find_board(board: cv2.aruco.CharucoBoard, name: str, picture: np.ndarray) -> View | None:
    """picture: grey or BGR. None if too little of the board is seen."""
    corners, ids, _, _ = cv2.aruco.CharucoDetector(board).detectBoard(picture)
    if ids is None or len(ids) < MIN_CORNERS:
        return None
    points = np.asarray(board.getChessboardCorners(), np.float32)[ids.ravel()]
    if np.linalg.matrix_rank(points[:, :2] - points[:, :2].mean(axis=0)) < 2:
        return None  # all in one line
    return View(name, np.asarray(corners, np.float32).reshape(-1, 2), points)


def intrinsics(views: list[View], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, float]:
    """size: width, height. -> matrix (3, 3), distortion (5,), rms of the reprojection [pixels].

    Raises UserError if the views leave the focal length open: any would reproject well then.
    """
    rms, matrix, distortion, _, _, deviations, _, _ = cv2.calibrateCameraExtended(
        [v.points for v in views],
        [v.corners for v in views],
        size,
        np.eye(3),
        np.zeros(5),
    )
    focal, sigma = float(matrix[0, 0]), float(np.max(deviations[:2]))
    if not sigma <= MOST_FOCAL_DEVIATION * focal:
        raise UserError(
            f"the pictures do not tell the focal length ({focal:.0f} pixels, give or take "
            f"{sigma:.0f}): take them with the board tilted by 30 degrees and more, to all sides"
        )
    return np.asarray(matrix), np.asarray(distortion).ravel(), float(rms)


def board_in_camera(view: View, matrix: np.ndarray, distortion: np.ndarray) -> np.ndarray:
    """(4, 4) board to camera."""
    found, rotation, translation = cv2.solvePnP(view.points, view.corners, matrix, distortion)
    if not found:
        raise UserError(f"{view.name}: the board's place cannot be found")
    return transform(cv2.Rodrigues(rotation)[0], translation.ravel())


def reprojection(
    view: View, pose: np.ndarray, matrix: np.ndarray, distortion: np.ndarray
) -> np.ndarray:
    """(n,) pixels between where corners are and where they should be."""
    rotation, _ = cv2.Rodrigues(pose[:3, :3])
    projected, _ = cv2.projectPoints(view.points, rotation, pose[:3, 3], matrix, distortion)
    return np.asarray(np.linalg.norm(projected.reshape(-1, 2) - view.corners, axis=1))


def hand_eye(hands: list[np.ndarray], boards: list[np.ndarray]) -> HandEye:
    """A fixed camera, a board in the hand. hands: hand to base; boards: board to camera; (4, 4).

    OpenCV's function is for a camera in the hand; with the arm's motion the other way round it
    gives the camera in the base's frame (its documentation, "eye-to-hand").
    """
    check_turns(hands)
    inverse = [np.linalg.inv(hand) for hand in hands]
    estimates: dict[str, np.ndarray] = {}
    for name, method in METHODS.items():
        rotation, translation = cv2.calibrateHandEye(
            [h[:3, :3] for h in inverse],
            [h[:3, 3] for h in inverse],
            [b[:3, :3] for b in boards],
            [b[:3, 3] for b in boards],
            method=method,
        )
        estimate = transform(rotation, np.asarray(translation).ravel())
        if np.isfinite(estimate).all():
            estimates[name] = estimate
    if len(estimates) < 2:
        raise UserError(
            "the arm's poses do not determine where the camera is: take pictures with the hand "
            "turned about at least two different axes"
        )
    places = {name: estimate[:3, 3] for name, estimate in estimates.items()}
    distances = [np.linalg.norm(a - b) for a in places.values() for b in places.values()]
    # The one that lies nearest to all others.
    middle = min(
        estimates, key=lambda n: sum(float(np.linalg.norm(places[n] - p)) for p in places.values())
    )
    camera = estimates[middle]
    in_hand = [
        np.linalg.inv(hand) @ camera @ board for hand, board in zip(hands, boards, strict=True)
    ]
    return HandEye(camera, mean_transform(in_hand), places, float(max(distances)))


def check_turns(hands: list[np.ndarray]) -> None:
    """Raises UserError if the hand was not turned about two axes at least."""
    turns = [cv2.Rodrigues(hands[0][:3, :3].T @ hand[:3, :3])[0].ravel() for hand in hands[1:]]
    large = [t / np.linalg.norm(t) for t in turns if np.linalg.norm(t) > np.deg2rad(TURNS)]
    across = [np.linalg.norm(np.cross(a, b)) for a in large for b in large]
    if not across or max(across) < np.sin(np.deg2rad(TURNS)):
        raise UserError(
            "the arm's poses do not determine where the camera is: take pictures with the hand "
            f"turned by more than {TURNS:.0f} degrees about at least two different axes"
        )


def transform(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """(3, 3) and (3,) m -> (4, 4)."""
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = rotation, translation
    return result


def mean_transform(transforms: list[np.ndarray]) -> np.ndarray:
    """The rotation nearest to all (4, 4) (by singular values), and the mean translation."""
    stacked = np.stack(transforms)
    u, _, vt = np.linalg.svd(stacked[:, :3, :3].mean(axis=0))
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return transform(rotation, stacked[:, :3, 3].mean(axis=0))


def read_joints(path: Path) -> dict[str, np.ndarray]:
    """joints.csv -> picture's name to (6,) rad. Raises UserError naming the line."""
    joints: dict[str, np.ndarray] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row or (number == 1 and row[0] == "file"):
                continue
            try:
                values = np.array([float(cell) for cell in row[1:]])
            except ValueError:
                values = np.zeros(0)
            if values.shape != (6,) or not np.isfinite(values).all():
                raise UserError(f"{path}, line {number}: expected a file's name and 6 angles [rad]")
            joints[row[0]] = values
    return joints


def read_views(folder: Path, board: cv2.aruco.CharucoBoard) -> tuple[list[View], tuple[int, int]]:
    """-> views, (width, height). Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"images={folder} is no folder; put pictures of the board into one")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES)
    views, size = [], None
    for path in files:
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise UserError(f"{path} is no picture that OpenCV can read")
        if size is not None and size != picture.shape[::-1]:
            raise UserError(
                f"{path} has {picture.shape[1]}x{picture.shape[0]} pixels, those before "
                f"{size[0]}x{size[1]}; take all pictures with the same settings"
            )
        size = picture.shape[::-1]
        view = find_board(board, path.name, picture)
        if view is None:
            print(f"{path.name}: too little of the board is seen, left out", file=sys.stderr)
        else:
            views.append(view)
    if len(views) < MIN_PICTURES or size is None:
        raise UserError(
            f"images={folder}: the board was found in {len(views)} of {len(files)} pictures, "
            f"{MIN_PICTURES} are needed; check board.columns, board.rows and board.dictionary"
        )
    return views, (int(size[0]), int(size[1]))


def calibrate_lens(
    views: list[View], size: tuple[int, int], most: float
) -> tuple[Lens, dict[str, float]]:
    """From most of the views; the others prove it. Raises UserError if they do not."""
    proof, used = views[::HELD_OUT], [v for i, v in enumerate(views) if i % HELD_OUT]
    matrix, distortion, rms = intrinsics(used, size)
    errors = [
        reprojection(v, board_in_camera(v, matrix, distortion), matrix, distortion) for v in proof
    ]
    held_out = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
    if not held_out <= most:
        raise UserError(
            f"the lens does not hold on pictures that it was not made from: {held_out:.2f} pixels, "
            f"at most {most} are allowed; take more pictures, with the board in every corner and "
            "tilted, sharp and flat"
        )
    facts = {"reprojection_rms": rms, "held_out_rms": held_out, "pictures": float(len(views))}
    return Lens(*size, matrix, distortion), facts


def locate_camera(
    views: list[View],
    joints: dict[str, np.ndarray],
    lens: Lens,
    config: CalibrateConfig,
) -> tuple[np.ndarray, dict[str, float]]:
    """-> camera to base (4, 4), and what is known of its quality. Raises UserError."""
    seen = [view for view in views if view.name in joints]
    if len(seen) < MIN_PICTURES:
        raise UserError(
            f"{JOINTS_FILE} names {len(seen)} of the pictures with a board, {MIN_PICTURES} are "
            "needed"
        )
    hands = [hand_pose(CHAIN, joints[view.name]) for view in seen]
    boards = [board_in_camera(view, lens.matrix, lens.distortion) for view in seen]
    proof = set(range(0, len(seen), HELD_OUT))
    used = [i for i in range(len(seen)) if i not in proof]
    result = hand_eye([hands[i] for i in used], [boards[i] for i in used])
    to_camera = np.linalg.inv(result.camera_to_base)
    errors = [
        reprojection(
            seen[i],
            to_camera @ hands[i] @ result.board_to_hand,
            lens.matrix,
            lens.distortion,
        )
        for i in sorted(proof)
    ]
    held_out = float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))
    facts = {"hand_eye_held_out_rms": held_out, "disagreement_m": result.disagreement}
    for name, place in result.places.items():
        print(f"{name}: camera at {np.round(place, 4).tolist()} m in the base's frame")
    print(f"held-out pictures through the arm: {held_out:.2f} pixels")
    if not result.disagreement <= config.max_disagreement:
        raise UserError(
            f"the methods put the camera {1000 * result.disagreement:.1f} mm apart, at most "
            f"{1000 * config.max_disagreement:.0f} mm are allowed; take more pictures, with the "
            "hand turned by 30 degrees and more about different axes"
        )
    most = 3.0 * config.max_reprojection  # the arm's own accuracy counts here, too
    if not held_out <= most:
        raise UserError(
            f"seen through the arm, held-out pictures are off by {held_out:.2f} pixels, at most "
            f"{most} are allowed; did the board move in the hand, or are joint angles of other "
            "moments?"
        )
    return result.camera_to_base, facts


def write_board(out: Path, config: CalibrateConfig) -> int:
    """Raises UserError."""
    if out.exists() and not config.overwrite:
        raise UserError(f"board_out={out} exists; name another file, or say overwrite=true")
    picture = board_png(config.board, config.board_dpi)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, picture)
    except OSError as error:
        raise UserError(f"board_out={out} cannot be written: {error.strerror}") from error
    print(f"written: {out}; print it at 100 %, and give its squares as measured (board.square=)")
    return 0


def check_place(position: np.ndarray, config: CalibrateConfig) -> None:
    """position: (3,) m, world. Raises UserError if the simulated camera could not stand there, or
    not look at `lookat`."""
    x, y, z = position.tolist()
    try:
        check_camera(CameraConfig(pos=(x, y, z), lookat=config.lookat, fovy=config.fovy))
    except UserError as error:
        raise UserError(f"the simulation cannot have its camera there: {error}") from error


def save_calibration(path: Path | str, calibration: Calibration) -> None:
    """Written whole or not at all. Raises OSError; an older file is untouched then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, calibration_yaml(calibration).encode())


def calibrate(argv: list[str]) -> int:
    config = parse_overrides(argv, CalibrateConfig)
    if config.board_out is not None:
        return write_board(Path(config.board_out), config)
    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise UserError(f"out={out} exists; name another file, or say overwrite=true")
    folder = Path(config.images)
    views, size = read_views(folder, make_board(config.board))
    lens, facts = calibrate_lens(views, size, config.max_reprojection)
    print(
        f"lens: {facts['reprojection_rms']:.2f} pixels, held-out {facts['held_out_rms']:.2f}, "
        f"from {len(views)} pictures"
    )
    camera: dict[str, Any] = {}
    if (folder / JOINTS_FILE).is_file():
        in_base, quality = locate_camera(views, read_joints(folder / JOINTS_FILE), lens, config)
        facts |= quality
        position = in_base[:3, 3] + BASE_POS_W
        check_place(position, config)
        # The base's axes are the world's.
        turn = looking_at(position, np.array(config.lookat)).T @ in_base[:3, :3]
        lens = lens._replace(rectification=turn)
        camera = {"pos": position, "lookat": np.array(config.lookat), "fovy": config.fovy}
        seen = coverage(64, 64, config.fovy, lens)
        facts["coverage"] = seen
        if seen < 1.0:
            raise UserError(
                f"the real camera sees {100 * seen:.0f} % of what the simulated one would from its "
                f"place with lookat={config.lookat} and fovy={config.fovy}; turn it towards that "
                "point, or take a smaller fovy"
            )
        print(f"camera at {np.round(position, 4).tolist()} m in the world")
    else:
        print(f"no {JOINTS_FILE}: where the camera is stays unknown, only its lens is written")
    try:
        save_calibration(out, Calibration(lens=lens, facts=facts, **camera))
    except (OSError, cv2.error) as error:
        raise UserError(f"out={out} cannot be written: {error}") from error
    print(f"written: {out}")
    return 0


def main() -> None:
    sys.exit(run_command(calibrate, sys.argv[1:]))


if __name__ == "__main__":
    main()
