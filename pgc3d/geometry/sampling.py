"""Random points on a surface."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry.normals import face_vectors


def sample_surface(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    count: int,
    generator: torch.Generator,
    *,
    weight: Float[Tensor, " F"] | None = None,
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]:
    """Points with their faces' unit normals; `generator` is on the CPU.

    They are uniform over the area, or over each face with as many points as its `weight`.

    Raises:
        ValueError: the surface has no area, or no weight.
    """
    vectors = face_vectors(vertices, faces)
    # by inversion, because multinomial takes at most 2^24 faces and rounds small ones away
    summed = (vectors.norm(dim=-1) if weight is None else weight).double().cpu().cumsum(0)
    if not len(summed) or not summed[-1] > 0:
        raise ValueError("a sampled surface must have an area, got none")
    drawn = torch.rand(count, generator=generator, dtype=torch.float64) * summed[-1]
    face = torch.searchsorted(summed, drawn, right=True).clamp(max=len(summed) - 1).to(vertices.device)
    u, v = torch.rand(2, count, 1, generator=generator).to(vertices.device)
    root = u.sqrt()  # Osada et al. 2002, eq. 1
    a, b, c = vertices[faces[face]].unbind(1)
    points: Tensor = (1 - root) * a + root * (1 - v) * b + root * v * c
    return points, normalize(vectors[face], dim=1)
