"""Sample a field of surface properties into texture images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry.own_uv import draw_atlas
from pgc3d.geometry.uv import UvAtlas
from pgc3d.images import to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Material

ROWS = 256  # of an image that are filled at once
CHUNK = 1 << 17  # points per query: bounds the memory of a field's hidden layers


@dataclass(frozen=True)
class Textures:
    """Texture images of a surface, row 0 at v = 1, and the mask of texels that lie on the surface."""

    base_color: UInt8[Tensor, "S S 3"]  # sRGB
    metallic_roughness: UInt8[Tensor, "S S 3"]  # linear: 255, roughness, metallic, as in glTF
    covered: Bool[Tensor, "S S"]


@torch.no_grad()
def bake(
    vertices: Float[Tensor, "V 3"],
    atlas: UvAtlas,
    material: Callable[[Float[Tensor, "P 3"]], Material],
    *,
    texture_size: int,
    rasterizer: Rasterizer,
) -> Textures:
    """Textures of `material` at the surface point of every texel, computed on the device of `vertices`.

    Texels outside the charts continue the nearest chart, against seams in filtering, see `fill`.

    Args:
        vertices: world positions.
        atlas: of their faces.
        material: surface properties at world points.
        texture_size: side of the images in texels.
        rasterizer: on the device of `vertices`.
    """
    points, covered = texel_positions(vertices, atlas, texture_size=texture_size, rasterizer=rasterizer)
    values = torch.zeros(texture_size, texture_size, 5, device=vertices.device)
    values[covered] = query(material, points[covered])
    return finish(values, covered)


def shown_surface(material: Material) -> Float[Tensor, "P 3"]:
    """Roughness and metallic in glTF's layout, which is a colour of a render without shading."""
    occlusion = torch.ones_like(material.roughness)
    return torch.cat([occlusion, material.roughness, material.metallic], dim=1)


def shown_normals(material: Material) -> Float[Tensor, "P 3"]:
    """Tangent-space normals (n + 1) / 2 of a bump."""
    if material.slope is None:
        raise ValueError("a normal map must have a bump, got a material without one")
    up = torch.ones_like(material.slope[:, :1])
    return 0.5 * normalize(torch.cat([material.slope, up], dim=1), dim=1) + 0.5


def finish(values: Float[Tensor, "S S 5"], covered: Bool[Tensor, "S S"]) -> Textures:
    """8 bit images of base colour, roughness and metallic in [0, 1], filled where no chart covers them."""
    image = fill(values, covered)
    image = to_bytes(image)
    occlusion = torch.full_like(image[..., :1], 255)  # unused by the material, white in viewers that read it
    return Textures(
        base_color=image[..., :3].contiguous(),
        metallic_roughness=torch.cat([occlusion, image[..., 3:]], dim=-1),
        covered=covered.cpu(),
    )


def texel_positions(
    vertices: Float[Tensor, "V 3"], atlas: UvAtlas, *, texture_size: int, rasterizer: Rasterizer
) -> tuple[Float[Tensor, "S S 3"], Bool[Tensor, "S S"]]:
    """World position of each texel and whether it lies on the surface; see `surface_texels`."""
    device = vertices.device
    uv, uv_faces = atlas.uv.to(device), atlas.uv_faces.to(device)
    faces = atlas.vertex.to(device)[uv_faces]
    return surface_texels(vertices, faces, uv, uv_faces, texture_size=texture_size, rasterizer=rasterizer)


def surface_texels(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    uv: Float[Tensor, "U 2"],
    uv_faces: Int[Tensor, "F 3"],
    *,
    texture_size: int,
    rasterizer: Rasterizer,
) -> tuple[Float[Tensor, "S S 3"], Bool[Tensor, "S S"]]:
    """World position of each texel and whether it lies on the surface.

    A face covers the texels whose centres it contains. A face that contains none, as in charts smaller than a
    texel, gets the texel of its centroid, where no other face covers that.
    """
    fragments = draw_atlas(uv, uv_faces, texture_size, rasterizer)
    triangle = fragments.triangle[0].flatten()
    points = rasterizer.interpolate(vertices[None], fragments, faces)[0].reshape(-1, 3)
    covered, missed = triangle >= 0, torch.ones(len(faces), dtype=torch.bool, device=uv.device)
    missed[triangle[covered]] = False
    small = missed.nonzero()[:, 0]
    column, row = (texture_size * _middle(uv, uv_faces[small])).long().clamp(0, texture_size - 1).unbind(1)
    texel = (texture_size - 1 - row) * texture_size + column
    # of several in one texel the last one, so that every run makes the same image
    chosen = torch.full_like(triangle, -1).scatter_reduce(0, texel, small, "amax")
    free = (chosen >= 0) & ~covered
    points[free] = _middle(vertices, faces[chosen[free]])
    shape = (texture_size, texture_size)
    return points.view(*shape, 3), (covered | free).view(shape)


def _middle(values: Float[Tensor, "V C"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "F C"]:
    return values[faces].mean(dim=1)


@torch.no_grad()
def query(
    material: Callable[[Float[Tensor, "P 3"]], Material], points: Float[Tensor, "P 3"]
) -> Float[Tensor, "P 5"]:
    """Base colour, roughness and metallic at points, evaluated in chunks."""
    parts = [torch.zeros(0, 5, device=points.device)]
    for chunk in torch.split(points, CHUNK):
        sampled = material(chunk)
        parts.append(torch.cat([sampled.base_color, sampled.roughness, sampled.metallic], dim=1).float())
    return torch.cat(parts)


def fill(values: Float[Tensor, "H W C"], known: Bool[Tensor, "H W"]) -> Float[Tensor, "H W C"]:
    """The image with the value of the nearest known texel in each unknown one.

    So charts continue by half of the distance to the next one, and in mip levels their colours mix with
    nothing but those of other charts. Distances are Euclidean (Maurer et al. 2003, as in scipy).
    """
    from scipy.ndimage import distance_transform_edt

    if bool(known.all()) or not bool(known.any()):
        return values
    nearest = distance_transform_edt(~known.cpu().numpy(), return_distances=False, return_indices=True)
    filled = values.clone()
    for start in range(0, len(values), ROWS):  # indices are larger than the image
        band = slice(start, start + ROWS)
        rows, columns = (torch.from_numpy(index[band]).to(values.device).long() for index in nearest)
        filled[band] = values[rows, columns]
    return filled


def vertex_colors(
    vertices: Float[Tensor, "V 3"], material: Callable[[Float[Tensor, "P 3"]], Material]
) -> UInt8[Tensor, "V 3"]:
    """Base colour at the vertices, for formats without textures."""
    return to_bytes(query(material, vertices)[:, :3])
