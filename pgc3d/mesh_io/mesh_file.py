"""Writing and reading of mesh assets as GLB, OBJ, PLY or STL.

The axes are not changed: y up, front +z, or those of a given mesh. Files are written atomically.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

import pgc3d
from pgc3d.choices import Format
from pgc3d.disk import write_files
from pgc3d.images import encode_png
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.colors import colored
from pgc3d.mesh_io.gltf_writer import encode_glb, read_metadata
from pgc3d.mesh_io.reader import read_source

FORMATS: tuple[str, ...] = get_args(Format)
GENERATOR = f"pgc3d {pgc3d.__version__}"


def write_mesh(path: Path, asset: MeshAsset, format: Format) -> list[Path]:
    """Write `asset`; the written files, the mesh first.

    glb and obj (with mtl and png beside it) need a texture, ply needs `vertex_color`, stl takes any surface.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
        ValueError: the asset lacks data that the format requires.
    """
    encoders: Mapping[str, Callable[[Path, MeshAsset], dict[Path, bytes]]] = {
        "glb": _encode_glb,
        "obj": _encode_obj,
        "ply": _encode_ply,
        "stl": _encode_stl,
    }
    contents = encoders[format](path, asset)
    write_files(contents)  # side files come first, so that they exist when the mesh does
    return [path, *(file for file in contents if file != path)]


def _encode_glb(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    return {path: encode_glb(asset, generator=GENERATOR, name=path.stem)}


def _encode_obj(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    if asset.uv is None or asset.uv_faces is None or asset.base_color is None:
        raise ValueError("an OBJ must have texture coordinates and a base colour image")
    # Many readers split the line at blanks, so the files named in it have none.
    stem = "_".join(path.stem.split()) or "mesh"
    images = {"map_Kd": (f"{stem}_base_color.png", asset.base_color)}
    if asset.metallic_roughness is not None:
        images["map_Pr"] = (f"{stem}_roughness.png", asset.metallic_roughness[..., 1])
        images["map_Pm"] = (f"{stem}_metallic.png", asset.metallic_roughness[..., 2])
    if asset.normal_map is not None:
        images["norm"] = (f"{stem}_normal.png", asset.normal_map)
    material = [f"# {GENERATOR}", "newmtl surface", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1"]
    material += [f"{key} {name}" for key, (name, _) in images.items()]
    corners = torch.stack([asset.faces, asset.uv_faces, asset.normals_of_corners], dim=-1).reshape(-1, 9) + 1
    text = [
        f"# {GENERATOR}",
        f"# {_metadata_line(asset)}",
        f"mtllib {stem}.mtl",
        *_rows("v %.9g %.9g %.9g", asset.vertices),
        *_rows("vt %.9g %.9g", asset.uv),
        *_rows("vn %.6f %.6f %.6f", asset.normals),
        "usemtl surface",
        *_rows("f %d/%d/%d %d/%d/%d %d/%d/%d", corners),
    ]
    contents = {path.with_name(name): encode_png(image) for name, image in images.values()}
    contents[path.with_name(f"{stem}.mtl")] = _lines(material)
    contents[path] = _lines(text)
    return contents


def _rows(pattern: str, values: Tensor) -> list[str]:
    return [pattern % tuple(row) for row in values.tolist()]


def _lines(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _metadata_line(asset: MeshAsset) -> str:
    return json.dumps(dict(asset.metadata))  # one line of ASCII, whatever the prompt holds


def _encode_ply(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    if asset.vertex_color is None or asset.normal_faces is not None:
        raise ValueError("a PLY must have vertex colours, and one normal for each vertex")
    vertices = np.empty(
        len(asset.vertices), dtype=[("position", "<f4", 3), ("normal", "<f4", 3), ("color", "u1", 3)]
    )
    vertices["position"], vertices["normal"] = asset.vertices.numpy(), asset.normals.numpy()
    vertices["color"] = asset.vertex_color.numpy()
    faces = np.empty(len(asset.faces), dtype=[("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, asset.faces.numpy()
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {GENERATOR}",
        f"comment {_metadata_line(asset)}",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name in ("x", "y", "z", "nx", "ny", "nz")),
        *(f"property uchar {name}" for name in ("red", "green", "blue")),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
    ]
    return {path: _lines(header) + vertices.tobytes() + faces.tobytes()}


def _encode_stl(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    corners = asset.vertices[asset.faces]  # [F, 3, 3]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles = np.zeros(
        len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    triangles["normal"] = torch.nn.functional.normalize(normals, dim=1).numpy()
    triangles["corners"] = corners.numpy()
    header = f"{GENERATOR} {_metadata_line(asset)}".encode("ascii")[:80].ljust(80)
    return {path: header + np.uint32(len(triangles)).tobytes() + triangles.tobytes()}


def read_mesh(path: Path) -> MeshAsset:
    """Read a file that `write_mesh` or another program made, with its colours.

    Vertices at the same position are welded, whatever normals, texture coordinates and colours the faces have
    there. Metadata is read from a GLB. All meshes of a scene are merged with the transforms of its nodes.

    Raises:
        InputError: there is no such file, its format is unknown, it is damaged, or one of its images is.
    """
    source = read_source(path)
    metadata = read_metadata(path.read_bytes()) if path.suffix.lower() == ".glb" else {}
    return colored(source, metadata)
