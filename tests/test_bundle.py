"""A bundle runs only if every byte of it is what was exported; the arm's side needs no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
import torch

from tests.bundles import (
    JOINTS,
    LIMITS,
    SIDE,
    Files,
    bundle_files,
    policy_step,
    refusal,
    resealed,
    write_files,
)
from visuomotor.export import PolicyStep, to_onnx
from visuomotor.runtime import Bundle, BundleError, files, load_bundle
from visuomotor.runtime.files import GOLDEN, MANIFEST, MODEL, parse_manifest, seal_manifest
from visuomotor.runtime.proprioception import entries, proprioception


@pytest.fixture(scope="module")
def step() -> PolicyStep:
    return policy_step(0)


@pytest.fixture(scope="module")
def good(step: PolicyStep) -> Files:
    return bundle_files(step, "lstm")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Files], Path]:
    return partial(write_files, tmp_path / "bundle")


@pytest.fixture
def bundle(good: Files, write: Callable[[Files], Path]) -> Bundle:
    return load_bundle(write(good))


def _inputs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return pixels, rng.normal(size=24).astype(np.float32)


# --- running -------------------------------------------------------------------------------------


def test_runtime_follows_torch_over_2000_steps_with_resets(bundle: Bundle, step: PolicyStep):
    rng = np.random.default_rng(3)
    worst = 0.0
    with torch.no_grad():
        for t in range(2000):
            if t % 170 == 0:
                h, c = step.initial_hidden()
                bundle.reset()
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            proprio = rng.normal(scale=2.0, size=24).astype(np.float32)
            received = bundle.step(pixels, proprio)
            raw = torch.from_numpy(pixels).unsqueeze(0), torch.from_numpy(proprio).unsqueeze(0)
            expected, h, c, _ = step(*raw, h, c)
            worst = max(worst, float(np.abs(received - expected[0].numpy()).max()))
    assert worst < 1e-5


def test_loading_replays_whole_golden_episodes(bundle: Bundle, good: Files):
    golden = safetensors.numpy.load(good[GOLDEN])
    assert bundle.replay.steps == 240  # four episodes of 60 steps are the first 200 or more
    assert golden["episode_start"].nonzero()[0].tolist() == [0, 60, 120, 180]
    assert bundle.replay.max_error < 1e-5
    assert len(golden["frames"]) == 60  # a frame that is held for 4 steps is stored once


def test_velocities_reach_the_limits_and_never_pass_them(bundle: Bundle):
    reached = np.zeros(9)
    for seed in range(100):
        velocities = bundle.step(*_inputs(seed))
        assert velocities.shape == (9,)
        assert velocities.dtype == np.float32
        reached = np.maximum(reached, np.abs(velocities))
    np.testing.assert_allclose(reached, LIMITS.numpy(), rtol=1e-6)


def test_step_remembers_and_reset_forgets(bundle: Bundle):
    first = bundle.step(*_inputs(0))
    second = bundle.step(*_inputs(0))
    assert not np.allclose(first, second, atol=1e-4)
    bundle.reset()
    np.testing.assert_array_equal(bundle.step(*_inputs(0)), first)


def test_infer_leaves_the_memory_of_step_alone(bundle: Bundle):
    first = bundle.step(*_inputs(0))
    second = bundle.step(*_inputs(1))
    bundle.reset()
    np.testing.assert_array_equal(bundle.step(*_inputs(0)), first)
    bundle.infer(*_inputs(7), bundle.initial_hidden())
    np.testing.assert_array_equal(bundle.step(*_inputs(1)), second)


def test_a_feed_forward_policy_runs_through_the_same_interface(write: Callable[[Files], Path]):
    step = policy_step(1, recurrent=False)
    bundle = load_bundle(write(bundle_files(step, "none")))
    assert bundle.contract.memory == 1
    first = bundle.step(*_inputs(0))
    bundle.step(*_inputs(1))
    np.testing.assert_array_equal(bundle.step(*_inputs(0)), first)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_reported_and_not_remembered(bundle: Bundle, value: float):
    first = bundle.step(*_inputs(0))
    second = bundle.step(*_inputs(1))
    bundle.reset()
    bundle.step(*_inputs(0))
    pixels, proprio = _inputs(5)
    proprio[3] = value
    with pytest.raises(BundleError, match=r"not finite: proprio\[3\]"):
        bundle.step(pixels, proprio)
    np.testing.assert_array_equal(bundle.step(*_inputs(1)), second)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["proprio", "h_in", "c_in"])
def test_the_graph_itself_says_so_and_commands_rest(good: Files, name: str, value: float):
    session = onnxruntime.InferenceSession(good[MODEL], providers=["CPUExecutionProvider"])
    pixels, proprio = _inputs(0)
    memory = np.full((1, 12), 0.25, np.float32)
    feed = {"pixels": pixels[None], "proprio": proprio[None], "h_in": memory, "c_in": memory}
    velocities, h, c, finite = session.run(None, feed)
    assert bool(finite)
    assert np.abs(velocities).max() > 0.0
    feed[name] = feed[name].copy()
    feed[name][0, 5] = value
    velocities, h, c, finite = session.run(None, feed)
    assert not bool(finite)
    np.testing.assert_array_equal(velocities, np.zeros((1, 9)))
    np.testing.assert_array_equal(h, feed["h_in"])
    np.testing.assert_array_equal(c, feed["c_in"])


def test_wrong_shapes_and_types_are_refused_with_what_is_expected(bundle: Bundle):
    pixels, proprio = _inputs(0)
    for wrong in (pixels.transpose(2, 0, 1), pixels[:-1], pixels.astype(np.float32)):
        with pytest.raises(BundleError, match=r"pixels: expected \(20, 20, 3\) uint8"):
            bundle.step(wrong, proprio)
    for wrong in (proprio[:-1], proprio[None], proprio.astype(np.int64)):
        with pytest.raises(BundleError, match=r"proprio: expected \(24,\)"):
            bundle.step(pixels, wrong)


def test_inference_uses_one_thread(bundle: Bundle):
    options = bundle._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def named(entries: list[str], **start: Any) -> dict[str, Any]:
    """Entries of policy.json."""
    return {"proprio": {"size": 24, "entries": entries}, **({"start": start} if start else {})}


SPREAD = [0.08] * 6 + [0.1] * 3


def test_the_start_is_told_to_the_last_digit(good: Files, write: Callable[[Files], Path]):
    angles = [0.1 + 0.2, -1.727, 3.623, 1e-17, 0.0, -9.999, 0.3, 2, 1]
    told = named(entries(tuple(JOINTS)), positions=angles, spread=SPREAD)
    start = load_bundle(write(resealed(good, {}, **told))).contract.start
    assert start is not None
    assert start.tolist() == angles


def test_a_start_that_is_not_told_is_that_of_the_golden_episodes(
    good: Files, write: Callable[[Files], Path]
):
    golden = {k: v.copy() for k, v in safetensors.numpy.load(good[GOLDEN]).items()}
    angles = np.linspace(-3.0, 3.0, 9)
    # Two of four on either side, of the first across the seam at pi.
    angles[0] = np.pi
    for row, aside in zip(golden["episode_start"].nonzero()[0], (0.05, -0.05) * 2, strict=True):
        golden["proprio"][row] = proprioception(angles + aside, np.zeros(9))
    bundle = load_bundle(write(good))
    for t in range(240):  # what the policy makes of it
        if golden["episode_start"][t]:
            hidden = bundle.initial_hidden()
        frame = golden["frames"][golden["frame_index"][t]]
        velocities, hidden = bundle.infer(frame, golden["proprio"][t], hidden)
        golden["joint_velocities"][t], golden["h_out"][t] = velocities, hidden[0][0]
    changed = {GOLDEN: safetensors.numpy.save(golden)}
    told = named(entries(tuple(JOINTS)))
    start = load_bundle(write(resealed(good, changed, **told))).contract.start
    assert start is not None
    turns = (start - angles) / (2 * np.pi)
    assert turns == pytest.approx(np.round(turns), abs=1e-6)
    assert np.abs(start).max() <= np.pi
    null = {**told, "start": None}
    again = load_bundle(write(resealed(good, changed, **null))).contract.start
    np.testing.assert_array_equal(again, start)
    for unknown in ({"size": 24}, {"size": 24, "entries": ["x"] * 24}):
        files = resealed(good, changed, proprio=unknown)
        assert load_bundle(write(files)).contract.start is None


# --- damage --------------------------------------------------------------------------------------


def test_no_bit_of_policy_json_may_flip(good: Files):
    content = good[MANIFEST]
    parse_manifest(content)
    for at in range(len(content)):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            with pytest.raises(BundleError):
                parse_manifest(bytes(flipped))


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
def test_flipped_bits_are_found(name: str, good: Files, write: Callable[[Files], Path]):
    rng = np.random.default_rng(11)
    for at in rng.integers(0, len(good[name]), 20):
        flipped = bytearray(good[name])
        flipped[at] ^= 1 << int(rng.integers(8))
        message = refusal(write({**good, name: bytes(flipped)}))
        assert name in message


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
def test_truncated_files_are_found(name: str, good: Files, write: Callable[[Files], Path]):
    for length in (0, 1, len(good[name]) // 2, len(good[name]) - 1):
        assert name in refusal(write({**good, name: good[name][:length]}))


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
def test_missing_files_are_named(name: str, good: Files, write: Callable[[Files], Path]):
    folder = write(good)
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


def test_files_of_another_policy_are_found(good: Files, write: Callable[[Files], Path]):
    golden = safetensors.numpy.load(good[GOLDEN])
    other = to_onnx(policy_step(8), golden)
    assert "is not the file that policy.json describes" in refusal(write({**good, MODEL: other}))
    # Even with hashes that agree, the golden episode tells.
    message = refusal(write(resealed(good, {MODEL: other})))
    assert "differs first at step 0 of 240, velocity of joint_" in message


def test_no_folder_is_no_bundle(tmp_path: Path):
    assert "is no folder" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("record", "error", "accepted"),
    [
        ("joint_velocities", 5e-6, True),
        ("joint_velocities", 2e-5, False),
        ("joint_velocities", np.nan, False),
        ("joint_velocities", np.inf, False),
        ("h_out", 3e-5, True),
        ("h_out", 1e-4, False),
        ("h_out", np.nan, False),
    ],
)
def test_replay_names_the_first_step_that_differs(
    record: str, error: float, accepted: bool, good: Files, write: Callable[[Files], Path]
):
    golden = safetensors.numpy.load(good[GOLDEN])
    golden[record][123:, 4] += np.float32(error)
    folder = write(resealed(good, {GOLDEN: safetensors.numpy.save(golden)}))
    if accepted:
        assert load_bundle(folder).replay.max_error > 1e-6
    else:
        where = "velocity of joint_4" if record == "joint_velocities" else "memory h[4]"
        assert f"differs first at step 123 of 240, {where}" in refusal(folder)


def _cut(golden: dict[str, np.ndarray]) -> None:
    for name in golden.keys() - {"frames"}:
        golden[name] = golden[name][:199]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda g: g.pop("h_out"), "expected"),
        (lambda g: g.update(proprio=g["proprio"][:, :23]), "proprio: expected (240, 24) float32"),
        (lambda g: g.update(proprio=g["proprio"].astype(np.float64)), "received (240, 24) float64"),
        (lambda g: g.update(frames=g["frames"][:, :-1]), "frames: expected"),
        (lambda g: g["frame_index"].__setitem__(0, -1), "does not fit"),
        (lambda g: g["frame_index"].__setitem__(0, 60), "does not fit"),
        (lambda g: g["episode_start"].__setitem__(0, False), "does not fit"),
        (_cut, "holds 199 steps, expected 200"),
    ],
)
def test_malformed_golden_episodes_are_refused(
    spoil: Callable[[dict[str, np.ndarray]], Any],
    told: str,
    good: Files,
    write: Callable[[Files], Path],
):
    golden = {k: v.copy() for k, v in safetensors.numpy.load(good[GOLDEN]).items()}
    spoil(golden)
    content = {k: np.ascontiguousarray(v) for k, v in golden.items()}
    folder = write(resealed(good, {GOLDEN: safetensors.numpy.save(content)}))
    assert told in refusal(folder)


def test_an_unknown_schema_version_is_refused(
    good: Files, write: Callable[[Files], Path], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patched:
        patched.setattr(files, "SCHEMA_VERSION", 2)
        content = {name: good[name] for name in (MODEL, GOLDEN)}
        manifest = {
            k: v
            for k, v in files.json.loads(good[MANIFEST]).items()
            if k not in ("format", "schema_version")
        }
        newer = seal_manifest(manifest, content)
    assert "schema version 2 is unknown here, 1 is known" in refusal(
        write({**good, MANIFEST: newer})
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b"[" * 100_000, "no strict JSON"),
        (b"\xff\xfe", "no strict JSON"),
        (b"[]", "expected an object"),
        (b'{"format": "other"}', "expected an object"),
    ],
)
def test_anything_but_strict_json_is_refused(text: bytes, told: str):
    with pytest.raises(BundleError, match=told):
        parse_manifest(text)


@pytest.mark.parametrize(
    ("entry", "value", "told"),
    [
        ("joints", {"names": JOINTS, "velocity_limits": [1.0] * 8}, "one velocity limit a joint"),
        ("joints", {"names": JOINTS, "velocity_limits": [0.0] * 9}, "expected a number above 0"),
        ("joints", {"names": JOINTS, "velocity_limits": [1e308] * 9}, "up to 100"),
        ("control", {"rate_hz": 2**31}, "up to 1000"),
        ("joints", {"names": ["a"] * 9, "velocity_limits": [1.0] * 9}, "different names"),
        ("joints", {"names": JOINTS[:8], "velocity_limits": [1.0] * 8}, "expected"),
        ("joints", [], "joints: expected dict, received list"),
        ("camera", {"height": 1 << 40, "width": SIDE}, "camera.height: expected 1 to 1024"),
        ("camera", {"height": SIDE}, "camera.width"),
        ("control", {"rate_hz": -20.0}, "control.rate_hz"),
        ("recurrent", {"shape": [1, 10**9]}, "expected 1 to 4096"),
        ("recurrent", {"shape": [2, 12]}, "expected [1, H]"),
        ("proprio", {"size": True}, "proprio.size"),
        ("start", [], "start: expected dict, received list"),
        ("start", {"spread": SPREAD}, "start.positions is missing"),
        ("start", {"positions": [0.0] * 9}, "start.spread is missing"),
        ("start", {"positions": [0.0] * 8, "spread": SPREAD}, "start.positions: expected 9 num"),
        ("start", {"positions": [11.0] * 9, "spread": SPREAD}, "from -10 to 10 rad"),
        ("start", {"positions": [True] * 9, "spread": SPREAD}, "start.positions"),
        ("start", {"positions": ["0"] * 9, "spread": SPREAD}, "start.positions: expected 9"),
        ("start", {"positions": [0.0] * 9, "spread": [-0.1] * 9}, "start.spread: expected 9"),
        ("start", {"positions": [0.0] * 9, "spread": [3.2] * 9}, "from 0 to 3.14 rad"),
        ("start", {"positions": [0.0] * 9, "spread": 0.1}, "start.spread: expected list"),
    ],
)
def test_impossible_facts_are_refused(
    entry: str, value: Any, told: str, good: Files, write: Callable[[Files], Path]
):
    assert told in refusal(write(resealed(good, {}, **{entry: value})))


# --- tricks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/policy.onnx", "extra.py"])
def test_only_the_files_of_a_bundle_are_ever_opened(
    name: str, good: Files, write: Callable[[Files], Path], tmp_path: Path
):
    (tmp_path / "outside").write_bytes(b"")
    content = {MODEL: good[MODEL], GOLDEN: good[GOLDEN], name: b""}
    manifest = seal_manifest(parse_manifest(good[MANIFEST]), content)
    folder = write({**good, MANIFEST: manifest})
    assert "which is no file of a bundle" in refusal(folder)


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
def test_links_pipes_and_folders_are_no_files(
    name: str, good: Files, write: Callable[[Files], Path], tmp_path: Path
):
    folder = write(good)
    target = folder / name
    target.rename(tmp_path / "real")
    target.symlink_to(tmp_path / "real")
    assert "is a link" in refusal(folder)
    target.unlink()
    os.mkfifo(target)
    assert "is no plain file" in refusal(folder)
    target.unlink()
    target.mkdir()
    assert name in refusal(folder)


@pytest.mark.parametrize("name", [MODEL, GOLDEN, MANIFEST])
def test_oversized_files_are_not_read(name: str, good: Files, write: Callable[[Files], Path]):
    folder = write(good)
    os.truncate(folder / name, 1 << 40)  # sparse: takes no room on the disk
    assert "bytes, at most" in refusal(folder)


def test_messages_are_one_short_line():
    message = str(BundleError("a\nb\x1b[31m\t c" + "d" * 1000))
    assert message.startswith("a b [31m c")
    assert len(message) == 500


def test_the_arms_side_loads_neither_torch_nor_mujoco(good: Files, write: Callable[[Files], Path]):
    program = (
        "import sys, numpy as np\n"
        "from visuomotor.runtime import load_bundle\n"
        f"bundle = load_bundle({str(write(good))!r})\n"
        f"bundle.step(np.zeros(({SIDE}, {SIDE}, 3), np.uint8), np.zeros(24, np.float32))\n"
        "print(*sorted(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    modules = set(done.stdout.split())
    assert "visuomotor.runtime.bundle" in modules
    assert not modules & {"torch", "mujoco", "onnx", "cv2", "scipy", "dm_control"}
    own = {m for m in modules if m.startswith("visuomotor.")}
    assert all(m.startswith("visuomotor.runtime") for m in own)
