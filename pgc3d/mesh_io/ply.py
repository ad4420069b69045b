"""Read the surface of a PLY."""

import io
import re
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import require_counts
from pgc3d.mesh_io.single import in_single
from pgc3d.mesh_io.source import SourceMesh


def read_ply(data: bytes, path: Path) -> SourceMesh:
    """The surface with the colours of its vertices.

    Raises:
        InputError: it is damaged.
    """
    header = data[: data.find(b"end_header")][:65536].decode("ascii", errors="replace")
    counts = {name: int(count) for name, count in re.findall(r"element\s+(\w+)\s+(\d+)", header)}
    require_counts(path, vertices=counts.get("vertex", 0), faces=counts.get("face", 0))
    return load(data, "ply", path)


def load(data: bytes, kind: str, path: Path) -> SourceMesh:
    """Read through trimesh."""
    import trimesh

    try:
        mesh = trimesh.load(io.BytesIO(data), file_type=kind, process=False, maintain_order=True)
        faces = torch.from_numpy(np.asarray(mesh.faces).astype(np.int64))
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"the mesh file must be readable, got {path}: {reason}; export it again") from error
    normals = (
        torch.from_numpy(np.array(mesh.vertex_normals)).float() if "vertex_normals" in mesh._cache else None
    )
    uv = getattr(mesh.visual, "uv", None)
    colors = mesh.visual.vertex_colors if mesh.visual.kind == "vertex" else None
    return SourceMesh(
        vertices=in_single(np.asarray(mesh.vertices).astype(np.float64), path),
        faces=faces,
        normals=None if normals is None else normalize(normals, dim=1),
        normal_faces=None if normals is None else faces,
        uv=None if uv is None else torch.from_numpy(np.array(uv)).float(),
        uv_faces=None if uv is None else faces,
        vertex_color=None if colors is None else torch.from_numpy(np.array(colors)).float() / 255,
    )
