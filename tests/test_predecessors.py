"""What a run takes over from another: its teacher, or its pixel actor."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import small_run, write_run
from tests.training import DISTILL, ITERATION, RIL, SMALL, STUDENT, metrics, stop_at
from visuomotor import predecessors
from visuomotor.checkpoint import load_checkpoint
from visuomotor.cli import run_command
from visuomotor.config import Config
from visuomotor.envs import make_task
from visuomotor.errors import UserError
from visuomotor.overrides import load_yaml
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import make_actor
from visuomotor.policy_files import load_policy
from visuomotor.predecessors import carried_over, shaped_like_its_teacher, ship_teacher
from visuomotor.reinforcement import Reinforcement
from visuomotor.train import Run, train


def test_the_teacher_of_one_run_serves_another_as_a_run_and_as_shipped(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*SMALL, "algorithm=distill", "distill.finetune_steps=0"]
    settings.append(f"distill.dagger_steps={2 * ITERATION}")
    first, second = tmp_path / "first", tmp_path / "second"
    teacher = f"distill.teacher.total_steps={2 * ITERATION}"
    assert train([*settings, teacher, demonstrations, f"out={first}"]) == 0
    reuse = [f"distill.teacher_run={first}", "seed=1"]
    assert train([*settings, *reuse, demonstrations, f"out={second}"]) == 0
    assert [row["phase"] for row in metrics(second)] == ["dagger"] * 2
    (one, _, _), (other, _, _) = (load_checkpoint(f / "checkpoints") for f in (first, second))
    for name, value in one["learner"]["teacher"].items():
        assert torch.equal(value, other["learner"]["teacher"][name])

    monkeypatch.setattr(predecessors, "TEACHERS", tmp_path / "teachers")
    ship_teacher(first, tmp_path / "teachers" / "its_name")
    config = load_yaml(second / "config.yaml", Config)
    distill = replace(config.distill, teacher_run="its_name")
    carried = carried_over(replace(config, distill=distill))
    for name, value in one["learner"]["teacher"].items():
        assert torch.equal(value, carried["teacher"][name])
    with pytest.raises(UserError, match=r"no run; .* its_name"):
        carried_over(replace(config, distill=replace(distill, teacher_run="another_name")))


@pytest.mark.parametrize("group", ["critic", "gail"])
def test_what_goes_on_learning_must_have_the_teachers_shape(group: str) -> None:
    config = Config(task="pouring", algorithm="distill")
    config = replace(config, distill=replace(config.distill, teacher_run="pouring"))
    other = replace(config, **{group: replace(getattr(config, group), hidden_sizes=(8, 8))})
    assert carried_over(config)
    with pytest.raises(UserError, match=rf"{group}\.hidden_sizes=.* \(8, 8\); they must be equal"):
        carried_over(other)
    # Labels alone need neither.
    assert carried_over(replace(other, distill=replace(other.distill, finetune_steps=0)))


def test_a_run_takes_the_sizes_of_its_teachers_networks_but_for_what_is_given() -> None:
    config = Config(task="pouring", algorithm="distill")
    teacher = replace(config.distill.teacher, hidden_sizes=(8,))
    config = replace(
        config,
        distill=replace(config.distill, teacher_run="pouring", teacher=teacher),
        critic=replace(config.critic, hidden_sizes=(8,)),
        gail=replace(config.gail, hidden_sizes=(8,)),
    )
    alike = shaped_like_its_teacher(config, ["distill.teacher_run"])
    assert carried_over(alike).keys() >= {"teacher", "critic", "gail"}
    for key in ("distill.teacher.hidden_sizes", "critic.hidden_sizes", "gail.hidden_sizes"):
        with pytest.raises(UserError, match=rf"{key}=.*this run \(8,\); they must be equal"):
            carried_over(shaped_like_its_teacher(config, [key]))
    alone = replace(config, distill=replace(config.distill, teacher_run=None))
    assert shaped_like_its_teacher(alone, []) == alone


def test_a_teacher_of_other_states_is_refused_before_there_is_a_run(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    settings = [*SMALL, "algorithm=distill", demonstrations]
    first, second = tmp_path / "first", tmp_path / "second"
    alone = [f"distill.teacher.total_steps={ITERATION}", "distill.dagger_steps=0"]
    assert train([*settings, *alone, f"out={first}"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(type(make_task("lifting")), "state", lambda task: task.aux_targets())
    assert run_command(train, [*settings, f"distill.teacher_run={first}", f"out={second}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "numbers of state, where lifting has" in error
    assert not second.exists()


def test_a_run_of_a_teacher_alone_serves_another_once_it_is_finished(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, student = tmp_path / "alone", tmp_path / "student"
    settings = [*SMALL, "algorithm=distill", demonstrations]
    teacher = [f"distill.teacher.total_steps={3 * ITERATION}", "distill.dagger_steps=0"]
    reuse = [f"distill.dagger_steps={ITERATION}", "distill.finetune_steps=0"]
    reuse += [f"distill.teacher_run={alone}", f"out={student}"]
    with monkeypatch.context() as patch:
        stop_at(patch, 1, signal.SIGTERM)
        assert train([*settings, *teacher, f"out={alone}"]) == 143
    with pytest.raises(UserError, match="has not finished its teacher"):
        train([*settings, *reuse])
    assert train([f"resume={alone}"]) == 0
    assert train([*settings, *reuse]) == 0
    (one, _, _), (other, _, _) = (load_checkpoint(f / "checkpoints") for f in (alone, student))
    for name, value in one["learner"]["ppo"]["actor"].items():
        assert torch.equal(value, other["learner"]["teacher"][name]), name


@pytest.mark.parametrize("algorithm", [RIL, DISTILL], ids=["ril", "distill"])
def test_a_run_begins_with_the_actor_of_another(
    algorithm: tuple[str, ...],
    demonstrations: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train([*SMALL, *RIL, demonstrations, f"out={first}"]) == 0
    (before, _, _) = load_checkpoint(first / "checkpoints")
    seen: list[dict[str, Any]] = []
    original = Run.start_phase

    def start_phase(self: Run, phase: str, **options: Any) -> None:
        original(self, phase, **options)
        if isinstance(self.learner.actor, PixelActor):
            seen.append({k: v.clone() for k, v in self.learner.actor.state_dict().items()})

    monkeypatch.setattr(Run, "start_phase", start_phase)
    assert train([*SMALL, *algorithm, f"start_from={first}", demonstrations, f"out={second}"]) == 0
    for name, value in before["policy"]["actor"].items():
        assert torch.equal(seen[0][name], value), name
    assert "start" not in {row["phase"] for row in metrics(second)}
    origin = load_policy(str(second))[2]["started_from"]
    assert origin["policy"] == str(first)
    assert origin["provenance"]["run"] == "first"
    assert origin["randomization"] == {}


def test_a_finished_student_is_finetuned_alone_and_sees_as_before(
    demonstrations: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert train([*SMALL, *STUDENT, demonstrations, f"out={first}"]) == 0
    (before, _, _) = load_checkpoint(first / "checkpoints")
    began: list[dict[str, torch.Tensor]] = []
    original = Run.start_phase

    def start_phase(self: Run, phase: str, **options: Any) -> None:
        original(self, phase, **options)
        assert isinstance(self.learner, Reinforcement)
        began.append({k: v.clone() for k, v in self.learner.critic.state_dict().items()})
        began.append(self.learner.normalizer.statistics())

    monkeypatch.setattr(Run, "start_phase", start_phase)
    scales: list[float] = []
    iterate = Reinforcement.iterate

    def iterate_and_look(self: Reinforcement) -> dict[str, float]:
        result = iterate(self)
        scales.append(self.actor.deviation.scale)
        return result

    monkeypatch.setattr(Reinforcement, "iterate", iterate_and_look)
    finetuning = [
        "algorithm=distill",
        "distill.dagger_steps=0",
        f"distill.finetune_steps={2 * ITERATION}",
        f"distill.teacher_run={first}",
        "distill.finetune_label_weight=0.25",
        "distill.finetune_noise=0.75",
        "ppo.critic_warmup=0",
    ]
    settings = [s for s in SMALL if not s.startswith("ppo.critic_warmup")]
    out = [demonstrations, f"start_from={first}", f"out={second}"]
    assert train([*settings, *finetuning, *out]) == 0
    assert {row["phase"] for row in metrics(second)} == {"finetune"}
    for name, value in before["carried"]["critic"].items():
        assert torch.equal(began[0][name], value), name
    assert float(began[1]["count"]) == 3 * ITERATION
    assert began[1] == before["carried"]["normalizer"]
    assert {row["cloning_weight"] for row in metrics(second)} == {0.25}
    assert scales == [0.75, 0.75]
    (after, _, _) = load_checkpoint(second / "checkpoints")
    moved = {
        name.partition(".")[0]
        for name, value in after["policy"]["actor"].items()
        if not torch.equal(before["policy"]["actor"][name], value)
    }
    assert {"lstm", "mean_head"} <= moved
    assert not moved & {"encoder", "aux_heads", "normalizer"}


@pytest.mark.parametrize("from_hand", [False, True])
def test_an_actor_without_maps_begins_one_with_them_and_acts_as_it_did(
    from_hand: bool, tmp_path: Path
) -> None:
    config = small_run(episode_steps=8)
    run = write_run(tmp_path / "first", config)
    actor = replace(config.actor, encoder="maps", from_hand=from_hand)
    mapped = replace(config, actor=actor, start_from=str(run), seed=3)
    weights, again = (carried_over(mapped)["actor"] for _ in range(2))
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    grown, former = make_actor(mapped, 6), load_policy(str(run))[0]
    grown.load_state_dict(weights)
    pixels = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8)
    hidden = former.initial_hidden(4)
    proprio = torch.randn(4, 24)
    seen = former.encode(pixels)
    torch.testing.assert_close(grown.encode(pixels)[:, : seen.shape[1]], seen)
    expected = former.step(seen, proprio, hidden)[0]
    torch.testing.assert_close(grown.step(grown.encode(pixels), proprio, hidden)[0], expected)
    back = replace(config, start_from=str(write_run(tmp_path / "second", mapped)))
    with pytest.raises(UserError, match=r"actor\.encoder=maps, this run compact"):
        carried_over(back)


def test_an_actor_without_fused_heads_begins_one_with_them_and_acts_as_it_did(
    tmp_path: Path,
) -> None:
    config = small_run(episode_steps=8)
    run = write_run(tmp_path / "first", config)
    fused = replace(config, actor=replace(config.actor, fused_heads=True), start_from=str(run))
    weights, again = (carried_over(fused)["actor"] for _ in range(2))
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    grown, former = make_actor(fused, 6), load_policy(str(run))[0]
    grown.load_state_dict(weights)
    seen, proprio = torch.randn(4, grown.visual_dim + 6), torch.randn(4, 24)
    hidden = former.initial_hidden(4)
    expected = former.step(seen, proprio, hidden)[0]
    assert torch.equal(grown.step(seen, proprio, hidden)[0], expected)
    back = replace(config, start_from=str(write_run(tmp_path / "second", fused)))
    with pytest.raises(UserError, match=r"actor\.fused_heads=True, this run False"):
        carried_over(back)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("actor.hidden_dim=8", "actor.hidden_dim=16, this run 8"),
        ("camera.fovy=20", "camera="),
        ("aux.weight=0", "aux.weight above 0=True, this run False"),
    ],
)
def test_the_actor_of_another_kind_is_refused(
    setting: str, told: str, demonstrations: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tmp_path / "first"
    assert train([*SMALL, *RIL, demonstrations, f"out={first}"]) == 0
    settings = [s for s in SMALL if not s.startswith(setting.partition("=")[0])]
    argv = [*settings, *RIL, setting, f"start_from={first}", f"out={tmp_path / 'second'}"]
    assert run_command(train, [*argv, demonstrations]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
