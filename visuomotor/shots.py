"""Pictures of the board, and the arm's joints at each: `python -m visuomotor.shots out=shots
camera=0 arm=ros2`, for `visuomotor.calibrate images=shots`.

Enter takes one, q and Enter end. Pictures are numbered on from those that are there, and each has
its row in joints.csv. One that shows too little of the board, or in which the arm moved, is not
kept. Nothing is sent to the arm.
"""

from __future__ import annotations

import csv
import io
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from visuomotor.cache import check_writable
from visuomotor.calibrate import JOINTS_FILE, find_board, read_joints
from visuomotor.charuco import BoardConfig, make_board
from visuomotor.cli import run_command
from visuomotor.errors import UserError
from visuomotor.files import write_atomic
from visuomotor.live import SETTLING, check_arm_kind, connect_arm, newest_frame, open_camera
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.arm import Arm
from visuomotor.runtime.cameras import Camera
from visuomotor.runtime.jaco import CHAIN

JOINTS = len(CHAIN.link_pos)  # that carry the hand
STILL = 0.004  # rad that a joint may differ by, before and after the SETTLING
STALE = 0.5  # s that a joint state may be old


@dataclass(frozen=True)
class ShotsConfig:
    out: str = ""  # folder of the pictures and joints.csv; what is there stays
    camera: str = ""  # its number, URL, film or topic:<ROS 2 image topic>
    arm: str | None = None  # ros2 or jaco2; None: pictures alone, which give the lens alone
    arm_config: str | None = None  # YAML, as in visuomotor.deploy; the topic's network, too
    board: BoardConfig = field(default_factory=BoardConfig)

    def validate(self) -> None:
        if not self.out:
            raise UserError("out= is missing: a folder for the pictures")
        if not self.camera:
            raise UserError("camera= is missing: a number, a URL or topic:<ROS 2 image topic>")
        check_arm_kind(self.arm)
        self.board.validate()


class Shots:
    """A folder of pictures that grows."""

    def __init__(self, config: ShotsConfig, camera: Camera, arm: Arm | None):
        """Raises UserError if the folder's joints.csv is damaged."""
        self.folder = Path(config.out)
        self._config, self._camera, self._arm = config, camera, arm
        self._board = make_board(config.board)
        table = self.folder / JOINTS_FILE
        self._joints = read_joints(table) if table.is_file() else {}

    def take(self) -> str:
        """One picture, if it is of use; what became of it, in one line. Raises UserError."""
        before = self._angles()
        frame = newest_frame(self._camera, self._config.camera, SETTLING)
        after = self._angles()
        if self._camera.channels == "RGB":
            frame = np.ascontiguousarray(frame[..., ::-1])
        if before is not None and after is not None and np.abs(after - before).max() > STILL:
            return "not kept: the arm moved; let it come to rest"
        view = find_board(self._board, "", frame)
        if view is None:
            return "not kept: too little of the board is seen"
        name = self._keep(frame, after)
        seen, of = len(view.corners), len(self._board.getChessboardCorners())
        return f"{name}: {seen} of the board's {of} corners"

    def _angles(self) -> np.ndarray | None:
        """(6,) rad now; None without an arm."""
        if self._arm is None:
            return None
        state = self._arm.read()
        if state is None or time.monotonic() - state.stamp > STALE:
            raise UserError(f"arm={self._config.arm} tells its joints no longer")
        return state.position[:JOINTS]

    def _keep(self, frame: np.ndarray, angles: np.ndarray | None) -> str:
        """Writes the picture, then its row; the picture's name. Raises UserError."""
        numbers = [int(path.stem) for path in self.folder.glob("*.png") if path.stem.isdigit()]
        name = f"{max(numbers, default=-1) + 1:02d}.png"
        encoded, png = cv2.imencode(".png", frame)
        assert encoded
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(self.folder / name, png.tobytes())
            if angles is not None:
                self._joints[name] = angles
                write_atomic(self.folder / JOINTS_FILE, joints_csv(self._joints).encode())
        except OSError as error:
            raise UserError(f"out={self.folder} cannot be written: {error.strerror}") from error
        return name


def joints_csv(joints: dict[str, np.ndarray]) -> str:
    """Picture's name to (6,) rad -> what `visuomotor.calibrate` reads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("file", *(f"joint_{i + 1}" for i in range(JOINTS))))
    for name, angles in joints.items():
        writer.writerow((name, *(repr(float(angle)) for angle in angles)))
    return out.getvalue()


def shots(argv: list[str]) -> int:
    config = parse_overrides(argv, ShotsConfig)
    arm = None if config.arm is None else connect_arm(config.arm, config.arm_config)
    camera = open_camera(config.camera, config.arm, config.arm_config)
    try:
        check_writable(Path(config.out) / JOINTS_FILE, "give a folder that can be written: out=...")
        taken = Shots(config, camera, arm)
        print("Enter takes a picture, q and Enter end", file=sys.stderr)
        for line in sys.stdin:
            if line.strip().lower() == "q":
                break
            print(taken.take(), flush=True)
    finally:
        camera.close()
    return 0


def main() -> None:
    sys.exit(run_command(shots, sys.argv[1:]))


if __name__ == "__main__":
    main()
