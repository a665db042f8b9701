r"""Success over minutes of training: reads run folders, writes a table and a picture.

    python benchmarks/curves.py out=docs/lifting-ril runs/lifting-ril-0 runs/lifting-ril-1
    python benchmarks/curves.py out=docs/more over=steps docs/lifting-ril.csv runs/lifting-ril-2

A run has a point for every evaluation in it (`run.evaluate_every`, `run.evaluate_episodes`): the
deterministic policy under full randomization, from the initial distribution. Minutes count all
phases, evaluations and checkpoints; `over=steps` draws over environment steps in their place. A
table that this wrote before stands for its runs, `TABLE.csv:NAME` for one of them. Writes OUT.csv
and OUT.png and prints, for every run, when it first reached 90 %, its best, and the lowest of its
last quarter.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml

WANTED = 0.9
PIXEL_PHASES = ("start", "ril", "dagger", "finetune")


@dataclass(frozen=True)
class Point:
    phase: str
    env_steps: int
    minutes: float
    success: float


def read(folder: Path) -> tuple[str, list[Point]]:
    """Name of a run ('ril, seed 0') and its evaluations."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    points = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        success = row.get("evaluation_success_rate")
        if success is not None:
            points.append(Point(row["phase"], row["env_steps"], row["wall_s"] / 60.0, success))
    return f"{config['algorithm']}, seed {config['seed']}", points


def read_table(path: Path, wanted: str) -> list[tuple[str, list[Point]]]:
    """The runs of a table of before, or the one of this name; empty: all."""
    runs: dict[str, list[Point]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            point = Point(
                row["phase"],
                int(row["env_steps"]),
                float(row["minutes"]),
                float(row["success_rate"]),
            )
            runs.setdefault(row["run"], []).append(point)
    return [(name, points) for name, points in runs.items() if wanted in ("", name)]


def read_all(arguments: list[str]) -> list[tuple[str, list[Point]]]:
    """Of run folders and tables; runs of one name get that of their folder before it."""
    found = []
    for argument in arguments:
        path, _, wanted = argument.partition(".csv")
        if path == argument:
            found.append((Path(argument).name, *read(Path(argument))))
        else:
            table = Path(f"{path}.csv")
            found += [(table.stem, *run) for run in read_table(table, wanted.removeprefix(":"))]
    names = [name for _, name, _ in found]
    return [
        (f"{where}: {name}" if names.count(name) > 1 else name, points)
        for where, name, points in found
    ]


def summary(name: str, points: list[Point]) -> str:
    seen = [point for point in points if point.phase in PIXEL_PHASES]
    if not seen:
        return f"{name}: no evaluation from pixels"
    reached = next((f"{p.minutes:.1f} min" for p in seen if p.success >= WANTED), "not reached")
    best = max(point.success for point in seen)
    last = [p.success for p in seen if p.env_steps >= 0.75 * seen[-1].env_steps]
    return (
        f"{name}: {100 * WANTED:.0f} % {reached}; best {100 * best:.1f} %, "
        f"lowest of the last quarter {100 * min(last):.1f} %, end {100 * seen[-1].success:.1f} %"
    )


def main() -> None:
    options = dict(a.split("=", 1) for a in sys.argv[1:] if a.startswith(("out=", "over=")))
    out, over_steps = options["out"], options.get("over", "minutes") == "steps"
    runs = read_all([a for a in sys.argv[1:] if not a.startswith(("out=", "over="))])
    with Path(f"{out}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("run", "phase", "env_steps", "minutes", "success_rate"))
        for name, points in runs:
            for p in points:
                writer.writerow((name, p.phase, p.env_steps, f"{p.minutes:.2f}", p.success))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for number, (name, points) in enumerate(runs):
        for sees, style in ((True, "-"), (False, ":")):
            part = [p for p in points if (p.phase in PIXEL_PHASES) == sees]
            label = name if sees else f"{name}, teacher from state"
            if part:
                xs = [p.env_steps / 1e6 if over_steps else p.minutes for p in part]
                ys = [p.success for p in part]
                axes.plot(xs, ys, style, color=f"C{number}", label=label, lw=1.5)
    axes.axhline(WANTED, color="0.6", lw=0.8)
    across = "million environment steps" if over_steps else "minutes of training"
    axes.set(xlabel=f"{across}, all phases", ylabel="success", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(f"{out}.png", dpi=120)
    for name, points in runs:
        print(summary(name, points))


if __name__ == "__main__":
    main()
