"""Read the surface of an STL."""

import struct
from pathlib import Path

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import require_counts
from pgc3d.mesh_io.ply import load
from pgc3d.mesh_io.source import SourceMesh


def read_stl(data: bytes, path: Path) -> SourceMesh:
    """The triangles of an STL, text or binary.

    Raises:
        InputError: it is cut off or damaged.
    """
    count = struct.unpack_from("<I", data, 80)[0] if len(data) >= 84 else 0
    size = 84 + 50 * count
    if len(data) == size or (len(data) >= 84 and b"facet" not in data):
        require_counts(path, faces=count)
        if len(data) < size:
            found = (len(data) - 84) // 50
            raise InputError(
                f"an STL must be whole, got {path}: it says {count} triangles and ends after {found}"
            )
        data = data[:size]  # what some programs append is no surface
    else:
        require_counts(path, faces=data.count(b"facet normal") or -1)
    return load(data, "stl", path)
