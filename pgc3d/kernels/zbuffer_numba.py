"""Z-buffer visibility, interpolation, and both backward passes on the CPU; `zbuffer` states the rules.

`no_type_check` keeps run-time type checkers from wrapping what numba compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels.compiled import compiled
from pgc3d.kernels.zbuffer import BOUNDS_MARGIN, DEPTH_STEPS

_BAND_HEIGHT = 16  # rows per parallel job
_JOBS = 4  # fixed, not the number of threads, so that sums do not depend on the machine's cores


def find_visible(
    clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], height: int, width: int
) -> Float[Tensor, "B H W 4"]:
    """The nearest triangle of every pixel, as `Fragments.data`."""
    data = clip.new_empty(clip.shape[0], height, width, 4)
    positions, triangles = clip.detach().numpy(), faces.numpy()
    bounds = _triangle_bounds(positions, triangles, height, width)
    starts, binned = _bin_triangles(bounds, height)
    _fill(positions, triangles, bounds, starts, binned, data.numpy())
    return data


def find_visible_backward(
    gradient: Float[Tensor, "B H W 4"],
    clip: Float[Tensor, "B V 4"],
    data: Float[Tensor, "B H W 4"],
    faces: Int[Tensor, "F 3"],
) -> Float[Tensor, "B V 4"]:
    """Gradient of u and v to x, y and w of the clip positions; z/w and the index have none."""
    partial = clip.new_zeros(clip.shape[0], _chunks(clip.shape[0]), *clip.shape[1:])
    _find_visible_backward(gradient.numpy(), clip.numpy(), data.numpy(), faces.numpy(), partial.numpy())
    return partial.sum(1)


def interpolate(
    attributes: Float[Tensor, "A V C"], data: Float[Tensor, "B H W 4"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, "B H W C"]:
    """Barycentric mix of vertex attributes, 0 where nothing was hit."""
    output = attributes.new_empty(*data.shape[:3], attributes.shape[2])
    _interpolate(attributes.detach().numpy(), data.detach().numpy(), faces.numpy(), output.numpy())
    return output


def interpolate_backward(
    gradient: Float[Tensor, "B H W C"],
    attributes: Float[Tensor, "A V C"],
    data: Float[Tensor, "B H W 4"],
    faces: Int[Tensor, "F 3"],
    *,
    need_attributes: bool,
) -> tuple[Float[Tensor, "A V C"] | None, Float[Tensor, "B H W 4"]]:
    """Gradients of `interpolate` to the attributes, where needed, and to u and v."""
    views, grad_data = data.shape[0], torch.empty_like(data)
    shape = attributes.shape[1:] if need_attributes else (0, 0)
    partial = attributes.new_zeros(views, _chunks(views), *shape)
    _interpolate_backward(
        gradient.numpy(), attributes.numpy(), data.numpy(), faces.numpy(), grad_data.numpy(), partial.numpy(),
        need_attributes,
    )  # fmt: skip
    if not need_attributes:
        return None, grad_data
    return (partial.sum((0, 1)).unsqueeze(0) if attributes.shape[0] == 1 else partial.sum(1)), grad_data


def _chunks(views: int) -> int:
    return max(1, _JOBS // max(views, 1))


@compiled()
@no_type_check
def _pixel_position(clip, view, vertex, height, width):
    """Homogeneous position in pixels: pixel centres are integers after division by w, row 0 on top."""
    x, y, w = _ndc_position(clip, view, vertex)
    return 0.5 * width * (x + w) - 0.5 * w, 0.5 * height * (w - y) - 0.5 * w, w


@compiled()
@no_type_check
def _ndc_position(clip, view, vertex):
    x, y, w = clip[view, vertex, 0], clip[view, vertex, 1], clip[view, vertex, 3]
    return np.float64(x), np.float64(y), np.float64(w)


@compiled()
@no_type_check
def _cross(ax, ay, aw, bx, by, bw):
    return ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx


@compiled()
@no_type_check
def _first_and_last_band(bounds, view, face):
    """Inclusive range of bands that a triangle touches; empty where it covers no pixel centre."""
    if bounds[view, face, 1] < bounds[view, face, 0] or bounds[view, face, 3] < bounds[view, face, 2]:
        return 0, -1
    return bounds[view, face, 2] // _BAND_HEIGHT, bounds[view, face, 3] // _BAND_HEIGHT


@compiled()
@no_type_check
def _limit(value, low, high):
    """Clamp before the conversion to an integer, which is undefined for huge values."""
    return min(max(value, np.float64(low)), np.float64(high))


@compiled(parallel=True)
@no_type_check
def _triangle_bounds(clip, faces, height, width):
    """Inclusive pixel bounds (x0, x1, y0, y1) of every triangle and view; x1 < x0 where it is not drawn."""
    views, count = clip.shape[0], faces.shape[0]
    bounds = np.empty((views, count, 4), np.int32)
    for job in numba.prange(views * count):
        view, face = job // count, job % count
        x0, x1, y0, y1 = np.inf, -np.inf, np.inf, -np.inf
        in_front, finite = 0, True
        for corner in range(3):
            vertex = faces[face, corner]
            x, y, w = _pixel_position(clip, view, vertex, height, width)
            finite = finite and np.isfinite(x + y + w + clip[view, vertex, 2])
            if w > 0.0:
                in_front += 1
                x0, x1 = min(x0, x / w), max(x1, x / w)
                y0, y1 = min(y0, y / w), max(y1, y / w)
        bounds[view, face, 0], bounds[view, face, 1] = 0, -1
        bounds[view, face, 2], bounds[view, face, 3] = 0, -1
        if not finite or in_front == 0:
            continue
        if in_front < 3:  # crosses the camera plane: its projection is unbounded
            x0, x1, y0, y1 = 0.0, width - 1.0, 0.0, height - 1.0
        bounds[view, face, 0] = np.ceil(_limit(x0 - BOUNDS_MARGIN, 0, width))
        bounds[view, face, 1] = np.floor(_limit(x1 + BOUNDS_MARGIN, -1, width - 1))
        bounds[view, face, 2] = np.ceil(_limit(y0 - BOUNDS_MARGIN, 0, height))
        bounds[view, face, 3] = np.floor(_limit(y1 + BOUNDS_MARGIN, -1, height - 1))
    return bounds


@compiled(parallel=True)
@no_type_check
def _bin_triangles(bounds, height):
    """Sort the triangles of every view into bands of rows: (starts [B * bands + 1], triangle indices)."""
    views, count = bounds.shape[0], bounds.shape[1]
    bands = (height + _BAND_HEIGHT - 1) // _BAND_HEIGHT
    counts = np.zeros((views, bands), np.int64)
    for view in numba.prange(views):
        for face in range(count):
            first, last = _first_and_last_band(bounds, view, face)
            for band in range(first, last + 1):
                counts[view, band] += 1
    starts = np.zeros(views * bands + 1, np.int64)
    for slot in range(views * bands):
        starts[slot + 1] = starts[slot] + counts[slot // bands, slot % bands]
    triangles = np.empty(starts[-1], np.int32)
    for view in numba.prange(views):
        cursor = starts[view * bands : (view + 1) * bands].copy()
        for face in range(count):
            first, last = _first_and_last_band(bounds, view, face)
            for band in range(first, last + 1):
                triangles[cursor[band]] = face
                cursor[band] += 1
    return starts, triangles


@compiled()
@no_type_check
def _fill_triangle(clip, faces, view, face, bounds, first_row, last_row, depth, data):
    height, width = data.shape[1], data.shape[2]
    i0, i1, i2 = faces[face, 0], faces[face, 1], faces[face, 2]
    ax, ay, aw = _pixel_position(clip, view, i0, height, width)
    bx, by, bw = _pixel_position(clip, view, i1, height, width)
    cx, cy, cw = _pixel_position(clip, view, i2, height, width)
    e0x, e0y, e0w = _cross(bx, by, bw, cx, cy, cw)
    e1x, e1y, e1w = _cross(cx, cy, cw, ax, ay, aw)
    e2x, e2y, e2w = _cross(ax, ay, aw, bx, by, bw)
    determinant = ax * e0x + ay * e0y + aw * e0w
    if not (np.isfinite(determinant) and determinant != 0.0):
        return
    sign = 1.0 if determinant > 0.0 else -1.0
    inverse = 1.0 / (sign * determinant)
    z0, z1, z2 = np.float64(clip[view, i0, 2]), np.float64(clip[view, i1, 2]), np.float64(clip[view, i2, 2])
    for row in range(max(first_row, bounds[2]), min(last_row, bounds[3]) + 1):
        r0, r1, r2 = e0y * row + e0w, e1y * row + e1w, e2y * row + e2w
        for column in range(bounds[0], bounds[1] + 1):
            w0, w1, w2 = sign * (e0x * column + r0), sign * (e1x * column + r1), sign * (e2x * column + r2)
            if w0 < 0.0 or w1 < 0.0 or w2 < 0.0:
                continue
            total = w0 + w1 + w2  # = |determinant| / w, so a hit lies in front of the camera plane
            z = (w0 * z0 + w1 * z1 + w2 * z2) * inverse
            if not (total > 0.0 and -1.0 <= z <= 1.0):
                continue
            steps = np.int64((z + 1.0) * DEPTH_STEPS)
            if steps < depth[row - first_row, column]:
                depth[row - first_row, column] = steps
                data[view, row, column, 0] = w0 / total
                data[view, row, column, 1] = w1 / total
                data[view, row, column, 2] = z
                data[view, row, column, 3] = face + 1


@compiled(parallel=True)
@no_type_check
def _fill(clip, faces, bounds, starts, triangles, data):
    """Write the nearest triangle of every pixel to `data` [B, H, W, 4]; the lowest index wins a tie."""
    views, height, width = data.shape[0], data.shape[1], data.shape[2]
    bands = (height + _BAND_HEIGHT - 1) // _BAND_HEIGHT
    for job in numba.prange(views * bands):
        view, first_row = job // bands, (job % bands) * _BAND_HEIGHT
        last_row = min(first_row + _BAND_HEIGHT, height) - 1
        depth = np.full((_BAND_HEIGHT, width), np.iinfo(np.int64).max)
        data[view, first_row : last_row + 1] = 0
        for slot in range(starts[job], starts[job + 1]):
            face = triangles[slot]
            _fill_triangle(clip, faces, view, face, bounds[view, face], first_row, last_row, depth, data)


@compiled(parallel=True)
@no_type_check
def _interpolate(attributes, data, faces, output):
    """Barycentric mix of vertex attributes [A, V, C] into output [B, H, W, C], 0 where nothing was hit."""
    views, height, width, channels = output.shape
    for job in numba.prange(views * height):
        view, row = job // height, job % height
        source = view if attributes.shape[0] > 1 else 0
        for column in range(width):
            face = np.int64(data[view, row, column, 3]) - 1
            if face < 0:
                output[view, row, column] = 0
                continue
            u, v = data[view, row, column, 0], data[view, row, column, 1]
            i0, i1, i2 = faces[face, 0], faces[face, 1], faces[face, 2]
            for c in range(channels):
                output[view, row, column, c] = (
                    u * attributes[source, i0, c]
                    + v * attributes[source, i1, c]
                    + (1 - u - v) * attributes[source, i2, c]
                )


@compiled(parallel=True)
@no_type_check
def _interpolate_backward(gradient, attributes, data, faces, grad_data, partial, need_attributes):
    """Gradients of `interpolate`: to u, v in `grad_data` and to attributes in `partial` [B, chunks, V, C].

    The chunks are parts of the rows with a sum of their own, so that threads never add to the same place and
    the result does not depend on their order.
    """
    views, height, width, channels = gradient.shape
    chunks = partial.shape[1]
    for job in numba.prange(views * chunks):
        view, chunk = job // chunks, job % chunks
        source = view if attributes.shape[0] > 1 else 0
        for row in range(chunk * height // chunks, (chunk + 1) * height // chunks):
            for column in range(width):
                grad_data[view, row, column] = 0
                face = np.int64(data[view, row, column, 3]) - 1
                if face < 0:
                    continue
                u, v = data[view, row, column, 0], data[view, row, column, 1]
                i0, i1, i2 = faces[face, 0], faces[face, 1], faces[face, 2]
                for c in range(channels):
                    g = gradient[view, row, column, c]
                    last = attributes[source, i2, c]
                    grad_data[view, row, column, 0] += g * (attributes[source, i0, c] - last)
                    grad_data[view, row, column, 1] += g * (attributes[source, i1, c] - last)
                    if need_attributes:
                        partial[view, chunk, i0, c] += u * g
                        partial[view, chunk, i1, c] += v * g
                        partial[view, chunk, i2, c] += (1 - u - v) * g


@compiled(parallel=True)
@no_type_check
def _find_visible_backward(gradient, clip, data, faces, partial):
    """Gradient of u and v to clip positions, into `partial` [B, chunks, V, 4].

    With M the rows (x, y, w) of the vertices and p the pixel in normalised device coordinates, the weights b
    obey M^T b = w p and sum(b) = 1. Differentiating both gives d loss / d vertex_k = b_k h with
    h = sum_j e_j (sum_i g_i b_i - g_j) / det(M), where e_j are the edge vectors and g = (g_u, g_v, 0).
    """
    views, height, width = data.shape[0], data.shape[1], data.shape[2]
    chunks = partial.shape[1]
    for job in numba.prange(views * chunks):
        view, chunk = job // chunks, job % chunks
        for row in range(chunk * height // chunks, (chunk + 1) * height // chunks):
            for column in range(width):
                face = np.int64(data[view, row, column, 3]) - 1
                g0, g1 = (
                    np.float64(gradient[view, row, column, 0]),
                    np.float64(gradient[view, row, column, 1]),
                )
                if face < 0 or (g0 == 0.0 and g1 == 0.0):
                    continue
                i0, i1, i2 = faces[face, 0], faces[face, 1], faces[face, 2]
                ax, ay, aw = (
                    np.float64(clip[view, i0, 0]),
                    np.float64(clip[view, i0, 1]),
                    np.float64(clip[view, i0, 3]),
                )
                bx, by, bw = (
                    np.float64(clip[view, i1, 0]),
                    np.float64(clip[view, i1, 1]),
                    np.float64(clip[view, i1, 3]),
                )
                cx, cy, cw = (
                    np.float64(clip[view, i2, 0]),
                    np.float64(clip[view, i2, 1]),
                    np.float64(clip[view, i2, 3]),
                )
                e0x, e0y, e0w = _cross(bx, by, bw, cx, cy, cw)
                e1x, e1y, e1w = _cross(cx, cy, cw, ax, ay, aw)
                e2x, e2y, e2w = _cross(ax, ay, aw, bx, by, bw)
                determinant = ax * e0x + ay * e0y + aw * e0w
                u, v = data[view, row, column, 0], data[view, row, column, 1]
                mean = g0 * u + g1 * v
                f0, f1, f2 = (mean - g0) / determinant, (mean - g1) / determinant, mean / determinant
                hx = f0 * e0x + f1 * e1x + f2 * e2x
                hy = f0 * e0y + f1 * e1y + f2 * e2y
                hw = f0 * e0w + f1 * e1w + f2 * e2w
                for corner in range(3):
                    vertex = faces[face, corner]
                    weight = u if corner == 0 else (v if corner == 1 else 1 - u - v)
                    partial[view, chunk, vertex, 0] += weight * hx
                    partial[view, chunk, vertex, 1] += weight * hy
                    partial[view, chunk, vertex, 3] += weight * hw
