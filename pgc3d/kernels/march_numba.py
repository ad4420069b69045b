"""Samples on rays on the CPU; `rendering.rays.march` is the twin in plain torch and states what they are.

Only stations inside the unit ball are evaluated, and nothing is stored for those in empty cells.
`no_type_check` keeps run-time type checkers from wrapping what numba compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from pgc3d.kernels.compiled import compiled


@compiled()
@no_type_check
def _cell(place, size):
    """Index of a coordinate's cell along an axis of [-1, 1]."""
    return min(max(int((place + np.float32(1.0)) * np.float32(0.5 * size)), 0), size - 1)


@compiled(parallel=True)
@no_type_check
def _march(rays, occupied, stations, count, start, out):
    """Count the samples of each ray; where their first rows are given, also write them."""
    origin, direction, span, offset = rays
    points, distance, ray = out
    size, length = occupied.shape[0], np.float32(2.0 / stations)
    for r in numba.prange(len(offset)):
        found = 0
        for station in range(stations):
            along = span[0, r] + (np.float32(station) + offset[r]) * length
            if along >= span[1, r]:
                break
            x = origin[r, 0] + along * direction[r, 0]
            y = origin[r, 1] + along * direction[r, 1]
            z = origin[r, 2] + along * direction[r, 2]
            if occupied[_cell(x, size), _cell(y, size), _cell(z, size)]:
                if len(start):
                    row = start[r] + found
                    points[row, 0], points[row, 1], points[row, 2] = x, y, z
                    distance[row], ray[row] = along, r
                found += 1
        count[r] = found


def march(
    origin: Float[Tensor, "R 3"],
    direction: Float[Tensor, "R 3"],
    span: Float[Tensor, "2 R"],
    offset: Float[Tensor, " R"],
    occupied: Bool[Tensor, "N N N"],
    *,
    stations: int,
) -> tuple[
    Float[Tensor, "K 3"], Float[Tensor, " K"], Int[Tensor, " K"], Int[Tensor, " R"], Int[Tensor, " R"]
]:
    """All samples; float32 on the CPU.

    Args:
        origin: of the rays.
        direction: unit vectors.
        span: distances of entry to and exit from the unit ball.
        offset: of the first station, in [0, 1).
        occupied: by x, y and z.
        stations: on a diameter of the ball.

    Returns:
        Points, distances, and the index of the ray of each sample; the first row and the number of rows of
        each ray.
    """
    rays = tuple(tensor.contiguous().numpy() for tensor in (origin, direction, span, offset))
    grid, count = occupied.contiguous().numpy(), np.zeros(len(offset), np.int64)
    _march(rays, grid, stations, count, np.zeros(0, np.int64), _buffers(0))
    start, samples = np.cumsum(count) - count, _buffers(int(count.sum()))
    _march(rays, grid, stations, count, start, samples)
    points, distances, rays_of = (from_numpy(array) for array in samples)
    return points, distances, rays_of, from_numpy(start), from_numpy(count)


def _buffers(rows: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """For points, distances, and indices of rays."""
    return np.zeros((rows, 3), np.float32), np.zeros(rows, np.float32), np.zeros(rows, np.int64)
