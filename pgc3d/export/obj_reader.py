"""Read the surface of a Wavefront OBJ with its own indices and in its own order.

trimesh's reader sorts the faces by material and splits the vertices by texture coordinates, so that neither
order would survive.
"""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.types import GivenMesh

MAX_BEND = 1e-4  # by which vertices may move when they are rounded, of the mesh's extent

Corner = tuple[int, ...]  # place in the lists of v, vt and vn, -1 where there is none


def parse_obj(text: str) -> GivenMesh:
    """Vertices, texture coordinates, normals and faces; polygons are cut into fans, the rest is passed over.

    Raises:
        ValueError: a line cannot be understood, or an index points at nothing.
    """
    rows: dict[str, list[list[str]]] = {"v": [], "vt": [], "vn": []}
    corners: list[Corner] = []
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        key, *words = line.split("#")[0].split() or [""]
        if key in rows:
            rows[key].append(words)
        elif key == "f":
            counts = [len(rows["v"]), len(rows["vt"]), len(rows["vn"])]
            polygon = [_corner(word, counts) for word in words]
            for second, third in pairwise(polygon[1:]):
                corners += [polygon[0], second, third]
    index = torch.tensor(corners, dtype=torch.int64).reshape(-1, 3, 3)  # face, corner, list
    uv = _floats([[*row, "0"] if len(row) == 1 else row for row in rows["vt"]], 2)  # v may be left out
    normals = _floats(rows["vn"], 3)
    has_uv = len(uv) > 0 and bool((index[..., 1] >= 0).all())
    has_normals = len(normals) > 0 and bool((index[..., 2] >= 0).all())
    return GivenMesh(
        vertices=in_single(_numbers(rows["v"], 3)),
        faces=index[..., 0].contiguous(),
        normals=normalize(normals, dim=1) if has_normals else None,
        normal_faces=index[..., 2].contiguous() if has_normals else None,
        uv=uv if has_uv else None,
        uv_faces=index[..., 1].contiguous() if has_uv else None,
    )


def _corner(word: str, counts: list[int]) -> Corner:
    """`v`, `v/vt`, `v//vn` or `v/vt/vn`, counted from 1, or backwards from the last one where negative."""
    parts = word.split("/")
    found = []
    for part, count in zip([*parts, "", ""][:3], counts, strict=True):
        number = int(part) if part else 0
        place = count + number if number < 0 else number - 1
        if number and not 0 <= place < count:
            raise ValueError(f"a face must use what was listed before it, got {word!r} after {count}")
        found.append(place if number else -1)
    if found[0] < 0:
        raise ValueError(f"a face must name vertices, got {word!r}")
    return tuple(found)


def _floats(rows: list[list[str]], width: int) -> Tensor:
    return torch.from_numpy(_numbers(rows, width)).float()


def _numbers(rows: list[list[str]], width: int) -> NDArray[np.float64]:
    if any(len(row) < width for row in rows):
        raise ValueError(f"a line must hold {width} numbers, got {min(rows, key=len)}")
    return np.array([row[:width] for row in rows], dtype=np.float64).reshape(-1, width)


def in_single(vertices: NDArray[np.float64]) -> Tensor:
    """Vertices [V, 3] in float32.

    Raises:
        ValueError: that would bend the mesh, since it is small and far from the origin.
    """
    finite = vertices[np.isfinite(vertices).all(axis=1)]
    if len(finite):
        moved = np.abs(finite - finite.astype(np.float32)).max() / max(np.ptp(finite, axis=0).max(), 1e-300)
        if moved > MAX_BEND:
            raise ValueError(
                f"it lies so far from the origin that single precision moves vertices by {moved:.2%} of its "
                "size; move it to the origin"
            )
    return torch.from_numpy(vertices).float()
