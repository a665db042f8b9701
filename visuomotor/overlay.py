"""Does the simulated camera see what the real one sees? `python -m visuomotor.overlay
calibration=camera.yaml image=frame.png joints=...`

Takes a frame of the real camera, undistorted and turned as the policy gets it, and blends over it
what the simulation renders at the arm's joint angles. Where the two arms do not lie on each other
the calibration, the joint angles' signs or their offsets are wrong. `arm=` reads the angles from
the arm, `camera=` takes a live frame.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from visuomotor.calibrate import PICTURES
from visuomotor.cli import run_command
from visuomotor.config import Config
from visuomotor.envs import make_env, robot
from visuomotor.errors import UserError
from visuomotor.live import SETTLING, check_arm_kind, connect_arm, newest_frame, open_camera
from visuomotor.overrides import parse_overrides
from visuomotor.real_camera import calibrated, read_calibration
from visuomotor.runtime.preprocessing import Lens, Preprocessing, resize

SIDE = 512  # pixels of what is compared; the policy sees less


@dataclass(frozen=True)
class OverlayConfig:
    calibration: str = ""  # the file of visuomotor.calibrate
    image: str | None = None  # a picture of the real camera, or
    camera: str | None = None  # its number, URL, film or topic:<ROS 2 image topic>: a frame now
    joints: tuple[float, ...] | None = None  # 6 angles of the arm [rad], or 9 with the fingers, or
    arm: str | None = None  # ros2 or jaco2: asked now
    arm_config: str | None = None  # YAML, as in visuomotor.deploy; the topic's network, too
    task: str = "lifting"  # whose table and props are drawn; the props stand anywhere
    blend: float = 0.5  # share of the simulated picture
    out: str = "overlay.png"

    def validate(self) -> None:
        if not self.calibration:
            raise UserError("calibration= is missing: a file of visuomotor.calibrate")
        if (self.image is None) == (self.camera is None):
            raise UserError("give one of image= (a picture) and camera= (a live frame)")
        if (self.joints is None) == (self.arm is None):
            raise UserError("give one of joints= (angles) and arm= (asked now)")
        if self.joints is not None and len(self.joints) not in (6, 9):
            raise UserError(f"joints: expected 6 or 9 angles [rad], received {len(self.joints)}")
        check_arm_kind(self.arm)
        if not 0.0 <= self.blend <= 1.0:
            raise UserError(f"blend={self.blend}: expected 0 to 1")
        if not self.out.lower().endswith(PICTURES):
            raise UserError(f"out={self.out}: expected a name that ends in {', '.join(PICTURES)}")


def real_frame(config: OverlayConfig, lens: Lens) -> tuple[np.ndarray, str]:
    """(h, w, 3) uint8, and its channels. Raises UserError."""
    if config.image is not None:
        frame = cv2.imread(config.image)
        if frame is None:
            raise UserError(f"image={config.image} is no picture that OpenCV can read")
        return np.asarray(frame), "BGR"
    assert config.camera is not None
    camera = open_camera(config.camera, config.arm, config.arm_config, lens)
    try:
        return newest_frame(camera, config.camera, SETTLING), camera.channels
    finally:
        camera.close()


def joint_angles(config: OverlayConfig) -> np.ndarray:
    """(9,) rad; fingers that are not given stand as at a start."""
    angles = np.array(robot.START_QPOS, dtype=float)
    if config.joints is not None:
        angles[: len(config.joints)] = config.joints
        return angles
    assert config.arm is not None
    state = connect_arm(config.arm, config.arm_config).read()
    assert state is not None
    return state.position


def simulated(config: OverlayConfig, angles: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE, 3) uint8 RGB: the nominal world with the arm at these angles."""
    settings = Config(task=config.task)
    camera = calibrated(settings.camera, config.calibration)
    settings = replace(
        settings,
        camera=replace(camera, height=SIDE, width=SIDE),
        randomization=replace(settings.randomization, strength=0.0),
    )
    env = make_env(settings, num_envs=1, seed=0, render=True)
    env.reset()
    state = env.sim.get_state(torch.tensor([0]))
    state[0, env.jaco.qpos_ids] = torch.from_numpy(angles)
    env.sim.reset(torch.tensor([0]), state)
    assert env.camera is not None
    image = env.camera.caster.render(torch.tensor([0]))[0]
    return image.permute(1, 2, 0).numpy()


def write(out: str, picture: np.ndarray) -> None:
    """picture: (h, w, 3) uint8 BGR. Raises UserError if it cannot be written."""
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        written = cv2.imwrite(out, picture)
    except (OSError, cv2.error):
        written = False
    if not written:
        raise UserError(f"out={out} cannot be written; name another place")


def overlay(argv: list[str]) -> int:
    config = parse_overrides(argv, OverlayConfig)
    calibration = read_calibration(config.calibration)
    assert calibration.fovy is not None
    preprocess = Preprocessing(SIDE, SIDE, calibration.fovy, calibration.lens)
    try:
        real = preprocess(*real_frame(config, calibration.lens))
    except ValueError as error:
        raise UserError(str(error)) from error
    drawn = simulated(config, joint_angles(config))
    blended = cv2.addWeighted(drawn, config.blend, real, 1.0 - config.blend, 0.0)
    edges = cv2.Canny(cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY), 60, 120) > 0
    outlined = real.copy()
    outlined[edges] = (255, 0, 255)
    small = [resize(resize(image, 64, 64), SIDE, SIDE) for image in (real, drawn)]
    sheet = np.concatenate((blended, outlined, *small), axis=1)
    write(config.out, sheet[..., ::-1])
    what = "blended; the simulation's edges on the real frame; what the policy gets of both"
    print(f"{config.out}: {what}")
    return 0


def main() -> None:
    sys.exit(run_command(overlay, sys.argv[1:]))


if __name__ == "__main__":
    main()
