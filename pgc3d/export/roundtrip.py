"""Read an exported file back, render it, and say how close it is to what the run shows."""

import math
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pgc3d.cameras import turntable
from pgc3d.export.asset import TexturedMesh
from pgc3d.export.bake import fill
from pgc3d.export.mesh_file import read_mesh
from pgc3d.geometry.uv import triangle_atlas
from pgc3d.interfaces import Rasterizer
from pgc3d.render.mesh_renderer import render_textured
from pgc3d.types import Cameras, Placement, Rendering

MIN_PSNR = 28.0  # dB, below which a file does not show what the run showed
VIEWS = 6


def comparison_views(device: torch.device | str = "cpu") -> tuple[Cameras, Float[Tensor, "B 3"]]:
    """Cameras around the object and a white background, for the renders that are compared."""
    return turntable(VIEWS).to(device), torch.ones(VIEWS, 3, device=device)


@torch.no_grad()
def round_trip_psnr(
    path: Path,
    reference: Rendering,
    cameras: Cameras,
    *,
    rasterizer: Rasterizer,
    placement: Placement | None = None,
    shading: bool = True,
) -> float:
    """PSNR in dB, over the pixels that either picture covers, of a file against the run's own render.

    Colours are compared; an STL has none, so its normals are. `reference` is on the rasteriser's device, lit
    if `shading`. `placement` brings a file in other axes into the world.

    Raises:
        InputError: the file cannot be read.
    """
    asset = read_mesh(path)
    if placement is not None:
        asset = replace(asset, vertices=placement.to_world(asset.vertices))
    found = render_asset(
        asset,
        cameras,
        reference.color.shape[1],
        background=reference.background,
        rasterizer=rasterizer,
        shading=shading,
    )
    covered = (reference.alpha > 0) | (found.alpha > 0)
    bare = asset.base_color is None and asset.vertex_color is None
    if bare:
        return psnr(found.normal, reference.normal, covered)
    return psnr(found.color, reference.color, covered)


def psnr(
    first: Float[Tensor, "B H W C"], second: Float[Tensor, "B H W C"], mask: Bool[Tensor, "B H W 1"]
) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1] over the pixels of `mask`; NaN if it is empty."""
    error = (first - second).square()[mask[..., 0]].mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def render_asset(
    asset: TexturedMesh,
    cameras: Cameras,
    resolution: int,
    *,
    background: Float[Tensor, "B 3"],
    rasterizer: Rasterizer,
    shading: bool = True,
) -> Rendering:
    """Render what a file holds, lit as the run does it, on the device of `background`."""
    device = background.device
    uv, uv_faces, texture = _texture(asset, rasterizer, device)
    return render_textured(
        asset.vertices.to(device),
        asset.faces.to(device),
        uv.to(device),
        uv_faces.to(device),
        texture.to(device),
        cameras,
        resolution,
        background,
        rasterizer=rasterizer,
        shading=shading,
    )


def _texture(
    asset: TexturedMesh, rasterizer: Rasterizer, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Texture coordinates, their faces and an image in [0, 1]: the file's, or made of its vertex colours."""
    if asset.uv is not None and asset.uv_faces is not None and asset.base_color is not None:
        return asset.uv, asset.uv_faces, asset.base_color.float() / 255
    if asset.vertex_color is None:
        grey = torch.full((2, 2, 3), 0.5)
        return torch.full((1, 2), 0.5), torch.zeros_like(asset.faces), grey
    # 8 texels for a pair of faces: colours are linear inside a face, so few are enough.
    size = min(8 * 2 ** math.ceil(math.log2(max(len(asset.faces) / 2, 1)) / 2), 4096)
    atlas = triangle_atlas(asset.vertices, asset.faces, texture_size=size)
    rest = torch.tensor([[0.0, 1.0]]).expand(len(atlas.uv), 2)
    clip = torch.cat([2 * atlas.uv - 1, rest], dim=1)[None].to(device)
    faces = atlas.uv_faces.to(device)
    fragments = rasterizer.rasterize(clip, faces, (size, size))
    colors = (asset.vertex_color[atlas.vertex].float() / 255)[None].to(device)
    image = rasterizer.interpolate(colors, fragments, faces)[0]
    return atlas.uv, atlas.uv_faces, fill(image, fragments.triangle[0] >= 0, padding=2)
