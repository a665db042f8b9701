"""Finds and opens a policy: a run folder, a bundle, or the name of a policy that is shipped.

A run folder acts through torch, a bundle through ONNX Runtime: what is judged is what is kept.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from visuomotor.checkpoint import load_checkpoint
from visuomotor.config import Config
from visuomotor.errors import UserError, did_you_mean
from visuomotor.overrides import load_yaml, parse_yaml
from visuomotor.pixel_actor import PixelActor
from visuomotor.policies import PixelPolicy, Seen, make_actor
from visuomotor.runtime.bundle import Bundle, BundleError, bundle_from_files
from visuomotor.runtime.files import CONFIG, CURVE, EVALUATION, MANIFEST, WEIGHTS, read_bundle

PRETRAINED = Path(__file__).parent / "pretrained"
CHECKPOINTS = "checkpoints"
# Of metrics.jsonl, what curve.csv keeps.
CURVE_COLUMNS = (
    "env_steps",
    "wall_s",
    "phase",
    "fps",
    "success_rate",
    "mean_return",
    "evaluation_success_rate",
)


class ActingPolicy(Protocol):
    """Acts in N worlds; the same shape as `PixelPolicy`."""

    def act(self, seen: Seen, episode_start: Tensor) -> Tensor:
        """(N, 9) actions in [-1, 1]."""
        ...


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy to be judged: exactly one of `actor` and `bundle` is there."""

    config: Config
    provenance: dict[str, Any]
    run: Path | None  # a run's folder; None: it is a bundle, which is sealed
    actor: PixelActor | None
    bundle: Bundle | None

    def policy(self, num_envs: int) -> ActingPolicy:
        if self.bundle is not None:
            return BundlePolicy(self.bundle, num_envs)
        assert self.actor is not None
        return PixelPolicy(self.actor, num_envs)


@dataclass(frozen=True)
class RunRecords:
    """What a run or bundle tells of its training."""

    evaluation: dict[str, Any] | None  # of evaluation.json
    curve: str | None  # of curve.csv
    settings: str  # of config.yaml, word for word: what it leaves out had other defaults then


class BundlePolicy:
    """A bundle acting in N worlds, one after the other: its graph takes one step of one arm.

    What it refuses, it answers with an action that is not a number; `refusal` tells the first.
    """

    def __init__(self, bundle: Bundle, num_envs: int):
        self._bundle = bundle
        self._hidden = [bundle.initial_hidden() for _ in range(num_envs)]
        self._limits = torch.from_numpy(bundle.contract.velocity_limits)
        self.refusal: str | None = None

    def act(self, seen: Seen, episode_start: Tensor) -> Tensor:
        """seen: N worlds; episode_start (N,) bool, where memory is empty. Returns means (N, 9)."""
        assert seen.pixels is not None
        frames = seen.pixels.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        proprio = seen.proprio.cpu().numpy()
        velocities = []
        for i, starts in enumerate(episode_start.tolist()):
            hidden = self._bundle.initial_hidden() if starts else self._hidden[i]
            try:
                velocity, self._hidden[i] = self._bundle.infer(frames[i], proprio[i], hidden)
            except BundleError as error:
                self.refusal = self.refusal or f"the bundle refused what world {i} shows: {error}"
                velocity = np.full(len(self._limits), np.nan)
            velocities.append(velocity)
        action = torch.from_numpy(np.stack(velocities)).double() / self._limits
        return action.float().to(seen.proprio.device)


def shipped_names() -> list[str]:
    """The policies that come with the package."""
    return sorted(entry.parent.name for entry in PRETRAINED.glob(f"*/{MANIFEST}"))


def load_policy(policy: str) -> tuple[PixelActor, Config, dict[str, Any]]:
    """-> the actor with its weights, its settings, and where they come from.

    policy: a run folder, a bundle with weights.safetensors, or a shipped name (a folder of the
    same name is reached as `./name`). Raises UserError if there is no such policy or it is damaged.
    """
    folder = find_policy(policy)
    if _is_bundle(folder):
        manifest, files = _read_bundle(folder)
        return _bundle_actor(folder, manifest, files)
    return _run_actor(folder)


def load_evaluated_policy(policy: str, device: torch.device) -> LoadedPolicy:
    """As `load_policy`, but a bundle acts through ONNX Runtime and needs no weights."""
    folder = find_policy(policy)
    if not _is_bundle(folder):
        actor, config, provenance = _run_actor(folder)
        return LoadedPolicy(config, provenance, folder, actor.to(device), None)
    manifest, files = _read_bundle(folder)
    try:
        bundle = bundle_from_files(manifest, files)
    except BundleError as error:
        raise UserError(f"policy={policy}: {error}") from error
    return LoadedPolicy(
        _bundle_config(folder, files), _bundle_provenance(folder, manifest), None, None, bundle
    )


def run_records(policy: str) -> RunRecords:
    """The evaluation and learning curve that belong to a policy, as far as there are any, and its
    settings."""
    folder = find_policy(policy)
    if _is_bundle(folder):
        _, files = _read_bundle(folder)
        evaluation = _evaluation(folder, files.get(EVALUATION))
        return RunRecords(evaluation, training_curve(policy), files[CONFIG].decode())
    path = folder / EVALUATION
    content = path.read_bytes() if path.is_file() else None
    settings = (folder / CONFIG).read_text()
    return RunRecords(_evaluation(folder, content), training_curve(policy), settings)


def training_curve(policy: str) -> str | None:
    """The learning curve that belongs to a policy, as of curve.csv; None: it has none."""
    folder = find_policy(policy)
    if _is_bundle(folder):
        _, files = _read_bundle(folder)
        return _bundle_curve(folder / CURVE, files[CURVE]) if CURVE in files else None
    metrics = folder / "metrics.jsonl"
    return curve_csv(metrics) if metrics.is_file() else None


def find_policy(policy: str) -> Path:
    """The folder that `policy` means. Raises UserError with what there is if there is none."""
    shipped = shipped_names()
    if policy in shipped:
        return PRETRAINED / policy
    folder = Path(policy)
    if _is_bundle(folder) or _is_run(folder):
        return folder
    if folder.is_dir():
        raise UserError(
            f"policy={policy} is a folder, but neither a run (config.yaml, {CHECKPOINTS}/) nor a "
            f"bundle ({MANIFEST})"
        )
    hint = did_you_mean(policy, shipped, cutoff=0.5)
    raise UserError(
        f"there is no policy '{policy}'{hint}; give a run folder, a bundle, or a shipped policy: "
        + (", ".join(shipped) if shipped else "none in this installation")
    )


def is_policys_folder(folder: Path) -> bool:
    """Whether it is a run's or a bundle's, be it a damaged one."""
    return any((folder / name).exists() for name in (CONFIG, CHECKPOINTS, MANIFEST))


def curve_csv(metrics: Path) -> str:
    """metrics.jsonl -> the table of CURVE_COLUMNS, one row an update; cells may be empty.

    A last line that is only half written is left out: the run goes on, or was killed. Raises
    UserError naming the first line that cannot be read, or whose numbers are none.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CURVE_COLUMNS)
    for number, line in enumerate(metrics.read_bytes().splitlines(keepends=True), start=1):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            if not line.endswith((b"\n", b"\r")):
                break
            raise UserError(f"{metrics}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{metrics}, line {number}: expected an object, got {line!r:.60}")
        cells = {column: row.get(column) for column in CURVE_COLUMNS}
        _check_row(cells, f"{metrics}, line {number}")
        writer.writerow(cells.values())
    return out.getvalue()


def _bundle_curve(path: Path, content: bytes) -> str:
    """Of a bundle's curve.csv. Raises UserError as `curve_csv`."""
    try:
        text = content.decode()
        for number, row in enumerate(csv.DictReader(io.StringIO(text), strict=True), start=2):
            cells: dict[str, Any] = {column: row.get(column) for column in CURVE_COLUMNS}
            for name, cell in cells.items():
                if name != "phase":
                    cells[name] = None if cell in ("", None) else _number(cell)
            _check_row(cells, f"{path}, line {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no table: {error}") from error
    return text


def _number(cell: str) -> float | str:
    """As far as it is one."""
    try:
        return float(cell)
    except ValueError:
        return cell


def _check_row(cells: dict[str, Any], place: str) -> None:
    """Raises UserError unless `phase` is a word and all else a finite number, or empty; what is
    drawn is drawn over env_steps."""
    for name, value in cells.items():
        if value is None and name != "env_steps":
            continue
        if name == "phase":
            if not isinstance(value, str):
                raise UserError(f"{place}: phase: expected a word, got {value!r:.60}")
        elif not _is_finite(value):
            raise UserError(f"{place}: {name}: expected a finite number, got {value!r:.60}")


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False


# --- run folders ---------------------------------------------------------------------------------


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / CHECKPOINTS).is_dir()


def _run_actor(folder: Path) -> tuple[PixelActor, Config, dict[str, Any]]:
    config = load_yaml(folder / CONFIG, Config)
    state, step, notes = load_checkpoint(folder / CHECKPOINTS)
    for note in notes:
        print(note, file=sys.stderr)
    weights = state.get("policy", {}).get("actor")
    if weights is None and config.distill.dagger_steps == config.distill.finetuning == 0:
        raise UserError(
            f"{folder} has no pixel policy: it trains a teacher alone (distill.dagger_steps=0); "
            f"train one that learns from it with distill.teacher_run={folder}"
        )
    if weights is None:
        raise UserError(
            f"{folder} has no pixel policy yet: at env step {step} it still trains its teacher; "
            f"go on with python -m visuomotor.train resume={folder}"
        )
    provenance = {
        "run": folder.resolve().name,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "env_steps": step,
        "phase": state.get("phase"),
        "wall_s": state.get("wall_s"),
    }
    if "started_from" in state.get("carried", {}):
        provenance["started_from"] = state["carried"]["started_from"]
    if "mean_of" in state:
        provenance["mean_of"] = state["mean_of"]
    return _with_weights(config, weights, str(folder)), config, provenance


def _with_weights(config: Config, weights: dict[str, Tensor], source: str) -> PixelActor:
    heads = weights.get("aux_heads.normalizer.mean")
    actor = make_actor(config, 0 if heads is None else len(heads))
    try:
        actor.load_state_dict(weights)
    except RuntimeError as error:
        facts = " ".join(str(error).split())
        raise UserError(f"{source}: the weights do not fit its {CONFIG}: {facts}") from error
    return actor.eval()


# --- bundles -------------------------------------------------------------------------------------


def _is_bundle(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _read_bundle(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        return read_bundle(folder)
    except BundleError as error:
        raise UserError(f"bundle {folder}: {error}") from error


def _bundle_actor(
    folder: Path, manifest: dict[str, Any], files: dict[str, bytes]
) -> tuple[PixelActor, Config, dict[str, Any]]:
    if WEIGHTS not in files:
        raise UserError(
            f"bundle {folder} holds no {WEIGHTS}: it can be evaluated and deployed; to train or "
            "export again, use the run folder or a bundle that was exported with weights=true"
        )
    config = _bundle_config(folder, files)
    try:
        weights = safetensors.torch.load(files[WEIGHTS])
    except SafetensorError as error:
        raise UserError(f"bundle {folder}: {WEIGHTS} is malformed: {error}") from error
    actor = _with_weights(config, weights, f"bundle {folder}")
    return actor, config, _bundle_provenance(folder, manifest)


def _bundle_config(folder: Path, files: dict[str, bytes]) -> Config:
    if CONFIG not in files:
        raise UserError(f"bundle {folder} holds no {CONFIG}, so its worlds cannot be built")
    return parse_yaml(files[CONFIG], folder / CONFIG, Config)


def _bundle_provenance(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the bundle says of itself, and which bundle that was."""
    origin = manifest.get("provenance")
    facts = origin if isinstance(origin, dict) else {}
    return {**facts, "bundle": folder.resolve().name, "bundle_sha256": manifest["self_sha256"]}


def _evaluation(folder: Path, content: bytes | None) -> dict[str, Any] | None:
    return None if content is None else parse_evaluation(folder / EVALUATION, content)


def parse_evaluation(path: Path, content: bytes) -> dict[str, Any]:
    """What evaluation.json at `path` holds. Raises UserError if it is no JSON object."""
    try:
        evaluation = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no strict JSON: {error}") from error
    if not isinstance(evaluation, dict):
        raise UserError(f"{path}: expected an object")
    return evaluation


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
