"""MuJoCo's classic OpenGL renderer behind the ray-caster's interface, without a display.

For held-out evaluation: another renderer draws edges, shading and shadows another way. It needs
EGL, draws one world after the other, and is far slower than the ray-caster on a CPU.
"""

from __future__ import annotations

import atexit
import copy
import os
import weakref
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from visuomotor.config import CameraConfig
from visuomotor.envs.camera import GROUPS
from visuomotor.envs.simulation import Simulation

_DATA_FIELDS = ("geom_xpos", "geom_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir")
_MODEL_FIELDS = (
    *("geom_size", "geom_rgba", "mat_rgba", "mat_texid", "mat_texrepeat", "cam_fovy"),
    *("light_active", "light_ambient", "light_diffuse", "light_specular"),
)
_OF_CONTEXT = ("mat_texid", "mat_texrepeat")  # OpenGL's side has copies of its own


SHADOW_PIXELS = 1024  # width of the map of what the lights reach


class NoOpenGLError(Exception):
    """There is no EGL library, or no device that it can draw with."""


def _egl(width: int, height: int) -> Any:
    """A context without a display. Raises NoOpenGLError."""
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    try:
        from mujoco.egl import GLContext

        context = GLContext(width, height)
        context.make_current()
    except Exception as error:  # PyOpenGL's errors share no base class
        raise NoOpenGLError(f"{type(error).__name__}: {error}") from error
    return context


def _free(context: mujoco.MjrContext, gl: Any) -> None:
    gl.make_current()
    context.free()
    gl.free()


def available() -> bool:
    """Whether there is EGL, and something that it can draw with."""
    try:
        _egl(1, 1)
    except NoOpenGLError:
        return False
    return True


class ClassicRenderer:
    """Renders any subset of a simulation's worlds from one fixed camera, with shadows.

    Args: as of `camera.RayCaster`; images lie on `device`, and are drawn where EGL draws.

    Raises NoOpenGLError.
    """

    def __init__(
        self,
        sim: Simulation,
        config: CameraConfig,
        fields: tuple[str, ...] = (),
        device: torch.device | None = None,
        num_threads: int = 0,
        camera: str = "front",
    ):
        self.device = sim.device if device is None else device
        self._size = (config.height, config.width)
        self._gl = _egl(config.width, config.height)
        self._model = copy.copy(sim.model)
        # MuJoCo's 4096 would be most of an image's time, for shadows of a few pixels.
        self._model.vis.quality.shadowsize = SHADOW_PIXELS
        self._data = mujoco.MjData(self._model)
        self._moving = {name: sim.data(name) for name in _DATA_FIELDS}
        self._varied = {name: sim.model_field(name) for name in fields if name in _MODEL_FIELDS}
        self._scene = mujoco.MjvScene(self._model, maxgeom=2 * self._model.ngeom + 100)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 1
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        # At the end of the program before mujoco.egl's own hook, after which nothing can be freed:
        # the one that is registered last comes first.
        atexit.register(weakref.finalize(self, _free, self._context, self._gl))
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [group in GROUPS for group in range(mujoco.mjNGROUP)]
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = self._model.camera(camera).id
        self._viewport = mujoco.MjrRect(0, 0, config.width, config.height)

    def render(self, env_ids: Tensor, cast_shadow: Tensor | None = None) -> Tensor:
        """env_ids (n,) -> (n, 3, H, W) uint8 images of these worlds as they are now; its shadows
        are its own, whatever `cast_shadow` says."""
        images = np.empty((len(env_ids), *self._size, 3), np.uint8)
        self._gl.make_current()
        for image, world in zip(images, env_ids.tolist(), strict=True):
            self._copy(world)
            mujoco.mjv_updateScene(
                self._model,
                self._data,
                self._option,
                None,
                self._camera,
                mujoco.mjtCatBit.mjCAT_ALL,
                self._scene,
            )
            mujoco.mjr_render(self._viewport, self._scene, self._context)
            mujoco.mjr_readPixels(image, None, self._viewport, self._context)
        # OpenGL's first row is the lowest.
        upright = torch.from_numpy(images[:, ::-1].copy())
        return upright.permute(0, 3, 1, 2).contiguous().to(self.device)

    def _copy(self, world: int) -> None:
        for name, source in self._moving.items():
            target = getattr(self._data, name)
            target[...] = source[world].cpu().numpy().reshape(target.shape)
        for name, source in self._varied.items():
            target = getattr(self._model, name)
            target[...] = source[world].cpu().numpy().reshape(target.shape)
            if name in _OF_CONTEXT:
                getattr(self._context, name)[: target.size] = target.ravel()
