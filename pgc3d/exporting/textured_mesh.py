"""Export of a textured mesh: the given geometry unchanged, with a new material."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.choices import Format
from pgc3d.errors import InputError
from pgc3d.export_config import PlacingConfig
from pgc3d.exporting.bake import (
    TexelSurface,
    bake_bytes,
    shown_normals,
    shown_surface,
    texel_bands,
)
from pgc3d.exporting.coverage import Coverage, ProbedTexels, probe_texels
from pgc3d.exporting.document import write_document
from pgc3d.exporting.export import CHECK_RESOLUTION, ExportReport, describe_file, read_parts
from pgc3d.exporting.placing import height_of, placed_by, placing_of
from pgc3d.exporting.refined import TextureChange, rendered_asset, with_refined
from pgc3d.exporting.roundtrip import Part, comparison_views, round_trip_psnr
from pgc3d.geometry.own_uv import texel_centres
from pgc3d.geometry.tangents import corner_tangents
from pgc3d.images import to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset
from pgc3d.mesh_io.formats import FORMATS, WRITABLE
from pgc3d.mesh_io.mesh_file import write_mesh
from pgc3d.mesh_io.repaint import MaterialImages
from pgc3d.rendering.visibility import SurfaceVisibility
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import Cameras, Placement, PreparedMesh, Rendering, TextureSet, Views

FEW_VERTICES = "it has too few vertices for the colours, use --format glb or obj"


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
def export_textured_mesh(  # noqa: PLR0913 - flat on purpose
    textured: TexturedMesh,
    path: Path,
    *,
    format: Format,
    rasterizer: Rasterizer,
    texture_size: int = 1024,
    metadata: Mapping[str, str | int | float] | None = None,
    document: Path | None = None,
    placing: PlacingConfig = PlacingConfig(),  # noqa: B008 - immutable
    cameras: Sequence[Cameras] = (),
) -> ExportReport:
    """Bake into the mesh's texture coordinates, write, read back and compare the unlit textures.

    Vertices and faces are those of the file that was given, in its order, its axes and its scale, unless
    `placing` changes the latter two.

    Args:
        textured: on the rasteriser's device.
        path: the mesh file; others go beside it.
        format: one that carries textures or vertex colours.
        rasterizer: the backend for baking and for the comparison.
        texture_size: side in texels of the largest texture set's images.
        metadata: for example prompt and seed; goes into the file where the format has a place.
        document: archive of the mesh's file in this format, which comes back with all its contents; a file of
            the surface alone is written when None.
        placing: size, axes and origin of the mesh in the file; by default those of the mesh that was given.
        cameras: some of the run's, for the report of what they saw.

    Returns:
        The report; the files exist even where `faithful` is false.

    Raises:
        InputError: the folder cannot be written or the disk is full, or the format has no colours.
        RunDirectoryError: the archive is missing or damaged.
    """
    require_colors(format)
    with_texture = FORMATS[format].carries == "textures"
    watch, given = Stopwatch(torch.device("cpu")), textured.prepared
    bare = MeshAsset(
        given.vertices,
        given.faces,
        given.normals,
        normal_faces=given.normal_faces,
        metadata=dict(metadata or {}),
    )
    with watch.part("bake"):
        if with_texture:
            baked = _baked(bare, textured, texture_size=texture_size, rasterizer=rasterizer, cameras=cameras)
        else:
            baked = _Baked(_with_vertex_colors(bare, textured))
    with watch.part("write"):
        moved = placing_of(baked.asset, placing, given.placement, format)
        placed, placement = placed_by(moved, baked.asset, given.placement)
        if document is None:
            written = write_mesh(path, placed, format)
        else:
            images = _images(baked.asset, textured)
            written = write_document(
                document, path, textured.mesh, images, rasterizer=rasterizer, metadata=bare.metadata,
                placing=moved,
            )  # fmt: skip
    with watch.part("compare"):
        # of a document's materials, the base colours are compared
        maps = with_texture and document is None
        psnr = _compared(path, baked.asset, textured, placement, rasterizer, maps=maps, textures=with_texture)
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
        notes=(baked.coverage.remark,) if baked.coverage is not None else (),
        change=baked.change,
    )


@dataclass(frozen=True)
class _Baked:
    """An asset with its colours, and what is reported about them."""

    asset: MeshAsset
    coverage: Coverage | None = None
    change: TextureChange | None = None


def _baked(
    bare: MeshAsset,
    textured: TexturedMesh,
    *,
    texture_size: int,
    rasterizer: Rasterizer,
    cameras: Sequence[Cameras],
) -> _Baked:
    """The asset with the images of all texture sets."""
    visibility = SurfaceVisibility(textured.mesh.vertices, textured.mesh.faces, rasterizer)
    probed = probe_texels(textured, visibility, texture_size=texture_size)
    coverage = probed.coverage(cameras, visibility) if cameras else None
    images = [
        bake_texture(
            textured, index, texture_size=part.side(texture_size), rasterizer=rasterizer, probed=probed
        )
        for index, part in enumerate(textured.prepared.sets)
    ]
    asset = _with_textures(bare, textured, images)
    if textured.refinement is None:
        return _Baked(asset, coverage)
    asset, change = with_refined(asset, textured, textured.refinement, rasterizer=rasterizer)
    return _Baked(asset, coverage, change)


def _compared(
    path: Path,
    asset: MeshAsset,
    textured: TexturedMesh,
    placement: Placement,
    rasterizer: Rasterizer,
    *,
    maps: bool,
    textures: bool,
) -> float:
    """PSNR in dB of the written file against the run's own unlit render; see `round_trip_psnr`."""
    cameras, background = comparison_views(textured.mesh.vertices.device)
    views = Views(cameras, background)
    own = partial(textured.shaded, views, CHECK_RESOLUTION, shading=False, holes=False)
    others: dict[Part, Rendering] = {"metallic_roughness": own(shown=shown_surface)} if maps else {}
    if maps and textured.has_bump:
        others["normal_map"] = own(shown=shown_normals)
    if textured.refinement is not None and textures:
        reference = rendered_asset(asset, textured, views, CHECK_RESOLUTION, rasterizer=rasterizer)
    else:
        reference = own()
    return round_trip_psnr(
        path,
        reference,
        cameras,
        rasterizer=rasterizer,
        placement=placement,
        shading=False,
        others=others,
    )


def _images(asset: MeshAsset, textured: TexturedMesh) -> tuple[MaterialImages, ...]:
    """The images of each texture set for a document; constant roughness and metallic stay the file's."""
    images = []
    for surface in asset.surfaces:
        if surface.image is None:
            raise ValueError("a document must get images of the base colour")
        varying = surface.metallic_roughness if textured.varies else None
        images.append(MaterialImages(surface.image, varying, surface.normal_map, surface.wrap))
    return tuple(images)


def _losses(textured: TexturedMesh) -> tuple[str, ...]:
    """What vertex colours do not hold of the material."""
    lost = ("roughness and metallic",) if textured.varies else ()
    return (*lost, "the bump") if textured.has_bump else lost


def _with_textures(
    asset: MeshAsset, textured: TexturedMesh, images: Sequence[UInt8[Tensor, "S S K"]]
) -> MeshAsset:
    """The asset with a material for each texture set, whose channels are baked; constants are one texel."""
    given = textured.prepared
    surfaces = [_surface(textured, part, image) for part, image in zip(given.sets, images, strict=True)]
    drawn: dict[str, Any] = {
        "uv": given.uv,
        "uv_faces": given.uv_faces,
        "tangents": corner_tangents(given) if textured.has_bump else None,
    }
    if len(surfaces) > 1:
        return replace(asset, materials=tuple(surfaces), face_material=given.face_set, **drawn)
    return replace(
        asset,
        base_color=surfaces[0].image,
        wrap=surfaces[0].wrap,
        metallic_roughness=surfaces[0].metallic_roughness,
        normal_map=surfaces[0].normal_map,
        **drawn,
    )


def _surface(textured: TexturedMesh, part: TextureSet, image: UInt8[Tensor, "S S K"]) -> AssetMaterial:
    base, surface, normals = image[..., :3], image[..., 3:5], image[..., 5:]
    if not textured.varies:
        constant = textured.texture.channels.material(torch.zeros(1, 3))
        surface = to_bytes(torch.cat([constant.roughness, constant.metallic], dim=1))[None]
    occlusion = torch.full_like(surface[..., :1], 255)
    return AssetMaterial(
        torch.ones(3),
        base.contiguous(),
        ("repeat", "repeat") if part.wraps else ("clamp", "clamp"),
        part.name,
        metallic_roughness=torch.cat([occlusion, surface], dim=2),
        normal_map=normals.contiguous() if textured.has_bump else None,
    )


@torch.no_grad()
def bake_texture(
    textured: TexturedMesh,
    index: int,
    *,
    texture_size: int,
    rasterizer: Rasterizer,
    probed: ProbedTexels | None = None,
) -> UInt8[Tensor, "S S K"]:
    """A texture set's image, continued beyond the charts, on the CPU; see `bake_bytes`.

    Its channels are base colour, where they vary roughness and metallic, and where there is a bump the
    normals in tangent space. Where texels were `probed`, hidden ones have the values of others.
    """
    mesh, part = textured.mesh, textured.prepared.sets[index]

    def texels(points: Float[Tensor, "P 3"], uv: Float[Tensor, "P 2"]) -> UInt8[Tensor, "P K"]:
        sets = torch.full((len(points),), index, dtype=torch.int64, device=points.device)
        values = textured.texels(points, uv, sets, texture_size=texture_size)
        if probed is not None:
            values = probed.replace_hidden(textured, index, points, uv, values)
        return _channels(textured, values)

    if part.wraps:
        return _repeating(texels, texture_size, mesh.vertices.device)
    rows = mesh.faces_of(index)
    surface = TexelSurface(textured.canonical, mesh.faces[rows], mesh.uv, mesh.uv_faces[rows])
    image, _ = bake_bytes(surface, texels, texture_size=texture_size, rasterizer=rasterizer)
    return image


def _channels(textured: TexturedMesh, values: Float[Tensor, "P C"]) -> UInt8[Tensor, "P K"]:
    material = textured.texture.channels.material(values)
    parts = [material.base_color]
    if textured.varies:
        parts += [material.roughness, material.metallic]
    if material.slope is not None:
        parts.append(shown_normals(material))
    return to_bytes(torch.cat(parts, dim=1))


def _repeating(
    texels: Callable[[Float[Tensor, "P 3"], Float[Tensor, "P 2"]], UInt8[Tensor, "P K"]],
    texture_size: int,
    device: torch.device,
) -> UInt8[Tensor, "S S K"]:
    """A repeating image: every texel may be visible, and colours are functions of texture coordinates."""
    parts = []
    for rows in texel_bands(texture_size):
        everywhere = torch.ones(len(rows), texture_size, dtype=torch.bool, device=device)
        nowhere = torch.zeros(everywhere.numel(), 3, device=device)
        found = texels(nowhere, texel_centres(everywhere, texture_size, rows)).cpu()
        parts.append(found.view(len(rows), texture_size, -1))
    return torch.cat(parts)


def _with_vertex_colors(asset: MeshAsset, textured: TexturedMesh) -> MeshAsset:
    """The asset with colours and normals of the vertices, for a format without textures."""
    mesh = textured.mesh
    uv, sets = mesh.uv.new_zeros(len(mesh.vertices), 2), torch.zeros_like(mesh.vertices[:, 0]).long()
    uv[mesh.faces.reshape(-1)] = mesh.uv[mesh.uv_faces.reshape(-1)]
    sets[mesh.faces.reshape(-1)] = mesh.face_set.repeat_interleave(3)
    colors = textured.texels(textured.canonical, uv, sets)[:, :3]
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
