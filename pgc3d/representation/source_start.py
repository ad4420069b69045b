"""The colours of a textured mesh before the first step, taken from its source textures."""

import torch
from torch import Tensor

from pgc3d.representation.fields import fit_field
from pgc3d.representation.image_texture import ImageTextures
from pgc3d.representation.textured_mesh import TexturedMesh

STEPS, BATCH = 300, 4096  # of the regression of a field


@torch.no_grad()
def start_from_source(textured: TexturedMesh, generator: torch.Generator) -> None:
    """Set the base colours to those of the sources: images exactly, a field by a regression.

    The other channels stay as they are. `generator`, on the CPU, draws the points of the regression.
    """
    refinement, texture = textured.refinement, textured.texture
    if refinement is None:
        raise ValueError("colours that start from a source must have one, got none")
    if isinstance(texture, ImageTextures):
        for index, part in enumerate(refinement.parts):
            texture[index].image[..., :3].copy_(part.image)
        return
    cells = textured.field_cells()
    own = texture.values(cells.points)
    target = torch.cat([cells.source[:, :3], own[:, 3:]], dim=1)

    def draw() -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(target), (BATCH,), generator=generator).to(target.device)
        return cells.points[chosen], target[chosen]

    with torch.enable_grad():
        fit_field(texture, draw, steps=STEPS)
