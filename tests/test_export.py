"""An exported policy is the trained one, described by the facts of its own worlds, or nothing."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.runs import write_run
from visuomotor import bundle_facts, export, policy_files
from visuomotor.checkpoint import save_checkpoint
from visuomotor.config import ActorConfig, CameraConfig, Config, EnvConfig
from visuomotor.envs import make_env, robot
from visuomotor.errors import UserError
from visuomotor.overrides import to_yaml
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import PixelPolicy, make_actor
from visuomotor.runtime import BundleError, load_bundle
from visuomotor.runtime.bundle import MEMORY_TOLERANCE, TOLERANCE
from visuomotor.runtime.files import MANIFEST, MODEL, read_bundle

EPISODE_STEPS = 110
CONFIG = Config(
    task="lifting",
    camera=CameraConfig(height=24, width=32),  # not square: a swap of the sides would show
    actor=ActorConfig(visual_dim=16, proprio_dim=8, hidden_dim=12),
    env=EnvConfig(episode_steps=EPISODE_STEPS, num_threads=1),
)
EVALUATION = {"sims": "randomized", "episodes": 3, "successes": 1, "success_rate": 1 / 3}


def _actor(seed: int) -> PixelActor:
    torch.manual_seed(seed)
    actor = make_actor(CONFIG, 6)
    torch.nn.init.normal_(actor.mean_head.weight, std=1.0)  # an arm that moves
    return actor.eval()


@pytest.fixture(scope="module")
def actor() -> PixelActor:
    return _actor(0)


@pytest.fixture(scope="module")
def exported(actor: PixelActor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One export for all tests that only read it."""
    out = tmp_path_factory.mktemp("exported") / "bundle"
    provenance = {"run": "somewhere", "env_steps": 7}
    report = export.export_bundle(
        actor, CONFIG, out, EVALUATION, provenance, curve="env_steps,success_rate\n7,0.5\n"
    )
    assert report.path == out
    assert report.parity_error < 1e-5
    assert report.memory_error < 1e-5
    assert report.golden_steps == 2 * EPISODE_STEPS
    assert [entry.name for entry in out.parent.iterdir()] == ["bundle"]
    return out


@pytest.fixture(scope="module")
def facts(exported: Path) -> dict:
    return json.loads((exported / MANIFEST).read_text())


# --- what is written -----------------------------------------------------------------------------


def test_a_bundle_holds_what_is_needed_to_run_judge_and_go_on(exported: Path, facts: dict):
    assert {entry.name for entry in exported.iterdir()} == {
        "policy.onnx",
        "policy.json",
        "golden.safetensors",
        "weights.safetensors",
        "config.yaml",
        "evaluation.json",
        "curve.csv",
    }
    assert json.loads((exported / "evaluation.json").read_text()) == EVALUATION
    assert facts["evaluation"] == EVALUATION
    assert facts["provenance"] == {"run": "somewhere", "env_steps": 7}
    assert facts["parity"]["steps"] == 2000
    assert facts["golden"] == {
        "steps": 2 * EPISODE_STEPS,
        "episodes": 2,
        "seed": 0,
        "tolerance": TOLERANCE,
        "memory_tolerance": MEMORY_TOLERANCE,
    }


def test_policy_json_states_joints_and_rates_of_the_model(facts: dict):
    assert facts["joints"]["names"] == list(robot.JOINTS)
    # Zhu et al.'s Jaco: 36 degrees/s for the first three joints, 48 for the wrist.
    limits = np.degrees(facts["joints"]["velocity_limits"][:6])
    np.testing.assert_allclose(limits, [36, 36, 36, 48, 48, 48], rtol=1e-3)
    assert facts["joints"]["velocity_limits"][6:] == [robot.FINGER_MAX_VELOCITY] * 3
    assert facts["control"]["rate_hz"] == 20.0
    assert len(facts["proprio"]["entries"]) == facts["proprio"]["size"] == 24
    assert facts["latency"]["camera_delay_s"] == [0.0, 0.1]
    assert facts["randomization"]["dynamics"]["prop_mass"] == [0.5, 2.0]


def test_policy_json_states_where_the_arm_begins(exported: Path, facts: dict):
    assert facts["start"]["positions"] == list(robot.START_QPOS)
    assert facts["start"]["spread"] == [0.08] * 6 + [0.1] * 3
    start = load_bundle(exported).contract.start
    assert start is not None
    assert start.tolist() == list(robot.START_QPOS), "full precision"
    env = make_env(CONFIG, num_envs=1, seed=0, render=False)
    began = np.stack(
        [env.task.start_state(np.random.default_rng(i))[env.jaco.qpos_ids] for i in range(200)]
    )
    off = np.abs(began - start).max(axis=0) / facts["start"]["spread"]
    assert (off <= 1.0).all()
    assert (off > 0.9).all(), "as far as that it goes"


def test_a_task_that_puts_the_arm_elsewhere_tells_no_start(monkeypatch: pytest.MonkeyPatch):
    env = make_env(CONFIG, num_envs=1, seed=0, render=False)
    assert bundle_facts._start(env) is not None
    start_state = env.task.start_state

    def elsewhere(rng: np.random.Generator) -> np.ndarray:
        state = start_state(rng)
        state[env.jaco.qpos_ids[3]] += 0.3
        return state

    monkeypatch.setattr(env.task, "start_state", elsewhere)
    assert bundle_facts._start(env) is None


def test_the_commit_is_dirty_with_changed_source_and_not_with_what_was_exported_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "visuomotor"
    shipped = package / "pretrained" / "lifting" / "policy.json"
    elsewhere = package / "envs" / "pretrained" / "scene.py"
    source, page = package / "bundle_facts.py", tmp_path / "docs.md"
    for path in (shipped, elsewhere, source, page):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("as committed")

    def git(*arguments: str) -> str:
        who = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(
            ("git", "-C", str(tmp_path), *who, *arguments), check=True, capture_output=True
        )
        return done.stdout.decode().strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "x")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setattr(bundle_facts, "__file__", str(source))
    assert bundle_facts._git_commit() == commit
    shipped.write_text("exported anew")
    (package / "new.py").write_text("untracked")
    assert bundle_facts._git_commit() == commit
    git("add", "-A", "--", str(shipped))
    assert bundle_facts._git_commit() == commit, "staged"
    for path in (source, elsewhere, page):
        path.write_text("changed")
        assert bundle_facts._git_commit() == f"{commit}-dirty"
        path.write_text("as committed")
        assert bundle_facts._git_commit() == commit


def test_policy_json_states_a_camera_that_sees_what_the_simulated_one_saw(facts: dict):
    camera = facts["camera"]
    assert camera["pos_w_m"] == list(CONFIG.camera.pos)
    intrinsics = camera["intrinsics"]
    # From the centre of the image to its upper edge is half of the field of view.
    half = math.degrees(math.atan(intrinsics["cy"] / intrinsics["fy"]))
    assert half == pytest.approx(CONFIG.camera.fovy / 2, abs=1e-9)
    assert "centre of the first pixel is at (0.5, 0.5)" in camera["pixel_convention"]
    # The optical axis (-z of the camera's frame) points at `lookat`.
    w, x, y, z = camera["quat_wxyz_camera_to_world"]
    backward = np.array([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)])
    wanted = np.array(CONFIG.camera.pos) - np.array(CONFIG.camera.lookat)
    np.testing.assert_allclose(backward, wanted / np.linalg.norm(wanted), atol=1e-12)


def test_golden_episodes_come_from_randomized_worlds_of_the_seed(exported: Path, actor: PixelActor):
    golden = safetensors.numpy.load_file(exported / "golden.safetensors")
    assert golden["episode_start"].nonzero()[0].tolist() == [0, EPISODE_STEPS]
    env = make_env(CONFIG, num_envs=1, seed=0)
    first = env.reset()
    np.testing.assert_array_equal(golden["proprio"][0], first.proprio[0].numpy())
    np.testing.assert_array_equal(golden["frames"][0], first.pixels[0].permute(1, 2, 0).numpy())
    # The recorded arm moves as the policy commands: what was recorded is its own doing.
    action = torch.from_numpy(golden["joint_velocities"][:1]) / env.jaco.velocity_limits
    second = env.step(action).observation
    np.testing.assert_allclose(golden["proprio"][1], second.proprio[0].numpy(), atol=1e-5)


def test_the_model_tells_nothing_of_the_machine_that_made_it(exported: Path):
    content = (exported / MODEL).read_bytes()
    for trace in (str(Path(export.__file__).parents[1]), ".py", "stack_trace"):
        assert trace.encode() not in content


# --- judged as trained ---------------------------------------------------------------------------


def _seen(generator: torch.Generator, num_envs: int) -> SimpleNamespace:
    shape = (num_envs, 3, CONFIG.camera.height, CONFIG.camera.width)
    return SimpleNamespace(
        pixels=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        new_frame=torch.ones(num_envs, dtype=torch.bool),
        proprio=torch.randn(num_envs, 24, generator=generator),
    )


def test_a_bundle_acts_as_its_actor_in_every_world(exported: Path, actor: PixelActor):
    loaded = policy_files.load_evaluated_policy(str(exported), torch.device("cpu"))
    assert loaded.bundle is not None
    assert loaded.config == CONFIG
    assert loaded.run is None
    bundle, torch_policy = loaded.policy(3), PixelPolicy(actor, 3)
    generator = torch.Generator().manual_seed(0)
    for t in range(30):
        seen = _seen(generator, 3)
        starts = torch.tensor([t == 0, t in (0, 11), t in (0, 20, 21)])
        expected = torch_policy.act(seen, starts).clamp(-1.0, 1.0)
        torch.testing.assert_close(bundle.act(seen, starts), expected, atol=1e-5, rtol=0.0)


def test_an_actor_with_maps_and_fused_heads_that_reads_from_its_hand_is_exported_as_it_acts(
    tmp_path: Path,
):
    shape = replace(CONFIG.actor, encoder="maps", from_hand=True, fused_heads=True)
    config = replace(CONFIG, actor=shape)
    torch.manual_seed(0)
    actor = make_actor(config, 6).eval()
    assert actor.fused_heads is not None
    torch.nn.init.normal_(actor.mean_head.weight, std=1.0)
    torch.nn.init.normal_(actor.fused_heads.net[-1].weight, std=0.1)
    report = export.export_bundle(actor, config, tmp_path / "bundle", EVALUATION, {})
    assert report.parity_error < 1e-5
    loaded, settings, _ = policy_files.load_policy(str(tmp_path / "bundle"))
    assert settings.actor.encoder == "maps"
    for name, weight in actor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight)


def test_weights_of_a_bundle_are_the_actors(exported: Path, actor: PixelActor):
    loaded, config, provenance = policy_files.load_policy(str(exported))
    assert config == CONFIG
    assert provenance["run"] == "somewhere"
    assert provenance["bundle_sha256"] == read_bundle(exported)[0]["self_sha256"]
    for name, value in actor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def _run(folder: Path, state: dict) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(CONFIG))
    save_checkpoint(folder / "checkpoints", 5, state, keep=3)
    return folder


def test_the_actor_of_a_run_is_loaded_with_its_records(tmp_path: Path, actor: PixelActor):
    run = _run(tmp_path / "run", {"policy": {"actor": actor.state_dict()}, "phase": "ril"})
    rows = [{"env_steps": 1, "fps": 2.5, "unlisted": 3}, {"env_steps": 2, "success_rate": 0.25}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded, config, provenance = policy_files.load_policy(str(run))
    assert (config, provenance["env_steps"], provenance["phase"]) == (CONFIG, 5, "ril")
    for name, value in actor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    records = policy_files.run_records(str(run))
    assert records.evaluation is None
    assert records.curve is not None
    curve = list(csv.DictReader(records.curve.splitlines()))
    assert [(row["env_steps"], row["fps"], row["success_rate"]) for row in curve] == [
        ("1", "2.5", ""),
        ("2", "", "0.25"),
    ]


def test_an_evaluation_that_is_no_strict_json_is_refused(tmp_path: Path, actor: PixelActor):
    run = _run(tmp_path / "run", {"policy": {"actor": actor.state_dict()}})
    (run / "evaluation.json").write_text('{"success_rate": NaN}')
    with pytest.raises(UserError, match=r"evaluation\.json is no strict JSON: NaN"):
        policy_files.run_records(str(run))


def test_a_run_that_still_trains_its_teacher_has_no_policy(tmp_path: Path):
    run = _run(tmp_path / "run", {"phase": "teacher"})
    with pytest.raises(UserError, match="no pixel policy yet"):
        policy_files.load_policy(str(run))


def test_a_run_of_a_teacher_alone_has_no_policy(tmp_path: Path):
    run = _run(tmp_path / "run", {"phase": "teacher"})
    alone = replace(CONFIG, distill=replace(CONFIG.distill, dagger_steps=0))
    (run / "config.yaml").write_text(to_yaml(alone))
    with pytest.raises(UserError, match=r"teacher alone .* distill\.teacher_run=.*/run$"):
        policy_files.load_policy(str(run))


def test_weights_of_another_size_are_refused_in_one_line(tmp_path: Path):
    small = make_actor(replace(CONFIG, actor=replace(CONFIG.actor, hidden_dim=8)), 6)
    run = _run(tmp_path / "run", {"policy": {"actor": small.state_dict()}})
    with pytest.raises(UserError, match="do not fit") as caught:
        policy_files.load_policy(str(run))
    assert "\n" not in str(caught.value)


def test_unknown_policies_are_answered_with_the_shipped_ones(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "stacking").symlink_to(exported)
    monkeypatch.setattr(policy_files, "PRETRAINED", tmp_path)
    assert policy_files.find_policy("stacking") == tmp_path / "stacking"
    with pytest.raises(UserError, match=r"'stakcing' \(did you mean stacking\?\).*: stacking$"):
        policy_files.find_policy("stakcing")
    with pytest.raises(UserError, match="neither a run"):
        policy_files.find_policy(str(tmp_path))


def test_a_bundle_without_weights_is_judged_but_not_trained_on(
    exported: Path, tmp_path: Path, write: Callable[..., Path]
):
    folder = write(tmp_path / "light", without=("weights.safetensors",))
    loaded = policy_files.load_evaluated_policy(str(folder), torch.device("cpu"))
    assert loaded.bundle is not None
    with pytest.raises(UserError, match=r"holds no weights\.safetensors"):
        policy_files.load_policy(str(folder))


def test_a_damaged_bundle_is_a_mistake_of_the_user(exported: Path, write, tmp_path: Path):
    folder = write(tmp_path / "damaged")
    (folder / MODEL).write_bytes(b"")
    with pytest.raises(UserError, match=r"policy\.onnx is not the file"):
        policy_files.load_policy(str(folder))
    with pytest.raises(UserError, match=r"policy\.onnx is not the file"):
        policy_files.load_evaluated_policy(str(folder), torch.device("cpu"))


# --- all or nothing ------------------------------------------------------------------------------


@pytest.fixture
def write(exported: Path) -> Callable[..., Path]:
    """write(folder, without=names) -> the exported bundle again, through `write_bundle`."""

    def again(out: Path, *, without: tuple[str, ...] = (), overwrite: bool = False) -> Path:
        manifest, files = read_bundle(exported)
        content = {name: value for name, value in files.items() if name not in without}
        content[MANIFEST] = export.seal_manifest(manifest, content)
        export.write_bundle(content, out, overwrite)
        return out

    return again


def test_a_policy_that_onnx_runtime_computes_differently_is_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # The model of the exported actor, handed out for another actor.
    model = (exported / MODEL).read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda step, golden: model)
    with pytest.raises(UserError, match=r"nothing was exported: replaying .*: seed=5"):
        export.export_bundle(_actor(1), CONFIG, tmp_path / "out", seed=4)
    assert list(tmp_path.iterdir()) == []


def test_parity_is_judged_with_a_memory_that_carries_on(exported: Path, actor: PixelActor):
    bundle = load_bundle(exported)
    golden = safetensors.numpy.load_file(exported / "golden.safetensors")
    env = make_env(CONFIG, num_envs=1, seed=0, render=False)
    step = export.PolicyStep(actor, env.jaco.velocity_limits)
    assert max(export.check_parity(step, bundle, golden, num_steps=50)) < 1e-5
    with torch.no_grad():  # a memory that leaks a little differently
        step.actor.lstm.weight_hh_l0[0, 0] += 1e-2
    with pytest.raises(BundleError, match=r"differs from torch by .* at recurrent step [1-9]"):
        export.check_parity(step, bundle, golden, num_steps=50)


def test_a_disk_that_refuses_is_told_in_one_line(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = (exported / MODEL).read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda step, golden: model)
    (tmp_path / "file").write_text("in the way of a folder")
    with pytest.raises(UserError, match="cannot be written"):
        export.export_bundle(_actor(0), CONFIG, tmp_path / "file" / "out")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    broken = _actor(0)
    with torch.no_grad():
        broken.mean_head.bias[2] = math.nan
    with pytest.raises(UserError, match=r"mean_head\.bias holds NaN"):
        export.export_bundle(broken, CONFIG, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["load_bundle", "sync"])
def test_a_failure_leaves_the_bundle_that_was_there(
    fails: str, tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    out = write(tmp_path / "bundle")
    before = {entry.name: entry.read_bytes() for entry in out.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(export, fails, fail)
    with pytest.raises(OSError, match="no space"):
        write(out, without=("curve.csv",), overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]
    assert {entry.name: entry.read_bytes() for entry in out.iterdir()} == before


def test_overwrite_replaces_a_whole_bundle(tmp_path: Path, write: Callable[..., Path]):
    out = write(tmp_path / "bundle")
    with pytest.raises(UserError, match="overwrite=true"):
        write(out)
    write(out, without=("curve.csv",), overwrite=True)
    assert not (out / "curve.csv").exists()
    load_bundle(out)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bundle"]


def test_nothing_but_a_bundle_is_ever_replaced(tmp_path: Path, write: Callable[..., Path]):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="no sound bundle"):
        write(thesis, overwrite=True)
    with pytest.raises(UserError, match="no folder"):
        write(thesis / "chapter.txt", overwrite=True)
    out = write(tmp_path / "bundle")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds notes\.txt"):
        write(out, overwrite=True)
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert (out / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_free(tmp_path: Path, write: Callable[..., Path]):
    (tmp_path / "bundle").mkdir()
    load_bundle(write(tmp_path / "bundle"))


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_one_line(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "deep" / "bundle"
    assert export.export([f"policy={exported}", f"out={out}"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert line.startswith(f"{out}: lifting, ")
    again = json.loads((out / MANIFEST).read_text())
    assert again["provenance"]["bundle"] == "bundle"
    # The same weights, worlds and seed give the same bytes.
    for name in (MODEL, "golden.safetensors", "weights.safetensors", "evaluation.json"):
        assert (out / name).read_bytes() == (exported / name).read_bytes(), name


def test_settings_are_kept_word_for_word(tmp_path: Path):
    """What an older policy's leave out had other defaults then, and must not get those of now."""
    run = write_run(tmp_path / "run", CONFIG)
    left_out = (line for line in to_yaml(CONFIG).splitlines() if "finger_loss" not in line)
    settings = "\n".join(("# of then", *left_out))
    (run / "config.yaml").write_text(settings)
    for policy, out in (("run", "bundle"), ("bundle", "again")):
        assert export.export([f"policy={tmp_path / policy}", f"out={tmp_path / out}"]) == 0
        assert (tmp_path / out / "config.yaml").read_text() == settings


def test_the_evaluation_of_a_bundle_goes_with_it_and_with_no_other(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    out, given = tmp_path / "bundle", tmp_path / "evaluation.json"
    content = (exported / MODEL).read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda *_: content)  # which takes seconds each time
    model = hashlib.sha256(content).hexdigest()
    origin = json.loads((exported / MANIFEST).read_text())["provenance"]
    through = {"task": "lifting", "acts_through": "onnxruntime", "episodes": 500, "successes": 481}
    arguments = [f"policy={exported}", f"out={out}", f"evaluation={given}"]

    def export_with(**facts: object) -> None:
        given.write_text(json.dumps(through | facts))
        assert export.export([*arguments, "overwrite=true"]) == 0

    with pytest.raises(UserError, match=r"evaluation=.* cannot be read: No such file"):
        export.export(arguments)
    with pytest.raises(UserError, match=r"of the task stacking, the policy of lifting"):
        export_with(task="stacking")
    with pytest.raises(UserError, match=r"evaluation=.*another policy\.onnx"):
        export_with(model_sha256="0" * 64)
    with pytest.raises(UserError, match=r"of another policy: .* env_steps=8, this policy 7"):
        export_with(provenance=origin | {"env_steps": 8})
    with pytest.raises(UserError, match=r"of another policy: .* env_steps=None, this policy 7"):
        export_with()
    assert not out.exists()
    export_with(model_sha256=model)
    assert json.loads((out / "evaluation.json").read_text())["model_sha256"] == model
    assert json.loads((out / MANIFEST).read_text())["evaluation"]["successes"] == 481

    # What goes with a policy already and is of an older export is left out, and said to be.
    older = policy_files.RunRecords({"model_sha256": "0" * 64}, None, to_yaml(CONFIG))
    monkeypatch.setattr(export, "run_records", lambda _: older)
    assert export.export([*arguments[:2], "overwrite=true"]) == 0
    assert "left out evaluation.json" in capsys.readouterr().err
    assert not (out / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["out=x"], "policy= is missing"),
        (["policy=lifting"], "out= is missing"),
        (["policy=lifting", "out=x", "seed=-1"], "seed=-1 is not valid; valid: from 0"),
        (["policy=no-such-run", "out=x"], "there is no policy 'no-such-run'"),
    ],
)
def test_the_command_says_what_is_missing(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=told):
        export.export(arguments)
    assert list(tmp_path.iterdir()) == []
