"""A task from outside the package goes through every command (docs/your_own_task.md)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_train import SMALL

from visuomotor import cli, envs, experts
from visuomotor.__main__ import COMMANDS, PARTS, run
from visuomotor.cli import run_command
from visuomotor.envs import TASKS, Task, make_task, register
from visuomotor.envs.tasks.lifting import Lifting
from visuomotor.errors import UserError
from visuomotor.scripted.blocks import LiftingExpert, StackingExpert
from visuomotor.train import train

EXAMPLE = Path(__file__).parent.parent / "examples" / "place.py"
PAGE = Path(__file__).parent.parent / "docs" / "your_own_task.md"


# One process for several commands: each begins with seconds of imports.
SEVERAL = """
import json, sys
sys.path.insert(0, sys.argv[1])
from place import run
for argv in json.loads(sys.argv[2]):
    assert run(argv) == 0, argv
"""


def python(folder: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def command(folder: Path, *arguments: str) -> None:
    python(folder, str(EXAMPLE), *arguments)


def test_it_is_demonstrated_trained_evaluated_and_exported(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 120
    command(tmp_path, "demonstrate", "task=place", "episodes=2", "out=place.hdf5")
    settings = [s for s in SMALL if not s.startswith("task=")]
    demos = "demonstrations=place.hdf5"
    several = [
        ["train", "task=place", *settings, "total_steps=64", demos, "out=run"],
        ["evaluate", "policy=run", "episodes=2", "out=judged"],
        ["export", "policy=run", "out=bundle"],
        ["evaluate", "policy=bundle", "episodes=1", "out=judged-bundle"],
    ]
    python(tmp_path, "-c", SEVERAL, str(EXAMPLE.parent), json.dumps(several))
    summary = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert summary["task"] == "place"
    assert list(summary["stage_rates"]) == ["start", "reach", "lifted", "placed"]
    assert json.loads((tmp_path / "bundle" / "policy.json").read_text())["task"] == "place"
    assert (tmp_path / "judged-bundle" / "evaluation.json").is_file()


def own(**attributes: object) -> type[Task]:
    return type("Own", (Lifting,), {"name": "own", **attributes})


def test_a_registered_task_is_made_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "own", own())
    assert type(make_task("own")).__name__ == "Own"


@pytest.mark.parametrize("setting", ["actor.encoder=maps", "actor.from_hand=true"])
def test_a_task_that_names_no_kinds_of_things_is_refused_what_needs_them(
    setting: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(TASKS, "own", own(kinds_in_targets=()))
    out = tmp_path / "run"
    assert run_command(train, ["task=own", setting, f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert "kinds_in_targets" in said and setting in said and said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"name": "stacking"}, "a task 'stacking' is there already"),
        ({"name": "clearing"}, "a task 'clearing' is there already"),
        ({"stage_rewards": (0.0, 1.0)}, "has 3 stages and 2 stage_rewards"),
        ({"stage_props": (0,)}, "has 3 stages and 1 stage_props"),
        ({"stage_props": (0, 0, 1)}, "names a prop beyond the 1 in props"),
        ({"props": "block_0"}, "task 'own': props='block_0' is no tuple"),
        ({"name": "../x"}, r"a task cannot be called '../x'; valid: letters from a to z, digits"),
        ({"name": "a/b"}, "a task cannot be called 'a/b'; valid: letters from a to z, digits"),
        ({"name": "a,b"}, "a task cannot be called 'a,b'; valid: letters from a to z, digits"),
        ({"name": "own\n"}, r"a task cannot be called 'own\\n'; valid: letters from a to z"),
        ({"name": ""}, "a task cannot be called ''; valid: letters from a to z, digits"),
        ({"name": 5}, "a task cannot be called 5; valid: letters from a to z, digits"),
        ({"stage_rewards": (0.0, float("nan"), 1.0)}, r"task 'own': stage_rewards=\(0.0, nan, 1.0"),
        ({"stage_rewards": (0.0, float("inf"), 1.0)}, r"task 'own': stage_rewards=\(0.0, inf, 1.0"),
        (
            {"stage_rewards": (0.0, "much", 1.0)},
            r"rewards=\(0.0, 'much', 1.0\); valid: finite numb",
        ),
        ({"stages": ("start", "reach", "reach")}, r"'reach', 'reach'\); valid: names that differ"),
        ({"stages": ("start", "", "lifted")}, r"'', 'lifted'\); valid: names that differ"),
        ({"stages": (1, 2, 3)}, r"task 'own': stages=\(1, 2, 3\); valid: names that differ"),
        ({"stages": ()}, "task 'own' has no stage; the last one is success"),
        ({"props": ("block_0", "block_0")}, r"props=\('block_0', 'block_0'\); valid: names that d"),
        ({"workspace": -1}, "task 'own': workspace=-1; valid: a length in m, above 0"),
        ({"workspace": 0.0}, "task 'own': workspace=0.0; valid: a length in m, above 0"),
        ({"workspace": float("nan")}, "task 'own': workspace=nan; valid: a length in m, above 0"),
        ({"workspace": "wide"}, "task 'own': workspace='wide'; valid: a length in m, above 0"),
        ({"training_steps": 0}, "task 'own': training_steps=0; valid: a whole number from 1, or"),
        ({"episode_steps": 7.5}, "task 'own': episode_steps=7.5; valid: a whole number from 1"),
        ({"prop_symmetry": (4, 4)}, "has 1 props and 2 prop_symmetry; one each, or none at all"),
        ({"prop_symmetry": (0,)}, r"prop_symmetry=\(0,\); valid: whole numbers from 1"),
        ({"turning": ("prop", "prop")}, "has 1 props and 2 turning; one each, or none at all"),
        (
            {"turning": ("thumb",)},
            "turning names 'thumb'; valid: prop, ways, neighbours, arm",
        ),
    ],
)
def test_a_task_that_cannot_be_is_refused(attributes: dict[str, object], message: str) -> None:
    before = dict(TASKS)
    with pytest.raises(UserError, match=message):
        register(own(**attributes))
    assert before == TASKS


def test_what_a_task_lacks_is_named() -> None:
    class Bare(Task):
        def place(self, rng: np.random.Generator) -> np.ndarray:
            return np.zeros((0, 3))

    lacks = "no stages, no stage_rewards, no props, no stage_props"
    methods = "no add_props(), no aux_targets(), no object_features(), no stage()"
    with pytest.raises(UserError) as told:
        register(Bare)
    assert str(told.value) == f"task Bare has no name, no episode_steps, {lacks}, {methods}"
    with pytest.raises(UserError, match=r"'block' is no task: a subclass of visuomotor.envs.Task"):
        register("block")  # type: ignore[arg-type]
    assert "own" not in TASKS


def test_a_task_of_an_entry_point_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown task 'own'.*python <file> evaluate.*entry point"):
        make_task("own")
    plugin = SimpleNamespace(value="my_package.own", load=lambda: register(own()))
    monkeypatch.setattr(envs, "entry_points", lambda group: [plugin])
    envs._load_plugins.cache_clear()
    try:
        assert type(make_task("own")).__name__ == "Own"
    finally:
        envs._load_plugins.cache_clear()
        TASKS.pop("own", None)


def test_a_second_demonstrator_is_refused() -> None:
    with pytest.raises(UserError, match="has a demonstrator already: LiftingExpert"):
        experts.register("lifting", StackingExpert)
    experts.register("lifting", LiftingExpert)  # the same again is no harm


@pytest.mark.parametrize("argv", [[], ["trian"]])
def test_an_unknown_command_names_the_known_ones(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(argv) == 2
    error = capsys.readouterr().err
    assert "commands: demonstrate, train, evaluate, average, export, deploy, faults" in error
    assert error.count("\n") == 1


def test_a_file_knows_every_command_of_the_package() -> None:
    package = Path(envs.__file__).parent.parent
    modules = {path.stem for path in package.glob("*.py") if "def main()" in path.read_text()}
    modules.remove("stepped_clock")  # which `faults` starts, and which knows no task
    assert modules == {*COMMANDS, *PARTS}
    assert all(callable(getattr(import_module(f"visuomotor.{m}"), m)) for m in modules)


def test_what_a_command_starts_beside_itself_goes_through_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli, "_own_program", [])
    argv = ["deploy", "bundle=x"]
    cli.through_own_program(argv)  # as here, where Python was given something else
    assert cli.program("sim_arm") == ["-m", "visuomotor.sim_arm"]
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "my_package.place", *argv])
    cli.through_own_program(argv)
    assert cli.program("sim_arm") == ["-m", "my_package.place", "sim_arm"]


def test_the_simulated_arm_has_the_task_of_the_file() -> None:
    arm = [sys.executable, str(EXAMPLE), "sim_arm", "task=place"]
    with subprocess.Popen(arm, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["port"] > 0
        finally:
            process.terminate()


def quoted() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_quotes_the_example_word_for_word() -> None:
    example = EXAMPLE.read_text()
    pieces = quoted()
    assert len(pieces) > 5
    assert [piece for piece in pieces if piece not in example] == []
    places = [example.index(piece) for piece in pieces]
    assert places == sorted(places)
    quotes = "".join(pieces)
    # All of it, but for the imports of what is not this package's.
    rest = [line for line in example.splitlines() if line and line not in quotes]
    assert [line for line in rest if not re.match(r'import |from \S+ import |"""', line)] == []


def test_the_page_says_what_a_task_may_say() -> None:
    page = PAGE.read_text()
    said = [name for name in Task.__annotations__] + sorted(Task.__abstractmethods__)
    assert [name for name in said if f"`{name}" not in page and name not in "".join(quoted())] == []
