"""Networks that a run takes over from another: its teacher, or its pixel actor.

A shipped teacher is a run folder with nothing in it but its settings and these networks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from visuomotor.checkpoint import load_checkpoint, save_checkpoint
from visuomotor.config import Config
from visuomotor.errors import UserError
from visuomotor.overrides import load_yaml, save_yaml
from visuomotor.pixel_actor import with_maps, with_reach
from visuomotor.policies import make_actor
from visuomotor.policy_files import PRETRAINED, load_policy
from visuomotor.run_folder import CONFIG_FILE

TEACHERS = PRETRAINED / "teachers"
TEACHER_PARTS = ("teacher", "critic", "gail", "normalizer")  # the last not in older runs
# Of ActorConfig: what decides the shapes of a pixel actor's weights.
SHAPING = (
    *("recurrent", "encoder", "reads", "from_hand", "fused_heads"),
    *("visual_dim", "proprio_dim", "hidden_dim"),
)


def shipped_teachers() -> list[str]:
    """The teachers that come with the package, by their task's name."""
    return sorted(entry.parent.name for entry in TEACHERS.glob(f"*/{CONFIG_FILE}"))


def carried_over(config: Config) -> dict[str, Any]:
    """The networks that this run begins with; empty if it makes its own. Raises UserError."""
    return _teacher_of(config) | _actor_of(config)


def ship_teacher(run: Path | str, out: Path | str) -> None:
    """Writes a run's finished teacher as a folder that `distill.teacher_run` accepts.

    Raises UserError if the run has none.
    """
    run, out = Path(run), Path(out)
    config = load_yaml(run / CONFIG_FILE, Config)
    distill = replace(config.distill, teacher_run=str(run))
    carried = _teacher_of(replace(config, distill=distill))
    out.mkdir(parents=True)
    shipped = replace(config, out=None, distill=replace(config.distill, teacher_run=None))
    save_yaml(shipped, out / CONFIG_FILE)
    save_checkpoint(out / "checkpoints", 0, {"phase": "dagger", "carried": carried})


def _teacher_of(config: Config) -> dict[str, Any]:
    """What the teacher of another run hands over; empty if this run trains its own.

    Raises UserError if that run has no finished teacher, or one of another kind.
    """
    if config.distill.teacher_run is None:
        return {}
    key = f"distill.teacher_run={config.distill.teacher_run}"
    path, other = _teacher_run(config)
    alike = [
        ("task", config.task, other.task),
        ("algorithm", config.algorithm, other.algorithm),
        (
            "distill.teacher.hidden_sizes",
            config.distill.teacher.hidden_sizes,
            other.distill.teacher.hidden_sizes,
        ),
    ]
    if config.distill.finetuning > 0 or config.distill.rehearsal_steps > 0:
        # Reinforcement goes on with the critic and the discriminator, too.
        alike += [
            ("critic.hidden_sizes", config.critic.hidden_sizes, other.critic.hidden_sizes),
            ("gail.hidden_sizes", config.gail.hidden_sizes, other.gail.hidden_sizes),
        ]
    for name, mine, its in alike:
        if mine != its:
            raise UserError(f"{key} has {name}={its}, this run {mine}; they must be equal")
    state, _, notes = load_checkpoint(path / "checkpoints")
    for note in notes:
        print(note, file=sys.stderr)
    if state.get("phase") == "average":
        raise UserError(
            f"{key} is a mean of pixel policies, which holds no teacher; name the folder of a run "
            f"with algorithm=distill, or a shipped teacher: {', '.join(shipped_teachers())}"
        )
    carried = state.get("carried", {})
    if "teacher" in carried:
        return {name: carried[name] for name in TEACHER_PARTS if name in carried}
    raise UserError(
        f"{key} has not finished its teacher; go on with it first: python -m visuomotor.train "
        f"resume={path}"
    )


def _teacher_run(config: Config) -> tuple[Path, Config]:
    """The folder that `distill.teacher_run` names, and its settings. Raises UserError."""
    name = config.distill.teacher_run
    assert name is not None
    path = TEACHERS / name if name in shipped_teachers() else Path(name)
    if config.algorithm != "distill":
        raise UserError(
            f"distill.teacher_run={name} needs algorithm=distill, not {config.algorithm}"
        )
    if not (path / CONFIG_FILE).is_file():
        raise UserError(
            f"distill.teacher_run={name} is no run; name the folder of a run with "
            f"algorithm=distill, or a shipped teacher: {', '.join(shipped_teachers())}"
        )
    return path, load_yaml(path / CONFIG_FILE, Config)


def shaped_like_its_teacher(config: Config, given: Collection[str]) -> Config:
    """The settings with the sizes of the networks that another run hands over, but for those that
    are given: keys, which must be equal then. Raises UserError."""
    if config.distill.teacher_run is None:
        return config
    _, other = _teacher_run(config)
    if "distill.teacher.hidden_sizes" not in given:
        sizes = other.distill.teacher.hidden_sizes
        teacher = replace(config.distill.teacher, hidden_sizes=sizes)
        config = replace(config, distill=replace(config.distill, teacher=teacher))
    if "critic.hidden_sizes" not in given:
        config = replace(config, critic=other.critic)
    if "gail.hidden_sizes" not in given:
        sizes = other.gail.hidden_sizes
        config = replace(config, gail=replace(config.gail, hidden_sizes=sizes))
    return config


def check_state_width(config: Config, carried: dict[str, Any], width: int) -> None:
    """Raises UserError if the teacher carried over was trained on states of another width than the
    task's are now."""
    if "teacher" not in carried:
        return
    trained = len(carried["teacher"]["normalizer.mean"])
    if trained != width:
        raise UserError(
            f"distill.teacher_run={config.distill.teacher_run} was trained on {trained} numbers of "
            f"state, where {config.task} has {width} now; train a teacher anew: leave "
            "distill.teacher_run= away"
        )


def _actor_of(config: Config) -> dict[str, Any]:
    """The pixel actor that this run begins with; empty if it begins with a new one. One without
    maps or fused heads may begin one with them, and one that does not read from its hand one that
    does.

    Raises UserError if it is of another kind, or serves another task or camera.
    """
    if config.start_from is None:
        return {}
    actor, other, provenance = load_policy(config.start_from)
    heads = actor.aux_heads is not None
    weights = actor.state_dict()
    if heads and (other.actor.encoder, config.actor.encoder) == ("compact", "maps"):
        other = replace(other, actor=replace(other.actor, encoder="maps"))
        weights = with_maps(weights, _new_weights(other, actor.target_dim, config.seed))
    if heads and config.actor.from_hand and not other.actor.from_hand:
        other = replace(other, actor=replace(other.actor, from_hand=True))
        weights = with_reach(weights, make_actor(other, actor.target_dim).reading_weight.shape[1])
    if heads and config.actor.fused_heads and not other.actor.fused_heads:
        other = replace(other, actor=replace(other.actor, fused_heads=True))
        weights = _new_weights(other, actor.target_dim, config.seed) | weights
    check_alike(f"start_from={config.start_from}", heads, other, config.aux.weight > 0.0, config)
    return {"actor": weights, "started_from": told(config.start_from, other, provenance, config)}


def _new_weights(config: Config, target_dim: int, seed: int) -> dict[str, Any]:
    """Of an actor of these settings that has learned nothing; a run's seed decides all of it."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return make_actor(config, target_dim).state_dict()


def told(name: str, its: Config, provenance: dict[str, Any], successor: Config) -> dict[str, Any]:
    """What a checkpoint says of a policy that its own comes from: where that came from, and the
    ranges it was trained in, where they are others than the successor's."""
    mine, others = (json.loads(json.dumps(asdict(one.randomization))) for one in (successor, its))
    ranges = {
        group: {key: value for key, value in settings.items() if value != mine[group][key]}
        for group, settings in others.items()
        if isinstance(settings, dict)
    }
    differing = {group: settings for group, settings in ranges.items() if settings}
    return {"policy": name, "provenance": provenance, "randomization": differing}


def check_alike(
    key: str, heads: bool, settings: Config, wanted: bool, config: Config, whose: str = "this run"
) -> None:
    """Raises UserError, which begins with `key`, if a policy's task, camera or shape is not that of
    `config`, which is `whose`. heads: whether the policy has auxiliary ones; wanted: the other."""
    for name, mine, its in (
        ("task", config.task, settings.task),
        ("camera", config.camera, settings.camera),
        ("aux.weight above 0", wanted, heads),
        ("aux.hidden_sizes", config.aux.hidden_sizes, settings.aux.hidden_sizes),
        *((f"actor.{n}", getattr(config.actor, n), getattr(settings.actor, n)) for n in SHAPING),
    ):
        if mine != its:
            raise UserError(f"{key} has {name}={its}, {whose} {mine}; they must be equal")
