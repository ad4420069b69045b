"""Base colours of a mesh asset at the pixels of a rasterised view."""

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.rendering.mesh_renderer import sample_texture
from pgc3d.rendering.shading import linear_to_srgb, srgb_to_linear
from pgc3d.types import Fragments

BARE = 0.5  # sRGB of a file without colours


def surface_colors(asset: MeshAsset, fragments: Fragments, rasterizer: Rasterizer) -> Float[Tensor, "P 3"]:
    """Base colour in sRGB of the covered pixels of `fragments`, in row-major order; all on one device."""
    hit = fragments.triangle >= 0
    if asset.materials:
        return _mixed(asset, fragments, rasterizer)
    if asset.uv is not None and asset.uv_faces is not None and asset.base_color is not None:
        uv = rasterizer.interpolate(asset.uv[None], fragments, asset.uv_faces)[hit]
        return sample_texture(asset.base_color, uv, asset.wrap) / 255
    if asset.vertex_color is None:
        return torch.full((int(hit.sum()), 3), BARE, device=hit.device)
    if asset.linear_colors:
        return linear_to_srgb(_vertex_light(asset, fragments, rasterizer))
    return _interpolated(asset, asset.vertex_color.float() / 255, fragments, rasterizer)


def _interpolated(
    asset: MeshAsset, colors: Tensor, fragments: Fragments, rasterizer: Rasterizer
) -> Float[Tensor, "P 3"]:
    faces = asset.faces if asset.color_faces is None else asset.color_faces
    return rasterizer.interpolate(colors[None], fragments, faces)[fragments.triangle >= 0]


def _vertex_light(asset: MeshAsset, fragments: Fragments, rasterizer: Rasterizer) -> Float[Tensor, "P 3"]:
    """Linear colours of the vertices, 1 where there are none."""
    if asset.vertex_color is None:
        return torch.ones(int((fragments.triangle >= 0).sum()), 3, device=fragments.data.device)
    colors = asset.vertex_color.float() / 255
    if asset.linear_colors:
        return _interpolated(asset, srgb_to_linear(colors), fragments, rasterizer)
    return srgb_to_linear(_interpolated(asset, colors, fragments, rasterizer))


def _mixed(asset: MeshAsset, fragments: Fragments, rasterizer: Rasterizer) -> Float[Tensor, "P 3"]:
    if asset.face_material is None:
        raise ValueError("an asset with materials must have face_material, got none")
    hit = fragments.triangle >= 0
    light = _vertex_light(asset, fragments, rasterizer)
    uv = None
    if asset.uv is not None and asset.uv_faces is not None:
        uv = rasterizer.interpolate(asset.uv[None], fragments, asset.uv_faces)[hit]
    chosen = asset.face_material[fragments.triangle[hit]]
    for index, material in enumerate(asset.materials):
        rows = (chosen == index).nonzero()[:, 0]
        factor = srgb_to_linear(material.color).expand(len(rows), 3)
        if material.image is not None and uv is not None:
            texel = sample_texture(material.image, uv[rows], material.wrap) / 255
            factor = factor * srgb_to_linear(texel)
        light[rows] = light[rows] * factor
    return linear_to_srgb(light)
