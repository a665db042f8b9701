"""Where the simulated arm lies on the real one in a frame, and what overlay refuses."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import board
from tests.board import FINGERS, Photographs, Studio
from visuomotor import live
from visuomotor import overlay as overlays
from visuomotor.calibrate import save_calibration
from visuomotor.cli import run_command
from visuomotor.errors import UserError
from visuomotor.overlay import SIDE, OverlayConfig, overlay
from visuomotor.overrides import parse_overrides
from visuomotor.runtime.lens import load_calibration


class Overlay:
    """Frames of an arm without a board, and what `overlay` makes of them; 0 to 255, BGR."""

    def __init__(self, calibration: Path, folder: Path):
        self.calibration, self.folder = calibration, folder
        self.studio = Studio(with_board=False)

    def photograph(self, angles: np.ndarray) -> None:
        cv2.imwrite(str(self.folder / "real.png"), self.studio.picture(angles)[..., ::-1])

    def sheet(
        self, angles: np.ndarray, *, blend: float = 0.5, calibration: Path | None = None
    ) -> list[np.ndarray]:
        """Four pictures (SIDE, SIDE, 3)."""
        out = self.folder / "overlay.png"
        told = ",".join(str(a) for a in (*angles, *FINGERS))
        used = self.calibration if calibration is None else calibration
        argv = [f"calibration={used}", f"image={self.folder / 'real.png'}", f"joints=({told})"]
        assert run_command(overlay, [*argv, f"blend={blend}", f"out={out}"]) == 0
        sheet = cv2.imread(str(out)).astype(float)
        assert sheet.shape == (SIDE, 4 * SIDE, 3)
        return np.split(sheet, 4, axis=1)

    def real(self, angles: np.ndarray) -> np.ndarray:
        return self.sheet(angles, blend=0.0)[0]

    def drawn(self, angles: np.ndarray, calibration: Path | None = None) -> np.ndarray:
        return self.sheet(angles, blend=1.0, calibration=calibration)[0]


@pytest.fixture(scope="module")
def bench(camera_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    return Overlay(camera_file, tmp_path_factory.mktemp("overlay"))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Levels of 255, over all pixels."""
    return float(np.abs(one - other).mean())


@pytest.mark.parametrize("which", [0, 7])
def test_the_simulated_arm_lies_on_the_real_one_and_on_no_other(
    which: int, bench: Overlay, photographs: Photographs, tmp_path: Path
) -> None:
    """What is wrong is told by the same measure, so that it can fail."""
    angles = photographs.angles[which]
    bench.photograph(angles)
    real, drawn = bench.real(angles), bench.drawn(angles)
    assert distance(drawn, real) < 2.0
    for joint, turn in enumerate(0.1 * np.eye(6)):
        assert distance(bench.drawn(angles + turn), real) > 4.0, f"joint {joint} off by 0.1 rad"
    assert distance(drawn[:, ::-1], real) > 4.0, "mirrored"
    found = load_calibration(bench.calibration)
    assert found.pos is not None and found.lookat is not None
    for axis, aside in enumerate(0.03 * np.eye(3)):
        for moved in (
            found._replace(pos=found.pos + aside),
            found._replace(lookat=found.lookat + aside),
        ):
            save_calibration(tmp_path / "moved.yaml", moved)
            other = bench.drawn(angles, tmp_path / "moved.yaml")
            assert distance(other, real) > 4.0, f"a camera 3 cm away, axis {axis}"


def test_the_overlay_s_pictures_are_made_of_both(bench: Overlay, photographs: Photographs) -> None:
    angles = photographs.angles[0]
    bench.photograph(angles)
    real, drawn = bench.real(angles), bench.drawn(angles)
    blended, outlined, small_real, small_drawn = bench.sheet(angles, blend=0.25)
    assert np.abs(blended - (0.75 * real + 0.25 * drawn)).max() <= 1.0
    magenta = (outlined == (255, 0, 255)).all(axis=-1)
    assert np.array_equal(outlined[~magenta], real[~magenta])
    # Where lines are drawn the simulated picture changes, and nearly everywhere else it does not.
    steps = cv2.morphologyEx(drawn.max(axis=-1), cv2.MORPH_GRADIENT, np.ones((5, 5)))
    assert 0.002 < magenta.mean() < 0.1
    assert np.median(steps[magenta]) > 10 * np.median(steps[~magenta])
    for small, whole in ((small_real, real), (small_drawn, drawn)):
        assert distance(small, whole) < 10.0
        assert np.array_equal(small, np.kron(small[::8, ::8], np.ones((8, 8, 1)))), "64 x 64"


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["domain: x\nnetworkk: lo\n", "[1, 2", "\x00\x01\x02", "<a>"])
def test_a_damaged_calibration_is_told_by_its_key_and_without_opencv_s_words(
    content: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    argv = [f"calibration={path}", "image=y", "joints=(0,0,0,0,0,0)"]
    assert run_command(overlay, argv) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: calibration={path}")
    assert told.count("\n") == 1
    assert "cv2" not in told and "lens=" not in told and "exception" not in told


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["calibration=x"], "one of image="),
        (["calibration=x", "image=y"], "one of joints="),
        (["calibration=x", "image=y", "joints=(1,2)"], "6 or 9"),
        (["calibration=x", "image=y", "joints=(0,0,0,0,0,0)"], "calibration=x is no file"),
        (["calibration=x", "image=y", "joints=(0,0,0,0,0,0)", "out=new/x.foo"], ".png"),
        (["calibration=x", "image=y", "joints=(0,0,0,0,0,0)", "out=png"], "ends in .png"),
    ],
)
def test_an_overlay_that_cannot_be_is_one_line(
    argv: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(overlay, argv) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_overlay_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    overlays.write(str(tmp_path / "new" / "overlay.PNG"), picture)
    assert (tmp_path / "new" / "overlay.PNG").is_file()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    for out in ("folder.png", "file/overlay.png", "overlay.foo"):
        with pytest.raises(UserError, match="cannot be written"):
            overlays.write(str(tmp_path / out), picture)


class Topic:
    """Has no frame at first, as a topic whose publisher is not found yet."""

    channels = "RGB"

    def __init__(self) -> None:
        self.frames: list[np.ndarray | None] = [None, np.full((2, 2, 3), (1, 2, 3), np.uint8)]
        self.closed = False

    def read(self) -> np.ndarray | None:
        return self.frames.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("arm", ["joints=(0,0,0,0,0,0)", "arm=ros2", "arm=jaco2"])
def test_an_overlay_looks_through_a_topic_as_deploy_does(
    arm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cyclonedds")
    said = tmp_path / "arm.yaml"
    said.write_text("domain: 7\nnetwork: eth3\n")
    made, camera = [], Topic()
    monkeypatch.setattr(overlays, "SETTLING", 0.0)
    monkeypatch.setattr(live, "make_camera", lambda *told: made.append(told) or camera)
    argv = ["calibration=x", "camera=topic:/cam/image", arm, f"arm_config={said}"]
    frame, channels = overlays.real_frame(parse_overrides(argv, OverlayConfig), board.LENS)
    topic = {"kind": "ros2", "topic": "/cam/image", "domain": 7, "network": "eth3"}
    assert made == [(topic, board.LENS)]
    assert (frame == (1, 2, 3)).all()
    assert channels == "RGB"
    assert camera.closed


class Webcam:
    """30 frames a second of its own clock, ever brighter for its first 0.4 s."""

    channels = "BGR"

    def __init__(self) -> None:
        self.now = 100.0
        self.frames = 0

    def read(self) -> np.ndarray | None:
        elapsed = self.now - 100.0
        if self.frames > 30.0 * elapsed:
            return None
        self.frames += 1
        return np.full((2, 2, 3), round(200 * min(elapsed / 0.4, 1.0)), np.uint8)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def close(self) -> None: ...


def test_an_overlay_is_of_a_frame_for_which_the_camera_has_found_its_brightness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    webcam = Webcam()
    monkeypatch.setattr(overlays, "open_camera", lambda *told: webcam)
    monkeypatch.setattr("visuomotor.live.time.monotonic", lambda: webcam.now)
    monkeypatch.setattr("visuomotor.live.time.sleep", webcam.sleep)
    config = OverlayConfig(calibration="x", camera="0", joints=(0.0,) * 6)
    frame, _ = overlays.real_frame(config, board.LENS)
    assert (frame == 200).all()
    assert 0.4 < webcam.now - 100.0 < 0.6


def test_an_overlay_s_camera_that_is_not_there_is_one_line() -> None:
    config = OverlayConfig(calibration="x", camera="nowhere.avi", joints=(0.0,) * 6)
    with pytest.raises(UserError, match=r"camera=nowhere\.avi cannot be opened"):
        overlays.real_frame(config, board.LENS)
