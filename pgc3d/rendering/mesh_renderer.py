"""Differentiable rendering of a mesh and its material."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.geometry.edges import EdgeTopology
from pgc3d.geometry.normals import vertex_normals
from pgc3d.interfaces import Rasterizer, Shading
from pgc3d.kernels import require_triton
from pgc3d.rendering.antialias import antialias, clamp_overshoot
from pgc3d.rendering.shading import key_direction, shade
from pgc3d.types import Cameras, Fragments, Material, Mesh, PreparedMesh, Rendering

# Bytes of a pixel, measured on CUDA: of a render's images, and of what its backward pass needs.
IMAGE_BYTES = 160
ACTIVATION_BYTES = 1100


def stored_bytes(material: int = 0, *, low_memory: bool) -> int:
    """Bytes that renders store for each pixel until the backward pass, see `recompute`.

    Args:
        material: of them, those that a material adds.
        low_memory: whether each view is rendered again in the backward pass.
    """
    return IMAGE_BYTES if low_memory else ACTIVATION_BYTES + material


def again_bytes(material: int = 0, *, low_memory: bool) -> int:
    """Bytes for each pixel of one view, which the backward pass renders again; as in `stored_bytes`."""
    return ACTIVATION_BYTES + material if low_memory else 0


def project(vertices: Float[Tensor, "V 3"], cameras: Cameras) -> Float[Tensor, "B V 4"]:
    """World points in clip space."""
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
    light: Shading | None = None,
    everywhere: bool | None = None,
) -> Rendering:
    """Render square images, antialiased along the silhouettes and composited over `background`.

    Gradients reach the vertices through the silhouettes, the normals, and the points at which `material` is
    evaluated.

    Args:
        mesh: Its normals are interpolated without flipping them towards the camera.
        cameras: B views.
        resolution: Height and width.
        background: sRGB.
        rasterizer: The backend of the device that holds the mesh.
        material: Surface properties at world points.
        topology: The mesh's edges, computed when None.
        shading: Shade the base colour; otherwise the image has the base colour itself.
        light: Shades the material in place of the light that is fixed to the camera, when `shading`.
        everywhere: Evaluate `material` at all pixels, at the origin where no surface is, instead of at
            covered pixels only, whose number needs a synchronisation with CUDA; None is True on CUDA.
    """
    clip = project(mesh.vertices, cameras)
    fragments = rasterizer.rasterize(clip, mesh.faces, (resolution, resolution))
    everywhere = clip.is_cuda if everywhere is None else everywhere
    pixel = None if everywhere else _visible(fragments)
    attributes = _gather(_surface_attributes(mesh, fragments, rasterizer), pixel)
    found = material(attributes[:, :3])
    color = found.base_color
    if shading and light is not None:
        points, normal = attributes.chunk(2, dim=1)
        view = _views(pixel, fragments)
        color = light(found, normalize(normal, dim=-1), to_camera(points, view, cameras), view)
    plain = shading and light is None
    image, depth = _compose(color, attributes, pixel, fragments, cameras, background, shading=plain)
    image = antialias(image, fragments, clip, mesh.faces, topology)
    return _rendering(image, depth, background)


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
    """Render a mesh whose sRGB base colour is an image, with smooth normals and the same shading.

    Args:
        vertices: Shared across texture seams, so that the seams are no silhouette edges.
        faces: Corners of the triangles in `vertices`.
        uv: (0, 0) is the lower left corner of the image, as in OBJ; glTF files store 1 - v.
        uv_faces: The same corners in `uv`.
        texture: Row 0 on top; bilinear between texel centres, clamped at the border.
        cameras: B views.
        resolution: Height and width.
        background: sRGB.
        rasterizer: The backend of the device that holds the tensors.
        shading: Shade the base colour; otherwise the image has the base colour itself.
    """

    def color(fragments: Fragments) -> Tensor:
        attributes = rasterizer.interpolate(uv[None], fragments, uv_faces)
        return sample_texture(texture, _gather(attributes, _visible(fragments)))

    return render_colored(
        vertices, faces, cameras, resolution, background, rasterizer=rasterizer, color=color, shading=shading
    )


def render_colored(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    cameras: Cameras,
    resolution: int,
    background: Float[Tensor, "B 3"],
    *,
    rasterizer: Rasterizer,
    color: Callable[[Fragments], Float[Tensor, "P 3"]],
    shading: bool = True,
) -> Rendering:
    """Render a mesh with smooth normals; `color` is the sRGB base colour of the covered pixels, in order."""
    clip = project(vertices, cameras)
    fragments = rasterizer.rasterize(clip, faces, (resolution, resolution))
    mesh = Mesh(vertices, faces, vertex_normals(vertices, faces))
    pixel = _visible(fragments)
    attributes = _gather(_surface_attributes(mesh, fragments, rasterizer), pixel)
    image, depth = _compose(
        color(fragments), attributes, pixel, fragments, cameras, background, shading=shading
    )
    return _rendering(antialias(image, fragments, clip, faces), depth, background)


@dataclass(frozen=True)
class SurfaceSamples:
    """Surface attributes of a mesh at P pixels: the covered ones, or all, arbitrary without a surface."""

    points: Float[Tensor, "P 3"]  # world
    normals: Float[Tensor, "P 3"]  # on the side of the camera, of any length
    uv: Float[Tensor, "P 2"]
    triangle: Int[Tensor, " P"]
    view: Int[Tensor, " P"]
    side: Float[Tensor, " P"]  # 1 for front faces, -1 for back faces
    canonical: Float[Tensor, "P 3"]  # the points in the first instance of their part, in the world
    tangents: Float[Tensor, "P 4"] | None = None  # see `corner_tangents`
    others: Float[Tensor, "P C"] | None = None  # further attributes of the corners


@dataclass(frozen=True)
class Look:
    """What a render shows of P surface samples."""

    color: Float[Tensor, "P 3"]  # sRGB
    normals: Float[Tensor, "P 3"]  # on the side of the camera, of any length


def render_corners(  # noqa: PLR0913
    mesh: PreparedMesh,
    cameras: Cameras,
    resolution: int,
    background: Float[Tensor, "B 3"],
    *,
    rasterizer: Rasterizer,
    look: Callable[[SurfaceSamples], Look],
    topology: EdgeTopology,
    face_normals: Float[Tensor, "F 3"],
    tangents: Float[Tensor, "U 4"] | None = None,
    canonical: Float[Tensor, "V 3"] | None = None,
    others: tuple[Float[Tensor, "A C"], Int[Tensor, "F 3"]] | None = None,
    shading: bool = True,
) -> Rendering:
    """Render a mesh with its own normals; see `render_mesh`.

    Normals of back faces are flipped, as for glTF's double-sided materials (2.0, section 3.9.6), since the
    winding of foreign meshes is often inconsistent. The geometry is fixed.

    Args:
        mesh: In the world, on the rasteriser's device.
        cameras: B views.
        resolution: Height and width.
        background: sRGB.
        rasterizer: The backend of the device that holds the mesh.
        look: Colours and normals of surface samples.
        topology: Of faces that are welded along the seams of texture and normals.
        face_normals: Of the mesh, to the side from which its faces run counter-clockwise; of any length.
        tangents: Of the texture coordinates, where `look` needs them.
        canonical: The vertices in the first instance of their part; the vertices themselves when None.
        others: Further attributes and the faces' corners in them, where `look` needs some.
        shading: Shade the colours of `look` as base colours; otherwise the image has them as they are.
    """
    clip = project(mesh.vertices, cameras)
    fragments = rasterizer.rasterize(clip, mesh.faces, (resolution, resolution))
    textured = mesh.uv if tangents is None else torch.cat([mesh.uv, tangents], dim=1)
    placed = mesh.vertices if canonical is None else torch.cat([mesh.vertices, canonical], dim=1)
    parts = [(placed, mesh.faces), (mesh.normals, mesh.normal_faces), (textured, mesh.uv_faces)]
    values = [rasterizer.interpolate(part[None], fragments, faces) for part, faces in parts]
    pixel = None if clip.is_cuda else _visible(fragments)
    triangle, view = (
        _gather(fragments.triangle[..., None], pixel)[:, 0].clamp(min=0),
        _views(pixel, fragments),
    )
    points, normals, uv = (_gather(value, pixel) for value in values)
    more = None
    if others is not None:
        more = _gather(rasterizer.interpolate(others[0][None], fragments, others[1]), pixel)
    side = _sides(mesh, face_normals, cameras).index_select(0, view * len(mesh.faces) + triangle)
    normals, points, first = normals * side[:, None], points[:, :3], points[:, -3:]
    uv, frames = uv[:, :2], None if tangents is None else uv[:, 2:]
    shown = look(SurfaceSamples(points, normals, uv, triangle, view, side, first, frames, more))
    attributes = torch.cat([points, shown.normals], dim=1)
    image, depth = _compose(shown.color, attributes, pixel, fragments, cameras, background, shading=shading)
    return _rendering(antialias(image, fragments, clip, mesh.faces, topology), depth, background)


def to_camera(
    points: Float[Tensor, "P 3"], view: Int[Tensor, " P"], cameras: Cameras
) -> Float[Tensor, "P 3"]:
    """Unit vectors from world points towards the camera of the view that each is seen in."""
    return normalize(cameras.position[view] - points, dim=-1)


def _sides(mesh: PreparedMesh, face_normals: Float[Tensor, "F 3"], cameras: Cameras) -> Float[Tensor, " BF"]:
    """1 for front faces of each view, -1 for back faces."""
    corner = mesh.vertices.index_select(0, mesh.faces[:, 0])
    height = cameras.position @ face_normals.T - (corner * face_normals).sum(dim=1)
    return torch.where(height < 0, -1.0, 1.0).flatten()


def sample_texture(
    texture: Num[Tensor, "H W C"], uv: Float[Tensor, "P 2"], wrap: tuple[str, str] = ("clamp", "clamp")
) -> Float[Tensor, "P C"]:
    """Bilinear lookup; v points up while row 0 is on top. `wrap` of u and v: repeat, clamp or mirror.

    Of bytes, the result is in [0, 255], and no image of floating-point numbers is made.
    """
    if wrap != ("clamp", "clamp") or not texture.is_floating_point():
        return _sample_wrapped(texture, uv, wrap)
    grid = torch.stack([2 * uv[:, 0] - 1, 1 - 2 * uv[:, 1]], dim=-1)
    values = torch.nn.functional.grid_sample(
        texture.permute(2, 0, 1)[None], grid[None, None], padding_mode="border", align_corners=False
    )
    return values[0, :, 0].T


def _sample_wrapped(
    texture: Num[Tensor, "H W C"], uv: Float[Tensor, "P 2"], wrap: tuple[str, str]
) -> Float[Tensor, "P C"]:
    height, width = texture.shape[:2]
    columns, x = _texels(uv[:, 0], width, wrap[0])
    rows, y = _texels(1 - uv[:, 1].double(), height, wrap[1])
    upper, lower = (texture[row, columns[0]] * (1 - x) + texture[row, columns[1]] * x for row in rows)
    return upper * (1 - y) + lower * y


def _texels(
    place: Float[Tensor, " P"], size: int, mode: str
) -> tuple[tuple[Int[Tensor, " P"], Int[Tensor, " P"]], Float[Tensor, "P 1"]]:
    """The two texels around positions along an axis of the image, and the weight of the second one."""
    # two periods have the same texels, at any distance
    scaled = size * (place.double().clamp(-1, 2) if mode == "clamp" else place.double().fmod(2.0)) - 0.5
    first = scaled.floor()
    fraction = (scaled - first).to(torch.float32)[:, None]

    def index(texel: Tensor) -> Tensor:
        if mode == "clamp":
            return texel.clamp(0, size - 1)
        if mode == "repeat":
            return texel % size
        turned = texel % (2 * size)
        return torch.where(turned < size, turned, 2 * size - 1 - turned)

    return (index(first.long()), index(first.long() + 1)), fraction


def _surface_attributes(mesh: Mesh, fragments: Fragments, rasterizer: Rasterizer) -> Float[Tensor, "B H W 6"]:
    """World point and normal of every pixel."""
    attributes = torch.cat([mesh.vertices, mesh.normals], dim=1)[None]
    return rasterizer.interpolate(attributes, fragments, mesh.faces)


def _visible(fragments: Fragments) -> Int[Tensor, " P"]:
    """Flat indices, over all views, of the covered pixels; synchronises with CUDA."""
    return (fragments.data.detach()[..., 3].flatten() > 0).nonzero()[:, 0]


def _gather(values: Shaped[Tensor, "B H W C"], pixel: Int[Tensor, " P"] | None) -> Shaped[Tensor, "P C"]:
    """The values at some pixels, None for all in order; zero where no surface is."""
    flat = values.flatten(0, 2)
    # index_select, because the backward of indexing sorts
    return flat if pixel is None else flat.index_select(0, pixel)


def _views(pixel: Int[Tensor, " P"] | None, fragments: Fragments) -> Int[Tensor, " P"]:
    """The view of each pixel."""
    views, height, width = fragments.data.shape[:3]
    if pixel is None:
        pixel = torch.arange(views * height * width, device=fragments.data.device)
    return pixel // (height * width)


def _compose(
    color: Float[Tensor, "P 3"],
    attributes: Float[Tensor, "P 6"],
    pixel: Int[Tensor, " P"] | None,
    fragments: Fragments,
    cameras: Cameras,
    background: Float[Tensor, "B 3"],
    *,
    shading: bool,
) -> tuple[Float[Tensor, "B H W 7"], Float[Tensor, "B H W 1"]]:
    """Shaded colour, encoded normal and alpha of every pixel, without antialiasing, and its depth.

    `color` and `attributes` (points and normals) are those of the pixels that `_gather` took.
    """
    key = key_direction(cameras)
    if pixel is None and _is_fused(attributes, color, cameras, background):
        require_triton("images")
        from pgc3d.kernels.compose_triton import compose

        data, camera = fragments.data.detach(), cameras.camera_from_world
        return compose(attributes, color, data, key, camera, background, shading=shading)
    points, normal = attributes.chunk(2, dim=1)
    normal, view = normalize(normal, dim=-1), _views(pixel, fragments)
    if shading:
        color = shade(color, normal, key[view])
    towards_camera = cameras.camera_from_world[view, 2]
    distance = -(towards_camera[:, :3] * points).sum(-1, keepdim=True) - towards_camera[:, 3:]
    layers = torch.cat([color, 0.5 * normal + 0.5, torch.ones_like(distance)], dim=1)
    padding = [torch.full_like(background, 0.5), torch.zeros_like(background[:, :1])]
    empty = torch.cat([background, *padding], dim=1)[:, None, None]
    nowhere = torch.zeros_like(empty[..., :1])
    return _scatter(layers, pixel, fragments, empty), _scatter(distance, pixel, fragments, nowhere)


def _scatter(
    values: Float[Tensor, "P C"],
    pixel: Int[Tensor, " P"] | None,
    fragments: Fragments,
    empty: Float[Tensor, "B 1 1 C"],
) -> Float[Tensor, "B H W C"]:
    """Scatter values to the pixels of `_gather`; the others have `empty`."""
    shape = (*fragments.data.shape[:3], values.shape[1])
    if pixel is None:
        return torch.where(fragments.data.detach()[..., 3:] > 0, values.view(shape), empty)
    return empty.expand(shape).reshape(-1, shape[3]).index_copy(0, pixel, values).view(shape)


def _is_fused(attributes: Tensor, color: Tensor, cameras: Cameras, background: Float[Tensor, "B 3"]) -> bool:
    """Whether the image is composed by one fused kernel."""
    inputs = (attributes, color, cameras.camera_from_world, background)
    fixed = not (cameras.camera_from_world.requires_grad or background.requires_grad)
    return fixed and attributes.is_cuda and all(values.dtype == torch.float32 for values in inputs)


def _rendering(
    image: Float[Tensor, "B H W 7"], depth: Float[Tensor, "B H W 1"], background: Float[Tensor, "B 3"]
) -> Rendering:
    image = clamp_overshoot(image)
    color, normal, alpha = image[..., :3], image[..., 3:6], image[..., 6:]
    return Rendering(color=color, normal=normal, depth=depth, alpha=alpha, background=background)
