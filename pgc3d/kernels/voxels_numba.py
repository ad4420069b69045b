"""Which voxels a mesh fills, seen from outside: numba kernels for the CPU.

A voxel is surface where one of the three axis-parallel lines through its centre meets a triangle inside it.
Such a set lets no path of face neighbours through (6-separating, Laine 2013, "A topological approach to
voxelization"), so that a flood from outside stops at it; what the flood does not reach is solid. Neither
orientation nor watertightness is needed: inner walls vanish, and an open box is as thick as its walls.
`no_type_check` keeps run-time type checkers from wrapping what numba compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from pgc3d.kernels.compiled import compiled

_SLACK = 1e-9  # of a cell, so that lines through an edge meet one of its two triangles at least


def solid_voxels(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], *, resolution: int, extent: float
) -> Bool[np.ndarray, "R R R"]:
    """Voxels [x, y, z] of the cube [-extent, extent]^3 that are surface or enclosed by it.

    Surface voxels count as a whole, so the solid is up to half a voxel too thick on every side. What lies
    outside the cube is cut off.
    """
    grid = np.zeros((resolution + 2,) * 3, dtype=np.uint8)  # a margin that stays free around the cube
    scaled = (vertices.astype(np.float64) + extent) * (resolution / (2 * extent))
    _mark_surface(scaled, faces.astype(np.int64), grid)
    _flood(grid)
    inner = slice(1, -1)
    result: NDArray[np.bool_] = grid[inner, inner, inner] != 2
    return result


@compiled()
@no_type_check
def _mark_surface(vertices, faces, grid):
    """Set surface voxels to 1; `vertices` are in voxels, so that centres lie at halves."""
    size = grid.shape[0] - 2
    for face in range(len(faces)):
        a, b, c = vertices[faces[face, 0]], vertices[faces[face, 1]], vertices[faces[face, 2]]
        for axis in range(3):
            _mark_along(a, b, c, axis, size, grid)


@compiled()
@no_type_check
def _mark_along(a, b, c, axis, size, grid):
    u, v = (axis + 1) % 3, (axis + 2) % 3
    area = (b[u] - a[u]) * (c[v] - a[v]) - (b[v] - a[v]) * (c[u] - a[u])
    if area == 0.0 or not np.isfinite(area):
        return  # seen edge-on: the lines of the other axes meet it
    first_u, last_u = _span(min(a[u], b[u], c[u]), max(a[u], b[u], c[u]), size)
    first_v, last_v = _span(min(a[v], b[v], c[v]), max(a[v], b[v], c[v]), size)
    index = np.zeros(3, dtype=np.int64)
    for i in range(first_u, last_u + 1):
        for j in range(first_v, last_v + 1):
            x, y = i + 0.5, j + 0.5
            wa = ((b[u] - x) * (c[v] - y) - (b[v] - y) * (c[u] - x)) / area
            wb = ((c[u] - x) * (a[v] - y) - (c[v] - y) * (a[u] - x)) / area
            wc = 1.0 - wa - wb
            if min(wa, wb, wc) < -_SLACK:
                continue
            depth = wa * a[axis] + wb * b[axis] + wc * c[axis]
            if 0.0 <= depth <= size:
                index[axis], index[u], index[v] = min(int(depth), size - 1), i, j
                grid[index[0] + 1, index[1] + 1, index[2] + 1] = 1


@compiled()
@no_type_check
def _span(low, high, size):
    """First and last line whose coordinate k + 1/2 lies in [low, high]."""
    first = max(np.ceil(max(low, -1.0) - 0.5 - _SLACK), 0.0)
    last = min(np.floor(min(high, size + 1.0) - 0.5 + _SLACK), size - 1.0)
    return int(first), int(last)


@compiled()
@no_type_check
def _flood(grid):
    """Set what faces reach from the corner to 2."""
    size = grid.shape[0]
    stack = np.empty(size**3, dtype=np.int64)
    flat = grid.reshape(-1)
    stack[0], count = 0, 1
    flat[0] = 2
    while count:
        count -= 1
        place = stack[count]
        x, y, z = place // (size * size), (place // size) % size, place % size
        for step, free in (
            (size * size, x < size - 1), (-size * size, x > 0),
            (size, y < size - 1), (-size, y > 0),
            (1, z < size - 1), (-1, z > 0),
        ):  # fmt: skip
            if free and flat[place + step] == 0:
                flat[place + step] = 2
                stack[count] = place + step
                count += 1
