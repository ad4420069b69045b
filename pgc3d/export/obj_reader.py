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

Corner = tuple[int, ...]  # place in the lists of v, vt and vn, -1 where there is none


def parse_obj(text: str) -> GivenMesh:
    """Vertices, texture coordinates, normals and faces; polygons are cut into fans, the rest is passed over.

    Raises:
        ValueError: a line cannot be understood, or an index points at nothing.
    """
    rows: dict[str, list[list[str]]] = {"v": [], "vt": [], "vn": []}
    corners: list[Corner] = []
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        key, _, rest = line.strip().partition(" ")
        if key in rows:
            rows[key].append(rest.split())
        elif key == "f":
            counts = [len(rows["v"]), len(rows["vt"]), len(rows["vn"])]
            polygon = [_corner(word, counts) for word in rest.split("#")[0].split()]
            for second, third in pairwise(polygon[1:]):
                corners += [polygon[0], second, third]
    index = torch.tensor(corners, dtype=torch.int64).reshape(-1, 3, 3)  # face, corner, list
    uv, normals = _floats(rows["vt"], 2), _floats(rows["vn"], 3)
    has_uv = len(uv) > 0 and bool((index[..., 1] >= 0).all())
    has_normals = len(normals) > 0 and bool((index[..., 2] >= 0).all())
    return GivenMesh(
        vertices=_floats(rows["v"], 3),
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
    if any(len(row) < width for row in rows):
        raise ValueError(f"a line must hold {width} numbers, got {min(rows, key=len)}")
    values: NDArray[np.float64] = np.array([row[:width] for row in rows], dtype=np.float64)
    return torch.from_numpy(values.reshape(-1, width)).float()
