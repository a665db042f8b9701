"""The command that evaluates: what it keeps and where, what it refuses, and all or nothing."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
import torch

import visuomotor.evaluate
import visuomotor.evaluation
from tests.runs import EVALUATED, write_run
from visuomotor.cli import run_command
from visuomotor.envs import make_env
from visuomotor.evaluate import _labels, evaluate
from visuomotor.evaluation import EPISODES_APART, OUTCOMES, Episodes, run_episodes
from visuomotor.factors import OWN, register_factor
from visuomotor.overrides import to_yaml
from visuomotor.policies import PixelPolicy
from visuomotor.runtime.bundle import Bundle, BundleError
from visuomotor.runtime.files import GOLDEN, MANIFEST, MODEL, seal_manifest
from visuomotor.statistics import wilson_interval

STEPS = EVALUATED.env.episode_steps
BARE = ("video=false", "report=false")


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small actor; only read."""
    return write_run(tmp_path_factory.mktemp("runs") / "run", EVALUATED)


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


WRITTEN = {"evaluation.json", "episodes.csv", "factors.csv", "evaluation.mp4", "evaluation.png"}


def test_an_evaluation_is_kept_with_all_that_backs_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "out"
    before = _names(run)
    arguments = [
        f"policy={run}",
        "episodes=3",
        "seed=4",
        f"out={out}",
        "report=false",
        "device=cpu",
    ]
    assert run_command(evaluate, arguments) == 0
    assert _names(out) == WRITTEN
    assert _names(run) == before

    summary = json.loads((out / "evaluation.json").read_text())
    assert summary.keys() >= {
        *("task", "policy", "sims", "seed", "episodes", "successes", "success_rate"),
        *("success_low", "success_high", "mean_return", "stage_rates"),
    }
    assert (summary["task"], summary["policy"]) == ("lifting", str(run))
    assert (summary["sims"], summary["strength"], summary["seed"]) == ("randomized", 1.0, 4)
    assert (summary["episodes"], summary["episode_steps"]) == (3, STEPS)
    assert summary["success_rate"] == summary["successes"] / 3
    interval = (summary["success_low"], summary["success_high"])
    assert interval == wilson_interval(summary["successes"], 3)
    assert list(summary["stage_rates"]) == ["start", "reach", "lifted"]
    assert summary["provenance"]["env_steps"] == 4096

    with (out / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["episode"], row["seed"]) for row in rows] == [("0", "4"), ("1", "4"), ("2", "4")]
    assert sum(int(row["success"]) for row in rows) == summary["successes"]
    returns = [float(row["return"]) for row in rows]
    assert np.mean(returns) == pytest.approx(summary["mean_return"])
    randomizer = make_env(EVALUATED, num_envs=1, seed=0, render=False).randomizer
    assert list(rows[0]) == ["episode", "seed", *OUTCOMES, *randomizer.factor_names]
    for episode, row in enumerate(rows):
        drawn = randomizer.draw(np.random.default_rng([EPISODES_APART + 4, 2, episode]), 1.0)
        assert [float(row[name]) for name in randomizer.factor_names] == drawn.tolist()

    film = cv2.VideoCapture(str(out / "evaluation.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == STEPS
    assert film.get(cv2.CAP_PROP_FPS) == pytest.approx(1 / EVALUATED.env.control_dt)
    film.release()
    said = capsys.readouterr().out
    assert "lifting randomized seed=4: " in said and "of 3 episodes succeed" in said
    assert str(out) in said


def test_nominal_worlds_are_all_at_their_defaults(run: Path, tmp_path: Path) -> None:
    arguments = [f"policy={run}", "episodes=2", *BARE, "device=cpu", "sims=nominal"]
    assert run_command(evaluate, [*arguments, f"out={tmp_path}", "episode_steps=3"]) == 0
    assert _names(tmp_path) == {"evaluation.json", "episodes.csv", "factors.csv"}
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert (summary["sims"], summary["strength"]) == ("nominal", 0.0)
    assert (summary["seed"], summary["episode_steps"]) == (0, 3)
    with (tmp_path / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    randomizer = make_env(EVALUATED, num_envs=1, seed=0, render=False).randomizer
    for row in rows:
        values = [float(row[name]) for name in randomizer.factor_names]
        assert values == randomizer.default().tolist()


def test_a_runs_evaluation_belongs_into_its_folder(tmp_path: Path) -> None:
    """And backs its export if it is randomized to the full, and none of more episodes is there."""
    folder = write_run(tmp_path / "run", EVALUATED)
    before = _names(folder)
    bare = [f"policy={folder}", "video=false", "report=false", "device=cpu"]
    kept = {"evaluation.json", "episodes.csv", "factors.csv"}
    assert run_command(evaluate, [*bare, "episodes=1", "randomization.strength=0.5"]) == 0
    assert _names(folder / "evaluations") == {"randomized-seed0-strength0.5"}
    assert _names(folder / "evaluations" / "randomized-seed0-strength0.5") == kept
    assert _names(folder) == before | {"evaluations"}
    summaries = []
    for episodes, sims in ((2, "randomized"), (1, "randomized"), (3, "nominal")):
        assert run_command(evaluate, [*bare, f"episodes={episodes}", f"sims={sims}"]) == 0
        assert _names(folder) == before | {"evaluations", "evaluation.json"}
        summaries.append(json.loads((folder / "evaluation.json").read_text()))
    assert [(one["sims"], one["episodes"]) for one in summaries] == [("randomized", 2)] * 3
    assert run_command(evaluate, [*bare, "episodes=3", "episode_steps=3"]) == 0
    assert json.loads((folder / "evaluation.json").read_text()) == summaries[-1]


def test_the_same_worlds_have_the_same_mark(tmp_path: Path, run: Path) -> None:
    marks = []
    for extra in ([], ["seed=1"], ["strength=0.5"], ["sims=nominal"], ["sims=heldout"]):
        out = tmp_path / str(len(marks))
        arguments = [f"policy={run}", "episodes=1", *BARE, "device=cpu", f"out={out}"]
        assert run_command(evaluate, [*arguments, *extra]) == 0
        marks.append(json.loads((out / "evaluation.json").read_text())["worlds"])
    for factor in ("friction", "mass"):
        out = tmp_path / factor
        arguments = [f"policy={run}", "episodes=1", "report=false", "device=cpu", f"out={out}"]
        assert run_command(evaluate, [*arguments, f"sims=sweep:{factor}", "values=1.5"]) == 0
        marks.append(json.loads((out / "sweep.json").read_text())["worlds"])
    assert marks[0] == marks[1] and len(set(marks)) == 6


def test_the_mark_of_worlds_tells_how_factors_of_ones_own_are_drawn(
    tmp_path: Path, run: Path
) -> None:
    """Without any nothing is added to it, so that the marks of before hold."""
    plain_env = make_env(EVALUATED, num_envs=1, seed=0, render=False)
    assert visuomotor.evaluate._own_factors(plain_env) == []

    def mark() -> str:
        arguments = [f"policy={run}", "episodes=1", *BARE, "device=cpu", f"out={tmp_path}"]
        assert run_command(evaluate, arguments) == 0
        return str(json.loads((tmp_path / "evaluation.json").read_text())["worlds"])

    def still(model: Any, field: torch.Tensor, values: torch.Tensor) -> None:
        pass

    plain = mark()
    marks = []
    for given in (
        {"bounds": (0.5, 1.5), "neutral": 1.0},
        {"bounds": (0.5, 2.5), "neutral": 1.0},
        {"bounds": (0.5, 1.5), "neutral": 0.5},
        {"bounds": (0.5, 1.5), "neutral": 1.0, "distribution": "log_uniform"},
        {"bounds": (0.5, 1.5), "neutral": 1.0},
    ):
        with mock.patch.dict(OWN, clear=True):
            register_factor("mine", field="geom_friction", **given)(still)
            marks.append(mark())
    assert marks[0] == marks[-1] and len({plain, *marks}) == 5
    assert mark() == plain


def test_a_policy_that_raises_loses_its_episodes_and_not_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    acted = PixelPolicy.act
    calls = iter(range(1000))

    def act(self: PixelPolicy, seen: Any, episode_start: torch.Tensor) -> torch.Tensor:
        if next(calls) == 2:
            raise RuntimeError("out of ideas")
        return acted(self, seen, episode_start)

    monkeypatch.setattr(PixelPolicy, "act", act)
    arguments = [f"policy={run}", "episodes=65", *BARE, "device=cpu", f"out={tmp_path}"]
    assert run_command(evaluate, arguments) == 0
    summary = json.loads((tmp_path / "evaluation.json").read_text())
    assert (summary["episodes"], summary["stopped"]) == (65, 64)  # the first round's
    assert "RuntimeError: out of ideas" in capsys.readouterr().err


def test_a_bundle_that_refuses_one_world_loses_that_episode_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    infer = Bundle.infer

    def refuses(self: Bundle, *seen: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == 3 + 1:  # the second of three worlds, at the second step
            raise BundleError("joints: out of reach")
        return infer(self, *seen)

    def then_refuses(*arguments: Any, **options: Any) -> Episodes:
        monkeypatch.setattr(Bundle, "infer", refuses)  # only now: a bundle is replayed when loaded
        return run_episodes(*arguments, **options)

    tables = []
    for name in ("whole", "refused"):
        if name == "refused":
            monkeypatch.setattr(visuomotor.evaluate, "run_episodes", then_refuses)
        out = tmp_path / name
        arguments = ["policy=lifting", "episodes=3", "episode_steps=6", *BARE, "device=cpu"]
        assert run_command(evaluate, [*arguments, f"out={out}"]) == 0
        with (out / "episodes.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    whole, refused = tables
    assert [row["stopped_step"] for row in refused] == ["-1", "1", "-1"]
    assert (refused[0], refused[2]) == (whole[0], whole[2])
    assert len(calls) == 3 * 6
    said = capsys.readouterr().err
    assert "lifting stopped in 1 episodes" in said
    assert "the bundle refused what world 1 shows: joints: out of reach" in said


# --- bad input ----------------------------------------------------------------------------------


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """One line on stderr and exit code 2."""
    assert run_command(evaluate, [*arguments, "report=false", "device=cpu"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert captured.out == ""
    return line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["policy=nowhere"], r"no policy 'nowhere'.*run folder, a bundle, or a shipped policy"),
        ([], r"policy= is missing; give a run folder"),
        (
            ["policy=RUN", "sims=real"],
            r"sims='real' is unknown; valid: nominal, randomized, heldout",
        ),
        (["policy=RUN,"], r"policy=.*, has an empty name; give policies with one comma between"),
        (
            ["policy=RUN,stacking"],
            r"RUN does lifting, stacking does stacking; give policies of one",
        ),
        (["policy=RUN,LONGER"], r"episodes of other lengths \(6, 7; None: the task's own\); give"),
        (["policy=RUN,SLOWER"], r"control_dt=0.05, .*LOWER at control_dt=0.1.* one by one"),
        (["policy=RUN", "episodes=0"], r"episodes=0; at least 1"),
        (["policy=RUN", "episodes=-3"], r"episodes=-3; at least 1"),
        (["policy=RUN", "episodes=1e12"], r"episodes=1000000000000; at most 1000000 are valid"),
        (["policy=RUN", "calibration=no.yaml"], r"calibration=no.yaml is no file; make one"),
        (["policy=RUN", "calibration=/dev/null"], r"/dev/null is there, but is no plain file"),
        (["policy=RUN", "episodes=many"], r"episodes=many is not valid; valid: a whole number"),
        (["policy=RUN", "seed=-1"], r"seed=-1; valid: from 0"),
        (["policy=RUN", "strength=1.5"], r"strength=1.5; valid: 0 to 1"),
        (["policy=RUN", "strength=-0.1"], r"strength=-0.1; valid: 0 to 1"),
        (["policy=RUN", "episode_steps=0"], r"episode_steps=0; at least 1"),
        (
            ["policy=RUN", "episode_steps=1000000000"],
            r"episode_steps=1000000000; valid: 1 to 10000, or leave it out",
        ),
        (["policy=RUN", "episode_steps=10001"], r"episode_steps=10001; valid: 1 to 10000"),
        (
            ["policy=ENDLESS"],
            r"ENDLESS was trained with episodes of 1000000 steps, .*give episode_steps=, 1 to 1",
        ),
        (["policy=RUN", "episods=3"], r"unknown key 'episods'; did you mean episodes"),
        (["policy=EMPTY"], r"is a folder, but neither a run .* nor a bundle"),
    ],
)
def test_bad_input_is_one_line_with_what_is_valid(
    run: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"RUN": str(run), "EMPTY": str(tmp_path / "empty")}
    for name, env in (
        ("LONGER", replace(EVALUATED.env, episode_steps=STEPS + 1)),
        ("SLOWER", replace(EVALUATED.env, control_dt=0.1)),
        ("ENDLESS", replace(EVALUATED.env, episode_steps=10**6)),
    ):
        if name in str(arguments):
            others = tmp_path_factory.mktemp("others")
            places[name] = str(write_run(others / name, replace(EVALUATED, env=env)))
    filled = [
        re.sub("RUN|EMPTY|LONGER|SLOWER|ENDLESS", lambda match: places[match[0]], text)
        for text in arguments
    ]
    before = _names(run)
    told = told.replace("RUN", re.escape(str(run)))
    assert re.search(told, _refusal(capsys, *filled, f"out={tmp_path / 'out'}"))
    assert _names(run) == before
    assert _names(tmp_path) == {"empty"}


def test_a_file_in_the_place_of_the_folder_is_found_before_any_work(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", None)
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    for out in (path, path / "deeper" / "out"):
        line = _refusal(capsys, f"policy={run}", f"out={out}")
        assert f"out={out}: {path} is a file; give a folder" in line
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "what", [["policy=RUN"], ["policy=RUN", "sims=sweep:prop_friction"], ["policy=RUN,RUN"]]
)
def test_a_folder_that_cannot_be_written_is_found_before_any_work(
    what: list[str],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", None)
    argv = [text.replace("RUN", str(run)) for text in what]
    line = _refusal(capsys, *argv, "out=/proc/new")
    assert "/proc/new" in line and "out=" in line


def _bundle(folder: Path) -> Path:
    """A bundle whose hashes agree, of files that are no policy."""
    content = {MODEL: b"no model", GOLDEN: b"no episodes"}
    folder.mkdir()
    for name, value in content.items():
        (folder / name).write_bytes(value)
    (folder / MANIFEST).write_bytes(seal_manifest({"task": "lifting"}, content))
    return folder


@pytest.mark.parametrize("damage", ["none", "flipped model", "cut manifest", "no golden"])
def test_a_damaged_bundle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    bundle = _bundle(tmp_path / "bundle")
    if damage == "flipped model":
        (bundle / MODEL).write_bytes(b"no modem")
    elif damage == "cut manifest":
        (bundle / MANIFEST).write_bytes((bundle / MANIFEST).read_bytes()[:-20])
    elif damage == "no golden":
        (bundle / GOLDEN).unlink()
    before = _names(bundle)
    line = _refusal(capsys, f"policy={bundle}", f"out={tmp_path / 'out'}")
    named = {"flipped model": MODEL, "cut manifest": MANIFEST, "no golden": GOLDEN}
    assert named.get(damage, str(bundle)) in line
    assert _names(bundle) == before
    assert _names(tmp_path) == {"bundle"}


@pytest.mark.parametrize("damage", ["config", "checkpoint", "weights"])
def test_a_damaged_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = write_run(tmp_path / "run", EVALUATED)
    if damage == "config":
        (folder / "config.yaml").write_text("task: [lifting")
        told = "is no valid YAML"
    elif damage == "checkpoint":
        (tensors,) = folder.glob("checkpoints/*/tensors.safetensors")
        tensors.write_bytes(tensors.read_bytes()[:-1])
        told = "step_000000004096"
    else:
        larger = replace(EVALUATED, actor=replace(EVALUATED.actor, hidden_dim=13))
        (folder / "config.yaml").write_text(to_yaml(larger))
        told = "the weights do not fit its config.yaml"
    before = _names(folder)
    line = _refusal(capsys, f"policy={folder}", "episodes=1")
    assert told in line and str(folder) in line
    assert _names(folder) == before


# --- all or nothing -----------------------------------------------------------------------------


def test_what_fails_on_the_way_leaves_the_older_evaluation_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    (tmp_path / "evaluation.json").write_text("old")
    (tmp_path / "episodes.csv").write_text("old")

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", fail)
    with pytest.raises(OSError, match="No space"):
        evaluate([f"policy={run}", "episodes=1", f"out={tmp_path}", "report=false", "device=cpu"])
    assert (tmp_path / "evaluation.json").read_text() == "old"
    assert (tmp_path / "episodes.csv").read_text() == "old"
    assert not any(name.startswith(".") for name in _names(tmp_path))


@pytest.mark.parametrize("part", ["write_video", "write_contact_sheet"])
def test_a_film_that_cannot_be_made_costs_nothing_but_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Path,
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nor does one of other episodes stay beside the numbers."""
    for name in ("evaluation.mp4", "evaluation.png", "report.html"):
        (tmp_path / name).write_text("old")

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr(visuomotor.evaluation, part, fail)
    arguments = [f"policy={run}", "episodes=1", f"out={tmp_path}", "report=false", "device=cpu"]
    assert evaluate(arguments) == 0
    made = {"evaluation.mp4"} if part == "write_contact_sheet" else set()
    assert _names(tmp_path) == {"evaluation.json", "episodes.csv", "factors.csv"} | made
    assert "no film: RuntimeError: no encoder" in capsys.readouterr().err


def test_each_policy_is_written_as_soon_as_it_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path
) -> None:
    done: list[str] = []

    def second_fails(*arguments: Any, **options: Any) -> Any:
        done.append("")
        if len(done) == 2:
            raise OSError(5, "Input/output error")
        return run_episodes(*arguments, **options)

    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", second_fails)
    with pytest.raises(OSError):
        evaluate([f"policy={run},{run}", "episodes=1", *BARE, "device=cpu", f"out={tmp_path}"])
    assert _names(tmp_path) == {run.name}
    assert "evaluation.json" in _names(tmp_path / run.name)


def test_every_policy_has_a_name_of_its_own() -> None:
    names = ["a/run", "b/run", "c/run-2", "lifting", "d/run"]
    assert _labels(names) == ["run", "run-2", "run-2-2", "lifting", "run-3"]
