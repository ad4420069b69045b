"""Which texels of a textured mesh cameras see, and the colours of those that no camera can see."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.exporting.bake import TexelSurface, fill, surface_texels
from pgc3d.geometry.normals import face_normals
from pgc3d.geometry.own_uv import draw_atlas, texel_centres
from pgc3d.rendering.visibility import SurfaceVisibility
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.types import Cameras

LEAST = 0.0005  # fraction that is worth a remark
SIDE = 256  # of the images of texels that are probed, at most


@dataclass(frozen=True)
class Coverage:
    """Fractions of the texels on a surface; together with `seen` they are 1."""

    unseen: float  # that a camera outside could see, and none of the run's did
    hidden: float  # inside, where no camera outside can see

    @property
    def seen(self) -> float:
        """The fraction that cameras of the run saw."""
        return 1.0 - self.unseen - self.hidden

    @property
    def remark(self) -> str:
        """A line for the user."""
        inside = f"; {self.hidden:.1%} lie inside, where none can see, and have their neighbours' colours"
        missed = f"; {self.unseen:.1%} could be seen and were not" if self.unseen >= LEAST else ""
        return (
            f"cameras saw {self.seen:.1%} of the texels" + (inside if self.hidden >= LEAST else "") + missed
        )


@dataclass(frozen=True)
class ProbedTexels:
    """Some texels of each texture set, on the surface, and whether a camera outside can see them."""

    points: Float[Tensor, "P 3"]  # in the world
    normals: Float[Tensor, "P 3"]
    uv: Float[Tensor, "P 2"]
    sets: Int[Tensor, " P"]
    weight: Float[Tensor, " P"]  # texels of the final images that one stands for
    reachable: Bool[Tensor, " P"]
    hidden: tuple[Bool[Tensor, "T T"], ...]  # for each set, an image of where no camera can see

    @torch.no_grad()
    def replace_hidden(
        self,
        textured: TexturedMesh,
        index: int,
        points: Float[Tensor, "P 3"],
        uv: Float[Tensor, "P 2"],
        values: Float[Tensor, "P C"],
    ) -> Float[Tensor, "P C"]:
        """The values of a set's texels, in hidden ones those of the nearest point that can be seen."""
        mask, size = self.hidden[index], len(self.hidden[index])
        if not bool(mask.any()) or not bool(self.reachable.any()):
            return values
        column = (uv[:, 0] * size).long().clamp(0, size - 1)
        row = ((1 - uv[:, 1]) * size).long().clamp(0, size - 1)
        inside = mask[row, column].nonzero()[:, 0]
        _, nearest = self._tree.query(points[inside].cpu().numpy())
        source = self._shown[torch.from_numpy(np.asarray(nearest)).to(self._shown.device)]
        filled = values.clone()
        filled[inside] = textured.texels(self.points[source], self.uv[source], self.sets[source])
        return filled

    @cached_property
    def _shown(self) -> Int[Tensor, " R"]:
        """Indices of the texels that a camera outside can see."""
        return self.reachable.nonzero()[:, 0]

    @cached_property
    def _tree(self) -> Any:
        """Their points, for every band of every texture set."""
        from scipy.spatial import KDTree

        return KDTree(self.points[self._shown].cpu().numpy())

    def coverage(self, cameras: Iterable[Cameras], visibility: SurfaceVisibility) -> Coverage:
        """The fractions of the texels that the cameras see, and that none can see."""
        seen = torch.zeros_like(self.reachable)
        for some in cameras:
            seen |= visibility(self.points, self.normals, some).any(dim=0)
        total = self.weight.sum()
        return Coverage(
            unseen=float((self.weight * (self.reachable & ~seen)).sum() / total),
            hidden=float((self.weight * (~self.reachable & ~seen)).sum() / total),
        )


@torch.no_grad()
def probe_texels(textured: TexturedMesh, visibility: SurfaceVisibility, *, texture_size: int) -> ProbedTexels:
    """The texels of smaller images of the same texture sets.

    No texel of an image that repeats, or that points of the surface share, counts as hidden; nor does one of
    a part that stands in the scene several times.
    """
    mesh = textured.mesh
    normals = normalize(face_normals(mesh.vertices, mesh.faces), dim=1)
    parts, masks = [], []
    for index, part in enumerate(mesh.sets):
        size = min(SIDE, part.side(texture_size))
        found, covered = _texels_of(textured, normals, index, size)
        points, towards, uv = found
        shown = visibility.reachable(points, towards)
        if part.shared or part.wraps or mesh.first_corners is not None:
            shown = torch.ones_like(shown)
        weight = torch.full_like(points[:, 0], (part.side(texture_size) / size) ** 2)
        sets = torch.full((len(points),), index, dtype=torch.int64, device=points.device)
        parts.append((points, towards, uv, sets, weight, shown))
        image = torch.zeros(size, size, 1, device=points.device)
        image[covered] = (~shown).to(image.dtype)[:, None]
        masks.append(fill(image, covered)[..., 0] > 0)
    points, towards, uv, sets, weight, shown = (torch.cat(column) for column in zip(*parts, strict=True))
    return ProbedTexels(points, towards, uv, sets, weight, shown, tuple(masks))


def _texels_of(
    textured: TexturedMesh, normals: Tensor, index: int, size: int
) -> tuple[Sequence[Tensor], Bool[Tensor, "T T"]]:
    """Points, normals and texture coordinates of a set's texels in an image of a size, and where they are."""
    mesh = textured.mesh
    rows = mesh.faces_of(index)
    surface = TexelSurface(mesh.vertices, mesh.faces[rows], mesh.uv, mesh.uv_faces[rows])
    points, covered = surface_texels(surface, texture_size=size, rasterizer=textured.rasterizer)
    triangle = draw_atlas(surface.uv, surface.uv_faces, size, textured.rasterizer).triangle[0]
    covered &= triangle >= 0
    towards = normals[rows][triangle[covered]]
    return (points[covered], towards, texel_centres(covered, size)), covered
