r"""What carries the method: trains variants on one budget and draws their curves.

    python benchmarks/ablations.py phase=teacher seeds=0,1 steps=1500000
    python benchmarks/ablations.py phase=dagger seeds=0,1 steps=250000 \
        teacher=runs/<a run with a finished teacher>
    python benchmarks/ablations.py phase=ril seeds=0,1 steps=1000000
    python benchmarks/ablations.py task=lifting name=lifting-without-actions steps=400000 \
        variants=full,no-imitation-reward settings="cloning.enabled=false curriculum.enabled=false"

settings: of every variant, with spaces between. variants: names as below, with - for a space;
default: all that the phase has. Runs go to runs/ablations/<name>/<task>-<variant>-<seed>, the name
being the phase unless it is given; one that is there goes on where it stopped, if it has the same
settings, and one that is finished is left alone. Writes docs/ablations-<name>.csv (one row an
evaluation) and .png.
Success is that of the deterministic policy under full randomization, from the initial distribution,
128 episodes an evaluation.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from visuomotor.config import Config
from visuomotor.overrides import load_yaml, parse_overrides

VARIANTS: dict[str, tuple[str, ...]] = {
    "full": (),
    "no imitation reward": ("gail.weight=0",),
    "imitation reward alone": ("gail.weight=1",),
    "no demonstration curriculum": ("curriculum.enabled=false",),
    "no auxiliary losses": ("aux.weight=0",),
    "no cloning": ("cloning.enabled=false",),  # nor retargeted demonstrations, which it makes
    "no retargeting": ("retargeted=0",),
}
# What a phase does not use cannot be ablated in it.
UNUSED = {
    "teacher": ("no auxiliary losses",),
    "dagger": ("no imitation reward", "imitation reward alone", "no cloning"),
    "ril": (),
}
EVALUATIONS = 5  # in a run
EPISODES = 128  # an evaluation
STYLES = ("-", "--", ":", "-.")  # of seeds


def settings(phase: str, steps: int, teacher: str) -> list[str]:
    common = [
        f"run.evaluate_every={steps // EVALUATIONS}",
        f"run.evaluate_episodes={EPISODES}",
        "run.final_episodes=0",
        "run.tensorboard=false",
    ]
    if phase == "ril":
        return [*common, "algorithm=ril", f"total_steps={steps}"]
    if phase == "teacher":
        total = [f"distill.teacher.total_steps={steps}", "distill.teacher.enough_success=null"]
        return [*common, "algorithm=distill", *total, "distill.dagger_steps=0"]
    return [
        *common,
        "algorithm=distill",
        f"distill.teacher_run={teacher}",
        f"distill.dagger_steps={steps}",
        "distill.finetune_steps=0",
    ]


def run(name: str, task: str, variant: str, seed: int, given: list[str]) -> Path:
    folder = Path("runs") / "ablations" / name / f"{task}-{variant.replace(' ', '-')}-{seed}"
    arguments = [f"task={task}", f"seed={seed}", f"out={folder}", *given, *VARIANTS[variant]]
    if (folder / "config.yaml").exists():
        if load_yaml(folder / "config.yaml", Config) != parse_overrides(arguments, Config):
            sys.exit(f"{folder} is a run with other settings; give another name=, or remove it")
        if len(curve(folder)) >= EVALUATIONS:
            return folder
        arguments = [f"resume={folder}"]
    print(f"{name}: {variant}, seed {seed}", flush=True)
    subprocess.run([sys.executable, "-m", "visuomotor.train", *arguments], check=True)
    return folder


def curve(folder: Path) -> list[tuple[int, float, float]]:
    """(env steps, seconds, success rate) of every evaluation."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    key = "evaluation_success_rate"
    return [(row["env_steps"], row["wall_s"], row[key]) for row in rows if key in row]


def main() -> None:
    options = dict(argument.split("=", 1) for argument in sys.argv[1:])
    phase = options.get("phase", "teacher")
    task, teacher = options.get("task", "stacking"), options.get("teacher", "")
    steps = int(options.get("steps", "1500000"))
    seeds = [int(seed) for seed in options.get("seeds", "0,1").split(",")]
    variants = [name for name in VARIANTS if name not in UNUSED[phase]]
    if "variants" in options:
        variants = [name.replace("-", " ") for name in options["variants"].split(",")]
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        sys.exit(f"no variant {', '.join(unknown)}; there are: {', '.join(VARIANTS)}")
    name = options.get("name", phase)
    given = settings(phase, steps, teacher)
    given += options.get("settings", "").split()
    table = []
    for seed in seeds:
        for variant in variants:
            folder = run(name, task, variant, seed, given)
            table += [(variant, seed, *point) for point in curve(folder)]
            write(table, name, task)  # after each run, so that a stopped comparison shows its part


def write(table: list[tuple[str, int, int, float, float]], name: str, task: str) -> None:
    docs = Path("docs")
    with (docs / f"ablations-{name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("variant", "seed", "env_steps", "wall_s", "success_rate"))
        writer.writerows(table)
    figure, axes = plt.subplots(figsize=(8.5, 4.2), layout="constrained")
    for number, variant in enumerate(dict.fromkeys(row[0] for row in table)):
        seeds = dict.fromkeys(row[1] for row in table if row[0] == variant)
        for style, seed in zip(STYLES, seeds, strict=False):
            points = [(row[2] / 1e6, 100 * row[4]) for row in table if row[:2] == (variant, seed)]
            label = f"{variant}, seed {seed}"
            axes.plot(*zip(*points, strict=True), color=f"C{number}", ls=style, label=label, lw=1.5)
    axes.set(xlabel="environment steps, M", ylabel="success, %", title=f"{task}, {name}")
    axes.set_ylim(-2, 102)  # that what never succeeds is seen
    figure.legend(frameon=False, loc="outside right upper", fontsize="small")
    figure.savefig(docs / f"ablations-{name}.png", dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
