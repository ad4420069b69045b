"""Multi-resolution hash encoding: forward and backward in plain torch, for any device.

`hash_grid_numba` is the twin for the CPU. Both take the layout of `HashLayout`, interpolate trilinearly and
do not use autograd; `representation.fields` joins them.
Formulas: Instant Neural Graphics Primitives, Müller et al. 2022, equations 2 to 4.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

PRIMES = (1, 2_654_435_761, 805_459_861)


@dataclass(frozen=True)
class HashLayout:
    """The rows of each level in the table; a level is dense where its grid fits, else hashed."""

    resolutions: tuple[int, ...]  # cells along an axis
    offsets: tuple[int, ...]  # first row of each level, and the number of rows at the end
    hashed: tuple[bool, ...]


def hash_layout(*, levels: int, log2_rows: int, base: int, finest: int) -> HashLayout:
    """Spread the levels: N_l = floor(base b^l), b = exp(ln(finest / base) / (levels - 1)) (eq. 2, 3)."""
    growth = math.exp(math.log(finest / base) / max(levels - 1, 1))
    resolutions = tuple(math.floor(base * growth**level + 1e-6) for level in range(levels))
    limit = 2**log2_rows
    hashed = tuple((cells + 1) ** 3 > limit for cells in resolutions)
    offsets = [0]
    for cells, is_hashed in zip(resolutions, hashed, strict=True):
        offsets.append(offsets[-1] + (limit if is_hashed else (cells + 1) ** 3))
    return HashLayout(resolutions, tuple(offsets), hashed)


def encode(
    points: Float[Tensor, "P 3"], table: Float[Tensor, "N C"], layout: HashLayout
) -> Float[Tensor, "P LC"]:
    """Interpolated features of points in [0, 1]^3 (clamped to it), level after level."""
    features = []
    for level in range(len(layout.resolutions)):
        rows, weights, _, _ = _corners(points, layout, level)
        corners = table.index_select(0, rows.reshape(-1)).reshape(*rows.shape, table.shape[1])  # [P, 8, C]
        features.append(torch.bmm(weights[:, None], corners)[:, 0])
    return torch.cat(features, dim=-1)


def encode_backward(
    gradient: Float[Tensor, "P LC"],
    points: Float[Tensor, "P 3"],
    table: Float[Tensor, "N C"],
    layout: HashLayout,
    *,
    need_points: bool,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "P 3"] | None]:
    """Gradients of `encode` for the table and, where needed, the points; the corners are recomputed."""
    width = table.shape[1]
    table_gradient = torch.zeros_like(table)
    point_gradient = torch.zeros_like(points) if need_points else None
    for level, cells in enumerate(layout.resolutions):
        rows, weights, axis_weights, free = _corners(points, layout, level)
        part = gradient[:, level * width : (level + 1) * width]
        flat = rows.reshape(-1)
        table_gradient.index_add_(0, flat, (weights[..., None] * part[:, None]).reshape(-1, width))
        if point_gradient is not None:
            corners = table.index_select(0, flat).reshape(*rows.shape, width)
            pull = torch.bmm(corners, part[..., None])[..., 0]  # [P, 8]
            for axis in range(3):
                slope = _slope(axis_weights, axis)
                point_gradient[:, axis] += cells * free[:, axis] * (pull * slope).sum(-1)
    return table_gradient, point_gradient


def _corners(points: Tensor, layout: HashLayout, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows and weights [P, 8] of a cell's corners, those by axis [P, 3, 2], and where no clamp acted."""
    cells = layout.resolutions[level]
    free = ((points >= 0) & (points <= 1)).to(points.dtype)
    scaled = points.clamp(0.0, 1.0) * cells
    low = scaled.floor().clamp(max=cells - 1)
    fraction = scaled - low
    axis_weights = torch.stack([1.0 - fraction, fraction], dim=-1)
    x, y, z = axis_weights.unbind(1)
    weights = (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).reshape(-1, 8)

    index = low.long()[..., None] + torch.arange(2, device=points.device)  # [P, 3, 2]
    if layout.hashed[level]:
        terms = index * torch.tensor(PRIMES, device=points.device)[:, None]
        x, y, z = terms.unbind(1)
        rows = x[:, :, None, None] ^ y[:, None, :, None] ^ z[:, None, None, :]
        rows = rows & (layout.offsets[level + 1] - layout.offsets[level] - 1)
    else:
        x, y, z = index.unbind(1)
        size = cells + 1
        rows = (x[:, :, None, None] * size + y[:, None, :, None]) * size + z[:, None, None, :]
    return rows.reshape(-1, 8) + layout.offsets[level], weights, axis_weights, free


def _slope(axis_weights: Tensor, axis: int) -> Tensor:
    """Derivative of the corner weights along an axis, in units of a cell."""
    sides = list(axis_weights.unbind(1))
    sides[axis] = torch.tensor([-1.0, 1.0], dtype=axis_weights.dtype, device=axis_weights.device).expand_as(
        sides[axis]
    )
    x, y, z = sides
    return (x[:, :, None, None] * y[:, None, :, None] * z[:, None, None, :]).reshape(-1, 8)
