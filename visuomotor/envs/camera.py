"""N worlds -> (N, 3, H, W) uint8: MuJoCo Warp's ray-caster.

The same renderer runs on a CPU and on a GPU and needs no OpenGL; on a CPU, tile_caster.py casts the
same rays in a quarter of the time where the scene allows. Knows nothing of tasks or learning, nor
of when a picture is taken (camera_sensor.py).
"""

from __future__ import annotations

import copy
import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import mujoco
import torch
import warp as wp
from torch import Tensor
from torch.nn.functional import avg_pool2d

from visuomotor import rows
from visuomotor.cache import cache_folder
from visuomotor.config import CameraConfig
from visuomotor.envs.mujoco_cpu import available_cores
from visuomotor.envs.simulation import Simulation
from visuomotor.errors import UserError

wp.config.log_level = wp.LOG_WARNING

import mujoco_warp as mjw  # noqa: E402  (after the log level: its import compiles nothing yet)

from visuomotor.envs.tile_caster import TileCaster, fixed_geoms, shadow_light, supports  # noqa: E402

# Kinematics that the renderer reads, with their Warp element type.
_DATA_FIELDS: dict[str, Any] = {
    "geom_xpos": wp.vec3,
    "geom_xmat": wp.mat33,
    "cam_xpos": wp.vec3,
    "cam_xmat": wp.mat33,
    "light_xpos": wp.vec3,
    "light_xdir": wp.vec3,
}
# Per-world model fields that the renderer honours.
_MODEL_FIELDS: dict[str, Any] = {
    "geom_size": wp.vec3,
    "geom_rgba": wp.vec4,
    "mat_rgba": wp.vec4,
    "mat_texid": wp.int32,
    "mat_texrepeat": wp.vec2,
    "cam_fovy": wp.float32,
    "light_active": wp.bool,
    "light_ambient": wp.vec3,
    "light_diffuse": wp.vec3,
    "light_specular": wp.vec3,
}


GROUPS = (0, 1, 2)  # geom groups that are seen
STDERR = 2  # the file descriptor
SHADOW_LIGHT_FRACTION = 0.3  # of a light, in its shadow: MuJoCo Warp's default


def start_warp() -> None:
    """Warp, once a process. Raises UserError where its compiled kernels cannot be kept."""
    if not wp.config.kernel_cache_dir and "WARP_CACHE_PATH" not in os.environ:
        # Where Warp would keep them, but that an empty XDG_CACHE_HOME is none for it, too.
        wp.config.kernel_cache_dir = str(cache_folder() / "warp")
    try:
        with nullcontext() if _has_cuda_driver() else _stderr_unheard():
            wp.init()
    except OSError as error:
        raise UserError(
            f"cannot keep the renderer's kernels in '{error.filename}': {error.strerror}; set "
            "XDG_CACHE_HOME, or WARP_CACHE_PATH for these alone, to a folder that can be written"
        ) from error


def _has_cuda_driver() -> bool:
    for library in ("libcuda.so", "libcuda.so.1"):
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return True
    return False


@contextmanager
def _stderr_unheard() -> Iterator[None]:
    """Without a driver Warp tells each process that there is none, past Python's own stderr."""
    try:
        heard = os.dup(STDERR)
    except OSError:  # closed: nobody listens
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        yield
    finally:
        os.dup2(heard, STDERR)
        os.close(heard)


class RayCaster:
    """Renders any subset of a simulation's worlds from one fixed camera.

    Args:
      sim: the worlds; fields of `fields` that the renderer honours are read per world.
      config: image size and shadows.
      fields: the model fields declared to `sim`.
      device: where the rays are cast and the images live.
      num_threads: CPU only; a call is split over so many threads (0: all cores).
      tiles: False casts with MuJoCo Warp's own kernel on a CPU, too.
    """

    def __init__(
        self,
        sim: Simulation,
        config: CameraConfig,
        fields: tuple[str, ...] = (),
        device: torch.device | None = None,
        num_threads: int = 0,
        camera: str = "front",
        tiles: bool = True,
    ):
        self.device = sim.device if device is None else device
        self._sim = sim
        self._shape = (config.height, config.width)
        self._own_shadows = config.shadows
        threads = 1
        if self.device.type == "cpu":
            threads = min(num_threads or available_cores(), sim.num_envs)
        capacity = -(-sim.num_envs // threads)
        sources = {name: sim.data(name) for name in _DATA_FIELDS}
        sources |= {name: sim.model_field(name) for name in fields if name in _MODEL_FIELDS}
        # A thread a tile suits a CPU's few threads; a GPU wants a thread a pixel.
        tiles = (
            tiles
            and self.device.type == "cpu"
            and not config.shadows
            and supports(sim.model, GROUPS)
        )
        self._renderer: _TileRenderer | _WarpRenderer
        if tiles:
            mirror = _Mirror(sim, sources, config, camera, sim.num_envs, self.device)
            self._renderer = _TileRenderer(mirror, sim.model, camera, threads)
        else:

            def mirrors(
                own: CameraConfig,
                fraction: float = SHADOW_LIGHT_FRACTION,
                without_ambient: int = -1,
            ) -> list[_Mirror]:
                args = sim, sources, own, camera, capacity, self.device, fraction, without_ambient
                return [_Mirror(*args) for _ in range(threads)]

            light = shadow_light(sim.model)

            def without_light() -> tuple[list[_Mirror], list[_Mirror]]:
                shadows = (replace(config, shadows=cast) for cast in (False, True))
                lit, dark = (mirrors(own, 0.0, light) for own in shadows)
                return lit, dark

            self._renderer = _WarpRenderer(mirrors(config), without_light if light >= 0 else None)

    def render(self, env_ids: Tensor, cast_shadow: Tensor | None = None) -> Tensor:
        """env_ids (n,) -> (n, 3, H, W) uint8 images of these worlds as they are now.

        cast_shadow: (n,) share of the first light, its ambient part too, that what lies in its
        shadow lacks; None: there are none. Of no effect with `config.shadows`, where they are
        as dark as MuJoCo Warp makes them.
        """
        images = self._blank(len(env_ids))
        if cast_shadow is None or self._own_shadows:
            cast_shadow = torch.zeros(len(env_ids))
        self._renderer.render(env_ids, cast_shadow, images)
        return images

    def _blank(self, n: int) -> Tensor:
        return torch.empty((n, 3, *self._shape), dtype=torch.uint8, device=self.device)


class Supersampled:
    """Several rays a pixel, whose colours are averaged: smooth edges.

    Args: as of RayCaster. samples: of a pixel, along each side. make: of the larger images.
    """

    def __init__(
        self,
        sim: Simulation,
        config: CameraConfig,
        fields: tuple[str, ...] = (),
        device: torch.device | None = None,
        num_threads: int = 0,
        samples: int = 2,
        make: MakeCaster = RayCaster,
    ):
        larger = replace(config, height=samples * config.height, width=samples * config.width)
        self.device = sim.device if device is None else device
        self._caster = make(sim, larger, fields, self.device, num_threads)
        self._samples = samples

    def render(self, env_ids: Tensor, cast_shadow: Tensor | None = None) -> Tensor:
        """As of RayCaster."""
        images = self._caster.render(env_ids, cast_shadow).float()
        return avg_pool2d(images, self._samples).round().to(torch.uint8)


class Caster(Protocol):
    """Renders any subset of a simulation's worlds."""

    device: torch.device

    def render(self, env_ids: Tensor, cast_shadow: Tensor | None = None) -> Tensor:
        """env_ids (n,) -> (n, 3, H, W) uint8 images of these worlds as they are now; cast_shadow:
        (n,), of no effect where shadows are drawn anyway."""
        ...


class MakeCaster(Protocol):
    def __call__(
        self,
        sim: Simulation,
        config: CameraConfig,
        fields: tuple[str, ...],
        device: torch.device,
        num_threads: int,
    ) -> Caster: ...


class _Mirror:
    """MuJoCo Warp's model, data and render context, with rows that are copies of worlds."""

    def __init__(
        self,
        sim: Simulation,
        sources: dict[str, Tensor],
        config: CameraConfig,
        camera: str,
        capacity: int,
        device: torch.device,
        shadow_light_fraction: float = SHADOW_LIGHT_FRACTION,
        without_ambient: int = -1,
    ):
        """shadow_light_fraction: of a light, in its shadow, with `config.shadows`.
        without_ambient: index of a light that has no ambient part here; -1: none."""
        self.shape = (config.height, config.width)
        self.device = device
        self._without_ambient = without_ambient
        self._sources = sources
        start_warp()
        self.wp_device = wp.device_from_torch(device)
        self._staging: dict[str, Tensor] = {}
        with wp.ScopedDevice(self.wp_device):
            # It collides nothing, and does not know every flag of those that do.
            host = copy.copy(sim.model)
            host.opt.disableflags &= ~int(mujoco.mjtDisableBit.mjDSBL_MIDPHASE)
            if without_ambient >= 0:
                host.light_ambient[without_ambient] = 0.0
            self.model = mjw.put_model(host)
            # Only kinematics are mirrored here: contacts and constraints need no room.
            self.data = mjw.make_data(sim.model, nworld=capacity, nconmax=1, njmax=1)
            self.context = mjw.create_render_context(
                sim.model,
                nworld=capacity,
                cam_res=(config.width, config.height),
                render_rgb=True,
                render_depth=False,
                render_seg=False,
                use_shadows=config.shadows,
                shadow_light_fraction=shadow_light_fraction,
                enabled_geom_groups=list(GROUPS),
                cam_active=[camera],
                use_precomputed_rays=False,
                enable_specular=False,
                enable_emission=False,
            )
            for name, source in sources.items():
                self._stage(name, source, capacity)
            self._rgb = wp.to_torch(self.context.rgb_data)

    def _stage(self, name: str, source: Tensor, capacity: int) -> None:
        owner = self.data if name in _DATA_FIELDS else self.model
        dtype = (_DATA_FIELDS | _MODEL_FIELDS)[name]
        shape = tuple(source.shape[1:])
        if dtype is wp.mat33:
            shape = (*shape[:-1], 3, 3)
        torch_dtype = {wp.int32: torch.int32, wp.bool: torch.bool}.get(dtype, torch.float32)
        buffer = torch.zeros((capacity, *shape), dtype=torch_dtype, device=self.device)
        self._staging[name] = buffer
        setattr(owner, name, wp.from_torch(buffer, dtype=dtype))

    def copy_first(self, env_ids: Tensor) -> None:
        """The worlds env_ids (n,) into the first n rows."""
        n = len(env_ids)
        for name, source in self._sources.items():
            target = self._staging[name]
            target[:n].copy_(source[env_ids].view(n, *target.shape[1:]))
        if self._without_ambient >= 0 and "light_ambient" in self._staging:
            self._staging["light_ambient"][:n, self._without_ambient] = 0.0

    def copy(self, env_ids: Tensor, fixed: Tensor) -> Tensor:
        """Each of the worlds env_ids (n,) into its own row.

        fixed: (G,) bool, geoms whose motion counts. Returns (n,) bool: rows in which anything has
        changed but the motion of the other geoms.
        """
        changed = torch.zeros(len(env_ids), dtype=torch.bool)
        for name, source in self._sources.items():
            target = self._staging[name]
            new = rows.take(source, env_ids).view(len(env_ids), *target.shape[1:]).to(target.dtype)
            differs = new != rows.take(target, env_ids)
            if name in ("geom_xpos", "geom_xmat"):
                differs = differs[:, fixed]
            changed |= differs.flatten(1).any(dim=1)
            target[env_ids] = new
        return changed

    def first_images(self, out: Tensor) -> None:
        """What was rendered in the first n rows -> out (n, 3, H, W) uint8."""
        # Packed as 0xAARRGGBB: the bytes of a little-endian word are B, G, R, A.
        packed = self._rgb[: len(out)].view(torch.uint8).view(len(out), *self.shape, 4)
        out.copy_(packed[..., [2, 1, 0]].permute(0, 3, 1, 2))

    def blank(self) -> Tensor:
        """(1, 3, H, W) uint8, for an image."""
        return torch.empty((1, 3, *self.shape), dtype=torch.uint8, device=self.device)


class _WarpRenderer:
    """MuJoCo Warp's own, a mirror a thread.

    shadow_mirrors: makes two sets without the ambient part of the light that casts shadows; the
    second lacks all of that light in its shadows, so that they are where the two differ.
    """

    def __init__(
        self,
        mirrors: list[_Mirror],
        shadow_mirrors: Callable[[], tuple[list[_Mirror], list[_Mirror]]] | None,
    ):
        self._mirrors = mirrors
        self._shadow_mirrors = shadow_mirrors
        self._pool = ThreadPoolExecutor(len(mirrors)) if len(mirrors) > 1 else None
        self._warm(mirrors)
        self._pair: tuple[list[_Mirror], list[_Mirror]] | None = None  # once there are shadows

    def _warm(self, mirrors: list[_Mirror]) -> None:
        # Kernels are compiled and loaded at the first launch; two threads must not race for that.
        for mirror in mirrors:
            self._render(mirror, torch.zeros(1, dtype=torch.int64), mirror.blank())

    def render(self, env_ids: Tensor, cast_shadow: Tensor, out: Tensor) -> None:
        """env_ids, cast_shadow (n,); writes out (n, 3, H, W) uint8."""
        self._render_all(self._mirrors, env_ids, out)
        dark = (cast_shadow > 0.0).nonzero().squeeze(1)
        if len(dark) == 0 or self._shadow_mirrors is None:
            return
        if self._pair is None:
            self._pair = self._shadow_mirrors()
            for mirrors in self._pair:
                self._warm(mirrors)
        there = dark.to(out.device)
        lit, shadowed = (torch.empty_like(out[there]) for _ in range(2))
        for mirrors, images in zip(self._pair, (lit, shadowed), strict=True):
            self._render_all(mirrors, env_ids[dark], images)
        lies = (shadowed < lit).any(dim=1, keepdim=True)
        share = cast_shadow[dark].to(out.device, torch.float32).view(-1, 1, 1, 1)
        out[there] = torch.lerp(out[there].float(), shadowed.float(), share * lies).to(torch.uint8)

    def _render_all(self, mirrors: list[_Mirror], env_ids: Tensor, out: Tensor) -> None:
        lanes = min(len(mirrors), len(env_ids))
        parts = list(zip(mirrors, env_ids.chunk(lanes), out.chunk(lanes), strict=False))
        if self._pool is None or len(parts) == 1:
            for part in parts:
                self._render(*part)
        else:
            list(self._pool.map(lambda part: self._render(*part), parts))

    def _render(self, mirror: _Mirror, env_ids: Tensor, out: Tensor) -> None:
        n = len(env_ids)
        mirror.copy_first(env_ids)
        with wp.ScopedDevice(mirror.wp_device):
            if mirror.wp_device.is_cuda:
                wp.set_stream(wp.stream_from_torch(torch.cuda.current_stream(out.device)))
            mirror.data.nworld = n
            mjw.refit_bvh(mirror.model, mirror.data, mirror.context)
            mjw.render(mirror.model, mirror.data, mirror.context)
        mirror.first_images(out)


class _TileRenderer:
    """The tile caster: one mirror with a row a world; each thread casts some of the tiles of all
    images, so that they are through together."""

    def __init__(self, mirror: _Mirror, model: mujoco.MjModel, camera: str, threads: int):
        self._mirror = mirror
        self._threads = threads
        # Warp's default device is a GPU where there is one.
        with wp.ScopedDevice(mirror.wp_device):
            self._tiles = TileCaster(
                model,
                mirror.model,
                mirror.data,
                mirror.context,
                model.camera(camera).id,
                mirror.shape,
                GROUPS,
            )
        self._fixed = torch.zeros(model.ngeom, dtype=torch.bool)  # geoms that cannot move
        self._fixed[fixed_geoms(model)] = True
        self._drawn = torch.zeros(mirror.data.nworld, dtype=torch.bool)  # worlds seen before
        self._pool: ThreadPoolExecutor | None = None
        # Kernels are compiled and loaded at the first launch; two threads must not race for that.
        self.render(torch.zeros(1, dtype=torch.int64), torch.zeros(1), mirror.blank())
        if threads > 1:
            self._pool = ThreadPoolExecutor(threads)

    def render(self, env_ids: Tensor, cast_shadow: Tensor, out: Tensor) -> None:
        """env_ids (n,), each once, cast_shadow (n,); writes out (n, 3, H, W) uint8."""
        changed = self._mirror.copy(env_ids, self._fixed) | ~self._drawn[env_ids]
        self._drawn[env_ids] = True
        with wp.ScopedDevice(self._mirror.wp_device):
            worlds = wp.from_torch(env_ids.int())
            anew = wp.from_torch(env_ids[changed].int())
            images = wp.from_torch(out.view(len(env_ids), 3, -1))
            shares = wp.from_torch(cast_shadow.float().contiguous())
            self._tiles.locate(worlds, anew, wp.from_torch(env_ids[cast_shadow > 0.0].int()))
            if self._pool is None:
                self._tiles.render(worlds, anew, shares, images)
                return
            args = worlds, anew, shares, images
            jobs = [
                self._pool.submit(self._tiles.render, *args, lane, self._threads)
                for lane in range(self._threads)
            ]
            for job in jobs:
                job.result()
