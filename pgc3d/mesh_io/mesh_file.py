"""Writing and reading of mesh assets as GLB, OBJ, PLY or STL.

The axes are not changed: y up, front +z, or those of a given mesh. Files are written atomically.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor

import pgc3d
from pgc3d.choices import Format
from pgc3d.disk import write_files
from pgc3d.images import encode_png
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset
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
    surfaces = asset.surfaces
    if asset.uv is None or asset.uv_faces is None or any(surface.image is None for surface in surfaces):
        raise ValueError("an OBJ must have texture coordinates and images of the base colour")
    # Many readers split the line at blanks, so the files named in it have none.
    stem = _word(path.stem) or "mesh"
    names = _material_names(surfaces)
    material, contents = [f"# {GENERATOR}"], dict[Path, bytes]()
    for name, surface in zip(names, surfaces, strict=True):
        images = _obj_images(stem if len(surfaces) == 1 else f"{stem}_{name}", surface)
        material += [f"newmtl {name}", "Kd 1 1 1", "Ks 0 0 0", "d 1", "illum 1"]
        material += [f"{key} {file}" for key, (file, _) in images.items()]
        contents |= {path.with_name(file): encode_png(image) for file, image in images.values()}
    corners = torch.stack([asset.faces, asset.uv_faces, asset.normals_of_corners], dim=-1).reshape(-1, 9) + 1
    of_face, rows = asset.face_surface, _rows("f %d/%d/%d %d/%d/%d %d/%d/%d", corners)
    runs, lengths = torch.unique_consecutive(of_face, return_counts=True)
    faces, start = [], 0
    for index, length in zip(runs.tolist(), lengths.tolist(), strict=True):
        faces += [f"usemtl {names[index]}", *rows[start : start + length]]
        start += length
    text = [
        f"# {GENERATOR}",
        f"# {_metadata_line(asset)}",
        f"mtllib {stem}.mtl",
        *_rows("v %.9g %.9g %.9g", asset.vertices),
        *_rows("vt %.9g %.9g", asset.uv),
        *_rows("vn %.6f %.6f %.6f", asset.normals),
        *faces,
    ]
    contents[path.with_name(f"{stem}.mtl")] = _lines(material)
    contents[path] = _lines(text)
    return contents


def _word(text: str) -> str:
    """A name without blanks and separators of paths."""
    return "_".join(text.replace("/", " ").replace("\\", " ").split())


def _material_names(surfaces: Sequence[AssetMaterial]) -> list[str]:
    """Names of materials that OBJ files can hold, all different, also as names of files."""
    names: list[str] = []
    for surface in surfaces:
        name, taken = _word(surface.name)[:100] or "surface", {known.casefold() for known in names}
        number, found = 1, name
        while found.casefold() in taken:
            number += 1
            found = f"{name}_{number}"
        names.append(found)
    return names


def _obj_images(stem: str, surface: AssetMaterial) -> dict[str, tuple[str, Tensor]]:
    """The images of a surface and the names of their files, by the statements that name them."""
    assert surface.image is not None
    images = {"map_Kd": (f"{stem}_base_color.png", surface.image)}
    if surface.metallic_roughness is not None:
        images["map_Pr"] = (f"{stem}_roughness.png", surface.metallic_roughness[..., 1])
        images["map_Pm"] = (f"{stem}_metallic.png", surface.metallic_roughness[..., 2])
    if surface.normal_map is not None:
        images["norm"] = (f"{stem}_normal.png", surface.normal_map)
    return images


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
