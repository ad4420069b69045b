"""Edges of a triangle mesh from sorted half edges, without synchronising with the device."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

_PACKED_BITS = 21  # three vertex indices in one int64


@dataclass(frozen=True)
class EdgeTopology:
    """Edges of a mesh with the vertices opposite to them in up to two faces.

    `opposite[:, 1]` is -1 at a boundary. Rows with `edges[:, 0] == -1` are empty slots: on CUDA the number of
    edges is not read back, so there may be up to 3 F rows. A third face at an edge is ignored.
    """

    edges: Int[Tensor, "E 2"]
    opposite: Int[Tensor, "E 2"]


@torch.no_grad()
def closed_edges(faces: Int[Tensor, "F 3"], vertex_count: int) -> tuple[EdgeTopology, Int[Tensor, "E 2"]]:
    """The 3 F / 2 edges of a mesh on which every edge has exactly two faces, and those faces.

    A face with three equal vertices is padding, if that vertex is in no proper face and has a higher index
    than all vertices that are: its edges are empty slots after the others.
    """
    start, end, third = (faces.roll(-shift, dims=1).reshape(-1) for shift in range(3))
    low, high = torch.minimum(start, end).long(), torch.maximum(start, end).long()
    key, order = (low * vertex_count + high).sort()
    key = key[::2]
    low, high = key // vertex_count, key % vertex_count
    edges = torch.stack([torch.where(low < high, low, -1), high], dim=1)
    return EdgeTopology(edges, third[order].reshape(-1, 2)), (order // 3).reshape(-1, 2)


def sorted_topology(faces: Int[Tensor, "F 3"], vertex_count: int) -> EdgeTopology:
    """The edges by one sort of packed half edges, without synchronisation: 3 F rows, some of them empty."""
    corners = faces.long()
    start, end = corners.T.reshape(-1), corners.roll(-1, dims=1).T.reshape(-1)
    third = corners.roll(-2, dims=1).T.reshape(-1)
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    if vertex_count <= 1 << _PACKED_BITS:
        packed = torch.sort((low << (2 * _PACKED_BITS)) | (high << _PACKED_BITS) | third).values
        mask = (1 << _PACKED_BITS) - 1
        low, high, third = packed >> (2 * _PACKED_BITS), (packed >> _PACKED_BITS) & mask, packed & mask
    else:
        key, order = torch.sort(low * vertex_count + high)
        low, high, third = key // vertex_count, key % vertex_count, third[order]
    # The first of equal half edges takes the second's opposite vertex; the others become empty slots.
    same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    border = torch.zeros(1, dtype=torch.bool, device=low.device)[: len(low)]
    has_previous, has_next = torch.cat([border, same]), torch.cat([same, border])
    edges = torch.stack([torch.where(has_previous, -1, low), high], dim=1)
    opposite = torch.stack([third, torch.where(has_next, third.roll(-1), -1)], dim=1)
    return EdgeTopology(edges, opposite)
