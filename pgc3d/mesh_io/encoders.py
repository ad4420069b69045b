"""Encoders of mesh assets: from the path of the mesh file and the asset to the bytes of all its files."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import pgc3d
from pgc3d.images import encode_png
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.gltf_files import plain_stem, separate
from pgc3d.mesh_io.gltf_writer import encode_glb

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
    if asset.uv is None or asset.uv_faces is None or asset.base_color is None:
        raise ValueError("an OBJ must have texture coordinates and a base colour image")
    stem = plain_stem(path)
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
