"""Sample a field of surface properties into texture images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d, normalize, pad

from pgc3d.geometry.own_uv import draw_atlas
from pgc3d.geometry.uv import UvAtlas
from pgc3d.images import to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Material

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
    padding: int = 4,
) -> Textures:
    """Textures of `material` at the surface point of every texel, computed on the device of `vertices`.

    Texels outside the charts continue the nearest chart for `padding` texels, against seams in filtering; the
    remaining texels are filled smoothly, so that small mip levels do not darken.

    Args:
        vertices: world positions.
        atlas: of their faces.
        material: surface properties at world points.
        texture_size: side of the images in texels.
        rasterizer: on the device of `vertices`.
        padding: texels around every chart.
    """
    points, covered = texel_positions(vertices, atlas, texture_size=texture_size, rasterizer=rasterizer)
    values = torch.zeros(texture_size, texture_size, 5, device=vertices.device)
    values[covered] = query(material, points[covered])
    return finish(values, covered, padding=padding)


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


def finish(values: Float[Tensor, "S S 5"], covered: Bool[Tensor, "S S"], *, padding: int = 4) -> Textures:
    """8 bit images of base colour, roughness and metallic in [0, 1], filled where no chart covers them."""
    image = fill(values, covered, padding=padding)
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


def fill(
    values: Float[Tensor, "H W C"], known: Bool[Tensor, "H W"], *, padding: int
) -> Float[Tensor, "H W C"]:
    """The image with unknown texels filled from known ones, which keep their values.

    For `padding` rings each texel takes the mean of its known neighbours, then a pyramid of averages fills
    the remaining texels from the coarsest level down (pull-push, Gortler et al. 1996).
    """
    image, weight = _grow(values * known[..., None], known.to(values.dtype), rings=padding)
    filled = _pull_push(image.permute(2, 0, 1)[None], weight[None, None])
    return filled[0].permute(1, 2, 0)


def _grow(image: Tensor, weight: Tensor, *, rings: int) -> tuple[Tensor, Tensor]:
    """Fill texels next to known ones with the mean of their known neighbours, ring by ring.

    Only the texels of a ring are written: they are few, and filters over the whole image would cost seconds.
    """
    height, width, channels = image.shape
    values = pad(image, (0, 0, 1, 1, 1, 1)).reshape(-1, channels)  # a border, so that neighbours exist
    known = pad(weight, (1, 1, 1, 1))
    offsets = [row * (width + 2) + column for row in (-1, 0, 1) for column in (-1, 0, 1)]
    for _ in range(rings):
        near = max_pool2d(known[None, None, 1:-1, 1:-1], 3, stride=1, padding=1)[0, 0]
        ring = pad((near > known[1:-1, 1:-1]).to(known.dtype), (1, 1, 1, 1)).reshape(-1).nonzero()[:, 0]
        flat = known.reshape(-1)
        count = torch.stack([flat.index_select(0, ring + offset) for offset in offsets]).sum(0)
        total = torch.stack([values.index_select(0, ring + offset) for offset in offsets]).sum(0)
        values[ring] = total / count[:, None]
        flat[ring] = 1.0
    grown = values.reshape(height + 2, width + 2, channels)[1:-1, 1:-1]
    return grown, known[1:-1, 1:-1]


def _pull_push(image: Tensor, weight: Tensor) -> Tensor:
    """Fill texels of weight 0; `image` is 0 there."""
    height, width = image.shape[-2:]
    if max(height, width) <= 1 or bool((weight > 0).all()):
        return image
    odd = (0, width % 2, 0, height % 2)
    fraction = avg_pool2d(pad(weight, odd), 2)
    mean = avg_pool2d(pad(image, odd), 2) / fraction.clamp_min(0.25)
    coarse = _pull_push(mean, (fraction > 0).to(weight.dtype))
    smooth = interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    return torch.where(weight > 0, image, smooth)


def vertex_colors(
    vertices: Float[Tensor, "V 3"], material: Callable[[Float[Tensor, "P 3"]], Material]
) -> UInt8[Tensor, "V 3"]:
    """Base colour at the vertices, for formats without textures."""
    return to_bytes(query(material, vertices)[:, :3])
