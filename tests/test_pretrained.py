"""What is shipped is whole: files as their hashes say, golden episodes that replay, weights that
this version goes on with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch

import visuomotor
from visuomotor.config import Config
from visuomotor.envs import make_env, robot
from visuomotor.export import OPSET, PARITY_STEPS, PolicyStep, check_parity
from visuomotor.overrides import parse_overrides
from visuomotor.policies import make_teacher
from visuomotor.policy_files import load_policy
from visuomotor.predecessors import (
    TEACHERS,
    carried_over,
    check_state_width,
    shaped_like_its_teacher,
    shipped_teachers,
)
from visuomotor.runtime.bundle import BundleError, load_bundle
from visuomotor.runtime.files import GOLDEN, MODEL
from visuomotor.runtime.jaco import LIMITS
from visuomotor.runtime.policy_loop import check_arm

FOLDER = Path(visuomotor.__file__).parent / "pretrained"
ROOT = Path(__file__).parent.parent
START_SPREAD = np.array(robot.START_SPREAD)
SHIPPED = sorted(path.name for path in FOLDER.iterdir() if path.is_dir() and path != TEACHERS)


# Success that each task's policy was to reach, over 500 fully randomized episodes.
MARKS = {
    "lifting": 0.95,
    "stacking": 0.90,
    "clearing_blocks": 0.85,
    "clearing_box": 0.85,
    "pouring": 0.85,
    "order_fulfillment": 0.75,
}


def test_every_task_has_a_policy() -> None:
    assert set(MARKS) <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_is_whole(name: str) -> None:
    bundle = load_bundle(FOLDER / name)
    check_arm(bundle, LIMITS.joint_names)
    assert bundle.replay.steps >= 200
    off = bundle.contract.start - np.array(robot.START_QPOS)
    # By its golden episodes, where it does not say; they were seen with noise.
    assert (np.abs(np.remainder(off + np.pi, 2 * np.pi) - np.pi) < START_SPREAD + 0.02).all()
    task = bundle.contract.task
    assert name == task or name.startswith(f"{task}_")  # stacking_latency: of other ranges
    _, config, _ = load_policy(name)
    assert config.task == task


@pytest.mark.parametrize("name", SHIPPED)
def test_the_evaluation_is_of_what_is_shipped_and_what_the_documents_tell(name: str) -> None:
    judged = json.loads((FOLDER / name / "evaluation.json").read_text())
    model = hashlib.sha256((FOLDER / name / MODEL).read_bytes()).hexdigest()
    assert (judged["acts_through"], judged["model_sha256"]) == ("onnxruntime", model)
    assert (judged["sims"], judged["strength"], judged["seed"]) == ("randomized", 1.0, 0)
    assert judged["episodes"] >= 500
    assert not judged["git_changed"]
    assert judged["success_rate"] >= MARKS.get(name, 0.0)
    rate, low, high = (
        f"{100 * judged[f'success_{which}']:.1f}" for which in ("rate", "low", "high")
    )
    told = f"{rate} % | {low} to {high} %"
    assert f"| `{name}` | {told} | {judged['episodes']} |" in (ROOT / "README.md").read_text()
    results = (ROOT / "docs" / "results.md").read_text().splitlines()
    assert any(row.startswith(f"| `{name}` |") and told in row for row in results)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_of_opset_18(name: str) -> None:
    used = onnx.load(FOLDER / name / MODEL).opset_import
    assert [(opset.domain, opset.version) for opset in used] == [("", OPSET)]
    assert OPSET == 18


@pytest.mark.parametrize("name", SHIPPED)
def test_onnx_runtime_and_torch_agree_over_2000_recurrent_steps(name: str) -> None:
    """The shipped model beside the shipped weights; weights that are a little off do not pass."""
    actor, _, _ = load_policy(name)
    bundle = load_bundle(FOLDER / name)
    golden = safetensors.numpy.load_file(FOLDER / name / GOLDEN)
    step = PolicyStep(actor, torch.from_numpy(bundle.contract.velocity_limits))
    assert PARITY_STEPS == 2000
    error, _ = check_parity(step, bundle, golden)
    assert 0.0 < error < 1e-5
    with torch.no_grad():
        step.actor.mean_head.weight[0] *= 1.001
    with pytest.raises(BundleError, match=r"ONNX Runtime differs from torch by .* at recurrent"):
        check_parity(step, bundle, golden)


@pytest.mark.parametrize("name", shipped_teachers())
def test_a_shipped_teacher_fits_its_task(name: str) -> None:
    argv = [f"task={name}", "algorithm=distill", f"distill.teacher_run={name}"]
    config = shaped_like_its_teacher(parse_overrides(argv, Config), [])
    carried = carried_over(config)
    env = make_env(config, num_envs=1, seed=0, render=False)
    state = env.reset().state
    check_state_width(config, carried, state.shape[1])
    teacher = make_teacher(config, state.shape[1])
    teacher.load_state_dict(carried["teacher"])
    assert teacher(state).shape == (1, 9)
