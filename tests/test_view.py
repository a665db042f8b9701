"""Looking on in a browser: the same episodes as an evaluation, every control, loopback alone."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from tests.browser import browser
from tests.runs import CPU, assert_refused, moving_actor, small_run, write_run
from visuomotor.envs import Observation
from visuomotor.evaluation import Guarded, evaluation_env
from visuomotor.gail_reward import Discriminator
from visuomotor.heldout import HeldOut, HeldOutOptions
from visuomotor.policies import PixelPolicy
from visuomotor.view import HOST, Panel, ViewConfig, Watched, view

CONFIG = small_run(episode_steps=9)


class Broken:
    def act(self, seen: Observation, episode_start: torch.Tensor) -> torch.Tensor:
        raise ValueError("no idea")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `ril` leaves it: an actor, and a discriminator beside it."""
    env = evaluation_env(CONFIG, num_envs=1, seed=0, strength=0.0, device=CPU, render=False)
    width = env.task.object_features().shape[1]
    discriminator = Discriminator(feature_dim=width, hidden_sizes=(7, 5))
    learner = {"gail": {"discriminator": discriminator.state_dict()}}
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG, learner=learner)


def test_what_is_watched_is_the_episode_of_an_evaluation(run: Path) -> None:
    watched = Watched(ViewConfig(policy=str(run), seed=5, episode=2, device="cpu"))
    env = evaluation_env(CONFIG, num_envs=3, seed=5, strength=1.0, device=CPU)
    policy, seen = PixelPolicy(moving_actor(CONFIG), 3), env.reset()
    start = torch.ones(3, dtype=torch.bool)
    assert np.array_equal(watched.env.factors[0], env.factors[2])
    for step in range(1, 6):
        shown = watched.step()
        action = torch.from_numpy(shown.action)
        # Rows of another number of worlds are rounded otherwise.
        assert torch.allclose(policy.act(seen, start)[2].clamp(-1, 1), action, atol=1e-6)
        result = env.step(action.expand(3, 9))
        seen, start = result.observation, result.truncated
        assert (shown.episode, shown.step) == (2, step)
        assert torch.equal(watched.env.sim.data("qpos")[0], env.sim.data("qpos")[2])
        assert shown.stage == env.task.stages[int(result.stage[2])]
        assert np.array_equal(shown.pixels, seen.pixels[2].permute(1, 2, 0).numpy())
        assert np.abs(shown.action).max() > 0.0


def test_the_last_step_of_an_episode_is_told_as_its_own(run: Path) -> None:
    watched = Watched(ViewConfig(policy=str(run), seed=5, episode=2, device="cpu"))
    steps = watched.env.episode_steps
    for step in range(1, steps + 1):
        before = watched.shown.pixels
        shown = watched.step()
        assert (shown.episode, shown.step) == (2, step)
        success = watched.env.task.stages[-1]
        assert shown.success == (shown.stage == success)
    assert np.array_equal(shown.pixels, before)  # not the next episode's first image
    shown = watched.step()
    assert (shown.episode, shown.step) == (3, 1)


def test_a_policy_that_raises_stands_still_until_the_next_episode(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = Watched(ViewConfig(policy=str(run), device="cpu"))
    watched._policy = Guarded(Broken())
    for _ in range(2):
        assert not watched.step().action.any()
    assert capsys.readouterr().err.splitlines() == [
        "the policy stands still for this episode: it raised ValueError: no idea"
    ]
    watched.restart()
    assert watched.step().action.any()


@pytest.mark.parametrize("answer", [None, np.zeros((1, 9)), torch.zeros(9), torch.zeros(2, 9)])
def test_an_answer_that_is_no_action_is_an_error_of_the_policy(run: Path, answer: object) -> None:
    class Strange:
        def act(self, seen: Observation, episode_start: torch.Tensor) -> object:
            return answer

    watched = Watched(ViewConfig(policy=str(run), device="cpu"))
    watched._policy = Guarded(Strange())
    assert not watched.step().action.any()
    assert "not (1, 9)" in str(watched._policy.refusal)


def test_held_out_worlds_are_those_of_an_evaluation(run: Path) -> None:
    changed = HeldOutOptions("distractors, latency")
    options = ViewConfig(policy=str(run), sims="heldout", heldout=changed, seed=5, device="cpu")
    watched = Watched(options)
    for seed in (5, 6):
        env = evaluation_env(
            CONFIG,
            num_envs=1,
            seed=seed,
            strength=1.0,
            device=CPU,
            heldout=HeldOut(("distractors", "latency")),
        )
        pixels = env.reset().pixels
        assert pixels is not None
        assert np.array_equal(watched.env.factors, env.factors)
        assert watched.env.model_xml() == env.model_xml()
        assert np.array_equal(watched.shown.pixels, pixels[0].permute(1, 2, 0).numpy())
        watched.seed += 1
        watched.shown = watched.restart()


def test_reset_repeats_the_episode_and_the_next_seed_is_another(run: Path) -> None:
    watched = Watched(ViewConfig(policy=str(run), device="cpu"))
    first = [watched.step().action for _ in range(3)]
    watched.restart()
    assert np.array_equal(first, [watched.step().action for _ in range(3)])
    factors = watched.env.factors.copy()
    watched.seed += 1
    watched.restart()
    assert not np.array_equal(watched.env.factors, factors)
    watched.randomized = False
    watched.restart()
    assert np.array_equal(watched.env.factors[0], watched.env.randomizer.default())
    assert {value for _, value in watched.factors()} <= {0.0, 1.0, 3.0}


def test_the_score_is_that_of_the_runs_own_discriminator(run: Path) -> None:
    shown = Watched(ViewConfig(policy=str(run), device="cpu")).step()
    assert shown.score is not None and 0.0 < shown.score < 1.0
    assert Watched(ViewConfig(task="lifting", device="cpu")).step().score is None
    shipped = Watched(ViewConfig(policy="lifting", device="cpu")).step()
    assert shipped.score is None and np.abs(shipped.action).max() > 0.0


def test_without_a_policy_the_arm_stands_still_and_the_scene_is_the_worlds() -> None:
    watched = Watched(ViewConfig(task="clearing", sims="nominal", device="cpu"))
    assert watched.config.task == "clearing_blocks"  # by its alias
    assert (watched.step().action == 0.0).all()
    data = mujoco.MjData(watched.env.sim.model)
    watched.mj_data(data)
    np.testing.assert_array_equal(data.qpos, watched.env.sim.data("qpos")[0].numpy())
    block = watched.env.sim.model.body("block_0").id
    np.testing.assert_allclose(data.xpos[block], watched.env.task.prop_pos(0)[0].numpy())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], r"task= or policy= is missing; for example: task=stacking"),
        (["task=liftin"], r"unknown task 'liftin' \(did you mean lifting"),
        (["policy=nowhere"], r"there is no policy 'nowhere'"),
        (["policy=lifting", "task=stacking"], r"policy=lifting does lifting, not stacking; leave"),
        (
            ["task=lifting", "sims=real"],
            r"sims='real' is unknown; valid: nominal, randomized, held",
        ),
        (["task=lifting", "heldout.only=camera"], r"heldout.only= chooses .*give sims=heldout"),
        (["task=lifting", "heldout.renderer=rays"], r"heldout.renderer= draws .*give sims=heldout"),
        (["task=lifting", "sims=heldout", "heldout.only=camra"], r"'camra' .*did you mean camera"),
        (["task=lifting", "sims=heldout", "heldout.renderer=gl"], r"renderer=gl is unknown; valid"),
        (["task=lifting", "seed=-1"], r"seed=-1; valid: from 0"),
        (["task=lifting", "port=0"], r"port=0; valid: 1 to 65535"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert_refused(capsys, view, arguments, told)


# --- in a browser -------------------------------------------------------------------------------


@contextmanager
def _running(options: ViewConfig) -> Iterator[Panel]:
    pytest.importorskip("mjviser")
    panel = Panel(Watched(options), port=18080)
    over = threading.Event()
    thread = threading.Thread(target=panel.run, args=(over.is_set,), daemon=True)
    thread.start()
    try:
        yield panel
    finally:
        over.set()
        thread.join(timeout=60)


def test_it_listens_on_loopback_alone(run: Path) -> None:
    assert HOST == "127.0.0.1"
    with _running(ViewConfig(policy=str(run), device="cpu")) as panel:
        socket.create_connection((HOST, panel.port), timeout=10).close()
        listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
        hosts = {
            row.split()[1].split(":")[0]
            for row in listening
            if row.split()[3] == "0A" and int(row.split()[1].split(":")[1], 16) == panel.port
        }
        assert hosts == {"0100007F"}  # 127.0.0.1


def test_what_is_held_out_comes_with_all_randomization(run: Path) -> None:
    """Its switch is off duty there, and every other control does what it does elsewhere."""
    pytest.importorskip("mjviser")
    only = HeldOutOptions("textures")
    panel = Panel(
        Watched(ViewConfig(policy=str(run), sims="heldout", heldout=only, device="cpu")), port=18080
    )
    try:
        assert panel._randomized.disabled and panel._randomized.value
        panel._do("Next seed")
        assert panel.watched.seed == 1 and panel.watched.randomized
        neutral = panel.watched.env.randomizer.default()
        assert not np.array_equal(panel.watched.env.factors[0], neutral)
    finally:
        panel.server.stop()


def test_every_control_does_what_it_says(run: Path, tmp_path: Path) -> None:
    def click(name: str) -> str:
        buttons = "[...document.querySelectorAll('button')]"
        return f"{buttons}.find((b) => b.innerText.trim() === '{name}').click() || true"

    def told(text: str) -> str:
        return f"document.body?.innerText.includes('{text}')"

    with browser(tmp_path) as page, _running(ViewConfig(policy=str(run), device="cpu")) as panel:
        page.open(f"http://{HOST}:{panel.port}")
        page.wait(told("lifting, seed 0"))
        page.wait(told("discriminator: 0."))
        page.wait(told("furthest from neutral"))
        page.wait("document.querySelectorAll('canvas').length > 0")
        page.wait("[...document.querySelectorAll('img')].some((i) => i.naturalWidth >= 240)")
        page.value(click("Pause"))
        page.wait("[...document.querySelectorAll('button')].some((b) => b.innerText === 'Play')")
        page.value(click("Reset"))
        page.wait(told("step 0"))
        number = panel.watched.shown_episode
        page.value(click("Next episode"))
        page.wait(told(f"episode {number + 1}, step 0"))
        page.value(click("Step"))
        page.wait(told(f"episode {number + 1}, step 1"))
        page.value(click("Next seed"))
        page.wait(told("lifting, seed 1, episode 0, step 0"))
        assert panel.watched.randomized
        page.value(
            "document.querySelector('input[type=checkbox]:not([id^=mantine])').click() || true"
        )
        # All factors are at their neutral values then, and stand in the order of their declaration.
        page.wait("/camera_pos.x[ \\t]+0[ \\n\\t]/.test(document.body.innerText)")
        assert not panel.watched.randomized
        page.wait(told("seed 1, episode 0, step 0"))
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
        assert page.errors == []
