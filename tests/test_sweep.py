"""One factor over a grid: which values, which worlds, and what a policy may be trusted with."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import visuomotor.evaluate
from tests.runs import CPU, assert_refused, small_run, write_run
from visuomotor.cli import run_command
from visuomotor.errors import UserError
from visuomotor.evaluate import evaluate
from visuomotor.evaluation import evaluation_env, run_episodes
from visuomotor.randomization import Factor, Randomizer
from visuomotor.sweep import (
    SweepPoint,
    SweptFactor,
    given_values,
    grid,
    holding_range,
    sweep_png,
    sweep_record,
    sweep_text,
    swept_factor,
)

CONFIG = small_run(episode_steps=4)


@pytest.fixture(scope="module")
def randomizer() -> Randomizer:
    return _env({}).randomizer


def _env(pinned: dict[str, float], strength: float = 0.0):  # type: ignore[no-untyped-def]
    return evaluation_env(
        CONFIG, num_envs=3, seed=0, strength=strength, device=CPU, render=False, pinned=pinned
    )


def test_a_factor_is_found_by_its_own_name_its_groups_and_a_short_one(
    randomizer: Randomizer,
) -> None:
    assert swept_factor(randomizer, "prop_friction").name == "prop_friction"
    assert swept_factor(randomizer, "friction").name == "prop_friction"
    assert swept_factor(randomizer, "joint_friction").name == "joint_friction"
    assert swept_factor(randomizer, "camera_pos/y").factor.name == "camera_pos/y"
    with pytest.raises(UserError, match=r"no factor 'camera_poz'.*mean camera_pos.*factors: cam"):
        swept_factor(randomizer, "camera_poz")
    with pytest.raises(UserError) as refused:
        swept_factor(randomizer, "blurr")  # the name of a group and of its one factor
    assert str(refused.value).partition("?")[0].count("blur") == 2  # what was given, and one hint


def test_grids_reach_beyond_training_on_both_sides() -> None:
    linear = grid(Factor("friction", 0.7, 1.3, 1.0))
    assert linear[0] == pytest.approx(0.4) and linear[-1] == pytest.approx(1.6)
    assert {0.7, 1.0, 1.3} <= set(linear) and linear == sorted(set(linear))
    logarithmic = grid(Factor("mass", 0.5, 2.0, 1.0, "log_uniform"))
    assert logarithmic == pytest.approx([2.0**k for k in np.arange(-2, 2.1, 0.5)], rel=1e-5)
    one_sided = grid(Factor("noise", 0.0, 0.01, 0.0))
    assert one_sided[0] == 0.0 and one_sided[-1] == 0.02
    assert grid(Factor("camera_delay", 0, 2, 0, "integer")) == [0, 1, 2, 3, 4]
    assert grid(Factor("num_lights", 1, 3, 3, "integer", 1, 3)) == [1, 2, 3]
    # The neutral value is among them, to the last digit and where training leaves it out.
    assert grid(Factor("camera_delay", 2, 3, 0, "integer", 0)) == [0, 1, 2, 3, 4, 5]
    assert grid(Factor("num_lights", 1, 2, 3, "integer", 1, 3)) == [1, 2, 3]
    assert 0.12345678 in grid(Factor("own", 0.1, 0.2, 0.12345678, "log_uniform"))
    # As far as a world can go.
    assert grid(Factor("drop", 0.0, 0.8, 0.0, least=0.0, most=1.0))[-1] == 1.0
    assert grid(Factor("friction", 0.4, 1.6, 1.0, least=0.0))[0] == 0.0
    with pytest.raises(UserError, match="does not vary in training; give values="):
        grid(Factor("hue", 0.0, 0.0, 0.0))


def test_values_are_of_worlds_that_can_be_simulated() -> None:
    def refused(factor: Factor, text: str) -> str:
        with pytest.raises(UserError) as caught:
            given_values(text, SweptFactor("own", factor), 100)
        return str(caught.value)

    scale = Factor("own", 0.2, 0.4, 0.3, "log_uniform")
    assert "give numbers from 0.0003 to 300: the factor is a scale" in refused(scale, "-1")
    place = Factor("own", -0.01, 0.02, 0.0)
    assert "give numbers from -20 to 20, with" in refused(place, "21")
    still = Factor("own", 0.0, 0.0, 0.0)
    assert "give numbers from -1000 to 1000, with" in refused(still, "1e4")
    count = Factor("own", 1, 3, 3, "integer")
    assert "give whole numbers from 0 to 3000, with" in refused(count, "0.5")
    assert given_values("0, 3000", SweptFactor("own", count), 100) == [0, 3, 3000]


def test_the_range_that_holds_has_no_gap_and_holds_the_neutral_value() -> None:
    def points(*successes: int) -> list[SweepPoint]:
        return [SweepPoint(float(value), 10, count) for value, count in enumerate(successes)]

    assert holding_range(points(10, 5, 9, 10, 9, 8), neutral=3.0) == (2.0, 4.0)
    assert holding_range(points(9, 9, 9), neutral=0.0) == (0.0, 2.0)
    assert holding_range(points(10, 8, 10), neutral=1.0) is None
    # 10 of 10 are 72 % at least: too few to be certain.
    assert holding_range(points(10, 10), neutral=0.0, certain=True) is None
    many = [SweepPoint(float(value), 200, successes) for value, successes in enumerate((190, 182))]
    assert holding_range(many, neutral=0.0) == (0.0, 1.0)
    assert holding_range(many, neutral=0.0, certain=True) == (0.0, 0.0)


def test_nothing_is_certified_around_a_neutral_value_that_was_not_measured() -> None:
    swept = SweptFactor("mass", Factor("mass", 0.5, 2.0, 1.0, "log_uniform"))
    around = [SweepPoint(0.2, 200, 200), SweepPoint(5.0, 200, 200)]
    for certain in (False, True):
        assert holding_range(around, neutral=1.0, certain=certain) is None
    assert sweep_record(swept, around)["holding_range"] is None
    told = sweep_text("policy", swept, around)
    assert told.endswith("no range: 1 was not measured") and "90 %" not in told
    assert given_values("5,0.2", swept, 100) == [0.2, 1.0, 5.0]


def test_what_is_certain_is_told_with_what_its_interval_is_of() -> None:
    swept = SweptFactor("mass", Factor("mass", 0.5, 2.0, 1.0, "log_uniform"))
    points = [SweepPoint(value, 200, count) for value, count in ((0.5, 182), (1.0, 200), (2.0, 9))]
    held, certain = sweep_text("policy", swept, points).splitlines()[-2:]
    assert held == "  success stays at 90 % or more from 0.5 (the end of the grid) to 1"
    assert certain.startswith(
        "  the lower end of its 95 % interval, which is of each value by itself"
    )
    assert certain.endswith("stays at 90 % or more from 1 to 1")


def test_only_the_side_on_which_the_grid_ends_is_marked() -> None:
    """A delay has nothing below its neutral value, which is the grid's end on that side alone."""
    delay = SweptFactor("camera_delay", Factor("camera_delay", 0.0, 2.0, 0.0, "integer"))
    for successes, told in (
        ((99, 50, 10, 0), "from 0 (the end of the grid) to 0"),
        ((99, 95, 10, 0), "from 0 (the end of the grid) to 1"),
        ((99, 95, 95, 95), "from 0 (the end of the grid) to 3 (the end of the grid)"),
    ):
        points = [SweepPoint(float(v), 100, count) for v, count in enumerate(successes)]
        held, _ = sweep_text("policy", delay, points).splitlines()[-2:]
        assert held == f"  success stays at 90 % or more {told}"
    points = [SweepPoint(0.5, 100, 9), SweepPoint(1.0, 100, 99)]
    falling = SweptFactor("mass", Factor("mass", 0.5, 1.0, 1.0, "log_uniform"))
    assert "from 1 to 1 (the end of the grid)" in sweep_text("policy", falling, points)


def test_a_sweep_that_is_not_complete_has_no_range() -> None:
    swept = SweptFactor("mass", Factor("mass", 0.5, 2.0, 1.0, "log_uniform"))
    points = [SweepPoint(1.0, 200, 200), SweepPoint(2.0, 200, 200)]
    part, whole = (sweep_record(swept, points, complete) for complete in (False, True))
    ranges = ("complete", "holding_range", "certain_range")
    assert [part[name] for name in ranges] == [False, None, None]
    assert [whole[name] for name in ranges] == [True, (1.0, 2.0), (1.0, 2.0)]
    assert part["points"] == whole["points"]


def test_a_pinned_factor_has_its_value_everywhere_and_the_others_are_as_they_were() -> None:
    free, quiet = _env({}, 1.0), _env({"prop_mass": 3.0})
    pinned = _env({"prop_mass": 3.0, "camera_pos/y": 0.2}, 1.0)
    for env in (free, quiet, pinned):
        env.reset()
    names = list(free.randomizer.factor_names)
    mass, camera = names.index("prop_mass/block_0"), names.index("camera_pos/y")
    assert (pinned.factors[:, mass] == 3.0).all() and (pinned.factors[:, camera] == 0.2).all()
    others = [i for i in range(len(names)) if i not in (mass, camera)]
    assert np.array_equal(pinned.factors[:, others], free.factors[:, others])
    assert np.array_equal(
        np.delete(quiet.factors, mass, axis=1),
        np.delete(np.tile(free.randomizer.default(), (3, 1)), mass, axis=1),
    )
    body = quiet.sim.model.body("block_0").id
    masses = quiet.sim.model_field("body_mass")[:, body]
    assert masses.numpy() == pytest.approx(3.0 * quiet.sim.model.body_mass[body])
    # Starts are the same for every value.
    everyone = torch.arange(3)
    other = _env({"prop_mass": 0.5})
    other.reset()
    assert torch.equal(other.sim.get_state(everyone), quiet.sim.get_state(everyone))
    with pytest.raises(KeyError, match="prop_mas"):
        free.randomizer.pin("prop_mas", 1.0)


def test_delays_beyond_training_have_room() -> None:
    env = evaluation_env(
        CONFIG,
        num_envs=2,
        seed=0,
        strength=0.0,
        device=CPU,
        pinned={"camera_delay": 9.0, "action_delay": 3.0},
    )
    env.reset()
    first = env.sim.data("qpos").clone()
    for _ in range(3):
        env.step(torch.ones(2, 9))
    early = env.sim.data("qpos").clone()
    env.step(torch.ones(2, 9))
    arm = env.jaco.qpos_ids[:6]
    assert (early[:, arm] - first[:, arm]).abs().max() < 0.01  # three steps late
    assert (env.sim.data("qpos")[:, arm] - early[:, arm]).abs().max() > 0.01


@pytest.mark.parametrize("distribution", ["uniform", "log_uniform", "integer"])
def test_a_picture_names_its_axes_its_lines_and_the_training_range(
    distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    def keep(figure: Figure, *args: Any, **how: Any) -> None:
        drawn.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)
    factor = Factor("delay", 1.0, 2.0, 1.0, distribution, unit="control steps")
    points = [SweepPoint(float(value), 20, 10) for value in range(1, 5)]
    sweep_png(SweptFactor("delay", factor), {"one": points, "two": points})
    (axes,) = drawn[0].axes
    assert axes.get_xlabel() == "delay, control steps"
    (legend,) = drawn[0].legends
    told = {text.get_text() for text in legend.get_texts()}
    assert told == {"training range", "90 %", "one", "two"}
    joined = [line for line in axes.lines if len(line.get_xdata()) == 4 and line.get_ls() == "-"]
    if distribution == "integer":
        assert joined == [] and list(axes.get_xticks()) == [1, 2, 3, 4]
    else:
        assert len(joined) == 2


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG)


def test_a_sweep_is_kept_as_table_record_and_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    before = {entry.name for entry in run.iterdir()}
    arguments = [f"policy={run},{run}", "sims=sweep:friction", "values=2,0.5", "episodes=2"]
    assert run_command(evaluate, [*arguments, "device=cpu", f"out={out}"]) == 0
    assert {entry.name for entry in out.iterdir()} == {
        *("run", "run-2", "sweep.png", "report.html")
    }
    record = json.loads((out / "run/sweep.json").read_text())
    assert (record["factor"], record["trained_from"], record["trained_to"]) == (
        *("prop_friction", 0.7, 1.3),
    )
    assert [point["value"] for point in record["points"]] == [0.5, 1.0, 2.0]  # the neutral one too
    assert record["complete"]
    assert record["holding_range"] is None  # an untrained policy holds nowhere
    with (out / "run-2/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["value"] for row in rows] == ["0.5", "1.0", "2.0"]
    assert [row["episodes"] for row in rows] == ["2", "2", "2"]
    assert cv2.imread(str(out / "sweep.png")).std() > 5
    page = (out / "report.html").read_text()
    assert "lifting, prop_friction alone, 2 episodes a value, seed 0" in page
    assert '"customdata":[[0.5,0,2],[1.0,0,2],[2.0,0,2]]' in page  # its plot
    assert page.count("success is below 90 % even at 1") == 2  # each policy's certificate
    assert page.count("episode_steps: 4") == 2  # settings
    said = capsys.readouterr().out
    assert "beyond training" in said and "success is below 90 % even at 1" in said
    assert {entry.name for entry in run.iterdir()} == before


@pytest.mark.parametrize("done", [0, 2, 4])
def test_a_sweep_that_is_cut_short_keeps_what_it_measured_and_claims_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    """done: values; each of two policies has three."""
    calls = iter(range(9))

    def cut(*arguments: Any, **options: Any) -> Any:
        if next(calls) == done:
            raise KeyboardInterrupt
        return run_episodes(*arguments, **options)

    monkeypatch.setattr(visuomotor.evaluate, "run_episodes", cut)
    given = [f"policy={run},{run}", "sims=sweep:friction", "values=2,0.5", "episodes=1"]
    with pytest.raises(KeyboardInterrupt):
        evaluate([*given, "device=cpu", f"out={tmp_path}"])
    labels = {0: [], 2: ["run"], 4: ["run", "run-2"]}[done]
    assert {entry.name for entry in tmp_path.iterdir()} == set(labels)
    for label, measured in zip(labels, {2: [2], 4: [3, 1]}.get(done, []), strict=True):
        record = json.loads((tmp_path / label / "sweep.json").read_text())
        assert record["complete"] == (measured == 3)
        assert record["holding_range"] is None and record["certain_range"] is None
        assert len(record["points"]) == measured
        assert len((tmp_path / label / "sweep.csv").read_text().splitlines()) == 1 + measured


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["sims=sweep:frction"], r"no factor 'frction' \(did you mean .*friction"),
        (
            ["sims=sweep:friction", "values=0,1"],
            r"values=0,1 for prop_friction; give numbers from 0.001 to 1000: the factor is a scale",
        ),
        (["sims=sweep:friction", "values=a"], r"values=a for prop_friction; give numbers from 0"),
        (["sims=sweep:friction", "values=1e308"], r"from 0.001 to 1000: the factor is a scale"),
        (["sims=sweep:mass", "values=1e-308"], r"from 0.001 to 1000: the factor is a scale"),
        (["sims=sweep:friction", "values=inf"], r"values=inf for prop_friction; give numbers"),
        (["sims=sweep:camera_pos/x", "values=1e308"], r"1e308 for camera_pos/x; give numbers from"),
        (["sims=sweep:camera_delay", "values=inf"], r"give whole numbers from 0 to 3, with"),
        (["sims=sweep:friction", "values=nan"], r"values=nan for prop_friction"),
        (["sims=sweep:camera_delay", "values=1.5"], r"give whole numbers from 0 to 3, with"),
        (["sims=sweep:action_delay", "values=4"], r"give whole numbers from 0 to 3, with"),  # steps
        (["sims=sweep:texture/table", "values=99"], r"give whole numbers from 0 to 8"),
        (["sims=sweep:pixel_noise", "values=-1"], r"for pixel_noise; give numbers from 0 to"),
        (["sims=sweep:action_drop", "values=1.5"], r"for action_drop; give numbers from 0 to 1"),
        (["sims=sweep:camera_fovy", "values=-40"], r"give numbers from -29 to 149"),
        (["sims=sweep:friction", "strength=1"], r"strength= has no place in a sweep"),
        (["sims=nominal", "values=1"], r"values= are those of a swept factor; give sims=sweep:"),
    ],
)
def test_bad_input_is_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    out = tmp_path / "out"
    assert_refused(capsys, evaluate, [f"policy={run}", *arguments, f"out={out}"], told)
    assert not out.exists()


def test_what_is_not_varied_in_training_needs_values() -> None:
    still = replace(CONFIG.randomization.appearance, hue=(0.0, 0.0))
    config = replace(CONFIG, randomization=replace(CONFIG.randomization, appearance=still))
    env = evaluation_env(config, num_envs=1, seed=0, strength=0.0, device=CPU, render=False)
    with pytest.raises(UserError, match="hue does not vary in training"):
        grid(swept_factor(env.randomizer, "hue").factor)
