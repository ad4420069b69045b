"""Mesh clean-up for export: removal of invalid faces and floating components, and decimation."""

import logging

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.errors import DivergedError
from pgc3d.geometry.components import components
from pgc3d.geometry.normals import vertex_normals_or_z
from pgc3d.types import Mesh

logger = logging.getLogger(__name__)

Array = NDArray[np.float64]
Index = NDArray[np.int64]


def clean(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    target_faces: int | None = None,
    keep_fraction: float = 0.02,
) -> Mesh:
    """Remove invalid faces and small components, then decimate; runs on the CPU.

    Removed are faces that are not finite, out of range, without area or duplicated, connected components
    with less than `keep_fraction` of the largest one's area, and vertices that no face uses. Normals are
    smooth; after a decimation they are those of the dense surface, so that the triangle count does not alter
    shading.

    Args:
        vertices: world positions.
        faces: counter-clockwise seen from outside.
        target_faces: upper bound on the faces; None keeps all.
        keep_fraction: 0 keeps every component, 1 only the largest.

    Raises:
        DivergedError: no face remains.
        ValueError: `target_faces` or `keep_fraction` is out of range.
    """
    if target_faces is not None and target_faces < 4:
        raise ValueError(f"target_faces must be at least 4, got {target_faces}")
    if not 0.0 <= keep_fraction <= 1.0:
        raise ValueError(f"keep_fraction must lie in [0, 1], got {keep_fraction}")
    points = vertices.detach().cpu().numpy().astype(np.float64)
    triangles = faces.detach().cpu().numpy().astype(np.int64)
    points, triangles = _valid(points, triangles)
    triangles = triangles[_large_components(points, triangles, keep_fraction)]
    points, triangles = _compact(points, triangles)
    normals = _vertex_normals(points, triangles)
    if target_faces is not None and len(triangles) > target_faces:
        points, triangles, normals = _decimate(points, triangles, target_faces)
    if len(triangles) == 0:
        raise DivergedError(
            f"the surface must have faces to export, got none of {len(faces)} usable; "
            "train longer or change the seed"
        )
    return Mesh(
        vertices=torch.from_numpy(points.astype(np.float32)),
        faces=torch.from_numpy(triangles),
        normals=torch.from_numpy(normals.astype(np.float32)),
    )


def _vertex_normals(points: Array, faces: Index) -> Array:
    normals = vertex_normals_or_z(torch.from_numpy(points), torch.from_numpy(faces)).numpy()
    return np.asarray(normals, dtype=np.float64)


def _normalized(vectors: Array) -> Array:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.maximum(length, 1e-30)
    unit[length[:, 0] < 1e-20] = (0.0, 0.0, 1.0)
    return unit


def _area_normals(points: Array, faces: Index) -> Array:
    corners = points[faces]
    return 0.5 * np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _valid(points: Array, faces: Index) -> tuple[Array, Index]:
    """The faces that are finite, in range, have an area and occur once; all vertices stay finite."""
    faces = faces[((faces >= 0) & (faces < len(points))).all(axis=1)]
    finite: NDArray[np.bool_] = np.asarray(np.all(np.isfinite(points), axis=1))
    faces = faces[finite[faces].all(axis=1)]
    points = np.where(finite[:, None], points, 0.0)
    area = np.linalg.norm(_area_normals(points, faces), axis=1)
    extent = np.ptp(points[faces].reshape(-1, 3), axis=0).max() if len(faces) else 0.0
    # The floor is relative, so that a mesh in millimetres and one in metres are treated alike.
    faces = faces[area > 1e-12 * extent**2]
    _, once = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return points, faces[np.sort(once)]


def _large_components(points: Array, faces: Index, keep_fraction: float) -> NDArray[np.bool_]:
    if len(faces) == 0:
        return np.zeros(0, dtype=bool)
    piece = components(faces, len(points))[faces[:, 0]]
    area = np.bincount(piece, np.linalg.norm(_area_normals(points, faces), axis=1))
    keep = np.greater_equal(area, keep_fraction * area.max())
    dropped = int((np.logical_not(keep) & (area > 0)).sum())
    if dropped:
        percent = 100 * keep_fraction
        logger.info("dropped %d floating components below %.1f %% of the largest", dropped, percent)
    return keep[piece]


def _compact(points: Array, faces: Index) -> tuple[Array, Index]:
    used, index = np.unique(faces, return_inverse=True)
    return points[used], index.reshape(-1, 3).astype(np.int64)


def _decimate(points: Array, faces: Index, target: int) -> tuple[Array, Index, Array]:
    """Quadric edge collapse; a vertex has the mean normal of the dense vertices that were merged into it."""
    import fast_simplification as simplification

    dense_normals = _vertex_normals(points, faces)
    _, _, collapses = simplification.simplify(points, faces, target_count=target, return_collapses=True)
    replayed = simplification.replay_simplification(points, faces, collapses)
    new_points, new_faces, owner = replayed[0].astype(np.float64), replayed[1].astype(np.int64), replayed[2]
    if len(new_faces) > target:
        logger.warning("decimation stopped at %d faces, the target is %d", len(new_faces), target)
    total = np.stack(
        [np.bincount(owner, dense_normals[:, axis], minlength=len(new_points)) for axis in range(3)], axis=1
    )
    sums = np.where(
        np.linalg.norm(total, axis=1, keepdims=True) > 1e-6, total, _vertex_normals(new_points, new_faces)
    )
    kept_points, kept_faces = _valid(new_points, new_faces)
    used = np.unique(kept_faces)
    compact_points, compact_faces = _compact(kept_points, kept_faces)
    return compact_points, compact_faces, _normalized(sums[used])
