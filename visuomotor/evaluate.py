"""Measures policies: `python -m visuomotor.evaluate policy=stacking sims=randomized episodes=500`.

Episodes start from the task's initial distribution only. An episode is identified by the seed and
its number: every policy meets the same start states and factors. Writes `evaluation.json`,
`episodes.csv` and `factors.csv` (which factor breaks the policy); of several policies
(`policy=a,b`) each in a folder of its own, and what they differ by in `comparison.json`.
`sims=sweep:friction` varies one factor alone, beyond its training range.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from visuomotor.checkpoint import write_atomic
from visuomotor.cli import resolve_device, run_command
from visuomotor.clips import WIDE, Seen
from visuomotor.comparison import Outcome, compare, comparison, table
from visuomotor.config import Config, EnvConfig
from visuomotor.envs import VisuomotorEnv, make_task
from visuomotor.errors import UserError
from visuomotor.evaluation import (
    MAX_WORLDS,
    Episodes,
    Film,
    Guarded,
    episodes_csv,
    evaluation_env,
    measured_by,
    run_episodes,
    summarize,
    write_evaluation,
    write_json,
)
from visuomotor.evaluation_folder import (
    COMPARISON,
    EPISODES,
    FACTORS,
    REPORT,
    SWEEP,
    SWEEP_PLOT,
    SWEEP_TABLE,
    EvaluationFolder,
    shortened,
)
from visuomotor.factor_effects import effects_csv, told
from visuomotor.factors import OWN
from visuomotor.heldout import CHANGES, HeldOut, HeldOutOptions, held_out, untold_origins
from visuomotor.limits import MOST_EPISODE_STEPS, MOST_EPISODES
from visuomotor.overrides import parse_overrides, to_yaml
from visuomotor.policy_files import LoadedPolicy, load_evaluated_policy, training_curve
from visuomotor.progress import Progress
from visuomotor.real_camera import calibrated
from visuomotor.runtime.files import EVALUATION, MODEL
from visuomotor.sweep import (
    PREFIX,
    SweepPoint,
    given_values,
    grid,
    sweep_csv,
    sweep_png,
    sweep_record,
    sweep_text,
    swept_factor,
)
from visuomotor.video import FILM, Clip

SIMS = ("nominal", "randomized", "heldout")


@dataclass(frozen=True)
class EvaluateConfig:
    policy: str = ""  # a run folder, a bundle or a shipped name; several, with commas between
    # nominal; randomized: the training ranges; heldout: those and what no training meets;
    # sweep:<factor>: that one varies and the others are nominal.
    sims: str = "randomized"
    heldout: HeldOutOptions = field(default_factory=HeldOutOptions)
    # Of a swept factor, with commas between, and its neutral one is added; None: beyond its range.
    values: str | None = None
    episodes: int = 200
    seed: int = 0
    # Folder for evaluation.json, episodes.csv and video. None: evaluations/<sims>-seed<seed> in a
    # run's folder; else, from here, evaluations/<policy>-<sims>-seed<seed>, of several policies
    # evaluations/<policy>+<policy>-<sims>-seed<seed>. What else is not as by default stands behind.
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
    settings: str  # YAML, of the worlds that it was judged in


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
    if options.episodes > MOST_EPISODES:
        raise UserError(f"episodes={options.episodes}; at most {MOST_EPISODES} are valid")
    if options.seed < 0:
        raise UserError(f"seed={options.seed}; valid: from 0")
    if options.episode_steps is not None and options.episode_steps < 1:
        raise UserError(f"episode_steps={options.episode_steps}; at least 1 is needed")
    if options.episode_steps is not None and options.episode_steps > MOST_EPISODE_STEPS:
        raise UserError(
            f"episode_steps={options.episode_steps}; valid: 1 to {MOST_EPISODE_STEPS}, or leave it "
            "out: as the policy was trained"
        )
    if options.strength is not None and not 0.0 <= options.strength <= 1.0:
        raise UserError(f"strength={options.strength}; valid: 0 to 1")
    if options.out is not None:
        folder = Path(options.out)
        present = next(path for path in (folder, *folder.parents) if path.exists())
        if not present.is_dir():
            raise UserError(f"out={options.out}: {present} is a file; give a folder")
    held_out(options.sims, options.heldout)
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
    if steps is None and _steps(first) > MOST_EPISODE_STEPS:
        raise UserError(
            f"{names[0]} was trained with episodes of {_steps(first)} steps, longer than an "
            f"evaluation's; give episode_steps=, 1 to {MOST_EPISODE_STEPS}"
        )
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
    seen: Seen | None = None,
) -> Episodes:
    """With a bar that is called `shown`; tells where the policy stopped."""
    policy = Guarded(loaded.policy(env.num_envs))
    with Progress(options.episodes, shown, unit="episode") as bar:

        def progress(done: int, successes: int) -> None:
            bar.update(done, {"success": f"{100 * successes / done:.1f}%"})

        episodes = run_episodes(
            env, policy, options.episodes, on_step=film, watcher=seen, progress=progress
        )
    stopped = int((episodes.stopped >= 0).sum())
    if stopped > 0:
        why = policy.refusal or "its actions were not finite"
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
    heldout = held_out(options.sims, options.heldout)
    env = _world(config, options, device, heldout=heldout)
    same = env.randomizer.nothing_beyond()
    if same:
        print(
            f"{label}: {', '.join(same)} had no range in training, and nothing lies beyond that",
            file=sys.stderr,
        )
    told = {} if heldout is None else _told_of_training(heldout, label, loaded, config)
    film = Film() if options.video else None
    seen = Seen(env) if options.report else None
    episodes = _run(env, loaded, options, label, film, seen)
    summary = summarize(
        episodes,
        task=config.task,
        policy=name,
        sims=options.sims,
        strength=_strength(options),
        **told,
        renderer="rays" if heldout is None else heldout.renderer or "rays",
        seed=options.seed,
        episode_steps=env.episode_steps,
        **_how(loaded, env, heldout, device),
    )
    clips = []
    if seen is not None:
        wide = replace(config, camera=replace(config.camera, **WIDE))
        people = None if heldout is None else replace(heldout, renderer=None)
        clips = seen.clips(
            episodes, lambda n: _world(wide, options, device, heldout=people, num_envs=n)
        )
    return Judged(Outcome(label, episodes, summary), film, clips, to_yaml(env.config))


def _told_of_training(
    heldout: HeldOut, label: str, loaded: LoadedPolicy, worlds: Config
) -> dict[str, Any]:
    """What evaluation.json says of what is held out, and for which policy it is not; said, too."""
    met = heldout.met_in_training(worlds, loaded.config, loaded.provenance)
    if met:
        print(
            f"{label}: {', '.join(met)}: it, or one that it comes from, has met some of what is "
            "held out here",
            file=sys.stderr,
        )
    untold = untold_origins(loaded.provenance)
    if untold:
        print(
            f"{label} comes from {', '.join(untold)}, of which nothing tells what it met in "
            "training: that may be some of what is held out here",
            file=sys.stderr,
        )
    return {"heldout": list(heldout.names), "met_in_training": met, "untold_origins": untold}


def _how(
    loaded: LoadedPolicy, env: VisuomotorEnv, heldout: HeldOut | None, device: torch.device
) -> dict[str, Any]:
    """What else evaluation.json says: where the policy comes from and acts, and in which worlds.

    Two evaluations with the same `worlds` and seed met the same start states and factors (of a
    sweep: at the same value).
    """
    config = env.config
    worlds = replace(config, env=replace(config.env, num_threads=0))
    told = (
        *("task", "env", "randomization"),
        *(asdict(worlds)[name] for name in ("task", "env", "randomization")),
        *(env.episode_steps, env.strength, env.randomizer.factor_names, env.randomizer.pinned),
        None if heldout is None else (heldout.names, heldout.renderer),
        *_own_factors(env),
    )
    through: dict[str, Any] = {"acts_through": "torch"}
    if loaded.bundle is not None:
        model = loaded.bundle.manifest["files"][MODEL]
        through = {"acts_through": "onnxruntime", "model_sha256": model}
    return {
        "provenance": loaded.provenance,
        **through,
        "device": str(device),
        "worlds": hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16],
    }


def _own_factors(env: VisuomotorEnv) -> list[tuple[str, str, float, float, float]]:
    """How a user's own factors are drawn, which no setting tells; the package's are in those."""
    columns = (column for group in OWN for column in env.randomizer.columns(group))
    factors = (env.randomizer.factors[column] for column in sorted(columns))
    return [(f.name, f.distribution, f.low, f.high, f.neutral) for f in factors]


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
    given = None
    if options.values is not None:
        given = given_values(options.values, swept, probe.episode_steps)
    values = grid(swept.factor) if given is None else given
    folder = _folder(options, loaded, labels, configs[0], given)
    curves: dict[str, list[SweepPoint]] = {label: [] for label in labels}
    records, settings = [], []
    for name, label, one, config in zip(names, labels, loaded, configs, strict=True):
        table, points = "", curves[label]
        for value in values:
            env = _world(config, options, device, pinned={swept.name: value})
            episodes = _run(env, one, options, f"{label} {swept.name}={value:g}")
            points.append(SweepPoint(value, options.episodes, int(episodes.success.sum())))
            # What is measured is kept, whatever becomes of the next value.
            rows = episodes_csv(episodes, options.seed)
            table += rows if table == "" else rows.partition("\n")[2]
            facts = {"task": config.task, "policy": name, "seed": options.seed}
            facts |= {"episode_steps": env.episode_steps, **_how(one, env, None, device)}
            complete = len(points) == len(values)
            facts |= {**sweep_record(swept, points, complete), **folder.facts, **measured_by()}
            place = folder.of(label)
            write_atomic(place / EPISODES, table.encode())
            write_atomic(place / SWEEP_TABLE, sweep_csv(points).encode())
            write_json(place / SWEEP, facts)
        records.append(facts)
        settings.append(to_yaml(env.config))
        print(sweep_text(label, swept, points))
    write_atomic(folder.path / SWEEP_PLOT, sweep_png(swept, curves))
    if options.report:
        from visuomotor.report import sweep_html  # Plotly takes a while to import

        page = sweep_html(swept, curves, records, settings)
        write_atomic(folder.path / REPORT, page.encode())
    print(f"{options.episodes} episodes each, seed {options.seed}; written to {folder.path}")
    return 0


def _folder(
    options: EvaluateConfig,
    loaded: list[LoadedPolicy],
    labels: list[str],
    config: Config,
    values: list[float] | None = None,
) -> EvaluationFolder:
    """Where everything is written. Raises UserError, before any work, where it cannot be.

    config: of the worlds. values: of a sweep, where a user gave them.
    """
    run = loaded[0].run
    stem = _stem(options, loaded[0].config, config, values)
    if options.out is not None:
        folder = Path(options.out)
    elif len(loaded) == 1 and run is not None:
        folder = run / "evaluations" / stem
    else:
        folder = Path("evaluations") / f"{shortened('+'.join(labels))}-{stem}"
    backs = options.sims == "randomized" and _strength(options) == 1.0
    if options.out is None and len(loaded) == 1 and run is not None and backs:
        path = run / EVALUATION  # see `_backs`
        if path.is_dir():
            raise UserError(f"cannot write '{path}': it is a folder; remove it, or give out=...")
    film = FILM if options.video else ()
    of_each, of_all = (EVALUATION, EPISODES, FACTORS, *film), (COMPARISON,) * (len(labels) > 1)
    if options.sims.startswith(PREFIX):
        of_each, of_all = (EPISODES, SWEEP, SWEEP_TABLE), (SWEEP_PLOT,)
    return EvaluationFolder(folder, labels, of_each, (*of_all, *(REPORT,) * options.report))


def _stem(
    options: EvaluateConfig, trained: Config, judged: Config, values: list[float] | None
) -> str:
    """Of a folder's name what is behind the policy: sims, seed, and what is not as by default."""
    parts = [options.sims.replace(":", "-").replace("/", "-")]
    held = held_out(options.sims, options.heldout)
    if held is not None and held.names != tuple(CHANGES):
        parts += held.names
    parts.append(f"seed{options.seed}")
    if values is not None:
        parts.append(shortened("values" + "_".join(map(_plain, values)), 40))
    if options.strength is not None and options.strength != 1.0:
        parts.append(f"strength{_plain(options.strength)}")
    usual = held_out(options.sims, replace(options.heldout, renderer="auto"))
    if held is not None and held != usual:
        parts.append(str(held.renderer))
    if _steps(judged) != _steps(trained):
        parts.append(f"{_steps(judged)}steps")
    if options.calibration is not None:
        place = repr((judged.camera.pos, judged.camera.lookat, judged.camera.fovy))
        parts.append(f"calibrated-{hashlib.sha256(place.encode()).hexdigest()[:8]}")
    return "-".join(parts)


def _steps(config: Config) -> int:
    """Of an episode."""
    return config.env.episode_steps or make_task(config.task).episode_steps


def _plain(number: float) -> str:
    """In full, and whole numbers without a point."""
    return repr(number).removesuffix(".0")


def _write(judged: Judged, folder: Path, rate: float) -> None:
    """The numbers first; a film that cannot be made costs nothing but itself."""
    outcome = judged.outcome
    write_atomic(folder / FACTORS, effects_csv(outcome.effects).encode())
    write_evaluation(folder, outcome.episodes, outcome.summary)
    if judged.film is not None:
        try:
            judged.film.save(folder, rate)
        except Exception as error:
            print(f"{folder}: no film: {type(error).__name__}: {error}", file=sys.stderr)


def _backs(summary: dict[str, Any], path: Path) -> bool:
    """Whether an evaluation is one to export a run with, rather than the one at `path`."""

    def counts(one: dict[str, Any]) -> bool:
        return (one.get("sims"), one.get("strength")) == ("randomized", 1.0)

    try:
        present = json.loads(path.read_text())
        older = counts(present) and present["provenance"] == summary["provenance"]
        more = older and present["episodes"] > summary["episodes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        more = False  # none is there, or a damaged one
    return counts(summary) and not more


def _report(folder: Path, judged: list[Judged], curves: list[str | None]) -> None:
    from visuomotor.report import Reported, report_html  # Plotly takes a while to import

    reported = [
        Reported(
            label=one.outcome.label,
            summary=one.outcome.summary,
            episodes=one.outcome.episodes,
            effects=one.outcome.effects,
            clips=one.clips,
            curve=curve,
            settings=one.settings,
        )
        for one, curve in zip(judged, curves, strict=True)
    ]
    pairs = [compare(judged[0].outcome, one.outcome) for one in judged[1:]]
    write_atomic(folder / REPORT, report_html(reported, pairs).encode())


def _by_training(argument: str) -> str:
    """The switch of randomization has its name in training, too."""
    key = "randomization.strength="
    return argument.replace(key, "strength=", 1) if argument.startswith(key) else argument


def evaluate(argv: list[str]) -> int:
    options = parse_overrides([_by_training(argument) for argument in argv], EvaluateConfig)
    names = _check(options)
    device = resolve_device(options.device)
    loaded = [load_evaluated_policy(name, device) for name in names]
    configs = _same_worlds(names, [one.config for one in loaded], options.episode_steps)
    configs = [replace(c, camera=calibrated(c.camera, options.calibration)) for c in configs]
    if options.sims.startswith(PREFIX):
        return _sweep(names, loaded, configs, options, device)
    # What is read comes before the work.
    curves = [training_curve(name) for name in names] if options.report else []
    labels, task = _labels(names), configs[0].task
    rate = 1.0 / configs[0].env.control_dt
    folder = _folder(options, loaded, labels, configs[0])
    judged = []
    for name, label, one, config in zip(names, labels, loaded, configs, strict=True):
        judged.append(_judge(name, label, one, config, options, device))
        summary = judged[-1].outcome.summary
        summary |= folder.facts
        _write(judged[-1], folder.of(label), rate)
        # Of several, all are judged in the first one's worlds.
        alone = len(names) == 1 and options.out is None
        alone = alone and (_steps(config), config.camera) == (_steps(one.config), one.config.camera)
        if alone and one.run is not None and _backs(summary, one.run / EVALUATION):
            write_json(one.run / EVALUATION, summary)
    outcomes = [one.outcome for one in judged]
    if len(judged) > 1:
        write_json(folder.path / COMPARISON, comparison(outcomes))
    if options.report:
        _report(folder.path, judged, curves)
    written = f"; written to {folder.path}"
    if len(judged) > 1:
        print(f"{task} {options.sims} seed={options.seed}, {options.episodes} episodes{written}")
        print(table(outcomes))
        if options.sims in ("randomized", "heldout"):
            print(*(told(one.effects, one.label) for one in outcomes), sep="\n")
        return 0
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
