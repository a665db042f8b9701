"""Demonstration files: round trips, other people's files, damage."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.recordings import WIDTH, some_demonstration, some_demonstrations
from visuomotor.demonstrations import (
    Demonstration,
    Demonstrations,
    Scene,
    digest,
    load_demonstrations,
    save_demonstrations,
)
from visuomotor.errors import UserError

ENV_ARGS = {"env_name": "stacking", "type": 1, "env_kwargs": {"control_dt": 0.05}}


def _assert_same(left: Demonstrations, right: Demonstrations) -> None:
    """All facts, and all arrays with their types, to the last bit."""
    assert (left.task, left.control_dt) == (right.task, right.control_dt)
    assert left.model_xml == right.model_xml
    for a, b in zip(left.demos, right.demos, strict=True):
        for field in fields(Demonstration):
            x, y = getattr(a, field.name), getattr(b, field.name)
            if isinstance(x, np.ndarray):
                assert isinstance(y, np.ndarray), field.name
                assert (x.dtype, x.shape) == (y.dtype, y.shape), field.name
                assert x.tobytes() == y.tobytes(), field.name
            else:
                assert (type(x), x) == (type(y), y), field.name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "demos.hdf5"


@pytest.fixture
def good(path: Path) -> Path:
    save_demonstrations(path, some_demonstrations())
    return path


# --- round trips --------------------------------------------------------------------------------


def test_what_was_saved_comes_back_exactly(path: Path) -> None:
    saved = some_demonstrations((5, 1, 8))
    save_demonstrations(path, saved)
    loaded = load_demonstrations(path, task="stacking", scene=Scene(state_dim=WIDTH))
    _assert_same(saved, loaded)
    assert (len(loaded), loaded.total_steps) == (3, 14)


def test_what_is_optional_may_be_missing(path: Path) -> None:
    bare = replace(some_demonstration(4, 0), actions=None, stages=None, proprio=None, features=None)
    saved = Demonstrations("lifting", 0.1, [bare])
    save_demonstrations(path, saved)
    _assert_same(saved, load_demonstrations(path, task="lifting"))


def test_a_digest_tells_any_other_step_action_or_order_and_survives_a_file(good: Path) -> None:
    demos = some_demonstrations()
    first, second = demos.demos
    assert digest(load_demonstrations(good)) == digest(demos)
    assert first.actions is not None
    others = [
        [second, first],
        [first],
        [replace(first, states=np.nextafter(first.states, 9.0)), second],
        [replace(first, actions=-first.actions), second],
        [replace(first, actions=None), second],
        [
            replace(first, states=first.states[:-1]),
            replace(second, states=np.concatenate((first.states[-1:], second.states))),
        ],
    ]
    digests = {digest(replace(demos, demos=other)) for other in (*others, demos.demos)}
    assert len(digests) == len(others) + 1


def test_demonstrations_keep_their_order_beyond_ten(path: Path) -> None:
    saved = some_demonstrations(tuple(range(1, 13)))  # names: demo_10 sorts before demo_2
    save_demonstrations(path, saved)
    loaded = load_demonstrations(path)
    assert [len(demo.states) for demo in loaded.demos] == list(range(1, 13))


def test_a_file_is_laid_out_as_robomimic_expects(good: Path) -> None:
    with h5py.File(good, "r") as file:
        data = file["data"]
        assert data.attrs["total"] == 13
        env_args = json.loads(data.attrs["env_args"])
        assert env_args["env_name"] == env_args["env_kwargs"]["task"] == "stacking"
        assert {"env_name", "type", "env_kwargs"} <= env_args.keys()
        assert list(data) == ["demo_0", "demo_1"]
        demo = data["demo_1"]
        assert demo.attrs["num_samples"] == 8
        assert demo.attrs["model_file"].decode() == "<mujoco model='é'/>"
        assert demo["actions"].shape == (8, 9)
        assert demo["states"].shape == (8, 1 + WIDTH)
        np.testing.assert_allclose(demo["states"][:, 0], 0.05 * np.arange(8))
        assert demo["dones"][()].tolist() == [0] * 7 + [1]
        assert set(demo["obs"]) == {"proprio", "object_features"}


# --- other people's files -----------------------------------------------------------------------


def _write_foreign(path: Path, *, demos: int = 2) -> None:
    """A file as robomimic's own tools write it, with more in it than is asked for."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({**ENV_ARGS, "env_version": "1.4.1"})
        data.attrs["total"] = 6 * demos
        for index in range(demos):
            group = data.create_group(f"demo_{index}")
            group.attrs["num_samples"] = 6
            group["states"] = rng.normal(size=(6, 1 + WIDTH))
            group["actions"] = rng.uniform(-1, 1, (6, 9))  # float64
            group["rewards"] = np.arange(6.0)
            group["dones"] = np.array([0, 0, 0, 0, 1, 1])
            group["next_obs/agentview_image"] = np.zeros((6, 8, 8, 3), dtype=np.uint8)
            group["obs/robot0_eef_pos"] = np.zeros((6, 3))
            group.create_dataset("datagen_info/name", data="x")
        file["mask/train"] = np.array([b"demo_0"])
        file["mask/valid"] = np.array([b"demo_1"])


def test_a_file_by_other_tools_is_read(path: Path) -> None:
    _write_foreign(path)
    loaded = load_demonstrations(path, task="stacking", scene=Scene(state_dim=WIDTH))
    with h5py.File(path, "r") as file:
        for index, demo in enumerate(loaded.demos):
            group = file[f"data/demo_{index}"]
            assert np.array_equal(demo.states, group["states"][:, 1:])
            assert demo.actions is not None and demo.actions.dtype == np.float32
            assert np.array_equal(demo.actions, group["actions"][()].astype(np.float32))
            assert demo.rewards.tolist() == [0, 1, 2, 3, 4, 5]
            assert demo.dones.tolist() == [False] * 4 + [True] * 2
            assert demo.stages is None and demo.proprio is None and demo.features is None
            assert (demo.seed, demo.success) == (-1, True)
    assert len(loaded) == 2


def test_states_alone_are_enough(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "lifting"})
        file["data/demo_3/states"] = np.ones((4, 3), dtype=np.float32)
        file["data/notes"] = "no demonstration"
    loaded = load_demonstrations(path)
    (demo,) = loaded.demos
    assert demo.states.tolist() == [[1.0, 1.0]] * 4
    assert demo.actions is None
    assert not demo.dones.any() and not demo.rewards.any()


def test_a_file_of_another_rate_is_refused_by_both_numbers(path: Path) -> None:
    save_demonstrations(path, replace(some_demonstrations(), control_dt=0.1))
    told = _refusal(path, control_dt=0.05)
    assert f"'{ARGS}' has control_dt=0.1 s" in told and "expected env.control_dt=0.05" in told
    assert load_demonstrations(path, control_dt=0.1 + 1e-9).control_dt == 0.1
    with h5py.File(path, "r+") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "stacking"})
    assert load_demonstrations(path, control_dt=0.05).control_dt == 0.05
    assert "has control_dt=0.05 s (0.05 where it says none)" in _refusal(path, control_dt=0.1)


def test_rounding_beyond_one_is_clipped(path: Path) -> None:
    _write_foreign(path, demos=1)
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][2, 3] = -1.0009
    (demo,) = load_demonstrations(path).demos
    assert demo.actions is not None and demo.actions[2, 3] == -1.0


# --- damage: one clear message ------------------------------------------------------------------


def _refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_demonstrations(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def _put(key: str, value: Any) -> Callable[[h5py.File], None]:
    """Another dataset in the place of `key`."""

    def change(file: h5py.File) -> None:
        del file[key]
        file[key] = value

    return change


def _set(key: str, at: Any, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[key][at] = value

    return change


def _delete(key: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]

    return change


def _group_in_place_of(key: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[key]
        file.create_group(key)

    return change


def _attribute(key: str, name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[key].attrs[name] = value

    return change


def _no_env_args(file: h5py.File) -> None:
    del file["data"].attrs["env_args"]


def _env_args(text: Any) -> Callable[[h5py.File], None]:
    return _attribute("data", "env_args", text)


STATES, ACTIONS = "data/demo_1/states", "data/demo_1/actions"
SAMPLES = "data/demo_1 (attribute num_samples)"
ARGS = "data (attribute env_args)"

DAMAGE: dict[str, tuple[Callable[[h5py.File], None], str, str]] = {
    # name: (change, key that the message names, what it says of it)
    "no data": (_delete("data"), "'data'", "is missing"),
    "data is a dataset": (_put("data", np.ones(3)), "'data'", "is a dataset"),
    "no demos": (
        lambda file: [file.pop(f"data/demo_{i}") for i in range(2)],
        "'data'",
        "holds no demonstration",
    ),
    "demo is a dataset": (_put("data/demo_1", np.ones(8)), "'data/demo_1'", "is a dataset"),
    "no states": (_delete(STATES), STATES, "is missing"),
    "states are a group": (_group_in_place_of(STATES), STATES, "is a group"),
    "states are flat": (_put(STATES, np.ones(8)), STATES, "has shape 8;"),
    "states are cubic": (_put(STATES, np.ones((8, 2, 2))), STATES, "has shape 8x2x2"),
    "states are one number": (_put(STATES, 1.0), STATES, "has shape scalar"),
    "states are null": (_put(STATES, h5py.Empty("f8")), STATES, "is empty"),
    "states are text": (_put(STATES, np.full((8, 8), b"x")), STATES, "holds |S1; expected numbers"),
    "states are complex": (_put(STATES, np.ones((8, 8), complex)), STATES, "holds complex128"),
    "states have gaps": (_set(STATES, (3, 2), np.nan), STATES, "holds nan at step 3"),
    "states are infinite": (_set(STATES, (7, 0), -np.inf), STATES, "holds -inf at step 7"),
    "states are absurd": (
        _set(STATES, (3, 2), -1e5),
        STATES,
        "holds -100000.0 at step 3; expected qpos in m",
    ),
    "states are time alone": (_put(STATES, np.ones((8, 1))), STATES, "has 1 column"),
    "no steps": (_put(STATES, np.ones((0, 8))), STATES, "has shape 0x8"),
    "no columns": (_put(STATES, np.ones((8, 0))), STATES, "has shape 8x0"),
    "widths differ": (_put(STATES, np.ones((8, 5))), "data/*/states", "differ in width: [4, 7]"),
    "too few samples": (
        _attribute("data/demo_1", "num_samples", 7),
        SAMPLES,
        "says 7 where states has 8",
    ),
    "samples are a fraction": (_attribute("data/demo_1", "num_samples", 8.0), SAMPLES, "is 8.0"),
    "samples are text": (_attribute("data/demo_1", "num_samples", "8"), SAMPLES, "is 8"),
    "samples are a list": (_attribute("data/demo_1", "num_samples", [8, 8]), SAMPLES, "[8 8]"),
    "samples are null": (
        _attribute("data/demo_1", "num_samples", h5py.Empty("i8")),
        SAMPLES,
        "a whole number",
    ),
    "seed is text": (_attribute("data/demo_1", "seed", "a"), "attribute seed", "is a"),
    "success is a list": (_attribute("data/demo_1", "success", [1, 0]), "attribute success", "[1"),
    "actions too large": (_set(ACTIONS, (0, 8), -1.5), ACTIONS, "reaches 1.5; expected values in"),
    "actions not finite": (_set(ACTIONS, (5, 8), np.nan), ACTIONS, "holds nan at step 5"),
    "actions too wide": (_put(ACTIONS, np.zeros((8, 10))), ACTIONS, "has shape 8x10; expected 8x9"),
    "actions too short": (_put(ACTIONS, np.zeros((7, 9))), ACTIONS, "has shape 7x9; expected 8x9"),
    "actions are a group": (_group_in_place_of(ACTIONS), ACTIONS, "is a group"),
    "rewards too long": (_put("data/demo_1/rewards", np.ones(9)), "demo_1/rewards", "has shape 9"),
    "rewards beyond float32": (
        _put("data/demo_1/rewards", np.full(8, 1e300)),
        "demo_1/rewards",
        "holds 1e+300 at step 0; expected numbers of float32",
    ),
    "dones as table": (_put("data/demo_1/dones", np.ones((8, 1))), "demo_1/dones", "has shape 8x1"),
    "stages of text": (_put("data/demo_1/stages", np.full(8, b"a")), "demo_1/stages", "holds |S1"),
    "stages between": (
        _put("data/demo_1/stages", np.full(8, 0.5)),
        "demo_1/stages",
        "holds 0.5 at step 0; expected whole numbers",
    ),
    "stages beyond int64": (
        _put("data/demo_1/stages", np.full(8, 1e30)),
        "demo_1/stages",
        "expected whole numbers",
    ),
    "proprio too short": (
        _put("data/demo_1/obs/proprio", np.ones((7, 24))),
        "obs/proprio",
        "has shape 7x24; expected 8xany",
    ),
    "features not finite": (
        _set("data/demo_1/obs/object_features", (2, 20), np.inf),
        "obs/object_features",
        "holds inf at step 2",
    ),
    "no env_args": (_no_env_args, ARGS, "is missing"),
    "env_args no JSON": (_env_args("{'env_name': 1"), ARGS, "cannot be read"),
    "env_args a list": (_env_args("[]"), ARGS, "cannot be read"),
    "env_args a number": (_env_args("3"), ARGS, "cannot be read"),
    "env_args null": (_env_args("null"), ARGS, "cannot be read"),
    "env_args an array": (_env_args([1, 2]), ARGS, "cannot be read"),
    "env_args without name": (_env_args('{"type": 1}'), ARGS, "cannot be read (KeyError"),
    "env_kwargs null": (_env_args('{"env_name": "x", "env_kwargs": null}'), ARGS, "cannot be read"),
    "control_dt of text": (
        _env_args('{"env_name": "x", "env_kwargs": {"control_dt": "fast"}}'),
        ARGS,
        "cannot be read (ValueError",
    ),
    "control_dt beyond float": (
        _env_args('{"env_name": "x", "env_kwargs": {"control_dt": 1%s}}' % ("0" * 400)),
        ARGS,
        "cannot be read (OverflowError",
    ),
    "control_dt not a number": (
        _env_args('{"env_name": "x", "env_kwargs": {"control_dt": NaN}}'),
        ARGS,
        "says control_dt=nan; expected a positive",
    ),
    "control_dt zero": (
        _env_args('{"env_name": "x", "env_kwargs": {"control_dt": 0}}'),
        ARGS,
        "says control_dt=0.0",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_message_with_file_and_key(good: Path, name: str) -> None:
    change, key, told = DAMAGE[name]
    load_demonstrations(good)
    with h5py.File(good, "r+") as file:
        change(file)
    message = _refusal(good)
    assert key in message
    assert told in message
    assert "; expected " in message


FEATURES, STAGES = "data/demo_1/obs/object_features", "data/demo_1/stages"
# A prop alone; the stages are those of the recordings.
PROP = Scene(
    state_dim=WIDTH, proprio_dim=24, features_dim=21, num_stages=4, free_joints=(0,), action_dim=9
)
MISFITS: dict[str, tuple[Callable[[h5py.File], None], str, str]] = {
    # name: (change, key that the message names, what it says of it)
    "features too narrow": (
        _put(FEATURES, np.ones((8, 20))),
        FEATURES,
        "has shape 8x20; expected 8x21",
    ),
    "proprio too wide": (
        _put("data/demo_1/obs/proprio", np.ones((8, 25))),
        "data/demo_1/obs/proprio",
        "has shape 8x25; expected 8x24",
    ),
    "a stage too many": (
        _set(STAGES, 5, 4),
        STAGES,
        "holds 4 at step 5; expected the task's stages, 0 to 3",
    ),
    "a stage below": (_set(STAGES, 5, -1), STAGES, "holds -1 at step 5; expected the task's"),
    "all zero": (_put(STATES, np.zeros((8, 8))), STATES, "holds a quaternion of norm 0 at step 0"),
    "no orientation": (
        _set(STATES, (3, slice(4, 8)), 0.0),
        STATES,
        "norm 0 at step 3; expected unit quaternions of the props (numbers 3 to 6 of qpos)",
    ),
    "no unit quaternion": (
        _set(STATES, (3, slice(4, 8)), 1.0),
        STATES,
        "holds a quaternion of norm 2 at step 3",
    ),
    "far away": (
        _set(STATES, (6, 2), -150.0),
        STATES,
        "holds -150.0 at step 6; expected the place of a prop (numbers 0 to 2 of qpos) within 100",
    ),
    "absurdly far away": (_set(STATES, (6, 2), 1e5), STATES, "holds 100000.0 at step 6"),
}


def _a_props() -> Demonstrations:
    """Recordings whose states are a prop's place and orientation."""
    made = some_demonstrations()
    demos = []
    for demo in made.demos:
        states = demo.states.copy()
        states[:, 3:] /= np.linalg.norm(states[:, 3:], axis=1, keepdims=True)
        demos.append(replace(demo, states=states))
    return replace(made, demos=demos)


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_the_scene_is_one_message_with_file_and_key(
    path: Path, name: str
) -> None:
    change, key, told = MISFITS[name]
    save_demonstrations(path, _a_props())
    _assert_same(_a_props(), load_demonstrations(path, scene=PROP))
    with h5py.File(path, "r+") as file:
        change(file)
    message = _refusal(path, scene=PROP)
    assert f"'{key}' " in message
    assert told in message


def test_what_a_scene_does_not_ask_for_may_be_missing_or_rounded(path: Path) -> None:
    save_demonstrations(path, _a_props())
    with h5py.File(path, "r+") as file:
        for key in (FEATURES, STAGES, "data/demo_1/obs/proprio"):
            del file[key]
        rounded = file[STATES][()].astype(np.float16)
        del file[STATES]
        file[STATES] = rounded
    assert len(load_demonstrations(path, scene=PROP)) == 2


def test_failures_alone_are_refused(path: Path) -> None:
    failed = [replace(demo, success=False) for demo in some_demonstrations().demos]
    save_demonstrations(path, replace(some_demonstrations(), demos=failed))
    message = _refusal(path)
    assert "'data/demo_* (attribute success)' is false in 2 of 2 demonstrations" in message
    assert "; expected one that succeeded" in message


def test_a_dataset_larger_than_any_recording_is_not_even_read(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        del file[STATES]
        # No values are stored: the shape alone asks for 80 TB.
        file.create_dataset(STATES, shape=(10**12, 10), dtype="f8", chunks=(1, 10))
    assert f"'{STATES}' has shape 1000000000000x10" in _refusal(good)


def test_another_task_and_another_scene_are_refused(good: Path) -> None:
    message = _refusal(good, task="lifting")
    assert "names the task 'stacking'; expected 'lifting'" in message
    message = _refusal(good, scene=Scene(state_dim=WIDTH + 2))
    assert "'data/demo_0/states' has 7 numbers behind the time; expected 9, as this" in message


def test_no_file_is_refused_with_what_makes_one(tmp_path: Path) -> None:
    assert "no such demonstration file; name an HDF5 file" in _refusal(tmp_path / "none.hdf5")
    assert "is a folder" in _refusal(tmp_path)
    assert "is no plain file" in _refusal(Path("/dev/null"))


@pytest.mark.parametrize("content", [b"", b"x", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04" * 500])
def test_a_file_of_another_kind_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "cannot be read as HDF5" in _refusal(path)


def _is_refused(path: Path, expected: Demonstrations) -> bool:
    """False if it loads as `expected`; any exception but UserError fails the test."""
    try:
        loaded = load_demonstrations(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return True
    _assert_same(expected, loaded)
    return False


def test_a_truncated_file_is_refused_at_any_length(good: Path) -> None:
    content = good.read_bytes()
    for length in (*range(0, len(content), 97), len(content) - 1):
        good.write_bytes(content[:length])
        assert _is_refused(good, some_demonstrations()), length


def _flip(content: bytes, at: int) -> bytes:
    flipped = bytearray(content)
    flipped[at] ^= 0x55
    return bytes(flipped)


def test_no_flipped_byte_goes_unseen(good: Path) -> None:
    content = good.read_bytes()
    positions = range(5, len(content), 41)
    refused = 0
    for at in positions:
        good.write_bytes(_flip(content, at))
        refused += _is_refused(good, some_demonstrations())
    # The others lie in gaps of the file.
    assert refused > 0.9 * len(positions)


def test_damage_to_a_file_without_checksums_is_never_a_crash(path: Path) -> None:
    _write_foreign(path)
    with h5py.File(path, "r+") as file:
        # HDF5 itself may hang on a damaged global heap, where text lies; bytes lie elsewhere.
        file["data"].attrs["env_args"] = np.bytes_(json.dumps(ENV_ARGS))
    content = path.read_bytes()
    outcomes = set()
    for at in range(7, len(content), 211):
        path.write_bytes(_flip(content, at))
        try:
            load_demonstrations(path)
            outcomes.add("loaded")
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            outcomes.add("refused")
    assert outcomes == {"loaded", "refused"}


# --- saving is all or nothing -------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("older", [True, False])
def test_a_save_that_fails_leaves_the_older_file_and_no_rest(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, older: bool
) -> None:
    if older:
        save_demonstrations(path, some_demonstrations())
    before = path.read_bytes() if older else None
    write = h5py.Group.create_dataset

    def fail_at_rewards(group: h5py.Group, name: str, **options: Any) -> Any:
        if name == "rewards":
            raise error
        return write(group, name, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", fail_at_rewards)
    with pytest.raises(type(error)):
        save_demonstrations(path, some_demonstrations((3,)))
    assert [entry.name for entry in path.parent.iterdir()] == ["demos.hdf5"] * older
    assert before is None or path.read_bytes() == before


def test_a_rename_that_fails_leaves_the_older_file_and_no_rest(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = good.read_bytes()

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"cannot write '.*demos.hdf5': No space left"):
        save_demonstrations(good, some_demonstrations((3,)))
    assert good.read_bytes() == before
    assert [entry.name for entry in good.parent.iterdir()] == ["demos.hdf5"]


def test_the_older_file_is_there_until_the_new_one_is_whole(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    write = h5py.Group.create_dataset

    def look(group: h5py.Group, name: str, **options: Any) -> Any:
        seen.append(load_demonstrations(good).total_steps)
        return write(group, name, **options)

    monkeypatch.setattr(h5py.Group, "create_dataset", look)
    save_demonstrations(good, some_demonstrations((3,)))
    assert set(seen) == {13}
    assert load_demonstrations(good).total_steps == 3
    assert [entry.name for entry in good.parent.iterdir()] == ["demos.hdf5"]
