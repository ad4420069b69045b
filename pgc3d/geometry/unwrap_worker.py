"""Run xatlas in a separate process, which can be stopped: `unwrap_worker.py INPUT.npz OUTPUT.npz`.

It imports nothing from pgc3d: a child that loads torch would cost more than most unwraps.
"""

import sys
from typing import Any

import numpy as np
import xatlas

FACES_PER_PIECE = 400  # xatlas' time grows faster than its pieces do
PACKINGS = 7  # in the search of the densest one
LEAST, MOST = 0.6, 1.1  # densities that are searched, as fractions of that with less padding


def main(source: str, target: str) -> None:
    with np.load(source) as arrays:
        vertices, faces = arrays["vertices"], arrays["faces"]
        size, padding = int(arrays["size"]), int(arrays["padding"])
    pieces, atlas = split(vertices, faces), xatlas.Atlas()
    used = []
    for piece in pieces:
        vertex, local = np.unique(faces[piece], return_inverse=True)
        atlas.add_mesh(vertices[vertex], local.reshape(-1, 3).astype(np.uint32))
        used.append(vertex)
    atlas.generate(xatlas.ChartOptions(), pack_options(size, padding))
    parts = [atlas[index] for index in range(len(pieces))]
    offsets = np.cumsum([0, *(len(part[0]) for part in parts)])
    uv_faces = np.empty_like(faces)
    for piece, part, offset in zip(pieces, parts, offsets[:-1], strict=True):
        uv_faces[piece] = part[1] + offset
    vertex = np.concatenate([index[part[0]] for index, part in zip(used, parts, strict=True)])
    uv = np.concatenate([part[2] for part in parts])
    if max(atlas.width, atlas.height) > size:  # it packs into an image that is larger than it should be
        chart_uv = uv * [atlas.width, atlas.height] / atlas.texels_per_unit
        dense = size / max(atlas.width, atlas.height) * atlas.texels_per_unit
        found, padding = packed(chart_uv.astype(np.float32), uv_faces, size, padding, dense)
        if found is not None:
            vertex, uv_faces, uv = vertex[found[0]], found[1], found[2]
    np.savez(target, vertex=vertex, uv_faces=uv_faces, uv=uv, padding=padding)


def pack_options(size: int, padding: int, density: float = 0.0) -> Any:
    """Options for an image of a size, with texels per world unit where they are given."""
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding, pack.texels_per_unit = size, padding, density
    return pack


def packed(uv: Any, faces: Any, size: int, padding: int, density: float) -> tuple[Any, int]:
    """Charts packed into an image of exactly a size, as densely as they fit with all of the padding.

    The padding is halved where it would take too many of the texels, as of many charts in a small image.

    Args:
        uv: of the charts, in world units.
        faces: of the charts.
        size: side of the image in texels.
        padding: texels on each side of a chart.
        density: texels for a world unit at which the charts would nearly fit without all of the padding.

    Returns:
        The vertex in `uv` of each new one, the faces and the new texture coordinates, or None where nothing
        fits; and the padding.
    """
    while True:
        found = densest(uv, faces, size, padding, density)
        if found is not None or padding == 0:
            return found, padding
        padding //= 2


def densest(uv: Any, faces: Any, size: int, padding: int, density: float) -> Any:
    """The densest packing by bisection, None where the charts do not fit at the least density."""
    low, high, best = LEAST * density, MOST * density, None
    middle = low
    for _ in range(PACKINGS):
        atlas = xatlas.Atlas()
        atlas.add_uv_mesh(uv, faces)
        atlas.generate(xatlas.ChartOptions(), pack_options(size, padding, middle))
        if atlas.atlas_count == 1 and max(atlas.width, atlas.height) <= size:
            vertex, new_faces, new_uv = atlas[0]
            best = vertex, new_faces, new_uv * np.array([atlas.width, atlas.height]) / size
            low = middle
        elif best is None:
            return None
        else:
            high = middle
        middle = (low + high) / 2
    return best


def split(vertices: Any, faces: Any) -> list[Any]:
    """Face indices of pieces with one dominant normal direction and one cell of the bounding box.

    On 20 000 faces this is six times as fast as the whole surface at once, with fewer charts.
    """
    corners = vertices[faces].astype(np.float64)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axis = np.abs(normal).argmax(axis=1)
    side = normal[np.arange(len(faces)), axis] > 0
    cells = max(1, round((len(faces) / (6 * FACES_PER_PIECE)) ** (1 / 3)))
    centre = corners.mean(axis=1)
    low, extent = centre.min(axis=0), np.ptp(centre, axis=0).max()
    place = np.minimum((centre - low) / max(extent, 1e-30) * cells, cells - 1).astype(np.int64)
    key = (place @ np.array([1, cells, cells**2])) * 6 + 2 * axis + side
    order = np.argsort(key, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
