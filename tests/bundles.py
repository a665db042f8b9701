"""A small policy's bundle, whole and spoiled: what the tests of a bundle's parts share."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.numpy
import torch

from visuomotor.export import PolicyStep, record_golden, to_onnx
from visuomotor.pixel_actor import PixelActor
from visuomotor.runtime import BundleError, load_bundle
from visuomotor.runtime.files import GOLDEN, MANIFEST, MODEL, parse_manifest, seal_manifest

SIDE = 20  # pixels, the smallest image that the actor takes
JOINTS = [f"joint_{i}" for i in range(9)]
LIMITS = torch.linspace(0.5, 1.3, 9, dtype=torch.float64)  # rad/s
EPISODE_STEPS = 60

Files = dict[str, bytes]


class _Worlds:
    """Stands in for the simulator: random frames, held for 4 steps, and random joints."""

    num_envs = 1

    def __init__(self, seed: int):
        self.jaco = SimpleNamespace(velocity_limits=LIMITS)
        self._generator = torch.Generator().manual_seed(seed)
        self._elapsed = 0

    def reset(self) -> SimpleNamespace:
        self._elapsed = 0
        return self._observe()

    def step(self, action: torch.Tensor) -> SimpleNamespace:
        assert action.shape == (1, 9)
        assert action.abs().max() <= 1.0 + 1e-6
        self._elapsed += 1
        ended = torch.tensor([self._elapsed % EPISODE_STEPS == 0])
        return SimpleNamespace(
            observation=self._observe(), truncated=ended, terminated=torch.tensor([False])
        )

    def _observe(self) -> SimpleNamespace:
        if self._elapsed % 4 == 0:
            shape = (1, 3, SIDE, SIDE)
            self._pixels = torch.randint(
                0, 256, shape, generator=self._generator, dtype=torch.uint8
            )
        return SimpleNamespace(
            pixels=self._pixels, proprio=torch.randn(1, 24, generator=self._generator)
        )


def _actor(seed: int, recurrent: bool, encoder: str, settings: dict[str, Any]) -> PixelActor:
    torch.manual_seed(seed)
    actor = PixelActor(
        height=SIDE,
        width=SIDE,
        encoder=encoder,
        visual_dim=16,
        proprio_dim_out=8,
        hidden_dim=12,
        recurrent=recurrent,
        init_log_std=torch.zeros(9),
        min_std=torch.full((9,), 0.1),
        **settings,
    )
    torch.nn.init.normal_(actor.mean_head.weight, std=9.0)  # velocities that differ and saturate
    return actor


def policy_step(
    seed: int, recurrent: bool = True, encoder: str = "keypoints", **settings: Any
) -> PolicyStep:
    """settings: further ones of the actor."""
    return PolicyStep(_actor(seed, recurrent, encoder, settings), LIMITS)


def bundle_files(step: PolicyStep, kind: str) -> Files:
    golden = record_golden(step, _Worlds(0))  # type: ignore[arg-type]
    manifest = {
        "task": "lifting",
        "control": {"rate_hz": 20.0, "episode_steps": 100},
        "joints": {"names": JOINTS, "velocity_limits": LIMITS.tolist()},
        "camera": {"height": SIDE, "width": SIDE, "fovy_deg": 30.0, "refresh_period_steps": 4},
        "proprio": {"size": 24},
        "recurrent": {"kind": kind, "shape": [1, step.memory]},
    }
    content = {MODEL: to_onnx(step, golden), GOLDEN: safetensors.numpy.save(golden)}
    return {**content, MANIFEST: seal_manifest(manifest, content)}


def write_files(folder: Path, content: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in content.items():
        (folder / name).write_bytes(value)
    return folder


def resealed(good: Files, changed: Files, **manifest: Any) -> Files:
    """Hashes that agree with changed contents: what an accident could not do."""
    content = {MODEL: good[MODEL], GOLDEN: good[GOLDEN], **changed}
    return {
        **content,
        MANIFEST: seal_manifest({**parse_manifest(good[MANIFEST]), **manifest}, content),
    }


def refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        load_bundle(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert 0 < len(message) <= 500
    return message
