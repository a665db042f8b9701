"""Pictures of the board with the arm's joints: what is kept, and what calibrate then reads."""

from __future__ import annotations

import io
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests import board
from tests.board import SETTINGS, Photographs
from visuomotor import live, shots
from visuomotor.calibrate import read_joints
from visuomotor.cli import run_command
from visuomotor.errors import UserError
from visuomotor.runtime.arm import JointState


@pytest.fixture(scope="module")
def photographs() -> Photographs:
    return board.photograph(2)


class Bench:
    """A camera and an arm that say what they are told to."""

    channels = "BGR"

    def __init__(self) -> None:
        self.frame: np.ndarray | None = None
        self.angles = [np.zeros(6)]  # one after the other; the last for ever
        self.age = 0.0
        self.closed = False

    def read(self) -> np.ndarray | None:
        return self.frame

    def close(self) -> None:
        self.closed = True


class Arm:
    def __init__(self, bench: Bench):
        self._bench = bench

    def read(self) -> JointState:
        angles = self._bench.angles
        now = angles.pop(0) if len(angles) > 1 else angles[0]
        fingers = np.zeros(3)
        stamp = time.monotonic() - self._bench.age
        return JointState(np.concatenate((now, fingers)), np.zeros(9), stamp)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(shots, "open_camera", lambda *told: bench)
    monkeypatch.setattr(shots, "connect_arm", lambda *told: Arm(bench))
    monkeypatch.setattr(shots, "SETTLING", 0.0)
    return bench


def take(folder: Path, lines: str, monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    given = [f"out={folder}", "camera=0", *SETTINGS, *argv]
    return run_command(shots.shots, given)


def coloured(grey: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


def test_pictures_are_numbered_on_and_calibrate_reads_their_joints(
    bench: Bench,
    photographs: Photographs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for picture, angles in zip(photographs.pictures, photographs.angles, strict=True):
        bench.frame, bench.angles = coloured(picture), [angles]
        assert take(tmp_path / "shots", "\nq\n\n", monkeypatch, "arm=ros2") == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in told] == ["00.png", "01.png"]
    assert told[0].endswith("of the board's 20 corners")
    joints = read_joints(tmp_path / "shots" / "joints.csv")
    for i, name in enumerate(("00.png", "01.png")):
        assert np.array_equal(joints[name], photographs.angles[i])
        kept = cv2.imread(str(tmp_path / "shots" / name), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(kept, photographs.pictures[i])
    assert bench.closed


def test_without_an_arm_there_are_pictures_alone(
    bench: Bench, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.frame = coloured(photographs.pictures[0])
    assert take(tmp_path, "\n\n", monkeypatch) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00.png", "01.png"]


def test_what_is_of_no_use_is_not_kept(
    bench: Bench,
    photographs: Photographs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "shots"
    bench.frame = np.zeros((480, 640, 3), np.uint8)
    assert take(folder, "\n", monkeypatch, "arm=ros2") == 0
    assert "too little of the board is seen" in capsys.readouterr().out
    bench.frame = coloured(photographs.pictures[0])
    bench.angles = [np.zeros(6), np.full(6, 0.01)]
    assert take(folder, "\n", monkeypatch, "arm=ros2") == 0
    assert "the arm moved" in capsys.readouterr().out
    bench.age = 1.0
    assert take(folder, "\n", monkeypatch, "arm=ros2") == 2
    assert "arm=ros2 tells its joints no longer" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_topic_s_red_is_red(
    bench: Bench, photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.frame = coloured(photographs.pictures[0])
    bench.frame[:4, :4] = (255, 0, 0)
    bench.channels = "RGB"
    assert take(tmp_path, "\n", monkeypatch) == 0
    kept = cv2.imread(str(tmp_path / "00.png"))
    assert kept is not None and (kept[:4, :4] == (0, 0, 255)).all()


def test_the_last_frame_counts_and_none_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Queue(Bench):
        frames = iter(np.full((2, 2, 3), min(i, 255), np.uint8) for i in range(10**9))

        def read(self) -> np.ndarray | None:
            return next(self.frames)

    assert live.newest_frame(Queue(), "0")[0, 0, 0] == 0
    assert live.newest_frame(Queue(), "0", settling=0.01)[0, 0, 0] > 1
    monkeypatch.setattr(live, "FRAME_SECONDS", 0.01)
    with pytest.raises(UserError, match=r"camera=topic:/x sent no frame within 0 s"):
        live.newest_frame(Bench(), "topic:/x")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["camera=0"], "out= is missing"),
        (["out=x"], "camera= is missing"),
        (["out=x", "camera=0", "arm=sim"], "arm=sim: expected ros2 or jaco2"),
        (["out=x", "camera=0", "board.rows=2"], "board: expected at least 3 x 3 squares"),
        (["out=x", "camera=nowhere.avi"], "camera=nowhere.avi cannot be opened"),
        (["out=x", "camera=0", "cam=1"], "unknown key 'cam'"),
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
    assert run_command(shots.shots, argv) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_table_is_refused_before_any_picture(
    bench: Bench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "joints.csv").write_text("file,joint_1\n00.png,1,2\n")
    assert take(tmp_path, "\n", monkeypatch) == 2
    assert "joints.csv, line 2" in capsys.readouterr().err
    assert bench.closed


def test_a_camera_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"camera=nowhere\.avi cannot be opened"):
        live.open_camera("nowhere.avi", None, None)


def test_an_arm_and_a_camera_on_dds_are_looked_at_and_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cyclonedds")
    from tests.dds_arm import DdsArm

    settings = tmp_path / "arm.yaml"
    settings.write_text("domain: 92\n")
    arm = DdsArm(92, command="/forward_velocity_controller/commands")
    try:
        monkeypatch.setattr("sys.stdin", io.StringIO("\nq\n"))
        argv = [f"out={tmp_path}/shots", "camera=topic:/image", "arm=ros2"]
        assert run_command(shots.shots, [*argv, f"arm_config={settings}"]) == 0
    finally:
        arm.close()
    assert "00.png" not in capsys.readouterr().out  # pictures of noise
    assert arm.received == []
