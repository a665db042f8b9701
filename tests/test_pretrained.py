"""What is shipped is whole: files as their hashes say, weights that this version goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import visuomotor
from visuomotor.policy_files import load_policy
from visuomotor.runtime.files import read_bundle

FOLDER = Path(visuomotor.__file__).parent / "pretrained"
SHIPPED = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())


def test_the_policies_that_the_documents_name_are_there() -> None:
    assert {"lifting", "stacking"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_policy_is_whole(name: str) -> None:
    manifest, files = read_bundle(FOLDER / name)
    assert manifest["task"] == name
    assert "policy.onnx" in files
    _, config, _ = load_policy(name)
    assert config.task == name
    judged = json.loads((FOLDER / name / "evaluation.json").read_text())
    assert judged["episodes"] >= 200
    assert judged["sims"] == "randomized"
