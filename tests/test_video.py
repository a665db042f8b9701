"""Films and contact sheets: readable by others, in the right order, whole or not there."""

from __future__ import annotations

from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from visuomotor.video import (
    COLUMNS,
    SCALE,
    SHEET_STEPS,
    SHEET_WORLDS,
    write_contact_sheet,
    write_video,
)

HEIGHT, WIDTH = 24, 32  # not square: a swap of the sides would show


def _frames(steps: int, worlds: int, red: int = 20) -> list[np.ndarray]:
    """Plain images: red grows by `red` a step, green by 20 a world, blue is 40."""
    frames = []
    for step in range(steps):
        frame = np.zeros((worlds, HEIGHT, WIDTH, 3), dtype=np.uint8)
        frame[..., 0] = red * step
        frame[..., 1] = 20 * np.arange(worlds)[:, None, None] % 256
        frame[..., 2] = 40
        frames.append(frame)
    return frames


def _read(path: Path) -> tuple[list[np.ndarray], float]:
    """The images of a film as RGB, and its rate."""
    capture = cv2.VideoCapture(str(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    images = []
    while True:
        there, image = capture.read()
        if not there:
            break
        images.append(image[..., ::-1])
    capture.release()
    return images, rate


def _cell(image: np.ndarray, row: int, column: int) -> np.ndarray:
    """The colour in the middle of a tile."""
    return image[(2 * row + 1) * HEIGHT * SCALE // 2, (2 * column + 1) * WIDTH * SCALE // 2]


# --- films --------------------------------------------------------------------------------------


def test_a_film_shows_every_step_with_the_worlds_side_by_side(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _frames(12, worlds=6), rate=20.0)
    images, rate = _read(tmp_path / "a.mp4")
    assert rate == pytest.approx(20.0)
    assert len(images) == 12
    assert images[0].shape == (2 * HEIGHT * SCALE, COLUMNS * WIDTH * SCALE, 3)
    for step, image in enumerate(images):
        for world in range(6):
            colour = _cell(image, *divmod(world, COLUMNS)).astype(int)
            # H.264 keeps colours roughly.
            np.testing.assert_allclose(colour, (20 * step, 20 * world, 40), atol=9)
    assert _cell(images[-1], 1, 2).max() < 10  # no seventh world: black
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mp4"]


def test_a_film_of_one_world_and_one_step_is_a_film(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _frames(1, worlds=1), rate=20.0)
    images, _ = _read(tmp_path / "a.mp4")
    assert [image.shape for image in images] == [(HEIGHT * SCALE, WIDTH * SCALE, 3)]


def test_a_newer_film_replaces_the_older_one(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", _frames(3, worlds=1), rate=20.0)
    write_video(tmp_path / "a.mp4", _frames(5, worlds=2), rate=10.0)
    images, rate = _read(tmp_path / "a.mp4")
    assert (len(images), rate) == (5, pytest.approx(10.0))


def test_without_frames_or_folder_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no frames for .*a\.mp4"):
        write_video(tmp_path / "a.mp4", [], rate=20.0)
    with pytest.raises(FileNotFoundError, match=r"no folder for .*a\.mp4"):
        write_video(tmp_path / "nowhere" / "a.mp4", _frames(1, worlds=1), rate=20.0)
    assert list(tmp_path.iterdir()) == []


def _failing_ffmpeg(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",  # dies at once
        "cat > /dev/null; exit 1",  # takes every frame and writes nothing
        'for path; do :; done; cat > /dev/null; echo damaged > "$path"; exit 1',  # disk full
    ],
)
def test_a_film_that_fails_leaves_the_older_one_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    film = tmp_path / "films" / "a.mp4"
    film.parent.mkdir()
    write_video(film, _frames(2, worlds=1), rate=20.0)
    before = film.read_bytes()
    # The film is written by a broken ffmpeg and looked at by the working one.
    working = imageio_ffmpeg.get_ffmpeg_exe()
    programs = iter([_failing_ffmpeg(tmp_path / "ffmpeg", script)])
    monkeypatch.setattr("imageio_ffmpeg._io.get_first_available_h264_encoder", lambda: "libx264")
    monkeypatch.setattr("imageio_ffmpeg._io.get_ffmpeg_exe", lambda: next(programs, working))
    with pytest.raises(OSError, match=r"a\.mp4"):
        write_video(film, _frames(4, worlds=1), rate=20.0)
    assert film.read_bytes() == before
    assert [entry.name for entry in film.parent.iterdir()] == ["a.mp4"]


def test_a_film_that_is_cut_short_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = imageio_ffmpeg.count_frames_and_secs
    monkeypatch.setattr(
        "imageio_ffmpeg.count_frames_and_secs", lambda path: (count(path)[0] - 1, 0.0)
    )
    with pytest.raises(OSError, match="ffmpeg wrote 2 of 3 frames"):
        write_video(tmp_path / "a.mp4", _frames(3, worlds=1), rate=20.0)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_film_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imageio_ffmpeg.count_frames_and_secs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", _frames(3, worlds=1), rate=20.0)
    assert list(tmp_path.iterdir()) == []


# --- contact sheets -----------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "worlds"), [(10, 3), (200, 16), (4, 1)])
def test_a_contact_sheet_has_a_row_an_episode_and_a_column_a_moment(
    tmp_path: Path, steps: int, worlds: int
) -> None:
    frames = _frames(steps, worlds, red=1)
    write_contact_sheet(tmp_path / "a.png", frames)
    image = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    rows = min(worlds, SHEET_WORLDS)
    assert image.shape == (rows * HEIGHT * SCALE, SHEET_STEPS * WIDTH * SCALE, 3)
    moments = [int(_cell(image, 0, column)[0]) for column in range(SHEET_STEPS)]
    assert (moments[0], moments[-1]) == (0, steps - 1)
    assert moments == sorted(moments)
    gaps = np.diff(moments)
    assert gaps.max() - gaps.min() <= 1  # evenly spread
    for row in range(rows):
        assert _cell(image, row, 5).tolist() == [moments[5], 20 * row, 40]
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_contact_sheet_that_cannot_be_encoded_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *arguments: (False, None))
    with pytest.raises(RuntimeError, match=r"cannot encode .*a\.png"):
        write_contact_sheet(tmp_path / "a.png", _frames(3, worlds=1))
    assert list(tmp_path.iterdir()) == []
