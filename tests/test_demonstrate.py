"""The command that makes demonstrations, what it writes, and the ones made on first use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from visuomotor import demonstrate as module
from visuomotor import experts
from visuomotor.cli import run_command
from visuomotor.config import Config, EnvConfig, RandomizationConfig
from visuomotor.demonstrate import (
    FINGER_TREMBLING,
    TREMBLING,
    collect,
    demonstrations_for,
)
from visuomotor.demonstrations import (
    STEPS_AFTER_SUCCESS,
    Demonstrations,
    load_demonstrations,
    save_demonstrations,
)
from visuomotor.envs import make_env
from visuomotor.errors import UserError
from visuomotor.scripted.blocks import LiftingExpert

LIFTING = Config(task="lifting", randomization=RandomizationConfig(strength=0.0))


def _run(*argv: str) -> int:
    return run_command(module.demonstrate, list(argv))


def _datasets(path: Path) -> dict[str, np.ndarray]:
    """Everything in the file but the texts."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[()]
        for key in ("seed", "success", "num_samples"):
            if key in item.attrs:
                found[f"{name}@{key}"] = np.asarray(item.attrs[key])

    with h5py.File(path) as file:
        file.visititems(keep)
    return found


@pytest.fixture(scope="module")
def steady() -> Demonstrations:
    """Four liftings by a steady hand."""
    return collect(LIFTING, 4, seed=3, trembling=0.0)[0]


@pytest.fixture(scope="module")
def shaky() -> Demonstrations:
    """The same starts, with a hand that trembles."""
    return collect(LIFTING, 4, seed=3, trembling=0.1)[0]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before the minutes that collecting takes."""

    def work(*args: object, **kwargs: object) -> None:
        raise AssertionError("collects demonstrations")

    monkeypatch.setattr(module, "collect", work)


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["lifting", "stacking"])
def test_the_command_writes_a_file_that_can_be_read(task, tmp_path, capsys):
    path = tmp_path / "new" / "folder" / "demos.hdf5"
    assert _run(f"task={task}", "episodes=3", "seed=1", f"out={path}") == 0
    demos = load_demonstrations(path, task=task)
    assert len(demos) == 3
    assert demos.task == task
    assert demos.control_dt == EnvConfig().control_dt
    assert "<mujoco" in demos.model_xml
    said = rf"3 demonstrations in {re.escape(str(path))}; \d+ attempts failed, left out\n"
    assert re.fullmatch(said, capsys.readouterr().out)
    assert os.listdir(path.parent) == ["demos.hdf5"]


def test_without_out_the_file_is_named_after_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run("task=lifting", "episodes=1") == 0
    assert len(load_demonstrations(tmp_path / "demos" / "lifting.hdf5", task="lifting")) == 1


def test_the_seed_decides_the_whole_file(tmp_path):
    files = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        path = tmp_path / f"{name}.hdf5"
        assert _run("task=lifting", "episodes=2", f"seed={seed}", f"out={path}") == 0
        files[name] = _datasets(path)
    assert set(files["a"]) == set(files["b"]) == set(files["c"])
    assert {"data/demo_1/states", "data/demo_1/obs/proprio", "data/demo_0@seed"} <= set(files["a"])
    for key, values in files["a"].items():
        assert np.array_equal(values, files["b"][key]), key
    for key in ("data/demo_0/states", "data/demo_1/actions"):
        assert not np.array_equal(files["a"][key][:5], files["c"][key][:5]), key


def test_trembling_is_passed_on(tmp_path, steady, shaky):
    for demos, trembling in ((steady, 0.0), (shaky, 0.1)):
        path = tmp_path / "demos.hdf5"
        assert (
            _run(
                *("task=lifting", "episodes=4", "seed=3", f"trembling={trembling}"),
                *(f"out={path}", "overwrite=true"),
            )
            == 0
        )
        found = load_demonstrations(path)
        for a, b in zip(found.demos, demos.demos, strict=True):
            assert np.array_equal(a.states, b.states)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["task=staking"], "unknown task 'staking' (did you mean stacking"),
        (["task=lifting", "episode=3"], "episodes"),
        (["task=lifting", "ppo.gamma=0.9"], "ppo.gamma"),
        (["task=lifting", "episodes"], "episodes"),
        (["task=lifting", "episodes=0"], "episodes=0; at least 1"),
        (["task=lifting", "episodes=-3"], "episodes=-3; at least 1"),
        (["task=lifting", "episodes=2.5"], "episodes=2.5"),
        (["task=lifting", "trembling=2"], "trembling=2.0 is not valid; valid: from 0 up to 1"),
        (["task=lifting", "trembling=-0.1"], "trembling=-0.1 is not valid"),
        (["task=lifting", "trembling=nan"], "trembling=nan"),
        (["task=lifting", "seed=-1"], "seed=-1 is not valid; valid: from 0"),
        (["task=lifting", "out="], "out= has no value"),
        (["task=lifting", "out=."], "it is a folder"),
        (["task=lifting", "out=folder"], "cannot write 'folder': it is a folder"),
        (["task=lifting", "out=folder", "overwrite=true"], "cannot write 'folder': it is a folder"),
        (["task=lifting", "out=file"], "out=file is there; choose another, or overwrite=true"),
        (["task=lifting", "out=/dev/null"], "out=/dev/null is there; choose another"),
        (["task=lifting", "out=/dev/null", "overwrite=true"], "/dev/null is there and is no plain"),
        (["task=lifting", "out=file/demos.hdf5"], "cannot write 'file/demos.hdf5'"),
        (["task=lifting", "out=file/deeper/demos.hdf5"], "cannot write 'file/deeper/demos.hdf5'"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(
    argv, said, no_work, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("not a folder")
    assert _run(*argv) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert said in printed.err
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_file_that_is_there_is_replaced_only_where_that_is_asked_for(
    tmp_path, monkeypatch, steady, capsys
):
    monkeypatch.setattr(module, "collect", lambda *args, **kwargs: (steady, 0))
    monkeypatch.chdir(tmp_path)
    assert _run("task=lifting", "episodes=4") == 0
    path = Path("demos/lifting.hdf5")
    path.write_text("teleoperated")
    capsys.readouterr()
    for out in ([], [f"out={path}"]):
        assert _run("task=lifting", "episodes=4", *out) == 2
        assert capsys.readouterr().err == (
            "error: out=demos/lifting.hdf5 is there; choose another, or overwrite=true to replace "
            "it\n"
        )
        assert path.read_text() == "teleoperated"
    assert _run("task=lifting", "episodes=4", "overwrite=true") == 0
    assert len(load_demonstrations(path)) == 4
    assert os.listdir("demos") == ["lifting.hdf5"]


def test_a_file_that_appears_meanwhile_is_left(tmp_path, monkeypatch, steady, capsys):
    path = tmp_path / "demos.hdf5"

    def work(*args: object, **kwargs: object) -> tuple[Demonstrations, int]:
        path.write_text("another's")
        return steady, 0

    monkeypatch.setattr(module, "collect", work)
    assert _run("task=lifting", "episodes=4", f"out={path}") == 2
    assert f"out={path} is there" in capsys.readouterr().err
    assert path.read_text() == "another's"


def test_the_program_leaves_with_the_commands_exit_code(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demonstrate", "task=staking"])
    with pytest.raises(SystemExit) as left:
        module.main()
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown task 'staking'")


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError, OSError])
def test_an_end_before_the_file_is_whole_leaves_the_old_one(error, tmp_path, monkeypatch, steady):
    path = tmp_path / "demos.hdf5"
    save_demonstrations(path, steady)
    before = path.read_bytes()

    def write(file: h5py.File, demonstrations: Demonstrations) -> None:
        file.create_group("data")["half"] = np.zeros(1000)
        raise error("in the middle")

    monkeypatch.setattr("visuomotor.demonstrations._write", write)
    monkeypatch.setattr(module, "collect", lambda *args, **kwargs: (steady, 0))
    if error is OSError:
        with pytest.raises(OSError, match="in the middle"):
            _run("task=lifting", "episodes=4", f"out={path}", "overwrite=true")
    else:
        assert _run("task=lifting", "episodes=4", f"out={path}", "overwrite=true") in (2, 130)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["demos.hdf5"]


FULL = """
import resource, sys
from tests.recordings import some_demonstrations
from visuomotor import demonstrate
from visuomotor.cli import run_command

resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
demonstrate.collect = lambda *args, **kwargs: (some_demonstrations(), 0)
sys.exit(run_command(demonstrate.demonstrate, ["task=stacking", "episodes=2", *sys.argv[1:]]))
"""


def test_a_file_beyond_what_the_disk_takes_is_one_line_and_leaves_nothing(tmp_path):
    """A limit of the system for a file's size stands for the end of a disk."""
    path = tmp_path / "demos.hdf5"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", FULL, f"out={path}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if "error" in line]
    assert line.startswith(f"error: cannot write '{path}': File too large; free some space")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- only successes -------------------------------------------------------------------------------


class _Clumsy(LiftingExpert):
    """Stands still in world 0."""

    def act(self) -> torch.Tensor:
        action = super().act()
        action[0] = 0.0
        return action


class _Idle(LiftingExpert):
    def act(self) -> torch.Tensor:
        return torch.zeros_like(super().act())


class _Butterfingers(LiftingExpert):
    """Opens the hand in some control steps."""

    drops = range(0)

    def act(self) -> torch.Tensor:
        action = super().act()
        action[torch.isin(self._env.elapsed, torch.tensor(self.drops)), 6:] = -1.0
        return action


def test_an_episode_is_kept_until_the_success_that_lasts(monkeypatch):
    """The block is lifted, dropped and lifted again: the second time counts."""
    monkeypatch.setattr(_Butterfingers, "drops", range(80, 100))
    monkeypatch.setitem(experts.EXPERTS, "lifting", _Butterfingers)
    long = replace(LIFTING, env=EnvConfig(episode_steps=300))
    demos, failures = collect(long, 2, 3, trembling=0.0)
    assert failures == 0
    for demo in demos.demos:
        finished = demo.rewards == 1.0
        assert finished[:80].any()
        assert not finished[100]
        assert len(demo.states) < 300
        assert finished[-STEPS_AFTER_SUCCESS:].all()
        assert not finished[-STEPS_AFTER_SUCCESS - 1]


def test_a_success_that_does_not_last_is_a_failure(monkeypatch):
    monkeypatch.setattr(_Butterfingers, "drops", range(130, 150))
    monkeypatch.setitem(experts.EXPERTS, "lifting", _Butterfingers)
    short = replace(LIFTING, env=EnvConfig(episode_steps=150))
    with pytest.raises(UserError, match="the scripted expert failed 10 times"):
        collect(short, 2, 3, trembling=0.0)


def test_failures_are_left_out_and_counted(monkeypatch):
    monkeypatch.setitem(experts.EXPERTS, "lifting", _Clumsy)
    reported = []
    demos, failures = collect(LIFTING, 4, 3, lambda *counts: reported.append(counts), trembling=0)
    # Worlds 1, 2, 3 of the first four episodes, and the next world 1.
    assert [demo.seed for demo in demos.demos] == [1, 2, 3, 5]
    assert failures == 2
    assert reported == [(3, 1), (4, 2)]
    assert all(demo.rewards[-1] == 1.0 for demo in demos.demos)


def test_an_expert_that_always_fails_is_an_error_and_no_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(experts.EXPERTS, "lifting", _Idle)
    path = tmp_path / "demos.hdf5"
    assert _run("task=lifting", "episodes=1", f"out={path}") == 2
    assert "the scripted expert failed 5 times on task 'lifting'" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("hand", ["steady", "shaky"])
def test_every_episode_ends_in_a_success_that_lasts(hand, request):
    for demo in request.getfixturevalue(hand).demos:
        length = len(demo.states)
        assert demo.success
        assert STEPS_AFTER_SUCCESS < length <= 100
        finished = demo.rewards == 1.0
        assert finished[-1]
        if length < 100:
            # Success came, stayed for so long, and was not there the step before.
            assert finished[-STEPS_AFTER_SUCCESS:].all()
            assert not finished[-STEPS_AFTER_SUCCESS - 1]
        assert not finished[0]
        assert np.flatnonzero(demo.dones).tolist() == [length - 1]
        assert demo.stages[0] == 0
        assert demo.stages[-1] == 2


# --- what an episode holds ------------------------------------------------------------------------


def _replay(demo) -> np.ndarray:
    """The states that the demonstration's own actions lead to."""
    env = make_env(LIFTING, num_envs=1, seed=0, render=False)
    env.reset()
    one = torch.zeros(1, dtype=torch.int64)
    env.sim.reset(one, torch.from_numpy(demo.states[:1]))
    states = []
    for action in demo.actions:
        states.append(env.sim.get_state(one)[0].numpy())
        env.step(torch.from_numpy(action)[None])
    return np.stack(states)


def test_a_steady_hand_does_what_the_file_says_and_a_trembling_one_does_not(steady, shaky):
    for demo in steady.demos:
        assert np.array_equal(_replay(demo)[:-1], demo.states[:-1])
    for demo in shaky.demos:
        assert np.abs(_replay(demo) - demo.states).max() > 1e-2


def test_the_file_keeps_what_a_trembling_hand_asked_for(steady, shaky):
    for calm, noisy in zip(steady.demos, shaky.demos, strict=True):
        assert calm.seed == noisy.seed
        assert np.array_equal(calm.states[0], noisy.states[0])
        # Before the first noise has moved anything the demonstrator asks for the same.
        assert np.array_equal(calm.actions[0], noisy.actions[0])
        assert not np.array_equal(calm.states[1], noisy.states[1])
        # Later it answers the noise, but the noise itself is not in the file.
        steps = slice(1, 12)
        assert not np.array_equal(calm.actions[steps], noisy.actions[steps])
        assert np.abs(np.diff(noisy.actions[:12, :6], axis=0)).std() < 0.1 * np.sqrt(2)


def test_steps_are_what_the_sensors_showed_before_the_action(steady):
    env = make_env(LIFTING, num_envs=1, seed=0, render=False)
    env.reset()
    one = torch.zeros(1, dtype=torch.int64)
    demo = steady.demos[1]
    for step in (0, 20, len(demo.states) - 1):
        env.sim.reset(one, torch.from_numpy(demo.states[step : step + 1]))
        seen = env.current()
        np.testing.assert_allclose(demo.proprio[step], seen.proprio[0].numpy(), atol=1e-6)
        np.testing.assert_allclose(demo.features[step], seen.features[0].numpy(), atol=1e-6)
        assert demo.stages[step] == int(seen.stage[0])


def test_worlds_are_nominal_whatever_the_run_randomizes(steady):
    loud = replace(LIFTING, randomization=RandomizationConfig(strength=1.0))
    demos, _ = collect(loud, 4, seed=3, trembling=0.0)
    for a, b in zip(demos.demos, steady.demos, strict=True):
        assert np.array_equal(a.states, b.states)
        assert np.array_equal(a.proprio, b.proprio)


def test_the_noise_is_white_twice_as_strong_on_fingers_and_repeatable():
    action = torch.zeros(500, 9)
    tremble = module._Tremble(0.1, seed=1)
    first, second = tremble(action), tremble(action)
    for part, std in ((first[:, :6], 0.1), (first[:, 6:], 0.1 * FINGER_TREMBLING)):
        assert float(part.std()) == pytest.approx(std, rel=0.05)
        assert abs(float(part.mean())) < 0.1 * std
    both = torch.stack((first.flatten(), second.flatten()))
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.06
    assert torch.equal(module._Tremble(0.1, seed=1)(action), first)
    assert not torch.equal(module._Tremble(0.1, seed=2)(action), first)
    assert torch.equal(module._Tremble(0.0, seed=1)(action + 0.5), action + 0.5)


# --- made on first use ----------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEFAULT_EPISODES", 2)
    return tmp_path / "cache" / "visuomotor"


def test_they_are_made_once_and_kept_in_the_cache(cache, monkeypatch, capsys):
    first = demonstrations_for(LIFTING)
    (path,) = cache.iterdir()
    assert path.name.startswith("lifting-2-")
    assert path.suffix == ".hdf5"
    assert str(path) in capsys.readouterr().err
    stamp = path.stat()
    monkeypatch.setattr(module, "collect", None)  # no second time
    other = replace(LIFTING, num_envs=7, seed=5, randomization=RandomizationConfig(strength=1.0))
    for config in (LIFTING, other):
        again = demonstrations_for(config)
        assert len(first) == len(again) == 2
        for a, b in zip(first.demos, again.demos, strict=True):
            assert np.array_equal(a.states, b.states)
    assert capsys.readouterr().err == ""
    assert list(cache.iterdir()) == [path]
    assert path.stat() == stamp


def test_they_tremble_and_come_from_their_own_seed(cache):
    made = demonstrations_for(LIFTING)
    expected, _ = collect(LIFTING, 2, module.DEFAULT_SEED, trembling=TREMBLING)
    for a, b in zip(made.demos, expected.demos, strict=True):
        assert np.array_equal(a.states, b.states)
    assert TREMBLING == 0.1


def test_the_papers_number_of_episodes_is_made():
    assert module.DEFAULT_EPISODES == module.DemonstrateConfig().episodes == 30


@pytest.mark.parametrize(
    "change",
    [
        {"task": "stacking"},
        {"env": EnvConfig(physics_dt=0.005)},
        {"env": EnvConfig(control_dt=0.06)},
        {"env": EnvConfig(episode_steps=110)},
    ],
)
def test_another_scene_or_another_clock_is_another_file(change, cache):
    demonstrations_for(LIFTING)
    demonstrations_for(replace(LIFTING, **change))
    assert len(list(cache.iterdir())) == 2


def test_a_new_version_makes_them_anew(cache, monkeypatch):
    demonstrations_for(LIFTING)
    monkeypatch.setattr(module, "__version__", "999")
    demonstrations_for(LIFTING)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_cache_folder_it_is_the_home_folders(value, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    demonstrations_for(LIFTING)
    assert len(list((tmp_path / "home/.cache/visuomotor").glob("lifting-2-*.hdf5"))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


def test_a_cache_that_cannot_be_written_is_refused_before_the_work(
    no_work, cache, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*set XDG_CACHE_HOME"):
        demonstrations_for(LIFTING)
    assert capsys.readouterr().err == ""


def test_a_file_of_the_users_comes_before_the_cache(cache, tmp_path, steady):
    path = tmp_path / "mine.hdf5"
    save_demonstrations(path, steady)
    found = demonstrations_for(replace(LIFTING, demonstrations=str(path)))
    assert len(found) == 4
    assert not cache.exists()
    with pytest.raises(UserError, match=r"names the task 'lifting'"):
        demonstrations_for(replace(LIFTING, task="stacking", demonstrations=str(path)))
    with pytest.raises(UserError, match="no such demonstration file"):
        demonstrations_for(replace(LIFTING, demonstrations=str(tmp_path / "none.hdf5")))


def test_a_file_of_another_scene_or_another_rate_is_refused_by_file_and_key(tmp_path, steady):
    path = tmp_path / "theirs.hdf5"
    config = replace(LIFTING, demonstrations=str(path))
    narrow = replace(steady.demos[0], states=steady.demos[0].states[:, :-1])
    save_demonstrations(path, replace(steady, demos=[narrow]))
    width = steady.demos[0].states.shape[1]
    said = rf"theirs\.hdf5: 'data/demo_0/states' has {width - 1} numbers .*expected {width}"
    with pytest.raises(UserError, match=said):
        demonstrations_for(config)
    save_demonstrations(path, replace(steady, control_dt=0.1))
    with pytest.raises(UserError, match=r"theirs\.hdf5: .*control_dt=0\.1 .*control_dt=0\.05"):
        demonstrations_for(config)
    twice = replace(config, env=EnvConfig(control_dt=0.1))
    assert len(demonstrations_for(twice)) == len(steady)


def _with_first(demos: Demonstrations, **changes: object) -> Demonstrations:
    return replace(demos, demos=[replace(demos.demos[0], **changes), *demos.demos[1:]])


def test_what_is_not_of_the_tasks_scene_is_refused_by_file_and_key(tmp_path, steady):
    path = tmp_path / "theirs.hdf5"
    first = steady.demos[0]
    length, width = first.features.shape
    lost, far = first.states.copy(), first.states.copy()
    lost[4] = 0.0
    (place,) = module._scene(make_env(LIFTING, num_envs=1, seed=0, render=False)).free_joints
    far[4, place] = 150.0
    misfits = {
        rf"obs/object_features' has shape {length}x{width + 1}; expected {length}x{width}": {
            "features": np.ones((length, width + 1), np.float32)
        },
        rf"obs/proprio' has shape {length}x23; expected {length}x24": {
            "proprio": first.proprio[:, 1:]
        },
        "stages' holds 3 at step 0; expected the task's stages, 0 to 2": {
            "stages": first.stages + 3
        },
        "states' holds a quaternion of norm 0 at step 4; expected unit": {"states": lost},
        r"states' holds 150\.0 at step 4; expected the place of a prop": {"states": far},
    }
    config = replace(LIFTING, demonstrations=str(path))
    for said, changes in misfits.items():
        save_demonstrations(path, _with_first(steady, **changes))
        with pytest.raises(UserError, match=rf"theirs\.hdf5: 'data/demo_0/{said}"):
            demonstrations_for(config)
    save_demonstrations(path, _with_first(steady, features=None, proprio=None, stages=None))
    assert len(demonstrations_for(config)) == len(steady)


def test_demonstrations_that_failed_are_told_and_failures_alone_refused(tmp_path, steady, capsys):
    path = tmp_path / "mine.hdf5"
    config = replace(LIFTING, demonstrations=str(path))
    save_demonstrations(path, steady)
    demonstrations_for(config)
    assert capsys.readouterr().err == ""
    save_demonstrations(path, _with_first(steady, success=False))
    assert len(demonstrations_for(config)) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {path}: 1 of 4 demonstrations failed")
    assert "all 4 are used" in line
    failed = [replace(demo, success=False) for demo in steady.demos]
    save_demonstrations(path, replace(steady, demos=failed))
    with pytest.raises(UserError, match=r"mine\.hdf5: .*success.* is false in 4 of 4"):
        demonstrations_for(config)
