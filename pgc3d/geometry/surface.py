"""Random points on a surface."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry.normals import face_vectors
from pgc3d.types import UvMesh


def sample_surface(
    mesh: UvMesh, count: int, generator: torch.Generator
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points with their faces' unit normals, evenly over the area; mesh and generator are on the CPU.

    Face by face through the summed areas: `torch.multinomial` stops at 2^24 entries.
    """
    vectors = face_vectors(mesh.vertices, mesh.faces)
    summed = vectors.norm(dim=1).double().cumsum(0)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * summed[-1]
    face = torch.searchsorted(summed, drawn, right=True).clamp(max=len(summed) - 1)
    first, second = torch.rand(2, count, 1, generator=generator)
    root = first.sqrt()  # Osada et al. 2002, eq. 1
    a, b, c = (mesh.vertices[mesh.faces[face, corner]] for corner in range(3))
    return (1 - root) * a + root * (1 - second) * b + root * second * c, normalize(vectors[face], dim=1)
