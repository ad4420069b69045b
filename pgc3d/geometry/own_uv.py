"""Checks of a mesh's own texture coordinates: whether a texture can have one texel for each point."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.geometry.normals import face_vectors
from pgc3d.interfaces import Rasterizer
from pgc3d.types import Fragments, PreparedMesh

RESOLUTION = 2048  # at which the overlap is measured
MAX_OVERLAP = 0.02  # fraction of the charts' area that lies below other charts
MAX_DEGENERATE = 0.01  # fraction of the surface whose faces have no area in the image
MIN_AREA = 0.01  # fraction of the image that the charts cover at least
FARTHEST = 1e6  # tile that coordinates are translated from
TOLERANCE = 1e-3  # how far coordinates may leave the unit square


def to_unit_square(
    uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]
) -> tuple[Float[Tensor, "N 2"], Int[Tensor, "F 3"]]:
    """The coordinates of some faces, translated to the unit square where all lie in one other tile."""
    if not 0 <= int(uv_faces.min()) <= int(uv_faces.max()) < len(uv):
        return uv, uv_faces
    low = (uv[uv_faces].flatten(0, 1).amin(dim=0).double() + TOLERANCE).floor()
    if not bool(torch.isfinite(low).all()) or not bool((low != 0).any()) or float(low.abs().max()) > FARTHEST:
        return uv, uv_faces
    return translated(uv, uv_faces, low.long().expand(len(uv_faces), 2))


def uv_error(
    uv: Float[Tensor, "U 2"],
    uv_faces: Int[Tensor, "F 3"],
    vertices: Float[Tensor, "V 3"],
    faces: Int[Tensor, "F 3"],
    *,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
) -> str | None:
    """The reason why a texture cannot have one texel for each point, None where it can."""
    reason = _unusable(uv, uv_faces)
    if reason is not None:
        return reason
    outside = ((uv < -TOLERANCE) | (uv > 1 + TOLERANCE)).any(dim=1)
    if bool(outside.any()) and bool(outside[uv_faces].any()):
        return _tiles(uv, uv_faces) or "leave the unit square"
    area = chart_areas(uv, uv_faces)
    surface = face_vectors(vertices.double(), faces).norm(dim=1)
    flat = float(surface[area < 1e-12].sum() / surface.sum().clamp_min(1e-300))
    if flat > MAX_DEGENERATE:
        return f"give no area to {flat:.0%} of the surface"
    total = float(area.sum())
    if total < MIN_AREA:
        return f"use {total:.2%} of the image only"
    overlap = uv_overlap(uv, uv_faces, rasterizer=rasterizer, device=device)
    if overlap > MAX_OVERLAP:
        return f"overlap on {overlap:.0%} of their area"
    return None


def uv_overlap(
    uv: Float[Tensor, "U 2"],
    uv_faces: Int[Tensor, "F 3"],
    *,
    rasterizer: Rasterizer,
    device: torch.device | str = "cpu",
) -> float:
    """The fraction of the charts' summed area that their union does not cover, in [0, 1].

    Args:
        uv: coordinates in the unit square.
        uv_faces: with an area above 0.
        rasterizer: on `device`.
        device: of the rasteriser.
    """
    drawn = draw_atlas(uv.to(device), uv_faces.to(device), RESOLUTION, rasterizer)
    return max(0.0, 1 - float(drawn.mask.mean()) / float(chart_areas(uv, uv_faces).sum()))


def uv_unusable(uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]) -> str | None:
    """The reason why no texture can use the coordinates, None where one can."""
    reason = _unusable(uv, uv_faces)
    if reason is None and float(chart_areas(uv, uv_faces).sum()) < 1e-9:
        return "give no area to 100% of the surface"
    return reason


def _unusable(uv: Tensor, uv_faces: Tensor) -> str | None:
    if not 0 <= int(uv_faces.min()) <= int(uv_faces.max()) < len(uv):
        return "do not belong to the faces"
    finite = torch.isfinite(uv).all(dim=1)
    if not bool(finite.all()) and not bool(finite[uv_faces].all()):
        return "are not finite"
    return None


def chart_areas(uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]) -> Float[Tensor, " F"]:
    """Area of each face in the image."""
    a, b, c = uv.double()[uv_faces].unbind(1)
    (x, y), (z, w) = (b - a).unbind(1), (c - a).unbind(1)
    return (x * w - y * z).abs() / 2


def _bounds(uv: Tensor, uv_faces: Tensor) -> tuple[Int[Tensor, "F 2"], Int[Tensor, "F 2"]]:
    """The first tile that each face touches, and the one after the last."""
    corners = uv[uv_faces].double()
    low, high = corners.amin(dim=1) + TOLERANCE, corners.amax(dim=1) - TOLERANCE
    return low.floor().long(), high.ceil().long()


def tiles_of(uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]) -> Int[Tensor, "F 2"] | None:
    """Column and row of the tile that each face lies in, None where a face crosses the edge of one."""
    low, high = _bounds(uv, uv_faces)
    return None if bool((high - low > 1).any()) else low


def udim_number(tile: Int[Tensor, " 2"]) -> int:
    """The number of a tile: 1001 for the unit square, 10 in a row; meaningless outside the first ten."""
    return int(1001 + tile[0] + 10 * tile[1])


def _tiles(uv: Tensor, uv_faces: Tensor) -> str | None:
    """The tiles that the charts lie in, None where a face crosses the edge of one."""
    low = tiles_of(uv, uv_faces)
    if low is None:
        return None
    tiles = torch.unique(low, dim=0)
    if bool((tiles < 0).any()) or bool((tiles[:, 0] > 9).any()):
        return f"lie in {len(tiles)} tiles"
    names = sorted(udim_number(tile) for tile in tiles)
    listed = ", ".join(map(str, names[:6])) + (" ..." if len(names) > 6 else "")
    return f"lie in {len(tiles)} UDIM tiles {listed}"


def fold_tiles(
    uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"]
) -> tuple[Float[Tensor, "N 2"], Int[Tensor, "F 3"], bool]:
    """Texture coordinates with each face translated by integers into the unit square, for a repeating image.

    Returns:
        The coordinates, their faces, and whether a face crosses the square's edge, so that it needs an
        image that repeats.
    """
    low, high = _bounds(uv, uv_faces)
    wraps = bool((high - low > 1).any())
    if not bool((low != 0).any()):
        return uv, uv_faces, wraps
    return *translated(uv, uv_faces, low), wraps


def translated(
    uv: Float[Tensor, "U 2"], uv_faces: Int[Tensor, "F 3"], low: Int[Tensor, "F 2"]
) -> tuple[Float[Tensor, "N 2"], Int[Tensor, "F 3"]]:
    """The coordinates of each face less a whole number of tiles, which become the unit square."""
    keys = torch.cat([uv_faces.reshape(-1, 1), low.repeat_interleave(3, dim=0)], dim=1)
    unique, index = torch.unique(keys, dim=0, return_inverse=True)
    return uv[unique[:, 0]] - unique[:, 1:].to(uv.dtype), index.reshape(-1, 3)


def draw_atlas(
    uv: Float[Tensor, "U 2"],
    uv_faces: Int[Tensor, "F 3"],
    size: int,
    rasterizer: Rasterizer,
    rows: range | None = None,
) -> Fragments:
    """The face at each texel's centre, from a rasterisation in texture space; row 0 at v = 1.

    `rows` are those of the image to draw, all when None.
    """
    rows = range(size) if rows is None else rows
    column, row = size * uv[:, 0].double(), size * (1 - uv[:, 1].double())
    place = [2 * column / size - 1, 1 - 2 * (row - rows.start) / len(rows)]
    flat = torch.zeros_like(column)
    clip = torch.stack([*place, flat, flat + 1], dim=1).to(uv.dtype)[None]
    return rasterizer.rasterize(clip, uv_faces, (len(rows), size))


def texel_centres(covered: Bool[Tensor, "H S"], size: int, rows: range | None = None) -> Float[Tensor, "P 2"]:
    """Texture coordinates of the centres of some texels in an image's `rows`, all when None; v points up."""
    first = 0 if rows is None else rows.start
    row, column = covered.nonzero().unbind(1)
    return torch.stack([column + 0.5, size - first - row - 0.5], dim=1) / size


def uv_coverage(mesh: PreparedMesh, index: int, size: int, rasterizer: Rasterizer) -> Float[Tensor, "S S"]:
    """1 where a face of a texture set covers a texel's centre, or everywhere for an image that repeats."""
    if mesh.sets[index].wraps:
        return torch.ones(size, size, device=mesh.uv.device)
    return draw_atlas(mesh.uv, mesh.uv_faces[mesh.faces_of(index)], size, rasterizer).mask[0, ..., 0]
