"""OFF, 3MF and FBX files, read by libraries.

What a library does not pass on is named in `lost`. The triangles of polygons are the library's.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.packages import require_package
from pgc3d.mesh_io.side_images import image_loader, is_file, is_inside
from pgc3d.mesh_io.source import SourceMaterial, SourceMesh
from pgc3d.mesh_io.surface import in_single
from pgc3d.rendering.shading import linear_to_srgb

DIFFUSE, BASE_COLOR = 1, 12  # kinds of textures in assimp
CONVERT = 'blender -b --python-expr "import bpy; bpy.ops.wm.read_factory_settings(use_empty=True); '
CONVERT += "bpy.ops.import_scene.fbx(filepath='IN.fbx'); bpy.ops.export_scene.gltf(filepath='OUT.glb')\""


def read_off(data: bytes, path: Path) -> SourceMesh:
    """The surface of an OFF file, by trimesh; colours are not read.

    Raises:
        InputError: it is damaged.
    """
    from trimesh.exchange.off import load_off

    try:
        found = load_off(io.BytesIO(data))
        vertices, faces = np.asarray(found["vertices"]), np.asarray(found["faces"]).reshape(-1, 3)
    except Exception as error:  # the library's errors have any type
        raise _damaged(path, error) from error
    words = data[:4096].split(b"\n", 1)[0]
    return _surface(vertices, faces, path, lost=("colours",) if b"C" in words.split(b"OFF")[0] else ())


def read_3mf(data: bytes, path: Path) -> SourceMesh:
    """The surface of a 3MF file, by trimesh, with the transforms of its items; in the file's unit.

    Raises:
        InputError: it is damaged, or lxml is not installed.
    """
    require_package("lxml", "3mf", "reading 3MF")
    import trimesh

    try:
        scene = trimesh.load_scene(io.BytesIO(data), file_type="3mf")
        mesh = scene.to_mesh()
    except Exception as error:
        raise _damaged(path, error) from error
    notes = (f"a 3MF file has z up (--up +z); its numbers are in {scene.units or 'millimeter'}s",)
    return _surface(np.asarray(mesh.vertices), np.asarray(mesh.faces), path, notes, ("colours and textures",))


def _surface(
    vertices: NDArray[np.float64],
    faces: NDArray[np.int64],
    path: Path,
    notes: tuple[str, ...] = (),
    lost: tuple[str, ...] = (),
) -> SourceMesh:
    single, more = in_single(vertices.astype(np.float64), faces.astype(np.int64), path)
    return SourceMesh(single, torch.from_numpy(faces.astype(np.int64)), notes=(*notes, *more), lost=lost)


def _damaged(path: Path, error: Exception) -> InputError:
    reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
    return InputError(f"the mesh file must be readable, but {path} is damaged: {reason}; export it again")


def read_fbx(data: bytes, path: Path) -> SourceMesh:  # noqa: ARG001 - the library opens the path
    """The meshes of an FBX file in their rest pose, by assimp; lengths become metres.

    Normals, the first texture coordinates, vertex colours and the base colours of materials are read. Corners
    that differ in one of these are vertices of their own.

    Raises:
        InputError: it is damaged or has no mesh, or assimp-py is not installed.
    """
    assimp = require_package("assimp_py", "fbx", f"reading FBX (or convert it: {CONVERT})")
    flags = assimp.Process_Triangulate | assimp.Process_GlobalScale | assimp.Process_SortByPType
    try:
        scene = assimp.import_file(str(path), flags)
        parts = [part for part in _parts(scene) if len(part[1])]
    except Exception as error:
        raise _damaged(path, error) from error
    if not parts:
        raise InputError(f"the mesh must have faces, got none in {path}; export it again")
    starts = np.cumsum([0, *(len(vertices) for vertices, *_ in parts)])
    faces = np.concatenate([start + part[1] for start, part in zip(starts[:-1], parts, strict=True)])
    vertices, notes = in_single(np.concatenate([part[0] for part in parts]), faces, path)
    corners = torch.from_numpy(faces)
    uv, known = _joined([part[3] for part in parts], [len(part[0]) for part in parts], 2)
    colors, colored = _joined([part[4] for part in parts], [len(part[0]) for part in parts], 4)
    normals, normal = _joined([part[2] for part in parts], [len(part[0]) for part in parts], 3)
    numbers = np.concatenate([np.full(len(part[1]), part[5]) for part in parts])
    return SourceMesh(
        vertices,
        corners,
        normals=normals if normal.any() else None,
        normal_faces=torch.where(normal[corners], corners, -1) if normal.any() else None,
        uv=uv if known.any() else None,
        uv_faces=torch.where(known[corners], corners, -1) if known.any() else None,
        vertex_color=torch.where(colored[:, None], colors, 1.0) if colored.any() else None,
        face_material=torch.from_numpy(numbers),
        materials=tuple(_material(entry, path) for entry in scene.materials),
        notes=tuple(notes),
        lost=("nodes, skins and animations",),
        face_part=torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part[1]) for part in parts])),
    )


_Part = tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None, NDArray[Any] | None, NDArray[Any] | None, int]


def _parts(scene: Any) -> list[_Part]:
    """Vertices, faces, normals, texture coordinates, colours and material of every mesh in the nodes."""
    found: list[_Part] = []

    def visit(node: Any, outer: NDArray[np.float64]) -> None:
        matrix = outer @ np.array(node.transformation, dtype=np.float64)
        found.extend(_placed(scene.meshes[index], matrix) for index in node.mesh_indices)
        for child in node.children:
            visit(child, matrix)

    visit(scene.root_node, np.eye(4))
    return found


def _placed(mesh: Any, matrix: NDArray[np.float64]) -> _Part:
    linear = matrix[:3, :3]
    vertices = _rows(mesh.vertices, 3) @ linear.T + matrix[:3, 3]
    faces = np.array(mesh.indices, dtype=np.int64).reshape(-1, 3)
    if np.linalg.det(linear) < 0:
        faces = faces[:, ::-1].copy()
    normals = None
    if mesh.normals is not None and len(mesh.normals):
        turned = _rows(mesh.normals, 3) @ np.linalg.pinv(linear)
        normals = turned / np.maximum(np.linalg.norm(turned, axis=1, keepdims=True), 1e-30)
    uv = None
    if mesh.texcoords:
        uv = _rows(mesh.texcoords[0], mesh.num_uv_components[0])[:, :2]
    colors = _rows(mesh.colors[0], 4) if mesh.colors else None
    return vertices, faces, normals, uv, colors, int(mesh.material_index)


def _rows(values: Any, width: int) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64).reshape(-1, width)


def _joined(
    values: Sequence[NDArray[Any] | None], counts: Sequence[int], width: int
) -> tuple[Float[Tensor, "V W"], Bool[Tensor, " V"]]:
    """The values of all parts, 0 for those without, and which vertices have some."""
    whole = [
        np.zeros((count, width)) if part is None else part for part, count in zip(values, counts, strict=True)
    ]
    known = np.repeat([part is not None for part in values], counts)
    return torch.from_numpy(np.concatenate(whole)).float(), torch.from_numpy(known)


def _material(entry: Mapping[str, Any], path: Path) -> SourceMaterial:
    # Blender, too, takes the numbers of an FBX material as linear; with an image they are not used.
    linear = [*(entry.get("COLOR_BASE") or entry.get("COLOR_DIFFUSE") or (1.0, 1.0, 1.0))][:3]
    textures = entry.get("TEXTURES", {})
    images = textures.get(BASE_COLOR) or textures.get(DIFFUSE) or []
    color = torch.tensor([1.0, 1.0, 1.0] if images else linear).clamp(0.0, 1.0)
    return SourceMaterial(
        name=str(entry.get("NAME", "")),
        color=torch.cat([linear_to_srgb(color), torch.ones(1)]),
        load_image=_image(images[0], path) if images else None,
    )


def _image(name: str, path: Path) -> Callable[[], Image.Image]:
    """The image of a name, else of its last part: many programs write the path of the author's disk."""
    inside = is_inside(name, path) and is_file(path.parent / name.replace("\\", "/"))
    return image_loader(name if inside else name.replace("\\", "/").rsplit("/", 1)[-1], path)
