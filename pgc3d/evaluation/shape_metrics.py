"""Shape metrics: Chamfer distance, F-score, volume IoU. Lengths are in radii of the truth."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.cameras import fill_distance, orbit
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Cameras

ROWS = 1024  # of the distance matrix at once
VISIBLE_RESOLUTION = 256
VISIBLE_CELL = 0.02  # one point for each cell, so that overlapping views do not add weight

Points = Float[Tensor, "P 3"]


def surface_cameras(views: int) -> Cameras:
    """Cameras evenly spaced over the sphere (Fibonacci lattice); the unit ball lies in the view of each."""
    index = torch.arange(views)
    elevation = torch.asin(1 - (2 * index + 1) / views)
    azimuth = torch.remainder(index * (math.pi * (3 - math.sqrt(5))), 2 * math.pi)
    fovy = torch.full((views,), math.radians(40.0))
    return orbit(azimuth, elevation, fill_distance(fovy, torch.full((views,), 0.95)), fovy)


@torch.no_grad()
def visible_points(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    views: int,
    count: int,
    generator: torch.Generator,
    rasterizer: Rasterizer,
) -> Float[Tensor, "N 3"]:
    """Points of the surface that is visible from outside: pixel hits of many views, one in each voxel.

    Args:
        vertices: world positions, in the unit ball.
        faces: their indices.
        views: number of cameras, see `surface_cameras`.
        count: upper bound on the points; fewer where the surface has fewer voxels, none where nothing is hit.
        generator: on the CPU.
        rasterizer: on the device of `vertices`.
    """
    cameras = surface_cameras(views).to(vertices.device)
    hits = []
    for matrix in cameras.clip_from_world:
        clip = torch.nn.functional.pad(vertices, (0, 1), value=1.0) @ matrix.T
        size = (VISIBLE_RESOLUTION, VISIBLE_RESOLUTION)
        fragments = rasterizer.rasterize(clip[None], faces, size)
        position = rasterizer.interpolate(vertices[None], fragments, faces)[0]
        hits.append(position[fragments.triangle[0] >= 0])
    points = torch.cat(hits)
    if not len(points):
        return points
    points = points[torch.randperm(len(points), generator=generator).to(points.device)]
    index = (points / VISIBLE_CELL).floor().long()
    index -= index.amin(0)
    _, rows, columns = (index.amax(0) + 1).tolist()
    # one number for each cell: `unique` of rows takes ten times as long
    number = (index[:, 0] * rows + index[:, 1]) * columns + index[:, 2]
    cell, owner = torch.unique(number, return_inverse=True)
    first = torch.full((len(cell),), len(points), device=points.device)
    first.scatter_reduce_(0, owner, torch.arange(len(points), device=points.device), "amin")
    chosen = torch.randperm(len(first), generator=generator)[:count].to(points.device)
    return points[first[chosen]]


def nearest_distances(
    first: Points, second: Float[Tensor, "Q 3"]
) -> tuple[Float[Tensor, " P"], Float[Tensor, " Q"]]:
    """Euclidean distance of every first point to the nearest second one, and the reverse."""
    forward, backward = [], second.new_full((len(second),), torch.inf)
    for rows in torch.split(first, ROWS):
        # not by matrix products, which lose half of the digits of small distances
        distance = torch.cdist(rows, second, compute_mode="donot_use_mm_for_euclid_dist")
        forward.append(distance.amin(1))
        backward = torch.minimum(backward, distance.amin(0))
    return torch.cat(forward), backward


def chamfer_distance(forward: Float[Tensor, " P"], backward: Float[Tensor, " Q"]) -> float:
    """Mean of the two mean Euclidean distances (not squared) to the nearest point of the other surface."""
    return (forward.mean().item() + backward.mean().item()) / 2


def f_score(forward: Float[Tensor, " P"], backward: Float[Tensor, " Q"], threshold: float) -> float:
    """Harmonic mean of precision and recall at a distance `threshold` (Knapitsch et al. 2017), in [0, 1]."""
    precision = (forward <= threshold).double().mean().item()
    recall = (backward <= threshold).double().mean().item()
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


def volume_iou(
    first: tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]],
    second: tuple[Float[Tensor, "W 3"], Int[Tensor, "G 3"]],
    *,
    resolution: int,
) -> float:
    """Intersection over union of the volumes that two meshes enclose, on one cubic grid around both.

    A voxel is enclosed where it cannot be reached from outside, see `kernels.voxels_numba`. The value is 1
    where neither mesh has a voxel.

    Args:
        first: vertices and faces.
        second: likewise.
        resolution: voxels along each side of the grid.
    """
    from pgc3d.kernels.voxels_numba import solid_voxels

    extent = 1.02 * max(vertices.abs().max().item() for vertices, _ in (first, second))
    a, b = (
        solid_voxels(vertices.cpu().numpy(), faces.cpu().numpy(), resolution=resolution, extent=extent)
        for vertices, faces in (first, second)
    )
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0
