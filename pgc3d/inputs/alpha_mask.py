"""Holes that a material cuts by its alpha channel (glTF's alphaMode MASK, map_d of an OBJ)."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.mesh_io.colors import alpha_channel, transformed
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh
from pgc3d.rendering.mesh_renderer import sample_texture
from pgc3d.types import Cutout

FINEST = 1 / 256  # edge of the smallest triangles, where the mesh has radius 1: a pixel of 512
COARSEST = 8  # such edges, above which a face of one look may still have holes between the samples
MOST = 400_000  # triangles
LATTICE = 4  # intervals of a face's edge between samples of alpha

Corners = Float[Tensor, "N 3 3"]


def cut_holes(
    source: SourceMesh, vertices: Float[Tensor, "V 3"], notify: Callable[[str], None] = lambda _: None
) -> Cutout | None:
    """The visible parts of faces with holes; None where there are no holes.

    Faces are divided in four until a triangle has one look, or its edges are about as long as a pixel.

    Args:
        source: the mesh with its materials, whose alpha channels are opened here.
        vertices: in the world, where the mesh has radius 1.
        notify: called with a line about what was cut.
    """
    if source.uv is None or source.uv_faces is None or source.face_material is None:
        return None
    whole = torch.ones(len(source.faces), dtype=torch.bool)
    found: list[tuple[Tensor, Corners]] = []
    for index in torch.unique(source.face_material).tolist():
        material = source.materials[index] if index >= 0 else SourceMaterial()
        faces = ((source.face_material == index) & (source.uv_faces >= 0).all(dim=1)).nonzero()[:, 0]
        opaque = _look(material, transformed(source.uv, material), source.uv_faces) if len(faces) else None
        if opaque is not None:
            found.append(_divided(faces, vertices[source.faces], opaque))
            whole[faces] = False
    if not found:
        return None
    notify(f"alpha channels cut holes into {int((~whole).sum())} faces; renders have them too")
    return Cutout(whole, torch.cat([face for face, _ in found]), torch.cat([place for _, place in found]))


def _look(
    material: SourceMaterial, uv: Tensor, uv_faces: Tensor
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """A function whether points in faces are opaque; None where all are."""
    channel = alpha_channel(material) if material.alpha == "MASK" else None
    if channel is None:
        return None
    levels = torch.from_numpy(np.array(channel, dtype=np.float32))[..., None] / 255

    def opaque(faces: Int[Tensor, " N"], points: Float[Tensor, "N P 3"]) -> Bool[Tensor, "N P"]:
        place = (points @ uv[uv_faces[faces]]).flatten(0, 1)
        alpha = sample_texture(levels, place, material.wrap) * material.color[3]
        return alpha.view(points.shape[:2]) >= material.cutoff

    return opaque


def _divided(
    faces: Tensor, triangles: Float[Tensor, "F 3 3"], opaque: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Corners]:
    """The opaque parts of faces: faces and barycentric corners; coarser where they would be too many."""
    finest = FINEST
    while True:
        divided = _divide(faces, triangles, opaque, finest)
        if len(divided[0]) <= max(MOST, 4 * len(faces)):
            return divided
        finest *= 2


def _divide(
    faces: Tensor, triangles: Tensor, opaque: Callable[[Tensor, Tensor], Tensor], finest: float
) -> tuple[Tensor, Corners]:
    steps = [(a, b) for a in range(LATTICE + 1) for b in range(LATTICE + 1 - a)]
    lattice = torch.tensor([[a, b, LATTICE - a - b] for a, b in steps], dtype=torch.float32) / LATTICE
    corners = torch.eye(3).expand(len(faces), 3, 3)
    kept: list[tuple[Tensor, Corners]] = [(faces[:0], corners[:0])]
    while len(faces):
        share = opaque(faces, lattice @ corners).float().mean(dim=1)
        points = corners @ triangles[faces]
        longest = (points - points.roll(1, 1)).norm(dim=2).amax(dim=1)
        mixed = (share > 0) & (share < 1)
        again = (mixed & (longest > finest)) | (longest > COARSEST * finest)
        ready = ~again & (share >= 0.5)
        kept.append((faces[ready], corners[ready]))
        faces, corners = faces[again].repeat_interleave(4), _quarters(corners[again])
    return torch.cat([face for face, _ in kept]), torch.cat([place for _, place in kept])


def _quarters(corners: Corners) -> Float[Tensor, "M 3 3"]:
    """The four triangles between the corners and the middles of the edges of each."""
    a, b, c = corners.unbind(1)
    ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return torch.stack([torch.stack(part, dim=1) for part in parts], dim=1).flatten(0, 1)
