"""The formats of mesh files: what each holds, and the functions that read and write it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.encoders import encode_binary_gltf, encode_gltf, encode_obj, encode_ply, encode_stl
from pgc3d.mesh_io.gltf_reader import read_gltf
from pgc3d.mesh_io.imported import read_3mf, read_fbx, read_off
from pgc3d.mesh_io.obj import read_obj
from pgc3d.mesh_io.ply import read_ply
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.mesh_io.stl import read_stl
from pgc3d.mesh_io.usd import encode_usdz, read_usdz


@dataclass(frozen=True)
class MeshFormat:
    """A format of mesh files."""

    carries: Literal["textures", "vertex colors", "surface"]  # of what a run makes
    read: Callable[[bytes, Path], SourceMesh] | None = None
    write: Callable[[Path, MeshAsset], dict[Path, bytes]] | None = None  # the bytes of all files
    framed: bool = False  # it states that y is up and that lengths are in metres


FORMATS: Mapping[str, MeshFormat] = {
    "glb": MeshFormat("textures", read_gltf, encode_binary_gltf, framed=True),
    "gltf": MeshFormat("textures", read_gltf, encode_gltf, framed=True),
    "obj": MeshFormat("textures", read_obj, encode_obj),
    "ply": MeshFormat("vertex colors", read_ply, encode_ply),
    "stl": MeshFormat("surface", read_stl, encode_stl),
    "usdz": MeshFormat("textures", read_usdz, encode_usdz, framed=True),
    "off": MeshFormat("surface", read_off),
    "3mf": MeshFormat("surface", read_3mf),
    "fbx": MeshFormat("textures", read_fbx),
}
READABLE = tuple(name for name, item in FORMATS.items() if item.read is not None)
WRITABLE = tuple(name for name, item in FORMATS.items() if item.write is not None)
TEXTURED = tuple(name for name in WRITABLE if FORMATS[name].carries == "textures")
