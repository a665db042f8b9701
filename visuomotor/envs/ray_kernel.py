"""MuJoCo Warp's ray-caster for scenes of rigid geoms, four times as fast on a CPU.

The same rays, surfaces, textures and lights as `mujoco_warp.render`, from the same arrays: pixels
differ by rounding alone, which tests/test_tile_caster.py holds. Two things differ. MuJoCo Warp
walks a tree of boxes for every ray; here one thread casts the rays of a tile of the image and asks
only the geoms whose bounding rectangle in the image the tile touches, the nearest first. And what
cannot move (floor, table, the arm's base) is drawn once, with its depth, and drawn again only when
camera, lights or surfaces of the world have changed; a frame casts rays at what moves alone. A
second picture of what cannot move lacks the light that casts shadows: a shadow on the table is a
mix of the two. It knows no height fields, flexes, splats or specular light;
`tile_caster.supports` says so of a scene.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mujoco
import warp as wp

# The intersections and texture coordinates are MuJoCo Warp's own.
from mujoco_warp._src import ray as mjw_ray
from mujoco_warp._src import render as mjw_render
from mujoco_warp._src import render_util as mjw_render_util

TILE = 8  # pixels; the rays of a tile share their search
_GEOM = mujoco.mjtGeom
_BOX, _PLANE, _MESH = int(_GEOM.mjGEOM_BOX), int(_GEOM.mjGEOM_PLANE), int(_GEOM.mjGEOM_MESH)
_SPHERE, _CAPSULE = int(_GEOM.mjGEOM_SPHERE), int(_GEOM.mjGEOM_CAPSULE)
_CYLINDER, _ELLIPSOID = int(_GEOM.mjGEOM_CYLINDER), int(_GEOM.mjGEOM_ELLIPSOID)
KNOWN = (_PLANE, _SPHERE, _CAPSULE, _ELLIPSOID, _CYLINDER, _BOX, _MESH)
_FAR = wp.constant(1.0e10)  # m; beyond everything
_BEFORE = wp.constant(1.0e-3)  # m; what reaches nearer than this may fill the image
_SLACK = wp.constant(1.0e-5)  # rounding may not hide a geom that touches a ray
_CLEAR = wp.constant(5.0e-4)  # m; what is as near as this to a point casts no shadow on it
_RELATIVE, _ABSOLUTE = mjw_ray.RAY_TOL_REL, mjw_ray.RAY_TOL_ABS


@wp.func
def _half_extents(kind: int, size: wp.vec3, of_mesh: wp.vec3):
    """Half the edges of the box around a geom, in its frame; sizes may vary between worlds."""
    half = of_mesh
    if kind == wp.static(_BOX) or kind == wp.static(_ELLIPSOID):
        half = size
    elif kind == wp.static(_SPHERE):
        half = wp.vec3(size[0], size[0], size[0])
    elif kind == wp.static(_CAPSULE):
        half = wp.vec3(size[0], size[0], size[0] + size[1])
    elif kind == wp.static(_CYLINDER):
        half = wp.vec3(size[0], size[0], size[1])
    return half


@wp.kernel(enable_backward=False)
def bound(
    worlds: wp.array[int],
    geom_ids: wp.array[int],
    geom_type: wp.array[int],
    geom_size: wp.array2d[wp.vec3],
    box_centre: wp.array[wp.vec3],
    box_half: wp.array[wp.vec3],
    geom_xpos: wp.array2d[wp.vec3],
    geom_xmat: wp.array2d[wp.mat33],
    camera: int,
    cam_xpos: wp.array2d[wp.vec3],
    cam_xmat: wp.array2d[wp.mat33],
    rectangles: wp.array2d[wp.vec4],
    nearest: wp.array2d[float],
    order: wp.array2d[int],
):
    """Each geom's rectangle on the plane at distance 1 (left, bottom, right, top), the depth at
    which it begins, and the order of these depths."""
    world = worlds[wp.tid()]
    turn = wp.transpose(cam_xmat[world, camera])
    for index in range(geom_ids.shape[0]):
        geom = geom_ids[index]
        kind = geom_type[geom]
        rectangle = wp.vec4(-_FAR, -_FAR, _FAR, _FAR)
        begin = float(0.0)
        if kind != wp.static(_PLANE):
            half = _half_extents(kind, geom_size[world % geom_size.shape[0], geom], box_half[geom])
            axes = turn @ geom_xmat[world, geom]
            middle = turn @ (geom_xpos[world, geom] - cam_xpos[world, camera])
            if kind == wp.static(_MESH):
                middle = middle + axes @ box_centre[geom]
            begin = -middle[2] - (
                wp.abs(axes[2, 0]) * half[0]
                + wp.abs(axes[2, 1]) * half[1]
                + wp.abs(axes[2, 2]) * half[2]
            )
            if begin > _BEFORE:
                rectangle = wp.vec4(_FAR, _FAR, -_FAR, -_FAR)
                for corner in range(8):
                    sign_x = float((corner & 1) * 2 - 1)
                    sign_y = float((corner & 2) - 1)
                    sign_z = float((corner & 4) // 2 - 1)
                    point = middle + axes @ wp.vec3(
                        sign_x * half[0], sign_y * half[1], sign_z * half[2]
                    )
                    x = point[0] / -point[2]
                    y = point[1] / -point[2]
                    rectangle = wp.vec4(
                        wp.min(rectangle[0], x - _SLACK),
                        wp.min(rectangle[1], y - _SLACK),
                        wp.max(rectangle[2], x + _SLACK),
                        wp.max(rectangle[3], y + _SLACK),
                    )
            begin = wp.max(begin - _SLACK, 0.0)
        rectangles[world, index] = rectangle
        nearest[world, index] = begin
        place = int(index)
        while place > 0 and nearest[world, order[world, wp.max(place - 1, 0)]] > begin:
            order[world, place] = order[world, place - 1]
            place = place - 1
        order[world, place] = index


@wp.kernel(enable_backward=False)
def look_from_light(
    worlds: wp.array[int],
    light: int,
    light_xpos: wp.array2d[wp.vec3],
    light_xdir: wp.array2d[wp.vec3],
    eye: wp.array2d[wp.vec3],
    frame: wp.array2d[wp.mat33],
):
    """Place and axes of a camera that sees what the light sees."""
    world = worlds[wp.tid()]
    back = -wp.normalize(light_xdir[world, light])
    other = wp.vec3(1.0, 0.0, 0.0)
    if wp.abs(back[0]) > 0.7:
        other = wp.vec3(0.0, 1.0, 0.0)
    right = wp.normalize(wp.cross(other, back))
    eye[world, 0] = light_xpos[world, light]
    frame[world, 0] = wp.matrix_from_cols(right, wp.cross(back, right), back)


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


@wp.func
def _mixed(packed: wp.uint32, dark: wp.uint32, share: float):
    """Between two packed colours, `share` of the way to the second."""
    a = int(packed)
    b = int(dark)
    return mjw_render_util.pack_rgba_to_uint32(
        wp.lerp(float((a >> 16) & 255), float((b >> 16) & 255), share),
        wp.lerp(float((a >> 8) & 255), float((b >> 8) & 255), share),
        wp.lerp(float(a & 255), float(b & 255), share),
        255.0,
    )


@wp.func
def _sample_at(index: int):
    """Pixel of a tile, along a side, of each of four samples: 0, 2, 5, 7."""
    return 2 * index + index // 2


@wp.func
def _sample_before(pixel: int):
    """Index of the last sample that is not behind a pixel."""
    return (pixel + 1) // 3 + pixel // 7


@wp.func
def _bit(samples: int, row: int, column: int):
    return (samples >> (4 * row + column)) & 1


@wp.func
def _packed(base: wp.vec3, light: wp.vec3):
    """Of a surface in this light."""
    colour = wp.cw_mul(base, light)
    return mjw_render_util.pack_rgba_to_uint32(
        wp.clamp(colour[0], 0.0, 1.0) * 255.0,
        wp.clamp(colour[1], 0.0, 1.0) * 255.0,
        wp.clamp(colour[2], 0.0, 1.0) * 255.0,
        255.0,
    )


@lru_cache
def make_kernel(
    types: tuple[int, ...], num_lights: int, vertex_normals: bool, shadow_light: int
) -> Any:
    """The kernel for scenes with geoms of these types; branches for others are not compiled.

    shadow_light: index of the light that casts shadows; -1: none does.
    """
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

    @wp.func
    def in_shadow(
        world: int,
        point: wp.vec3,
        light_pos: wp.vec3,
        light_mat: wp.mat33,
        geom_ids: wp.array[int],
        rectangles: wp.array2d[wp.vec4],
        nearest: wp.array2d[float],
        candidates: wp.array[int],
        count: int,
        box_centre: wp.array[wp.vec3],
        box_half: wp.array[wp.vec3],
        geom_type: wp.array[int],
        geom_dataid: wp.array2d[int],
        geom_size: wp.array2d[wp.vec3],
        geom_xpos: wp.array2d[wp.vec3],
        geom_xmat: wp.array2d[wp.mat33],
        mesh_bvh_id: wp.array[wp.uint64],
    ):
        """Whether one of the first `count` candidates, the nearest first, is between a point and
        the light, which sees as a camera does."""
        ray = point - light_pos
        local = wp.transpose(light_mat) @ ray
        depth = -local[2]
        shadow = bool(False)
        if depth > _BEFORE:
            x = local[0] / depth
            y = local[1] / depth
            far = wp.length(ray)
            direction = ray / far
            reach = far - _CLEAR
            for place in range(count):
                index = candidates[place]
                if shadow or nearest[world, index] > depth:
                    break
                bound = rectangles[world, index]
                if bound[0] <= x and bound[2] >= x and bound[1] <= y and bound[3] >= y:
                    geom = geom_ids[index]
                    kind = geom_type[geom]
                    pos = geom_xpos[world, geom]
                    mat = geom_xmat[world, geom]
                    if kind == wp.static(_MESH):
                        if wp.static(_MESH in types):
                            centre = box_centre[geom]
                            half = box_half[geom]
                            if _reaches_box(centre, half, pos, mat, light_pos, direction, reach):
                                shadow = mjw_ray.ray_mesh_with_bvh_anyhit(
                                    mesh_bvh_id,
                                    geom_dataid[world % geom_dataid.shape[0], geom],
                                    pos,
                                    mat,
                                    light_pos,
                                    direction,
                                    reach,
                                )
                    else:
                        distance, _n, _u, _v, _f, _m = intersect(
                            kind,
                            -1,
                            pos,
                            mat,
                            geom_size[world % geom_size.shape[0], geom],
                            light_pos,
                            direction,
                            reach,
                            mesh_bvh_id,
                            box_centre[geom],
                            box_half[geom],
                        )
                        shadow = distance >= 0.0 and distance < reach
        return shadow

    @wp.kernel(module="unique", enable_backward=False, module_options={"fast_math": True})
    def cast(
        worlds: wp.array[int],
        behind_rgb: wp.array2d[wp.uint32],
        behind_dark: wp.array2d[wp.uint32],
        behind_depth: wp.array2d[float],
        cast_shadow: wp.array[float],
        light_eye: wp.array2d[wp.vec3],
        light_frame: wp.array2d[wp.mat33],
        lit_ids: wp.array[int],
        lit_rectangles: wp.array2d[wp.vec4],
        lit_nearest: wp.array2d[float],
        lit_order: wp.array2d[int],
        lit_touched: wp.array3d[int],
        geom_ids: wp.array[int],
        rectangles: wp.array2d[wp.vec4],
        nearest: wp.array2d[float],
        order: wp.array2d[int],
        touched: wp.array3d[int],
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
        lane: int,
        num_lanes: int,
        keep: bool,
        kept_rgb: wp.array2d[wp.uint32],
        kept_dark: wp.array2d[wp.uint32],
        kept_depth: wp.array2d[float],
        kept_lit: wp.array2d[wp.vec4],
        images: wp.array3d[wp.uint8],
    ):
        row, tile_of_lane = wp.tid()
        tile = tile_of_lane * num_lanes + lane
        columns = (width + wp.static(TILE - 1)) // wp.static(TILE)
        if tile >= columns * ((height + wp.static(TILE - 1)) // wp.static(TILE)):
            return
        world = worlds[row]
        behind = world % behind_rgb.shape[0]
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
        missing = float(0.0)  # share of a light that its shadow lacks
        if not keep:
            missing = cast_shadow[row]

        first, _o1 = compute_ray(
            projection, fovy, sensor, intrinsic, width, height, left, top, znear
        )
        last, _o2 = compute_ray(
            projection, fovy, sensor, intrinsic, width, height, right - 1, bottom - 1, znear
        )
        # On the plane at distance 1 the rays stand in a regular grid.
        start_x = first[0] / -first[2]
        start_y = first[1] / -first[2]
        end_x = last[0] / -last[2]
        end_y = last[1] / -last[2]
        step_x = (end_x - start_x) / wp.max(float(right - 1 - left), 1.0)
        step_y = (end_y - start_y) / wp.max(float(bottom - 1 - top), 1.0)
        count = int(0)
        for place in range(geom_ids.shape[0]):
            index = order[world, place]
            bound = rectangles[world, index]
            if (
                bound[0] <= end_x
                and bound[2] >= start_x
                and bound[1] <= start_y
                and bound[3] >= end_y
            ):
                touched[world, tile, count] = index
                count = count + 1
        # What cannot move of a tile has a rectangle of its own in what the light sees.
        lit = wp.vec4(_FAR, _FAR, -_FAR, -_FAR)
        lit_count = int(0)
        if missing > 0.0:
            lit = kept_lit[world, tile]
            for place in range(lit_ids.shape[0]):
                index = lit_order[world, place]
                bound = lit_rectangles[world, index]
                if (
                    bound[0] <= lit[2]
                    and bound[2] >= lit[0]
                    and bound[1] <= lit[3]
                    and bound[3] >= lit[1]
                ):
                    lit_touched[world, tile, lit_count] = index
                    lit_count = lit_count + 1
        dark_samples = int(0)  # which of 4 x 4 points of what cannot move lie in the shadow
        if wp.static(shadow_light >= 0):
            if lit_count > 0:
                for sample in range(16):
                    px = wp.min(left + _sample_at(sample % 4), right - 1)
                    py = wp.min(top + _sample_at(sample // 4), bottom - 1)
                    pixel = py * width + px
                    if behind_rgb[behind, pixel] != behind_dark[behind, pixel]:
                        local = wp.vec3(
                            start_x + step_x * float(px - left),
                            start_y + step_y * float(py - top),
                            -1.0,
                        )
                        direction = rotation @ wp.normalize(local)
                        if in_shadow(
                            world,
                            origin + direction * behind_depth[behind, pixel],
                            light_eye[world, 0],
                            light_frame[world, 0],
                            lit_ids,
                            lit_rectangles,
                            lit_nearest,
                            lit_touched[world][tile],
                            lit_count,
                            box_centre,
                            box_half,
                            geom_type,
                            geom_dataid,
                            geom_size,
                            geom_xpos,
                            geom_xmat,
                            mesh_bvh_id,
                        ):
                            dark_samples = dark_samples | (1 << sample)
        for py in range(top, bottom):
            for px in range(left, right):
                local = wp.vec3(
                    start_x + step_x * float(px - left), start_y + step_y * float(py - top), -1.0
                )
                direction = rotation @ wp.normalize(local)
                pixel = py * width + px
                hit = int(-1)
                best = behind_depth[behind, pixel]
                normal = wp.vec3(0.0, 0.0, 0.0)
                u = float(0.0)
                v = float(0.0)
                face = int(-1)
                mesh_id = int(-1)
                for place in range(count):
                    index = touched[world, tile, place]
                    if nearest[world, index] > best:
                        break  # and so do all that follow
                    bound = rectangles[world, index]
                    if (
                        bound[0] <= local[0]
                        and bound[2] >= local[0]
                        and bound[1] <= local[1]
                        and bound[3] >= local[1]
                    ):
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
                        if geom < hit:
                            tolerance = -tolerance
                        if distance >= 0.0 and distance <= best + tolerance:
                            best = distance
                            hit = geom
                            normal = n
                            u = bary_u
                            v = bary_v
                            face = f
                            mesh_id = m
                packed = behind_rgb[behind, pixel]
                dark = behind_dark[behind, pixel]
                if wp.static(shadow_light >= 0):
                    if hit < 0 and lit_count > 0 and packed != dark:
                        # Like the samples around it where they are alike.
                        column = _sample_before(px - left)
                        line = _sample_before(py - top)
                        square = (
                            _bit(dark_samples, line, column)
                            + _bit(dark_samples, line, wp.min(column + 1, 3))
                            + _bit(dark_samples, wp.min(line + 1, 3), column)
                            + _bit(dark_samples, wp.min(line + 1, 3), wp.min(column + 1, 3))
                        )
                        shadow = square == 4
                        if square > 0 and square < 4:
                            shadow = in_shadow(
                                world,
                                origin + direction * best,
                                light_eye[world, 0],
                                light_frame[world, 0],
                                lit_ids,
                                lit_rectangles,
                                lit_nearest,
                                lit_touched[world][tile],
                                lit_count,
                                box_centre,
                                box_half,
                                geom_type,
                                geom_dataid,
                                geom_size,
                                geom_xpos,
                                geom_xmat,
                                mesh_bvh_id,
                            )
                        if shadow:
                            packed = _mixed(packed, dark, missing)
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
                    lost = wp.vec3(0.0, 0.0, 0.0)  # in the shadow, if it were in it
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
                                part = light_diffuse[world % light_diffuse.shape[0], number] * (
                                    facing * weight
                                )
                                light += part
                                if number == wp.static(shadow_light):
                                    ambient = world % light_ambient.shape[0]
                                    lost = part + light_ambient[ambient, number]
                    if wp.static(shadow_light >= 0):
                        if keep:
                            dark = _packed(base, light - lost)
                        elif missing > 0.0 and wp.length_sq(lost) > 0.0:
                            if in_shadow(
                                world,
                                point,
                                light_eye[world, 0],
                                light_frame[world, 0],
                                lit_ids,
                                lit_rectangles,
                                lit_nearest,
                                lit_order[world],
                                lit_ids.shape[0],
                                box_centre,
                                box_half,
                                geom_type,
                                geom_dataid,
                                geom_size,
                                geom_xpos,
                                geom_xmat,
                                mesh_bvh_id,
                            ):
                                light -= lost * missing
                    packed = _packed(base, light)
                if keep:
                    if wp.static(shadow_light >= 0):
                        if hit >= 0:
                            seen = wp.transpose(light_frame[world, 0]) @ (
                                origin + direction * best - light_eye[world, 0]
                            )
                            if -seen[2] > _BEFORE:
                                x = seen[0] / -seen[2]
                                y = seen[1] / -seen[2]
                                lit = wp.vec4(
                                    wp.min(lit[0], x - _SLACK),
                                    wp.min(lit[1], y - _SLACK),
                                    wp.max(lit[2], x + _SLACK),
                                    wp.max(lit[3], y + _SLACK),
                                )
                    kept_rgb[world, pixel] = packed
                    kept_dark[world, pixel] = dark
                    kept_depth[world, pixel] = best
                else:
                    bits = int(packed)
                    images[row, 0, pixel] = wp.uint8((bits >> 16) & 255)
                    images[row, 1, pixel] = wp.uint8((bits >> 8) & 255)
                    images[row, 2, pixel] = wp.uint8(bits & 255)
        if keep:
            kept_lit[world, tile] = lit

    return cast
