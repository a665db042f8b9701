"""Demonstration files in robomimic's HDF5 layout, and what training draws from them.

    data                       attrs: total, env_args (JSON)
    data/demo_<i>              attrs: num_samples, model_file (MJCF); seed, success, or none of them
    data/demo_<i>/states       (T, 1 + nq + nv): time [s], qpos, qvel before the action
    data/demo_<i>/actions      (T, 9) joint velocities in [-1, 1]; may be missing in foreign files
    data/demo_<i>/rewards, dones   (T,)
    data/demo_<i>/stages       (T,) index of the task's stage; may be missing in foreign files
    data/demo_<i>/obs/proprio, obs/object_features   (T, ...); may be missing: derived from states

Knows no simulator and no network.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from visuomotor import __version__
from visuomotor.errors import UserError
from visuomotor.files import write_atomic

UNTOLD_CONTROL_DT = 0.05  # s, where a file does not say
ACTION_TOLERANCE = 1e-3  # beyond [-1, 1]: rounding of other people's files
MAX_NUMBERS = 100_000_000  # in a dataset: beyond it the shape is damage, not data
LARGEST_STATE = 1e4  # m, rad, m/s or rad/s: beyond it a number is damage
LARGEST_PLACE = 100.0  # m from the origin, along an axis, that a prop may have rolled to
QUATERNION_TOLERANCE = 0.1  # of its norm, from 1: rounding and other people's files
MIN_STD = 1e-2  # floor of a statistic's deviation, in units of the value; constants stay finite
SHARE_SMOOTHING = 0.01  # weight of each new episode in the average that moves the curriculum
_DEMO_NAME = re.compile(r"demo_(\d+)")


@dataclass(frozen=True)
class Demonstration:
    """One episode; T steps, each as it was before its action."""

    states: np.ndarray  # (T, nq + nv) float64
    actions: np.ndarray | None  # (T, A) float32 in [-1, 1]
    rewards: np.ndarray  # (T,) float32
    dones: np.ndarray  # (T,) bool
    stages: np.ndarray | None  # (T,) int64
    proprio: np.ndarray | None  # (T, 24) float32
    features: np.ndarray | None  # (T, F) float32
    seed: int = -1  # the episode's number; -1: unknown
    success: bool = True


@dataclass(frozen=True)
class Demonstrations:
    """Episodes of one task."""

    task: str
    control_dt: float  # s
    demos: list[Demonstration]
    model_xml: str = ""

    def __len__(self) -> int:
        return len(self.demos)

    @property
    def total_steps(self) -> int:
        return sum(len(demo.states) for demo in self.demos)


@dataclass(frozen=True)
class Scene:
    """What a file's numbers must fit; None: whatever they are."""

    state_dim: int | None = None  # nq + nv
    action_dim: int | None = 9
    proprio_dim: int | None = None
    features_dim: int | None = None
    num_stages: int | None = None
    # Where in a state a prop's place (m) begins, with its unit quaternion behind it.
    free_joints: tuple[int, ...] = ()


# --- writing --------------------------------------------------------------------------------------


def save_demonstrations(path: Path | str, demonstrations: Demonstrations) -> None:
    """Writes the file in one go: a failure leaves an older file of that name as it was.

    Raises UserError where the file cannot be written (a full disk, ...).
    """
    # In memory first: the HDF5 library does not survive a disk that fills up under it.
    # The format of HDF5 1.10 (2016) has checksums in its own structures, older ones have not.
    with h5py.File.in_memory(libver=("v110", "v110")) as file:
        _write(file, demonstrations)
        file.flush()
        content = file.id.get_file_image()
    try:
        write_atomic(path, content)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {error.strerror or error}; free some space, or name another "
            "place (XDG_CACHE_HOME for what is kept in the cache)"
        ) from error


def _write(file: h5py.File, demonstrations: Demonstrations) -> None:
    data = file.create_group("data")
    data.attrs["total"] = demonstrations.total_steps
    env_args = {
        "env_name": demonstrations.task,
        "env_version": __version__,
        "type": 1,  # robomimic's number for a robosuite-like environment
        "env_kwargs": {"task": demonstrations.task, "control_dt": demonstrations.control_dt},
    }
    # Bytes: text would lie in HDF5's global heap, which has no checksum and may hang when damaged.
    data.attrs["env_args"] = np.bytes_(json.dumps(env_args))
    model_xml = np.bytes_(demonstrations.model_xml.encode())
    for index, demo in enumerate(demonstrations.demos):
        group = data.create_group(f"demo_{index}")
        length = len(demo.states)
        group.attrs["num_samples"] = length
        group.attrs["model_file"] = model_xml
        group.attrs["seed"] = demo.seed
        group.attrs["success"] = demo.success
        time = np.arange(length)[:, None] * demonstrations.control_dt
        datasets = {
            "states": np.concatenate((time, demo.states), axis=1),
            "rewards": demo.rewards,
            "dones": np.asarray(demo.dones, dtype=np.int64),
            "actions": demo.actions,
            "stages": demo.stages,
            "obs/proprio": demo.proprio,
            "obs/object_features": demo.features,
        }
        for name, values in datasets.items():
            if values is not None:
                # With a checksum: a flipped bit is refused, not learned from.
                group.create_dataset(name, data=values, fletcher32=True)


# --- reading --------------------------------------------------------------------------------------


def load_demonstrations(
    path: Path | str,
    *,
    task: str | None = None,
    scene: Scene | None = None,
    control_dt: float | None = None,
) -> Demonstrations:
    """Reads a file and checks every part of it.

    task: refuse files that name another one. scene: what their numbers must fit. control_dt: s;
    refuse files of another one.
    Raises UserError naming the file, the key, what was found and what is expected.
    """
    path = Path(path)
    if not path.is_file():
        matter = "no such demonstration file"
        if path.exists():
            matter = "is a folder" if path.is_dir() else "is no plain file"
        raise UserError(
            f"{path}: {matter}; name an HDF5 file, or make one with visuomotor.demonstrate"
        )
    try:
        with h5py.File(path, "r") as file:
            return _read(_Reader(path, file), task, scene or Scene(), control_dt)
    except UserError:
        raise
    except Exception as error:  # what h5py raises on damage is of every kind
        facts = " ".join(str(error).split())
        raise UserError(
            f"{path}: cannot be read as HDF5 ({facts}); expected a whole file in robomimic's layout"
        ) from error


class _Reader:
    """Gets keys of an open file, or says what is the matter with them."""

    def __init__(self, path: Path, file: h5py.File):
        self._path = path
        self.file = file

    def fail(self, key: str, found: str, expected: str) -> UserError:
        return UserError(f"{self._path}: '{key}' {found}; expected {expected}")

    def group(self, key: str) -> h5py.Group:
        if key not in self.file:
            raise self.fail(key, "is missing", "a group, as in robomimic's layout")
        group = self.file[key]
        if not isinstance(group, h5py.Group):
            raise self.fail(key, "is a dataset", "a group")
        return group

    def array(self, key: str, shape: tuple[int | None, ...], dtype: Any) -> np.ndarray:
        """A dataset of finite numbers; None in `shape` allows any length."""
        wanted = "x".join("any" if n is None else str(n) for n in shape)
        if key not in self.file:
            raise self.fail(key, "is missing", f"a dataset of shape {wanted}")
        dataset = self.file[key]
        if not isinstance(dataset, h5py.Dataset):
            raise self.fail(key, "is a group", f"a dataset of shape {wanted}")
        found = dataset.shape
        if found is None:
            raise self.fail(key, "is empty", f"a dataset of shape {wanted}")
        fits = len(found) == len(shape) and all(
            n is None or n == m for n, m in zip(shape, found, strict=True)
        )
        if not fits:
            raise self.fail(key, f"has shape {'x'.join(map(str, found)) or 'scalar'}", wanted)
        if not 0 < math.prod(found) <= MAX_NUMBERS:
            shown = "x".join(map(str, found))
            raise self.fail(key, f"has shape {shown}", f"1 to {MAX_NUMBERS} numbers")
        if dataset.dtype.kind not in "fiub":
            raise self.fail(key, f"holds {dataset.dtype}", "numbers")
        values = dataset[()]
        self.check_rows(key, values, np.isfinite(values), "finite numbers")
        with np.errstate(all="ignore"):
            converted = np.asarray(values, dtype=dtype)
        if converted.dtype.kind == "f":
            self.check_rows(key, values, np.isfinite(converted), f"numbers of {converted.dtype}")
        elif converted.dtype.kind == "i":
            self.check_rows(key, values, converted == values, "whole numbers")
        return converted

    def check_rows(self, key: str, values: np.ndarray, valid: np.ndarray, expected: str) -> None:
        """Raises for the first row of `values` that is not all `valid`."""
        if not valid.all():
            step = int(np.argmin(valid.reshape(len(valid), -1).all(axis=1)))
            raise self.fail(key, f"holds {values[~valid][0]} at step {step}", expected)

    def whole_number(self, key: str, name: str, default: int) -> int:
        """An attribute of a group."""
        value = np.asarray(self.file[key].attrs.get(name, default))
        if value.shape != () or value.dtype.kind not in "biu":
            raise self.fail(f"{key} (attribute {name})", f"is {value}", "a whole number")
        return int(value)

    def text(self, key: str, name: str, default: str) -> str:
        """An attribute of a group, stored as text or as bytes."""
        value = self.file[key].attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def optional(self, key: str, shape: tuple[int | None, ...], dtype: Any) -> np.ndarray | None:
        return self.array(key, shape, dtype) if key in self.file else None


def _read(
    reader: _Reader, task: str | None, scene: Scene, expected_dt: float | None
) -> Demonstrations:
    data = reader.group("data")
    name, control_dt = _env_args(reader, data, task, expected_dt)
    numbered = [(int(m[1]), key) for key in data if (m := _DEMO_NAME.fullmatch(key)) is not None]
    if not numbered:
        raise reader.fail("data", "holds no demonstration", "groups demo_0, demo_1, ...")
    demos, model_xml = [], ""
    for _, key in sorted(numbered):  # by number: demo_10 comes after demo_2
        group = reader.group(f"data/{key}")
        demos.append(_read_demo(reader, f"data/{key}", group, scene))
        model_xml = reader.text(f"data/{key}", "model_file", model_xml)
    widths = {demo.states.shape[1] for demo in demos}
    if len(widths) > 1:
        raise reader.fail("data/*/states", f"differ in width: {sorted(widths)}", "one scene")
    if not any(demo.success for demo in demos):
        raise reader.fail(
            "data/demo_* (attribute success)",
            f"is false in {len(demos)} of {len(demos)} demonstrations",
            "one that succeeded, at least: nothing is to be learned from failures alone",
        )
    return Demonstrations(name, control_dt, demos, model_xml)


def _env_args(
    reader: _Reader, data: h5py.Group, task: str | None, expected_dt: float | None
) -> tuple[str, float]:
    key = "data (attribute env_args)"
    if "env_args" not in data.attrs:
        raise reader.fail(key, "is missing", "JSON with env_name and env_kwargs")
    try:
        env_args = json.loads(data.attrs["env_args"])
        name = env_args["env_name"]
        control_dt = float(env_args.get("env_kwargs", {}).get("control_dt", UNTOLD_CONTROL_DT))
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        facts = " ".join(repr(error).split())
        raise reader.fail(key, f"cannot be read ({facts})", "JSON with env_name") from error
    if not 0.0 < control_dt < math.inf:
        raise reader.fail(key, f"says control_dt={control_dt}", "a positive number of seconds")
    if task is not None and name != task:
        raise reader.fail(key, f"names the task '{name}'", f"'{task}'")
    if expected_dt is not None and not math.isclose(control_dt, expected_dt, rel_tol=1e-6):
        raise reader.fail(
            key,
            f"has control_dt={control_dt:g} s ({UNTOLD_CONTROL_DT} where it says none)",
            f"env.control_dt={expected_dt:g}: actions are not the same at another rate",
        )
    return str(name), control_dt


def _read_demo(reader: _Reader, key: str, group: h5py.Group, scene: Scene) -> Demonstration:
    states = reader.array(f"{key}/states", (None, None), np.float64)
    width = states.shape[1] - 1
    if width < 1:
        raise reader.fail(f"{key}/states", "has 1 column", "time and the state behind it")
    if scene.state_dim not in (None, width):
        raise reader.fail(
            f"{key}/states",
            f"has {width} numbers behind the time",
            f"{scene.state_dim}, as this scene has: record with visuomotor.demonstrate, or with "
            "the same robot and props",
        )
    reader.check_rows(  # MuJoCo would put a state of its own in the place of such a one
        f"{key}/states",
        states[:, 1:],
        np.abs(states[:, 1:]) <= LARGEST_STATE,
        f"qpos in m, rad and unit quaternions, qvel in m/s and rad/s, all below {LARGEST_STATE:g}",
    )
    _check_props(reader, f"{key}/states", states[:, 1:], scene)
    length = len(states)
    declared = reader.whole_number(key, "num_samples", length)
    if declared != length:
        found = f"says {declared} where states has {length} rows"
        raise reader.fail(f"{key} (attribute num_samples)", found, "the same number")
    actions = reader.optional(f"{key}/actions", (length, scene.action_dim), np.float32)
    if actions is not None:
        excess = np.abs(actions).max()
        if excess > 1.0 + ACTION_TOLERANCE:
            raise reader.fail(f"{key}/actions", f"reaches {excess:.4g}", "values in [-1, 1]")
        actions = actions.clip(-1.0, 1.0)
    stages = reader.optional(f"{key}/stages", (length,), np.int64)
    if stages is not None and scene.num_stages is not None:
        reader.check_rows(
            f"{key}/stages",
            stages,
            (stages >= 0) & (stages < scene.num_stages),
            f"the task's stages, 0 to {scene.num_stages - 1}; or leave the key out",
        )
    proprio, features = f"{key}/obs/proprio", f"{key}/obs/object_features"
    rewards = reader.optional(f"{key}/rewards", (length,), np.float32)
    dones = reader.optional(f"{key}/dones", (length,), np.bool_)
    return Demonstration(
        states=states[:, 1:],  # without the time
        actions=actions,
        rewards=np.zeros(length, np.float32) if rewards is None else rewards,
        dones=np.zeros(length, np.bool_) if dones is None else dones,
        stages=stages,
        proprio=reader.optional(proprio, (length, scene.proprio_dim), np.float32),
        features=reader.optional(features, (length, scene.features_dim), np.float32),
        seed=reader.whole_number(key, "seed", -1),
        success=bool(reader.whole_number(key, "success", 1)),
    )


def _check_props(reader: _Reader, key: str, states: np.ndarray, scene: Scene) -> None:
    """Raises UserError for a prop that is nowhere near, or that has no orientation."""
    for begin in scene.free_joints:
        place, quaternion = states[:, begin : begin + 3], states[:, begin + 3 : begin + 7]
        reader.check_rows(
            key,
            place,
            np.abs(place) <= LARGEST_PLACE,
            f"the place of a prop (numbers {begin} to {begin + 2} of qpos) within "
            f"{LARGEST_PLACE:g} m of the origin",
        )
        norms = np.linalg.norm(quaternion, axis=1)
        fits = np.abs(norms - 1.0) <= QUATERNION_TOLERANCE
        if not fits.all():
            step = int(np.argmin(fits))
            raise reader.fail(
                key,
                f"holds a quaternion of norm {norms[step]:.4g} at step {step}",
                f"unit quaternions of the props (numbers {begin + 3} to {begin + 6} of qpos)",
            )


# Control steps kept after success: they show that a finished job is left alone.
STEPS_AFTER_SUCCESS = 30


def successful_part(success: np.ndarray) -> int:
    """success (T,) bool -> steps from the start to a little after success came to stay; 0 if the
    episode does not end in it."""
    if not success[-1]:
        return 0
    lasting = 0 if success.all() else len(success) - int(np.argmin(success[::-1]))
    return min(lasting + STEPS_AFTER_SUCCESS, len(success))


def successful_episode(columns: dict[str, np.ndarray], seed: int) -> Demonstration | None:
    """The successful part of one episode as a demonstration; None if it does not end in success.

    columns: (T, ...) of states, actions, rewards and success, and of what else a demonstration
    holds; what is missing is left to be derived from the states.
    """
    length = successful_part(columns["success"])
    if length == 0:
        return None
    dones = np.zeros(length, dtype=bool)
    dones[-1] = True
    part = {name: values[:length] for name, values in columns.items()}
    return Demonstration(
        states=part["states"],
        actions=part["actions"],
        rewards=part["rewards"],
        dones=dones,
        stages=part.get("stages"),
        proprio=part.get("proprio"),
        features=part.get("features"),
        seed=seed,
    )


def digest(demonstrations: Demonstrations) -> str:
    """SHA-256 of all that training takes from them: every step's state and action, in order."""
    whole = hashlib.sha256()
    for demo in demonstrations.demos:
        for values in (demo.states, demo.actions):
            whole.update(b"none" if values is None else f"{values.dtype}{values.shape}".encode())
            if values is not None:
                whole.update(np.ascontiguousarray(values).data)
    return whole.hexdigest()


# --- what training draws from them ----------------------------------------------------------------


class ResetState(NamedTuple):
    """Where an episode may start."""

    state: np.ndarray  # (nq + nv,)
    demo: int
    step: int


class ResetStates:
    """Start states from demonstrations (the curriculum of Zhu et al. 2018).

    stages: (T,) of each demonstration, as the task sees its states now.
    """

    def __init__(self, demonstrations: Demonstrations, stages: Sequence[Tensor]):
        self._demos = demonstrations.demos
        clusters: dict[int, list[tuple[int, int]]] = {}
        for demo, per_step in enumerate(stages):
            for step, stage in enumerate(per_step.tolist()):
                clusters.setdefault(int(stage), []).append((demo, step))
        self._clusters = [clusters[stage] for stage in sorted(clusters)]

    def sample(self, rng: np.random.Generator, by_stage: float) -> ResetState:
        """With probability `by_stage` a stage uniformly, then a state in it; else a demonstration
        uniformly, then a state uniform in time."""
        if rng.random() < by_stage:
            cluster = self._clusters[rng.integers(len(self._clusters))]
            demo, step = cluster[rng.integers(len(cluster))]
        else:
            demo = int(rng.integers(len(self._demos)))
            step = int(rng.integers(len(self._demos[demo].states)))
        return ResetState(self._demos[demo].states[step], demo, step)


class ShareSchedule:
    """The share of starts from the initial distribution: grows with the success from there."""

    def __init__(self, initial_share: float, final_share: float):
        self._initial, self._final = initial_share, final_share
        self._success = 0.0

    @property
    def value(self) -> float:
        return self._initial + (self._final - self._initial) * self._success

    def update(self, success: bool) -> None:
        """Takes in an episode that began from the initial distribution."""
        self._success += SHARE_SMOOTHING * (float(success) - self._success)

    def state_dict(self) -> dict[str, float]:
        return {"success": self._success}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._success = float(state["success"])


def normalization(values: Tensor) -> tuple[Tensor, Tensor]:
    """(M, D) -> mean and deviation, (D,) each; the deviation has a floor of MIN_STD."""
    values = torch.as_tensor(values).float()
    # A single row has no deviation of its own.
    std = values.std(dim=0, correction=min(1, len(values) - 1))
    return values.mean(dim=0), std.clamp(min=MIN_STD)
