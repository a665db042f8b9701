"""What the environment asks of a physics backend: N worlds of one model, as torch tensors.

`mujoco_cpu.py` implements it on `mujoco.batch.Batch`. Knows nothing of tasks, cameras or learning.
"""

from __future__ import annotations

from typing import Any, Protocol

import mujoco
import torch
from torch import Tensor


class Simulation(Protocol):
    """N worlds. `env_ids` is always a sorted 1-D int64 tensor."""

    num_envs: int
    model: mujoco.MjModel
    device: torch.device
    fields: tuple[str, ...]  # model fields with per-world values

    def data(self, name: str) -> Tensor:
        """Live (N, ...) values of an MjData field, current after step, forward and reset."""
        ...

    def model_field(self, name: str) -> Tensor:
        """Live per-world (N, ...) values of a model field declared at construction."""
        ...

    def default_field(self, name: str) -> Tensor:
        """(...) the model's own value of a field."""
        ...

    def step(self, env_ids: Tensor | None = None) -> None:
        """One control step of these worlds, None: of every one; derived fields describe the new
        state. The others stay as they are."""
        ...

    def forward(self, env_ids: Tensor) -> None:
        """Makes the derived fields of these worlds describe their state."""
        ...

    def reset(self, env_ids: Tensor, state: Tensor) -> None:
        """state (n, nq + nv): qpos and qvel; ctrl, warm start and time are cleared."""
        ...

    def get_state(self, env_ids: Tensor) -> Tensor:
        """(n, nq + nv): qpos and qvel."""
        ...

    def recompute_constants(self, env_ids: Tensor) -> None:
        """Constants that MuJoCo derives from masses, inertias and sizes (mj_setConst)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact continuation needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
