"""Training as a whole: phases, folders, stopping, going on exactly, and bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from tests import learning
from tests.failing import Failing
from tests.training import AVERAGED, DISTILL, ITERATION, REHEARSED, RIL, SMALL, metrics, stop_at
from visuomotor import train as training
from visuomotor.auxiliary_phase import FrameMemory
from visuomotor.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from visuomotor.cli import run_command
from visuomotor.config import FINETUNE_STEPS, Config, DistillConfig
from visuomotor.demonstrate import collect
from visuomotor.demonstrations import Demonstrations, save_demonstrations
from visuomotor.distillation import Distillation
from visuomotor.evaluation import Film
from visuomotor.rehearsal import Rehearsal
from visuomotor.reinforcement import Reinforcement
from visuomotor.replay import ScatteredFrames
from visuomotor.train import Run, train


def leaves(state: Any, path: str = "") -> dict[str, Any]:
    if isinstance(state, dict):
        entries: Any = state.items()
    elif isinstance(state, list | tuple):
        entries = enumerate(state)
    else:
        return {path: state}
    flat: dict[str, Any] = {}
    for key, value in entries:
        flat |= leaves(value, f"{path}/{key}")
    return flat


def assert_same_end(one: Path, other: Path) -> None:
    """Both runs end with the same checkpoint, bit for bit, and the same metrics."""
    (state_one, step_one, _), (state_other, step_other, _) = (
        load_checkpoint(folder / "checkpoints") for folder in (one, other)
    )
    assert step_one == step_other
    first, second = leaves(state_one), leaves(state_other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        if name == "/wall_s":
            continue
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[name].dtype, name
            assert torch.equal(value.nan_to_num(), second[name].nan_to_num()), name
        else:
            assert value == second[name], name
    assert metrics(one) == metrics(other)


@pytest.mark.parametrize(
    ("algorithm", "interruptions"),
    # Iterations, counted over a sitting, in the middle of which the run is asked to stop.
    [(RIL, (2,)), (AVERAGED, (2, 3, 4)), (REHEARSED, (5, 2))],
    ids=["ril", "averaged", "rehearsed"],
)
def test_an_interrupted_run_ends_as_one_that_was_not(
    algorithm: tuple[str, ...],
    interruptions: tuple[int, ...],
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = [*SMALL, *algorithm, demonstrations]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train([*settings, f"out={whole}"]) == 0
    argv = [*settings, f"out={parts}"]
    for iteration in interruptions:
        with monkeypatch.context() as patch:
            stop_at(patch, iteration, signal.SIGTERM)
            assert train(argv) == 143
        argv = [f"resume={parts}"]
    assert train(argv) == 0
    assert len(metrics(parts)) == (4 if algorithm is RIL else 10)
    if algorithm is REHEARSED:
        assert any("rehearsal_mean_reward" in row for row in metrics(parts))
    assert_same_end(whole, parts)


def test_a_run_stopped_while_a_phase_begins_ends_as_one_that_was_not(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning to see takes minutes: it is not waited for."""
    settings = [*SMALL, *DISTILL, demonstrations]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train([*settings, f"out={whole}"]) == 0
    with monkeypatch.context() as patch:
        original = Distillation.vision_start

        def stopped(self: Any, progress: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            original(self, progress)
            pytest.fail("the run went on")

        patch.setattr(Distillation, "vision_start", stopped)
        assert train([*settings, f"out={parts}"]) == 143
    assert train([f"resume={parts}"]) == 0
    assert_same_end(whole, parts)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
@pytest.mark.parametrize("moment", ["clone", "vision start"])
def test_a_run_stopped_before_its_first_checkpoint_says_what_is_lost_and_begins_anew(
    moment: str,
    number: signal.Signals,
    code: int,
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        place, name = {
            "clone": (training, "clone_from_state"),
            "vision start": (Distillation, "vision_start"),
        }[moment]
        original = getattr(place, name)

        def stopped(*arguments: Any) -> None:
            os.kill(os.getpid(), number)
            original(*arguments)
            pytest.fail("the run went on")

        patch.setattr(place, name, stopped)
        assert run_command(train, [*SMALL, *RIL, demonstrations, f"out={run}"]) == code
    told = capsys.readouterr().err
    assert "stopped before the first checkpoint" in told and f"resume={run}" in told
    assert not (run / "checkpoints").exists() and metrics(run) == []
    if moment == "clone":
        assert train([f"resume={run}"]) == 0
        assert len(metrics(run)) == 4


def test_a_run_stopped_while_it_evaluates_ends_as_one_that_was_not(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes of minutes are not waited for, and what was cut off is done on going on."""
    settings = [*SMALL, *RIL, demonstrations]
    settings[settings.index("run.evaluate_every=0")] = f"run.evaluate_every={2 * ITERATION}"
    settings[settings.index("run.final_episodes=0")] = "run.final_episodes=4"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train([*settings, f"out={whole}"]) == 0
    argv = [*settings, f"out={parts}"]
    film = Film.__call__
    # Steps of a sitting's evaluations, which have 20 each: in the first one, in that of the last
    # iteration, and in the final one; the one before is done on going on.
    for number, code, moment in (
        (signal.SIGTERM, 143, 5),
        (signal.SIGINT, 130, 25),
        (signal.SIGTERM, 143, 25),
    ):
        with monkeypatch.context() as patch:
            steps = 0

            def stopped(
                self: Film, step: int, seen: Any, number: int = number, moment: int = moment
            ) -> None:
                nonlocal steps
                steps += 1
                if steps == moment:
                    os.kill(os.getpid(), number)
                film(self, step, seen)

            patch.setattr(Film, "__call__", stopped)
            assert train(argv) == code
            assert steps == moment  # the step in which the signal came was the last
        assert not (parts / "evaluation.json").exists()
        argv = [f"resume={parts}"]
    assert train(argv) == 0
    assert_same_end(whole, parts)
    for name in ("final", "step_000000000064", "step_000000000128"):
        one, other = (f / "evaluations" / name / "episodes.csv" for f in (whole, parts))
        assert one.read_text() == other.read_text()
    assert (parts / "evaluation.json").exists()


@pytest.mark.parametrize("algorithm", [RIL, REHEARSED], ids=["ril", "rehearsed"])
def test_randomization_grows_over_the_whole_run_whatever_its_phases(
    algorithm: tuple[str, ...],
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strengths: dict[Any, list[float]] = {}
    drawn: list[float] = []
    rehearsals = []
    for learner in (Reinforcement, Distillation):
        original = learner.iterate

        def iterate(self: Any, original: Any = original) -> dict[str, float]:
            found = original(self)
            strengths.setdefault(self, []).append(self.env.strength)
            return found

        monkeypatch.setattr(learner, "iterate", iterate)
    start, draw = Rehearsal.__init__, ScatteredFrames.draw

    def begun(self: Rehearsal, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        rehearsals.append(self.learner)

    def scattered(self: ScatteredFrames, *args: Any, **options: Any) -> Any:
        drawn.append(options["strength"])
        return draw(self, *args, **options)

    monkeypatch.setattr(Rehearsal, "__init__", begun)
    monkeypatch.setattr(ScatteredFrames, "draw", scattered)
    curriculum = f"randomization.curriculum_steps={8 * ITERATION}"
    settings = [*SMALL, *algorithm, curriculum, "randomization.strength=0.8", demonstrations]
    assert train([*settings, "aux.scattered=8", f"out={tmp_path / 'run'}"]) == 0
    apart = [strengths.pop(learner) for learner in rehearsals]
    grown = [0.1 * min(8, k) for k in range(10)]
    of_run = [value for values in strengths.values() for value in values]
    if algorithm is RIL:
        assert of_run == pytest.approx(grown[:4])
        assert drawn == pytest.approx([grown[0], grown[0]])  # vision start, one iteration of labels
    else:
        assert of_run == pytest.approx(grown)
        assert drawn == pytest.approx([grown[3], *grown[3:7]])
        assert apart == [pytest.approx(grown[3:5])]  # the teacher goes on from its own phase


def test_ril_starts_with_the_clones_labels_unless_told_not_to(
    demonstrations: str, tmp_path: Path
) -> None:
    for name, switch in (("on", ()), ("off", ("cloning.enabled=false",))):
        assert train([*SMALL, *RIL, *switch, demonstrations, f"out={tmp_path / name}"]) == 0
    phases = [[row["phase"] for row in metrics(tmp_path / name)] for name in ("on", "off")]
    assert phases == [["start"] + ["ril"] * 3, ["ril"] * 4]


@pytest.mark.parametrize(
    ("settings", "learns", "noise"),
    [
        (["cloning.start_steps=32"], False, 0.25),
        (["cloning.start_steps=32", "aux.after_start=true"], True, 0.25),
        (["cloning.start_steps=0"], True, 1.0),
        (["cloning.start_steps=32", "start_from=lifting"], False, 0.25),
        (["cloning.start_steps=32", "start_from=lifting", "aux.after_start=true"], True, 0.25),
    ],
    ids=["held", "goes on", "no start", "another's, held", "another's, goes on"],
)
def test_what_labels_have_taught_to_see_is_held_while_it_is_reinforced(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    learns: bool,
    noise: float,
) -> None:
    moved: list[bool] = []
    noises: list[float] = []
    iterate = Reinforcement.iterate

    def iterate_and_look(self: Reinforcement) -> dict[str, float]:
        before = [value.clone() for value in self.actor.encoder.state_dict().values()]
        result = iterate(self)
        after = self.actor.encoder.state_dict().values()
        moved.append(not all(map(torch.equal, before, after)))
        noises.append(self.actor.deviation.scale)
        return result

    monkeypatch.setattr(Reinforcement, "iterate", iterate_and_look)
    others = ("cloning.start_steps", *(("actor.",) if "start_from=lifting" in settings else ()))
    small = [setting for setting in SMALL if not setting.startswith(others)]
    given = [*settings, "distill.finetune_noise=0.25", demonstrations, f"out={tmp_path / 'run'}"]
    assert train([*small, *RIL, *given]) == 0
    assert moved == [learns] * len(moved) and len(moved) >= 2
    assert noises[0] == pytest.approx(noise)


def test_two_runs_with_one_seed_are_equal_and_with_two_seeds_are_not(
    demonstrations: str, tmp_path: Path
) -> None:
    settings = [*SMALL, *RIL, demonstrations, f"total_steps={2 * ITERATION}"]
    settings.remove(RIL[1])
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert train([*settings, f"seed={seed}", f"out={tmp_path / name}"]) == 0
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_ctrl_c_saves_and_leaves_with_130(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_at(monkeypatch, 2, signal.SIGINT)
    assert train([*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"]) == 130
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[-1] == 2 * ITERATION
    assert f"resume={tmp_path / 'run'}" in capsys.readouterr().err


def test_a_killed_run_goes_on_from_its_last_checkpoint(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no time for anything; the log's lines after the checkpoint are done again."""
    settings = [*SMALL, *RIL, demonstrations]
    settings.remove("run.checkpoint_seconds=100000")
    assert train([*settings, f"out={tmp_path / 'whole'}"]) == 0
    killed = tmp_path / "killed"
    command = (
        "import os, signal, sys\n"
        "from visuomotor import train\n"
        "log = train.RunFolder.log\n"
        "def log_and_die(self, row):\n"
        "    log(self, row)\n"
        f"    if row['env_steps'] == {3 * ITERATION}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "train.RunFolder.log = log_and_die\n"
        "train.torch.set_num_threads(1)\n"
        "train.main()\n"
    )
    argv = [*settings, "run.checkpoint_seconds=1e-9", f"out={killed}"]
    done = subprocess.run(
        [sys.executable, "-c", command, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list_checkpoints(killed / "checkpoints")[-1] == 2 * ITERATION
    assert len(metrics(killed)) == 3
    assert train([f"resume={killed}"]) == 0
    assert_same_end(tmp_path / "whole", killed)


def test_a_run_killed_before_its_first_checkpoint_begins_anew(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_clone", interrupted)
        code = run_command(train, [*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"])
    assert code == 130
    assert train([f"resume={tmp_path / 'run'}"]) == 0
    assert len(metrics(tmp_path / "run")) == 4


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, FINETUNE_STEPS),
        ({"dagger_steps": 0}, 0),  # a teacher alone has no student to go on with
        ({"finetune_steps": 0}, 0),
        ({"dagger_steps": 0, "finetune_steps": 9}, 9),
    ],
    ids=str,
)
def test_a_student_is_finetuned_unless_it_is_said_otherwise(
    given: dict[str, int], steps: int
) -> None:
    assert DistillConfig(**given).finetuning == steps


def test_a_clone_that_succeeds_is_the_teacher(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As it was cloned, and the student's reinforcement begins with judges that know nothing."""
    evaluate, judged = Run._evaluate, []

    def evaluated(self: Run, actor: Any, episodes: int, name: str) -> dict[str, Any]:
        summary = evaluate(self, actor, episodes, name)
        if name == "clone":
            assert episodes == 4 and actor is self.learner.actor
            judged.append({key: value.clone() for key, value in actor.state_dict().items()})
        return summary | {"success_rate": 0.9}

    monkeypatch.setattr(Run, "_evaluate", evaluated)
    monkeypatch.setattr(Reinforcement, "settled_success", lambda self: 0.0)
    for name, enough, phases in (
        ("done", "0.9", ["dagger", "finetune"]),
        ("not", "0.91", ["teacher"]),
        ("off", "null", ["teacher"]),
    ):
        out = tmp_path / name
        settings = [*SMALL, "algorithm=distill", demonstrations, f"out={out}"]
        settings += [f"distill.teacher.enough_success={enough}"]
        student = ITERATION if name == "done" else 0
        settings += [f"distill.{key}={student}" for key in ("dagger_steps", "finetune_steps")]
        settings += [f"distill.teacher.total_steps={ITERATION}"]
        assert train(settings) == 0
        assert [row["phase"] for row in metrics(out)] == phases
        told = capsys.readouterr().err
        assert ("it is the teacher as it is" in told) == (name == "done")
        assert ("the clone succeeds in 90.0 % of 4" in told) == (name != "off")
        if name == "done":
            state = load_checkpoint(out / "checkpoints")[0]
            assert all(torch.equal(state["carried"]["teacher"][k], v) for k, v in judged[0].items())
    assert len(judged) == 2


def test_a_student_that_succeeds_is_not_finetuned(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate, judged = Run._evaluate, []

    def evaluated(self: Run, actor: Any, episodes: int, name: str) -> dict[str, Any]:
        judged.append(name)
        return evaluate(self, actor, episodes, name) | {"success_rate": 0.9}

    monkeypatch.setattr(Run, "_evaluate", evaluated)
    monkeypatch.setattr("visuomotor.config.FINETUNE_STEPS", ITERATION)
    for name, enough, steps, phases in (
        ("done", "0.9", "null", ["dagger"]),
        ("not", "0.91", "null", ["dagger", "finetune"]),
        ("off", "null", "null", ["dagger", "finetune"]),
        ("asked", "0.9", str(ITERATION), ["dagger", "finetune"]),
    ):
        out, asks = tmp_path / name, name in ("done", "not")
        settings = [*SMALL, "algorithm=distill", demonstrations, f"out={out}"]
        settings[settings.index("run.final_episodes=0")] = "run.final_episodes=4"
        settings += [f"distill.dagger_steps={ITERATION}", "distill.teacher.enough_success=0.5"]
        settings += [f"distill.enough_success={enough}", f"distill.finetune_steps={steps}"]
        judged.clear()
        assert train(settings) == 0
        assert [row["phase"] for row in metrics(out)] == phases
        # What the student was judged by is the run's final evaluation, where it ends there.
        ends = [] if name == "done" else ["final"]
        assert judged == ["clone", *(["student"] if asks else []), *ends]
        assert (out / "evaluations" / "final" / "evaluation.png").is_file()
        assert (out / "evaluations" / "student").is_dir() == (name == "not")
        assert json.loads((out / "evaluation.json").read_text())["phase"] == phases[-1]
        told = capsys.readouterr()
        assert ("succeeds in 90.0 % of 4: no PPO follows" in told.err) == (name == "done")
        assert ("the student succeeds" in told.err) == asks
        before = judged.copy()
        assert train([f"resume={out}"]) == 0
        assert "is finished" in capsys.readouterr().out and judged == before
    # Killed before its final evaluation was written it is made anew, and no PPO follows either.
    out = tmp_path / "done"
    (out / "evaluation.json").unlink()
    assert train([f"resume={out}"]) == 0
    assert judged[-1] == "final" and [row["phase"] for row in metrics(out)] == ["dagger"]
    # As it says: it is trained longer, and judged again.
    config = out / "config.yaml"
    was, now = (f"dagger_steps: {count * ITERATION}\n" for count in (1, 2))
    config.write_text(config.read_text().replace(was, now))
    assert train([f"resume={out}"]) == 0
    assert judged[-1] == "student"
    assert [row["phase"] for row in metrics(out)] == ["dagger"] * 2
    # Or finetuned after all.
    text = config.read_text().replace("finetune_steps: null", f"finetune_steps: {ITERATION}")
    config.write_text(text)
    assert train([f"resume={out}"]) == 0
    assert [row["phase"] for row in metrics(out)] == ["dagger"] * 2 + ["finetune"]


def test_a_run_stopped_while_its_student_is_judged_goes_on_there(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, evaluate = tmp_path / "run", Run._evaluate
    settings = [*SMALL, "algorithm=distill", demonstrations, f"out={out}"]
    settings += [f"distill.dagger_steps={ITERATION}", f"distill.teacher.total_steps={ITERATION}"]
    settings += ["distill.teacher.enough_success=null", "distill.enough_success=0.01"]

    def stopped(self: Run, actor: Any, episodes: int, name: str) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, actor, episodes, name)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_evaluate", stopped)
        assert train(settings) == 143
    assert not (out / "evaluations").exists()
    state = load_checkpoint(out / "checkpoints")[0]
    assert state["phase"] == "dagger" and "student_is_enough" not in state["carried"]
    rated = iter([0.5])
    monkeypatch.setattr(Run, "_evaluate", lambda *_: {"success_rate": next(rated)})
    assert train([f"resume={out}"]) == 0
    assert [row["phase"] for row in metrics(out)] == ["teacher", "dagger"]
    assert load_checkpoint(out / "checkpoints")[0]["carried"]["student_is_enough"]


def test_a_teacher_that_succeeds_is_done(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Reinforcement, "settled_success", lambda self: 0.9 * (self.env_steps >= 2 * ITERATION)
    )
    for name, enough, iterations in (("done", "0.9", 2), ("not", "0.91", 3), ("off", "null", 3)):
        settings = [*SMALL, *DISTILL[:2], "distill.finetune_steps=0", demonstrations]
        settings += [
            f"distill.dagger_steps={ITERATION}",
            f"distill.teacher.enough_success={enough}",
            f"out={tmp_path / name}",
        ]
        assert train(settings) == 0
        phases = [row["phase"] for row in metrics(tmp_path / name)]
        assert phases == ["teacher"] * iterations + ["dagger"]


def test_evaluations_leave_numbers_and_pictures(demonstrations: str, tmp_path: Path) -> None:
    settings = [*SMALL, *RIL, demonstrations]
    settings[settings.index("run.evaluate_every=0")] = f"run.evaluate_every={2 * ITERATION}"
    settings[settings.index("run.final_episodes=0")] = "run.final_episodes=6"
    folder = tmp_path / "run"
    assert train([*settings, f"out={folder}"]) == 0
    evaluations = sorted(path.name for path in (folder / "evaluations").iterdir())
    assert evaluations == ["final", "step_000000000064", "step_000000000128"]
    for name in evaluations:
        sheet = cv2.imread(str(folder / "evaluations" / name / "evaluation.png"))
        assert sheet is not None
        assert sheet.std() > 10  # there is something to see
        assert list((folder / "evaluations" / name).glob("evaluation.mp4"))
    final = json.loads((folder / "evaluation.json").read_text())
    assert final["episodes"] == 6
    assert final["sims"] == "randomized"
    measured = [row.get("evaluation_success_rate") for row in metrics(folder)]
    assert [value is not None for value in measured] == [False, True, False, True]


def test_a_teacher_is_judged_from_state_and_is_no_pixel_policy(
    demonstrations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [*SMALL, "algorithm=distill", "distill.dagger_steps=0", demonstrations]
    settings[settings.index("run.final_episodes=0")] = "run.final_episodes=6"
    folder = tmp_path / "run"
    total = f"distill.teacher.total_steps={2 * ITERATION}"
    assert train([*settings, total, f"out={folder}"]) == 0
    assert {row["phase"] for row in metrics(folder)} == {"teacher"}
    judged = json.loads((folder / "evaluations" / "final" / "evaluation.json").read_text())
    assert (judged["episodes"], judged["phase"]) == (6, "teacher")
    assert not (folder / "evaluation.json").exists()
    assert "the teacher, from state" in capsys.readouterr().out


def test_the_log_holds_what_the_house_promises(demonstrations: str, tmp_path: Path) -> None:
    assert train([*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    promised = {
        "env_steps", "wall_s", "fps", "success_rate", "mean_return", "gail_jsd", "approx_kl",
        "clipfrac", "explained_variance",
    }  # fmt: skip
    for number, row in enumerate(rows, start=1):
        assert promised <= row.keys()
        assert row["env_steps"] == number * ITERATION
        assert row["fps"] > 0


# --- divergence and memory ------------------------------------------------------------------------


def small(*given: str) -> list[str]:
    """The settings of a small run of `ril`, but for those that are given."""
    keys = tuple(f"{setting.partition('=')[0]}=" for setting in given)
    return [setting for setting in (*SMALL, *RIL) if not setting.startswith(keys)] + list(given)


def told_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    lines = capsys.readouterr().err.splitlines()
    assert not any("Traceback" in line for line in lines)
    (line,) = [line for line in lines if line.startswith("error: ")]
    return line


@pytest.mark.parametrize(
    ("setting", "phase", "step"),
    [
        ("ppo.critic_learning_rate=1e30", "phase ril: the gradient of the critic", ITERATION),
        ("gail.scale=1e300", "phase ril: the gradient of the critic", ITERATION),
        ("cloning.learning_rate=1e30", "phase start, cloning start: the gradient", None),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" in value else "",
)
def test_a_run_that_diverges_says_where_and_how_to_go_on(
    setting: str,
    phase: str,
    step: int | None,
    demonstrations: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    key, _, value = setting.partition("=")
    assert run_command(train, [*small(setting), demonstrations, f"out={run}"]) == 1
    line = told_of(capsys)
    assert phase in line and f"{key}={float(value):g}" in line and f"resume={run}" in line
    assert (f"from step {step}:" if step else "no checkpoint yet") in line
    # As it says: with a lower value the run goes on.
    config = (run / "config.yaml").read_text()
    name = key.rpartition(".")[2]
    (run / "config.yaml").write_text(
        re.sub(rf"\b{name}: 1(\.0)?e\+\d+\b", f"{name}: 0.001", config)
    )
    assert (run / "config.yaml").read_text() != config
    assert run_command(train, [f"resume={run}"]) == 0
    assert len(metrics(run)) == 4


def test_weights_that_are_not_finite_are_not_saved(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    log = training.RunFolder.log

    def spoil(self: Any, row: Any) -> None:
        log(self, row)
        if row["env_steps"] == 4 * ITERATION:
            next(learners[-1].critic.parameters()).data.fill_(float("nan"))

    learners: list[Any] = []
    iterate = Reinforcement.iterate

    def kept(self: Reinforcement) -> dict[str, float]:
        learners.append(self)
        return iterate(self)

    monkeypatch.setattr(Reinforcement, "iterate", kept)
    monkeypatch.setattr(training.RunFolder, "log", spoil)
    assert run_command(train, [*small(), demonstrations, f"out={run}"]) == 1
    assert "a weight of the critic is non-finite" in told_of(capsys)
    assert list_checkpoints(run / "checkpoints")[-1] == ITERATION


def test_memory_that_the_machine_does_not_have_is_told_with_what_asked_for_it(
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # However large the machine is.
    monkeypatch.setattr(FrameMemory, "add", lambda *args: torch.empty(2**58))
    run = tmp_path / "run"
    argv = [*small("aux.memory=9999999"), demonstrations, f"out={run}"]
    assert run_command(train, argv) == 2
    line = told_of(capsys)
    assert "not enough memory in phase start" in line and "aux.memory=9999999" in line
    assert "GiB were asked for" in line and f"resume={run}" in line


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["task=staking"], ["staking", "stacking", "lifting"]),
        (["taks=stacking"], ["taks", "task"]),
        (["ppo.gama=0.9"], ["ppo.gama", "ppo.gamma"]),
        (["ppo.gamma=2"], ["ppo.gamma", "2", "up to 1"]),
        (["num_envs=many"], ["num_envs", "many", "whole number"]),
        (["device=tpu"], ["device=tpu", "cpu"]),
        (["algorithm=sac"], ["algorithm", "ril", "distill"]),
        (["demonstrations=nowhere.hdf5"], ["nowhere.hdf5", "visuomotor.demonstrate"]),
        (["resume=nowhere"], ["nowhere", "run"]),
        (["resume="], ["resume= has no value"]),
        (["algorithm=distill", "distill.teacher_run=nowhere"], ["nowhere", "algorithm=distill"]),
        (["distill.teacher_run=nowhere"], ["algorithm=distill", "ril"]),
        (
            ["algorithm=distill", "distill.dagger_steps=0", "distill.finetune_steps=9"],
            ["distill.finetune_steps=9", "start_from"],
        ),
        (
            ["algorithm=distill", "distill.dagger_steps=0", "distill.teacher_run=pouring"],
            ["distill.dagger_steps=0", "nothing to train"],
        ),
        (
            ["distill.vision_learning_rate=0.003", "aux.weight=0"],
            ["distill.vision_learning_rate=0.003", "aux.weight=0", "null"],
        ),
        (["actor.encoder=maps", "aux.weight=0"], ["actor.encoder=maps", "aux.weight=0", "another"]),
        (["actor.from_hand=true", "aux.weight=0"], ["actor.from_hand=true", "aux.weight above 0"]),
        (["actor.fused_heads=true", "aux.weight=0"], ["fused_heads=true", "aux.weight above 0"]),
        (
            ["actor.fused_heads=true", "actor.reads=features"],
            ["actor.fused_heads=true", "actor.reads=features", "both or located"],
        ),
        (
            ["actor.fused_heads=true", "aux.after_start=true"],
            ["actor.fused_heads=true", "aux.after_start=true", "aux.after_start=false"],
        ),
        (["camera.pos=0,0,1", "camera.lookat=0,0,0"], ["straight above", "lookat=[0.0,0.01,0.0]"]),
        (["resum=somewhere"], ["resum", "resume="]),
        (["resume=nowhere", "seed=1"], ["seed=1", "resume="]),
    ],
    ids=lambda value: value[0] if len(value) == 1 else "",
)
def test_bad_input_is_one_clear_line_and_leaves_nothing(
    argv: list[str],
    told: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(train, argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    for word in told:
        assert word in error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_a_run_is_not_trained_over(
    demonstrations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"]
    assert train(argv) == 0
    before = metrics(tmp_path / "run")
    assert run_command(train, argv) == 2
    assert f"resume={tmp_path / 'run'}" in capsys.readouterr().err
    assert metrics(tmp_path / "run") == before


def test_an_occupied_folder_is_refused_before_any_work(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*SMALL, *RIL, demonstrations, f"out={tmp_path / 'run'}"]
    assert train(argv) == 0
    monkeypatch.setattr("visuomotor.train.replay_of", None)
    assert run_command(train, argv) == 2


def test_a_run_with_retargeted_demonstrations_goes_on_exactly(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A whole episode, in which a block can be lifted.
    changed = ("retargeted=", "env.episode_steps=")
    small = [setting for setting in SMALL if not setting.startswith(changed)]
    settings = [*small, *RIL, demonstrations, "retargeted=2"]
    assert train([*settings, f"out={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGINT)
        assert train([*settings, f"out={tmp_path / 'parts'}"]) == 130
    assert train([f"resume={tmp_path / 'parts'}"]) == 0
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("changed", ["the file", "what is retargeted", "nothing", "no digest"])
def test_going_on_with_other_demonstrations_is_told(
    changed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, file = tmp_path / "run", tmp_path / "lifting.hdf5"
    made = learning.demonstrations()
    save_demonstrations(file, made)
    # In the place of what is retargeted; from a run of before, whose checkpoints say nothing.
    more = Demonstrations(made.task, made.control_dt, [*made.demos, made.demos[0]])
    monkeypatch.setattr("visuomotor.train.with_retargeted", lambda *args: more)
    settings = [setting for setting in SMALL if setting != "retargeted=0"]
    retargeted = "retargeted=1" if changed == "what is retargeted" else "retargeted=0"
    with monkeypatch.context() as patch:
        stop_at(patch, 2, signal.SIGTERM)
        if changed == "no digest":
            patch.setattr(
                "visuomotor.train.save_checkpoint",
                lambda folder, step, state, keep: save_checkpoint(
                    folder, step, {k: v for k, v in state.items() if k != "demonstrations"}, keep
                ),
            )
        argv = [*settings, *RIL, retargeted, f"demonstrations={file}", f"out={run}"]
        assert train(argv) == 143
    if changed == "the file":
        save_demonstrations(file, replace(made, demos=made.demos[::-1]))
    more.demos.append(made.demos[1])  # now another one is made
    capsys.readouterr()
    assert train([f"resume={run}"]) == 0
    told = "warning: the demonstrations" in capsys.readouterr().err
    assert told == (changed in ("the file", "what is retargeted"))


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("lacking", [0, 1, 2])
def test_demonstrations_without_actions_are_told_unless_cloning_is_off(
    lacking: int,
    enabled: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = learning.demonstrations()
    assert len(made) == 2
    demos = [
        replace(d, actions=None if i < lacking else d.actions) for i, d in enumerate(made.demos)
    ]
    monkeypatch.setattr("visuomotor.train.demonstrations_for", lambda _: replace(made, demos=demos))
    cloning = replace(Config().cloning, enabled=enabled)
    training.replay_of(Config(task=made.task, retargeted=0, turned_copies=0, cloning=cloning))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(told) == (lacking > 0 and enabled)
    for line in told:
        assert f"{lacking} of 2 demonstrations" in line and "cloning.enabled=false" in line


def test_settings_that_the_algorithm_never_reads_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("visuomotor.train.replay_of", Failing(print, 2))
    small = [setting for setting in SMALL if not setting.startswith("aux.minibatches")]
    for argv, told in (
        (DISTILL, ""),
        ([*DISTILL, "total_steps=99"], "algorithm=distill does not use total_steps;"),
    ):
        with pytest.raises(RuntimeError):
            train([*small, *argv, f"out={tmp_path / 'run'}"])
        lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert len(lines) == (told != "") and all(told in line for line in lines)


def test_help_names_resume_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        train(["resume=x", "--help"])
    assert left.value.code == 0
    assert "ppo.gamma" in capsys.readouterr().out


@pytest.mark.parametrize(("enabled", "made"), [(True, 4), (False, 2)])
def test_demonstrations_are_carried_over_where_their_actions_may_be_used(
    enabled: bool, made: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from visuomotor.config import CloningConfig, EnvConfig
    from visuomotor.train import replay_of

    config = Config(
        task="lifting",
        env=EnvConfig(num_threads=1),
        retargeted=2,
        turned_copies=0,
        cloning=CloningConfig(enabled=enabled),
    )
    demos, _ = collect(config, 2, seed=0)
    monkeypatch.setattr("visuomotor.train.demonstrations_for", lambda config: demos)
    assert len(replay_of(config).demos) == made
