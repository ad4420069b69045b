"""Alignment of a result with the ground truth: centre and scale, and optionally the orientation."""

from dataclasses import replace
from itertools import permutations, product

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.evaluation.shape_metrics import chamfer_distance, nearest_distances
from pgc3d.geometry.sampling import sample_surface
from pgc3d.mesh_io.asset import MeshAsset

YAWS = 6  # rotations about y within 90 degrees, between the axis rotations
COARSE_POINTS, FINE_POINTS = 512, 1024
REFINED = 4  # initial rotations that ICP refines
ITERATIONS = 30


def normalize_mesh(asset: MeshAsset, *, like: MeshAsset | None = None) -> MeshAsset:
    """The mesh with its bounding box centred at the origin and its farthest vertex at radius 1.

    Vertices that no face uses do not enter the extent; they are transformed like the others.

    Args:
        asset: the mesh to transform.
        like: a mesh whose centre and radius are used instead, which keeps the two meshes' relative placement.

    Raises:
        InputError: a mesh has no finite extent.
    """
    center, radius = _extent(asset)
    if like is not None:
        center, radius = _extent(like)
    return replace(asset, vertices=(asset.vertices - center) / radius)


def _extent(asset: MeshAsset) -> tuple[Float[Tensor, " 3"], Float[Tensor, ""]]:
    """Centre of the bounding box, and the farthest vertex's distance from it."""
    used = asset.vertices[torch.unique(asset.faces)]
    if not len(used) or not bool(torch.isfinite(used).all()):
        raise InputError("a mesh to be compared must have finite vertices and at least one face, got others")
    center = (used.amax(0) + used.amin(0)) / 2
    radius = (used - center).norm(dim=-1).max()
    if not radius > 0:
        raise InputError("a mesh to be compared must have an extent, got all its vertices at one place")
    return center, radius


def rigid(asset: MeshAsset, rotation: Float[Tensor, "3 3"], translation: Float[Tensor, " 3"]) -> MeshAsset:
    """The mesh after a rotation and then a translation; normals are rotated too."""
    return replace(
        asset,
        vertices=asset.vertices @ rotation.T + translation,
        normals=asset.normals @ rotation.T,
    )


def align(asset: MeshAsset, truth: MeshAsset, *, seed: int) -> tuple[MeshAsset, Float[Tensor, "3 3"]]:
    """The rigid motion of a normalised mesh onto a normalised truth: the moved mesh and its rotation.

    All 24 rotations that map axes to axes, times rotations about y, are tried on a few points; the best ones
    are refined by iterative closest point (Besl and McKay 1992), with translation. Reflections are not tried,
    so a mirrored object stays mirrored. The distance, on the points used, is never larger than without
    rotation.
    """
    source, target = (
        sample_surface(mesh.vertices, mesh.faces, FINE_POINTS, torch.Generator().manual_seed(seed))[
            0
        ].double()
        for mesh in (asset, truth)
    )
    starts = candidate_rotations().to(source)
    few = target[:COARSE_POINTS]
    turned = source[:COARSE_POINTS] @ starts.transpose(1, 2)  # [K, P, 3]
    distance = torch.cdist(turned, few.expand(len(starts), -1, -1))
    score = distance.amin(1).mean(1) + distance.amin(2).mean(1)
    best = [0, *score.argsort()[:REFINED].tolist()]  # the first candidate is the identity
    refined = [_closest_points(source, target, starts[index]) for index in best]
    unturned = (torch.eye(3).to(source), source.new_zeros(3))
    rotation, translation = min([unturned, *refined], key=lambda pose: _score(source, target, *pose))
    return rigid(asset, rotation.float(), translation.float()), rotation.float()


def candidate_rotations() -> Float[Tensor, "K 3 3"]:
    """The 24 proper axis rotations times rotations about y by less than 90 degrees, the identity first."""
    identity = torch.eye(3)
    axes = [
        identity[list(order)] * torch.tensor(signs)[:, None]
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]
    proper = torch.stack([matrix for matrix in axes if torch.linalg.det(matrix) > 0])
    angle = torch.arange(YAWS) * (torch.pi / 2 / YAWS)
    yaw = torch.eye(3).repeat(YAWS, 1, 1)
    yaw[:, 0, 0] = yaw[:, 2, 2] = torch.cos(angle)
    yaw[:, 0, 2], yaw[:, 2, 0] = torch.sin(angle), -torch.sin(angle)
    return (yaw[:, None] @ proper).reshape(-1, 3, 3)


def _closest_points(source: Tensor, target: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and translation of iterative closest point (ICP) from an initial rotation."""
    translation = source.new_zeros(3)
    for _ in range(ITERATIONS):
        moved = source @ rotation.T + translation
        nearest = target[torch.cdist(moved, target).argmin(1)]
        rotation, translation = _rigid_fit(source, nearest)
    return rotation, translation


def _rigid_fit(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation and translation of least squares (Kabsch 1976), never a reflection."""
    center, goal = source.mean(0), target.mean(0)
    u, _, vt = torch.linalg.svd((target - goal).T @ (source - center))
    sign = torch.ones(3).to(source)
    sign[2] = torch.linalg.det(u @ vt).sign()
    rotation = (u * sign) @ vt
    return rotation, goal - rotation @ center


def _score(source: Tensor, target: Tensor, rotation: Tensor, translation: Tensor) -> float:
    return chamfer_distance(*nearest_distances(source @ rotation.T + translation, target))
