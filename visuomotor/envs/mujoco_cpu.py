"""The CPU physics backend: `mujoco.batch.Batch`, float64, all cores, bit-exact at any thread count.

Knows nothing of tasks, cameras or learning.
"""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import mujoco
import numpy as np
import torch
from mujoco import batch
from torch import Tensor

from visuomotor.errors import UserError

# Fields that only a renderer reads: kept here, so that the physics threads need not copy them.
_RENDER_PREFIXES = ("mat_", "tex_")
_RENDER_FIELDS = (
    *("cam_fovy", "geom_rgba", "geom_matid", "light_active", "light_castshadow"),
    *("light_ambient", "light_diffuse", "light_specular", "light_type", "light_cutoff"),
)
# Position- and velocity-dependent fields, but not the accelerations: their solver would overwrite
# the warm start, and looking at a world would change its future.
_OBSERVE = mujoco.mjtStage.mjSTAGE_VEL
# m: a free body that is found between these heights at the end of a control step fell off the
# table, whose top is z = 0, and stays at the upper one. Nothing else would stop it, and at -12 km,
# after 1000 steps, whatever is told of it is of no use. None falls past the lower one from one
# control step of 50 ms to the next; what is below it, such as a shelf, is left alone.
FALLEN = (-0.8, -0.2)


def available_cores() -> int:
    """Cores that this process may use (affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class MujocoCpuSimulation:
    """N worlds of `model` on a thread pool; shapes and units as in `simulation.Simulation`.

    Args:
      model: the compiled scene; never written.
      num_envs: N.
      substeps: physics steps per control step.
      fields: model fields with per-world values, e.g. ("geom_friction", "opt.gravity").
      num_threads: 0 for every core this process may use.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        num_envs: int,
        substeps: int,
        fields: tuple[str, ...] = (),
        num_threads: int = 0,
    ):
        self.model = model
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.fields = fields
        self._substeps = substeps
        threads = num_threads if num_threads > 0 else available_cores()
        self._batch = batch.Batch(model, nsim=num_envs, nthread=min(threads, num_envs))
        self._data: dict[str, Tensor] = {}
        self._fields: dict[str, Tensor] = {}
        self._defaults: dict[str, Tensor] = {}
        for name in fields:
            self._declare(name)
        for name in ("qpos", "qvel", "ctrl"):
            self.data(name)
        free = model.jnt_type == mujoco.mjtJoint.mjJNT_FREE
        self._height_ids = torch.from_numpy(model.jnt_qposadr[free] + 2).long()
        firsts = torch.from_numpy(model.jnt_dofadr[free]).long()
        self._free_dof_ids = firsts.unsqueeze(1) + torch.arange(6)

    def _declare(self, name: str) -> None:
        if name.startswith(_RENDER_PREFIXES) or name in _RENDER_FIELDS:
            default = self.default_field(name)
            values = default.unsqueeze(0).repeat(self.num_envs, *([1] * default.dim()))
            self._fields[name] = values.contiguous()
        elif name in batch.MODEL_FIELDS:
            self._fields[name] = torch.from_numpy(self._batch.expand(name))
        else:
            raise UserError(f"model field '{name}' cannot vary between worlds")

    def data(self, name: str) -> Tensor:
        if name not in self._data:
            with warnings.catch_warnings():
                # Derived fields are read-only; torch cannot express that and says so.
                warnings.filterwarnings("ignore", "The given NumPy array is not writable")
                self._data[name] = torch.from_numpy(self._batch.bind(name))
            # A field bound between calls reads zero until the next one.
            self._batch.forward(stage=_OBSERVE)
        return self._data[name]

    def model_field(self, name: str) -> Tensor:
        if name not in self._fields:
            raise UserError(
                f"model field '{name}' was not declared when the simulation was built; "
                f"declared: {', '.join(sorted(self._fields)) or 'none'}"
            )
        return self._fields[name]

    def default_field(self, name: str) -> Tensor:
        if name not in self._defaults:
            self._defaults[name] = self._read_default(name)
        return self._defaults[name]

    def _read_default(self, name: str) -> Tensor:
        owner: Any = self.model
        for part in name.split("."):
            owner = getattr(owner, part)
        return torch.from_numpy(np.array(owner, copy=True))

    def step(self, env_ids: Tensor | None = None) -> None:
        ids = None if env_ids is None else env_ids.numpy()
        self._batch.step(ids, nstep=self._substeps, stage=_OBSERVE)
        self._stop_fallen()

    def _stop_fallen(self) -> None:
        """What fell off the table stays beside it, a little below its top."""
        qpos, qvel = self._data["qpos"], self._data["qvel"]
        heights = qpos[:, self._height_ids]
        worlds, bodies = ((heights > FALLEN[0]) & (heights < FALLEN[1])).nonzero(as_tuple=True)
        if len(worlds) == 0:
            return
        qpos[worlds, self._height_ids[bodies]] = FALLEN[1]
        qvel[worlds.unsqueeze(1), self._free_dof_ids[bodies]] = 0.0
        self.forward(worlds.unique())

    def forward(self, env_ids: Tensor) -> None:
        self._batch.forward(env_ids.numpy(), stage=_OBSERVE)

    def reset(self, env_ids: Tensor, state: Tensor) -> None:
        ids = env_ids.numpy()
        # The rows of the state are views: reset clears them, the writes below set them, forward
        # derives the rest.
        self._batch.reset(ids, stage=mujoco.mjtStage.mjSTAGE_NONE)
        nq = self.model.nq
        self._data["qpos"][env_ids] = state[:, :nq]
        self._data["qvel"][env_ids] = state[:, nq:]
        self._batch.forward(ids, stage=_OBSERVE)

    def get_state(self, env_ids: Tensor) -> Tensor:
        return torch.cat((self._data["qpos"][env_ids], self._data["qvel"][env_ids]), dim=1)

    def world_model(self, world: int) -> mujoco.MjModel:
        """A copy of the model as it is in one of the worlds, to look into with MuJoCo itself."""
        model = copy.copy(self.model)
        for name in self.fields:
            values = self.model_field(name)[world].numpy()
            if name == "opt.gravity":
                model.opt.gravity[:] = values
            else:
                getattr(model, name)[:] = values
        mujoco.mj_setConst(model, mujoco.MjData(model))
        return model

    def recompute_constants(self, env_ids: Tensor) -> None:
        self._batch.set_const(env_ids.numpy())

    def state_dict(self) -> dict[str, Any]:
        fields = {name: values.clone() for name, values in self._fields.items()}
        return {"state": torch.from_numpy(np.array(self._batch.state)), "fields": fields}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, values in state["fields"].items():
            self.model_field(name).copy_(values)
        everyone = torch.arange(self.num_envs)
        self.recompute_constants(everyone)
        self._batch.state[:] = state["state"].numpy()
        self._batch.forward(stage=_OBSERVE)
