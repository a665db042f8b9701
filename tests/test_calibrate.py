"""From pictures of a board to a simulated camera that stands where the real one does."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import board
from tests.board import BOARD, CALIBRATION, Photographs
from visuomotor.calibrate import (
    HELD_OUT,
    CalibrateConfig,
    HandEye,
    calibrate,
    check_place,
    find_board,
    hand_eye,
    mean_transform,
    save_calibration,
    transform,
)
from visuomotor.charuco import BoardConfig, board_picture
from visuomotor.cli import run_command
from visuomotor.config import CameraConfig, Config
from visuomotor.errors import UserError
from visuomotor.real_camera import calibrated
from visuomotor.runtime.lens import Calibration, load_calibration
from visuomotor.runtime.preprocessing import looking_at


def test_the_lens_that_the_pictures_were_taken_through_is_found(
    camera_file: Path, photographs: Photographs
) -> None:
    found, true = load_calibration(camera_file).lens, photographs.lens
    assert found.matrix[0, 0] == pytest.approx(true.matrix[0, 0], rel=0.01)
    assert found.matrix[1, 1] == pytest.approx(true.matrix[1, 1], rel=0.01)
    assert found.matrix[:2, 2] == pytest.approx(true.matrix[:2, 2], abs=8.0)
    # What counts: where rays go, in the part of the picture that the board came to.
    v, u = np.mgrid[60:430:40, 80:570:40].astype(np.float64)
    pixels = np.stack((u, v), axis=-1).reshape(-1, 1, 2)
    rays = [cv2.undistortPoints(pixels, lens.matrix, lens.distortion) for lens in (found, true)]
    # The principal point and the camera's turn are told apart by the arm only.
    shifted = rays[0] - np.median(rays[0] - rays[1], axis=0)
    assert np.abs(shifted - rays[1]).max() * true.matrix[0, 0] < 2.0
    facts = load_calibration(camera_file).facts
    assert facts["held_out_rms"] < 0.5


def test_the_place_of_the_camera_is_found(camera_file: Path, photographs: Photographs) -> None:
    found = load_calibration(camera_file)
    assert found.pos is not None
    assert np.linalg.norm(found.pos - np.array(photographs.camera.pos)) < 0.006
    assert found.facts["disagreement_m"] < 0.01
    # The real camera looks where it did: its turn to the simulated one is none.
    angle = np.rad2deg(np.linalg.norm(cv2.Rodrigues(found.lens.rectification)[0]))
    assert angle < 1.0


def test_train_and_evaluate_take_the_camera_s_place(camera_file: Path) -> None:
    found = load_calibration(camera_file)
    camera = calibrated(CameraConfig(), str(camera_file))
    assert found.pos is not None
    assert camera.pos == tuple(found.pos)
    assert (camera.lookat, camera.fovy) == ((0.01, 0.05, 0.2), 24.0)
    assert camera.height == CameraConfig().height
    assert calibrated(CameraConfig(), None) == CameraConfig()


def test_a_run_keeps_the_place_and_not_the_file(
    camera_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visuomotor import train

    class Opened(Exception):
        pass

    def stop(config: Config) -> None:
        assert config.calibration is None
        assert config.camera == calibrated(CameraConfig(), str(camera_file))
        raise Opened

    monkeypatch.setattr(train, "carried_over", stop)
    with pytest.raises(Opened):
        train._open([f"calibration={camera_file}", f"out={tmp_path / 'run'}"])


def at(path: Path, pos: tuple[float, ...], lookat: tuple[float, ...] = (0.0, 0.02, 0.08)) -> str:
    """A file that says so, of a camera that is all right else."""
    found = Calibration(board.LENS, {}, np.array(pos), np.array(lookat), 30.0)
    save_calibration(path, found)
    return str(path)


IMPOSSIBLE = [
    ((1e6, -0.51, 0.79), "camera.pos="),
    ((0.0, -0.51, -10.5), "camera.pos="),
    ((0.0, 0.02, 0.8), "straight above"),
    ((0.0, 0.02, -0.8), "straight above or below"),
    ((0.0, 0.02, 0.08), "lookat"),
]


@pytest.mark.parametrize(("pos", "told"), IMPOSSIBLE)
def test_a_place_that_settings_could_not_name_is_none_in_a_file_either(
    pos: tuple[float, ...], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "camera.yaml"
    assert calibrated(CameraConfig(), at(path, (0.0, -0.51, 0.79))).pos == (0.0, -0.51, 0.79)
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        calibrated(CameraConfig(), at(path, pos))
    assert str(caught.value).startswith(f"calibration={path}: ")
    with pytest.raises(UserError, match=r"camera\.lookat"):
        calibrated(CameraConfig(), at(path, (0.0, -0.51, 0.79), lookat=(0.0, 11.0, 0.0)))


@pytest.mark.parametrize(("pos", "told"), IMPOSSIBLE)
def test_nor_is_it_written(pos: tuple[float, ...], told: str) -> None:
    check_place(np.array([0.0, -0.51, 0.79]), CalibrateConfig())
    with pytest.raises(UserError, match=re.escape(told)):
        check_place(np.array(pos), CalibrateConfig())


def test_a_run_checks_the_place_together_with_its_other_settings(tmp_path: Path) -> None:
    from visuomotor import train

    path = tmp_path / "camera.yaml"
    at(path, (0.0, -0.51, 0.79))
    angles = "randomization.appearance.camera_fovy=[-30,0]"
    argv = [f"calibration={path}", "camera.fovy=60", angles, f"out={tmp_path / 'run'}"]
    with pytest.raises(UserError, match=r"camera\.fovy=30.*leaves the possible angles"):
        train._open(argv)
    assert not (tmp_path / "run").exists()


# --- the mathematics ------------------------------------------------------------------------------


def random_transform(rng: np.random.Generator, size: float) -> np.ndarray:
    return transform(cv2.Rodrigues(rng.uniform(-2, 2, 3))[0], rng.uniform(-size, size, 3))


def test_every_method_finds_the_camera_of_exact_poses() -> None:
    rng = np.random.default_rng(0)
    camera, mount = random_transform(rng, 1.0), random_transform(rng, 0.1)
    hands = [random_transform(rng, 0.5) for _ in range(12)]
    boards = [np.linalg.inv(camera) @ hand @ mount for hand in hands]
    found: HandEye = hand_eye(hands, boards)
    assert len(found.places) >= 3
    assert found.disagreement < 1e-6
    assert found.camera_to_base == pytest.approx(camera, abs=1e-6)
    assert found.board_to_hand == pytest.approx(mount, abs=1e-6)


def test_the_mean_of_rotations_is_a_rotation() -> None:
    rng = np.random.default_rng(1)
    one = random_transform(rng, 1.0)
    near = [one @ transform(cv2.Rodrigues(v)[0], v) for v in rng.normal(0, 0.01, (20, 3))]
    mean = mean_transform(near)
    assert mean[:3, :3] @ mean[:3, :3].T == pytest.approx(np.eye(3), abs=1e-9)
    assert mean == pytest.approx(one, abs=0.02)


def test_looking_at_is_the_simulation_s_camera() -> None:
    from visuomotor.envs import make_env

    env = make_env(Config(task="lifting"), num_envs=1, seed=0, render=False)
    camera = CameraConfig()
    turn = looking_at(np.array(camera.pos), np.array(camera.lookat))
    model = env.sim.model
    quat = model.cam_quat[model.camera("front").id]
    import mujoco

    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, quat)
    opengl = matrix.reshape(3, 3)  # x right, y up, looks along -z
    assert turn == pytest.approx(opengl * np.array([1.0, -1.0, -1.0]), abs=1e-6)


def test_hands_that_are_never_turned_about_two_axes_are_refused() -> None:
    rng = np.random.default_rng(2)
    camera, mount = random_transform(rng, 1.0), random_transform(rng, 0.1)
    for turns in (np.zeros(12), np.linspace(-1, 1, 12)):
        hands = [
            transform(cv2.Rodrigues(np.array([0, 0, t]))[0], rng.normal(size=3)) for t in turns
        ]
        boards = [np.linalg.inv(camera) @ hand @ mount for hand in hands]
        with pytest.raises(UserError, match="two different axes"):
            hand_eye(hands, boards)


def test_pictures_that_do_not_tell_the_focal_length_are_refused(
    photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = np.full((480, 640), 255, np.uint8)
    flat[30:450, 68:572] = board.make_board(BOARD).generateImage((504, 420), marginSize=0)
    for i in range(10):
        cv2.imwrite(str(tmp_path / f"{i}.png"), flat)
    out = tmp_path / "camera.yaml"
    assert run_command(calibrate, [f"images={tmp_path}", f"out={out}", *CALIBRATION]) == 2
    assert "tilted" in capsys.readouterr().err
    assert not out.exists()


# --- what is refused ----------------------------------------------------------------------------


def spoiled(folder: Path, tmp_path: Path, joints: str) -> Path:
    copy = tmp_path / "copy"
    copy.mkdir()
    for picture in folder.glob("*.png"):
        (copy / picture.name).symlink_to(picture)
    (copy / "joints.csv").write_text(joints)
    return copy


def test_angles_of_other_moments_are_refused(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (shots / "joints.csv").read_text().splitlines()
    names = [line.partition(",")[0] for line in lines[1:]]
    angles = [line.partition(",")[2] for line in lines[1:]]
    mixed = [f"{n},{a}" for n, a in zip(names, angles[3:] + angles[:3], strict=True)]
    copy = spoiled(shots, tmp_path, "\n".join([lines[0], *mixed]))
    out = tmp_path / "camera.yaml"
    assert run_command(calibrate, [f"images={copy}", f"out={out}", *CALIBRATION]) == 2
    assert "apart" in capsys.readouterr().err
    assert not out.exists()


def refused_for_reprojection_alone(
    argv: list[str], out: Path, allowed: int, capsys: pytest.CaptureFixture[str]
) -> str:
    """What is told; where so many pixels are allowed, nothing else is wrong."""
    assert run_command(calibrate, argv) == 2
    told = capsys.readouterr().err
    assert told.count("error:") == 1
    assert not out.exists()
    assert run_command(calibrate, [*argv, f"max_reprojection={allowed}"]) == 0
    return told


def test_angles_that_do_not_hold_on_held_out_pictures_are_refused(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that the place is made from are right, so the methods agree."""
    header, *rows = (shots / "joints.csv").read_text().splitlines()
    for i in range(0, len(rows), HELD_OUT):
        name, first, *others = rows[i].split(",")
        rows[i] = ",".join((name, str(float(first) + 0.03), *others))
    copy = spoiled(shots, tmp_path, "\n".join((header, *rows)))
    out = tmp_path / "camera.yaml"
    argv = [f"images={copy}", f"out={out}", *CALIBRATION]
    told = refused_for_reprojection_alone(argv, out, 30, capsys)
    assert "seen through the arm, held-out pictures are off by" in told
    assert "at most 3.0 are allowed" in told


def test_a_lens_that_does_not_hold_on_held_out_pictures_is_refused(
    photographs: Photographs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others fit a lens well; on these the board is wavy, as paper is that nobody glued."""
    rows, columns = np.mgrid[0:480, 0:640].astype(np.float32)
    wave = (4.0 * np.sin(rows / 25.0)).astype(np.float32)
    for i, picture in enumerate(photographs.pictures):
        if i % HELD_OUT == 0:
            picture = cv2.remap(picture, columns + wave, rows, cv2.INTER_LINEAR)
        cv2.imwrite(str(tmp_path / f"{i:02d}.png"), picture)
    out = tmp_path / "camera.yaml"
    argv = [f"images={tmp_path}", f"out={out}", *CALIBRATION]
    told = refused_for_reprojection_alone(argv, out, 10, capsys)
    assert "the lens does not hold on pictures that it was not made from" in told
    assert "at most 1.0 are allowed" in told


@pytest.mark.parametrize(
    ("joints", "told"),
    [("file,a\n00.png,1,2\n", "line 2"), ("00.png,1,2,3,4,5,nan\n", "line 1"), ("", "names 0")],
)
def test_a_joints_file_that_cannot_be_is_refused_by_line(
    joints: str, told: str, shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = spoiled(shots, tmp_path, joints)
    out = tmp_path / "camera.yaml"
    assert run_command(calibrate, [f"images={copy}", f"out={out}", *CALIBRATION]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "images= is missing"),
        (["images=nowhere"], "nowhere"),
        (["images=.", "board.marker=0.5"], "board.marker"),
        (["images=.", "board.columns=1000", "board.rows=1000"], "DICT_4X4_50 has 50"),
        (["images=.", "board.columns=17"], "17 x 6 squares need 51 markers"),
        (["images=.", "board.columns=-5"], "at least 3 x 3"),
        (["images=.", "board.square=30", "board.marker=22"], "up to 1 m"),
        (["images=.", "max_reprojection=-1"], "max_reprojection=-1"),
        (["images=.", "max_disagreement=0"], "max_disagreement=0"),
        (["board_out=board.png", "images=."], "leave out images="),
        (["board_out=board.foo"], "ends in .png"),
        (["board_out=board.png", "board_dpi=10"], "72 to 1200"),
        (["board_out=board.png", "board.columns=17"], "need 51 markers"),
        (["board_out=board.png", "board.square=1"], "too large for board_dpi=300"),
        (["board_out=board.png", "board.square=0.003", "board.marker=0.002"], "too small"),
        (["images=.", "board.dictionary=DICT_NONE"], "DICT_4X4_50"),
        (["images=.", "board.dictionary=DetectorParameters"], "DICT_4X4_50"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(calibrate, argv) == 2
    error = capsys.readouterr().err
    assert told in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dpi", [72, 300])
@pytest.mark.parametrize("config", [BoardConfig(), BOARD])
def test_a_printed_board_has_the_size_that_it_says(
    config: BoardConfig, dpi: int, tmp_path: Path
) -> None:
    """The corners are where calibrate takes them to be, by the file's own pixels a metre."""
    out = tmp_path / "new" / "board.png"
    settings = [f"board.{name}={value}" for name, value in vars(config).items()]
    assert run_command(calibrate, [f"board_out={out}", f"board_dpi={dpi}", *settings]) == 0
    content = out.read_bytes()
    at = content.index(b"pHYs") + 4
    across, down, unit = struct.unpack(">IIB", content[at : at + 9])
    assert (down, unit) == (across, 1)
    assert 0.0254 * across == pytest.approx(dpi, rel=0.02)
    picture = cv2.imread(str(out), cv2.IMREAD_GRAYSCALE)
    seen = find_board(board.make_board(config), "board.png", picture)
    assert seen is not None
    assert len(seen.points) == (config.columns - 1) * (config.rows - 1)
    there = seen.corners / across - seen.points[:, :2]
    assert np.abs(there - there[0]).max() < 5e-5  # m
    assert [path.name for path in out.parent.iterdir()] == ["board.png"]


def test_the_board_of_the_documents_fits_on_a_sheet_of_a4() -> None:
    height, width = (side * 0.03 / 100 for side in board_picture(BoardConfig(), 100).shape)
    assert width < 0.297 and height < 0.21


def test_a_printed_board_says_what_it_is_below_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told, put = [], cv2.putText
    monkeypatch.setattr(cv2, "putText", lambda *said: told.append(said[1]) or put(*said))
    picture = board_picture(BoardConfig(), 100)
    (text,) = told
    for fact in ("8 x 6 squares of 30 mm", "markers of 22 mm", "DICT_4X4_50", "100 %"):
        assert fact in text
    rows = np.flatnonzero(picture.min(axis=1) < 128)
    assert rows.max() < len(picture) - 10, "nothing is cut off"
    assert (picture[625:645] == 255).all(), "apart from the board"
    columns = np.flatnonzero(picture[645:].min(axis=0) < 128)
    assert columns.min() >= 20 and columns.max() < picture.shape[1] - 20


def test_a_board_does_not_take_the_place_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "board.png"
    out.write_text("mine")
    assert run_command(calibrate, [f"board_out={out}"]) == 2
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run_command(calibrate, [f"board_out={out}", "overwrite=true"]) == 0
    assert run_command(calibrate, [f"board_out={out}/board.png"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_board_may_need_every_marker_of_its_dictionary() -> None:
    config = CalibrateConfig(images=".", board=BoardConfig(columns=10, rows=10))
    config.validate()
    assert len(board.make_board(config.board).getIds()) == 50


def test_a_board_of_another_kind_is_told(
    shots: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "camera.yaml"
    argv = [f"images={shots}", f"out={out}", "board.dictionary=DICT_7X7_50"]
    assert run_command(calibrate, argv) == 2
    assert "board.dictionary" in capsys.readouterr().err
