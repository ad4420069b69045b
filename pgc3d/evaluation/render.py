"""Renders of mesh files for comparison: supersampled, two-sided shading, with the file's own normals."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize

from pgc3d.exporting.asset_colors import surface_colors
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.rendering.mesh_renderer import project
from pgc3d.rendering.shading import key_direction, shade
from pgc3d.types import Cameras, Rendering

SUPERSAMPLING = 2
VIEWS_AT_ONCE = 4  # bounds the memory


@torch.no_grad()
def render_views(asset: MeshAsset, cameras: Cameras, resolution: int, *, rasterizer: Rasterizer) -> Rendering:
    """Render a mesh on white as a viewer does, with the lighting of all renders of pgc3d.

    Unlike the renderer of a run, it is antialiased by four samples a pixel, so that the connectivity of faces
    does not matter; creases in the file's normals are kept; and back faces are shaded with flipped normals,
    since the winding of foreign meshes is often inconsistent. `Rendering.depth` is 0 where a sample hit
    nothing, and averaged over the samples like the other buffers.

    Args:
        asset: on the CPU.
        cameras: B views on the rasteriser's device.
        resolution: height and width.
        rasterizer: the backend.
    """
    device = cameras.azimuth.device
    mesh = asset.to(device)
    parts = []
    for start in range(0, len(cameras), VIEWS_AT_ONCE):
        views = cameras[start : start + VIEWS_AT_ONCE]
        samples = _samples(mesh, views, SUPERSAMPLING * resolution, rasterizer)
        parts.append(avg_pool2d(samples.permute(0, 3, 1, 2), SUPERSAMPLING).permute(0, 2, 3, 1))
    color, normal, alpha, depth = torch.split(torch.cat(parts), [3, 3, 1, 1], dim=-1)
    background = torch.ones(len(cameras), 3, device=device)
    return Rendering(color=color, normal=normal, depth=depth, alpha=alpha, background=background)


def _samples(
    mesh: MeshAsset, cameras: Cameras, resolution: int, rasterizer: Rasterizer
) -> Float[Tensor, "B H W 8"]:
    """Colour over white, encoded normal, alpha and depth, one sample each."""
    fragments = rasterizer.rasterize(project(mesh.vertices, cameras), mesh.faces, (resolution, resolution))
    normals = rasterizer.interpolate(mesh.normals[None], fragments, mesh.normals_of_corners)
    hit = fragments.triangle >= 0
    position = rasterizer.interpolate(mesh.vertices[None], fragments, mesh.faces)[hit]
    normal = normalize(normals[hit], dim=-1)
    view = hit.nonzero()[:, 0]
    away = ((cameras.position[view] - position) * normal).sum(-1, keepdim=True) < 0
    normal = torch.where(away, -normal, normal)
    color = shade(surface_colors(mesh, fragments, rasterizer), normal, key_direction(cameras)[view])
    backward = cameras.camera_from_world[view, 2]
    depth = -(backward[:, :3] * position).sum(-1, keepdim=True) - backward[:, 3:]
    empty = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.0, 0.0], device=normal.device)
    samples = empty.expand(*hit.shape, 8).clone()
    samples[hit] = torch.cat([color, 0.5 * normal + 0.5, torch.ones_like(depth), depth], dim=1)
    return samples
