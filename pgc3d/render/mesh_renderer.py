"""From a mesh and its material to differentiable pictures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry.edges import EdgeTopology
from pgc3d.geometry.normals import vertex_normals
from pgc3d.interfaces import Rasterizer
from pgc3d.render.antialias import antialias
from pgc3d.render.shading import key_direction, shade
from pgc3d.types import Cameras, Fragments, Material, Mesh, Rendering, UvMesh


@dataclass(frozen=True)
class _Surface:
    """What P pixels show: the covered ones, or all in order with zeros where nothing is."""

    points: Float[Tensor, "P 3"]  # world
    normal: Float[Tensor, "P 3"]  # world, unit
    key: Float[Tensor, "P 3"]  # direction towards the light, world, unit
    depth: Float[Tensor, "B H W 1"]


def project(vertices: Float[Tensor, "V 3"], cameras: Cameras) -> Float[Tensor, "B V 4"]:
    """World points to clip space."""
    matrix = cameras.clip_from_world
    return vertices @ matrix[:, :, :3].transpose(1, 2) + matrix[:, None, :, 3]


def render_mesh(  # noqa: PLR0913
    mesh: Mesh,
    cameras: Cameras,
    resolution: int,
    background: Float[Tensor, "B 3"],
    *,
    rasterizer: Rasterizer,
    material: Callable[[Float[Tensor, "P 3"]], Material],
    topology: EdgeTopology | None = None,
    shading: bool = True,
    everywhere: bool | None = None,
) -> Rendering:
    """Render square pictures, antialiased along the silhouettes and composited over `background`.

    Gradients reach the vertices through the silhouettes, through the normals, and through the points that
    `material` is asked about.

    Args:
        mesh: Its normals are interpolated as they are; none is turned towards the camera.
        cameras: B views.
        resolution: Height and width.
        background: sRGB.
        rasterizer: The backend of the device that holds the mesh.
        material: Surface properties at world points.
        topology: The mesh's edges, if they are known already.
        shading: Light the base colour; otherwise the picture shows it as it is.
        everywhere: Ask `material` about the origin where no surface is, instead of about covered pixels only,
            for whose number a CUDA device would be waited; None is True on CUDA.
    """
    clip = project(mesh.vertices, cameras)
    fragments = rasterizer.rasterize(clip, mesh.faces, (resolution, resolution))
    everywhere = clip.is_cuda if everywhere is None else everywhere
    find = _everywhere if everywhere else _visible
    surface, pixel = find(_places(mesh, fragments, rasterizer), fragments, cameras)
    color = material(surface.points).base_color
    if shading:
        color = shade(color, surface.normal, surface.key)
    picture = _compose(color, surface, pixel, fragments, background)
    picture = antialias(picture, fragments, clip, mesh.faces, topology)
    return _rendering(picture, surface.depth, background)


def render_textured(  # noqa: PLR0913
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    uv: Float[Tensor, "U 2"],
    uv_faces: Int[Tensor, "F 3"],
    texture: Float[Tensor, "H W 3"],
    cameras: Cameras,
    resolution: int,
    background: Float[Tensor, "B 3"],
    *,
    rasterizer: Rasterizer,
    shading: bool = True,
) -> Rendering:
    """Render a mesh whose sRGB base colour is a picture, with smooth normals and the same light.

    Args:
        vertices: Shared across texture seams, so that the seams are no outlines.
        faces: Corners of the triangles in `vertices`.
        uv: (0, 0) is the lower left corner of the picture, as in OBJ; glTF files store 1 - v.
        uv_faces: The same corners in `uv`.
        texture: Row 0 on top; bilinear between texel centres, clamped at the border.
        cameras: B views.
        resolution: Height and width.
        background: sRGB.
        rasterizer: The backend of the device that holds the tensors.
        shading: Light the base colour; otherwise the picture shows it as it is.
    """
    clip = project(vertices, cameras)
    fragments = rasterizer.rasterize(clip, faces, (resolution, resolution))
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces))
    surface, pixel = _visible(_places(mesh, fragments, rasterizer), fragments, cameras)
    coordinates = rasterizer.interpolate(uv[None], fragments, uv_faces).flatten(0, 2)
    color = sample_texture(texture, coordinates.index_select(0, pixel))
    if shading:
        color = shade(color, surface.normal, surface.key)
    picture = _compose(color, surface, pixel, fragments, background)
    return _rendering(antialias(picture, fragments, clip, faces), surface.depth, background)


@dataclass(frozen=True)
class Hits:
    """What P pixels show of a `UvMesh`: the covered ones, or all in order with anything where nothing is."""

    points: Float[Tensor, "P 3"]  # world
    uv: Float[Tensor, "P 2"]
    triangle: Int[Tensor, " P"]
    view: Int[Tensor, " P"]


def render_corners(
    mesh: UvMesh,
    cameras: Cameras,
    resolution: int,
    background: Float[Tensor, "B 3"],
    *,
    rasterizer: Rasterizer,
    color: Callable[[Hits], Float[Tensor, "P 3"]],
    topology: EdgeTopology,
    shading: bool = True,
) -> Rendering:
    """Render a mesh with its own normals; see `render_mesh`.

    Args:
        mesh: In the world, on the rasteriser's device.
        cameras: B views.
        resolution: Height and width.
        background: sRGB.
        rasterizer: The backend of the device that holds the mesh.
        color: sRGB base colour of what the pixels show.
        topology: Of faces that share vertices along the seams of texture and normals.
        shading: Light the base colour; otherwise the picture shows it as it is.
    """
    clip = project(mesh.vertices, cameras)
    fragments = rasterizer.rasterize(clip, mesh.faces, (resolution, resolution))
    parts = [(mesh.vertices, mesh.faces), (mesh.normals, mesh.normal_faces), (mesh.uv, mesh.uv_faces)]
    values = [rasterizer.interpolate(part[None], fragments, faces) for part, faces in parts]
    find = _everywhere if clip.is_cuda else _visible
    surface, pixel = find(torch.cat(values[:2], dim=-1), fragments, cameras)
    place = torch.arange(fragments.data[..., 0].numel(), device=clip.device) if pixel is None else pixel
    found = color(
        Hits(
            points=surface.points,
            uv=values[2].flatten(0, 2).index_select(0, place),
            triangle=fragments.triangle.flatten().index_select(0, place).clamp(min=0),
            view=place // resolution**2,
        )
    )
    if shading:
        found = shade(found, surface.normal, surface.key)
    picture = _compose(found, surface, pixel, fragments, background)
    return _rendering(antialias(picture, fragments, clip, mesh.faces, topology), surface.depth, background)


def sample_texture(texture: Float[Tensor, "H W C"], uv: Float[Tensor, "P 2"]) -> Float[Tensor, "P C"]:
    """Bilinear lookup; v points up while row 0 is on top."""
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=-1)
    values = torch.nn.functional.grid_sample(
        texture.permute(2, 0, 1)[None], grid[None, None], padding_mode="border", align_corners=False
    )
    return values[0, :, 0].T


def _places(mesh: Mesh, fragments: Fragments, rasterizer: Rasterizer) -> Float[Tensor, "B H W 6"]:
    """World point and normal of every pixel."""
    attributes = torch.cat([mesh.vertices, mesh.normals], dim=1)[None]
    return rasterizer.interpolate(attributes, fragments, mesh.faces)


def _visible(
    places: Float[Tensor, "B H W 6"], fragments: Fragments, cameras: Cameras
) -> tuple[_Surface, Int[Tensor, " P"]]:
    """The covered pixels and their flat indices over all views; a CUDA device is waited for."""
    pixel = (fragments.data.detach()[..., 3].flatten() > 0).nonzero()[:, 0]
    # index_select, because the backward of indexing sorts
    points, normal = places.flatten(0, 2).index_select(0, pixel).chunk(2, dim=1)
    views, height, width = fragments.data.shape[:3]
    view = pixel // (height * width)
    towards_camera = cameras.camera_from_world[view, 2]
    distance = -(towards_camera[:, :3] * points).sum(-1) - towards_camera[:, 3]
    depth = distance.new_zeros(views * height * width).index_copy(0, pixel, distance)
    surface = _Surface(
        points=points,
        normal=normalize(normal, dim=-1),
        key=key_direction(cameras)[view],
        depth=depth.view(views, height, width, 1),
    )
    return surface, pixel


def _everywhere(
    places: Float[Tensor, "B H W 6"], fragments: Fragments, cameras: Cameras
) -> tuple[_Surface, None]:
    """Every pixel; interpolation leaves zeros where nothing is."""
    points, normal = places.flatten(0, 2).chunk(2, dim=1)
    towards_camera = cameras.camera_from_world[:, None, None, 2]  # [B, 1, 1, 4]
    distance = -(towards_camera[..., :3] * places[..., :3]).sum(-1, keepdim=True) - towards_camera[..., 3:]
    views, height, width = fragments.data.shape[:3]
    surface = _Surface(
        points=points,
        normal=normalize(normal, dim=-1),
        key=key_direction(cameras)[:, None].expand(views, height * width, 3).flatten(0, 1),
        depth=torch.where(fragments.data.detach()[..., 3:] > 0, distance, 0.0),
    )
    return surface, None


def _compose(
    color: Tensor,
    surface: _Surface,
    pixel: Tensor | None,
    fragments: Fragments,
    background: Float[Tensor, "B 3"],
) -> Float[Tensor, "B H W 7"]:
    """Colour, encoded normal and alpha of every pixel, without antialiasing."""
    views, height, width = fragments.data.shape[:3]
    layers = torch.cat([color, 0.5 * surface.normal + 0.5, torch.ones_like(color[:, :1])], dim=1)
    rest = torch.cat([torch.full_like(background, 0.5), torch.zeros_like(background[:, :1])], dim=1)
    empty = torch.cat([background, rest], dim=1)[:, None]
    if pixel is None:
        covered = fragments.data.detach()[..., 3:] > 0
        return torch.where(covered, layers.view(views, height, width, 7), empty[:, None])
    empty = empty.expand(-1, height * width, -1)
    picture = empty.reshape(-1, 7).index_copy(0, pixel, layers)
    return picture.view(views, height, width, 7)


def _rendering(
    picture: Float[Tensor, "B H W 7"], depth: Float[Tensor, "B H W 1"], background: Float[Tensor, "B 3"]
) -> Rendering:
    # Features thinner than a pixel can leave [0, 1]; their gradient must survive, or they could not recover.
    picture = picture + (picture.clamp(0, 1) - picture).detach()
    color, normal, alpha = picture[..., :3], picture[..., 3:6], picture[..., 6:]
    return Rendering(color=color, normal=normal, depth=depth, alpha=alpha, background=background)
