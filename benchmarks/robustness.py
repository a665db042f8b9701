"""How much do policies lose in worlds that no training meets, and how far can each be trusted?

    python benchmarks/robustness.py
    python benchmarks/robustness.py policies=lifting,stacking changes=camera,all factors=friction \
        episodes=500 sweep_episodes=200 out=evaluations/robustness

Every policy in its own task: `sims=randomized`, each held-out change alone and all of them together
(`episodes` each), and sweeps of single factors (`sweep_episodes` a value). The episodes are those
of `python -m visuomotor.evaluate`; a process for each core runs one evaluation after the other.
OUT.csv has a row for each, written when it is finished; what it holds already, of the same package,
policy and settings, is not run again. OUT.md has the tables.
"""

from __future__ import annotations

import csv
import hashlib
import io
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import safetensors.torch
import torch

import visuomotor
from visuomotor.cache import check_writable
from visuomotor.cli import StopSignal, run_command
from visuomotor.envs.mujoco_cpu import available_cores
from visuomotor.errors import UserError
from visuomotor.evaluation import (
    MAX_WORLDS,
    Guarded,
    evaluation_env,
    measured_by,
    run_episodes,
)
from visuomotor.files import write_atomic
from visuomotor.heldout import CHANGES, HeldOut, HeldOutOptions, held_out
from visuomotor.overrides import parse_overrides
from visuomotor.policy_files import LoadedPolicy, load_evaluated_policy, shipped_names
from visuomotor.runtime.files import MODEL, WEIGHTS
from visuomotor.statistics import wilson_interval
from visuomotor.sweep import (
    HOLDS,
    SweepPoint,
    SweptFactor,
    at_grid_ends,
    grid,
    holding_range,
    swept_factor,
)

CPU = torch.device("cpu")
PACKAGE = Path(visuomotor.__file__).parent
NOTICE = b"\nstopping after the evaluations that run now\n"
ALL = "all"  # changes together
FACTORS = "friction,mass,actuator_gain,camera_pos,camera_delay,action_delay"


@dataclass(frozen=True)
class Options:
    policies: str | None = None  # with commas between; None: all shipped ones
    changes: str | None = None  # of heldout.CHANGES, and all; None: each alone, and all
    factors: str = FACTORS  # to sweep
    episodes: int = 200  # an evaluation; 0: none
    sweep_episodes: int = 100  # a value; 0: no sweeps
    renderer: str = "auto"  # of `shadows`, as heldout.renderer
    seed: int = 0
    workers: int = 0  # processes; 0: one for each core
    out: str = "evaluations/robustness"


@dataclass(frozen=True)
class Job:
    """One evaluation: what has to be the same for a row to count."""

    policy: str
    weights: str  # which: a mark of the policy's weights, which a new export leaves as it is
    sims: str  # randomized, heldout, sweep
    change: str  # held out, or <factor>:<value>; of randomized nothing
    episodes: int
    seed: int
    renderer: str

    def values(self) -> tuple[str, float]:
        """Factor and value of a sweep."""
        name, _, value = self.change.rpartition(":")
        return name, float(value)


@dataclass(frozen=True)
class Row:
    job: Job
    successes: int
    commit: str  # with + behind it: and changes that no commit holds
    seconds: float

    @property
    def rate(self) -> float:
        return self.successes / self.job.episodes


@dataclass(frozen=True)
class Sweep:
    policy: str
    swept: SweptFactor
    jobs: list[Job]


def measure(job: Job) -> tuple[int, float]:
    """-> successes, seconds. The episodes are those of `visuomotor.evaluate`, on one core."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    loaded = load_evaluated_policy(job.policy, CPU)
    config = replace(loaded.config, env=replace(loaded.config.env, num_threads=1))
    rounds = -(-job.episodes // MAX_WORLDS)
    env = evaluation_env(
        config,
        num_envs=-(-job.episodes // rounds),  # none that is not counted
        seed=job.seed,
        strength=0.0 if job.sims == "sweep" else 1.0,
        device=CPU,
        pinned=dict([job.values()]) if job.sims == "sweep" else None,
        heldout=_held_out(job.change, job.renderer) if job.sims == "heldout" else None,
    )
    outcome = run_episodes(env, Guarded(loaded.policy(env.num_envs)), job.episodes)
    return int(outcome.success.sum()), time.perf_counter() - began


def _held_out(change: str, renderer: str) -> HeldOut:
    only = None if change == ALL else change
    # Alone of all changes shadows are drawn in a way of their own.
    drawn_by = renderer if change in (ALL, "shadows") else "auto"
    held = held_out("heldout", HeldOutOptions(only, drawn_by))
    assert held is not None
    return held


# --- what there is to do --------------------------------------------------------------------------


def plan(options: Options) -> tuple[list[Job], list[Sweep]]:
    """Evaluations and sweeps, of every policy. Raises UserError for what is not there."""
    policies = _names(options.policies) if options.policies else shipped_names()
    changes = _names(options.changes) if options.changes else [*CHANGES, ALL]
    renderers = {name: _held_out(name, options.renderer).renderer for name in changes}
    jobs, sweeps = [], []
    for policy in policies:
        loaded = load_evaluated_policy(policy, CPU)
        weights = _mark(loaded)

        def job(
            sims: str, change: str, count: int, policy: str = policy, weights: str = weights
        ) -> Job:
            renderer = renderers.get(change) if sims == "heldout" else None
            return Job(policy, weights, sims, change, count, options.seed, renderer or "rays")

        if options.episodes > 0:
            jobs.append(job("randomized", "", options.episodes))
            jobs += [job("heldout", change, options.episodes) for change in changes]
        if options.sweep_episodes > 0:
            for swept, values in _grids(policy, loaded, options):
                points = [
                    job("sweep", f"{swept.name}:{value!r}", options.sweep_episodes)
                    for value in values
                ]
                sweeps.append(Sweep(policy, swept, points))
    return jobs, sweeps


def _mark(loaded: LoadedPolicy) -> str:
    if loaded.bundle is not None:
        files = loaded.bundle.manifest["files"]
        return str(files.get(WEIGHTS, files[MODEL]))[:12]
    assert loaded.actor is not None
    return hashlib.sha256(safetensors.torch.save(loaded.actor.state_dict())).hexdigest()[:12]


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",")))


def _grids(
    policy: str, loaded: LoadedPolicy, options: Options
) -> list[tuple[SweptFactor, list[float]]]:
    """Of what varies in the policy's training."""
    env = evaluation_env(loaded.config, num_envs=1, seed=0, strength=0.0, device=CPU, render=False)
    found = []
    for name in _names(options.factors):
        swept = swept_factor(env.randomizer, name)
        try:
            found.append((swept, grid(swept.factor)))
        except UserError as error:
            print(f"{policy}: {error}; left out", file=sys.stderr)
    return found


# --- the table that is kept -----------------------------------------------------------------------


def load(path: Path) -> list[Row]:
    """The rows of OUT.csv. Raises UserError where it is none."""
    if not path.exists():
        return []
    rows = []
    kinds = {field.name: int if field.type == "int" else str for field in fields(Job)}
    try:
        for row in csv.DictReader(io.StringIO(path.read_text())):
            job = Job(**{name: kind(row[name]) for name, kind in kinds.items()})
            count, seconds = int(row["successes"]), float(row["seconds"])
            rows.append(Row(job, count, row["commit"], seconds))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"out: {path} is no table of this script ({type(error).__name__}: {error}); give "
            "another name"
        ) from error
    return rows


def save(path: Path, rows: list[Row]) -> None:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in fields(Job)]
    writer.writerow((*names, "successes", "success_low", "success_high", "commit", "seconds"))
    for row in rows:
        low, high = wilson_interval(row.successes, row.job.episodes)
        counted = (row.successes, f"{low:.4f}", f"{high:.4f}", row.commit, f"{row.seconds:.1f}")
        writer.writerow((*asdict(row.job).values(), *counted))
    write_atomic(path, out.getvalue().encode())


def commit() -> str:
    """Of the package; with + behind it where there are changes that it does not hold."""
    facts = measured_by()
    return f"{facts['git_commit']}{'+' if facts['git_changed'] else ''}"


@cache
def same_package(commit: str, now: str, package: Path = PACKAGE) -> bool:
    """Whether nothing of the package changed between two commits; where one is not known, no."""
    if {commit[-1:], now[-1:]} & {"+", ""} or "None" in (commit, now):
        return False
    question = ("git", "-C", str(package), "diff", "--quiet", commit, now, "--", ".")
    return commit == now or subprocess.run(question, capture_output=True).returncode == 0


# --- the tables that are read ---------------------------------------------------------------------


def markdown(jobs: list[Job], sweeps: list[Sweep], rows: dict[Job, Row]) -> str:
    """What is measured so far."""
    return "\n".join([*_losses(jobs, rows), *_certificates(sweeps, rows)])


def _losses(jobs: list[Job], rows: dict[Job, Row]) -> list[str]:
    changes = list(dict.fromkeys(job.change for job in jobs if job.sims == "heldout"))
    if not jobs:
        return []
    lines = [
        f"Success in % of {jobs[0].episodes} episodes, seed {jobs[0].seed}, and the difference "
        "from `randomized` in points.",
        "",
        f"| policy | randomized (95 %) | {' | '.join(changes)} |",
        "|---" * (2 + len(changes)) + "|",
    ]
    for policy in dict.fromkeys(job.policy for job in jobs):
        by_change = {job.change: rows.get(job) for job in jobs if job.policy == policy}
        base = by_change.get("")
        cells = [_cell(base, None)]
        cells += [_cell(by_change.get(change), base) for change in changes]
        lines.append(f"| `{policy}` | {' | '.join(cells)} |")
    return [*lines, ""]


def _cell(row: Row | None, base: Row | None) -> str:
    if row is None:
        return ""
    if row.job.sims == "randomized":
        low, high = wilson_interval(row.successes, row.job.episodes)
        return f"{100 * row.rate:.1f} ({100 * low:.1f} to {100 * high:.1f})"
    drop = "" if base is None else f" ({100 * (row.rate - base.rate):+.1f})"
    return f"{100 * row.rate:.1f}{drop}"


def _certificates(sweeps: list[Sweep], rows: dict[Job, Row]) -> list[str]:
    """Of the sweeps that are complete."""
    done = [sweep for sweep in sweeps if all(job in rows for job in sweep.jobs)]
    if not done:
        return []
    lines = [
        f"Where success stays at {100 * HOLDS:.0f} % or more while one factor varies and the "
        f"others are nominal, {done[0].jobs[0].episodes} episodes a value; and where the lower end "
        "of its 95 % interval, of each value by itself, does. An end of the grid is marked by *.",
        "",
        "| policy | factor | grid | trained | holds | certain |",
        "|---" * 6 + "|",
    ]
    for sweep in done:
        points = [SweepPoint(j.values()[1], j.episodes, rows[j].successes) for j in sweep.jobs]
        factor, name = sweep.swept.factor, sweep.swept.name
        values = [point.value for point in points]
        told = []
        for certain in (False, True):
            held = holding_range(points, factor.neutral, certain)
            if held is None:
                told.append(f"not even at {factor.neutral:g}")
                continue
            marks = zip(held, at_grid_ends(held, values), strict=True)
            told.append(" to ".join(f"{end:g}" + "*" * last for end, last in marks))
        lines.append(
            f"| `{sweep.policy}` | `{name}` | {values[0]:g} to {values[-1]:g} | {factor.low:g} to "
            f"{factor.high:g} | {told[0]} | {told[1]} |"
        )
    return [*lines, ""]


# --- the command ----------------------------------------------------------------------------------


def measured(
    jobs: list[Job], workers: int, stopped: Callable[[], bool]
) -> Iterator[tuple[Job, int, float]]:
    """Job, successes and seconds, as each is finished by one of so many processes. Once stopped, no
    further one is begun."""
    todo = iter(jobs)
    running: dict[Future[tuple[int, float]], Job] = {}
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches every process of a terminal; when to stop is decided here.
    undisturbed = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(workers, context, signal.signal, undisturbed) as pool:
        while True:
            while len(running) < workers and not stopped():
                job = next(todo, None)
                if job is None:
                    break
                running[pool.submit(measure, job)] = job
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), *future.result()


def robustness(argv: list[str]) -> int:
    options = parse_overrides(argv, Options)
    for name in ("episodes", "sweep_episodes", "seed", "workers"):
        if getattr(options, name) < 0:
            raise UserError(f"{name}={getattr(options, name)}; valid: from 0")
    table, page = Path(f"{options.out}.csv"), Path(f"{options.out}.md")
    kept = load(table)
    check_writable(table, "give a name that can be written: out=...")
    jobs, sweeps = plan(options)
    wanted = [*jobs, *(job for sweep in sweeps for job in sweep.jobs)]
    now = commit()
    rows = {row.job: row for row in kept if row.job in wanted and same_package(row.commit, now)}
    missing = [job for job in wanted if job not in rows]
    print(f"{len(wanted)} evaluations, {len(wanted) - len(missing)} of them in {table}", flush=True)
    if now.endswith("+"):
        print("the package has changes that no commit holds: all is run again", file=sys.stderr)
    workers = options.workers or available_cores()
    with StopSignal(NOTICE) as stop:
        for job, successes, seconds in measured(missing, workers, lambda: stop.requested):
            row = rows[job] = Row(job, successes, now, seconds)
            kept = [one for one in kept if (one.job, one.commit) != (job, now)] + [row]
            save(table, kept)
            write_atomic(page, markdown(jobs, sweeps, rows).encode())
            what = " ".join((job.policy, job.sims, job.change)).strip()
            print(f"{what}: {successes} of {job.episodes}, {seconds:.0f} s", flush=True)
    text = markdown(jobs, sweeps, rows)
    write_atomic(page, text.encode())
    print(text)
    return stop.exit_code


if __name__ == "__main__":
    sys.exit(run_command(robustness, sys.argv[1:]))
