"""Normals of a source mesh, completed and checked against its faces; on the CPU."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.geometry.normals import crease_normals, face_vectors
from pgc3d.mesh_io.source import SourceMesh

MAX_OPPOSED = 0.5  # fraction of the surface whose normals may point to the other side


def complete_normals(
    source: SourceMesh, welded: Float[Tensor, "W 3"], welded_faces: Int[Tensor, "F 3"], *, crease: float
) -> tuple[Float[Tensor, "N 3"], Int[Tensor, "F 3"], float]:
    """The file's normals, completed by crease normals where they are missing or not usable.

    Args:
        source: the mesh.
        welded: its welded vertices.
        welded_faces: its faces, as indices of these.
        crease: see `crease_normals`.

    Returns:
        Unit normals, the faces that index them, and the fraction of the surface where those of the file point
        to the other side than the faces. Above `MAX_OPPOSED` none of the file's are used, since a surface
        that is seen from its front would be lit from behind.
    """
    if source.normals is None or source.normal_faces is None:
        return *crease_normals(welded, welded_faces, crease=crease), 0.0
    usable = ((source.normals.norm(dim=1) - 1).abs() < 1e-3)[source.normal_faces.clamp_min(0)]
    known = usable & (source.normal_faces >= 0)
    opposed = _opposed(source, welded, welded_faces, known)
    if bool(known.all()) and opposed <= MAX_OPPOSED:
        return source.normals.nan_to_num(), source.normal_faces, opposed  # NaN where no face uses it
    made, made_faces = crease_normals(welded, welded_faces, crease=crease)
    if opposed > MAX_OPPOSED or not bool(known.any()):
        return made, made_faces, opposed
    used, index = torch.unique(source.normal_faces[known], return_inverse=True)
    normal_faces = made_faces + len(used)
    normal_faces[known] = index
    return torch.cat([source.normals[used], made]), normal_faces, opposed


def _opposed(source: SourceMesh, welded: Tensor, welded_faces: Tensor, known: Tensor) -> float:
    """The fraction of the area whose corners' normals point away from the face's own side."""
    if source.normals is None or source.normal_faces is None:
        return 0.0
    normals = source.normals[source.normal_faces.clamp_min(0)] * known[..., None]
    vectors = face_vectors(welded.double(), welded_faces)
    height = (normals.double().sum(dim=1) * vectors).sum(dim=1)
    area = vectors.norm(dim=1)
    return float(area[height < 0].sum() / area.sum().clamp_min(1e-300))


def is_inside_out(welded: Float[Tensor, "W 3"], welded_faces: Int[Tensor, "F 3"]) -> bool:
    """Whether the surface is closed and its faces point inwards."""
    points = (welded - welded.mean(dim=0)).double()
    a, b, c = (points.index_select(0, corner) for corner in welded_faces.T.contiguous())
    if not float((a * torch.linalg.cross(b, c)).sum()) < 0:  # six times the volume, where it is closed
        return False
    first, second, third = welded_faces.T
    faces = welded_faces[(first != second) & (second != third) & (third != first)]
    start, end = faces.reshape(-1), faces.roll(-1, dims=1).reshape(-1)
    forward, backward = start * len(welded) + end, end * len(welded) + start
    return torch.equal(forward.sort().values, backward.sort().values)
