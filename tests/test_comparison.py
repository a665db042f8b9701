"""Policies side by side: the same episodes for each, kept apart, compared in pairs."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runs import small_run, write_run
from visuomotor.cli import run_command
from visuomotor.evaluate import evaluate
from visuomotor.evaluation import OUTCOMES
from visuomotor.policy_files import PRETRAINED

CONFIG = small_run(episode_steps=6)
BARE = ("video=false", "report=false")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small actor; only read."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG)


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_policies_side_by_side_meet_the_same_episodes(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "run", CONFIG, seed=1)
    out = tmp_path / "out"
    arguments = [
        f"policy={run},{other}",
        "episodes=3",
        "seed=4",
        "video=false",
        "report=false",
        "device=cpu",
    ]
    assert run_command(evaluate, [*arguments, f"out={out}"]) == 0
    assert _names(out) == {"run", "run-2", "comparison.json"}  # of one name, yet kept apart
    first, second = (_rows(out / name / "episodes.csv") for name in ("run", "run-2"))
    for a, b in zip(first, second, strict=True):
        assert {name for name in a if a[name] != b[name]} <= set(OUTCOMES)

    kept = json.loads((out / "comparison.json").read_text())
    assert (kept["task"], kept["seed"], kept["episodes"]) == ("lifting", 4, 3)
    assert kept["renderer"] == "rays" and "heldout" not in kept
    assert list(kept["policies"]) == ["run", "run-2"]
    assert kept["policies"]["run-2"]["policy"] == str(other)
    (pair,) = kept["differences"]
    assert (pair["policy"], pair["from"]) == ("run-2", "run")
    assert pair["both"] + pair["only_first"] + pair["only_second"] + pair["neither"] == 3
    assert pair["low"] <= pair["difference"] <= pair["high"]
    said = capsys.readouterr().out
    assert "run-2 - run" in said and "McNemar" in said
    for label in ("run", "run-2"):  # an untrained policy fails whatever the factors are
        assert f"{label}: no randomized factor tells success from failure" in said

    # Alone it has the same episodes and outcomes, to the last byte.
    alone = [f"policy={other}", *arguments[1:], f"out={tmp_path / 'alone'}"]
    assert run_command(evaluate, alone) == 0
    assert (tmp_path / "alone/episodes.csv").read_bytes() == (
        out / "run-2/episodes.csv"
    ).read_bytes()


def test_a_comparison_tells_what_is_held_out_and_which_renderer_drew(
    run: Path, tmp_path: Path
) -> None:
    changes = ["sims=heldout", "heldout.only=latency,shadows", "heldout.renderer=rays"]
    given = [f"policy={run},{run}", *changes, "episodes=1", *BARE, "device=cpu"]
    assert run_command(evaluate, [*given, f"out={tmp_path}"]) == 0
    kept = json.loads((tmp_path / "comparison.json").read_text())
    alone = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert (kept["heldout"], kept["renderer"]) == (["shadows", "latency"], "rays")
    assert all(kept[name] == alone[name] for name in ("heldout", "renderer", "strength"))


@pytest.mark.parametrize(
    "sims",
    [
        ["sims=randomized"],
        ["sims=heldout", "heldout.only=distractors,camera,latency"],  # under all few lift
        ["sims=sweep:mass", "values=0.5,3"],
    ],
)
def test_runs_bundles_and_shipped_policies_meet_the_same_episodes(
    run: Path, tmp_path: Path, sims: list[str]
) -> None:
    """And the same command gives the same table, to the last byte."""
    bundle = tmp_path / "bundle"
    shutil.copytree(PRETRAINED / "lifting", bundle)
    tables: list[dict[str, bytes]] = []
    for name in ("once", "again"):
        given = [f"policy=lifting,{run},{bundle}", *sims, "episodes=2", "episode_steps=60"]
        out = tmp_path / name
        assert run_command(evaluate, [*given, *BARE, "seed=3", "device=cpu", f"out={out}"]) == 0
        kept = {path.parent.name: path for path in out.glob("*/episodes.csv")}
        tables.append({label: path.read_bytes() for label, path in kept.items()})
    assert tables[0] == tables[1] and set(tables[0]) == {"lifting", "run", "bundle"}
    assert tables[0]["bundle"] == tables[0]["lifting"]  # the same files
    shipped, other = (
        _rows(tmp_path / "once" / name / "episodes.csv") for name in ("lifting", "run")
    )
    assert len(shipped) == len(other) > 0
    differ = {name for a, b in zip(shipped, other, strict=True) for name in a if a[name] != b[name]}
    assert differ and differ <= set(OUTCOMES)  # they act, each in its own way


def test_several_policies_without_a_folder_are_kept_by_their_names_and_seed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _names(run)
    monkeypatch.chdir(tmp_path)
    arguments = [f"policy={run},{run}", "episodes=1", *BARE, "device=cpu", "seed=2"]
    assert run_command(evaluate, arguments) == 0
    assert _names(tmp_path / "evaluations" / "run+run-2-randomized-seed2") == {
        *("run", "run-2", "comparison.json")
    }
    assert _names(run) == before


def test_a_policy_is_judged_in_the_worlds_of_the_first_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    randomization = replace(
        CONFIG.randomization, dynamics=replace(CONFIG.randomization.dynamics, prop_mass=(1.0, 9.0))
    )
    other = write_run(tmp_path / "other", replace(CONFIG, randomization=randomization))
    arguments = [f"policy={run},{other}", "episodes=2", *BARE, "device=cpu"]
    assert run_command(evaluate, [*arguments, f"out={tmp_path / 'out'}"]) == 0
    assert f"{other} is judged in the worlds of {run}" in capsys.readouterr().err
    first, second = (_rows(tmp_path / f"out/{name}/episodes.csv") for name in ("run", "other"))
    masses = [[row["prop_mass/block_0"] for row in rows] for rows in (first, second)]
    assert masses[0] == masses[1]
