"""MuJoCo Warp's ray-caster for scenes of rigid geoms, twice as fast on a CPU.

The same rays, surfaces, textures and lights as `mujoco_warp.render`, from the same arrays: pixels
differ by rounding alone, which tests/test_ray_kernel.py holds. What differs is the search for what
a ray meets. MuJoCo Warp walks a tree of boxes for every ray; here one thread casts the rays of a
tile of the image and asks only the geoms whose bounding sphere the tile's cone touches. It knows no
shadows, height fields, flexes, splats or specular light; `supports` says so of a scene.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mujoco
import numpy as np
import warp as wp

# The intersections and texture coordinates are MuJoCo Warp's own.
from mujoco_warp._src import ray as mjw_ray
from mujoco_warp._src import render as mjw_render
from mujoco_warp._src import render_util as mjw_render_util

TILE = 8  # pixels; the rays of a tile share their search
MAX_GEOMS = 64  # bits of a tile's mask
_GEOM = mujoco.mjtGeom
_BOX, _PLANE, _MESH = int(_GEOM.mjGEOM_BOX), int(_GEOM.mjGEOM_PLANE), int(_GEOM.mjGEOM_MESH)
_SPHERE, _CAPSULE = int(_GEOM.mjGEOM_SPHERE), int(_GEOM.mjGEOM_CAPSULE)
_CYLINDER, _ELLIPSOID = int(_GEOM.mjGEOM_CYLINDER), int(_GEOM.mjGEOM_ELLIPSOID)
_KNOWN = (_PLANE, _SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _BOX, _MESH)
_EVERYWHERE = wp.constant(-2.0)  # cosine of a cone that holds every direction
_RELATIVE, _ABSOLUTE = mjw_ray.RAY_TOL_REL, mjw_ray.RAY_TOL_ABS


def supports(model: mujoco.MjModel, groups: tuple[int, ...]) -> bool:
    """Whether every visible geom of the scene is of a kind that the kernel knows."""
    visible = [g for g in range(model.ngeom) if model.geom_group[g] in groups]
    return (
        len(visible) <= MAX_GEOMS
        and all(model.geom_type[g] in _KNOWN for g in visible)
        and model.nflex == 0
        and not model.vis.headlight.active
    )


@wp.kernel(enable_backward=False)
def _bound(
    geom_ids: wp.array[int],
    geom_type: wp.array[int],
    geom_rbound: wp.array2d[float],
    geom_size: wp.array2d[wp.vec3],
    geom_xpos: wp.array2d[wp.vec3],
    cam_xpos: wp.array2d[wp.vec3],
    camera: int,
    cones: wp.array2d[wp.vec4],
):
    """The cone from the camera around each geom's bounding sphere: its axis and cosine."""
    world, index = wp.tid()
    geom = geom_ids[index]
    size = geom_size[world % geom_size.shape[0], geom]
    radius = geom_rbound[world % geom_rbound.shape[0], geom]
    if geom_type[geom] == wp.static(_BOX):
        radius = wp.length(size)  # sizes may vary between worlds
    offset = geom_xpos[world, geom] - cam_xpos[world, camera]
    distance = wp.length(offset)
    if geom_type[geom] == wp.static(_PLANE) or distance <= radius:
        cones[world, index] = wp.vec4(0.0, 0.0, 1.0, _EVERYWHERE)
    else:
        axis = offset / distance
        sine = radius / distance
        cones[world, index] = wp.vec4(axis[0], axis[1], axis[2], wp.sqrt(1.0 - sine * sine))


@wp.func
def _reaches_box(
    centre: wp.vec3,
    half: wp.vec3,
    pos: wp.vec3,
    mat: wp.mat33,
    origin: wp.vec3,
    direction: wp.vec3,
    reach: float,
):
    """Whether a ray meets a box that is fixed to a frame, nearer than `reach`."""
    turn = wp.transpose(mat)
    o = turn @ (origin - pos) - centre
    d = turn @ direction
    enter = float(0.0)
    leave = float(reach)
    for i in range(3):
        # A direction along the faces divides by next to nothing, and the slab is far or near.
        speed = d[i]
        if wp.abs(speed) < 1.0e-9:
            speed = 1.0e-9
        inverse = 1.0 / speed
        middle = -o[i] * inverse
        width = wp.abs(half[i] * inverse)
        enter = wp.max(enter, middle - width)
        leave = wp.min(leave, middle + width)
    return enter <= leave


@wp.func
def _ray_box(pos: wp.vec3, mat: wp.mat33, size: wp.vec3, origin: wp.vec3, direction: wp.vec3):
    """Distance and outward normal where a ray enters a box; -1 if it misses it or starts inside.

    Slabs (Kay and Kajiya 1986); MuJoCo Warp's own also finds where the ray leaves.
    """
    turn = wp.transpose(mat)
    o = turn @ (origin - pos)
    d = turn @ direction
    enter = float(-1.0e10)
    leave = float(1.0e10)
    axis = int(0)
    missed = bool(False)
    for i in range(3):
        if wp.abs(d[i]) < 1.0e-12:
            missed = missed or wp.abs(o[i]) > size[i]
        else:
            inverse = 1.0 / d[i]
            middle = -o[i] * inverse
            half = wp.abs(size[i] * inverse)
            if middle - half > enter:
                enter = middle - half
                axis = i
            leave = wp.min(leave, middle + half)
    distance = float(-1.0)
    normal = wp.vec3(0.0, 0.0, 0.0)
    if not missed and enter <= leave and enter >= 0.0:
        distance = enter
        side = float(1.0)
        if d[axis] > 0.0:
            side = -1.0
        normal = wp.vec3(mat[0, axis], mat[1, axis], mat[2, axis]) * side
    return distance, normal


@lru_cache
def _make_kernel(types: tuple[int, ...], num_lights: int, vertex_normals: bool) -> Any:
    """The kernel for scenes with geoms of these types; branches for others are not compiled."""
    sample_texture = mjw_render._make_sample_texture(types)
    compute_ray = mjw_render_util.compute_ray

    @wp.func
    def intersect(
        kind: int,
        mesh: int,
        pos: wp.vec3,
        mat: wp.mat33,
        size: wp.vec3,
        origin: wp.vec3,
        direction: wp.vec3,
        reach: float,
        mesh_bvh_id: wp.array[wp.uint64],
        centre: wp.vec3,
        half: wp.vec3,
    ):
        distance = float(-1.0)
        normal = wp.vec3(0.0, 0.0, 0.0)
        u = float(0.0)
        v = float(0.0)
        face = int(-1)
        mesh_id = int(-1)
        if wp.static(_BOX in types):
            if kind == wp.static(_BOX):
                distance, normal = _ray_box(pos, mat, size, origin, direction)
        if wp.static(_MESH in types):
            if kind == wp.static(_MESH):
                if _reaches_box(centre, half, pos, mat, origin, direction, reach):
                    distance, normal, u, v, face, mesh_id = mjw_ray.ray_mesh_with_bvh(
                        mesh_bvh_id, mesh, pos, mat, origin, direction, reach, True
                    )
        if wp.static(_PLANE in types):
            if kind == wp.static(_PLANE):
                distance, normal = mjw_ray.ray_plane(pos, mat, size, origin, direction)
        if wp.static(_SPHERE in types):
            if kind == wp.static(_SPHERE):
                distance, normal = mjw_ray.ray_sphere(pos, size[0] * size[0], origin, direction)
        if wp.static(_CAPSULE in types):
            if kind == wp.static(_CAPSULE):
                distance, normal = mjw_ray.ray_capsule(pos, mat, size, origin, direction)
        if wp.static(_CYLINDER in types):
            if kind == wp.static(_CYLINDER):
                distance, normal = mjw_ray.ray_cylinder(pos, mat, size, origin, direction)
        if wp.static(_ELLIPSOID in types):
            if kind == wp.static(_ELLIPSOID):
                distance, normal = mjw_ray.ray_ellipsoid(pos, mat, size, origin, direction)
        if distance >= 0.0 and wp.dot(direction, normal) > 0.0:
            distance = -1.0  # seen from behind
        return distance, normal, u, v, face, mesh_id

    @wp.kernel(module="unique", enable_backward=False, module_options={"fast_math": True})
    def cast(
        geom_ids: wp.array[int],
        cones: wp.array2d[wp.vec4],
        box_centre: wp.array[wp.vec3],
        box_half: wp.array[wp.vec3],
        geom_type: wp.array[int],
        geom_dataid: wp.array2d[int],
        geom_matid: wp.array2d[int],
        geom_size: wp.array2d[wp.vec3],
        geom_rgba: wp.array2d[wp.vec4],
        geom_xpos: wp.array2d[wp.vec3],
        geom_xmat: wp.array2d[wp.mat33],
        mat_rgba: wp.array2d[wp.vec4],
        mat_texid: wp.array3d[int],
        mat_texuniform: wp.array2d[bool],
        mat_texrepeat: wp.array2d[wp.vec2],
        mesh_bvh_id: wp.array[wp.uint64],
        mesh_faceadr: wp.array[int],
        mesh_normaladr: wp.array[int],
        mesh_normal: wp.array[wp.vec3],
        mesh_facenormal: wp.array[wp.vec3i],
        mesh_facetexcoord: wp.array[wp.vec3i],
        mesh_texcoord: wp.array[wp.vec2],
        mesh_texcoord_offsets: wp.array[int],
        textures: wp.array[wp.Texture2D],
        camera: int,
        cam_projection: wp.array[int],
        cam_fovy: wp.array2d[float],
        cam_sensorsize: wp.array[wp.vec2],
        cam_intrinsic: wp.array2d[wp.vec4],
        cam_xpos: wp.array2d[wp.vec3],
        cam_xmat: wp.array2d[wp.mat33],
        znear: float,
        light_type: wp.array2d[int],
        light_active: wp.array2d[bool],
        light_attenuation: wp.array2d[wp.vec3],
        light_cos_cutoff: wp.array[float],
        light_exponent: wp.array2d[float],
        light_ambient: wp.array2d[wp.vec3],
        light_diffuse: wp.array2d[wp.vec3],
        light_xpos: wp.array2d[wp.vec3],
        light_xdir: wp.array2d[wp.vec3],
        width: int,
        height: int,
        rgb: wp.array2d[wp.uint32],
    ):
        world, tile = wp.tid()
        columns = (width + wp.static(TILE - 1)) // wp.static(TILE)
        left = (tile % columns) * wp.static(TILE)
        top = (tile // columns) * wp.static(TILE)
        right = wp.min(left + wp.static(TILE), width)
        bottom = wp.min(top + wp.static(TILE), height)
        fovy = cam_fovy[world % cam_fovy.shape[0], camera]
        intrinsic = cam_intrinsic[world % cam_intrinsic.shape[0], camera]
        projection = cam_projection[camera]
        sensor = cam_sensorsize[camera]
        rotation = cam_xmat[world, camera]
        origin = cam_xpos[world, camera]

        # The tile's own cone: through its middle, as wide as its farthest corner.
        first, _o1 = compute_ray(
            projection, fovy, sensor, intrinsic, width, height, left, top, znear
        )
        last, _o2 = compute_ray(
            projection, fovy, sensor, intrinsic, width, height, right - 1, bottom - 1, znear
        )
        other, _o3 = compute_ray(
            projection, fovy, sensor, intrinsic, width, height, right - 1, top, znear
        )
        another, _o4 = compute_ray(
            projection, fovy, sensor, intrinsic, width, height, left, bottom - 1, znear
        )
        middle = wp.normalize(first + last + other + another)
        tile_cos = wp.min(
            wp.min(wp.dot(middle, first), wp.dot(middle, last)),
            wp.min(wp.dot(middle, other), wp.dot(middle, another)),
        )
        tile_sin = wp.sqrt(wp.max(1.0 - tile_cos * tile_cos, 0.0))
        axis = rotation @ middle
        mask = wp.uint64(0)
        for index in range(geom_ids.shape[0]):
            cone = cones[world, index]
            cosine = cone[3]
            near = bool(True)
            if cosine > -1.0:
                sine = wp.sqrt(wp.max(1.0 - cosine * cosine, 0.0))
                between = wp.dot(axis, wp.vec3(cone[0], cone[1], cone[2]))
                # Rounding may not hide a geom that touches the tile.
                near = between >= cosine * tile_cos - sine * tile_sin - 1.0e-5
            if near:
                mask = mask | (wp.uint64(1) << wp.uint64(index))

        # On the plane at distance 1 the rays stand in a regular grid.
        start_x = first[0] / -first[2]
        start_y = first[1] / -first[2]
        step_x = (last[0] / -last[2] - start_x) / wp.max(float(right - 1 - left), 1.0)
        step_y = (last[1] / -last[2] - start_y) / wp.max(float(bottom - 1 - top), 1.0)
        for py in range(top, bottom):
            for px in range(left, right):
                local = wp.vec3(
                    start_x + step_x * float(px - left), start_y + step_y * float(py - top), -1.0
                )
                direction = rotation @ wp.normalize(local)
                hit = int(-1)
                best = float(1.0e10)
                normal = wp.vec3(0.0, 0.0, 0.0)
                u = float(0.0)
                v = float(0.0)
                face = int(-1)
                mesh_id = int(-1)
                for index in range(geom_ids.shape[0]):
                    if (mask >> wp.uint64(index)) & wp.uint64(1) != wp.uint64(0):
                        cone = cones[world, index]
                        # The ray itself may pass the bounding sphere by.
                        aimed = wp.dot(direction, wp.vec3(cone[0], cone[1], cone[2]))
                        if aimed >= cone[3] - 1.0e-5:
                            geom = geom_ids[index]
                            distance, n, bary_u, bary_v, f, m = intersect(
                                geom_type[geom],
                                geom_dataid[world % geom_dataid.shape[0], geom],
                                geom_xpos[world, geom],
                                geom_xmat[world, geom],
                                geom_size[world % geom_size.shape[0], geom],
                                origin,
                                direction,
                                best * (1.0 + wp.static(_RELATIVE)) + wp.static(_ABSOLUTE),
                                mesh_bvh_id,
                                box_centre[geom],
                                box_half[geom],
                            )
                            # Ties go to the later geom, as in MuJoCo's depth test.
                            tolerance = wp.static(_RELATIVE) * wp.max(best, 1.0)
                            if distance >= 0.0 and distance <= best + tolerance:
                                best = distance
                                hit = geom
                                normal = n
                                u = bary_u
                                v = bary_v
                                face = f
                                mesh_id = m
                colour = wp.vec3(0.0, 0.0, 0.0)
                if hit >= 0:
                    if wp.static(vertex_normals and _MESH in types):
                        if mesh_id >= 0 and face >= 0:
                            turn = geom_xmat[world, hit]
                            flat = wp.transpose(turn) @ normal
                            corners = mesh_facenormal[mesh_faceadr[mesh_id] + face]
                            start = mesh_normaladr[mesh_id]
                            smooth = (
                                mjw_render.vertex_normal(mesh_normal[start + corners[0]], flat) * u
                                + mjw_render.vertex_normal(mesh_normal[start + corners[1]], flat)
                                * v
                                + mjw_render.vertex_normal(mesh_normal[start + corners[2]], flat)
                                * (1.0 - u - v)
                            )
                            normal = wp.normalize(turn @ smooth)
                    point = origin + direction * best
                    rgba, material = mjw_render._geom_rgba(
                        geom_matid, geom_rgba, mat_rgba, world, hit
                    )
                    base = wp.vec3(rgba[0], rgba[1], rgba[2])
                    if material >= 0:
                        texture = mat_texid[world % mat_texid.shape[0], material, 1]
                        if texture >= 0:
                            texel = sample_texture(
                                geom_type,
                                mesh_faceadr,
                                hit,
                                geom_size[world % geom_size.shape[0], hit],
                                mat_texrepeat[world % mat_texrepeat.shape[0], material],
                                mat_texuniform[world % mat_texuniform.shape[0], material],
                                textures[texture],
                                geom_xpos[world, hit],
                                geom_xmat[world, hit],
                                mesh_facetexcoord,
                                mesh_texcoord,
                                mesh_texcoord_offsets,
                                point,
                                normal,
                                u,
                                v,
                                face,
                                mesh_id,
                            )
                            base = wp.cw_mul(base, texel)
                    light = wp.vec3(0.0, 0.0, 0.0)
                    for number in range(wp.static(num_lights)):
                        if light_active[world % light_active.shape[0], number]:
                            light += light_ambient[world % light_ambient.shape[0], number]
                            heading = light_xdir[world, number]
                            towards = -heading
                            weight = float(1.0)
                            kind = light_type[world % light_type.shape[0], number]
                            if kind != 1:  # not directional
                                away = light_xpos[world, number] - point
                                far = wp.length(away)
                                towards = away / wp.max(far, 1.0e-10)
                                fading = light_attenuation[
                                    world % light_attenuation.shape[0], number
                                ]
                                weight = 1.0 / (fading[0] + far * (fading[1] + far * fading[2]))
                                if kind == 0:  # a spot
                                    inside = -wp.dot(towards, heading)
                                    exponent = light_exponent[
                                        world % light_exponent.shape[0], number
                                    ]
                                    if inside < light_cos_cutoff[number]:
                                        weight = 0.0
                                    elif exponent == 1.0:
                                        weight *= wp.max(inside, 0.0)
                                    elif exponent != 0.0:
                                        weight *= wp.pow(wp.max(inside, 0.0), exponent)
                            facing = wp.dot(normal, towards)
                            if facing > 0.0:
                                light += light_diffuse[world % light_diffuse.shape[0], number] * (
                                    facing * weight
                                )
                    colour = wp.cw_mul(base, light)
                red = wp.clamp(colour[0], 0.0, 1.0) * 255.0
                green = wp.clamp(colour[1], 0.0, 1.0) * 255.0
                blue = wp.clamp(colour[2], 0.0, 1.0) * 255.0
                rgb[world, py * width + px] = mjw_render_util.pack_rgba_to_uint32(
                    red, green, blue, 255.0
                )

    return cast


class TileCaster:
    """Casts the rays of one camera into the worlds of a MuJoCo Warp model and data.

    Args:
      host: the model, for what does not vary between worlds.
      model, data, context: MuJoCo Warp's, as for its own `render`; worlds up to `data.nworld`.
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
        self._size = size
        visible = [g for g in range(host.ngeom) if host.geom_group[g] in groups]
        types = tuple(sorted({int(host.geom_type[g]) for g in visible}))
        self._geom_ids = wp.array(visible, dtype=int)
        self._cones = wp.zeros((data.nworld, len(visible)), dtype=wp.vec4)
        # Of each geom's mesh, in the geom's frame; a thousandth wider, against rounding.
        box = host.geom_aabb.astype(np.float32)
        self._box_centre = wp.array(box[:, :3], dtype=wp.vec3)
        self._box_half = wp.array(1.001 * box[:, 3:] + 1e-6, dtype=wp.vec3)
        cutoff = np.cos(np.deg2rad(host.light_cutoff.astype(np.float64)))
        self._cos_cutoff = wp.array(cutoff.astype(np.float32), dtype=float)
        self._kernel = _make_kernel(types, host.nlight, context.enable_vertex_normals)
        height, width = size
        self._tiles = -(-height // TILE) * -(-width // TILE)

    def render(self, num_worlds: int) -> None:
        """Fills `context.rgb_data` for the first worlds."""
        m, d, rc = self._model, self._data, self._context
        wp.launch(
            _bound,
            dim=(num_worlds, len(self._geom_ids)),
            inputs=[
                self._geom_ids,
                m.geom_type,
                m.geom_rbound,
                m.geom_size,
                d.geom_xpos,
                d.cam_xpos,
                self._camera,
            ],
            outputs=[self._cones],
        )
        height, width = self._size
        wp.launch(
            self._kernel,
            dim=(num_worlds, self._tiles),
            inputs=[
                self._geom_ids,
                self._cones,
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
            ],
            outputs=[rc.rgb_data],
        )
