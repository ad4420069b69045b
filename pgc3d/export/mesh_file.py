"""Write a finished surface as GLB, OBJ, PLY or STL, and read it back.

No format changes the axes: y up, front +z, or those of a given mesh. Files appear whole or not at all.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

import pgc3d
from pgc3d.errors import InputError
from pgc3d.export.asset import TexturedMesh
from pgc3d.export.atomic import write_files
from pgc3d.export.given_mesh import in_scene
from pgc3d.export.gltf import encode_glb, encode_png, read_metadata
from pgc3d.export.turntable import to_bytes
from pgc3d.geometry.cleanup import vertex_normals
from pgc3d.render.shading import linear_to_srgb, srgb_to_linear

Format = Literal["glb", "obj", "ply", "stl"]
FORMATS: tuple[str, ...] = get_args(Format)
GENERATOR = f"pgc3d {pgc3d.__version__}"


def write_mesh(path: Path, asset: TexturedMesh, format: Format) -> list[Path]:
    """Write `asset` and return the files made, the mesh first.

    glb and obj (with mtl and png beside it) need a texture, ply needs `vertex_color`, stl takes any surface.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
        ValueError: the asset lacks what the format needs.
    """
    encoders: Mapping[str, Callable[[Path, TexturedMesh], dict[Path, bytes]]] = {
        "glb": _encode_glb,
        "obj": _encode_obj,
        "ply": _encode_ply,
        "stl": _encode_stl,
    }
    contents = encoders[format](path, asset)
    write_files(contents)  # side files come first: whoever sees the mesh finds them too
    return [path, *(file for file in contents if file != path)]


def _encode_glb(path: Path, asset: TexturedMesh) -> dict[Path, bytes]:
    return {path: encode_glb(asset, generator=GENERATOR, name=path.stem)}


def _encode_obj(path: Path, asset: TexturedMesh) -> dict[Path, bytes]:
    if asset.uv is None or asset.uv_faces is None or asset.base_color is None:
        raise ValueError("an OBJ needs texture coordinates and a base colour image")
    # Many readers split the line at blanks, so the files named in it have none.
    stem = "_".join(path.stem.split()) or "mesh"
    images = {"map_Kd": (f"{stem}_base_color.png", asset.base_color)}
    if asset.metallic_roughness is not None:
        images["map_Pr"] = (f"{stem}_roughness.png", asset.metallic_roughness[..., 1])
        images["map_Pm"] = (f"{stem}_metallic.png", asset.metallic_roughness[..., 2])
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


def _metadata_line(asset: TexturedMesh) -> str:
    return json.dumps(dict(asset.metadata))  # one line of ASCII, whatever the prompt holds


def _encode_ply(path: Path, asset: TexturedMesh) -> dict[Path, bytes]:
    if asset.vertex_color is None or asset.normal_faces is not None:
        raise ValueError("a PLY needs vertex colours, and one normal for each vertex")
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


def _encode_stl(path: Path, asset: TexturedMesh) -> dict[Path, bytes]:
    corners = asset.vertices[asset.faces]  # [F, 3, 3]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles = np.zeros(
        len(corners), dtype=[("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    triangles["normal"] = torch.nn.functional.normalize(normals, dim=1).numpy()
    triangles["corners"] = corners.numpy()
    header = f"{GENERATOR} {_metadata_line(asset)}".encode("ascii")[:80].ljust(80)
    return {path: header + np.uint32(len(triangles)).tobytes() + triangles.tobytes()}


def read_mesh(path: Path) -> TexturedMesh:
    """Read a file that `write_mesh` or another program made, with its colours, through an independent reader.

    Vertices that differ in their texture coordinates only become one again. Metadata is read from a GLB. Of a
    scene, all meshes become one, where its nodes put them.

    Raises:
        InputError: there is no such file, its format is unknown, or it is damaged.
    """
    import trimesh

    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise InputError(f"a mesh file must be one of {', '.join(FORMATS)}, got {path.name}")
    if not path.is_file():
        raise InputError(f"the mesh file must exist, got {path}; check the path")
    try:
        scene = trimesh.load_scene(path, process=False)
        metadata = read_metadata(path.read_bytes()) if path.suffix.lower() == ".glb" else {}
        return _from_trimesh(_joined(scene), metadata)
    except Exception as error:  # readers of foreign formats raise whatever they like
        raise InputError(f"the mesh file must be readable, got {path}: {error}; export it again") from error


def _joined(scene: Any) -> Any:
    """One mesh in the scene's coordinates."""
    import trimesh

    meshes = []
    for matrix, name in (scene.graph[node] for node in scene.graph.nodes_geometry):
        mesh = scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            vertices, faces, normals = in_scene(matrix, mesh)
            part = {"vertices": vertices, "faces": faces, "vertex_normals": normals, "visual": mesh.visual}
            meshes.append(trimesh.Trimesh(**part, process=False))
    if not meshes:
        raise ValueError("it has no faces")
    return meshes[0] if len(meshes) == 1 else trimesh.util.concatenate(meshes)


def _from_trimesh(geometry: Any, metadata: Mapping[str, Any]) -> TexturedMesh:
    corner_faces = torch.from_numpy(np.array(geometry.faces, dtype=np.int64))
    stored = np.array(geometry.vertices, dtype=np.float32)
    has_normals = "vertex_normals" in geometry._cache
    normals = np.array(geometry.vertex_normals, dtype=np.float32) if has_normals else None
    vertices, faces, first = weld(torch.from_numpy(stored), corner_faces)
    if normals is None:
        unit = torch.from_numpy(vertex_normals(vertices.double().numpy(), faces.numpy()).astype(np.float32))
    else:
        unit = _unit(torch.from_numpy(normals)[first])
    kind = geometry.visual.kind
    material = geometry.visual.material if kind == "texture" else None
    if material is not None and geometry.visual.uv is not None and _image(material) is not None:
        color, surface = _images(material)
        return TexturedMesh(
            vertices=vertices,
            faces=faces,
            normals=unit if normals is None else _unit(torch.from_numpy(normals)),
            uv=torch.from_numpy(np.array(geometry.visual.uv, dtype=np.float32)),
            uv_faces=corner_faces,
            base_color=color,
            metallic_roughness=surface,
            normal_faces=None if normals is None else corner_faces,
            metadata=metadata,
        )
    colors = None
    if material is not None:
        colors = _factor(material).expand(len(vertices), 3).clone()
    elif kind == "vertex":
        colors = torch.from_numpy(np.array(geometry.visual.vertex_colors)[:, :3])[first]
    return TexturedMesh(vertices=vertices, faces=faces, normals=unit, vertex_color=colors, metadata=metadata)


def _unit(normals: Tensor) -> Tensor:
    return torch.nn.functional.normalize(normals, dim=1)


def _image(material: Any) -> Any:
    return getattr(material, "baseColorTexture", None) or getattr(material, "image", None)


def _images(material: Any) -> tuple[Tensor, Tensor | None]:
    def array(image: Any) -> Tensor:
        pixels: NDArray[np.uint8] = np.array(image.convert("RGB"))
        return torch.from_numpy(pixels)

    surface = getattr(material, "metallicRoughnessTexture", None)
    color, factor = array(_image(material)), _factor(material)
    if getattr(material, "baseColorFactor", None) is not None and bool((factor < 255).any()):
        light = srgb_to_linear(color.float() / 255) * srgb_to_linear(factor.float() / 255)
        color = to_bytes(linear_to_srgb(light))
    return color, None if surface is None else array(surface)


def _factor(material: Any) -> Tensor:
    """What a material says of its colour beside an image, in sRGB; glTF counts it in linear light."""
    linear = getattr(material, "baseColorFactor", None)
    if linear is not None:
        return to_bytes(linear_to_srgb(torch.tensor(np.array(linear)[:3] / 255).float())[None, None])[0, 0]
    stored = getattr(material, "diffuse", None)
    return torch.from_numpy(np.array([255, 255, 255] if stored is None else stored[:3], dtype=np.uint8))


def weld(
    vertices: Float[Tensor, "N 3"], faces: Int[Tensor, "F 3"]
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"], Int[Tensor, " V"]]:
    """Join vertices at the same place; also the first of the old vertices that each new one stands for."""
    _, first, index = np.unique(vertices.numpy(), axis=0, return_index=True, return_inverse=True)
    order = torch.from_numpy(first)
    return vertices[order], torch.from_numpy(index.reshape(-1))[faces], order
