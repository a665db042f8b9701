"""Writes a policy for a real arm: `python -m visuomotor.export policy=runs/... out=bundle/`.

The story: load the actor -> one step of it as ONNX -> record golden episodes in the simulator ->
compare ONNX Runtime with torch -> write, verify and replay in a temporary folder -> rename.
What the files mean is said in `runtime/files.py` and, entry by entry, in `describe` below.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor, nn

from visuomotor.bundle_facts import describe
from visuomotor.cli import run_command
from visuomotor.config import Config
from visuomotor.envs import VisuomotorEnv, make_env
from visuomotor.errors import UserError
from visuomotor.files import partial_path, sync, try_folder
from visuomotor.limits import at_least, require
from visuomotor.overrides import parse_overrides, to_yaml
from visuomotor.pixel_actor import PixelActor
from visuomotor.policy_files import load_policy, parse_evaluation, run_records
from visuomotor.runtime.bundle import (
    MAX_GOLDEN_STEPS,
    MEMORY_TOLERANCE,
    MIN_GOLDEN_STEPS,
    TOLERANCE,
    Bundle,
    BundleError,
    bundle_from_files,
    load_bundle,
)
from visuomotor.runtime.files import (
    CONFIG,
    CURVE,
    EVALUATION,
    GOLDEN,
    MANIFEST,
    MODEL,
    WEIGHTS,
    read_bundle,
    seal_manifest,
)

OPSET = 18
PARITY_STEPS = 2000  # with one memory carried through all of them: errors that add up show
# What every second step of the parity check adds to recorded inputs, several times what real
# sensors add: half width of the pixels' noise, of 255; standard deviation of proprioception's.
PARITY_PIXELS, PARITY_PROPRIO = 32, 0.1


@dataclass(frozen=True)
class ExportConfig:
    policy: str = ""  # a run folder, a bundle or a shipped name
    out: str = ""  # folder to write
    overwrite: bool = False  # replace a bundle that is there
    weights: bool = True  # add weights.safetensors, to go on training from
    # An evaluation.json of this policy, to go with it in the place of its own; that of a bundle
    # tells how good it is as an arm runs it.
    evaluation: str | None = None
    seed: int = 0  # of the golden episodes


class OtherModel(UserError):
    """An evaluation is not of what is exported."""


class ExportReport(NamedTuple):
    path: Path
    size: int  # bytes
    parity_error: float  # the largest over velocities, rad/s
    memory_error: float  # the largest over h
    golden_steps: int
    golden_error: float


class PolicyStep(nn.Module):
    """One control step as the arm sees it: a camera's frame and raw joints to velocities."""

    def __init__(self, actor: PixelActor, velocity_limits: Tensor):
        """velocity_limits: (A,) rad/s, what an action of 1 asks for."""
        super().__init__()
        self.actor = copy.deepcopy(actor).to("cpu").eval().requires_grad_(False)
        # A feed-forward policy gets one number of memory, handed through untouched: the same four
        # inputs and outputs for every policy, and no tensors of size zero.
        self.memory = actor.hidden_dim if actor.recurrent else 1
        self.register_buffer("velocity_limits", velocity_limits.float())

    def initial_hidden(self) -> tuple[Tensor, Tensor]:
        """(1, M) each: h and c of a new episode."""
        return torch.zeros(1, self.memory), torch.zeros(1, self.memory)

    def forward(
        self, pixels: Tensor, proprio: Tensor, h_in: Tensor, c_in: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(1, H, W, 3) uint8 RGB, (1, P), (1, M), (1, M) -> joint_velocities (1, A) rad/s,
        h_out (1, M), c_out (1, M), inputs_finite () bool.

        Where an input is not finite, velocities are zero and the memory stays: ONNX Runtime's
        operators may turn NaN into plausible numbers, so the inputs are what is checked.
        """
        # Nothing is zero times NaN or infinity but NaN, which a sum keeps and nothing equals.
        finite = (torch.cat((proprio, h_in, c_in), dim=1) * 0.0).sum() == 0.0
        mean, h, c = self.actor(pixels.permute(0, 3, 1, 2), proprio, h_in, c_in)
        velocities = mean.clamp(-1.0, 1.0) * self.velocity_limits
        return (
            torch.where(finite, velocities, torch.zeros_like(velocities)),
            torch.where(finite, h, h_in),
            torch.where(finite, c, c_in),
            finite,
        )


def export_bundle(
    actor: PixelActor,
    config: Config,
    out_path: Path,
    evaluation: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
    weights: bool = True,
    *,
    curve: str | None = None,
    settings: str | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> ExportReport:
    """Writes the bundle of `actor` to the folder `out_path`, all of it or nothing.

    Args:
      config: the run's settings; the golden episodes are recorded in its worlds.
      evaluation: the contents of evaluation.json; a summary goes into policy.json.
      provenance: where the weights come from; strict JSON.
      weights: adds weights.safetensors.
      curve: the contents of curve.csv.
      settings: the contents of config.yaml; None: those of `config`, with today's defaults.
      seed: of the golden episodes.
      overwrite: replaces a bundle that is there.

    Raises OtherModel for an evaluation through ONNX Runtime of another model than is exported, and
    UserError if `out_path` is in the way or cannot be written, if the weights are not
    finite, or if ONNX Runtime and torch differ by more than 1e-5 rad/s.
    """
    check_destination(out_path, overwrite)
    broken = [name for name, value in actor.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"the policy cannot be exported: {broken[0]} holds NaN or infinity")
    with _one_torch_thread():
        env = make_env(config, num_envs=1, seed=seed)
        step = PolicyStep(actor, env.jaco.velocity_limits)
        golden = record_golden(step, env)
        files = {MODEL: to_onnx(step, golden), GOLDEN: safetensors.numpy.save(golden)}
        files[CONFIG] = (to_yaml(config) if settings is None else settings).encode()
        if weights:
            files[WEIGHTS] = safetensors.torch.save(step.actor.state_dict())
        if evaluation is not None:
            files[EVALUATION] = (json.dumps(evaluation, indent=2, allow_nan=False) + "\n").encode()
        if curve is not None:
            files[CURVE] = curve.encode()
        _check_evaluated(evaluation, files[MODEL])
        manifest = describe(config, env, step.memory, actor.recurrent, evaluation, provenance)
        manifest["golden"] = {
            "steps": len(golden["proprio"]),
            "episodes": int(golden["episode_start"].sum()),
            "seed": seed,
            "tolerance": TOLERANCE,
            "memory_tolerance": MEMORY_TOLERANCE,
        }
        try:
            error, of_memory = check_parity(step, bundle_from_files(manifest, files), golden)
            manifest["parity"] = {
                "steps": PARITY_STEPS,
                "max_error": error,
                "tolerance": TOLERANCE,
                "max_memory_error": of_memory,
                "memory_tolerance": MEMORY_TOLERANCE,
            }
            files[MANIFEST] = seal_manifest(manifest, files)
            bundle = write_bundle(files, out_path, overwrite)
        except BundleError as error_of_bundle:
            raise UserError(
                f"nothing was exported: {error_of_bundle}{_hint(error_of_bundle, seed)}"
            ) from error_of_bundle
        except OSError as error_of_disk:
            raise UserError(f"out={out_path} cannot be written: {error_of_disk}") from error_of_disk
    size = sum(len(content) for content in files.values())
    replay = bundle.replay
    return ExportReport(out_path, size, error, of_memory, replay.steps, replay.max_error)


def _check_evaluated(evaluation: dict[str, Any] | None, model: bytes) -> None:
    """Raises OtherModel for an evaluation through ONNX Runtime of another model than this."""
    evaluated = None if evaluation is None else evaluation.get("model_sha256")
    if evaluated is not None and evaluated != hashlib.sha256(model).hexdigest():
        raise OtherModel(
            "the evaluation is of another policy.onnx than what is exported now, which may be the "
            "same policy exported by another version; evaluate this bundle and give its "
            "evaluation.json"
        )


def _hint(error: BundleError, seed: int) -> str:
    """What to do about a difference that may be rounding alone: it grows with a policy's weights
    and with what its memory goes through, which the golden episodes decide."""
    if "differs" not in str(error):
        return ""
    return f"; if it is not much more, other golden episodes may do with less: seed={seed + 1}"


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """A step of batch 1 is too small to share: on busy cores, waking threads for it costs ten times
    the step. It also is what the arm's side does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the parts -----------------------------------------------------------------------------------


@torch.no_grad()
def record_golden(step: PolicyStep, env: VisuomotorEnv) -> dict[str, np.ndarray]:
    """Whole episodes of the policy in world 0 of `env`, of 200 control steps at least.

    Returns T steps and M frames: frames (M, H, W, 3) uint8, frame_index (T,) int64,
    proprio (T, P) float32, episode_start (T,) bool, joint_velocities (T, A) float32 rad/s,
    h_out (T, memory) float32. A frame that the camera holds is stored once.
    """
    observation = env.reset()
    limits = step.get_buffer("velocity_limits")
    frames: list[Tensor] = []
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("frame_index", "proprio", "episode_start", "joint_velocities", "h_out")
    }
    start = True
    h, c = step.initial_hidden()
    # An episode without end would be cut; any other is recorded to its last step.
    while len(columns["proprio"]) < MAX_GOLDEN_STEPS:
        assert observation.pixels is not None
        pixels = observation.pixels[0].cpu().permute(1, 2, 0).contiguous()
        if len(frames) == 0 or not torch.equal(frames[-1], pixels):
            frames.append(pixels)
        if start:
            h, c = step.initial_hidden()
        proprio = observation.proprio[:1].cpu()
        velocities, h, c, _ = step(pixels.unsqueeze(0), proprio, h, c)
        columns["frame_index"].append(len(frames) - 1)
        columns["proprio"].append(proprio[0].numpy().copy())
        columns["episode_start"].append(start)
        columns["joint_velocities"].append(velocities[0].numpy().copy())
        columns["h_out"].append(h[0].numpy().copy())
        result = env.step((velocities / limits).expand(env.num_envs, -1))
        start = bool(result.truncated[0]) or bool(result.terminated[0])
        observation = result.observation
        if start and len(columns["proprio"]) >= MIN_GOLDEN_STEPS:
            break
    golden = {name: np.stack([np.asarray(v) for v in values]) for name, values in columns.items()}
    golden["frame_index"] = golden["frame_index"].astype(np.int64)
    golden["frames"] = torch.stack(frames).numpy()
    return golden


def to_onnx(step: PolicyStep, golden: dict[str, np.ndarray]) -> bytes:
    """One step as a serialized ONNX model without external data."""
    step = copy.deepcopy(step)
    step.actor.take_raw_pixels()
    example = (
        torch.from_numpy(golden["frames"][:1]),
        torch.from_numpy(golden["proprio"][:1]),
        *step.initial_hidden(),
    )
    with warnings.catch_warnings():
        # The exporter warns about torch's own LSTM and its own libraries; parity is checked below.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            step.eval(),
            example,
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["pixels", "proprio", "h_in", "c_in"],
            output_names=["joint_velocities", "h_out", "c_out", "inputs_finite"],
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    # The exporter's notes hold stack traces, and with them paths of the exporting machine.
    for part in (model, model.graph, *model.graph.node, *model.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output):
        value.ClearField("metadata_props")
    model.graph.ClearField("value_info")
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@torch.no_grad()
def check_parity(
    step: PolicyStep, bundle: Bundle, golden: dict[str, np.ndarray], num_steps: int = PARITY_STEPS
) -> tuple[float, float]:
    """ONNX Runtime beside torch, each with its own memory carried through all steps.

    Every second step shows recorded inputs, the others noisy ones. Returns the largest difference
    of velocities [rad/s] and that of h. Raises BundleError beyond TOLERANCE, or MEMORY_TOLERANCE.
    """
    rng = np.random.default_rng(0)
    h, c = step.initial_hidden()
    hidden = bundle.initial_hidden()
    worst = [0.0, 0.0]
    for t in range(num_steps):
        i = t // 2 % len(golden["proprio"])
        pixels = golden["frames"][golden["frame_index"][i]]
        proprio = golden["proprio"][i]
        if t % 2 == 1:
            noise = rng.integers(-PARITY_PIXELS, PARITY_PIXELS + 1, pixels.shape)
            pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
            spread = rng.normal(scale=PARITY_PROPRIO, size=proprio.shape)
            proprio = (proprio + spread).astype(np.float32)
        received, hidden = bundle.infer(pixels, proprio, hidden)
        inputs = torch.from_numpy(pixels).unsqueeze(0), torch.from_numpy(proprio).unsqueeze(0)
        expected, h, c, _ = step(*inputs, h, c)
        differences = (
            ("", float(np.abs(received - expected[0].numpy()).max()), TOLERANCE),
            ("'s memory", float(np.abs(hidden[0] - h.numpy()).max()), MEMORY_TOLERANCE),
        )
        for which, (whose, error, allowed) in enumerate(differences):
            if not error <= allowed:
                raise BundleError(
                    f"ONNX Runtime{whose} differs from torch by {error:.3g} at recurrent step {t}, "
                    f"allowed are {allowed}"
                )
            worst[which] = max(worst[which], error)
    return worst[0], worst[1]


# --- writing -------------------------------------------------------------------------------------


def check_destination(out: Path, overwrite: bool) -> None:
    """Raises UserError unless `out` is free, or a bundle and nothing else that may be replaced."""
    if not out.exists() and not out.is_symlink():
        return
    if out.is_symlink() or not out.is_dir():
        raise UserError(f"out={out} is there and is no folder; choose another")
    present = {entry.name for entry in out.iterdir()}
    if not present:
        return
    if not overwrite:
        raise UserError(f"out={out} is there; choose another, or overwrite=true for a bundle")
    try:
        _, files = read_bundle(out)
    except BundleError as error:
        raise UserError(f"out={out} is there and is no sound bundle: {error}") from error
    foreign = sorted(present - files.keys() - {MANIFEST})
    if foreign:
        raise UserError(f"out={out} also holds {foreign[0]}, which is not part of the bundle")


def check_makeable(out: Path) -> None:
    """Raises UserError, before any work, where no folder can be made. Leaves nothing."""
    try:
        try_folder(partial_path(out))  # what will be made first
    except OSError as error:
        raise UserError(
            f"cannot make the folder out={out}: {error.strerror}; choose another"
        ) from error


def write_bundle(files: dict[str, bytes], out: Path, overwrite: bool) -> Bundle:
    """Writes, verifies and replays in a folder beside `out`, then renames it to `out`.

    A bundle that is there is renamed away first; should the process die just between the two
    renames, both versions lie beside `out` under hidden names.
    """
    check_destination(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, stale = partial_path(out), partial_path(out)
    with ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, fresh, ignore_errors=True)
        fresh.mkdir()
        for name, content in files.items():
            with (fresh / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        sync(fresh)
        bundle = load_bundle(fresh)
        check_destination(out, overwrite)  # it may have appeared meanwhile
        if out.exists():
            out.rename(stale)
            try:
                fresh.rename(out)
            except OSError:
                stale.rename(out)
                raise
            cleanup.callback(shutil.rmtree, stale, ignore_errors=True)
        else:
            fresh.rename(out)
        sync(out.parent)
    return bundle


# --- the command ---------------------------------------------------------------------------------


def export(argv: list[str]) -> int:
    options = parse_overrides(argv, ExportConfig)
    if options.policy == "":
        raise UserError("policy= is missing; give a run folder, a bundle or a shipped name")
    if options.out == "":
        raise UserError("out= is missing; give the folder to write, for example out=bundle/")
    require("seed", options.seed, at_least(0))
    out = Path(options.out)
    check_destination(out, options.overwrite)
    check_makeable(out)
    actor, config, provenance = load_policy(options.policy)
    records = run_records(options.policy)
    evaluation = records.evaluation
    if options.evaluation is not None:
        evaluation = _given_evaluation(Path(options.evaluation), config, provenance)

    def write(evaluation: dict[str, Any] | None) -> ExportReport:
        return export_bundle(
            actor,
            config,
            out,
            evaluation,
            provenance,
            options.weights,
            curve=records.curve,
            settings=records.settings,
            seed=options.seed,
            overwrite=options.overwrite,
        )

    try:
        report = write(evaluation)
    except OtherModel as error:
        if options.evaluation is not None:
            raise UserError(f"evaluation={options.evaluation}: {error}") from error
        print(f"{options.policy}: left out {EVALUATION}: {error}", file=sys.stderr)
        report = write(None)
    print(
        f"{report.path}: {config.task}, {report.size / 1e6:.2f} MB; ONNX Runtime within "
        f"{report.parity_error:.1e} rad/s of torch over {PARITY_STEPS} recurrent steps (memory "
        f"{report.memory_error:.1e}), golden replay of "
        f"{report.golden_steps} steps within {report.golden_error:.1e}"
    )
    return 0


def _given_evaluation(path: Path, config: Config, provenance: dict[str, Any]) -> dict[str, Any]:
    """Of a file. Raises UserError if it cannot be read or is of another task or policy; one through
    ONNX Runtime is known by its model, in `export_bundle`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"evaluation={path} cannot be read: {error.strerror}") from error
    evaluation = parse_evaluation(path, content)
    if evaluation.get("task") != config.task:
        raise UserError(
            f"evaluation={path} is of the task {evaluation.get('task')}, the policy of "
            f"{config.task}; give an evaluation.json of this policy"
        )
    if "model_sha256" not in evaluation:
        origin = evaluation.get("provenance")
        known = origin if isinstance(origin, dict) else {}
        for key in ("algorithm", "seed", "env_steps", "phase"):  # a run may have moved
            if known.get(key) != provenance.get(key):
                raise UserError(
                    f"evaluation={path} is of another policy: its provenance has "
                    f"{key}={known.get(key)}, this policy {provenance.get(key)}; give an "
                    "evaluation.json of this policy"
                )
    return evaluation


def main() -> None:
    sys.exit(run_command(export, sys.argv[1:]))


if __name__ == "__main__":
    main()
