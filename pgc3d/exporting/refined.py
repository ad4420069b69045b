"""The images of refined textures: the source, byte for byte, plus the change where there is one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from pgc3d.exporting.bake import TexelSurface, fill, surface_texels
from pgc3d.exporting.roundtrip import render_asset
from pgc3d.geometry.own_uv import texel_centres
from pgc3d.geometry.uv import PADDING
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.representation.image_texture import ImageTextures
from pgc3d.representation.refinement import Refinement, Refinements
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.types import Rendering, Views

LEVELS = 255


@dataclass(frozen=True)
class TextureChange:
    """What a run changed of its source textures, all of them together."""

    texels: int
    changed: float  # fraction of the texels that differ from the source in any channel
    largest: int  # change of a channel, in levels of 255
    bound: int  # of this change, which no texel exceeds
    included: float  # fraction of the texels that the masks include

    @property
    def remark(self) -> str:
        """A noun phrase for the report."""
        return (
            f"{self.changed:.1%} of the texels changed, by at most {self.largest} levels where {self.bound} "
            "were allowed"
        )


@torch.no_grad()
def with_refined(
    asset: MeshAsset, textured: TexturedMesh, refinement: Refinements, *, rasterizer: Rasterizer
) -> tuple[MeshAsset, TextureChange]:
    """An asset of a textured mesh with the images of `refined_texture` as base colours, and the change."""
    images = [
        refined_texture(textured, refinement.parts[index], index, rasterizer=rasterizer)
        for index in range(len(refinement.parts))
    ]
    change = measured(images, refinement)
    if not asset.materials:
        return replace(asset, base_color=images[0]), change
    pairs = zip(asset.materials, images, strict=True)
    return replace(asset, materials=tuple(replace(item, image=image) for item, image in pairs)), change


def rendered_asset(
    asset: MeshAsset, textured: TexturedMesh, views: Views, resolution: int, *, rasterizer: Rasterizer
) -> Rendering:
    """An asset of a textured mesh as a reader of its file should render it, without shading.

    A run's own render filters its texels by the footprints of pixels, which a file's images with fine grain
    do not match; the images of a refined texture are right by construction.
    """
    given = textured.prepared
    # a reader welds vertices, by which it antialiases; seams of texture coordinates are no silhouettes
    placed = replace(asset, vertices=given.placement.to_world(asset.vertices), faces=given.welded_faces)
    return render_asset(
        placed, views.cameras, resolution, background=views.background, rasterizer=rasterizer, shading=False
    )


@torch.no_grad()
def refined_texture(
    textured: TexturedMesh,
    part: Refinement,
    index: int = 0,
    *,
    rasterizer: Rasterizer,
    padding: int = PADDING,
) -> UInt8[Tensor, "H W 3"]:
    """The base colours of a refined texture set, at the size of its source.

    The change of the texels on the surface continues for `padding` texels beside the charts, and is 0
    beyond. Where it is 0 or the mask is black, a texel has the source's bytes; no channel leaves the bound,
    which is rounded down to whole levels. At another size than that of the optimised texels, the change is
    resampled bilinearly.
    """
    source = part.source.image
    height, width = source.shape[:2]
    change = _padded_change(textured, part, index, rasterizer, padding)
    change = _resized(change, (height, width)).cpu()
    if part.source.mask is not None:
        change = change * (part.source.mask[..., None] / LEVELS)
    bound = bound_in_levels(part)
    levels = (change * LEVELS).round().clamp(-bound, bound).to(torch.int16)
    return (source.to(torch.int16) + levels).clamp(0, LEVELS).to(torch.uint8)


def bound_in_levels(part: Refinement) -> int:
    """Largest change of a channel in levels of 255."""
    return int(part.bound * LEVELS + 1e-6)


def _padded_change(
    textured: TexturedMesh, part: Refinement, index: int, rasterizer: Rasterizer, padding: int
) -> Float[Tensor, "S S 3"]:
    """The bounded difference between the texture and the source, without the mask."""
    mesh, texture, size = textured.mesh, textured.texture, len(part.image)
    if mesh.sets[index].wraps:
        covered = torch.ones_like(part.image[..., 0], dtype=torch.bool)
        points = torch.zeros_like(part.image)
    else:
        rows = mesh.faces_of(index)
        surface = TexelSurface(textured.canonical, mesh.faces[rows], mesh.uv, mesh.uv_faces[rows])
        points, covered = surface_texels(surface, texture_size=size, rasterizer=rasterizer)
    if isinstance(texture, ImageTextures):
        values = texture[index].image[..., :3][covered]
    else:
        uv = texel_centres(covered, size)
        sets = torch.full_like(uv[:, 0], index, dtype=torch.int64)
        values = textured.field_colors(points[covered], uv, sets)
    change = torch.zeros_like(part.image)
    change[covered] = (values - part.image[covered]).clamp(-part.bound, part.bound)
    reach = max_pool2d(covered.float()[None, None], 2 * padding + 1, stride=1, padding=padding)[0, 0]
    return torch.where(reach[..., None] > 0, fill(change, covered), 0.0)


def _resized(change: Float[Tensor, "S S 3"], size: tuple[int, int]) -> Float[Tensor, "H W 3"]:
    if change.shape[:2] == size:
        return change
    planes = change.permute(2, 0, 1)[None]
    shrinks = max(size) < len(change)
    return interpolate(planes, size=size, mode="bilinear", antialias=shrinks)[0].permute(1, 2, 0)


def measured(images: Sequence[UInt8[Tensor, "_ _ 3"]], refinement: Refinements) -> TextureChange:
    """The change of all images against their sources."""
    differences, masks = [], []
    for image, part in zip(images, refinement.parts, strict=True):
        source, mask = part.source.image, part.source.mask
        differences.append((image.to(torch.int16) - source.to(torch.int16)).abs().amax(dim=-1).flatten())
        masks.append(torch.ones_like(differences[-1]) if mask is None else mask.flatten())
    difference = torch.cat(differences)
    return TextureChange(
        texels=len(difference),
        changed=float((difference > 0).float().mean()),
        largest=int(difference.max()),
        bound=bound_in_levels(refinement.parts[0]),
        included=float((torch.cat([mask.float() for mask in masks]) > 0).float().mean()),
    )
