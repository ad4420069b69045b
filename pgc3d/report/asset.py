"""The asset of a run for a page: a GLB to orbit, a turntable, and the health of its mesh."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from pgc3d.cameras import turntable
from pgc3d.errors import InputError
from pgc3d.evaluation.alignment import normalize_mesh
from pgc3d.evaluation.render import render_views
from pgc3d.images import to_bytes
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.encoders import GENERATOR
from pgc3d.mesh_io.gltf_writer import encode_glb, pack_glb, unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.plain_files import read_file
from pgc3d.rendering.shading import srgb_to_linear
from pgc3d.report.images import encode_jpeg
from pgc3d.report.mesh_health import MeshHealth, measure_mesh

LARGEST = 64_000_000  # bytes of a GLB in a page
MATTE = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.8}}  # glTF's default is a metal
FRAMES, SIDE = 24, 256  # of the turntable


@dataclass(frozen=True)
class Turntable:
    """Frames of one revolution, the front first, side by side in one JPEG."""

    jpeg: bytes
    frames: int
    side: int  # of a frame in pixels


@dataclass(frozen=True)
class AssetFacts:
    """The mesh file of a run."""

    name: str
    size: int  # bytes of the mesh file
    glb: bytes | None = None  # None where it is not to be displayed, see the notes
    health: MeshHealth | None = None
    turntable: Turntable | None = None
    notes: tuple[str, ...] = ()


def asset_facts(path: Path, *, rasterizer: Rasterizer) -> AssetFacts:
    """Read, measure and render a mesh file of a run.

    Args:
        path: the mesh file, in the run's folder.
        rasterizer: on the CPU.

    Raises:
        RunDirectoryError: the file is a link.
        OSError: it cannot be read.
    """
    content = read_file(path)
    own = content if path.suffix.lower() == ".glb" else None
    try:
        asset = read_mesh(path)
    except InputError as error:
        return AssetFacts(path.name, len(content), notes=(str(error),))
    notes, health, frames = [], None, None
    try:
        health = measure_mesh(asset, rasterizer=rasterizer)
        frames = _turntable(asset, rasterizer)
    except (InputError, ValueError) as error:
        notes.append(f"{path.name} cannot be measured: {error}")
    glb = own or as_glb(asset, path.stem)
    if len(glb) > LARGEST:
        notes.append(f"{path.name} has {len(glb) / 1e6:.0f} MB, more than a page holds, and is not displayed")
    elif own is None:
        notes.append(f"{path.name} is displayed as a GLB")
    return AssetFacts(
        path.name, len(content), glb if len(glb) <= LARGEST else None, health, frames, tuple(notes)
    )


def as_glb(asset: MeshAsset, name: str) -> bytes:
    """A GLB of a mesh in any format, with its images, or else its vertex colours, or grey."""
    if asset.uv is not None and asset.surfaces and all(item.image is not None for item in asset.surfaces):
        return encode_glb(asset, generator=GENERATOR, name=name)
    import trimesh

    colors = None
    if asset.vertex_color is not None and len(asset.vertex_color) == len(asset.vertices):
        linear = srgb_to_linear(asset.vertex_color.float() / 255)  # as glTF has them
        colors = to_bytes(linear).numpy()
    mesh = trimesh.Trimesh(asset.vertices.numpy(), asset.faces.numpy(), vertex_colors=colors, process=False)
    document, binary = unpack_glb(mesh.export(file_type="glb", include_normals=True))
    for primitive in document["meshes"][0]["primitives"]:
        primitive["material"] = 0
    return pack_glb(document | {"materials": [MATTE]}, binary)


def _turntable(asset: MeshAsset, rasterizer: Rasterizer) -> Turntable:
    cameras = turntable(FRAMES)
    color = render_views(normalize_mesh(asset), cameras, SIDE, rasterizer=rasterizer).color
    strip = torch.cat(list(to_bytes(color)), dim=1)
    return Turntable(encode_jpeg(Image.fromarray(strip.numpy())), FRAMES, SIDE)
