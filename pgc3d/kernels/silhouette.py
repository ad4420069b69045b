"""Crossings of silhouette edges between pixel centres, in plain torch: the kernels' reference.

An edge is on the silhouette of a view if all its faces lie on one side of it in the image. A mostly
vertical edge is followed row by row, a mostly horizontal one column by column; each time it passes between
two pixel centres, one inside (on the faces' side) and one outside. All three implementations do the same
arithmetic in float64, so that they agree on every decision, except beside faces that name a vertex twice.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Rasterisers snap vertices to 1/16 pixel, so that within this distance of a pixel centre the edge and the
# pixel may disagree about which side the pixel is on; the pixel wins.
SNAP = 0.07
SAME_DEPTH = 1e-4  # z/w; a surface this close to the edge counts as the edge's own
KEY_SCALE = float(1 << 20)  # steps of the position in a key; the edge's index sits in the lower 32 bits


@dataclass(frozen=True)
class CutEdges:
    """Edges between neighbouring pixels; pixels are flat indices (view * H + row) * W + column.

    A crossing that is not `live` must be ignored: hidden, or another edge passes further out.
    """

    inner: Int[Tensor, " N"]
    outer: Int[Tensor, " N"]
    edge: Int[Tensor, " N"]
    live: Bool[Tensor, " N"]


@dataclass(frozen=True)
class _Line:
    """Silhouette edges of all views, flattened to [B * E]; `major` is the scanned axis, `minor` the other."""

    along_rows: Tensor  # bool: pairs are left/right neighbours, the edge is followed over the rows
    direction: Tensor  # +1 if the outside lies towards larger minor coordinates, else -1
    first: Tensor  # first scan line
    count: Tensor  # number of scan lines, 0 where the edge is no silhouette
    major: Tensor  # [B * E, 2] ends in pixels
    minor: Tensor
    depth: Tensor  # z/w of the ends


def find_cut_edges(
    clip: Float[Tensor, "B V 4"],
    data: Float[Tensor, "B H W 4"],
    edges: Int[Tensor, "E 2"],
    opposite: Int[Tensor, "E 2"],
) -> CutEdges:
    """Find where silhouette edges pass between pixels, as many slots as there are candidates.

    Waits for the device once, to learn that number.
    """
    views, height, width = data.shape[:3]
    line = _silhouettes(clip.detach().double(), edges, opposite, height, width)
    ends = line.count.cumsum(0)
    total = int(ends[-1]) if ends.numel() else 0
    slot = torch.repeat_interleave(
        torch.arange(line.count.numel(), device=clip.device), line.count, output_size=total
    )
    scan = torch.arange(total, device=clip.device) - (ends - line.count)[slot] + line.first[slot]
    inner, outer, key, pair, live = _candidates(line, slot, scan, data, len(edges))
    best = torch.zeros(2 * views * height * width, dtype=torch.int64, device=clip.device)
    best.scatter_reduce_(0, pair, torch.where(live, key, 0), "amax")
    return CutEdges(inner, outer, slot % max(len(edges), 1), live & (best[pair] == key))


def _silhouettes(clip: Tensor, edges: Tensor, opposite: Tensor, height: int, width: int) -> _Line:
    w = clip[..., 3]
    position = torch.stack(
        [0.5 * width * (clip[..., 0] + w) - 0.5 * w, 0.5 * height * (w - clip[..., 1]) - 0.5 * w, w], dim=-1
    )
    index = edges.long().clamp(min=0)
    a, b = position[:, index[:, 0]], position[:, index[:, 1]]  # [B, E, 3]
    normal = torch.linalg.cross(a, b)
    wings = opposite.long()
    sides = (normal[:, :, None] * position[:, wings.clamp(min=0)]).sum(-1)  # [B, E, 2]
    first = sides[..., 0]
    second = torch.where(wings[:, 1] >= 0, sides[..., 1], first)
    side = torch.where(first != 0, first, second)
    in_front = (a[..., 2] > 0) & (b[..., 2] > 0) & (edges[:, 0] >= 0)
    silhouette = in_front & (first * second >= 0) & (side != 0)
    x = torch.stack([a[..., 0] / a[..., 2], b[..., 0] / b[..., 2]], dim=-1)  # [B, E, 2]
    y = torch.stack([a[..., 1] / a[..., 2], b[..., 1] / b[..., 2]], dim=-1)
    silhouette &= torch.isfinite(x + y).all(-1)
    along_rows = (y[..., 1] - y[..., 0]).abs() >= (x[..., 1] - x[..., 0]).abs()
    major = torch.where(along_rows[..., None], y, x)
    scan_lines = torch.where(along_rows, height, width)
    low = major.amin(-1).clamp(min=0.0).ceil()
    high = torch.minimum(major.amax(-1).ceil(), scan_lines)
    count = torch.where(silhouette, (high - low).clamp(min=0.0), 0.0)
    towards_inside = torch.where(along_rows, normal[..., 0], normal[..., 1]) * side > 0
    return _Line(
        along_rows=along_rows.flatten(),
        direction=torch.where(towards_inside, -1, 1).flatten(),
        first=torch.where(count > 0, low, 0.0).long().flatten(),
        count=count.long().flatten(),
        major=major.flatten(0, 1),
        minor=torch.where(along_rows[..., None], x, y).flatten(0, 1),
        depth=(clip[:, index, 2] / clip[:, index, 3]).flatten(0, 1),
    )


def _candidates(
    line: _Line, slot: Tensor, scan: Tensor, data: Tensor, edge_count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Inner and outer pixel, ordering key, pixel pair, and whether the crossing is visible."""
    views, height, width = data.shape[:3]
    along_rows, step = line.along_rows[slot], line.direction[slot]
    major, minor, ends = line.major[slot], line.minor[slot], line.depth[slot]
    fraction = (scan - major[:, 0]) / (major[:, 1] - major[:, 0])
    crossing = minor[:, 0] + fraction * (minor[:, 1] - minor[:, 0])
    depth = ends[:, 0] + fraction * (ends[:, 1] - ends[:, 0])
    size = torch.where(along_rows, width, height)
    low = crossing.clamp(-2.0, 1.0e6).floor().long()
    inner = torch.where(step > 0, low, low + 1)
    distance = (crossing - inner) * step
    view = slot // max(edge_count, 1)
    stride = torch.where(along_rows, 1, width)
    base = view * height * width + scan * torch.where(along_rows, width, 1)
    shown_depth, shown_index = data[..., 2].flatten(), data[..., 3].flatten()

    def covered(pixel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inside = (pixel >= 0) & (pixel < size)
        index = base + pixel.clamp(min=0).minimum(size - 1) * stride
        return inside, inside & (shown_index[index] > 0), shown_depth[index]

    _, inner_covered, _ = covered(inner)
    _, outer_covered, outer_depth = covered(inner + step)
    inwards = ~inner_covered & (distance < SNAP)
    outwards = outer_covered & (distance > 1 - SNAP) & (outer_depth <= depth + SAME_DEPTH)
    shift = torch.where(inwards, -1, torch.where(outwards, 1, 0))
    inner, distance = inner + shift * step, distance - shift
    outer = inner + step
    _, inner_covered, _ = covered(inner)
    outer_inside, outer_covered, outer_depth = covered(outer)
    live = inner_covered & outer_inside & (~outer_covered | (depth <= outer_depth)) & (depth.abs() <= 1)
    inner_index = base + inner.clamp(min=0).minimum(size - 1) * stride
    outer_index = base + outer.clamp(min=0).minimum(size - 1) * stride
    key = (((distance + 1) * KEY_SCALE).long() << 32) | (slot % max(edge_count, 1))
    pair = torch.minimum(inner_index, outer_index) + torch.where(along_rows, 0, views * height * width)
    return inner_index, outer_index, key, pair, live
