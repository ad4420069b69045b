"""Validated reading of mesh files; vertices are not welded, dropped or moved.

Images are opened when their colours are used; a file can refer only to files in its own folder.
"""

from pathlib import Path

import torch

from pgc3d.errors import InputError
from pgc3d.mesh_io.foreign import explain_foreign
from pgc3d.mesh_io.formats import FORMATS, READABLE
from pgc3d.mesh_io.gltf_reader import gltf_files
from pgc3d.mesh_io.limits import read_limited, require_counts
from pgc3d.mesh_io.mtl import source_files as obj_files
from pgc3d.mesh_io.side_images import is_file
from pgc3d.mesh_io.source import SourceMesh


def read_source(path: Path) -> SourceMesh:
    """The mesh of a file in a format of `formats`; meshes of a scene are merged with their transforms.

    Raises:
        InputError: the file is missing, too large, damaged, without faces or not finite, or its surface is in
            a file outside its folder.
    """
    kind = path.suffix.lower().removeprefix(".")
    # the size is checked first; an archive is named with the mesh inside, so that the whole file is needed
    data = read_limited(path) if is_file(path) else b""
    advice = explain_foreign(path, data)
    if advice is not None:
        raise InputError(advice)
    if not is_file(path):
        read_limited(path)  # raises the error about a missing file
    read = FORMATS[kind].read if kind in FORMATS else None
    if read is None:
        raise InputError(f"a mesh file must be one of {', '.join(READABLE)}, got {path.name}; convert it")
    try:
        mesh = read(data, path)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # unforeseen errors of readers on damaged files also become one line
        raise InputError(
            f"the mesh file must be readable, but {path} is damaged in an unknown way "
            f"({type(error).__name__}); export it again"
        ) from error
    _check(mesh, path)
    return mesh


def _check(mesh: SourceMesh, path: Path) -> None:
    require_counts(path, vertices=len(mesh.vertices), faces=len(mesh.faces))
    bad = int((~torch.isfinite(mesh.vertices)).any(dim=1).sum())
    if bad:
        raise InputError(
            f"vertices must be finite, got {bad} with NaN or infinity in {path}; repair the mesh"
        )
    if not 0 <= int(mesh.faces.min()) <= int(mesh.faces.max()) < len(mesh.vertices):
        raise InputError(f"faces must use vertices that exist, got an index out of range in {path}")


def source_files(path: Path) -> list[Path]:
    """The mesh file and the other files of its surface and its colours that exist."""
    kind = path.suffix.lower().removeprefix(".")
    files = [path]
    try:
        if kind in ("glb", "gltf"):
            files += gltf_files(read_limited(path), path)
        elif kind == "obj":
            files += obj_files(read_limited(path), path)
    except InputError:  # raised again where the mesh is read
        pass
    return files
