"""A run's learning curve, as evaluations draw it and bundles keep it: read whole, or refused."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

import visuomotor.evaluate
from tests.runs import assert_refused, small_run, write_run
from visuomotor.errors import UserError
from visuomotor.evaluate import evaluate
from visuomotor.policy_files import PRETRAINED, curve_csv, shipped_names, training_curve
from visuomotor.runtime.files import MANIFEST, read_bundle, seal_manifest

GOOD = b'{"env_steps": 1, "phase": "ril", "success_rate": null}\n{"env_steps": 2, "fps": 3.5}\n'


def _steps(curve: str) -> list[str]:
    return [row["env_steps"] for row in csv.DictReader(io.StringIO(curve))]


@pytest.mark.parametrize("end", [b"", b'{"env_st', b'{"env_steps": 3, "phase": "r\xc3', b"\0\0\0"])
def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + end)
    assert _steps(curve_csv(path)) == ["1", "2"]


def test_a_last_line_without_an_end_counts_where_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b'{"env_steps": 3}')
    assert _steps(curve_csv(path)) == ["1", "2", "3"]


BAD = [
    (b"5\n", "line 3: expected an object, got b'5"),
    (b"5", "line 3: expected an object, got b'5"),
    (b"\xff\xfe\n", "line 3: 'utf-8' codec can't decode"),
    (b"\n", "line 3: Expecting value"),
    (b'{"env_st\n{"env_steps": 4}\n', "line 3: Invalid control character"),
    (b"[" * 100_000 + b"\n", "line 3: maximum recursion depth"),
    (b'{"env_steps": 3, "success_rate": "x"}\n', "line 3: success_rate: expected a finite number"),
    (b'{"env_steps": 3, "success_rate": NaN}\n', "line 3: success_rate: expected a finite number"),
    (b'{"env_steps": 3, "fps": true}\n', "line 3: fps: expected a finite number, got True"),
    (b'{"env_steps": 3, "fps": 1' + b"0" * 400 + b"}\n", "line 3: fps: expected a finite number"),
    (b'{"success_rate": 0.5}\n', "line 3: env_steps: expected a finite number, got None"),
    (b'{"env_steps": [3]}\n', r"line 3: env_steps: expected a finite number, got \[3\]"),
    (b'{"env_steps": 3, "phase": 7}\n', "line 3: phase: expected a word, got 7"),
]


@pytest.mark.parametrize(("line", "told"), BAD)
def test_a_line_that_is_damaged_is_named(tmp_path: Path, line: bytes, told: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + line)
    with pytest.raises(UserError, match=f"metrics.jsonl, {told}") as caught:
        curve_csv(path)
    assert len(str(caught.value).splitlines()) == 1


def test_it_is_read_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", None)
    run = write_run(tmp_path / "run", small_run(episode_steps=3))
    (run / "metrics.jsonl").write_bytes(b'{"env_steps": 3, "success_rate": "x"}\n')
    told = r"metrics.jsonl, line 1: success_rate: expected a finite number, got 'x'"
    assert_refused(capsys, evaluate, [f"policy={run}", "episodes=1"], told)
    assert not (run / "evaluations").exists()


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_policies_have_curves_that_can_be_read(name: str) -> None:
    curve = training_curve(name)
    assert curve is None or len(_steps(curve)) > 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"env_steps,success_rate\n1,0.5\n2,x\n", "line 3: success_rate: expected a finite .*'x'"),
        (b"env_steps,success_rate\n1,inf\n", "line 2: success_rate: expected a finite .* inf"),
        (b"success_rate\n0.5\n", "line 2: env_steps: expected a finite number, got None"),
        (b"env_steps\n\xff\xfe\n", "is no table: 'utf-8' codec"),
    ],
)
def test_a_bundles_curve_is_checked_too(tmp_path: Path, content: bytes, told: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(PRETRAINED / "lifting", bundle)
    manifest, files = read_bundle(bundle)
    (bundle / "curve.csv").write_bytes(content)
    (bundle / MANIFEST).write_bytes(seal_manifest(manifest, {**files, "curve.csv": content}))
    with pytest.raises(UserError, match=f"curve.csv,? {told}"):
        training_curve(str(bundle))
