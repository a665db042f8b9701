"""Verifying and running an exported policy.

Nothing runs before every file is verified, and nothing is handed out before the golden episodes
replay within TOLERANCE.
"""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from visuomotor.runtime.errors import BundleError
from visuomotor.runtime.files import GOLDEN, MANIFEST, MODEL, get_entry, read_bundle
from visuomotor.runtime.onnx_file import Graph, read_graph, with_all_outputs
from visuomotor.runtime.onnx_sizes import check_sizes

__all__ = ["Bundle", "BundleError", "Contract", "Replay", "bundle_from_files", "load_bundle"]

TOLERANCE = 1e-5  # rad/s of velocities: float32 rounding is 1e-7
# Of the memory's h (|h| < 1), where rounding adds up over an episode: order_fulfillment's is off by
# up to 2e-5 while its velocities agree to 3e-6.
MEMORY_TOLERANCE = 5e-5
MAX_SIDE = 1024  # pixels
MAX_MEMORY = 4096  # LSTM units
MIN_GOLDEN_STEPS, MAX_GOLDEN_STEPS = 200, 10_000
MAX_JOINTS = 64
MAX_PROPRIO = 512
MAX_VELOCITY = 100.0  # rad/s
MAX_RATE = 1000.0  # Hz
MAX_STEPS = 1_000_000  # control steps
MAX_ANGLE = 10.0  # rad, of a joint at the start

Hidden = tuple[np.ndarray, np.ndarray]


class Contract(NamedTuple):
    """What a control loop must know of policy.json."""

    task: str
    joint_names: tuple[str, ...]  # order of the outputs
    velocity_limits: np.ndarray  # (A,) float64 rad/s
    control_rate_hz: float
    height: int  # pixels
    width: int
    proprio_dim: int
    memory: int  # length of h and of c
    refresh_steps: int  # control steps that an image is held
    fovy_deg: float  # degrees, vertical, of the images
    episode_s: float  # how long an episode was in training
    # (A,) float64 rad, where the joints stood when an episode of training began, give or take the
    # spread in policy.json; where that does not say, as golden episodes began, within a turn; None:
    # nothing says it.
    start: np.ndarray | None = None


class Replay(NamedTuple):
    """How the golden episode went."""

    steps: int
    max_error: float  # the largest over velocities [rad/s] and h


class Bundle:
    """A verified policy; made by `load_bundle`. Not for use by several threads at once.

    `step` keeps the policy's memory from call to call and `reset` empties it at the start of an
    episode; `infer` keeps nothing.
    """

    def __init__(self, contract: Contract, manifest: dict[str, Any], model: bytes):
        """model: policy.onnx, already checked. Raises BundleError if ONNX Runtime refuses it or
        its inputs and outputs are not those of the contract."""
        self.contract = contract
        self.manifest = manifest
        self.replay = Replay(0, 0.0)
        self._session = _open_session(model)
        _check_signature(self._session, contract)
        self._hidden = self.initial_hidden()

    def reset(self) -> None:
        """Empties the memory: to be called before the first step of every episode."""
        self._hidden = self.initial_hidden()

    def initial_hidden(self) -> Hidden:
        """Two zeros (1, H) float32."""
        shape = (1, self.contract.memory)
        return np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def step(self, pixels: np.ndarray, proprio: np.ndarray) -> np.ndarray:
        """One control step: pixels (H, W, 3) uint8 RGB, proprio (P,) raw -> (A,) float32 rad/s.

        Raises BundleError on inputs of a wrong shape or type, or that are not finite; the memory
        then stays as it was.
        """
        velocities, self._hidden = self.infer(pixels, proprio, self._hidden)
        return velocities

    def infer(
        self, pixels: np.ndarray, proprio: np.ndarray, hidden: Hidden
    ) -> tuple[np.ndarray, Hidden]:
        """As `step`, with the memory (two (1, H) float32) passed in and handed back."""
        contract = self.contract
        frame = (contract.height, contract.width, 3)
        if pixels.shape != frame or pixels.dtype != np.uint8:
            raise BundleError(
                f"pixels: expected {frame} uint8 RGB, received {pixels.shape} {pixels.dtype}"
            )
        if proprio.shape != (contract.proprio_dim,) or proprio.dtype.kind != "f":
            raise BundleError(
                f"proprio: expected ({contract.proprio_dim},) float32, "
                f"received {proprio.shape} {proprio.dtype}"
            )
        h, c = hidden
        feed = {
            "pixels": np.ascontiguousarray(pixels)[None],
            "proprio": np.ascontiguousarray(proprio, dtype=np.float32)[None],
            "h_in": h,
            "c_in": c,
        }
        try:
            velocities, h_out, c_out, finite = self._session.run(_OUTPUTS, feed)
        except Exception as error:  # onnxruntime's errors share no narrower base class
            raise BundleError(f"ONNX Runtime failed: {error}") from error
        if not bool(finite):
            raise BundleError(_describe_not_finite(feed))
        return velocities[0], (h_out, c_out)


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Opens, verifies and replays the bundle in the folder `path`.

    Raises BundleError, in one line that says which file and what is wrong with it.
    """
    manifest, files = read_bundle(path)
    return bundle_from_files(manifest, files)


def bundle_from_files(manifest: dict[str, Any], files: dict[str, bytes]) -> Bundle:
    """The second half of `load_bundle`, for those who also want the files of `read_bundle`."""
    contract = _contract(manifest)
    golden = _golden(files[GOLDEN], contract)
    if contract.start is None:
        contract = contract._replace(start=_recorded_start(golden, manifest, contract))
    _check_sizes(files[MODEL], read_graph(files[MODEL]), contract)
    bundle = Bundle(contract, manifest, files[MODEL])
    bundle.replay = replay_golden(bundle, golden)
    bundle.reset()
    return bundle


def replay_golden(bundle: Bundle, golden: dict[str, np.ndarray]) -> Replay:
    """Runs the recorded episodes with the policy's own memory.

    Raises BundleError at the first step that differs from the record by more than TOLERANCE, or
    MEMORY_TOLERANCE.
    """
    names = bundle.contract.joint_names
    worst = 0.0
    steps = len(golden["proprio"])
    hidden = bundle.initial_hidden()
    for t in range(steps):
        if golden["episode_start"][t]:
            hidden = bundle.initial_hidden()
        frame = golden["frames"][golden["frame_index"][t]]
        velocities, hidden = bundle.infer(frame, golden["proprio"][t], hidden)
        for what, received, expected, allowed in (
            ("velocity of", velocities, golden["joint_velocities"][t], TOLERANCE),
            ("memory h", hidden[0][0], golden["h_out"][t], MEMORY_TOLERANCE),
        ):
            error = np.abs(received.astype(np.float64) - expected.astype(np.float64))
            wrong = ~(error <= allowed)  # not `>`: NaN is wrong too
            if wrong.any():
                i = int(wrong.argmax())
                which = f"{what} {names[i]}" if what == "velocity of" else f"{what}[{i}]"
                raise BundleError(
                    f"replaying {GOLDEN} differs first at step {t} of {steps}, {which}: "
                    f"{received[i]!r}, recorded {expected[i]!r}, allowed difference {allowed}"
                )
            worst = max(worst, float(error.max(initial=0.0)))
    return Replay(steps, worst)


# --- contents ------------------------------------------------------------------------------------


def _size(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise BundleError(f"{MANIFEST}: {where}: expected {low} to {high}, received {value!r}")
    return value


def _positive(value: Any, where: str, most: float) -> float:
    number = float(value) if type(value) in (int, float) and abs(value) < 1e300 else math.nan
    if not 0.0 < number <= most:
        raise BundleError(
            f"{MANIFEST}: {where}: expected a number above 0, up to {most:g}, received {value!r}"
        )
    return number


def _contract(manifest: dict[str, Any]) -> Contract:
    joints = get_entry(manifest, "joints", dict)
    names = get_entry(joints, "names", list, "joints")
    limits = get_entry(joints, "velocity_limits", list, "joints")
    if not 1 <= len(names) <= MAX_JOINTS or len(set(map(str, names))) != len(names):
        raise BundleError(f"{MANIFEST}: joints.names: expected 1 to {MAX_JOINTS} different names")
    if not all(isinstance(name, str) for name in names) or len(limits) != len(names):
        raise BundleError(f"{MANIFEST}: joints: expected one name and one velocity limit a joint")
    camera = get_entry(manifest, "camera", dict)
    control = get_entry(manifest, "control", dict)
    proprio = get_entry(manifest, "proprio", dict)
    recurrent = get_entry(manifest, "recurrent", dict)
    shape = get_entry(recurrent, "shape", list, "recurrent")
    if len(shape) != 2 or shape[0] != 1:
        raise BundleError(f"{MANIFEST}: recurrent.shape: expected [1, H], received {shape}")
    return Contract(
        task=get_entry(manifest, "task", str),
        joint_names=tuple(names),
        velocity_limits=np.array(
            [_positive(v, "joints.velocity_limits", MAX_VELOCITY) for v in limits]
        ),
        control_rate_hz=_positive(control.get("rate_hz"), "control.rate_hz", MAX_RATE),
        height=_size(camera.get("height"), "camera.height", 1, MAX_SIDE),
        width=_size(camera.get("width"), "camera.width", 1, MAX_SIDE),
        proprio_dim=_size(proprio.get("size"), "proprio.size", 1, MAX_PROPRIO),
        memory=_size(shape[1], "recurrent.shape[1]", 1, MAX_MEMORY),
        refresh_steps=_size(
            camera.get("refresh_period_steps"), "camera.refresh_period_steps", 1, MAX_STEPS
        ),
        fovy_deg=_positive(camera.get("fovy_deg"), "camera.fovy_deg", 179.0),
        episode_s=_size(control.get("episode_steps"), "control.episode_steps", 1, MAX_STEPS)
        / _positive(control.get("rate_hz"), "control.rate_hz", MAX_RATE),
        start=_start(manifest, len(names)),
    )


def _start(manifest: dict[str, Any], joints: int) -> np.ndarray | None:
    """(A,) rad; None of a bundle from before it was told, and of a task with a start of its own."""
    if manifest.get("start") is None:
        return None
    start = get_entry(manifest, "start", dict)
    told = {}
    for key, low, high in (("positions", -MAX_ANGLE, MAX_ANGLE), ("spread", 0.0, math.pi)):
        values = get_entry(start, key, list, "start")
        fine = [type(v) in (int, float) and low <= v <= high for v in values]  # NaN is not
        if len(values) != joints or not all(fine):
            raise BundleError(
                f"{MANIFEST}: start.{key}: expected {joints} numbers from {low:.3g} to {high:.3g} "
                f"rad, one a joint, received {values!r}"
            )
        told[key] = np.array(values, dtype=np.float64)
    return told["positions"]


def _recorded_start(
    golden: dict[str, np.ndarray], manifest: dict[str, Any], contract: Contract
) -> np.ndarray | None:
    """(A,) rad from -pi to pi, the middle of where golden episodes began; None if proprio.entries
    do not name the sine and the cosine of every joint."""
    entries = manifest["proprio"].get("entries")
    names = [(f"sin({name})", f"cos({name})") for name in contract.joint_names]
    known = isinstance(entries, list) and len(entries) == contract.proprio_dim
    if not known or not all(sin in entries and cos in entries for sin, cos in names):
        return None
    began = golden["proprio"][golden["episode_start"]].astype(np.float64).mean(axis=0)
    places = [(entries.index(sin), entries.index(cos)) for sin, cos in names]
    return np.array([math.atan2(began[sin], began[cos]) for sin, cos in places])


def _golden(content: bytes, contract: Contract) -> dict[str, np.ndarray]:
    """The recorded episodes: T control steps, M frames."""
    try:
        golden = load_safetensors(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{GOLDEN} is malformed: {error}") from error
    steps = len(golden["proprio"]) if golden.get("proprio", np.zeros(())).ndim == 2 else 0
    frames = len(golden["frames"]) if golden.get("frames", np.zeros(())).ndim == 4 else 0
    joints = len(contract.joint_names)
    expected: dict[str, tuple[tuple[int, ...], type]] = {
        "frames": ((frames, contract.height, contract.width, 3), np.uint8),
        "frame_index": ((steps,), np.int64),
        "proprio": ((steps, contract.proprio_dim), np.float32),
        "episode_start": ((steps,), np.bool_),
        "joint_velocities": ((steps, joints), np.float32),
        "h_out": ((steps, contract.memory), np.float32),
    }
    if golden.keys() != expected.keys():
        raise BundleError(f"{GOLDEN} holds {sorted(golden)}, expected {sorted(expected)}")
    for name, (shape, dtype) in expected.items():
        array = golden[name]
        if array.shape != shape or array.dtype != dtype:
            raise BundleError(
                f"{GOLDEN}: {name}: expected {shape} {np.dtype(dtype)}, "
                f"received {array.shape} {array.dtype}"
            )
    if not MIN_GOLDEN_STEPS <= steps <= MAX_GOLDEN_STEPS:
        raise BundleError(
            f"{GOLDEN} holds {steps} steps, expected {MIN_GOLDEN_STEPS} to {MAX_GOLDEN_STEPS}"
        )
    index = golden["frame_index"]
    if index.min() < 0 or index.max() >= frames or not golden["episode_start"][0]:
        raise BundleError(f"{GOLDEN}: frame_index or episode_start does not fit the record")
    return golden


# --- ONNX Runtime --------------------------------------------------------------------------------

_OUTPUTS = ("joint_velocities", "h_out", "c_out", "inputs_finite")


def _check_sizes(model: bytes, graph: Graph, contract: Contract) -> None:
    """Raises BundleError if a step of the model would take more than a policy has use for.

    ONNX Runtime says itself which shapes it infers. Opening the model for use may run parts of it,
    in order to keep their results; for this it is opened without.
    """
    session = _open_session(with_all_outputs(model, graph), optimize=False)
    nodes = (*session.get_inputs(), *session.get_outputs())
    shapes = {node.name: node.shape for node in nodes}
    check_sizes(graph, shapes, contract.height * contract.width, len(model))


def _open_session(model: bytes, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    # One thread: a step takes a fraction of a millisecond, and waking others costs more; it also
    # leaves the cores to the control loop and fixes the order of every sum.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.disable_prepacking", "1")
    # Of bytes that could also be ONNX Runtime's own format, only what was looked into is read.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    # Errors arrive as exceptions; some are told by a logger that is no session's.
    options.log_severity_level = 4
    onnxruntime.set_default_logger_severity(4)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no narrower base class
        raise BundleError(f"{MODEL} cannot be loaded: {error}") from error


def _check_signature(session: onnxruntime.InferenceSession, contract: Contract) -> None:
    memory = [1, contract.memory]
    inputs = {
        "pixels": ([1, contract.height, contract.width, 3], "tensor(uint8)"),
        "proprio": ([1, contract.proprio_dim], "tensor(float)"),
        "h_in": (memory, "tensor(float)"),
        "c_in": (memory, "tensor(float)"),
    }
    outputs: dict[str, tuple[list[int], str]] = {
        "joint_velocities": ([1, len(contract.joint_names)], "tensor(float)"),
        "h_out": (memory, "tensor(float)"),
        "c_out": (memory, "tensor(float)"),
        "inputs_finite": ([], "tensor(bool)"),
    }
    for what, expected, nodes in (
        ("inputs", inputs, session.get_inputs()),
        ("outputs", outputs, session.get_outputs()),
    ):
        received = {node.name: (list(node.shape), node.type) for node in nodes}
        if received != expected:
            raise BundleError(f"{MODEL}: {what}: expected {expected}, received {received}")


def _describe_not_finite(feed: dict[str, np.ndarray]) -> str:
    for name in ("proprio", "h_in", "c_in"):
        wrong = ~np.isfinite(feed[name][0])
        if wrong.any():
            i = int(wrong.argmax())
            return (
                f"inputs are not finite: {name}[{i}] = {feed[name][0, i]}; "
                f"{int(wrong.sum())} such values in {name}"
            )
    return "inputs are not finite, says the policy"
