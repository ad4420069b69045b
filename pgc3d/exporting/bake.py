"""Sample a field of surface properties into texture images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry.own_uv import draw_atlas, texel_centres
from pgc3d.geometry.uv import UvAtlas
from pgc3d.images import to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Material

BAND = 1 << 22  # texels that are computed at once: bounds the memory of a large image
CHUNK = 1 << 17  # points per query: bounds the memory of a field's hidden layers


@dataclass(frozen=True)
class Textures:
    """Texture images of a surface, row 0 at v = 1, and the mask of texels that lie on the surface."""

    base_color: UInt8[Tensor, "S S 3"]  # sRGB
    metallic_roughness: UInt8[Tensor, "S S 3"]  # linear: 255, roughness, metallic, as in glTF
    covered: Bool[Tensor, "S S"]


@dataclass(frozen=True)
class TexelSurface:
    """Faces of a mesh and their charts in an image, on one device."""

    vertices: Float[Tensor, "V 3"]  # of the world
    faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]

    @classmethod
    def of(cls, vertices: Float[Tensor, "V 3"], atlas: UvAtlas) -> "TexelSurface":
        """The surface of an atlas, on the device of its vertices."""
        uv, uv_faces, vertex = (part.to(vertices.device) for part in (atlas.uv, atlas.uv_faces, atlas.vertex))
        return cls(vertices, vertex[uv_faces], uv, uv_faces)


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
    image, covered = bake_bytes(
        TexelSurface.of(vertices, atlas),
        lambda points, _: to_bytes(query(material, points)),
        texture_size=texture_size,
        rasterizer=rasterizer,
    )
    occlusion = torch.full_like(image[..., :1], 255)  # unused by the material, white in viewers that read it
    return Textures(
        base_color=image[..., :3].contiguous(),
        metallic_roughness=torch.cat([occlusion, image[..., 3:]], dim=-1),
        covered=covered,
    )


def bake_bytes(
    surface: TexelSurface,
    texels: Callable[[Float[Tensor, "P 3"], Float[Tensor, "P 2"]], UInt8[Tensor, "P K"]],
    *,
    texture_size: int,
    rasterizer: Rasterizer,
) -> tuple[UInt8[Tensor, "S S K"], Bool[Tensor, "S S"]]:
    """An image on the CPU, filled where no chart covers it, and whether one does.

    It is computed in bands of rows, so that besides the image itself, its distances and a band nothing is
    held.

    Args:
        surface: its charts.
        texels: the image's channels at world points with their texture coordinates.
        texture_size: side of the image in texels.
        rasterizer: on the device of the surface.
    """
    bands = texel_bands(texture_size)
    small = _faces_between_texels(surface, texture_size, rasterizer)
    parts, masks = [], []
    for rows in bands:
        points, covered = surface_texels(
            surface, texture_size=texture_size, rasterizer=rasterizer, rows=rows, small=small
        )
        found = texels(points[covered], texel_centres(covered, texture_size, rows))
        image = torch.zeros(*covered.shape, found.shape[1], dtype=torch.uint8)
        image[covered.cpu()] = found.cpu()
        parts.append(image)
        masks.append(covered.cpu())
    covered = torch.cat(masks)
    return fill(torch.cat(parts), covered), covered


def texel_bands(texture_size: int) -> list[range]:
    """The rows of an image in bands of at most `BAND` texels, or one row."""
    height = max(1, BAND // texture_size)
    return [range(start, min(start + height, texture_size)) for start in range(0, texture_size, height)]


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


def surface_texels(
    surface: TexelSurface,
    *,
    texture_size: int,
    rasterizer: Rasterizer,
    rows: range | None = None,
    small: Int[Tensor, " R"] | None = None,
) -> tuple[Float[Tensor, "H S 3"], Bool[Tensor, "H S"]]:
    """World position of each texel and whether it lies on the surface.

    A face covers the texels whose centres it contains. A face that contains none, as in charts smaller than a
    texel, gets the texel of its centroid, where no other face covers that.

    Args:
        surface: its charts.
        texture_size: side of the image in texels.
        rasterizer: on the device of the surface.
        rows: of the image, all when None.
        small: the faces that contain no texel, found when None.
    """
    rows = range(texture_size) if rows is None else rows
    if small is None:
        small = _faces_between_texels(surface, texture_size, rasterizer)
    fragments = draw_atlas(surface.uv, surface.uv_faces, texture_size, rasterizer, rows)
    triangle = fragments.triangle[0].flatten()
    points = rasterizer.interpolate(surface.vertices[None], fragments, surface.faces)[0].reshape(-1, 3)
    covered = triangle >= 0
    middle = texture_size * _middle(surface.uv, surface.uv_faces[small])
    column, row = middle.long().clamp(0, texture_size - 1).unbind(1)
    row = texture_size - 1 - row - rows.start
    inside = (row >= 0) & (row < len(rows))
    texel, small = row[inside] * texture_size + column[inside], small[inside]
    # of several in one texel the last one, so that every run makes the same image
    chosen = torch.full_like(triangle, -1).scatter_reduce(0, texel, small, "amax")
    free = (chosen >= 0) & ~covered
    points[free] = _middle(surface.vertices, surface.faces[chosen[free]])
    shape = (len(rows), texture_size)
    return points.view(*shape, 3), (covered | free).view(shape)


def _faces_between_texels(
    surface: TexelSurface, texture_size: int, rasterizer: Rasterizer
) -> Int[Tensor, " R"]:
    """The faces that contain no texel's centre."""
    missed = torch.ones(len(surface.faces), dtype=torch.bool, device=surface.uv.device)
    for rows in texel_bands(texture_size):
        triangle = draw_atlas(surface.uv, surface.uv_faces, texture_size, rasterizer, rows).triangle
        missed[triangle[triangle >= 0]] = False
    return missed.nonzero()[:, 0]


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


def fill(values: Num[Tensor, "H W C"], known: Bool[Tensor, "H W"]) -> Num[Tensor, "H W C"]:
    """The image with the value of the nearest known texel in each unknown one.

    So charts continue by half of the distance to the next one, and in mip levels their colours mix with
    nothing but those of other charts. Distances are Euclidean (Maurer et al. 2003, as in scipy).
    """
    from scipy.ndimage import distance_transform_edt

    if bool(known.all()) or not bool(known.any()):
        return values
    nearest = distance_transform_edt(~known.cpu().numpy(), return_distances=False, return_indices=True)
    filled = values.clone()
    for rows in texel_bands(max(values.shape[:2])):  # indices are larger than the image
        band = slice(rows.start, rows.stop)
        row, column = (torch.from_numpy(index[band]).to(values.device).long() for index in nearest)
        filled[band] = values[row, column]
    return filled


def vertex_colors(
    vertices: Float[Tensor, "V 3"], material: Callable[[Float[Tensor, "P 3"]], Material]
) -> UInt8[Tensor, "V 3"]:
    """Base colour at the vertices, for formats without textures."""
    return to_bytes(query(material, vertices)[:, :3])
