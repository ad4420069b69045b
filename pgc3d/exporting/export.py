"""Export of a representation to mesh files that are read back and compared with it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.choices import Format
from pgc3d.disk import sha256
from pgc3d.export_config import PlacingConfig
from pgc3d.exporting.bake import bake, query, shown_surface, vertex_colors
from pgc3d.exporting.placing import height_of, place_asset
from pgc3d.exporting.refined import TextureChange
from pgc3d.exporting.roundtrip import MIN_PSNR, Part, comparison_views, round_trip_psnr
from pgc3d.geometry.cleanup import clean
from pgc3d.geometry.normals import face_vectors
from pgc3d.geometry.uv import UvAtlas, unwrap
from pgc3d.interfaces import Meshable, Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.formats import FORMATS
from pgc3d.mesh_io.mesh_file import write_mesh
from pgc3d.rendering.mesh_renderer import render_mesh
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import Material, Mesh, Placement, Rendering

logger = logging.getLogger(__name__)

CHECK_RESOLUTION = 256


@dataclass(frozen=True)
class ExportedFile:
    """A written file."""

    path: Path
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class ExportReport:
    """The files of an export and its measurements."""

    files: tuple[ExportedFile, ...]  # the mesh first, then the files it names
    vertices: int
    faces: int
    uv_method: str | None  # None for formats without texture coordinates
    dropped: float  # fraction of the surface's area that cleaning removed
    psnr: float  # dB, of the file read back against the run's render of the cleaned surface
    seconds: Mapping[str, float]  # by part
    lost: tuple[str, ...] = ()  # noun phrases of what the format has no place for
    remedy: str = ""  # what a user can change where the file is not faithful
    height: float = 0.0  # extent of the file's vertices along the axis that points up, in the file's numbers
    notes: tuple[str, ...] = ()  # lines about the texture
    change: TextureChange | None = None  # of a source texture

    @property
    def remarks(self) -> str:
        """What the file lacks of the surface and of its material, to be put behind the number of faces."""
        loose = f", loose parts removed ({self.dropped:.1%} of the surface)" if self.dropped > 1e-3 else ""
        lost = " and ".join(self.lost)
        change = f", {self.change.remark}" if self.change is not None else ""
        return f"{loose}{change}, without {lost}, which the format does not hold" if lost else loose + change

    def record(self) -> dict[str, Any]:
        """The entries of a manifest."""
        entries: dict[str, Any] = {"psnr": self.psnr, "faces": self.faces, "seconds": dict(self.seconds)}
        entries["height"] = self.height
        return entries | ({"texture": asdict(self.change)} if self.change is not None else {})

    @property
    def faithful(self) -> bool:
        """Whether renders of the file match those of the run."""
        return self.psnr >= MIN_PSNR


@torch.no_grad()
def export_asset(  # noqa: PLR0913 - flat on purpose
    representation: Meshable,
    path: Path,
    *,
    format: Format,
    rasterizer: Rasterizer,
    texture_size: int = 1024,
    faces: int | None = 20_000,
    metadata: Mapping[str, str | int | float] | None = None,
    uv_time_limit: float = 60.0,
    placing: PlacingConfig = PlacingConfig(),  # noqa: B008 - immutable
) -> ExportReport:
    """Clean, decimate, unwrap, bake, write, read back and compare.

    Args:
        representation: on the rasteriser's device.
        path: the mesh file; others go beside it.
        format: what it carries is in `mesh_io.formats`: textures, vertex colours, or the surface alone.
        rasterizer: the backend for baking and for the comparison.
        texture_size: side of the textures in texels.
        faces: upper bound on the faces; None keeps all.
        metadata: for example prompt and seed; goes into the file where the format has a place.
        uv_time_limit: seconds for xatlas, see `unwrap`.
        placing: size, axes and origin of the mesh in the file.

    Returns:
        The report; the files exist even where `faithful` is false.

    Raises:
        DivergedError: there is no surface to export.
        InputError: the folder cannot be written or the disk is full.
    """
    watch = Stopwatch(torch.device("cpu"))
    with watch.part("surface"):
        dense = representation.to_mesh()
    with watch.part("cleanup"):
        whole = clean(dense.vertices, dense.faces)
        mesh = clean(whole.vertices, whole.faces, target_faces=faces, keep_fraction=0.0)
    device = dense.vertices.device
    bare = MeshAsset(mesh.vertices, mesh.faces, mesh.normals, metadata=dict(metadata or {}))
    asset, method = bare, None
    lost: tuple[str, ...] = ()
    carries = FORMATS[format].carries
    if carries == "textures":
        with watch.part("uv"):
            atlas = unwrap(mesh.vertices, mesh.faces, texture_size=texture_size, time_limit=uv_time_limit)
        with watch.part("bake"):
            asset = _with_textures(
                bare, atlas, representation, texture_size=texture_size, device=device, rasterizer=rasterizer
            )
        method = atlas.method
    if carries == "vertex colors":
        with watch.part("bake"):
            vertices = mesh.vertices.to(device)
            colors = vertex_colors(vertices, representation.material)
        asset = replace(bare, vertex_color=colors)
        lost = _losses(query(representation.material, vertices))
    with watch.part("write"):
        placed, placement = place_asset(asset, placing, Placement.identity(), format)
        written = write_mesh(path, placed, format)
    with watch.part("compare"):
        cameras, background = comparison_views(device)
        surface = Mesh(whole.vertices.to(device), whole.faces.to(device), whole.normals.to(device))
        own = partial(render_mesh, surface, cameras, CHECK_RESOLUTION, background, rasterizer=rasterizer)
        reference, others = own(material=representation.material), dict[Part, Rendering]()
        if asset.metallic_roughness is not None:
            others["metallic_roughness"] = own(material=_surface_of(representation), shading=False)
        psnr = round_trip_psnr(
            path, reference, cameras, rasterizer=rasterizer, placement=placement, others=others
        )
    return ExportReport(
        files=tuple(describe_file(file) for file in written),
        vertices=len(mesh.vertices),
        faces=len(mesh.faces),
        uv_method=method,
        dropped=max(0.0, 1.0 - _area(whole) / _area(dense)),
        psnr=psnr,
        seconds=read_parts(watch),
        lost=lost,
        remedy="raise --texture-size or --faces",
        height=height_of(placed, placement),
    )


def _surface_of(representation: Meshable) -> Callable[[Float[Tensor, "P 3"]], Material]:
    """The material with roughness and metallic in place of the base colour."""

    def shown(points: Float[Tensor, "P 3"]) -> Material:
        material = representation.material(points)
        return replace(material, base_color=shown_surface(material))

    return shown


def _losses(values: Float[Tensor, "P 5"]) -> tuple[str, ...]:
    """What vertex colours do not hold of a material, unless it is constant."""
    others = values[:, 3:]
    varies = len(others) > 0 and bool((others.amax(0) - others.amin(0) > 1 / 255).any())
    return ("roughness and metallic",) if varies else ()


def _with_textures(
    asset: MeshAsset,
    atlas: UvAtlas,
    representation: Meshable,
    *,
    texture_size: int,
    device: torch.device,
    rasterizer: Rasterizer,
) -> MeshAsset:
    textures = bake(
        asset.vertices.to(device),
        atlas,
        representation.material,
        texture_size=texture_size,
        rasterizer=rasterizer,
    )
    return replace(
        asset,
        uv=atlas.uv,
        uv_faces=atlas.uv_faces,
        base_color=textures.base_color,
        metallic_roughness=textures.metallic_roughness,
    )


def _area(mesh: Mesh) -> float:
    return float(face_vectors(mesh.vertices, mesh.faces).norm(dim=-1).nansum()) / 2


def describe_file(path: Path) -> ExportedFile:
    """Size and hash of a written file."""
    return ExportedFile(path=path, size=path.stat().st_size, sha256=sha256(path))


def read_parts(stopwatch: Stopwatch) -> dict[str, float]:
    """Seconds of each part of an export; they are logged too."""
    seconds = stopwatch.read()
    for name, taken in seconds.items():
        logger.info("export: %s took %.2f s", name, taken)
    return seconds
