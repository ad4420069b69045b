"""Comparison of an exported file, read back and rendered, with the run's own renders."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.cameras import turntable
from pgc3d.exporting.asset_colors import surface_colors
from pgc3d.images import psnr
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.rendering.mesh_renderer import render_colored
from pgc3d.types import Cameras, Placement, Rendering

Part: TypeAlias = Literal["metallic_roughness", "normal_map"]  # textures of an asset, beside base colours
MIN_PSNR = 28.0  # dB, below which an export is not faithful
SAME = 99.0  # dB, of renders without a difference
VIEWS = 6


def comparison_views(device: torch.device | str = "cpu") -> tuple[Cameras, Float[Tensor, "B 3"]]:
    """Cameras around the object and a white background, for the compared renders."""
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
    others: Mapping[Part, Rendering] | None = None,
) -> float:
    """PSNR in dB of a file against the run's own renders, over the pixels that either covers; the least one.

    Colours are compared, or normals for an STL, which has no colours, and the other textures of a material.

    Args:
        path: the exported mesh.
        reference: the run's render, on the rasteriser's device.
        cameras: of the references.
        rasterizer: the backend.
        placement: transforms the file's axes to the world's; None where they are the same.
        shading: whether the reference is shaded.
        others: the run's renders of other textures, not shaded.

    Raises:
        InputError: the file cannot be read.
    """
    asset = read_mesh(path)
    if placement is not None:
        asset = replace(asset, vertices=placement.to_world(asset.vertices))
    found = _compare(asset, reference, cameras, rasterizer, shading=shading)
    return min(
        [
            found,
            *(
                _compare(_showing(asset, part), other, cameras, rasterizer, shading=False)
                for part, other in (others or {}).items()
            ),
        ]
    )


def _showing(asset: MeshAsset, part: Part) -> MeshAsset:
    """The asset with one of its other textures as base colours; black where the file has none."""
    black = torch.zeros(1, 1, 3, dtype=torch.uint8)
    shown = [
        replace(surface, image=black if (image := getattr(surface, part)) is None else image)
        for surface in asset.surfaces
    ]
    if asset.base_color is None:
        return replace(asset, materials=tuple(shown))
    return replace(asset, base_color=shown[0].image)


def _compare(
    asset: MeshAsset, reference: Rendering, cameras: Cameras, rasterizer: Rasterizer, *, shading: bool
) -> float:
    side, background = reference.color.shape[1], reference.background
    rendered = render_asset(
        asset, cameras, side, background=background, rasterizer=rasterizer, shading=shading
    )
    covered = (reference.alpha > 0) | (rendered.alpha > 0)
    shown, expected = (rendered.normal, reference.normal) if asset.bare else (rendered.color, reference.color)
    # over all views at once: a view without covered pixels has no PSNR
    together = [images.flatten(0, 1)[None] for images in (shown, expected, covered)]
    return min(psnr(*together).item(), SAME)


def render_asset(
    asset: MeshAsset,
    cameras: Cameras,
    resolution: int,
    *,
    background: Float[Tensor, "B 3"],
    rasterizer: Rasterizer,
    shading: bool = True,
) -> Rendering:
    """Render an asset with the run's shading, on the device of `background`."""
    device = background.device
    held = asset.to(device)
    return render_colored(
        held.vertices,
        held.faces,
        cameras,
        resolution,
        background,
        rasterizer=rasterizer,
        color=lambda fragments: surface_colors(held, fragments, rasterizer),
        shading=shading,
    )
