"""Casts the rays of one camera into many worlds, a tile of the image at a time.

Holds the arrays that the kernels of ray_kernel.py read and write, and launches them: where geoms
are in the image, a picture of those that cannot move, and what moves in front of it.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
import warp as wp

from visuomotor.envs.ray_kernel import KNOWN, TILE, bound, look_from_light, make_kernel


def supports(model: mujoco.MjModel, groups: tuple[int, ...]) -> bool:
    """Whether every visible geom of the scene is of a kind that the kernel knows."""
    visible = [g for g in range(model.ngeom) if model.geom_group[g] in groups]
    return (
        all(model.geom_type[g] in KNOWN for g in visible)
        and model.nflex == 0
        and not model.vis.headlight.active
    )


def shadow_light(model: mujoco.MjModel) -> int:
    """Index of the light that casts shadows: the first that may and has a place; -1: none."""
    directional = int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL)
    able = (model.light_castshadow != 0) & (model.light_type != directional)
    return int(able.argmax()) if able.any() else -1


def fixed_geoms(model: mujoco.MjModel) -> list[int]:
    """Geoms of bodies that no joint moves."""
    return [g for g in range(model.ngeom) if model.body_weldid[model.geom_bodyid[g]] == 0]


class _Geoms:
    """Some of a model's geoms, and where they are in the image of every world."""

    def __init__(self, ids: list[int], num_worlds: int, num_tiles: int):
        self.ids: Any = wp.array(ids, dtype=int)
        self.rectangles = wp.zeros((num_worlds, len(ids)), dtype=wp.vec4)
        self.nearest = wp.zeros((num_worlds, len(ids)), dtype=float)
        self.order: Any = wp.zeros((num_worlds, len(ids)), dtype=int)
        # Of each tile, the geoms that it may show: filled and read by one thread.
        self.touched = wp.zeros((num_worlds, num_tiles, len(ids)), dtype=int)


class TileCaster:
    """Casts the rays of one camera into the worlds of a MuJoCo Warp model and data.

    Args:
      host: the model, for what does not vary between worlds.
      model, data, context: MuJoCo Warp's, as for its own `render`, with a row for every world.
      camera: index of the camera in the model.
      size: (height, width) in pixels.
      groups: geom groups that are seen.
    """

    def __init__(
        self,
        host: mujoco.MjModel,
        model: Any,
        data: Any,
        context: Any,
        camera: int,
        size: tuple[int, int],
        groups: tuple[int, ...],
    ):
        self._model, self._data, self._context = model, data, context
        self._camera = camera
        self._size = height, width = size
        visible = [g for g in range(host.ngeom) if host.geom_group[g] in groups]
        types = tuple(sorted({int(host.geom_type[g]) for g in visible}))
        fixed = fixed_geoms(host)
        self._tiles = -(-height // TILE) * -(-width // TILE)
        self._fixed, self._moving = (
            _Geoms([g for g in visible if (g in fixed) == still], data.nworld, self._tiles)
            for still in (True, False)
        )
        # Of each geom's mesh, in the geom's frame; a thousandth wider, against rounding.
        box = host.geom_aabb.astype(np.float32)
        self._box_centre: Any = wp.array(box[:, :3], dtype=wp.vec3)
        self._box_half: Any = wp.array(1.001 * box[:, 3:] + 1e-6, dtype=wp.vec3)
        cutoff = np.cos(np.deg2rad(host.light_cutoff.astype(np.float64)))
        self._cos_cutoff: Any = wp.array(cutoff.astype(np.float32), dtype=float)
        self._shadow_light = shadow_light(host)
        self._kernel = make_kernel(
            types, host.nlight, context.enable_vertex_normals, self._shadow_light
        )
        # What a light sees, as a camera at its place: what else throws a shadow than a plane.
        plane = int(mujoco.mjtGeom.mjGEOM_PLANE)
        solid = [g for g in visible if host.geom_type[g] != plane]
        self._lit = _Geoms(solid, data.nworld, self._tiles)
        self._light_eye = wp.zeros((data.nworld, 1), dtype=wp.vec3)
        self._light_frame = wp.zeros((data.nworld, 1), dtype=wp.mat33)
        pixels = height * width
        black = np.full((1, pixels), 0xFF000000, dtype=np.uint32)
        self._nothing_rgb: Any = wp.array(black, dtype=wp.uint32)
        self._nothing_depth = wp.full((1, pixels), 1.0e10, dtype=float)
        self._fixed_rgb = wp.zeros((data.nworld, pixels), dtype=wp.uint32)
        self._fixed_dark = wp.zeros((data.nworld, pixels), dtype=wp.uint32)
        self._fixed_depth = wp.zeros((data.nworld, pixels), dtype=float)
        self._fixed_lit = wp.zeros((data.nworld, self._tiles), dtype=wp.vec4)
        self._no_shadow = wp.zeros(0, dtype=float)
        self._no_images = wp.zeros((0, 3, pixels), dtype=wp.uint8)

    def locate(self, worlds: Any, changed: Any, shadowed: Any) -> None:
        """Finds where geoms are in the images of these worlds; comes before `render`.

        worlds, changed, shadowed: arrays of int. `changed` are those of them in which something
        that the picture of the fixed geoms depends on differs from the last call: camera, lights,
        surfaces. A world's first picture counts as changed. `shadowed` are those with shadows.
        """
        d = self._data
        views = self._camera, d.cam_xpos, d.cam_xmat
        if len(changed) > 0:
            self._bound(changed, self._fixed, *views)
            if self._shadow_light >= 0:
                wp.launch(
                    look_from_light,
                    dim=len(changed),
                    inputs=[changed, self._shadow_light, d.light_xpos, d.light_xdir],
                    outputs=[self._light_eye, self._light_frame],
                )
        self._bound(worlds, self._moving, *views)
        if len(shadowed) > 0 and self._shadow_light >= 0:
            self._bound(shadowed, self._lit, 0, self._light_eye, self._light_frame)

    def render(
        self,
        worlds: Any,
        changed: Any,
        cast_shadow: Any,
        images: Any,
        lane: int = 0,
        num_lanes: int = 1,
    ) -> None:
        """Writes images (n, 3, H * W) uint8 of the n worlds; `worlds`, `changed` as for `locate`.

        cast_shadow: (n,) float, the share of its light that a shadow lacks; 0: there are none.
        lane: which tiles; calls with lanes 0 to num_lanes - 1, side by side or one after the other,
        make whole images.
        """
        if len(changed) > 0:
            behind = self._nothing_rgb, self._nothing_rgb, self._nothing_depth
            geoms, none = self._fixed, self._no_images
            self._cast(changed, geoms, behind, self._no_shadow, none, lane, num_lanes)
        behind = self._fixed_rgb, self._fixed_dark, self._fixed_depth
        self._cast(worlds, self._moving, behind, cast_shadow, images, lane, num_lanes)

    def _bound(self, worlds: Any, geoms: _Geoms, eye: int, xpos: Any, xmat: Any) -> None:
        """eye: column of xpos and xmat, as of a camera's."""
        m, d = self._model, self._data
        wp.launch(
            bound,
            dim=len(worlds),
            inputs=[
                worlds,
                geoms.ids,
                m.geom_type,
                m.geom_size,
                self._box_centre,
                self._box_half,
                d.geom_xpos,
                d.geom_xmat,
                eye,
                xpos,
                xmat,
            ],
            outputs=[geoms.rectangles, geoms.nearest, geoms.order],
        )

    def _cast(
        self,
        worlds: Any,
        geoms: _Geoms,
        behind: tuple[Any, Any, Any],
        cast_shadow: Any,
        images: Any,
        lane: int,
        num_lanes: int,
    ) -> None:
        m, d, rc = self._model, self._data, self._context
        height, width = self._size
        wp.launch(
            self._kernel,
            dim=(len(worlds), -(-self._tiles // num_lanes)),
            inputs=[
                worlds,
                *behind,
                cast_shadow,
                self._light_eye,
                self._light_frame,
                self._lit.ids,
                self._lit.rectangles,
                self._lit.nearest,
                self._lit.order,
                self._lit.touched,
                geoms.ids,
                geoms.rectangles,
                geoms.nearest,
                geoms.order,
                geoms.touched,
                self._box_centre,
                self._box_half,
                m.geom_type,
                m.geom_dataid,
                m.geom_matid,
                m.geom_size,
                m.geom_rgba,
                d.geom_xpos,
                d.geom_xmat,
                m.mat_rgba,
                m.mat_texid,
                m.mat_texuniform,
                m.mat_texrepeat,
                rc.mesh_bvh_id,
                m.mesh_faceadr,
                m.mesh_normaladr,
                m.mesh_normal,
                rc.mesh_facenormal,
                rc.mesh_facetexcoord,
                rc.mesh_texcoord,
                rc.mesh_texcoord_offsets,
                rc.textures,
                self._camera,
                m.cam_projection,
                m.cam_fovy,
                m.cam_sensorsize,
                m.cam_intrinsic,
                d.cam_xpos,
                d.cam_xmat,
                rc.znear,
                m.light_type,
                m.light_active,
                m.light_attenuation,
                self._cos_cutoff,
                m.light_exponent,
                m.light_ambient,
                m.light_diffuse,
                d.light_xpos,
                d.light_xdir,
                width,
                height,
                lane,
                num_lanes,
                geoms is self._fixed,
            ],
            outputs=[
                self._fixed_rgb,
                self._fixed_dark,
                self._fixed_depth,
                self._fixed_lit,
                images,
            ],
        )
