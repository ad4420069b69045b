"""Triangulation of polygons of any corner count, exact and with the same orientation."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from pgc3d.mesh_io.ears import clip_ears

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHUNK = 1 << 20  # corners that are processed together
FLAT = 1e-10  # sine of the angle below which three corners lie on one line
MAX_FANS = 12  # corners up to which a fan from each corner is tried
MAX_CORNERS = 25_000  # of a polygon that no fan covers: clipping ears takes the square of it at worst


def triangulate(
    vertices: Float[np.ndarray, "V 3"],
    corners: Int[np.ndarray, " C"],
    counts: Int[np.ndarray, " P"],
) -> tuple[Int[np.ndarray, "T 3"], Int[np.ndarray, " T"]]:
    """Triangles of polygons that lie one after the other in `corners`, in their order.

    A polygon of n corners becomes n - 2 triangles, whose corners are positions in `corners`; one with fewer
    than three becomes none. No vertex is added. A fan from the first corner is kept where all its triangles
    face as the polygon does (always, if it is convex), else a fan from another corner or clipped ears are
    taken.

    Returns:
        Positions in `corners` [T, 3], and the polygon of each triangle [T].

    Raises:
        ValueError: a polygon that is not convex has more than MAX_CORNERS corners.
    """
    shares = np.maximum(counts - 2, 0)
    first_triangle = np.cumsum(shares) - shares
    first_corner = np.cumsum(counts) - counts
    triangles = np.empty((int(shares.sum()), 3), dtype=np.int64)
    for count in np.unique(counts[counts >= 3]).tolist():
        group = np.flatnonzero(counts == count)
        for part in np.array_split(group, -(-len(group) * count // CHUNK)):
            places = first_corner[part][:, None] + np.arange(count)
            local = _cut(vertices, corners[places]) if count > 3 else np.array([[[0, 1, 2]]])
            row = first_triangle[part][:, None] + np.arange(count - 2)
            triangles[row] = first_corner[part][:, None, None] + local
    return triangles, np.repeat(np.arange(len(counts)), shares)


def _cut(vertices: Floats, index: Ints) -> Ints:
    """Local corners [K, n - 2, 3] for K polygons [K, n] of the same corner count."""
    with np.errstate(all="ignore"):  # of what is not finite, any triangles do
        points = vertices[index]
        points = points - points[:, :1]
        normal = _area_vectors(points).sum(axis=1)
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-300)
        count = index.shape[1]
        local = np.tile(_fan(count, 0), (len(index), 1, 1))
        remaining = np.flatnonzero(~(_facing(points, normal) > FLAT).all(axis=1))
        if count <= MAX_FANS:
            remaining = _best_fans(points, normal, local, remaining)
        for k in remaining.tolist():
            local[k] = _ears(points[k], normal[k], local[k])
    return local


def _fan(count: int, start: int) -> Ints:
    step = np.arange(1, count - 1)
    return (np.stack([np.zeros_like(step), step, step + 1], axis=1) + start) % count


def _area_vectors(points: Floats) -> Floats:
    """Of a fan from the first corner, the origin: normals as long as twice the areas [K, n - 2, 3]."""
    return np.cross(points[:, 1:-1], points[:, 2:])


def _facing(points: Floats, normal: Floats) -> Floats:
    """Of the fan from the first corner: sine of each triangle's angle there about the normal [K, n - 2]."""
    lengths = np.linalg.norm(points[:, 1:], axis=2)
    area = np.einsum("kij,kj->ki", _area_vectors(points), normal)
    sines: Floats = area / np.maximum(lengths[:, :-1] * lengths[:, 1:], 1e-300)
    return sines


def _best_fans(points: Floats, normal: Floats, local: Ints, remaining: Ints) -> Ints:
    """Write the best fan to `local` where one covers the polygon (for quads always).

    Returns:
        The remaining polygons.
    """
    count = points.shape[1]
    points, normal = points[remaining], normal[remaining]
    best, start = np.full(len(remaining), -np.inf), np.zeros(len(remaining), dtype=np.int64)
    for k in range(2 if count == 4 else count):
        turned = np.roll(points, -k, axis=1)
        worst = _facing(turned - turned[:, :1], normal).min(axis=1)
        better = worst > best
        best[better], start[better] = worst[better], k
    chosen = np.ones(len(remaining), dtype=bool) if count == 4 else best > FLAT
    local[remaining[chosen]] = (_fan(count, 0) + start[chosen, None, None]) % count
    return remaining[~chosen]


def _ears(points: Floats, normal: Floats, fan: Ints) -> Ints:
    """Triangles of one polygon [n, 3] in the plane across its normal; the fan where it has no area."""
    if not np.linalg.norm(normal) > 0.5 or not np.isfinite(points).all():
        return fan
    if len(points) > MAX_CORNERS:
        raise ValueError(
            f"a face that is not convex must have at most {MAX_CORNERS} corners, got {len(points)}; "
            "triangulate the mesh"
        )
    across = np.cross(np.eye(3)[np.abs(normal).argmin()], normal)
    across /= np.linalg.norm(across)
    return clip_ears(np.stack([points @ across, points @ np.cross(normal, across)], axis=1))
