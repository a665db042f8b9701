"""From a real camera's image to what the policy reads: the same bytes everywhere."""

from __future__ import annotations

import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from visuomotor.calibrate import save_calibration
from visuomotor.config import CameraConfig, Config
from visuomotor.envs import make_env, robot
from visuomotor.policy_files import PRETRAINED
from visuomotor.runtime.cameras import Capture, Newest
from visuomotor.runtime.errors import CameraError
from visuomotor.runtime.files import read_bundle
from visuomotor.runtime.lens import Calibration, load_lens
from visuomotor.runtime.preprocessing import Lens, Preprocessing, resize, simulated_matrix
from visuomotor.runtime.processes import make_camera
from visuomotor.runtime.proprioception import entries, proprioception

# Of a picture of whole numbers only, so that every machine makes the same of it.
GOLDEN = "74967f51a84d7e3e"


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    channels = (x * 7 + y * 3) % 256, (x * y) % 256, ((x // 8 + y // 8) % 2) * 255
    return np.stack(channels, axis=-1).astype(np.uint8)


def test_a_picture_of_the_policy_s_own_size_passes_unchanged() -> None:
    image = picture(64, 64)
    assert (Preprocessing(64, 64, 30.0)(image, "RGB") == image).all()
    assert (Preprocessing(64, 64, 30.0)(image, "BGR") == image[..., ::-1]).all()


def test_a_picture_is_shrunk_by_area_to_the_same_bytes_on_every_machine() -> None:
    small = Preprocessing(64, 64, 30.0)(picture(512, 640), "BGR")
    assert small.shape == (64, 64, 3)
    assert hashlib.sha256(small.tobytes()).hexdigest()[:16] == GOLDEN


def test_shrinking_averages_and_cuts_the_middle() -> None:
    frame = np.zeros((128, 256, 3), np.uint8)
    frame[:, 64:192] = 200
    assert (Preprocessing(64, 64, 30.0)(frame) == 200).all()
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[::2] = 100
    assert (resize(stripes, 64, 64) == 50).all()


def test_a_distorted_camera_shows_what_the_simulated_one_shows() -> None:
    """A world of colour rings, seen through a lens with distortion and off centre."""
    lens = Lens(
        640,
        480,
        np.array([[820.0, 0, 301], [0, 815, 252], [0, 0, 1]]),
        np.array([-0.3, 0.1, 1e-3, -2e-3, 0.0]),
    )

    def world(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The colour in a direction (x/z, y/z)."""
        waves = np.sin(40 * x), np.cos(30 * y), np.sin(25 * (x + y))
        return np.stack([127 + 100 * w for w in waves], axis=-1)

    v, u = np.mgrid[0:480, 0:640].astype(np.float64)
    points = np.stack((u, v), axis=-1).reshape(-1, 1, 2)
    rays = cv2.undistortPoints(points, lens.matrix, lens.distortion).reshape(480, 640, 2)
    real = world(rays[..., 0], rays[..., 1]).astype(np.uint8)

    ideal_matrix = simulated_matrix(640, 640, 30.0)
    v, u = np.mgrid[0:640, 0:640].astype(np.float64)
    x = (u - ideal_matrix[0, 2]) / ideal_matrix[0, 0]
    y = (v - ideal_matrix[1, 2]) / ideal_matrix[1, 1]
    ideal = world(x, y)
    expected = resize(ideal.astype(np.uint8), 64, 64)
    seen = Preprocessing(64, 64, 30.0, lens)(real, "RGB")
    assert np.abs(seen.astype(int) - expected.astype(int)).mean() < 2.0
    plain = Preprocessing(64, 64, 30.0)(real, "RGB")
    assert np.abs(plain.astype(int) - expected.astype(int)).mean() > 10.0


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        (np.zeros((64, 64), np.uint8), "height, width, 3"),
        (np.zeros((64, 64, 3), np.float32), "uint8"),
        (np.zeros((64, 64, 4), np.uint8), "height, width, 3"),
    ],
)
def test_what_is_no_picture_is_refused(frame: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Preprocessing(64, 64, 30.0)(frame)
    with pytest.raises(ValueError, match="BGR or RGB"):
        Preprocessing(64, 64, 30.0)(picture(64, 64), "GRB")


def test_the_simulated_matrix_is_the_simulated_camera_s() -> None:
    """A point in the world lands in the pixel that a bundle's intrinsics say: those count from the
    corner of the first pixel, OpenCV's from its centre."""
    camera = CameraConfig()
    matrix = simulated_matrix(camera.height, camera.width, camera.fovy)
    manifest, _ = read_bundle(PRETRAINED / "lifting")
    told = manifest["camera"]
    assert (told["height"], told["width"]) == (camera.height, camera.width)
    assert told["fovy_deg"] == pytest.approx(camera.fovy)
    expected = np.eye(3)
    expected[[0, 1], [0, 1]] = told["intrinsics"]["fx"], told["intrinsics"]["fy"]
    expected[:2, 2] = told["intrinsics"]["cx"] - 0.5, told["intrinsics"]["cy"] - 0.5
    np.testing.assert_allclose(matrix, expected, atol=1e-9)
    edge = np.tan(np.deg2rad(camera.fovy / 2))
    assert matrix[0, 0] * edge + matrix[0, 2] == pytest.approx(camera.width - 0.5)
    assert matrix[1, 1] * -edge + matrix[1, 2] == pytest.approx(-0.5)


# --- lenses and cameras -----------------------------------------------------------------------


def test_a_lens_survives_its_file(tmp_path: Path) -> None:
    lens = Lens(640, 480, np.array([[800.5, 0, 320], [0, 801, 240], [0, 0, 1]]), np.arange(5) / 10)
    save_calibration(tmp_path / "lens.yaml", Calibration(lens, {}))
    again = load_lens(tmp_path / "lens.yaml")
    assert (again.width, again.height) == (640, 480)
    assert (again.matrix == lens.matrix).all()
    assert (again.distortion == lens.distortion).all()
    with pytest.raises(ValueError, match="calibrated with 640x480"):
        Preprocessing(64, 64, 30.0, again)(picture(64, 64))


def test_a_calibration_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lens = Lens(640, 480, np.array([[800.5, 0, 320], [0, 801, 240], [0, 0, 1]]), np.arange(5) / 10)
    path = tmp_path / "camera.yaml"
    save_calibration(path, Calibration(lens, {"error_px": 0.2}))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("visuomotor.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_calibration(path, Calibration(lens, {"error_px": 0.1}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "nothing half written"


@pytest.mark.parametrize(
    "content",
    ["", "no yaml: [", "%YAML:1.0\n---\nimage_width: 640\n", "%YAML:1.0\n---\nimage_width: -4\n"],
)
def test_a_file_that_is_no_lens_is_one_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "lens.yaml").write_text(content)
    with pytest.raises(CameraError, match="lens="):
        load_lens(tmp_path / "lens.yaml")
    with pytest.raises(CameraError, match=r"visuomotor\.calibrate"):
        load_lens(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"rectification": np.diag([1.0, -1.0, 1.0])}, "rectification: expected a rotation"),
        ({"rectification": -np.eye(3)}, "rectification: expected a rotation"),
        ({"rectification": 1.1 * np.eye(3)}, "rectification: expected a rotation"),
        ({"matrix": np.diag([900.0, 900.0, 5.0])}, "camera_matrix: expected"),
        ({"matrix": np.diag([900.0, 900.0, 1.0]) + np.eye(3)[[2, 0, 1]]}, "camera_matrix"),
        ({"matrix": np.diag([-900.0, 900.0, 1.0])}, "positive focal lengths"),
    ],
)
def test_a_lens_that_cannot_be_is_told_by_its_entry(
    changed: dict[str, np.ndarray], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "lens.yaml"
    right = Lens(640, 480, np.array([[900.0, 0, 320], [0, 900, 240], [0, 0, 1]]), np.zeros(5))
    save_calibration(path, Calibration(right, {}))
    assert (load_lens(path).matrix == right.matrix).all()
    save_calibration(path, Calibration(right._replace(**changed), {}))
    with pytest.raises(CameraError, match=told) as caught:
        load_lens(path)
    assert str(caught.value).startswith(f"lens={path}: ")


class Fake:
    channels = "RGB"

    def __init__(self, frames: list[np.ndarray]):
        self.frames = frames

    def read(self) -> np.ndarray | None:
        return self.frames.pop(0) if self.frames else None

    def close(self) -> None:
        self.frames = []


def test_the_newest_frame_is_kept_and_a_repeated_one_grows_old() -> None:
    one, two = picture(4, 4), picture(4, 4) + 1
    camera = Newest(
        Fake([one, two, two.copy(), two.copy()]), lambda frame, channels: frame[..., ::-1]
    )
    while camera.camera.frames:  # type: ignore[attr-defined]
        pass
    camera.close()
    assert camera.frame is not None
    assert (camera.frame.image == two[..., ::-1]).all()
    assert camera.frame.changed < camera.frame.stamp


def test_a_frame_is_as_old_as_since_the_camera_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as since it was made ready."""
    now = 100.0
    monkeypatch.setattr("visuomotor.runtime.cameras.time.monotonic", lambda: now)

    def slow(frame: np.ndarray, channels: str) -> np.ndarray:
        nonlocal now
        now += 0.03
        return frame

    camera = Newest(Fake([picture(4, 4)]), slow)
    while camera.frame is None:
        pass
    camera.close()
    assert camera.frame.stamp == camera.frame.changed == 100.0


def test_a_frame_that_cannot_be_read_is_left_out_and_told_of() -> None:
    good = picture(64, 64)
    camera = Newest(Fake([good, picture(64, 64)[..., :1]]), Preprocessing(64, 64, 30.0))
    while not camera.problem:
        pass
    camera.close()
    assert camera.frame is not None and (camera.frame.image == good).all()
    assert "frame: expected (height, width, 3) uint8" in camera.problem


def test_a_video_file_is_a_camera_and_a_camera_that_is_not_there_an_error(tmp_path: Path) -> None:
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 100.0, (32, 24))
    for shade in (0, 100, 200):
        writer.write(np.full((24, 32, 3), shade, np.uint8))
    writer.release()
    camera = Capture(str(path))
    shades = [int(np.asarray(camera.read()).mean()) for _ in range(4)]
    camera.close()
    assert shades == pytest.approx([0, 100, 200, 0], abs=3)
    with pytest.raises(CameraError, match="number of a camera"):
        Capture(str(tmp_path / "nowhere.avi"))


class Pictures(BaseHTTPRequestHandler):
    """MJPEG, as network cameras send it: three shades a connection, which is then closed."""

    shades = (0, 100, 200)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        self.end_headers()
        for shade in self.shades:
            _, jpeg = cv2.imencode(".jpg", np.full((24, 32, 3), (shade, 30, 60), np.uint8))
            head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {jpeg.size}\r\n\r\n"
            self.wfile.write(head.encode() + jpeg.tobytes() + b"\r\n")
        self.wfile.write(b"--next--\r\n")

    def log_message(self, *_: object) -> None: ...


def test_a_url_is_a_camera_that_is_opened_anew_when_its_stream_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    url = f"http://127.0.0.1:{server.server_port}/video.mjpg"
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    now = 50.0
    monkeypatch.setattr("visuomotor.runtime.cameras.time.monotonic", lambda: now)
    try:
        camera = make_camera({"kind": "capture", "source": url, "rate": 30.0})
        assert isinstance(camera, Capture)
        for _ in range(2):
            for shade in Pictures.shades:
                image = camera.read()
                assert image is not None
                assert image.shape == (24, 32, 3)
                assert image.mean(axis=(0, 1)) == pytest.approx([shade, 30, 60], abs=3)
            assert camera.read() is None, "the stream has ended"
            now += 1.1
            assert camera.read() is None, "it is opened anew, and read from the next time on"
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    for _ in Pictures.shades:  # of the connection that was opened last
        camera.read()
    for _ in range(3):
        now += 1.1
        assert camera.read() is None, "nobody is there"
    camera.close()
    with pytest.raises(CameraError, match="cannot be opened"):
        Capture(url)


def test_a_camera_is_asked_for_the_size_that_its_lens_was_calibrated_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a driver has it whose default is 640x480: the size holds from where it is asked for."""

    class Driver:
        def __init__(self, source: int | str):
            self.asked = {cv2.CAP_PROP_FRAME_WIDTH: 640.0, cv2.CAP_PROP_FRAME_HEIGHT: 480.0}

        def isOpened(self) -> bool:
            return True

        def set(self, name: int, value: float) -> None:
            self.asked[name] = value

        def get(self, name: int) -> float:
            return self.asked[name]

        def read(self) -> tuple[bool, np.ndarray]:
            sides = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
            return True, np.zeros((*(int(self.asked[name]) for name in sides), 3), np.uint8)

    monkeypatch.setattr(cv2, "VideoCapture", Driver)
    matrix = np.array([[1600.0, 0, 640], [0, 1600, 360], [0, 0, 1]])
    lens = Lens(1280, 720, matrix, np.zeros(5))
    preprocess = Preprocessing(64, 64, 20.0, lens)
    settings = {"kind": "capture", "source": "0", "rate": 30.0}
    assert preprocess(make_camera(settings, lens).read()).shape == (64, 64, 3)
    with pytest.raises(ValueError, match="640x480 pixels, but the camera was calibrated with 1280"):
        preprocess(make_camera(settings).read())


def test_a_camera_that_was_pulled_is_opened_anew_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugged, opened, now = True, 0, 50.0

    class Driver:
        def __init__(self, source: int | str):
            nonlocal opened
            opened += 1
            self.alive = plugged  # a handle of before stays dead

        def isOpened(self) -> bool:
            return self.alive

        def set(self, name: int, value: float) -> None: ...

        def get(self, name: int) -> float:
            return 30.0

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.alive &= plugged
            return self.alive, np.zeros((4, 4, 3), np.uint8) if self.alive else None

        def release(self) -> None: ...

    monkeypatch.setattr(cv2, "VideoCapture", Driver)
    monkeypatch.setattr("visuomotor.runtime.cameras.time.monotonic", lambda: now)
    camera = Capture("0")
    assert camera.read() is not None
    plugged = False
    for _ in range(25):
        assert camera.read() is None
        now += 0.1
    assert opened == 3, "once a second"
    plugged = True
    seen = []
    for _ in range(15):
        seen.append(camera.read() is not None)
        now += 0.1
    assert seen[-1]
    assert opened == 4


def test_proprioception_is_the_simulation_s() -> None:
    env = make_env(Config(task="lifting"), num_envs=3, seed=0, render=False)
    env.reset()
    qpos, qvel = env.sim.data("qpos"), env.sim.data("qvel")
    expected = env.jaco.proprio(qpos, qvel).numpy()
    for world in range(3):
        position = qpos[world, env.jaco.qpos_ids].numpy()
        velocity = qvel[world, env.jaco.dof_ids].numpy()
        assert (proprioception(position, velocity) == expected[world]).all()
    assert len(entries(tuple(robot.JOINTS))) == expected.shape[1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_joints_that_are_no_numbers_stay_so(broken: float) -> None:
    position = np.zeros(9)
    position[[2, 7]] = broken
    found = proprioception(position, np.zeros(9))
    assert np.flatnonzero(~np.isfinite(found)).tolist() == [2, 8, 19, 22]
