"""Low frequencies of the difference between a field and a source texture."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.geometry.own_uv import draw_atlas, texel_centres
from pgc3d.interfaces import Rasterizer
from pgc3d.representation.refinement import PIXELS, Refinements
from pgc3d.types import PreparedMesh, Step

CELLS = 64  # of a step, in which a field is compared with the source
ATLAS = 256  # texels a side whose points a field is compared at


class FieldCells:
    """Points of a surface by the cells of its textures."""

    def __init__(
        self,
        points: Float[Tensor, "P 3"],
        uv: Float[Tensor, "P 2"],
        sets: Int[Tensor, " P"],
        refinement: Refinements,
    ) -> None:
        """Sort points, where a field is evaluated, with their texture coordinates by cells."""
        count = refinement.parts[0].cells
        place = ((uv - uv.floor()) * count).long().clamp(max=count - 1)
        key = (sets * count + place[:, 1]) * count + place[:, 0]
        order = torch.argsort(key, stable=True)
        sizes = torch.bincount(key)
        sizes = sizes[sizes > 0]
        starts = sizes.cumsum(0) - sizes
        width = torch.arange(int(sizes.max()), device=points.device)
        self.rows = order[(starts[:, None] + width).clamp(max=len(order) - 1)]  # [cells, points]
        self.inside = (width < sizes[:, None]).float()
        self.points, self.refinement = points, refinement
        self.source = refinement.source(sets, uv, torch.zeros_like(uv[:, 0]))  # with the mask

    def loss(
        self, values: Callable[[Float[Tensor, "P 3"]], Float[Tensor, "P C"]], step: Step
    ) -> Float[Tensor, ""]:
        """An unbiased estimate of `Refinements.low_frequencies` from some of the cells."""
        device = self.points.device
        chosen = torch.randint(len(self.rows), (CELLS,), generator=step.generator("cells"))
        chosen = chosen.to(device, non_blocking=True)
        rows, inside = self.rows.index_select(0, chosen), self.inside.index_select(0, chosen)
        flat = rows.reshape(-1)
        source = self.source.index_select(0, flat)
        change = source[:, 3:] * (values(self.points.index_select(0, flat))[:, :3] - source[:, :3])
        sums = (change.view(*rows.shape, 3) * inside[..., None]).sum(1)
        share = inside.sum(1) / self.inside.sum() * (len(self.rows) / CELLS)
        means = sums / inside.sum(1, keepdim=True)
        return self.refinement.keep * PIXELS * (share[:, None] * means.square()).sum()


def atlas_points(
    mesh: PreparedMesh, index: int, positions: Float[Tensor, "V 3"], rasterizer: Rasterizer
) -> tuple[Float[Tensor, "P 3"], Float[Tensor, "P 2"]]:
    """Points of a texture set, with their texture coordinates, at the centres of texels of a square image.

    Args:
        mesh: its faces and texture coordinates.
        index: of the set.
        positions: of its vertices.
        rasterizer: on the device of both.
    """
    rows = mesh.faces_of(index)
    fragments = draw_atlas(mesh.uv, mesh.uv_faces[rows], ATLAS, rasterizer)
    hit = fragments.triangle[0] >= 0
    points = rasterizer.interpolate(positions[None], fragments, mesh.faces[rows])[0][hit]
    return points, texel_centres(hit, ATLAS)
