"""Multi-resolution hash encoding on CUDA; `hash_grid` is the twin in plain torch and states the formulas.

One kernel each for the features, the table's gradient and the points' gradient: a program takes a block of
points through all levels, so that nothing of the size points x corners is ever stored. The table's gradient
is summed by atomics, one for each run of neighbouring points in the same cell; a block of points whose
gradients are zero ends at once, so pixels without a surface cost next to nothing.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from functools import cache
from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int32
from torch import Tensor

from pgc3d.kernels.hash_grid import PRIMES, HashLayout

_BLOCK = 128
_WARP = 32  # points of a program that compares neighbours; one warp needs neither shared memory nor barriers
# As int32 they wrap around; the rows need the lower bits only, and those are the same.
_PRIME_Y = tl.constexpr(PRIMES[1] - (1 << 32))
_PRIME_Z = tl.constexpr(PRIMES[2])


def encode(
    points: Float[Tensor, "P 3"], table: Float[Tensor, "N C"], layout: HashLayout
) -> Float[Tensor, "P LC"]:
    """See `hash_grid.encode`; float32."""
    points, count, sizes = points.contiguous(), len(points), _sizes(table, layout)
    features = torch.empty(count, sizes["LEVELS"] * sizes["WIDTH"], device=table.device)
    if count:
        parameters = level_parameters(layout, str(table.device))
        _forward[_grid(count)](points, table.contiguous(), parameters, features, count, **sizes)
    return features


def encode_backward(
    gradient: Float[Tensor, "P LC"],
    points: Float[Tensor, "P 3"],
    table: Float[Tensor, "N C"],
    layout: HashLayout,
    *,
    need_points: bool,
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "P 3"] | None]:
    """See `hash_grid.encode_backward`; float32."""
    points, gradient, count, sizes = (
        points.contiguous(),
        gradient.contiguous(),
        len(points),
        _sizes(table, layout),
    )
    parameters = level_parameters(layout, str(table.device))
    table_gradient = torch.zeros(table.shape, device=table.device)
    point_gradient = torch.zeros(points.shape, device=table.device) if need_points else None
    if count:
        _backward_table[(triton.cdiv(count, _WARP),)](
            gradient, points, parameters, table_gradient, count, **{**sizes, "BLOCK": _WARP}, num_warps=1
        )
    if count and point_gradient is not None:
        _backward_points[_grid(count)](
            gradient, points, table.contiguous(), parameters, point_gradient, count, **sizes
        )
    return table_gradient, point_gradient


def _grid(count: int) -> tuple[int]:
    return (triton.cdiv(count, _BLOCK),)


def _sizes(table: Tensor, layout: HashLayout) -> dict[str, int]:
    return {"LEVELS": len(layout.resolutions), "WIDTH": table.shape[1], "BLOCK": _BLOCK}


@cache
def level_parameters(layout: HashLayout, device: str) -> Int32[Tensor, "L 3"]:
    """Cells, first row and index mask of every level; the mask is 0 where the level is dense."""
    rows = [
        (cells, start, (end - start - 1) if hashed else 0)
        for cells, start, end, hashed in zip(
            layout.resolutions, layout.offsets, layout.offsets[1:], layout.hashed, strict=False
        )
    ]
    return torch.tensor(rows, dtype=torch.int32, device=device)


@triton.jit
@no_type_check
def _cell(points, point, valid, axis: tl.constexpr, cells):
    """Lower corner of a point's cell along an axis, the place in it, and whether no clamp acted."""
    value = tl.load(points + point * 3 + axis, mask=valid, other=0.0)
    scaled = tl.minimum(tl.maximum(value, 0.0), 1.0) * cells.to(tl.float32)
    low = tl.minimum(scaled.to(tl.int32), cells - 1)
    return low, scaled - low.to(tl.float32), (value >= 0.0) & (value <= 1.0)


@triton.jit
@no_type_check
def _side(weight, upper: tl.constexpr):
    return weight if upper else 1.0 - weight


@triton.jit
@no_type_check
def _signed(value, upper: tl.constexpr):
    return value if upper else -value


@triton.jit
@no_type_check
def _row(x, y, z, corner: tl.constexpr, cells, start, index_mask):
    """Row of one of the eight corners of the cell with the lowest corner (x, y, z)."""
    x, y, z = x + (corner >> 2), y + (corner >> 1 & 1), z + (corner & 1)
    hashed = (x ^ (y * _PRIME_Y) ^ (z * _PRIME_Z)) & index_mask
    dense = (x * (cells + 1) + y) * (cells + 1) + z
    return (start + tl.where(index_mask > 0, hashed, dense)).to(tl.int64)


@triton.jit
@no_type_check
def write_features(
    points, table, parameters, block, count, features, place,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Encode a block of points and write its features as block number `place`.

    `GROUP` levels are looked up at once: with one for each warp, and as many points as a warp has threads,
    every thread has a point and a level of its own, and finds the eight rows once for all channels.
    """
    line = tl.arange(0, BLOCK * GROUP)
    point = block.to(tl.int64) * BLOCK + line % BLOCK
    target_row = place.to(tl.int64) * BLOCK + line % BLOCK
    channel = tl.arange(0, triton.next_power_of_2(WIDTH))[None, :]
    for first in range(0, LEVELS, GROUP):
        level = first + line // BLOCK
        valid = (point < count) & (level < LEVELS)
        mask = valid[:, None] & (channel < WIDTH)
        cells = tl.load(parameters + level * 3, mask=valid, other=1)
        offset = tl.load(parameters + level * 3 + 1, mask=valid, other=0)
        index_mask = tl.load(parameters + level * 3 + 2, mask=valid, other=0)
        x, u, _x = _cell(points, point, valid, 0, cells)
        y, v, _y = _cell(points, point, valid, 1, cells)
        z, w, _z = _cell(points, point, valid, 2, cells)
        total = tl.zeros(mask.shape, dtype=tl.float32)
        for corner in tl.static_range(8):
            row = _row(x, y, z, corner, cells, offset, index_mask)[:, None]
            weight = _side(u, corner >> 2) * _side(v, corner >> 1 & 1) * _side(w, corner & 1)
            total += tl.load(table + row * WIDTH + channel, mask=mask, other=0.0) * weight[:, None]
        target = (target_row * LEVELS + level)[:, None]
        tl.store(features + target * WIDTH + channel, total, mask=mask)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _forward(
    points, table, parameters, features, count,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    write_features(points, table, parameters, block, count, features, block, LEVELS, WIDTH, BLOCK, 1)


@triton.jit
@no_type_check
def _runs(x, y, z, cells, BLOCK: tl.constexpr):
    """Whether a point is the first, and the last, of neighbouring ones in the same cell."""
    place = tl.arange(0, BLOCK)
    cell = (x.to(tl.int64) * cells + y) * cells + z
    first = cell != tl.gather(cell, tl.maximum(place - 1, 0), 0)
    last = cell != tl.gather(cell, tl.minimum(place + 1, BLOCK - 1), 0)
    return first, last | (place == BLOCK - 1)


@triton.jit
@no_type_check
def _join_runs(first_a, a0, a1, a2, a3, a4, a5, a6, a7, first_b, b0, b1, b2, b3, b4, b5, b6, b7):
    """The sums of a and b where no run starts in b."""
    go_on = first_b == 0
    return (
        first_a | first_b,
        b0 + tl.where(go_on, a0, 0.0), b1 + tl.where(go_on, a1, 0.0),
        b2 + tl.where(go_on, a2, 0.0), b3 + tl.where(go_on, a3, 0.0),
        b4 + tl.where(go_on, a4, 0.0), b5 + tl.where(go_on, a5, 0.0),
        b6 + tl.where(go_on, a6, 0.0), b7 + tl.where(go_on, a7, 0.0),
    )  # fmt: skip


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _backward_table(
    gradient, points, parameters, table_gradient, count,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = point < count
    column = tl.arange(0, triton.next_power_of_2(LEVELS * WIDTH))[None, :]
    mask = valid[:, None] & (column < LEVELS * WIDTH)
    upstream = tl.load(gradient + point[:, None] * (LEVELS * WIDTH) + column, mask=mask, other=0.0)
    if tl.max(tl.max((upstream != 0.0).to(tl.int32), axis=1), axis=0) == 0:
        return
    channel = tl.arange(0, triton.next_power_of_2(WIDTH))[None, :]
    mask = valid[:, None] & (channel < WIDTH)
    for level in range(LEVELS):
        cells = tl.load(parameters + level * 3)
        start, index_mask = tl.load(parameters + level * 3 + 1), tl.load(parameters + level * 3 + 2)
        x, u, _x = _cell(points, point, valid, 0, cells)
        y, v, _y = _cell(points, point, valid, 1, cells)
        z, w, _z = _cell(points, point, valid, 2, cells)
        pull = tl.load(gradient + (point[:, None] * LEVELS + level) * WIDTH + channel, mask=mask, other=0.0)
        first, last = _runs(x, y, z, cells, BLOCK)
        first = tl.broadcast_to(first.to(tl.int32)[:, None], pull.shape)
        u, v, w = u[:, None], v[:, None], w[:, None]
        low, high = pull * (1.0 - u), pull * u
        low_low, low_high, high_low, high_high = low * (1.0 - v), low * v, high * (1.0 - v), high * v
        sums = tl.associative_scan(
            (
                first,
                low_low * (1.0 - w), low_low * w, low_high * (1.0 - w), low_high * w,
                high_low * (1.0 - w), high_low * w, high_high * (1.0 - w), high_high * w,
            ),
            0, _join_runs,
        )  # fmt: skip
        for corner in tl.static_range(8):
            total = sums[corner + 1]
            any_channel = tl.max((total != 0.0).to(tl.int32), axis=1)[:, None] > 0
            row = _row(x, y, z, corner, cells, start, index_mask)[:, None]
            active = last[:, None] & any_channel & (channel < WIDTH)
            tl.atomic_add(table_gradient + row * WIDTH + channel, total, mask=active, sem="relaxed")


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _backward_points(
    gradient, points, table, parameters, point_gradient, count,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    point = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = point < count
    along_x = tl.zeros([BLOCK], dtype=tl.float32)
    along_y = tl.zeros([BLOCK], dtype=tl.float32)
    along_z = tl.zeros([BLOCK], dtype=tl.float32)
    for level in range(LEVELS):
        cells = tl.load(parameters + level * 3)
        start, index_mask = tl.load(parameters + level * 3 + 1), tl.load(parameters + level * 3 + 2)
        x, u, free_x = _cell(points, point, valid, 0, cells)
        y, v, free_y = _cell(points, point, valid, 1, cells)
        z, w, free_z = _cell(points, point, valid, 2, cells)
        for corner in tl.static_range(8):
            row = _row(x, y, z, corner, cells, start, index_mask)
            pull = tl.zeros([BLOCK], dtype=tl.float32)
            for channel in tl.static_range(WIDTH):
                incoming = tl.load(
                    gradient + (point * LEVELS + level) * WIDTH + channel, mask=valid, other=0.0
                )
                pull += incoming * tl.load(table + row * WIDTH + channel, mask=valid, other=0.0)
            pull *= cells.to(tl.float32)
            a, b, c = _side(u, corner >> 2), _side(v, corner >> 1 & 1), _side(w, corner & 1)
            along_x += tl.where(free_x, _signed(pull * b * c, corner >> 2), 0.0)
            along_y += tl.where(free_y, _signed(pull * a * c, corner >> 1 & 1), 0.0)
            along_z += tl.where(free_z, _signed(pull * a * b, corner & 1), 0.0)
    tl.store(point_gradient + point * 3, along_x, mask=valid)
    tl.store(point_gradient + point * 3 + 1, along_y, mask=valid)
    tl.store(point_gradient + point * 3 + 2, along_z, mask=valid)
