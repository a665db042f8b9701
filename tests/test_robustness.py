"""benchmarks/robustness.py: the episodes of `evaluate`, each run once, and what they come to."""

from __future__ import annotations

import csv
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import robustness
from benchmarks.robustness import Job, Options, Row, Sweep
from tests.runs import assert_refused, small_run, write_run
from visuomotor.cli import run_command
from visuomotor.evaluate import evaluate
from visuomotor.evaluation import Episodes, episodes_csv, run_episodes
from visuomotor.heldout import CHANGES
from visuomotor.policy_files import PRETRAINED, shipped_names
from visuomotor.randomization import Factor
from visuomotor.sweep import SweptFactor

CONFIG = small_run(episode_steps=4)
SETTINGS = ("changes=camera,all", "factors=camera_delay", "episodes=3", "sweep_episodes=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG)


def _job(sims: str, change: str = "", episodes: int = 100, policy: str = "lifting") -> Job:
    return Job(policy, "", sims, change, episodes, 0, "rays")


def test_every_policy_meets_each_change_alone_and_all(run: Path) -> None:
    jobs, sweeps = robustness.plan(Options(policies=str(run), factors="friction,camera_delay"))
    assert [(job.sims, job.change) for job in jobs] == [
        ("randomized", ""),
        *(("heldout", name) for name in (*CHANGES, "all")),
    ]
    assert {job.episodes for job in jobs} == {200}
    assert [sweep.swept.name for sweep in sweeps] == ["prop_friction", "camera_delay"]
    assert [job.values() for job in sweeps[1].jobs] == [("camera_delay", v) for v in range(5)]
    assert {job.episodes for sweep in sweeps for job in sweep.jobs} == {100}
    assert robustness.plan(Options(policies=str(run), episodes=0, sweep_episodes=0)) == ([], [])


def test_a_renderer_is_chosen_for_shadows_alone(run: Path) -> None:
    asked = Options(str(run), "camera,shadows,all", renderer="rays", sweep_episodes=0)
    jobs, _ = robustness.plan(asked)
    drawn = {
        job.change: robustness._held_out(job.change, job.renderer).renderer for job in jobs[1:]
    }
    assert drawn == {"camera": None, "shadows": "rays", "all": "rays"}


def test_by_default_all_shipped_policies_are_judged() -> None:
    jobs, _ = robustness.plan(Options(sweep_episodes=0))
    assert list(dict.fromkeys(job.policy for job in jobs)) == shipped_names()
    marks = {job.policy: job.weights for job in jobs}
    assert len(set(marks.values())) == len(marks)
    for name, mark in marks.items():
        content = (PRETRAINED / name / "weights.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(mark)


def test_what_does_not_vary_in_training_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    still = replace(CONFIG.randomization.appearance, hue=(0.0, 0.0))
    config = replace(CONFIG, randomization=replace(CONFIG.randomization, appearance=still))
    policy = write_run(tmp_path / "run", config)
    _, sweeps = robustness.plan(Options(policies=str(policy), factors="hue,mass", episodes=0))
    assert [sweep.swept.name for sweep in sweeps] == ["prop_mass"]
    assert "hue does not vary in training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sims", "change", "given"),
    [
        ("randomized", "", ["sims=randomized"]),
        ("heldout", "camera", ["sims=heldout", "heldout.only=camera"]),
        ("heldout", "all", ["sims=heldout", "heldout.renderer=rays"]),
        ("sweep", "prop_mass:3.0", ["sims=sweep:mass", "values=3"]),
    ],
)
def test_episodes_are_those_of_the_command(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sims: str,
    change: str,
    given: list[str],
) -> None:
    seen: list[Episodes] = []

    def kept(*arguments: Any) -> Episodes:
        seen.append(run_episodes(*arguments))
        return seen[-1]

    monkeypatch.setattr(robustness, "run_episodes", kept)
    job = Job(str(run), "", sims, change, 3, 7, "rays")
    successes, seconds = robustness.measure(job)
    assert (successes, seconds > 0.0) == (0, True)  # an untrained policy
    arguments = [f"policy={run}", "episodes=3", "seed=7", "video=false", "report=false"]
    assert run_command(evaluate, [*arguments, "device=cpu", *given, f"out={tmp_path}"]) == 0
    header, *rows = (tmp_path / "episodes.csv").read_text().splitlines()
    # The neutral value, which every sweep has, comes before.
    assert episodes_csv(seen[0], 7).splitlines() == [header, *rows[-3:]]


# --- each once ----------------------------------------------------------------------------------


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """at.commit: where the package stands; at.jobs: what was run; every evaluation has one success,
    and the ones beyond at.most are not begun."""
    here = SimpleNamespace(commit="a" * 40, jobs=[], most=100)

    def measured(
        jobs: list[Job], workers: int, stopped: Callable[[], bool]
    ) -> Iterator[tuple[Job, int, float]]:
        for job in jobs[: here.most]:
            here.jobs.append(job)
            yield job, 1, 2.0

    monkeypatch.setattr(robustness, "measured", measured)
    monkeypatch.setattr(robustness, "commit", lambda: here.commit)
    yield here


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_what_is_in_the_table_is_not_run_again(
    run: Path, tmp_path: Path, at: SimpleNamespace
) -> None:
    given = [f"policies={run}", *SETTINGS, f"out={tmp_path / 'deep' / 'out'}"]
    table = tmp_path / "deep" / "out.csv"
    at.most = 3  # it was stopped there
    assert run_command(robustness.robustness, given) == 0
    assert len(at.jobs) == len(_rows(table)) == 3
    at.most = 100
    assert run_command(robustness.robustness, given) == 0
    assert len(at.jobs) == len(set(at.jobs)) == len(_rows(table)) == 3 + 5
    before = table.read_bytes()
    assert run_command(robustness.robustness, given) == 0
    assert len(at.jobs) == 8 and table.read_bytes() == before
    # Other settings are other evaluations.
    assert run_command(robustness.robustness, [*given[:3], "episodes=4", *given[4:]]) == 0
    assert [job.episodes for job in at.jobs[8:]] == [4, 4, 4]
    assert run_command(robustness.robustness, [*given, "seed=1"]) == 0
    assert {job.seed for job in at.jobs[11:]} == {1} and len(at.jobs) == 19
    # And so is another package.
    at.commit = "b" * 40
    assert run_command(robustness.robustness, given) == 0
    assert len(at.jobs) == 27 and len(_rows(table)) == 27


def test_changes_without_a_commit_count_once_and_for_nothing(
    run: Path, tmp_path: Path, at: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    at.commit += "+"
    given = [f"policies={run}", *SETTINGS, f"out={tmp_path / 'out'}"]
    for times in (1, 2):
        assert run_command(robustness.robustness, given) == 0
        assert len(at.jobs) == 8 * times and len(_rows(tmp_path / "out.csv")) == 8
        assert "changes that no commit holds" in capsys.readouterr().err


def test_commits_that_leave_the_package_alone_count(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        done = subprocess.run(
            ("git", "-C", str(tmp_path), *who, *words), check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    commits = []
    for name, content in (("package/a", "1"), ("docs", "2"), ("package/a", "3")):
        (tmp_path / name).write_text(content)
        git("add", ".")
        git("commit", "-q", "-m", name)
        commits.append(git("rev-parse", "HEAD"))
    first, docs, last = commits
    assert robustness.same_package(first, docs, package)
    assert robustness.same_package(last, last, package)
    assert not robustness.same_package(docs, last, package)
    assert not robustness.same_package("c" * 40, last, package)  # of another clone
    for unknown in (f"{last}+", "None", ""):
        assert not robustness.same_package(unknown, unknown, package)


def test_a_process_writes_a_row_for_every_evaluation(run: Path, tmp_path: Path) -> None:
    given = ["changes=textures", "sweep_episodes=0", "episodes=2", "workers=1"]
    assert (
        run_command(robustness.robustness, [f"policies={run}", *given, f"out={tmp_path / 'out'}"])
        == 0
    )
    rows = sorted(_rows(tmp_path / "out.csv"), key=lambda row: row["change"])
    assert [(row["sims"], row["change"], row["successes"]) for row in rows] == [
        ("randomized", "", "0"),
        ("heldout", "textures", "0"),
    ]
    assert all(row["success_low"] == "0.0000" and float(row["seconds"]) > 0.0 for row in rows)
    assert f"| `{run}` | 0.0 (0.0 to 65.8) | 0.0 (+0.0) |" in (tmp_path / "out.md").read_text()


# --- what they come to --------------------------------------------------------------------------


def _measured(**successes: int) -> dict[Job, Row]:
    jobs = {name: _job("heldout" if name else "randomized", name) for name in successes}
    return {jobs[name]: Row(jobs[name], count, "a", 1.0) for name, count in successes.items()}


def test_the_table_tells_the_drop_from_randomized() -> None:
    rows = _measured(**{"": 96, "camera": 92, "all": 51})
    jobs = [
        *rows,
        _job("randomized", policy="stacking"),
        _job("heldout", "camera", 100, "stacking"),
    ]
    text = robustness.markdown(jobs, [], rows)
    assert text.splitlines()[2:] == [
        "| policy | randomized (95 %) | camera | all |",
        "|---|---|---|---|",
        "| `lifting` | 96.0 (90.2 to 98.4) | 92.0 (-4.0) | 51.0 (-45.0) |",
        "| `stacking` |  |  |  |",  # not measured yet
    ]


def test_certificates_are_of_complete_sweeps() -> None:
    swept = SweptFactor("prop_friction", Factor("prop_friction/block_0", 0.7, 1.3, 1.0))
    values = {0.4: 80, 0.7: 91, 1.0: 100, 1.3: 100, 1.6: 92}
    jobs = [_job("sweep", f"prop_friction:{value!r}") for value in values]
    rows = {
        job: Row(job, count, "a", 1.0) for job, count in zip(jobs, values.values(), strict=True)
    }
    sweeps = [Sweep("lifting", swept, jobs)]
    text = robustness.markdown([], sweeps, rows)
    assert text.splitlines()[-1] == (
        "| `lifting` | `prop_friction` | 0.4 to 1.6 | 0.7 to 1.3 | 0.7 to 1.6* | 1 to 1.3 |"
    )
    del rows[jobs[-1]]
    assert robustness.markdown([], sweeps, rows) == ""


def test_a_certificate_marks_only_the_side_on_which_the_grid_ends() -> None:
    swept = SweptFactor("action_delay", Factor("action_delay", 0.0, 1.0, 0.0, "integer"))
    jobs = [_job("sweep", f"action_delay:{float(value)!r}") for value in range(3)]
    rows = {job: Row(job, n, "a", 1.0) for job, n in zip(jobs, (99, 50, 10), strict=True)}
    text = robustness.markdown([], [Sweep("lifting", swept, jobs)], rows)
    assert text.splitlines()[-1].endswith("| 0 to 2 | 0 to 1 | 0* to 0 | 0* to 0 |")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["policies=nowhere"], r"no policy 'nowhere'"),
        (["policies=RUN", "changes=camra"], r"no change 'camra' .*mean camera"),
        (["policies=RUN", "factors=frction"], r"no factor 'frction' .*friction"),
        (["policies=RUN", "episodes=-1"], r"episodes=-1; valid: from 0"),
        (["policies=RUN", "renderer=gl"], r"renderer=gl is unknown; valid: auto, classic, rays"),
        (["policy=RUN"], r"unknown key 'policy'; did you mean policies"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], told: str
) -> None:
    out = tmp_path / "out"
    filled = [text.replace("RUN", str(run)) for text in given]

    def command(argv: list[str]) -> int:
        return robustness.robustness([text for text in argv if text != "device=cpu"])

    assert_refused(capsys, command, [*filled, f"out={out}"], told)
    assert not out.with_suffix(".csv").exists()


def test_a_file_of_something_else_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out.csv"
    table.write_text("a,b\n1,2\n")
    assert run_command(robustness.robustness, [f"policies={run}", f"out={tmp_path / 'out'}"]) == 2
    assert "is no table of this script" in capsys.readouterr().err
    assert table.read_text() == "a,b\n1,2\n"
