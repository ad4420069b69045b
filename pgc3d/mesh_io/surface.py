"""What readers of simple formats share: single precision, normals and texture coordinates."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import require_counts
from pgc3d.mesh_io.lines import counted
from pgc3d.mesh_io.polygons import triangulate

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_BEND = 1e-4  # by which vertices may move when they are rounded, of the mesh's extent


@dataclass(frozen=True)
class Values:
    """Values, and which of them each corner of each triangle uses, -1 for none."""

    values: Float[Tensor, "N k"]
    faces: Int[Tensor, "F 3"]


def in_single(
    vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"], path: Path
) -> tuple[Float[Tensor, "V 3"], list[str]]:
    """Vertices in float32, and notes; one that is not finite and that no face uses goes to the origin.

    Raises:
        InputError: rounding would bend the mesh, since it is small and far from the origin, or overflow.
    """
    used = np.zeros(len(vertices), dtype=bool)
    used[faces.reshape(-1)] = True
    with np.errstate(over="ignore", invalid="ignore"):
        finite = np.isfinite(vertices.astype(np.float32)).all(axis=1)
    notes, idle = [], ~finite & ~used
    if idle.any():
        vertices = np.where(idle[:, None], 0.0, vertices)
        notes.append(
            f"{counted(int(idle.sum()), 'unused vertex', 'unused vertices')} without finite coordinates"
        )
    surface = vertices[used & finite]
    if len(surface) and np.abs(surface).max() > np.finfo(np.float32).max:
        raise InputError(
            f"vertices must be finite, got numbers beyond those of single precision in {path}; "
            "scale the mesh down"
        )
    if len(surface):
        with np.errstate(over="ignore", invalid="ignore"):
            moved, size = np.abs(surface - surface.astype(np.float32)).max(), np.ptp(surface, axis=0).max()
        if size > 0 and MAX_BEND * size < moved < np.inf:
            raise InputError(
                f"the mesh must lie near the origin, got {path}, where rounding to single precision moves "
                f"vertices by {moved / size:.2g} of its size; move it to the origin"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(vertices.astype(np.float32)), notes


def cut_polygons(
    vertices: Float[np.ndarray, "V 3"],
    corners: Int[np.ndarray, " C"],
    counts: Int[np.ndarray, " P"],
    path: Path,
) -> tuple[Int[np.ndarray, "T 3"], Int[np.ndarray, " T"]]:
    """`triangulate` within the limits of a mesh.

    Raises:
        InputError: there would be too many triangles, or a polygon that cannot be cut.
    """
    require_counts(path, vertices=len(vertices), faces=int(np.maximum(counts - 2, 0).sum()) or -1)
    try:
        return triangulate(vertices, corners, counts)
    except ValueError as error:
        raise InputError(f"{error}: {path}") from error


def own_normals(normals: Float[np.ndarray, "N 3"], faces: Int[np.ndarray, "F 3"]) -> Values | None:
    """Unit normals, 0 for those without a direction; None where no corner has one."""
    if not len(normals) or not (faces >= 0).any():
        return None
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        unit = normals / np.abs(normals).max(axis=1, keepdims=True)  # the squares of huge ones are infinite
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit[~np.isfinite(unit).all(axis=1)] = 0
    return Values(torch.from_numpy(unit).float(), torch.from_numpy(faces))


def own_uv(uv: Float[np.ndarray, "U 2"], faces: Int[np.ndarray, "F 3"]) -> Values | None:
    """Texture coordinates, none for corners where they are not finite; None where no corner has any."""
    if not len(uv):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        single = uv.astype(np.float32)
    finite = np.asarray(np.isfinite(single).all(axis=1))
    if not finite.all():
        faces = np.where((faces >= 0) & finite[faces.clip(0)], faces, -1)
        single[~finite] = 0
    if not (faces >= 0).any():
        return None
    return Values(torch.from_numpy(single), torch.from_numpy(faces))
