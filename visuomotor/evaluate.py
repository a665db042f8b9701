"""Measures policies: `python -m visuomotor.evaluate policy=stacking sims=randomized episodes=500`.

Episodes start from the task's initial distribution only. An episode is identified by the seed and
its number: every policy meets the same start states and factors. Writes `evaluation.json`,
`episodes.csv` and `factors.csv` (which factor breaks the policy); of several policies
(`policy=a,b`) each in a folder of its own, and what they differ by in `comparison.json`.
`sims=sweep:friction` varies one factor alone, beyond its training range.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from visuomotor.checkpoint import write_atomic
from visuomotor.cli import resolve_device, run_command
from visuomotor.comparison import Outcome, compare, comparison, table
from visuomotor.config import Config, EnvConfig
from visuomotor.envs import VisuomotorEnv
from visuomotor.errors import UserError, did_you_mean
from visuomotor.evaluation import (
    MAX_WORLDS,
    Episodes,
    Film,
    evaluation_env,
    run_episodes,
    summarize,
    write_evaluation,
    write_json,
)
from visuomotor.factor_effects import effects_csv, told
from visuomotor.heldout import CHANGES, HeldOut
from visuomotor.overrides import parse_overrides, to_yaml
from visuomotor.policy_files import LoadedPolicy, load_evaluated_policy, training_curve
from visuomotor.real_camera import calibrated
from visuomotor.sweep import (
    PREFIX,
    SweepPoint,
    SweptFactor,
    grid,
    sweep_csv,
    sweep_png,
    sweep_record,
    sweep_text,
    swept_factor,
)
from visuomotor.video import Clip

SIMS = ("nominal", "randomized", "heldout")
CLIPS = 4  # of each kind in a report
CLIP_EVERY = 2  # control steps a frame
# A second camera, for people: the arm, the table and all that lies on it.
WIDE: dict[str, Any] = {
    "pos": (0.62, -0.72, 0.72),
    "lookat": (0.0, 0.1, 0.12),
    "fovy": 42.0,
    "height": 128,
    "width": 128,
}


@dataclass(frozen=True)
class HeldOutOptions:
    only: str | None = None  # changes, with commas between; None: all of them


@dataclass(frozen=True)
class EvaluateConfig:
    policy: str = ""  # a run folder, a bundle or a shipped name; several, with commas between
    # nominal; randomized: the training ranges; heldout: those and what no training meets;
    # sweep:<factor>: that one varies and the others are nominal.
    sims: str = "randomized"
    heldout: HeldOutOptions = field(default_factory=HeldOutOptions)
    values: str | None = None  # of a swept factor, with commas between; None: beyond its range
    episodes: int = 200
    seed: int = 0
    # Folder for evaluation.json, episodes.csv and video. None: the run's; of several policies
    # evaluations/<task>-<sims>-seed<seed>.
    out: str | None = None
    device: str = "auto"
    strength: float | None = None  # of sims=randomized; None: 1
    episode_steps: int | None = None  # control steps; None: as the policy was trained
    calibration: str | None = None  # visuomotor.calibrate's file: the nominal camera stands there
    video: bool = True  # a short film and a contact sheet of the policy's own camera
    report: bool = True  # report.html: plots, clips, settings; opens offline


@dataclass(frozen=True)
class Judged:
    """One policy's evaluation."""

    outcome: Outcome
    film: Film | None
    clips: list[Clip]


def _check(options: EvaluateConfig) -> list[str]:
    """-> the policies' names."""
    names = [name.strip() for name in options.policy.split(",")]
    if options.policy == "":
        raise UserError("policy= is missing; give a run folder, a bundle or a shipped name")
    if "" in names:
        raise UserError(
            f"policy={options.policy} has an empty name; give policies with one comma between"
        )
    if options.sims not in SIMS and not options.sims.startswith(PREFIX):
        valid = f"{', '.join(SIMS)}, {PREFIX}<factor>"
        raise UserError(f"sims='{options.sims}' is unknown; valid: {valid}")
    if options.heldout.only is not None and options.sims != "heldout":
        raise UserError("heldout.only= chooses among held-out changes; give sims=heldout")
    if options.sims == "heldout" and options.strength is not None:
        raise UserError("strength= has no place with sims=heldout: it is that of training")
    if options.values is not None and not options.sims.startswith(PREFIX):
        raise UserError(f"values= are those of a swept factor; give sims={PREFIX}<factor>")
    if options.strength is not None and options.sims == "nominal":
        raise UserError("strength= has no place with sims=nominal; give sims=randomized")
    if options.strength is not None and options.sims.startswith(PREFIX):
        raise UserError("strength= has no place in a sweep: all other factors are nominal")
    if options.episodes < 1:
        raise UserError(f"episodes={options.episodes}; at least 1 is needed")
    if options.seed < 0:
        raise UserError(f"seed={options.seed}; valid: from 0")
    if options.episode_steps is not None and options.episode_steps < 1:
        raise UserError(f"episode_steps={options.episode_steps}; at least 1 is needed")
    if options.strength is not None and not 0.0 <= options.strength <= 1.0:
        raise UserError(f"strength={options.strength}; valid: 0 to 1")
    if options.out is not None:
        folder = Path(options.out)
        present = next(path for path in (folder, *folder.parents) if path.exists())
        if not present.is_dir():
            raise UserError(f"out={options.out}: {present} is a file; give a folder")
    _heldout(options)
    return names


def _same_worlds(names: list[str], configs: list[Config], steps: int | None) -> list[Config]:
    """The policies' settings with the worlds of the first one, so that all meet the same episodes.

    Each keeps its own camera. Raises UserError where policies cannot be judged side by side.
    """
    first = configs[0]
    for name, config in zip(names[1:], configs[1:], strict=True):
        if config.task != first.task:
            raise UserError(
                f"{names[0]} does {first.task}, {name} does {config.task}; give policies of one "
                "task"
            )
        ours, theirs = (replace(c.env, num_threads=0, episode_steps=None) for c in (first, config))
        if ours != theirs:
            raise UserError(
                f"{names[0]} acts at env {_facts(ours)}, {name} at {_facts(theirs)}: they cannot "
                "share episodes; evaluate them one by one"
            )
        lengths = [c.env.episode_steps for c in (first, config)]
        if steps is None and lengths[0] != lengths[1]:
            raise UserError(
                f"{names[0]} and {name} were trained with episodes of other lengths "
                f"({lengths[0]}, {lengths[1]}; None: the task's own); give episode_steps="
            )
        if config.randomization != first.randomization:
            print(f"{name} is judged in the worlds of {names[0]}: its own differ", file=sys.stderr)
    # All cores, whatever the training was given: episodes do not depend on it.
    env = replace(first.env, episode_steps=steps or first.env.episode_steps, num_threads=0)
    return [replace(c, env=env, randomization=first.randomization) for c in configs]


def _facts(env: EnvConfig) -> str:
    return f"control_dt={env.control_dt}, physics_dt={env.physics_dt}"


def _labels(names: list[str]) -> list[str]:
    """A name for each policy's folder and row: the last part of its path, made unique."""
    labels: list[str] = []
    for name in names:
        stem = label = Path(name).resolve().name
        number = 1
        while label in labels:
            number += 1
            label = f"{stem}-{number}"
        labels.append(label)
    return labels


def _world(
    config: Config, options: EvaluateConfig, device: torch.device, **how: Any
) -> VisuomotorEnv:
    """The worlds that `sims` asks for; how: what else `evaluation_env` may be told."""
    how.setdefault("num_envs", min(MAX_WORLDS, options.episodes))
    strength = _strength(options)
    return evaluation_env(config, seed=options.seed, strength=strength, device=device, **how)


def _strength(options: EvaluateConfig) -> float:
    if options.strength is not None:
        return options.strength
    return 1.0 if options.sims in ("randomized", "heldout") else 0.0


def _run(
    env: VisuomotorEnv,
    loaded: LoadedPolicy,
    options: EvaluateConfig,
    shown: str,
    film: Film | None = None,
) -> Episodes:
    """With a bar that is called `shown`; tells where the policy stopped."""
    policy = loaded.policy(env.num_envs)
    with tqdm(total=options.episodes, unit="episode", desc=shown, disable=None) as bar:

        def progress(done: int, successes: int) -> None:
            bar.update(done - bar.n)
            bar.set_postfix(success=f"{100 * successes / done:.1f}%")

        episodes = run_episodes(env, policy, options.episodes, on_step=film, progress=progress)
    stopped = int((episodes.stopped >= 0).sum())
    if stopped > 0:
        why = getattr(policy, "refusal", None) or "its actions were not finite"
        print(
            f"{shown} stopped in {stopped} episodes, which count as failed: {why}", file=sys.stderr
        )
    return episodes


def _judge(
    name: str,
    label: str,
    loaded: LoadedPolicy,
    config: Config,
    options: EvaluateConfig,
    device: torch.device,
) -> Judged:
    heldout = _heldout(options)
    env = _world(config, options, device, heldout=heldout)
    film = Film(env=env) if options.video or options.report else None
    episodes = _run(env, loaded, options, label, film)
    summary = summarize(
        episodes,
        task=config.task,
        policy=name,
        sims=options.sims,
        strength=_strength(options),
        **({} if heldout is None else {"heldout": list(heldout.names)}),
        seed=options.seed,
        episode_steps=env.episode_steps,
        provenance=loaded.provenance,
    )
    clips = []
    if film is not None and options.report:
        wide = replace(config, camera=replace(config.camera, **WIDE))
        filmed = len(film.states[0])
        other = _world(wide, options, device, heldout=heldout, num_envs=filmed)
        clips = _clips(film, episodes, other)
    return Judged(Outcome(label, episodes, summary), film if options.video else None, clips)


def _clips(film: Film, episodes: Episodes, wide: VisuomotorEnv) -> list[Clip]:
    """Of the filmed episodes some that fail and some that succeed; `wide` has the same ones, before
    another camera."""
    filmed = np.arange(len(film.states[0]))
    succeeds = episodes.success[: len(filmed)]
    chosen = [*filmed[~succeeds][:CLIPS], *filmed[succeeds]][: 2 * CLIPS]
    wide.reset()
    assert wide.camera is not None
    views: dict[int, list[np.ndarray]] = {int(world): [] for world in chosen}
    ids = torch.tensor(sorted(views))
    moments = range(0, len(film.states), CLIP_EVERY)
    for moment in moments:
        wide.sim.reset(ids, film.states[moment][ids])
        images = wide.camera.caster.render(ids).permute(0, 2, 3, 1).cpu().numpy()
        for world, image in zip(ids.tolist(), images, strict=True):
            views[world].append(image.copy())
    return [
        Clip(
            episode=int(world),
            success=bool(succeeds[world]),
            stage=episodes.stages[episodes.end_stage[world]],
            policy_view=[film.frames[moment][world] for moment in moments],
            wide_view=views[int(world)],
            rate=1.0 / (wide.control_dt * CLIP_EVERY),
        )
        for world in chosen
    ]


def _heldout(options: EvaluateConfig) -> HeldOut | None:
    if options.sims != "heldout":
        return None
    if options.heldout.only is None:
        return HeldOut(tuple(CHANGES))
    names = tuple(name.strip() for name in options.heldout.only.split(","))
    for name in names:
        if name not in CHANGES:
            hint = did_you_mean(name, CHANGES, most=1)
            raise UserError(
                f"heldout.only: there is no change '{name}'{hint}; valid: {', '.join(CHANGES)}"
            )
    return HeldOut(names)


def _sweep(
    names: list[str],
    loaded: list[LoadedPolicy],
    configs: list[Config],
    options: EvaluateConfig,
    device: torch.device,
) -> int:
    """Every policy at every value of one factor."""
    labels = _labels(names)
    probe = _world(configs[0], options, device, num_envs=1, render=False)
    swept = swept_factor(probe.randomizer, options.sims.removeprefix(PREFIX))
    values = grid(swept.factor) if options.values is None else _values(options.values, swept)
    curves: dict[str, list[SweepPoint]] = {label: [] for label in labels}
    for label, one, config in zip(labels, loaded, configs, strict=True):
        for value in values:
            env = _world(config, options, device, pinned={swept.name: value})
            episodes = _run(env, one, options, f"{label} {swept.name}={value:g}")
            successes = int(episodes.success.sum())
            curves[label].append(SweepPoint(value, options.episodes, successes))
    stem = f"{configs[0].task}-sweep-{swept.name.replace('/', '-')}-seed{options.seed}"
    folder = Path(options.out) if options.out is not None else Path("evaluations") / stem
    folder.mkdir(parents=True, exist_ok=True)
    for label, name, points in zip(labels, names, curves.values(), strict=True):
        facts = {"task": configs[0].task, "policy": name, "seed": options.seed}
        place = folder / label if len(labels) > 1 else folder
        place.mkdir(exist_ok=True)
        write_json(place / "sweep.json", {**facts, **sweep_record(swept, points)})
        write_atomic(place / "sweep.csv", sweep_csv(points).encode())
        print(sweep_text(label, swept, points))
    write_atomic(folder / "sweep.png", sweep_png(swept, curves))
    print(f"{options.episodes} episodes each, seed {options.seed}; written to {folder}")
    return 0


def _values(text: str, swept: SweptFactor) -> list[float]:
    """`values=` as numbers in order. Raises UserError for what no world can have."""
    whole = swept.factor.distribution == "integer"
    kind = "whole numbers from 0 on" if whole else "numbers"
    scales = swept.factor.neutral == 1.0
    if scales:
        kind = "numbers above 0: the factor is a scale"
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    good = values and all(math.isfinite(value) for value in values)
    if whole:
        good = good and all(value >= 0 and value == int(value) for value in values)
    if scales:
        good = good and values[0] > 0.0
    if not good:
        raise UserError(f"values={text} for {swept.name}; give {kind}, with commas between")
    return values


def _write(judged: Judged, folder: Path, rate: float) -> None:
    outcome = judged.outcome
    write_evaluation(folder, outcome.episodes, outcome.summary, judged.film, rate)
    write_atomic(folder / "factors.csv", effects_csv(outcome.effects).encode())


def _report(
    folder: Path, judged: list[Judged], configs: list[Config], curves: list[str | None]
) -> None:
    from visuomotor.report import Reported, report_html  # Plotly takes a while to import

    reported = [
        Reported(
            label=one.outcome.label,
            summary=one.outcome.summary,
            episodes=one.outcome.episodes,
            effects=one.outcome.effects,
            clips=one.clips,
            curve=curve,
            settings=to_yaml(config),
        )
        for one, config, curve in zip(judged, configs, curves, strict=True)
    ]
    pairs = [compare(judged[0].outcome, one.outcome) for one in judged[1:]]
    write_atomic(folder / "report.html", report_html(reported, pairs).encode())


def evaluate(argv: list[str]) -> int:
    options = parse_overrides(argv, EvaluateConfig)
    names = _check(options)
    device = resolve_device(options.device)
    loaded = [load_evaluated_policy(name, device) for name in names]
    configs = _same_worlds(names, [one.config for one in loaded], options.episode_steps)
    configs = [replace(c, camera=calibrated(c.camera, options.calibration)) for c in configs]
    if options.sims.startswith(PREFIX):
        return _sweep(names, loaded, configs, options, device)
    # What is read comes before the work.
    curves = [training_curve(name) for name in names] if options.report else []
    judged = [
        _judge(name, label, one, config, options, device)
        for name, label, one, config in zip(names, _labels(names), loaded, configs, strict=True)
    ]
    outcomes = [one.outcome for one in judged]
    task, rate = configs[0].task, 1.0 / configs[0].env.control_dt
    if len(judged) == 1:
        folder = Path(options.out) if options.out is not None else loaded[0].default_out
        if folder is not None:
            _write(judged[0], folder, rate)
    else:
        default = Path("evaluations") / f"{task}-{options.sims}-seed{options.seed}"
        folder = Path(options.out) if options.out is not None else default
        for one in judged:
            _write(one, folder / one.outcome.label, rate)
        write_json(folder / "comparison.json", comparison(outcomes))
    if folder is not None and options.report:
        _report(folder, judged, configs, curves)
    written = f"; written to {folder}" if folder is not None else ""
    if len(judged) > 1:
        print(f"{task} {options.sims} seed={options.seed}, {options.episodes} episodes{written}")
        print(table(outcomes))
        return 0
    summary = judged[0].outcome.summary
    low, high = 100 * summary["success_low"], 100 * summary["success_high"]
    print(
        f"{task} {options.sims} seed={options.seed}: {summary['successes']} of "
        f"{summary['episodes']} episodes succeed, {100 * summary['success_rate']:.1f} % "
        f"(95 %: {low:.1f} to {high:.1f}), mean return {summary['mean_return']:.2f}{written}"
    )
    if options.sims in ("randomized", "heldout"):
        print(told(judged[0].outcome.effects))
    return 0


def main() -> None:
    sys.exit(run_command(evaluate, sys.argv[1:]))


if __name__ == "__main__":
    main()
