"""Tangent frames of texture coordinates, for normal maps."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.types import PreparedMesh


def corner_tangents(mesh: PreparedMesh) -> Float[Tensor, "U 4"]:
    """For each texture coordinate the direction of growing u, unit, and the sign of the bitangent.

    As in glTF 2.0, section 3.7.2.1: the bitangent is sign (normal x tangent), and lies on the side of growing
    v. Directions are the area-weighted means over the faces of a texture coordinate; zero where none has an
    area in the image. The sign is that of most of the area.
    """
    a, b, c = (mesh.vertices[corner].double() for corner in mesh.faces.T)
    first, second = b - a, c - a
    a, b, c = (mesh.uv[corner].double() for corner in mesh.uv_faces.T)
    (x, y), (z, w) = (b - a).unbind(1), (c - a).unbind(1)
    sign = torch.sign(x * w - y * z)
    along = normalize((first * w[:, None] - second * y[:, None]) * sign[:, None], dim=1, eps=1e-20)
    area = torch.linalg.cross(first, second).norm(dim=1, keepdim=True)
    weighted = area * torch.cat([along, sign[:, None]], dim=1)
    total = weighted.new_zeros(len(mesh.uv), 4)
    for corner in mesh.uv_faces.T.contiguous():
        total.index_add_(0, corner, weighted)
    side = torch.where(total[:, 3:] < 0, -1.0, 1.0).to(total)
    return torch.cat([normalize(total[:, :3], dim=1, eps=1e-20), side], dim=1).float()
