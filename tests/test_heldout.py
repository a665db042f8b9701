"""Worlds that no training meets: each change does what it says, alone, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch

from tests.runs import CPU, assert_refused, small_run, write_run
from visuomotor import evaluate, train
from visuomotor.cli import run_command
from visuomotor.config import Config
from visuomotor.envs import VisuomotorEnv, scene
from visuomotor.envs.camera import RayCaster, Supersampled
from visuomotor.envs.classic_renderer import available
from visuomotor.evaluation import evaluation_env
from visuomotor.experts import make_expert
from visuomotor.heldout import CHANGES, RENDERERS, HeldOut, _patterns, untold_origins

CONFIG = small_run(episode_steps=4)
WORLDS = 40


def _env(*names: str, render: bool = False, num_envs: int = WORLDS) -> VisuomotorEnv:
    env = evaluation_env(
        CONFIG,
        num_envs=num_envs,
        seed=0,
        strength=1.0,
        device=CPU,
        render=render,
        heldout=HeldOut(names),
    )
    env.reset()
    return env


@pytest.fixture(scope="module")
def trained() -> VisuomotorEnv:
    """As in training, of the same episodes."""
    return _env()


@pytest.mark.parametrize("name", [name for name, change in CHANGES.items() if change.beyond])
def test_factors_lie_beyond_training_and_the_others_stay(name: str, trained: VisuomotorEnv) -> None:
    env = _env(name)
    moved = 0
    for column, factor in enumerate(env.randomizer.factors):
        values, before = env.factors[:, column], trained.factors[:, column]
        group = factor.name.replace("colour/block_0", "prop_colour").split("/")[0]
        if group not in CHANGES[name].beyond:
            assert np.array_equal(values, before), factor.name
            continue
        moved += 1
        if factor.distribution == "integer":
            assert (values == factor.high + 1).all()
            continue
        log = factor.distribution == "log_uniform"
        low, centre, high, drawn = (
            np.log(v) if log else v for v in (factor.low, factor.neutral, factor.high, values)
        )
        outside = (drawn <= low + 1e-12) | (drawn >= high - 1e-12)
        assert outside.all(), factor.name
        assert (drawn >= centre + 2 * (low - centre) - 1e-9).all()
        assert (drawn <= centre + 2 * (high - centre) + 1e-9).all()
        if low < centre < high:
            assert (drawn < low).any() and (drawn > high).any()  # on both sides
    assert moved >= 2
    everyone = torch.arange(WORLDS)
    if name != "props":  # whose size lifts them
        assert torch.equal(env.sim.get_state(everyone), trained.sim.get_state(everyone))


def test_delays_are_one_step_longer_than_ever() -> None:
    env = _env("latency", render=True, num_envs=2)
    names = list(env.randomizer.factor_names)
    assert (env.factors[:, names.index("camera_delay")] == 3).all()
    assert (env.factors[:, names.index("action_delay")] == 2).all()
    start = env.sim.data("qpos").clone()
    arm = env.jaco.qpos_ids[:6]
    env.step(torch.ones(2, 9))
    env.step(torch.ones(2, 9))
    assert (env.sim.data("qpos") - start)[:, arm].abs().max() < 0.01


def test_textures_are_of_another_family_and_as_bright() -> None:
    ours, theirs = scene._patterns(np.random.default_rng(0)), _patterns(np.random.default_rng(1))
    assert len(ours) == len(theirs)
    for other in theirs:
        assert other.shape == ours[0].shape
        assert other.min() >= 0.6 * 255 - 1 and other.std() > 8
        alike = [abs(np.corrcoef(other.ravel(), one.ravel())[0, 1]) for one in ours]
        assert max(alike) < 0.5
    env, model = _env("textures", num_envs=2), _env(num_envs=2).sim.model
    assert env.sim.model.ntex == model.ntex
    assert not np.array_equal(env.sim.model.tex_data, model.tex_data)


def test_distractors_are_seen_and_never_touched() -> None:
    env, plain = (_env(*names, render=True, num_envs=6) for names in (("distractors",), ()))
    model = env.sim.model
    ids = [i for i in range(model.ngeom) if model.geom(i).name.startswith("distractor_")]
    assert len(ids) == 4
    assert (model.geom_contype[ids] == 0).all() and (model.geom_conaffinity[ids] == 0).all()
    assert env.task.state().shape == plain.task.state().shape
    seen, without = (e.step(torch.zeros(6, 9)).observation.pixels for e in (env, plain))
    assert seen is not None and without is not None
    differs = (seen.int() - without.int()).abs().amax(dim=1) > 25
    assert (differs.flatten(1).sum(dim=1) > 8).all()  # of 576 pixels, in every world


@pytest.mark.parametrize("task", ["stacking", "clearing_box"])
def test_another_finish_is_seen_and_never_felt(task: str) -> None:
    """Prints on blocks, a finer grain on props of any shape."""
    config = replace(CONFIG, task=task, env=replace(CONFIG.env, num_threads=0))
    envs = [
        evaluation_env(
            config,
            num_envs=6,
            seed=0,
            strength=1.0,
            device=CPU,
            heldout=HeldOut(("finish",)) if finish else None,
        )
        for finish in (True, False)
    ]
    actions = torch.rand(4, 6, 9, generator=torch.manual_seed(0)) * 2 - 1
    for env in envs:
        env.reset()
        for action in actions[:-1]:
            env.step(action)
    finished, plain = (env.step(actions[-1]).observation for env in envs)
    states = [env.sim.get_state(torch.arange(6)) for env in envs]
    assert torch.equal(*states) and torch.equal(finished.state, plain.state)
    assert finished.pixels is not None and plain.pixels is not None
    differs = (finished.pixels.int() - plain.pixels.int()).abs().amax(dim=1) > 25
    seen = differs.flatten(1).sum(dim=1)  # of 576 pixels
    assert (seen > 4).sum() >= (6 if task == "stacking" else 4)  # some props have no grain
    # A table's grain stays.
    model, other = (env.sim.model for env in envs)
    changed = (model.mat_texrepeat != other.mat_texrepeat).any(axis=1)
    assert changed.any() and not changed[model.material("table").id]


def test_shadows_darken_and_leave_the_rest() -> None:
    env, plain = (_env(*names, render=True, num_envs=6) for names in (("shadows",), ()))
    seen, without = (e.step(torch.zeros(6, 9)).observation.pixels for e in (env, plain))
    assert seen is not None and without is not None
    change = seen.int() - without.int()
    assert (change.flatten(1).min(dim=1).values < -15).any()
    assert (change.abs() < 4).float().mean() > 0.6


@pytest.mark.parametrize("renderer", sorted(RENDERERS))
def test_another_renderer_shows_the_same_worlds_with_shadows(renderer: str) -> None:
    if renderer == "classic" and not available():
        pytest.skip("no EGL")
    config = replace(CONFIG, camera=replace(CONFIG.camera, height=48, width=64))
    env = evaluation_env(
        config,
        num_envs=6,
        seed=0,
        strength=1.0,
        device=CPU,
        heldout=HeldOut(("shadows",), renderer),
    )
    env.reset()
    assert env.camera is not None
    plain = RayCaster(env.sim, replace(env.config.camera, shadows=False), env.sim.fields)
    ids = torch.tensor([4, 1, 5])
    seen, without = (one.render(ids) for one in (env.camera.caster, plain))
    assert seen.shape == without.shape == (3, 3, 48, 64) and seen.dtype == torch.uint8
    others = plain.render(torch.tensor([0, 2, 3]))

    def alike(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(np.corrcoef(one.flatten().numpy(), other.flatten().numpy())[0, 1])

    for i in range(3):
        assert alike(seen[i], without[i]) > 0.7
        # Colours, lights and places are those of this world.
        assert alike(seen[i], without[i]) > max(alike(seen[i], other) for other in others)
    change = seen.int() - without.int()
    assert (change.flatten(1).min(dim=1).values < -15).any()  # shadows
    assert float(change.float().mean()) < 0.0


def test_what_had_no_range_in_training_is_named() -> None:
    fixed = replace(CONFIG.randomization.appearance, camera_fovy=(0.0, 0.0))
    config = replace(CONFIG, randomization=replace(CONFIG.randomization, appearance=fixed))
    for settings, expected in ((CONFIG, []), (config, ["camera_fovy"])):
        env = evaluation_env(
            settings,
            num_envs=1,
            seed=0,
            strength=1.0,
            device=CPU,
            render=False,
            heldout=HeldOut(("camera",)),
        )
        assert env.randomizer.nothing_beyond() == expected


@pytest.mark.parametrize("renderer", sorted(RENDERERS))
def test_shadows_and_smooth_edges_go_together(renderer: str) -> None:
    if renderer == "classic" and not available():
        pytest.skip("no EGL")
    held_out = HeldOut(("shadows", "antialiasing"), renderer)
    env = evaluation_env(CONFIG, num_envs=2, seed=0, strength=1.0, device=CPU, heldout=held_out)
    env.reset()
    assert env.camera is not None
    camera = env.config.camera
    assert camera.shadows
    larger = replace(camera, height=4 * camera.height, width=4 * camera.width)
    make, _ = RENDERERS[renderer]
    ids = torch.tensor([1])
    seen = env.camera.caster.render(ids).float()
    many = make(env.sim, larger, env.sim.fields, CPU, 1).render(ids).float()
    mean = many.view(1, 3, camera.height, 4, camera.width, 4).mean(dim=(3, 5))
    torch.testing.assert_close(seen, mean, atol=0.5, rtol=0.0)


def test_several_rays_a_pixel_are_their_mean() -> None:
    env = _env(render=True, num_envs=2)
    larger = replace(CONFIG.camera, height=2 * CONFIG.camera.height, width=2 * CONFIG.camera.width)
    one = Supersampled(env.sim, CONFIG.camera, env.sim.fields).render(torch.tensor([1]))
    four = RayCaster(env.sim, larger, env.sim.fields).render(torch.tensor([1])).float()
    mean = four.view(1, 3, CONFIG.camera.height, 2, CONFIG.camera.width, 2).mean(dim=(3, 5))
    torch.testing.assert_close(one.float(), mean, atol=0.5, rtol=0.0)


def test_antialiasing_averages_sixteen_rays_a_pixel() -> None:
    env, plain = (
        _env(*names, render=True, num_envs=2) for names in (("antialiasing",), ("camera",))
    )
    assert env.camera is not None and plain.camera is not None
    assert isinstance(plain.camera.caster, RayCaster)
    larger = replace(CONFIG.camera, height=4 * CONFIG.camera.height, width=4 * CONFIG.camera.width)
    ids = torch.tensor([0, 1])
    seen = env.camera.caster.render(ids).float()
    many = RayCaster(env.sim, larger, env.sim.fields).render(ids).float()
    mean = many.view(2, 3, CONFIG.camera.height, 4, CONFIG.camera.width, 4).mean(dim=(3, 5))
    torch.testing.assert_close(seen, mean, atol=0.5, rtol=0.0)


def test_physics_has_half_the_timestep_and_another_solver(trained: VisuomotorEnv) -> None:
    model, ours = _env("physics", num_envs=2).sim.model, trained.sim.model
    assert model.opt.timestep == ours.opt.timestep / 2
    assert model.opt.solver != ours.opt.solver
    block = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_GEOM, "block_0")
    assert model.geom_solref[block, 0] < ours.geom_solref[block, 0]


def test_half_the_timestep_is_half_of_what_a_task_was_trained_with() -> None:
    """Pouring's is shorter than the configured one."""
    config = replace(CONFIG, task="pouring")
    steps = [
        evaluation_env(
            config, num_envs=1, seed=0, strength=0.0, device=CPU, render=False, heldout=heldout
        ).sim.model.opt.timestep
        for heldout in (None, HeldOut(("physics",)))
    ]
    assert steps[1] == pytest.approx(steps[0] / 2)


@pytest.mark.parametrize("name", ["actuators", "physics", "latency", "props"])
def test_what_is_held_out_can_still_be_done(name: str) -> None:
    """By the demonstrator: a world in which nobody lifts a block judges no policy."""
    config = replace(CONFIG, env=replace(CONFIG.env, episode_steps=None, num_threads=0))
    env = evaluation_env(
        config,
        num_envs=12,
        seed=0,
        strength=1.0,
        device=CPU,
        render=False,
        heldout=HeldOut((name,)),
    )
    env.reset()
    expert = make_expert(env, seed=0)
    for _ in range(env.episode_steps):
        result = env.step(expert.act())
    assert result.success.sum() >= (10 if name == "actuators" else 11)


def test_nothing_is_changed_without_a_change(trained: VisuomotorEnv) -> None:
    env = evaluation_env(CONFIG, num_envs=WORLDS, seed=0, strength=1.0, device=CPU, render=False)
    env.reset()
    assert np.array_equal(env.factors, trained.factors)
    assert env.model_xml() == trained.model_xml()


def test_all_together_run_in_every_task() -> None:
    for task in ("clearing_box", "pouring", "order_fulfillment"):
        env = evaluation_env(
            replace(CONFIG, task=task),
            num_envs=2,
            seed=0,
            strength=1.0,
            device=CPU,
            render=False,
            heldout=HeldOut(tuple(CHANGES)),
        )
        env.reset()
        for _ in range(3):
            assert torch.isfinite(env.step(torch.rand(2, 9) * 2 - 1).observation.state).all()


# --- the commands -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", CONFIG)


def test_the_evaluation_names_what_was_changed(run: Path, tmp_path: Path) -> None:
    for extra, names in (
        ([], list(CHANGES)),
        (["heldout.only=camera, latency"], None),
        (["heldout.only=physics,distractors,physics,distractors"], ["distractors", "physics"]),
    ):
        arguments = [
            f"policy={run}",
            "sims=heldout",
            "episodes=2",
            "video=false",
            "report=false",
            "device=cpu",
        ]
        assert run_command(evaluate.evaluate, [*arguments, *extra, f"out={tmp_path}"]) == 0
        summary = json.loads((tmp_path / "evaluation.json").read_text())
        assert summary["sims"] == "heldout" and summary["strength"] == 1.0
        assert summary["heldout"] == (names or ["camera", "latency"])
        assert summary["met_in_training"] == []


def test_what_a_policy_met_in_training_is_told() -> None:
    """By itself, or by one that it comes from: as a part of a mean, as its beginning."""
    held = HeldOut(("camera", "latency", "props"))

    def wider(latency: dict[str, tuple[float, float]]) -> Config:
        ranges = replace(CONFIG.randomization.latency, **latency)
        return replace(CONFIG, randomization=replace(CONFIG.randomization, latency=ranges))

    def part(ranges: dict[str, object], **provenance: object) -> dict[str, object]:
        return {"policy": "runs/a", "provenance": provenance, "randomization": ranges}

    old = {"started_from": part({}, mean_of=["a", "b"])}
    assert held.met_in_training(CONFIG, CONFIG, old) == []
    assert untold_origins(old) == ["a", "b"] and untold_origins({"mean_of": [part({})]}) == []
    assert held.met_in_training(CONFIG, wider({"camera_delay": (0, 3)}), {}) == ["camera_delay"]
    assert held.met_in_training(CONFIG, wider({"camera_delay": (0, 1)}), {}) == []
    low, high = CONFIG.randomization.dynamics.prop_size
    within = part({"dynamics": {"prop_size": [low + 0.01, high]}})
    beyond = part({"dynamics": {"prop_size": [low - 0.01, high], "prop_mass": [0.1, 9.0]}})
    assert held.met_in_training(CONFIG, CONFIG, {"mean_of": [within]}) == []
    assert held.met_in_training(CONFIG, CONFIG, {"mean_of": [within, beyond]}) == ["prop_size"]
    nested = part({}, mean_of=[part({"latency": {"action_delay": [0, 3]}}), within])
    assert held.met_in_training(CONFIG, CONFIG, {"mean_of": [nested]}) == ["action_delay"]
    begun = {"started_from": part({}, started_from=beyond)}
    assert held.met_in_training(CONFIG, CONFIG, begun) == ["prop_size"]
    assert HeldOut(("shadows",)).met_in_training(CONFIG, CONFIG, {"mean_of": [beyond]}) == []


def test_shadows_of_the_ray_caster_are_nothing_new_to_who_was_trained_with_them() -> None:
    looks = CONFIG.randomization.appearance
    without = replace(looks, cast_shadow=(0.0, 0.0))
    without = replace(CONFIG, randomization=replace(CONFIG.randomization, appearance=without))
    casts = {"policy": "a", "provenance": {}, "randomization": {"appearance": asdict(looks)}}
    rays, classic = (HeldOut(("shadows",), renderer=name) for name in ("rays", "classic"))
    assert rays.met_in_training(CONFIG, CONFIG, {}) == ["cast_shadow"]
    assert rays.met_in_training(without, without, {}) == []
    assert rays.met_in_training(without, without, {"started_from": casts}) == ["cast_shadow"]
    assert classic.met_in_training(CONFIG, CONFIG, {}) == []


@pytest.mark.parametrize(
    ("setting", "reach", "held", "renderer"),
    [
        ("blur", (0.0, 0.6), "antialiasing", None),
        ("clutter", (0, 4), "distractors", None),
        ("shade", (0.0, 0.9), "shadows", "rays"),
    ],
)
def test_what_training_shows_of_a_change_by_another_name_is_told(
    setting: str, reach: tuple[float, float], held: str, renderer: str | None
) -> None:
    """By the policy's own ranges, or those of one that it comes from; not of other changes."""
    without = replace(CONFIG.randomization.appearance, cast_shadow=(0.0, 0.0))
    plain = replace(CONFIG, randomization=replace(CONFIG.randomization, appearance=without))
    looks = replace(without, **{setting: reach})
    shown = replace(CONFIG, randomization=replace(CONFIG.randomization, appearance=looks))
    # As policy.json has it.
    origin = {"policy": "a", "provenance": {}, "randomization": {"appearance": {setting: [*reach]}}}
    change = HeldOut((held,), renderer)
    assert change.met_in_training(plain, plain, {}) == []
    assert change.met_in_training(plain, shown, {}) == [setting]
    assert change.met_in_training(plain, plain, {"started_from": origin}) == [setting]
    assert change.met_in_training(plain, plain, {"mean_of": [origin]}) == [setting]
    others = tuple(name for name in CHANGES if name != held)
    assert HeldOut(others, renderer).met_in_training(shown, shown, {}) == []
    if held == "shadows":
        assert HeldOut((held,), "classic").met_in_training(plain, shown, {}) == []


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("evaluate", ["sims=heldout", "heldout.only=shadow"], r"no change 'shadow' .*mean shadows"),
        ("evaluate", ["sims=nominal", "heldout.only=camera"], r"give sims=heldout"),
        ("evaluate", ["heldout.renderer=rays"], r"heldout.renderer= draws held-out .*sims=heldout"),
        ("evaluate", ["sims=heldout", "strength=0.5"], r"strength= has no place with sims=heldout"),
        ("evaluate", ["sims=heldout", "heldout.renderer=x"], r"renderer=x .*auto, classic, rays"),
        (
            "evaluate",
            ["sims=heldout", "heldout.only=camera", "heldout.renderer=x"],
            r"renderer=x is unknown; valid: auto, classic, rays",
        ),
        (
            "evaluate",
            ["sims=heldout", "heldout.only=camera, props", "heldout.renderer=classic"],
            r"renderer=classic draws shadows, which .*only=camera, props leaves out; add shadows",
        ),
        ("train", ["sims=heldout"], r"sims=heldout: held-out worlds are for evaluation only"),
        ("train", ["camera.shadows=true"], r"shadows are held out, .*appearance.cast_shadow="),
        ("train", ["heldout.only=camera"], r"held-out worlds are for evaluation only; no run may"),
    ],
)
def test_bad_input_is_one_line(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    arguments: list[str],
    told: str,
) -> None:
    out = tmp_path / "out"
    commands = {"evaluate": evaluate.evaluate, "train": train.train}
    given = [{"evaluate": f"policy={run}", "train": "task=lifting"}[command], *arguments]
    assert_refused(capsys, commands[command], [*given, f"out={out}"], told)
    assert not out.exists()
