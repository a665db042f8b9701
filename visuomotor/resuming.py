"""What of a folder a run can go on from, and what else it is where it cannot.

Judges a folder by its names and by what its newest checkpoint says of itself, before anything in it
is touched. Knows no learner.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from visuomotor.checkpoint import load_checkpoint, newest_facts
from visuomotor.config import Config
from visuomotor.errors import UserError
from visuomotor.policy_files import shipped_names
from visuomotor.predecessors import shipped_teachers
from visuomotor.run_folder import CONFIG_FILE, RunFolder
from visuomotor.runtime.files import EVALUATION, MANIFEST

# Phases of each algorithm, in order; a checkpoint belongs to one phase.
PHASES = {"ril": ("start", "ril"), "distill": ("teacher", "dagger", "finetune")}
# Of what a checkpoint says about a learner; another number means that it cannot go on exactly.
CHECKPOINT_FORMAT = 6
STUDENT_IS_ENOUGH = "student_is_enough"  # among what phases hand on: no PPO follows


def open_run(path: Path) -> RunFolder:
    """The folder of a run that goes on. Raises UserError, and leaves the folder as it is, if it is
    none, or none that can be gone on with. Relative paths of its settings are found from wherever
    it goes on."""
    folder = RunFolder.open(path, _refuse_what_is_no_training)
    folder.config = _found_from(folder.started_in(), folder.config)
    return folder


def _found_from(start: Path | None, config: Config) -> Config:
    """The settings with relative paths as seen from `start`, where something is there; names of
    what is shipped stay. What the folder keeps, and exports take along, is as it was given."""
    if start is None:
        return config

    def found(given: str | None, shipped: Collection[str] = ()) -> str | None:
        if given is None or given in shipped or not (start / given).exists():
            return given
        return str(start / given)

    return replace(
        config,
        demonstrations=found(config.demonstrations),
        start_from=found(config.start_from, shipped_names()),
        distill=replace(
            config.distill, teacher_run=found(config.distill.teacher_run, shipped_teachers())
        ),
    )


def to_go_on_from(folder: RunFolder) -> tuple[dict[str, Any], int]:
    """A run's newest sound checkpoint and its step. Raises UserError if there is none, or one that
    cannot be gone on from."""
    state, step, notes = load_checkpoint(folder.checkpoints)
    for note in notes:
        print(note, file=sys.stderr)
    _refuse_state(folder.path, folder.config, state)
    return state, step


def phase_steps(config: Config, start: int) -> dict[str, int]:
    """Env steps of each phase; start: of ril's start, which demonstrations without actions lack."""
    distill = config.distill
    return {
        "start": start,
        "ril": config.total_steps - start,
        "teacher": distill.teacher.total_steps,
        "dagger": distill.dagger_steps,
        "finetune": distill.finetuning,
    }


def is_finished(config: Config, state: dict[str, Any]) -> bool:
    """Whether a run has nothing left to train, by its newest checkpoint."""
    phase = state["phase"]
    # A run whose demonstrations have no actions had no start.
    steps = phase_steps(config, config.starting if int(state["steps_before"]) > 0 else 0)
    phases = PHASES[config.algorithm]
    done = int(state["learner"]["env_steps"]) >= steps[phase]
    if phase == "dagger" and is_enough(config, state["carried"]):
        return done and "unlogged" not in state
    if any(steps[later] > 0 for later in phases[phases.index(phase) + 1 :]) or "unlogged" in state:
        return False
    if phase == "teacher":  # which may be done before; at its end it is handed over
        return "teacher" in state["carried"]
    return done


def is_enough(config: Config, carried: dict[str, Any]) -> bool:
    """Whether a student was found to need no PPO, and is still asked to have none."""
    return config.distill.finetune_steps is None and bool(carried.get(STUDENT_IS_ENOUGH, False))


def final_evaluation_of(folder: RunFolder, state: dict[str, Any]) -> Path | None:
    """Where a finished run's final evaluation is; None: it has still to be made."""
    final = folder.path / "evaluations" / "final" / EVALUATION
    found = folder.path / EVALUATION if "policy" in state else final
    return found if final.is_file() and found.is_file() else None


def told_of_finished(folder: RunFolder, state: dict[str, Any], evaluation: Path | None) -> str:
    """Of a run that has nothing left to do."""
    path, phase = folder.path, state["phase"]
    judged = f"; its evaluation: {evaluation}" if evaluation is not None else ""
    longer = {
        "ril": "total_steps",
        "dagger": "distill.dagger_steps",
        "finetune": "distill.finetune_steps",
    }.get(phase)
    more = (
        f"to train longer: a larger {longer} in '{path / CONFIG_FILE}' and resume={path} again, or "
        f"a new run with start_from={path}"
        if longer is not None
        else f"to distill it: algorithm=distill distill.teacher_run={path} in a new run"
    )
    return f"{path} is finished, and nothing is changed{judged}; {more}"


def does_not_fit(folder: RunFolder, step: int, error: Exception) -> UserError:
    """Of a checkpoint that cannot be put into what the run's settings make."""
    facts = " ".join(str(error).split())
    facts = facts if len(facts) <= 160 else f"{facts[:160]}..."
    return UserError(
        f"'{folder.path / CONFIG_FILE}' does not fit the run's checkpoint of step {step} "
        f"({type(error).__name__}: {facts}); put its settings back as they were when the run "
        "began, or start a new run for other ones"
    )


def refuse_held_out_shadows(config: Config, where: str = "") -> None:
    if config.camera.shadows:
        raise UserError(
            f"{where}camera.shadows=true: another renderer's shadows are held out, for evaluation "
            "only; to train for shadows: randomization.appearance.cast_shadow=0,1"
        )


def _refuse_what_is_no_training(path: Path, config: Config) -> None:
    if (path / MANIFEST).is_file():
        raise UserError(
            f"'{path}' is a bundle, which holds a policy and no training to go on with; begin a "
            f"new run with it: start_from={path}"
        )
    refuse_held_out_shadows(config, f"'{path / CONFIG_FILE}' says ")
    state = newest_facts(path / "checkpoints")
    if state is not None:
        _refuse_state(path, config, state)


def _refuse_state(path: Path, config: Config, state: dict[str, Any]) -> None:
    """state: of a checkpoint, or the facts of one."""
    if state.get("phase") == "average":
        raise UserError(
            f"'{path}' is a mean of policies and no training to go on with; begin a new one from "
            f"it: start_from={path}"
        )
    if "learner" not in state:
        raise UserError(
            f"'{path}' is a finished teacher and no training to go on with; begin a new run with "
            f"it: algorithm=distill distill.teacher_run={path}"
        )
    written = state.get("format", 1)
    if written != CHECKPOINT_FORMAT:
        raise UserError(
            f"'{path}' was trained by another version of visuomotor (its checkpoints have format "
            f"{written}, not {CHECKPOINT_FORMAT}); " + _still_good_for(path, state)
        )
    if state.get("phase") not in PHASES[config.algorithm]:
        its = next((name for name in PHASES if state.get("phase") in PHASES[name]), "another")
        raise UserError(
            f"'{path / CONFIG_FILE}' says algorithm={config.algorithm}, and the run's checkpoint "
            f"is of algorithm={its} (phase {state.get('phase')}); put its settings back as they "
            "were when the run began, or start a new run for other ones"
        )


def _still_good_for(path: Path, state: dict[str, Any]) -> str:
    if "policy" in state:
        return (
            f"its policy can be evaluated and exported; to train on: start_from={path} in a new run"
        )
    return "it holds no policy from pixels yet; start a new run"
