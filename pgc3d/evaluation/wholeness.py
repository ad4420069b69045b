"""Whether a surface is whole: its components, handles and enclosed voids, and its silhouettes against others.

A part that broke off is a component more, a hole that closed a handle less, a second surface inside the first
a void. Nothing of that is visible in colours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.geometry.components import components
from pgc3d.interfaces import Rasterizer
from pgc3d.rendering.mesh_renderer import project
from pgc3d.types import Cameras

LEAST_AREA = 0.01  # fraction of the whole area from which on a component counts
BORDER = 0.12  # distance of a colour from the background's, from which on a pixel shows an object

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Wholeness:
    """The topology of a surface, of components with at least a fraction of its area."""

    components: int  # that face outwards, or have a boundary
    handles: int  # sum of their genera: 1 for a torus, as for the handle of a cup
    voids: int  # closed components that face inwards
    boundaries: int  # loops of edges with one face; 0 for a closed surface
    largest: float  # fraction of the area that the largest component has


def wholeness(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], *, least_area: float = LEAST_AREA
) -> Wholeness:
    """Count the components, handles and voids of a mesh.

    Vertices at one position are one vertex, since files have several at seams of textures. With the Euler
    characteristic of a component V - E + F = 2 - 2 genus - boundaries, where edges with more than two faces
    do not occur; where they do, the genus is rounded down, and never below 0.

    Args:
        vertices: positions.
        faces: counter-clockwise seen from outside.
        least_area: fraction of the whole area, in [0, 1], below which a component does not count.

    Raises:
        ValueError: there is no face, or `least_area` is out of range.
    """
    if not 0.0 <= least_area <= 1.0:
        raise ValueError(f"least_area must lie in [0, 1], got {least_area}")
    points, corners = welded(vertices, faces)
    if not len(corners):
        raise ValueError("a mesh must have faces to be measured, got none")
    label = components(corners, len(points))[corners[:, 0]]
    _, owner = np.unique(label, return_inverse=True)
    area = np.bincount(owner, _areas(points, corners))
    volume = np.bincount(owner, _volumes(points, corners))
    kept = np.flatnonzero(area >= least_area * area.sum())
    counts = [_handles(corners[owner == part]) for part in kept]
    void = [bool(volume[part] < 0 and loops == 0) for part, (_, loops) in zip(kept, counts, strict=True)]
    return Wholeness(
        components=void.count(False),
        handles=sum(genus for (genus, _), inside in zip(counts, void, strict=True) if not inside),
        voids=void.count(True),
        boundaries=sum(loops for _, loops in counts),
        largest=float(area.max() / area.sum()),
    )


def welded(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Float[np.ndarray, "P 3"], Int[np.ndarray, "K 3"]]:
    """One vertex for each position, and the faces with three different vertices."""
    given = vertices.detach().cpu().double().numpy()
    points, owner = np.unique(given, axis=0, return_inverse=True)
    corners = owner.reshape(-1)[faces.detach().cpu().long().numpy()].astype(np.int64)
    first, second, third = corners.T
    return points, corners[(first != second) & (second != third) & (third != first)]


def _areas(points: NDArray[np.float64], faces: Index) -> NDArray[np.float64]:
    first, second, third = points[faces].transpose(1, 0, 2)
    return np.asarray(np.linalg.norm(np.cross(second - first, third - first), axis=1) / 2)


def _volumes(points: NDArray[np.float64], faces: Index) -> NDArray[np.float64]:
    """Signed volumes of the tetrahedra below faces; those of a closed surface add up to what it encloses."""
    first, second, third = points[faces].transpose(1, 0, 2)
    return np.asarray((first * np.cross(second, third)).sum(1) / 6)


def _handles(faces: Index) -> tuple[int, int]:
    """Genus and number of boundary loops of a component."""
    sides = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    edges, uses = np.unique(sides, axis=0, return_counts=True)
    loops = boundary_loops(edges[uses == 1])
    characteristic = len(np.unique(faces)) - len(edges) + len(faces)
    return max(0, (2 - characteristic - loops) // 2), loops


def boundary_loops(edges: Int[np.ndarray, "E 2"]) -> int:
    """Connected components of the graph of edges with one face."""
    used, index = np.unique(edges, return_inverse=True)
    pairs = index.reshape(-1, 2).astype(np.int64)
    if not len(pairs):
        return 0
    flat = np.concatenate([pairs, pairs[:, 1:]], axis=1)
    return len(np.unique(components(flat, len(used))))


@torch.no_grad()
def mesh_silhouettes(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    cameras: Cameras,
    side: int,
    *,
    rasterizer: Rasterizer,
) -> Bool[Tensor, "B H W"]:
    """Where a mesh is visible, in square images of `side` pixels."""
    fragments = rasterizer.rasterize(project(vertices, cameras), faces, (side, side))
    return fragments.mask[..., 0] > 0


def image_silhouettes(images: Float[Tensor, "B H W 3"]) -> Bool[Tensor, "B H W"]:
    """Where images of one object on a plain background differ from the median colour of their borders."""
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], dim=1)
    background = border.median(dim=1).values[:, None, None]
    return (images - background).abs().amax(-1) > BORDER


def silhouette_iou(own: Bool[Tensor, "B H W"], others: Bool[Tensor, "N B H W"]) -> dict[str, float]:
    """Comparison of an object's silhouettes with those of N others of the same kind, from the same B views.

    Returns:
        silhouette_iou: intersection over union, mean over views and others. No two objects are equal, so
            that even one of the others reaches no more than `silhouette_level`.
        silhouette_level: that mean between two different others; absent for fewer than two.
        silhouette_missing: fraction of what most others cover that the object does not.
        silhouette_extra: fraction of what the object covers that none of the others does.
    """
    most = others.double().mean(0) > 0.5
    measures = {
        "silhouette_iou": _iou(own[None], others).mean().item(),
        "silhouette_missing": _fraction(most & ~own, most),
        "silhouette_extra": _fraction(own & ~others.any(0), own),
    }
    if len(others) > 1:
        pairs = [_iou(others[:-shift], others[shift:]) for shift in range(1, len(others))]
        measures["silhouette_level"] = torch.cat(pairs).mean().item()
    return measures


def _iou(first: Bool[Tensor, "N B H W"], second: Bool[Tensor, "M B H W"]) -> Float[Tensor, "M B"]:
    both, either = ((first & second).sum((2, 3)), (first | second).sum((2, 3)))
    return torch.where(either > 0, both / either.clamp_min(1), 1.0)


def _fraction(part: Bool[Tensor, "B H W"], whole: Bool[Tensor, "B H W"]) -> float:
    return float(part.sum() / whole.sum().clamp_min(1))
