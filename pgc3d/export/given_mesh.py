"""Read a mesh that somebody else made, with distrust; nothing in it is joined, dropped or moved.

Only the surface is read: no image is opened, and a file can refer to nothing outside its own folder.
"""

import io
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.errors import InputError
from pgc3d.export.gltf import pack_glb, unpack_glb
from pgc3d.export.obj_reader import in_single, parse_obj
from pgc3d.types import GivenMesh

Array = NDArray[Any]

FORMATS = ("glb", "gltf", "obj", "ply", "stl")
MAX_BYTES = 1 << 30  # of the file, and of each file that it refers to
MAX_FACES = 2_000_000
MAX_VERTICES = 6_000_000
HARMLESS = ("KHR_materials", "KHR_texture", "KHR_lights", "EXT_texture")  # say nothing about the surface


def read_given(path: Path) -> GivenMesh:
    """Read a GLB, glTF, OBJ, PLY or STL; scenes are put together with their transforms.

    Raises:
        InputError: the file is missing, too large, damaged, without faces or not finite, or it refers to
            something outside its folder.
    """
    data, kind = _content(path)
    try:
        mesh = _READERS[kind](data, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # readers of foreign formats raise whatever they like
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the mesh file must be readable, got {path}: {reason}; export it again") from error
    _check(mesh, path)
    return mesh


def _content(path: Path) -> tuple[bytes, str]:
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"a mesh file must be one of {', '.join(FORMATS)}, got {path.name}; convert it")
    if not path.is_file():
        raise InputError(f"the mesh file must exist, got {path}; check the path")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(_too_large(path, path.stat().st_size))
        return path.read_bytes(), kind
    except OSError as error:
        raise InputError(f"the mesh file must be readable, got {path}: {error.strerror or error}") from error


def _too_large(path: Path, size: int) -> str:
    return (
        f"a mesh file must have at most {MAX_BYTES / 1e6:.0f} MB, got {path} with {size / 1e6:.0f} MB; "
        "reduce the mesh"
    )


def require_counts(path: Path, *, vertices: int = 0, faces: int = 1) -> None:
    """Refuse a mesh without faces or with more than a run can hold.

    Raises:
        InputError: it is so.
    """
    if faces > MAX_FACES or vertices > MAX_VERTICES:
        raise InputError(
            f"a mesh must have at most {MAX_FACES / 1e6:g} M faces and {MAX_VERTICES / 1e6:g} M vertices, "
            f"got {path} with {max(faces, 0)} faces and {vertices} vertices; decimate it first"
        )
    if faces == 0:
        raise InputError(f"the mesh must have faces, got none in {path}; points and lines cannot be painted")


def _check(mesh: GivenMesh, path: Path) -> None:
    require_counts(path, vertices=len(mesh.vertices), faces=len(mesh.faces))
    bad = int((~torch.isfinite(mesh.vertices)).any(dim=1).sum())
    if bad:
        raise InputError(
            f"vertices must be finite, got {bad} with NaN or infinity in {path}; repair the mesh"
        )
    if not 0 <= int(mesh.faces.min()) <= int(mesh.faces.max()) < len(mesh.vertices):
        raise InputError(f"faces must use vertices that exist, got an index out of range in {path}")


def inside(folder: Path, name: str, source: Path) -> Path:
    """The file that `source` refers to by `name`.

    Raises:
        InputError: it is absolute, a URL, or leads out of the folder, also by a symbolic link.
    """
    local = unquote(name).replace("\\", "/").strip()
    target = folder / local
    outside = re.match(r"[a-z][a-z0-9+.-]*:", local, re.IGNORECASE) or local.startswith(("/", "~"))
    if outside or ".." in Path(local).parts or not target.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"a mesh may refer to files in its own folder only, but {source.name} names {name[:200]!r}; "
            "put all files into one folder"
        )
    return target


def _read_obj(data: bytes, path: Path) -> GivenMesh:
    require_counts(path, vertices=data.count(b"\nv "), faces=data.count(b"\nf ") or -1)
    text = data.decode("utf-8-sig", errors="replace")
    for _ in obj_references(text, path):
        pass
    return parse_obj(text)


def obj_references(text: str, path: Path) -> Iterator[Path]:
    """The material libraries that an OBJ names, and the images that these name, where they exist.

    Raises:
        InputError: one of them lies outside the folder.
    """
    for name in re.findall(r"^\s*mtllib\s+(.+?)\s*$", text, re.MULTILINE):
        library = inside(path.parent, name, path)
        if library.is_file() and library.stat().st_size <= MAX_BYTES:
            yield library
            material = library.read_text(encoding="utf-8", errors="replace")
            for image in re.findall(r"^\s*(?:map_\w+|bump|disp|norm)\s+(?:.*\s)?(\S+)\s*$", material, re.M):
                target = inside(path.parent, image, library)
                if target.is_file():
                    yield target


def _read_ply(data: bytes, path: Path) -> GivenMesh:
    header = data[: data.find(b"end_header")][:65536].decode("ascii", errors="replace")
    counts = {name: int(count) for name, count in re.findall(r"element\s+(\w+)\s+(\d+)", header)}
    require_counts(path, vertices=counts.get("vertex", 0), faces=counts.get("face", 0))
    for image in re.findall(r"comment\s+TextureFile\s+(\S+)", header, re.IGNORECASE):
        inside(path.parent, image, path)
    return _load(data, "ply", {}, path)


def _read_stl(data: bytes, path: Path) -> GivenMesh:
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else 0
    size = 84 + 50 * count
    if len(data) == size or (len(data) >= 84 and b"facet" not in data):
        require_counts(path, faces=count)
        if len(data) < size:
            raise ValueError(f"it says {count} triangles and ends after {(len(data) - 84) // 50}")
        data = data[:size]  # what some programs append is no surface
    else:
        require_counts(path, faces=data.count(b"facet normal") or -1)
    return _load(data, "stl", {}, path)


def _read_glb(data: bytes, path: Path) -> GivenMesh:
    document, binary = unpack_glb(data)
    return _load_gltf(document, binary, path)


def _read_gltf(data: bytes, path: Path) -> GivenMesh:
    return _load_gltf(json.loads(data), None, path)


_READERS: Mapping[str, Callable[[bytes, Path], GivenMesh]] = {
    "glb": _read_glb,
    "gltf": _read_gltf,
    "obj": _read_obj,
    "ply": _read_ply,
    "stl": _read_stl,
}


def _load_gltf(document: dict[str, Any], binary: bytes | None, path: Path) -> GivenMesh:
    """Hand the surface alone to trimesh, which leaves out texture coordinates where there is no material."""
    _require_plain(document, path)
    require_counts(path, **_gltf_counts(document))
    files = _gltf_files(document, path)
    for key in ("images", "textures", "samplers", "materials", "animations", "skins"):
        document.pop(key, None)
    for accessor in document.get("accessors", []):
        for bound in ("min", "max"):  # NaN there would hide the vertex that is to blame
            accessor.pop(bound, None)
    for mesh in document.get("meshes", []):
        for primitive in mesh.get("primitives", []):
            primitive["material"] = 0
    document["materials"] = [{}]
    if binary is None:
        return _load(json.dumps(document).encode(), "gltf", files, path)
    return _load(pack_glb(document, binary), "glb", files, path)


def _require_plain(document: Mapping[str, Any], path: Path) -> None:
    """Refuse what trimesh would pass over without a word."""
    foreign = [name for name in document.get("extensionsRequired", []) if not name.startswith(HARMLESS)]
    if foreign:
        raise InputError(
            f"a glTF file must hold its surface plainly, but {path.name} requires {', '.join(foreign)}; "
            "export it without compression"
        )
    fans = any(
        primitive.get("mode") == 6 for mesh in document.get("meshes", []) for primitive in mesh["primitives"]
    )
    if fans or any("sparse" in accessor for accessor in document.get("accessors", [])):
        raise InputError(
            f"a glTF file must hold its surface as triangles in plain lists, but {path.name} has "
            f"{'triangle fans' if fans else 'sparse accessors'}; export it again"
        )


def _gltf_files(document: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """The buffers outside the file, by the names that it has for them."""
    uris = {
        key: [uri for item in document.get(key, []) if (uri := item.get("uri", "data:"))[:5] != "data:"]
        for key in ("images", "buffers")
    }
    for uri in uris["images"]:
        inside(path.parent, uri, path)
    files = {}
    for uri in uris["buffers"]:
        target = inside(path.parent, uri, path)
        if target.is_file() and target.stat().st_size > MAX_BYTES:
            raise InputError(_too_large(target, target.stat().st_size))
        files[uri] = target.read_bytes()
    return files


def _gltf_counts(document: Mapping[str, Any]) -> dict[str, int]:
    """Vertices and faces that the nodes show, before anything is read; a mesh may be shown many times."""
    accessors, sizes = document.get("accessors", []), []
    for mesh in document.get("meshes", []):
        vertices = faces = 0
        for primitive in mesh["primitives"]:
            position = accessors[primitive["attributes"]["POSITION"]]["count"]
            vertices += position
            faces += (accessors[primitive["indices"]]["count"] if "indices" in primitive else position) // 3
        sizes.append((vertices, faces))
    shown = [sizes[node["mesh"]] for node in document.get("nodes", []) if "mesh" in node]
    return {"vertices": sum(size[0] for size in shown), "faces": sum(size[1] for size in shown) or -1}


def _load(data: bytes, kind: str, files: Mapping[str, bytes], path: Path) -> GivenMesh:
    """Read through trimesh; `files` is all that it can reach."""
    import trimesh

    scene = trimesh.load_scene(
        io.BytesIO(data), file_type=kind, resolver=dict(files), process=False, maintain_order=True
    )
    parts = list(_parts(scene, path))
    if not parts:
        require_counts(path, faces=0)
    offsets = np.cumsum([0, *(len(part["vertices"]) for part in parts)])
    faces = np.concatenate([part["faces"] + offset for part, offset in zip(parts, offsets, strict=False)])
    index = torch.from_numpy(faces.astype(np.int64))

    def joined(key: str) -> Tensor | None:
        if any(part[key] is None for part in parts):
            return None
        return torch.from_numpy(np.concatenate([part[key] for part in parts])).float()

    normals, uv = joined("normals"), joined("uv")
    return GivenMesh(
        vertices=in_single(np.concatenate([part["vertices"] for part in parts]).astype(np.float64)),
        faces=index,
        normals=None if normals is None else normalize(normals, dim=1),
        normal_faces=None if normals is None else index,
        uv=uv,
        uv_faces=None if uv is None else index,
    )


def _parts(scene: Any, path: Path) -> Iterator[dict[str, Any]]:
    """The meshes of a scene's nodes in the scene's coordinates; a mirroring node turns the faces over."""
    import trimesh

    shown = [scene.graph[node] for node in scene.graph.nodes_geometry]
    meshes = [(matrix, scene.geometry[name]) for matrix, name in shown]
    meshes = [
        (matrix, mesh) for matrix, mesh in meshes if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)
    ]
    require_counts(
        path,
        vertices=sum(len(mesh.vertices) for _, mesh in meshes),
        faces=sum(len(mesh.faces) for _, mesh in meshes),
    )
    for matrix, mesh in meshes:
        vertices, faces, normals = in_scene(matrix, mesh)
        uv = getattr(mesh.visual, "uv", None)
        yield {
            "vertices": vertices,
            "faces": faces,
            "normals": normals,
            "uv": None if uv is None or len(uv) != len(vertices) else np.asarray(uv),
        }


def in_scene(matrix: Array, mesh: Any) -> tuple[Array, Array, Array | None]:
    """Vertices, faces and the file's own normals of a trimesh mesh, where a node's matrix [4, 4] puts them.

    A mirroring matrix turns the faces over. Normals are not unit.
    """
    linear = matrix[:3, :3]
    faces, vertices = np.asarray(mesh.faces), np.asarray(mesh.vertices)
    # normals that the file itself has lie in the cache; asking for them would make some
    normals = np.asarray(mesh.vertex_normals) if "vertex_normals" in mesh._cache else None
    return (
        vertices if np.array_equal(matrix, np.eye(4)) else vertices @ linear.T + matrix[:3, 3],
        faces[:, ::-1] if np.linalg.det(linear) < 0 else faces,
        None if normals is None else normals @ np.linalg.pinv(linear),
    )
