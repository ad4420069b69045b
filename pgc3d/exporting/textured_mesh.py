"""Export of a textured mesh: the given geometry unchanged, with a new material."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.choices import Format
from pgc3d.errors import InputError
from pgc3d.exporting.bake import fill, shown_normals, shown_surface, surface_texels
from pgc3d.exporting.export import CHECK_RESOLUTION, ExportReport, describe_file, read_parts
from pgc3d.exporting.placing import PlacingConfig, height_of, place_asset
from pgc3d.exporting.roundtrip import Part, comparison_views, round_trip_psnr
from pgc3d.geometry.tangents import corner_tangents
from pgc3d.images import to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.formats import FORMATS, WRITABLE
from pgc3d.mesh_io.mesh_file import write_mesh
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import PreparedMesh, Rendering, Views

FEW_VERTICES = "it has too few vertices for the colours, use --format glb or obj"
FINEST = 1 << 16  # texels, larger than every texture, so that look-ups are not filtered


def require_colors(format: Format) -> None:
    """Check that a format holds colours.

    Raises:
        InputError: it has none, as STL.
    """
    if FORMATS[format].carries == "surface":
        others = ", ".join(name for name in WRITABLE if FORMATS[name].carries != "surface")
        raise InputError(
            f"a textured mesh must be written as one of {others}, got {format}, which has no colours"
        )


@torch.no_grad()
def export_textured_mesh(
    textured: TexturedMesh,
    path: Path,
    *,
    format: Format,
    rasterizer: Rasterizer,
    texture_size: int = 1024,
    metadata: Mapping[str, str | int | float] | None = None,
    placing: PlacingConfig = PlacingConfig(),  # noqa: B008 - immutable
) -> ExportReport:
    """Bake into the mesh's texture coordinates, write, read back and compare the unlit textures.

    Vertices and faces are those of the file that was given, in its order, its axes and its scale, unless
    `placing` changes the latter two.

    Args:
        textured: on the rasteriser's device.
        path: the mesh file; others go beside it.
        format: one that carries textures or vertex colours.
        rasterizer: the backend for baking and for the comparison.
        texture_size: side of the texture in texels.
        metadata: for example prompt and seed; goes into the file where the format has a place.
        placing: size, axes and origin of the mesh in the file; by default those of the mesh that was given.

    Returns:
        The report; the files exist even where `faithful` is false.

    Raises:
        InputError: the folder cannot be written or the disk is full, or the format has no colours.
    """
    require_colors(format)
    with_texture = FORMATS[format].carries == "textures"
    watch, given = Stopwatch(torch.device("cpu")), textured.prepared
    asset = MeshAsset(
        given.vertices,
        given.faces,
        given.normals,
        normal_faces=given.normal_faces,
        metadata=dict(metadata or {}),
    )
    with watch.part("bake"):
        if with_texture:
            image = bake_texture(textured, texture_size=texture_size, rasterizer=rasterizer)
            asset = _with_textures(asset, textured, image)
        else:
            asset = _with_vertex_colors(asset, textured)
    with watch.part("write"):
        placed, placement = place_asset(asset, placing, given.placement, format)
        written = write_mesh(path, placed, format)
    with watch.part("compare"):
        cameras, background = comparison_views(textured.mesh.vertices.device)
        own = partial(textured.shaded, Views(cameras, background), CHECK_RESOLUTION, shading=False)
        others: dict[Part, Rendering] = {}
        if asset.metallic_roughness is not None:
            others["metallic_roughness"] = own(shown=shown_surface)
        if asset.normal_map is not None:
            others["normal_map"] = own(shown=shown_normals)
        psnr = round_trip_psnr(
            path,
            own(),
            cameras,
            rasterizer=rasterizer,
            placement=placement,
            shading=False,
            others=others,
        )
    return ExportReport(
        files=tuple(describe_file(file) for file in written),
        vertices=len(given.vertices),
        faces=len(given.faces),
        uv_method=textured.prepared.uv_method if with_texture else None,
        dropped=0.0,
        psnr=psnr,
        seconds=read_parts(watch),
        lost=() if with_texture else _losses(textured),
        remedy="raise --texture-size" if with_texture else FEW_VERTICES,
        height=height_of(placed, placement),
    )


def _losses(textured: TexturedMesh) -> tuple[str, ...]:
    """What vertex colours do not hold of the material."""
    lost = ("roughness and metallic",) if textured.varies else ()
    return (*lost, "the bump") if textured.has_bump else lost


def _with_textures(asset: MeshAsset, textured: TexturedMesh, image: Float[Tensor, "S S C"]) -> MeshAsset:
    """The asset with the textures of a material whose channels are baked; constants are a single texel."""
    given, size = textured.prepared, len(image)
    material = textured.texture.channels.material(image.flatten(0, 1))
    surface = to_bytes(shown_surface(material))
    normal_map, tangents = None, None
    if material.slope is not None:
        normal_map = to_bytes(shown_normals(material)).reshape(size, size, 3)
        tangents = corner_tangents(given)
    return replace(
        asset,
        uv=given.uv,
        uv_faces=given.uv_faces,
        base_color=to_bytes(material.base_color).reshape(size, size, 3),
        wrap=("repeat", "repeat") if textured.prepared.uv_wraps else ("clamp", "clamp"),
        metallic_roughness=surface.reshape(size, size, 3) if textured.varies else surface[:1, None],
        normal_map=normal_map,
        tangents=tangents,
    )


@torch.no_grad()
def bake_texture(
    textured: TexturedMesh, *, texture_size: int, rasterizer: Rasterizer, padding: int = 4
) -> Float[Tensor, "S S C"]:
    """The texture's channels at every texel, continued beyond the charts; see `bake`."""
    mesh = textured.mesh
    if textured.prepared.uv_wraps:
        return _repeating(textured, texture_size)
    points, covered = surface_texels(
        mesh.vertices, mesh.faces, mesh.uv, mesh.uv_faces, texture_size=texture_size, rasterizer=rasterizer
    )
    image = torch.zeros(*covered.shape, len(textured.texture.channels.bounds), device=points.device)
    image[covered] = textured.texels(points[covered], _centres(covered), texture_size=texture_size)
    return fill(image, covered, padding=padding)


def _repeating(textured: TexturedMesh, texture_size: int) -> Float[Tensor, "S S C"]:
    """A repeating image: every texel may be visible, and colours are functions of texture coordinates."""
    device = textured.mesh.vertices.device
    everywhere = torch.ones(texture_size, texture_size, dtype=torch.bool, device=device)
    nowhere = torch.zeros(texture_size**2, 3, device=device)
    colors = textured.texels(nowhere, _centres(everywhere), texture_size=texture_size)
    return colors.view(texture_size, texture_size, -1)


def _centres(covered: Bool[Tensor, "S S"]) -> Float[Tensor, "P 2"]:
    """Texture coordinates of the centres of texels; v points up."""
    row, column = covered.nonzero().unbind(1)
    return torch.stack([column + 0.5, len(covered) - row - 0.5], dim=1) / len(covered)


def _with_vertex_colors(asset: MeshAsset, textured: TexturedMesh) -> MeshAsset:
    """The asset with colours and normals of the vertices, for a format without textures."""
    mesh = textured.mesh
    uv = mesh.uv.new_zeros(len(mesh.vertices), 2)
    uv[mesh.faces.reshape(-1)] = mesh.uv[mesh.uv_faces.reshape(-1)]
    colors = textured.texels(mesh.vertices, uv, texture_size=FINEST)[:, :3]
    return replace(
        asset,
        normals=_mean_normals(textured.prepared),
        normal_faces=None,
        vertex_color=to_bytes(colors),
    )


def _mean_normals(mesh: PreparedMesh) -> Float[Tensor, "V 3"]:
    """Mean of the normals that a vertex has in its faces; +z where it has none."""
    total = torch.zeros_like(mesh.vertices)
    total.index_add_(0, mesh.faces.reshape(-1), mesh.normals[mesh.normal_faces.reshape(-1)])
    unit = normalize(total, dim=1)
    return torch.where(unit.norm(dim=1, keepdim=True) > 0.5, unit, torch.tensor([0.0, 0.0, 1.0]))
