"""Multi-resolution hash encoding on the CPU; `hash_grid` is the twin in plain torch and states the formulas.

A thread works on whole levels, so two threads never write to the same row and the sums have one order: the
result does not depend on the number of threads. `no_type_check` keeps run-time type checkers from wrapping
what numba compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import Any, no_type_check

import numba
import numpy as np
from jaxtyping import Float
from torch import Tensor, from_numpy

from pgc3d.kernels.compiled import compiled
from pgc3d.kernels.hash_grid import HashLayout


@compiled()
@no_type_check
def _cell(value, cells):
    scaled = min(max(value, np.float32(0.0)), np.float32(1.0)) * np.float32(cells)
    low = min(np.int64(scaled), cells - 1)
    return low, scaled - np.float32(low)


@compiled()
@no_type_check
def _row(x, y, z, cells, hashed, count):
    if hashed:
        return (x ^ (y * 2654435761) ^ (z * 805459861)) & (count - 1)
    return (x * (cells + 1) + y) * (cells + 1) + z


@compiled()
@no_type_check
def _side(fraction, upper):
    return fraction if upper else np.float32(1.0) - fraction


@compiled(parallel=True, fastmath=True)
@no_type_check
def _forward(points, table, cells, offsets, hashed, out):
    width = table.shape[1]
    for level in numba.prange(len(cells)):
        size, start, is_hashed = cells[level], offsets[level], hashed[level]
        count = offsets[level + 1] - start
        for p in range(len(points)):
            x, u = _cell(points[p, 0], size)
            y, v = _cell(points[p, 1], size)
            z, w = _cell(points[p, 2], size)
            for i in range(2):
                for j in range(2):
                    face = _side(u, i) * _side(v, j)
                    for k in range(2):
                        weight = face * _side(w, k)
                        row = start + _row(x + i, y + j, z + k, size, is_hashed, count)
                        for c in range(width):
                            out[level, p, c] += weight * table[row, c]


@compiled(parallel=True, fastmath=True)
@no_type_check
def _backward(gradient, points, cells, offsets, hashed, out):
    width = out.shape[1]
    for level in numba.prange(len(cells)):
        size, start, is_hashed = cells[level], offsets[level], hashed[level]
        count = offsets[level + 1] - start
        for p in range(len(points)):
            x, u = _cell(points[p, 0], size)
            y, v = _cell(points[p, 1], size)
            z, w = _cell(points[p, 2], size)
            for i in range(2):
                for j in range(2):
                    face = _side(u, i) * _side(v, j)
                    for k in range(2):
                        weight = face * _side(w, k)
                        row = start + _row(x + i, y + j, z + k, size, is_hashed, count)
                        for c in range(width):
                            out[row, c] += weight * gradient[p, level * width + c]


@compiled(parallel=True)
@no_type_check
def _backward_points(gradient, points, table, cells, offsets, hashed, out):
    width = table.shape[1]
    for p in numba.prange(len(points)):
        for level in range(len(cells)):
            size, start = cells[level], offsets[level]
            count = offsets[level + 1] - start
            x, u = _cell(points[p, 0], size)
            y, v = _cell(points[p, 1], size)
            z, w = _cell(points[p, 2], size)
            for corner in range(8):
                i, j, k = corner >> 2, corner >> 1 & 1, corner & 1
                row = start + _row(x + i, y + j, z + k, size, hashed[level], count)
                pull = np.float32(0.0)
                for c in range(width):
                    pull += table[row, c] * gradient[p, level * width + c]
                pull *= np.float32(size)
                a, b, d = _side(u, i), _side(v, j), _side(w, k)
                out[p, 0] += pull * b * d * (1 if i else -1)
                out[p, 1] += pull * a * d * (1 if j else -1)
                out[p, 2] += pull * a * b * (1 if k else -1)


def encode(
    points: Float[Tensor, "P 3"], table: Float[Tensor, "N C"], layout: HashLayout
) -> Float[Tensor, "P LC"]:
    """See `hash_grid.encode`; float32 on the CPU."""
    # level by level, so that threads do not write to the same cache lines
    out = np.zeros((len(layout.resolutions), len(points), table.shape[1]), dtype=np.float32)
    _forward(points.detach().contiguous().numpy(), table.detach().numpy(), *_arrays(layout), out)
    return from_numpy(out).transpose(0, 1).flatten(1)


def encode_backward(
    gradient: Float[Tensor, "P LC"],
    points: Float[Tensor, "P 3"],
    table: Float[Tensor, "N C"],
    layout: HashLayout,
    *,
    need_points: bool,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "P 3"] | None]:
    """See `hash_grid.encode_backward`; float32 on the CPU."""
    out = np.zeros(tuple(table.shape), dtype=np.float32)
    place = points.detach().contiguous()
    incoming = gradient.contiguous().numpy()
    _backward(incoming, place.numpy(), *_arrays(layout), out)
    if not need_points:
        return from_numpy(out), None
    pull = np.zeros((len(points), 3), dtype=np.float32)
    _backward_points(incoming, place.numpy(), table.detach().numpy(), *_arrays(layout), pull)
    free = ((place >= 0) & (place <= 1)).to(place.dtype)
    return from_numpy(out), from_numpy(pull) * free


def _arrays(layout: HashLayout) -> tuple[Any, Any, Any]:
    return np.array(layout.resolutions), np.array(layout.offsets), np.array(layout.hashed)
