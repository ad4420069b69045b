"""Numba kernels that find silhouette crossings; `silhouette.py` states the rule and is the torch twin."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels.compiled import compiled
from pgc3d.kernels.silhouette import KEY_SCALE, SAME_DEPTH, SNAP, CutEdges


def find_cut_edges(
    clip: Float[Tensor, "B V 4"],
    data: Float[Tensor, "B H W 4"],
    edges: Int[Tensor, "E 2"],
    opposite: Int[Tensor, "E 2"],
) -> CutEdges:
    """Find where silhouette edges pass between pixels; all crossings returned are live.

    The arguments are those of `silhouette.find_cut_edges`, on the CPU.
    """
    views, height, width = data.shape[:3]
    positions, fragments = clip.detach().contiguous().numpy(), data.detach().contiguous().numpy()
    ends, wings = edges.long().contiguous().numpy(), opposite.long().contiguous().numpy()
    points = _project(positions, height, width)
    counts = _count_scan_lines(points, ends, wings, height, width)
    best = np.zeros((views, 2, height * width), np.int64)  # calloc: only the pages that are used cost time
    inner, outer, edge = _collect(points, fragments, ends, wings, counts, best)
    tensors = torch.from_numpy(inner), torch.from_numpy(outer), torch.from_numpy(edge)
    return CutEdges(*tensors, live=torch.ones(len(inner), dtype=torch.bool))


def find_edges(faces: Int[Tensor, "F 3"], vertex_count: int) -> tuple[Int[Tensor, "E 2"], Int[Tensor, "E 2"]]:
    """Edges and opposite vertices (-1 at a boundary), ordered by `edge_topology`'s sort."""
    edges, opposite = _find_edges(faces.long().contiguous().numpy(), vertex_count)
    return torch.from_numpy(edges), torch.from_numpy(opposite)


@compiled()
@no_type_check
def _find_edges(faces, vertex_count):
    """Bucket the half edges by their lower vertex, then sort the few in each bucket by insertion."""
    starts = np.zeros(vertex_count + 1, np.int64)
    for face in range(faces.shape[0]):
        for corner in range(3):
            starts[min(faces[face, corner], faces[face, (corner + 1) % 3]) + 1] += 1
    starts = np.cumsum(starts)
    cursor = starts[:-1].copy()
    half_edges = np.empty(faces.shape[0] * 3, np.int64)  # (higher vertex, opposite vertex) in 31 bits each
    for face in range(faces.shape[0]):
        for corner in range(3):
            start, end = faces[face, corner], faces[face, (corner + 1) % 3]
            low = min(start, end)
            value = (max(start, end) << 31) | faces[face, (corner + 2) % 3]
            slot = cursor[low]
            while slot > starts[low] and half_edges[slot - 1] > value:
                half_edges[slot] = half_edges[slot - 1]
                slot -= 1
            half_edges[slot] = value
            cursor[low] += 1
    edges, opposite = np.empty((faces.shape[0] * 3, 2), np.int64), np.empty((faces.shape[0] * 3, 2), np.int64)
    count = 0
    for low in range(vertex_count):
        previous = -1
        for slot in range(starts[low], starts[low + 1]):
            high, third = half_edges[slot] >> 31, half_edges[slot] & 0x7FFFFFFF
            if high != previous:
                edges[count, 0], edges[count, 1] = low, high
                opposite[count, 0], opposite[count, 1] = third, -1
                previous = high
                count += 1
            elif opposite[count - 1, 1] < 0:
                opposite[count - 1, 1] = third
    return edges[:count].copy(), opposite[:count].copy()


@compiled(parallel=True)
@no_type_check
def _project(clip, height, width):
    """Homogeneous pixel positions and z of all vertices, [B, V, 4] float64 (x, y, w, z)."""
    views, count = clip.shape[0], clip.shape[1]
    points = np.empty((views, count, 4))
    for job in numba.prange(views * count):
        view, vertex = job // count, job % count
        x, y, w = clip[view, vertex, 0], clip[view, vertex, 1], np.float64(clip[view, vertex, 3])
        points[view, vertex, 0] = 0.5 * width * (x + w) - 0.5 * w
        points[view, vertex, 1] = 0.5 * height * (w - y) - 0.5 * w
        points[view, vertex, 2], points[view, vertex, 3] = w, clip[view, vertex, 2]
    return points


@compiled()
@no_type_check
def _position(points, view, vertex):
    return points[view, vertex, 0], points[view, vertex, 1], points[view, vertex, 2]


@compiled()
@no_type_check
def _side(points, view, vertex, nx, ny, nw):
    x, y, w = _position(points, view, vertex)
    return nx * x + ny * y + nw * w


@compiled()
@no_type_check
def _scan_range(points, view, edge, edges, opposite, height, width):
    """Number of scan lines, the first one, whether they are rows, and the direction of the outside."""
    a, b = edges[edge, 0], edges[edge, 1]
    if a < 0:
        return 0, 0, True, 1
    ax, ay, aw = _position(points, view, a)
    bx, by, bw = _position(points, view, b)
    if not (aw > 0.0 and bw > 0.0):
        return 0, 0, True, 1
    nx, ny, nw = ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx
    first = _side(points, view, opposite[edge, 0], nx, ny, nw)
    second = first
    if opposite[edge, 1] >= 0:
        second = _side(points, view, opposite[edge, 1], nx, ny, nw)
    side = first if first != 0.0 else second
    if not (first * second >= 0.0 and side != 0.0):
        return 0, 0, True, 1
    ax, ay, bx, by = ax / aw, ay / aw, bx / bw, by / bw
    if not np.isfinite(ax + ay + bx + by):
        return 0, 0, True, 1
    along_rows = abs(by - ay) >= abs(bx - ax)
    low, high = (min(ay, by), max(ay, by)) if along_rows else (min(ax, bx), max(ax, bx))
    low = np.ceil(max(low, 0.0))
    high = min(np.ceil(high), np.float64(height if along_rows else width))
    if high <= low:
        return 0, 0, True, 1
    direction = -1 if (nx if along_rows else ny) * side > 0.0 else 1
    return np.int64(high - low), np.int64(low), along_rows, direction


@compiled(parallel=True)
@no_type_check
def _count_scan_lines(points, edges, opposite, height, width):
    views, count = points.shape[0], edges.shape[0]
    counts = np.empty((views, count), np.int32)
    for job in numba.prange(views * count):
        view, edge = job // count, job % count
        counts[view, edge] = _scan_range(points, view, edge, edges, opposite, height, width)[0]
    return counts


@compiled()
@no_type_check
def _is_covered(fragments, view, base, pixel, size, stride):
    if pixel < 0 or pixel >= size:
        return False, 0.0
    index = base + pixel * stride
    return fragments[view, index, 3] > 0, np.float64(fragments[view, index, 2])


@compiled()
@no_type_check
def _pixel_pair(fragments, view, base, stride, size, crossing, depth, step):
    """Inner pixel along the minor axis (-1 if the crossing does not count) and its distance to the edge."""
    low = np.int64(np.floor(min(max(crossing, -2.0), 1.0e6)))
    inner = low if step > 0 else low + 1
    distance = (crossing - inner) * step
    inner_covered, _ = _is_covered(fragments, view, base, inner, size, stride)
    outer_covered, outer_depth = _is_covered(fragments, view, base, inner + step, size, stride)
    shift = 0
    if not inner_covered and distance < SNAP:
        shift = -1
    elif outer_covered and distance > 1 - SNAP and outer_depth <= depth + SAME_DEPTH:
        shift = 1
    inner, distance = inner + shift * step, distance - shift
    outer = inner + step
    inner_covered, _ = _is_covered(fragments, view, base, inner, size, stride)
    outer_covered, outer_depth = _is_covered(fragments, view, base, outer, size, stride)
    hidden = outer_covered and depth > outer_depth
    if not inner_covered or outer < 0 or outer >= size or hidden or not abs(depth) <= 1.0:
        return -1, distance
    return inner, distance


@compiled()
@no_type_check
def _walk(points, fragments, view, edge, edges, opposite, height, width, best, inner, outer, keys, pairs):
    """Append the visible crossings of one edge, and return how many there are."""
    lines, first, along_rows, step = _scan_range(points, view, edge, edges, opposite, height, width)
    a, b = edges[edge, 0], edges[edge, 1]
    ax, ay, aw = _position(points, view, a)
    bx, by, bw = _position(points, view, b)
    ax, ay, bx, by = ax / aw, ay / aw, bx / bw, by / bw
    az, bz = points[view, a, 3] / aw, points[view, b, 3] / bw
    major_a, major_b, minor_a, minor_b = (ay, by, ax, bx) if along_rows else (ax, bx, ay, by)
    axis, size, stride = (0, width, 1) if along_rows else (1, height, width)
    count = 0
    for scan in range(first, first + lines):
        fraction = (scan - major_a) / (major_b - major_a)
        crossing, depth = minor_a + fraction * (minor_b - minor_a), az + fraction * (bz - az)
        base = scan * width if along_rows else scan
        pixel, distance = _pixel_pair(fragments, view, base, stride, size, crossing, depth, step)
        if pixel < 0:
            continue
        key = (np.int64((distance + 1) * KEY_SCALE) << 32) | edge
        inner[count], outer[count] = base + pixel * stride, base + (pixel + step) * stride
        pair = min(inner[count], outer[count])
        keys[count], pairs[count] = key, axis * height * width + pair
        best[view, axis, pair] = max(best[view, axis, pair], key)
        count += 1
    return count


@compiled(parallel=True)
@no_type_check
def _collect(points, data, edges, opposite, counts, best):
    """Walk the silhouettes of every view and keep the outermost crossing of every pixel pair."""
    views, height, width = data.shape[0], data.shape[1], data.shape[2]
    fragments = data.reshape(views, height * width, 4)
    starts = np.zeros(views + 1, np.int64)
    for view in range(views):
        starts[view + 1] = starts[view] + counts[view].sum()
    inner, outer = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)
    keys, pairs = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)
    visible = np.zeros(views, np.int64)
    for view in numba.prange(views):
        start = starts[view]
        cursor = start
        for edge in range(edges.shape[0]):
            if counts[view, edge] > 0:
                cursor += _walk(
                    points, fragments, view, edge, edges, opposite, height, width, best,
                    inner[cursor:], outer[cursor:], keys[cursor:], pairs[cursor:],
                )  # fmt: skip
        winners = best[view].reshape(-1)
        offset = view * height * width
        for slot in range(start, cursor):
            if winners[pairs[slot]] == keys[slot]:
                target = start + visible[view]
                inner[target], outer[target] = inner[slot] + offset, outer[slot] + offset
                keys[target] = keys[slot] & 0xFFFFFFFF
                visible[view] += 1
    total = visible.sum()
    result = np.empty((3, total), np.int64)
    cursor = 0
    for view in range(views):
        source = slice(starts[view], starts[view] + visible[view])
        target = slice(cursor, cursor + visible[view])
        result[0, target], result[1, target], result[2, target] = inner[source], outer[source], keys[source]
        cursor += visible[view]
    return result[0], result[1], result[2]
