"""Encoders of mesh assets: from the path of the mesh file and the asset to the bytes of all its files."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pgc3d
from pgc3d.images import encode_png
from pgc3d.mesh_io.asset import AssetMaterial, MeshAsset
from pgc3d.mesh_io.gltf_files import separate
from pgc3d.mesh_io.gltf_writer import encode_glb
from pgc3d.mesh_io.names import plain_stem

GENERATOR = f"pgc3d {pgc3d.__version__}"


def encode_binary_gltf(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    """A GLB.

    Raises:
        ValueError: the asset lacks data that the format requires.
    """
    return {path: encode_glb(asset, generator=GENERATOR, name=path.stem)}


def encode_gltf(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    """A glTF of text, with a file of numbers and PNG files beside it.

    Raises:
        ValueError: the asset lacks data that the format requires.
    """
    return separate(encode_glb(asset, generator=GENERATOR, name=path.stem), path)


def encode_obj(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    """An OBJ with its MTL and PNG files.

    Raises:
        ValueError: the asset lacks data that the format requires.
    """
    surfaces = asset.surfaces
    if asset.uv is None or asset.uv_faces is None or any(surface.image is None for surface in surfaces):
        raise ValueError("an OBJ must have texture coordinates and images of the base colour")
    stem = plain_stem(path)
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


def encode_ply(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    """A binary PLY with vertex colours and one normal for each vertex.

    Raises:
        ValueError: the asset lacks data that the format requires.
    """
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


def encode_stl(path: Path, asset: MeshAsset) -> dict[Path, bytes]:
    """A binary STL."""
    corners = asset.vertices[asset.faces]  # [F, 3, 3]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles = np.zeros(
        len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    triangles["normal"] = torch.nn.functional.normalize(normals, dim=1).numpy()
    triangles["corners"] = corners.numpy()
    header = f"{GENERATOR} {_metadata_line(asset)}".encode("ascii")[:80].ljust(80)
    return {path: header + np.uint32(len(triangles)).tobytes() + triangles.tobytes()}
