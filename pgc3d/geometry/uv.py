"""Texture coordinates: by xatlas under a time limit, else by a per-face atlas that is always valid.

(u, v) = (0, 0) is the lower left of the texture image and v points up, so that image row 0 lies at v = 1.
"""

import logging
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

logger = logging.getLogger(__name__)

PADDING = 4  # texels around a chart
PACKED = 2048  # largest image in which charts are packed, for the time grows with its texels


@dataclass(frozen=True)
class UvAtlas:
    """Texture coordinates in [0, 1] of a mesh; no two faces overlap.

    `vertex` is the mesh vertex of each texture vertex: `vertex[uv_faces]` are the mesh's faces.
    """

    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]
    vertex: Int[Tensor, " U"]
    method: Literal["xatlas", "triangles"]
    padding: int = (
        0  # texels around every chart that no other one comes nearer to, at the size it is made for
    )


def unwrap(
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    texture_size: int,
    padding: int = PADDING,
    time_limit: float = 60.0,
) -> UvAtlas:
    """Texture coordinates of a surface on a square texture.

    xatlas takes about 2 s for 20 000 faces and several times that for a rough surface. Where it exceeds the
    limit or fails, the faces are packed one by one (`triangle_atlas`), with a warning in the log and its name
    in `method`. Charts may be mirrored, which has no effect on a baked texture.

    Args:
        vertices: world positions.
        faces: counter-clockwise seen from outside.
        texture_size: side of the texture in texels, on which `padding` depends.
        padding: texels around every chart that are nearer to no other one; half as many, a quarter and so on
            where the image is too small for so many charts, see `UvAtlas.padding`.
        time_limit: seconds for xatlas; 0 skips it.
    """
    if time_limit > 0:
        atlas, reason = _xatlas(vertices, faces, texture_size, padding, time_limit)
        if atlas is not None:
            return atlas
        logger.warning("xatlas %s; packing the %d faces one by one instead", reason, len(faces))
    return triangle_atlas(vertices, faces, texture_size=texture_size)


def _xatlas(
    vertices: Tensor, faces: Tensor, size: int, padding: int, time_limit: float
) -> tuple[UvAtlas | None, str]:
    """An atlas, or None and the reason."""
    drawn = min(size, PACKED)
    ratio = size / drawn
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "mesh.npz", Path(folder) / "atlas.npz"
        np.savez(
            source,
            vertices=vertices.detach().cpu().numpy().astype(np.float32),
            faces=faces.cpu().numpy().astype(np.uint32),
            size=drawn,
            padding=math.ceil(padding / ratio),
        )
        # -P keeps the worker's own folder off the import path.
        command = [
            sys.executable,
            "-P",
            str(Path(__file__).with_name("unwrap_worker.py")),
            str(source),
            str(target),
        ]
        try:
            done = subprocess.run(command, timeout=time_limit, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            return None, f"was not done after {time_limit:g} s"
        except OSError as error:
            return None, f"could not be started ({error})"
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return None, f"failed with code {done.returncode} ({lines[-1] if lines else 'no message'})"
        with np.load(target) as arrays:
            atlas = UvAtlas(
                uv=torch.from_numpy(arrays["uv"].astype(np.float32)),
                uv_faces=torch.from_numpy(arrays["uv_faces"].astype(np.int64)),
                vertex=torch.from_numpy(arrays["vertex"].astype(np.int64)),
                method="xatlas",
                padding=min(padding, int(ratio * arrays["padding"])),
            )
    if not torch.equal(atlas.vertex[atlas.uv_faces], faces.cpu().long()):
        return None, "changed the faces"
    if not bool(((atlas.uv >= 0) & (atlas.uv <= 1)).all()):  # also false for NaN
        return None, "left the unit square"
    return atlas, ""


def triangle_atlas(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], *, texture_size: int
) -> UvAtlas:
    """An atlas in which every face has its own right triangle, two in a square cell, larger for larger faces.

    Cell sides are powers of two, so that squares in decreasing order of size fill a Morton curve without
    gaps.
    """
    corners = vertices.detach().cpu().numpy().astype(np.float64)[faces.cpu().numpy()]  # [F, 3, 3]
    edges = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2).max(axis=1)
    order = np.argsort(-edges, kind="stable")
    cell_edges = edges[order][0::2]  # faces of like size share a cell
    level, depth = _cell_levels(cell_edges, texture_size)
    area = 4**level
    corner = _morton(np.cumsum(area) - area)  # [cells, 2]
    side = np.power(2.0, level).astype(np.float64)
    uv = np.empty((len(faces), 3, 2))
    rank = np.arange(len(order))
    uv[order] = _right_triangles(
        corner[rank // 2], side[rank // 2], upper=rank % 2, texel=2**depth / texture_size
    )
    return UvAtlas(
        uv=torch.from_numpy((uv.reshape(-1, 2) / 2**depth).astype(np.float32)),
        uv_faces=torch.arange(3 * len(faces)).reshape(-1, 3),
        vertex=faces.cpu().long().reshape(-1).clone(),
        method="triangles",
    )


def _cell_levels(edges: NDArray[np.float64], texture_size: int) -> tuple[NDArray[np.int64], int]:
    """Log2 of the cells' sides and of the square that holds them, in units of the smallest cell."""
    # A cell below 8 texels is mostly gutter; cells are smaller only where more of them must fit.
    finest = max(math.floor(math.log2(max(texture_size / 8, 1))), math.ceil(math.log2(len(edges)) / 2))
    relative = np.log2(np.maximum(edges, edges.max() * 2.0**-finest) / edges.max())
    low, high = 0.0, 2.0 * finest + 1  # level of the largest face
    for _ in range(40):
        middle = (low + high) / 2
        levels = np.clip(np.floor(middle + relative), 0, finest)
        low, high = (middle, high) if (4.0**levels).sum() <= 4.0**finest else (low, middle)
    return np.clip(np.floor(low + relative), 0, finest).astype(np.int64), finest


def _morton(code: NDArray[np.int64]) -> NDArray[np.float64]:
    """Column and row [N, 2] of positions on the Z-order curve."""
    place = np.zeros((len(code), 2), dtype=np.int64)
    for bit in range(31):
        place[:, 0] |= ((code >> (2 * bit)) & 1) << bit
        place[:, 1] |= ((code >> (2 * bit + 1)) & 1) << bit
    return place.astype(np.float64)


def _right_triangles(
    corner: NDArray[np.float64], side: NDArray[np.float64], *, upper: NDArray[np.int64], texel: float
) -> NDArray[np.float64]:
    """Both halves of each cell [N, 3, 2], counter-clockwise, a gutter of one texel on every side."""
    gutter = np.minimum(texel, 0.1 * side)
    near, far = gutter, side - (1 + math.sqrt(2)) * gutter
    lower = np.stack([np.stack([near, near], 1), np.stack([far, near], 1), np.stack([near, far], 1)], axis=1)
    turned = side[:, None, None] - lower  # half a turn keeps the orientation
    return corner[:, None] + np.where(upper[:, None, None] == 1, turned, lower)
