"""Trains a policy: `python -m visuomotor.train task=stacking`, or `resume=runs/...` to go on.

The story: demonstrations -> (teacher from state ->) pixel actor -> evaluation, with checkpoints on
the way. Leaves with code 0 when done, 1 where it diverged, 130 after Ctrl-C and 143 after SIGTERM
(both save first), 2 on bad input.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visuomotor.checkpoint import (
    list_checkpoints,
    save_checkpoint,
)
from visuomotor.cli import (
    EXIT_DIVERGED,
    EXIT_DONE,
    StopSignal,
    lacking_memory,
    resolve_device,
    run_command,
)
from visuomotor.cloning import clone_from_state
from visuomotor.config import Config
from visuomotor.demonstrate import demonstrations_for
from visuomotor.demonstrations import digest
from visuomotor.distillation import Distillation
from visuomotor.envs import make_task
from visuomotor.errors import DivergedError, UserError
from visuomotor.evaluation import (
    Film,
    evaluate_actor,
    summarize,
    write_evaluation,
    write_json,
)
from visuomotor.limits import validate, without_effect
from visuomotor.overrides import HELP_WORDS, leaf_types, parse_overrides
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import make_teacher, places_of, view_of
from visuomotor.predecessors import carried_over, check_state_width, shaped_like_its_teacher
from visuomotor.progress import Progress, shown_metrics
from visuomotor.real_camera import calibrated
from visuomotor.rehearsal import Rehearsal, take_over_judgement, teacher_networks
from visuomotor.reinforcement import Reinforcement
from visuomotor.replay import DemonstrationReplay
from visuomotor.resuming import (
    CHECKPOINT_FORMAT,
    PHASES,
    STUDENT_IS_ENOUGH,
    does_not_fit,
    final_evaluation_of,
    is_enough,
    is_finished,
    open_run,
    phase_steps,
    refuse_held_out_shadows,
    to_go_on_from,
    told_of_finished,
)
from visuomotor.retargeting import with_retargeted
from visuomotor.run_folder import CONFIG_FILE, RunFolder, check_makeable, refuse_occupied
from visuomotor.runtime.files import EVALUATION
from visuomotor.state_teacher import StateTeacher

# In every row of metrics.jsonl, besides env_steps, wall_s and fps.
PROMISED_METRICS = (
    "success_rate",
    "mean_return",
    "gail_jsd",
    "approx_kl",
    "clipfrac",
    "explained_variance",
)
EVALUATION_SEED = 1_000_003  # of evaluations inside a run, not the one that a user would take


class _StopRequested(Exception):
    """In the middle of what begins a phase, or of an evaluation."""


class Run:
    """One training run: its folder, its phase, its learner."""

    def __init__(self, folder: RunFolder, replay: DemonstrationReplay, device: torch.device):
        self.config = config = folder.config
        self.folder = folder
        self.device = device
        self.replay = replay
        self.demonstrations = digest(replay.demos)  # retargeted and turned ones too
        self.stop = StopSignal()
        self.phase = PHASES[config.algorithm][0]
        self.learner: Reinforcement | Distillation
        self._was_finished = False  # and saved so: only its final evaluation is left to be made
        self._final_summary: dict[str, Any] | None = None  # where the end was judged already
        self._beginning = ""  # what a phase begins with, while it does
        self.steps_before = 0  # env steps of the phases before this one
        self.carried: dict[str, Any] = {}  # networks that a finished phase hands to the next
        self._since_checkpoint = time.monotonic()
        self._next_evaluation = config.run.evaluate_every
        self._unlogged: dict[str, float] = {}  # of an iteration that is still to be evaluated
        self._wall_before = 0.0
        self._began = time.monotonic()

    def begin(self, carried: dict[str, Any]) -> None:
        """Starts the first phase; `carried` may hold another run's teacher, whose phase is over,
        and another's pixel actor, which takes the place of ril's start.

        Raises _StopRequested if the run is asked to stop meanwhile; nothing is saved then."""
        self.carried = dict(carried)
        phase = PHASES[self.config.algorithm][0]
        if phase == "teacher" and "teacher" in carried:
            phase = "dagger" if self.total_steps("dagger") > 0 else "finetune"
        elif phase == "start" and self.total_steps(phase) > 0:
            self.carried["teacher"] = self._clone().state_dict()
        elif phase == "start":
            phase = "ril"
        self.start_phase(phase)
        self.save()

    # --- phases -----------------------------------------------------------------------------------

    def total_steps(self, phase: str) -> int:
        start = self.config.starting if self.replay.has_actions else 0
        return phase_steps(self.config, start)[phase]

    def start_phase(self, phase: str, *, resuming: bool = False) -> None:
        """Builds the learner of a phase; without `resuming` also what it begins with."""
        self.phase = phase
        total = self.total_steps(phase)
        teacher = None
        if "teacher" in self.carried:
            teacher = make_teacher(self.config, self.replay.all_state.shape[1])
            teacher.load_state_dict(self.carried["teacher"])
        if phase in ("start", "dagger"):
            assert teacher is not None
            student = Distillation(
                self.config,
                self.replay,
                teacher,
                num_envs=self.config.num_envs,
                total_steps=total,
                device=self.device,
                rehearsal=self._rehearsal() if phase == "dagger" else None,
                steps_before=self.steps_before,
            )
            self.learner = student
            if resuming:
                return
            if "actor" in self.carried:
                student.actor.load_state_dict(self.carried["actor"])
                student.remember_starts()
            else:
                self._vision_start(student)
            return
        pixels, finetuning = phase != "teacher", phase == "finetune"
        # A policy that can see and act before it is reinforced, by labels or by another run.
        taught = finetuning or (phase == "ril" and "actor" in self.carried)
        config, distill = self.config, self.config.distill
        if finetuning:
            labels = distill.finetune_label_weight
            cloning = replace(config.cloning, label_weight=labels, final_label_weight=labels)
            config = replace(config, cloning=cloning)
        learner = Reinforcement(
            config,
            self.replay,
            pixels=pixels,
            num_envs=config.num_envs if pixels else distill.teacher.num_envs,
            total_steps=total,
            device=self.device,
            expert=teacher if pixels else None,
            vision=not finetuning and (config.aux.after_start or not taught),
            noise=distill.finetune_noise if taught else None,
            steps_before=self.steps_before,
        )
        self.learner = learner
        if resuming:
            return
        if pixels and "actor" in self.carried:
            learner.actor.load_state_dict(self.carried["actor"])
        elif learner.vision is not None:
            self._vision_start(learner)
        if finetuning:
            take_over_judgement(learner, self.carried)
        elif phase == "teacher" and learner.cloning:
            start = self.config.cloning.start_updates
            self._show_progress("cloning start", start, learner.clone_start)

    def _rehearsal(self) -> Rehearsal | None:
        steps = self.config.distill.rehearsal_steps
        if steps == 0:
            return None
        return Rehearsal(
            self.config,
            self.replay,
            self.carried,
            total_steps=steps,
            device=self.device,
            steps_before=self.steps_before,
        )

    def _clone(self) -> StateTeacher:
        """What the demonstrations did, as a network of the state: the expert of ril's start."""
        config, replay = self.config, self.replay
        torch.manual_seed(_seed(config.seed))
        generator = torch.Generator().manual_seed(_seed(config.seed) + 1)
        clone = make_teacher(config, replay.all_state.shape[1])
        clone.set_normalization(*replay.statistics(replay.state))
        self._show_progress(
            "cloning start",
            config.cloning.start_updates,
            lambda progress: clone_from_state(
                clone,
                lambda size, noise: replay.state_batch(size, noise, generator),
                config.cloning,
                progress,
            ),
        )
        return clone

    def _vision_start(self, learner: Reinforcement | Distillation) -> None:
        print("vision start: frames of start states and demonstration states", file=sys.stderr)
        self._show_progress("vision start", self.config.aux.start_updates, learner.vision_start)

    def _show_progress(
        self, label: str, total: int, work: Callable[[Callable[[dict[str, float]], None]], None]
    ) -> None:
        """Runs what reports {"step": ..., "...": ...} now and then."""
        self._beginning = f", {label}"
        with Progress(total, label, unit="update") as bar:

            def progress(metrics: dict[str, float]) -> None:
                self._check_stop()
                step = int(metrics.pop("step"))
                bar.update(step, {name: f"{value:.4f}" for name, value in metrics.items()})

            work(progress)
            bar.update(total)
        self._beginning = ""

    def _check_stop(self) -> None:
        if self.stop.requested:
            raise _StopRequested

    # --- the loop ---------------------------------------------------------------------------------

    def train(self) -> int:
        """Runs the remaining phases. Returns the exit code."""
        phases = PHASES[self.config.algorithm]
        while True:
            code = self._run_phase()
            if code is not None:
                return code
            following = phases[phases.index(self.phase) + 1 :]
            following = tuple(p for p in following if self.total_steps(p) > 0)
            try:
                if following == ("finetune",) and self._student_is_enough():
                    following = ()
            except _StopRequested:  # the checkpoint is of here
                return self._stopped()
            if not following:
                if self.phase == "teacher":  # of a run that ends with it: others may take it over
                    assert isinstance(self.learner, Reinforcement)
                    self.carried |= teacher_networks(self.learner)
                break
            self.save()  # the phase as it ended: a resumed run begins the next one again
            self._hand_over()
            try:
                self.start_phase(following[0])
            except _StopRequested:
                return self._stopped()
            self.save()
        if not self._was_finished:
            self.save()
        try:
            self._final_evaluation()
        except _StopRequested:  # a resumed run has nothing left to do but this
            return self._stopped()
        return 0

    def _run_phase(self) -> int | None:
        total = self.total_steps(self.phase)
        learner = self.learner
        begin = learner.env_steps
        try:
            if self._clone_is_enough():
                return None
        except _StopRequested:  # the checkpoint is of here
            return self._stopped()
        with Progress(total, self.phase, initial=begin, at_once=True) as progress:
            while self._unlogged or (learner.env_steps < total and not self._teacher_is_done()):
                metrics = self._unlogged or self._iterate()
                try:
                    self._evaluate_if_due(metrics)
                except _StopRequested:
                    self._unlogged = metrics
                    self.save()
                    return self._stopped()
                self._unlogged = {}
                self._log(metrics)
                progress.update(learner.env_steps, shown_metrics(metrics))
                if self.stop.requested:
                    self.save()
                    return self._stopped()
                if time.monotonic() - self._since_checkpoint > self.config.run.checkpoint_seconds:
                    self.save()
        return None

    def _iterate(self) -> dict[str, float]:
        begin, steps = time.monotonic(), self.learner.env_steps
        metrics = self.learner.iterate()
        metrics["fps"] = (self.learner.env_steps - steps) / (time.monotonic() - begin)
        return metrics

    def _stopped(self) -> int:
        """The exit code of a run that was asked to stop, and has saved."""
        print(
            f"saved; go on with: python -m visuomotor.train resume={self.folder.path}",
            file=sys.stderr,
        )
        return self.stop.exit_code

    def not_begun(self) -> int:
        """The exit code of a run that was asked to stop before it had anything to save."""
        print(
            "stopped before the first checkpoint: what the start had learned is lost; begin anew "
            f"with: python -m visuomotor.train resume={self.folder.path}",
            file=sys.stderr,
        )
        return self.stop.exit_code

    def diverged(self, error: DivergedError) -> str:
        """Where a run that diverged stands, what to change, and how to go on."""
        sizes = ", ".join(f"{key}={value:g}" for key, value in self._step_sizes().items())
        in_force = f"; in force: {sizes}" if sizes else ""
        return (
            f"the training diverged in phase {self.phase}{self._beginning}: {error}{in_force}; "
            f"lower what is too high in '{self.folder.path / CONFIG_FILE}' (as it is, the same "
            f"comes again) and go on {self._where_it_goes_on()}"
        )

    def lacks_memory(self, asked: str) -> str:
        """What a run that the machine has no memory for holds, and how to go on."""
        config = self.config
        sizes = {
            "num_envs": config.num_envs,
            "ppo.num_steps": config.ppo.num_steps,
            "aux.memory": config.aux.memory,
            "aux.start_frames": config.aux.start_frames,
        }
        if config.algorithm == "distill":
            sizes["distill.teacher.num_envs"] = config.distill.teacher.num_envs
        if self.phase in ("start", "dagger"):
            sizes["distill.memory"] = config.distill.memory
        settings = ", ".join(f"{key}={value}" for key, value in sizes.items())
        return (
            f"not enough memory in phase {self.phase}{self._beginning}: {asked}; what decides is "
            f"{settings}; begin a new run with less, or lower aux.memory or aux.start_frames in "
            f"'{self.folder.path / CONFIG_FILE}' and go on {self._where_it_goes_on()}"
        )

    def _step_sizes(self) -> dict[str, float]:
        """What may be too high where a phase diverges."""
        config = self.config
        if "vision" in self._beginning:  # has a step size of its own, which the error tells
            return {}
        if self._beginning:
            return {"cloning.learning_rate": config.cloning.learning_rate}
        if self.phase in ("start", "dagger"):
            found = {"distill.learning_rate": config.distill.learning_rate}
            if config.distill.vision_learning_rate is not None:
                found["distill.vision_learning_rate"] = config.distill.vision_learning_rate
            if self.phase == "start" or config.distill.rehearsal_steps == 0:
                return found
        else:
            found = {}
        return found | {
            "ppo.learning_rate": config.ppo.learning_rate,
            "ppo.max_learning_rate": config.ppo.max_learning_rate,
            "ppo.critic_learning_rate": config.ppo.critic_learning_rate,
            "gail.learning_rate": config.gail.learning_rate,
            "gail.scale": config.gail.scale,
            "aux.learning_rate": config.aux.learning_rate,
        }

    def _where_it_goes_on(self) -> str:
        steps = list_checkpoints(self.folder.checkpoints)
        where = f"from step {steps[-1]}" if steps else "from the start (there is no checkpoint yet)"
        return f"{where}: python -m visuomotor.train resume={self.folder.path}"

    def _clone_is_enough(self) -> bool:
        """Whether a teacher needs no reinforcement: its clone succeeds as often as it has to."""
        enough = self.config.distill.teacher.enough_success
        learner = self.learner
        if self.phase != "teacher" or enough is None or learner.env_steps > 0:
            return False
        assert isinstance(learner, Reinforcement)
        if not learner.cloning:
            return False
        run = self.config.run
        episodes = run.final_episodes or run.evaluate_episodes
        rate = self._evaluate(learner.actor, episodes, "clone")["success_rate"]
        said = "it is the teacher as it is" if rate >= enough else "reinforcement goes on from it"
        print(f"the clone succeeds in {100 * rate:.1f} % of {episodes}: {said}", file=sys.stderr)
        return bool(rate >= enough)

    def _student_is_enough(self) -> bool:
        """Whether a student whose steps are done needs no reinforcement. Saves before it judges."""
        distill = self.config.distill
        if distill.finetune_steps is not None or distill.enough_success is None:
            return False
        if self.phase != "dagger":
            return False
        if self._was_finished:
            return is_enough(self.config, self.carried)
        self.save()
        run = self.config.run
        episodes = run.final_episodes or run.evaluate_episodes
        summary = self._evaluate(self.learner.judged, episodes, "student")
        rate = summary["success_rate"]
        enough = bool(rate >= distill.enough_success)
        said = "no PPO follows" if enough else "PPO goes on from it"
        print(f"the student succeeds in {100 * rate:.1f} % of {episodes}: {said}", file=sys.stderr)
        self.carried.pop(STUDENT_IS_ENOUGH, None)
        if enough:
            self.carried[STUDENT_IS_ENOUGH] = True
            self._final_summary = summary
        return enough

    def _teacher_is_done(self) -> bool:
        enough = self.config.distill.teacher.enough_success
        if self.phase != "teacher" or enough is None:
            return False
        assert isinstance(self.learner, Reinforcement)
        return self.learner.settled_success() >= enough

    def _hand_over(self) -> None:
        """What the finished phase leaves to the next."""
        learner = self.learner
        self.steps_before += learner.env_steps
        if isinstance(learner, Reinforcement):
            self.carried |= teacher_networks(learner)
        else:
            self.carried["actor"] = learner.judged.state_dict()
            if learner.rehearsal is not None:
                self.carried |= learner.rehearsal.networks()

    def _log(self, metrics: dict[str, float]) -> None:
        steps = self.steps_before + self.learner.env_steps
        row: dict[str, Any] = {"env_steps": steps, "wall_s": self.wall_seconds()}
        # Unknown, not 0: rates before the first episode has ended, what a phase does not measure.
        row |= dict.fromkeys(PROMISED_METRICS, math.nan) | {"phase": self.phase}
        self.folder.log(row | metrics)

    def wall_seconds(self) -> float:
        """Seconds of work in this run, over all its sittings."""
        return self._wall_before + time.monotonic() - self._began

    # --- checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Raises DivergedError, and saves nothing, if a weight is not finite."""
        self._check_weights()
        state: dict[str, Any] = {
            "format": CHECKPOINT_FORMAT,
            "phase": self.phase,
            "learner": self.learner.state_dict(),
            "steps_before": self.steps_before,
            "carried": self.carried,
            "demonstrations": self.demonstrations,
            "wall_s": self.wall_seconds(),
            "next_evaluation": self._next_evaluation,
        }
        if self._unlogged:
            state["unlogged"] = self._unlogged
        if isinstance(self.learner.judged, PixelActor):
            state["policy"] = {"actor": self.learner.judged.state_dict()}
        save_checkpoint(
            self.folder.checkpoints,
            self.steps_before + self.learner.env_steps,
            state,
            keep=self.config.run.keep_checkpoints,
        )
        self._since_checkpoint = time.monotonic()

    def _check_weights(self) -> None:
        learner = self.learner
        networks = {"the actor": learner.actor, "the mean of the actor's weights": learner.judged}
        if isinstance(learner, Reinforcement):
            networks |= {"the critic": learner.critic, "GAIL": learner.gail.discriminator}
        for name, network in networks.items():
            if not all(bool(value.isfinite().all()) for value in network.parameters()):
                raise DivergedError(f"a weight of {name} is non-finite")

    def load(self, state: dict[str, Any], step: int) -> None:
        """Goes on from a checkpoint, of `to_go_on_from`. Says so on stderr if it was trained with
        other demonstrations. Raises UserError if the settings make networks or worlds of another
        kind."""
        if state.get("demonstrations", self.demonstrations) != self.demonstrations:
            print(
                "warning: the demonstrations, or what is made of them, are not what they were when "
                "the run stopped; the run goes on, but not bit for bit",
                file=sys.stderr,
            )
        self.carried = state["carried"]
        self.steps_before = int(state["steps_before"])
        try:
            self.start_phase(state["phase"], resuming=True)
            self.learner.load_state_dict(state["learner"])
        # What networks, worlds and buffers of another size raise on being given a state.
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            if lacking_memory(error) is not None:
                raise
            raise does_not_fit(self.folder, step, error) from error
        self._was_finished = is_finished(self.config, state)
        self._next_evaluation = int(state["next_evaluation"])
        self._unlogged = state.get("unlogged", {})
        self._wall_before = float(state["wall_s"])
        self.folder.truncate_log(step)

    # --- evaluation -------------------------------------------------------------------------------

    def _evaluate_if_due(self, metrics: dict[str, float]) -> None:
        every = self.config.run.evaluate_every
        steps = self.steps_before + self.learner.env_steps
        if every == 0 or steps < self._next_evaluation:
            return
        episodes = self.config.run.evaluate_episodes
        summary = self._evaluate(self.learner.judged, episodes, f"step_{steps:012d}")
        self._next_evaluation += every * max(1, -(-(steps - self._next_evaluation) // every))
        metrics["evaluation_success_rate"] = summary["success_rate"]

    def _evaluate(
        self, actor: PixelActor | StateTeacher, episodes: int, name: str
    ) -> dict[str, Any]:
        """Judges a policy as it is now, without exploration noise; a film where it sees.

        Raises _StopRequested, and leaves nothing, if the run is asked to stop.
        """
        film = Film() if isinstance(actor, PixelActor) else None
        strength = self.config.randomization.strength
        outcome = evaluate_actor(
            actor,
            self.config,
            episodes=episodes,
            seed=EVALUATION_SEED,
            strength=strength,
            device=self.device,
            on_step=film,
            before_step=self._check_stop,
        )
        summary = summarize(
            outcome,
            task=self.config.task,
            policy=str(self.folder.path),
            phase=self.phase,
            sims="randomized" if strength > 0 else "nominal",
            strength=strength,
            seed=EVALUATION_SEED,
        )
        folder = self.folder.path / "evaluations" / name
        write_evaluation(folder, outcome, summary)
        if film is not None:
            film.save(folder, 1.0 / self.config.env.control_dt)
        return summary

    def _final_evaluation(self) -> None:
        if self.config.run.final_episodes == 0:
            return
        summary = self._final_summary
        if summary is None:
            summary = self._evaluate(self.learner.judged, self.config.run.final_episodes, "final")
        else:  # of a student that was just judged
            folder = self.folder.path / "evaluations"
            shutil.rmtree(folder / "final", ignore_errors=True)
            (folder / "student").rename(folder / "final")
        sees = isinstance(self.learner.judged, PixelActor)
        if sees and not self._judged_with_more(summary):
            write_json(self.folder.path / EVALUATION, summary)
        low, high = 100 * summary["success_low"], 100 * summary["success_high"]
        print(
            f"{self.config.task}, {'from pixels' if sees else 'the teacher, from state'}: "
            f"{100 * summary['success_rate']:.1f} % of {summary['episodes']} {summary['sims']} "
            f"episodes succeed (95 %: {low:.1f} to {high:.1f}); "
            f"{self.wall_seconds() / 60:.1f} minutes; {self.folder.path}"
        )

    def _judged_with_more(self, summary: dict[str, Any]) -> bool:
        """Whether evaluation.json is of this very policy already, in more episodes."""
        try:
            present = json.loads((self.folder.path / EVALUATION).read_text(encoding="utf-8"))
            alike = all(present[key] == summary[key] for key in ("sims", "strength"))
            steps = self.steps_before + self.learner.env_steps
            of_this = present["provenance"]["env_steps"] == steps
            return bool(alike and of_this and present["episodes"] > summary["episodes"])
        except (OSError, ValueError, LookupError, TypeError):
            return False  # none is there, one of training's own, or a damaged one


def _seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 51]).generate_state(1, np.uint64)[0] >> 1)


def _open(argv: list[str]) -> tuple[Run, Callable[[], None]] | None:
    """A new run, or an old one, and what puts it where it begins or stopped: to be called once
    signals are heard, as it may take minutes. None: an old one that is finished, which is said."""
    keys = [argument.partition("=")[0] for argument in argv]
    _refuse_misspelt_resume(keys)
    if "resume" in keys and not any(key in HELP_WORDS for key in keys):
        return _resume(argv)
    for argument in argv:
        if argument.split("=")[0].split(".")[0] in ("sims", "heldout"):
            raise UserError(
                f"{argument}: held-out worlds are for evaluation only; no run may train in them. "
                "Ranges of training stand under randomization."
            )
    config = parse_overrides([a for a in argv if not a.startswith("resume=")], Config)
    refuse_held_out_shadows(config)
    config = replace(config, task=make_task(config.task).name)  # an alias is not kept
    config = shaped_like_its_teacher(config, keys)
    # A run keeps where its camera stands, not the file that said so.
    camera = calibrated(config.camera, config.calibration)
    config = replace(config, camera=camera, calibration=None)
    validate(config)
    # A task that does not say where things are is refused before anything is made.
    view_of(config)
    places_of(config)
    device = resolve_device(config.device)
    if config.out is None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name = f"{config.task}-{config.algorithm}-seed{config.seed}-{stamp}"
        config = replace(config, out=f"runs/{name}")
    assert config.out is not None
    # What is read comes first: a file that cannot be read leaves no run behind. But a folder that
    # is occupied, or cannot be made, is refused before any work is done for it.
    refuse_occupied(config.out)
    check_makeable(config.out)
    carried = carried_over(config)
    idle = without_effect(config, keys)
    if idle:
        print(
            f"warning: with these settings algorithm={config.algorithm} does not use "
            f"{', '.join(idle)}; the run goes on without",
            file=sys.stderr,
        )
    replay = replay_of(config)
    check_state_width(config, carried, replay.all_state.shape[1])
    run = Run(RunFolder.create(Path(config.out), config), replay, device)
    return run, partial(run.begin, carried)


def replay_of(config: Config) -> DemonstrationReplay:
    """The run's demonstrations, and more out of them, as the networks see them."""
    demonstrations = demonstrations_for(config)
    lacking = sum(demo.actions is None for demo in demonstrations.demos)
    if lacking > 0 and config.cloning.enabled:
        print(
            f"warning: {lacking} of {len(demonstrations)} demonstrations have no actions: nothing "
            "is cloned from any of them, and those are not carried over to other starts; leave "
            "them out, or say that it is meant: cloning.enabled=false",
            file=sys.stderr,
        )
    # Without cloning the demonstrations' actions are not to be used, nor what is made with them.
    if config.retargeted > 0 and config.cloning.enabled:
        demonstrations = with_retargeted(config, demonstrations, config.retargeted)
    return DemonstrationReplay(config, demonstrations)


def _resume(argv: list[str]) -> tuple[Run, Callable[[], None]] | None:
    if len(argv) > 1:
        extra = [a for a in argv[1:] if a.startswith("resume=")] or [
            a for a in argv if not a.startswith("resume=")
        ]
        raise UserError(
            f"resume= goes on with one run and its own config.yaml; {' '.join(extra)} does not go "
            "with it; start a new run for other settings"
        )
    given = argv[0].removeprefix("resume=").strip()
    if given == "":
        raise UserError("resume= has no value; name a run's folder, such as resume=runs/mine")
    folder = open_run(Path(given))
    config = folder.config
    device = resolve_device(config.device)
    # What cannot be gone on with is refused before any work is done for it.
    saved = to_go_on_from(folder) if list_checkpoints(folder.checkpoints) else None
    if saved is not None and is_finished(config, saved[0]):
        evaluation = final_evaluation_of(folder, saved[0])
        if evaluation is not None or config.run.final_episodes == 0:
            print(told_of_finished(folder, saved[0], evaluation))
            folder.close()
            return None
    run = Run(folder, replay_of(config), device)
    if saved is not None:
        return run, partial(run.load, *saved)
    print("no checkpoint yet: beginning from the start", file=sys.stderr)
    return run, partial(run.begin, carried_over(config))


def _refuse_misspelt_resume(keys: list[str]) -> None:
    known = leaf_types(Config)
    for key in keys:
        if key != "resume" and key not in known and get_close_matches(key, ["resume"], cutoff=0.75):
            raise UserError(f"unknown key '{key}'; did you mean resume=<run folder>?")


def train(argv: list[str]) -> int:
    torch.set_float32_matmul_precision("high")
    np.seterr(invalid="raise")
    opened = _open(argv)
    if opened is None:
        return EXIT_DONE
    run, start = opened
    with run.folder, run.stop:
        try:
            try:
                start()
            except _StopRequested:
                return run.not_begun()
            return run.train()
        except DivergedError as error:
            print(f"error: {run.diverged(error)}", file=sys.stderr)
            return EXIT_DIVERGED
        except (MemoryError, RuntimeError) as error:
            asked = lacking_memory(error)
            if asked is None:
                raise
            raise UserError(run.lacks_memory(asked)) from error


def main() -> None:
    sys.exit(run_command(train, sys.argv[1:]))


if __name__ == "__main__":
    main()
