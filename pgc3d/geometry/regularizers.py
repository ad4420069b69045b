"""Regularisers of triangle meshes and of SDF grids: differentiable scalars.

Where a `count` is given, a tensor on the device, only the first rows enter and the others are padding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from pgc3d.geometry.normals import face_normals, face_vectors


def _mean(values: Tensor, count: Tensor | None) -> Tensor:
    if count is None:
        return values.mean()
    counted = torch.arange(len(values), device=values.device) < count
    return torch.where(counted, values, 0.0).sum() / count.clamp(min=1)


@torch.no_grad()
def adjacent_faces(faces: Int[Tensor, "F 3"], *, closed: bool = False) -> Int[Tensor, "E 2"]:
    """Pairs of faces that share an edge; on an edge of more than two faces, consecutive ones are paired.

    With `closed` every edge must have exactly two faces; this avoids a synchronisation with CUDA.
    """
    start, end = faces.reshape(-1), faces.roll(-1, dims=1).reshape(-1)
    low, high = torch.minimum(start, end).long(), torch.maximum(start, end).long()
    key, order = (low * (1 << 31) + high).sort()
    face = order // 3
    if closed:
        return face.reshape(-1, 2)
    same = key[1:] == key[:-1]
    return torch.stack([face[:-1][same], face[1:][same]], dim=-1)


def normal_consistency(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    pairs: Int[Tensor, "E 2"] | None = None,
    *,
    normals: Float[Tensor, "F 3"] | None = None,
    count: Int[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """Mean of 1 - cos of the angle between adjacent faces: 0 when flat, 2 when folded.

    `pairs` (from `adjacent_faces`) and the unit face `normals` are computed when they are not given; `count`
    is that of the pairs.
    """
    if pairs is None:
        pairs = adjacent_faces(faces)
    if normals is None:
        normals = face_normals(vertices, faces)
    if len(pairs) == 0:
        return vertices.sum() * 0.0
    first, second = normals.index_select(0, pairs[:, 0]), normals.index_select(0, pairs[:, 1])
    return _mean(1.0 - (first * second).sum(-1), count)


def laplacian(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], *, count: Int[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Mean squared length of the uniform Laplacian: the mean of a vertex's neighbours minus the vertex.

    Neighbours are counted once per shared face; on a closed mesh that is the plain mean. `count` is that of
    the vertices.
    """
    if len(faces) == 0:
        return vertices.sum() * 0.0
    corners = vertices.index_select(0, faces.reshape(-1)).reshape(-1, 3, 3)
    others = corners.sum(dim=1, keepdim=True) - corners
    flat = faces.reshape(-1)
    total = torch.zeros_like(vertices).index_add(0, flat, others.reshape(-1, 3))
    uses = torch.zeros_like(vertices[:, :1]).index_add(0, flat, vertices.new_full((len(flat), 1), 2.0))
    return _mean((total / uses.clamp(min=1.0) - vertices).square().sum(-1), count)


def area(vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, ""]:
    """Area of the surface: half the sum of |(b - a) x (c - a)|."""
    return face_vectors(vertices, faces).square().sum(-1).clamp(min=1e-20).sqrt().sum() / 2


def eikonal(sdf: Float[Tensor, "X Y Z"], cell: float) -> Float[Tensor, ""]:
    """Mean of (|grad s| - 1)^2 with forward differences (IGR, Gropp et al. 2020); `cell` is the spacing."""
    corner = sdf[:-1, :-1, :-1]
    differences = (sdf[1:, :-1, :-1] - corner, sdf[:-1, 1:, :-1] - corner, sdf[:-1, :-1, 1:] - corner)
    squared = sum((d.square() for d in differences), start=torch.full_like(corner, 1e-12).detach())
    return (squared.sqrt() / cell - 1.0).square().mean()


def sign_changes(
    first_sdf: Float[Tensor, " E"], second_sdf: Float[Tensor, " E"], *, count: Int[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy between the signs at both ends of each cut edge; it removes interior surfaces.

    The mean of BCE(s_a, [s_b > 0]) + BCE(s_b, [s_a > 0]) with logits s (Munkberg et al. 2022, eq. 2).
    """
    if first_sdf.numel() == 0:
        return first_sdf.sum() * 0.0
    counted = None
    if count is not None:
        counted = (torch.arange(len(first_sdf), device=first_sdf.device) < count).to(first_sdf)
        counted = counted * (len(first_sdf) / count.clamp(min=1))
    first = binary_cross_entropy_with_logits(first_sdf, (second_sdf > 0).to(first_sdf), counted)
    return first + binary_cross_entropy_with_logits(second_sdf, (first_sdf > 0).to(second_sdf), counted)
