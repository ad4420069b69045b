"""Triton kernels of group normalisation; `group_norm.py` states the arithmetic and is their twin.

Every image's pixels are split over many programs, whose partial sums a second kernel adds up in a fixed
order: no atomics, the same numbers in every run. Reading and writing is all these kernels do, so that each
tensor is touched as few times as possible: forward twice read, once written; backward twice read, once
written for pixels and gradient each.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from dataclasses import dataclass
from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from pgc3d.kernels.group_norm import Norm, Pixels, Shift, Statistics


@dataclass(frozen=True)
class Tiling:
    """How the work is cut up."""

    numbers: int = 4096  # in a tile of whole pixels
    programs: int = 1024  # at most, for each image; their partial sums are added by one program
    warps: int = 8
    stages: int = 1  # tiles that are on their way at once
    least: int = 1  # tiles of a program where there are as many: with fewer programs less is left to add


FINISH_WARPS = 8
# For the kernels that add up, and for those that write images: the fastest on an H100 for the gradient of
# 1024 x 1024 pixels of 128 channels (`scripts/tune_kernels.py`), at 2.9 and 3.0 TB/s. One tile at a time gave
# 2.1 and 2.6. Sixteen tiles for each program are the fastest at the smaller sizes of SDXL's UNet on an H200:
# 18 us in place of 91 for two images of 32 x 32 pixels and 2560 channels, 30 in place of 46 for 128 x 128 and
# 320.
REDUCE = Tiling(numbers=2048, programs=1056, warps=4, stages=3, least=16)
WRITE = Tiling(numbers=8192, programs=2112, warps=8, stages=2)


def forward_triton(
    pixels: Pixels, norm: Norm, shift: Shift | None, tiling: Tiling | None = None
) -> tuple[Pixels, Statistics]:
    """Twin of `group_norm.forward`."""
    views, count, channels = pixels.shape
    reduce = tiling or REDUCE
    grid, sizes = _cut(pixels, reduce)
    partial = _empty(pixels, views, grid[0], 2, channels)
    center, scale = _empty(pixels, views, channels), _empty(pixels, views, channels)
    _moments[grid](pixels, partial, count, channels, *sizes, num_warps=reduce.warps)
    _finish_moments[norm.groups, views](
        partial, pixels, shift, center, scale,
        count, channels, grid[0], norm.eps, channels if shift is not None and shift.ndim == 2 else 0,
        PER_GROUP=channels // norm.groups, BLOCK=triton.next_power_of_2(channels // norm.groups),
        PARTS=triton.next_power_of_2(grid[0]), num_warps=FINISH_WARPS,
    )  # fmt: skip
    return apply_triton(pixels, norm, (center, scale), tiling), (center, scale)


def apply_triton(pixels: Pixels, norm: Norm, statistics: Statistics, tiling: Tiling | None = None) -> Pixels:
    """Twin of `group_norm.reapply`."""
    write = tiling or WRITE
    grid, sizes = _cut(pixels, write)
    result = torch.empty_like(pixels)
    _apply[grid](
        pixels, *statistics, norm.weight, norm.bias, result,
        pixels.shape[1], pixels.shape[2], *sizes, SILU=norm.silu, num_warps=write.warps,
    )  # fmt: skip
    return result


def backward_triton(
    gradient: Pixels,
    pixels: Pixels,
    norm: Norm,
    statistics: Statistics,
    residual: Pixels | None,
    tiling: Tiling | None = None,
) -> Pixels:
    """Twin of `group_norm.backward`."""
    views, count, channels = pixels.shape
    gradient = gradient.contiguous()
    residual = None if residual is None else residual.contiguous()
    reduce, write = tiling or REDUCE, tiling or WRITE
    grid, sizes = _cut(pixels, reduce)
    partial = _empty(pixels, views, grid[0], 2, channels)
    means = _empty(pixels, views, 2, channels)
    result = torch.empty_like(pixels)
    shared = (*statistics, norm.weight, norm.bias)
    _gradient_sums[grid](
        gradient, pixels, *shared, partial, count, channels, *sizes, SILU=norm.silu, num_warps=reduce.warps
    )
    _finish_gradient[norm.groups, views](
        partial, means, count, channels, grid[0],
        PER_GROUP=channels // norm.groups, BLOCK=triton.next_power_of_2(channels // norm.groups),
        PARTS=triton.next_power_of_2(grid[0]), num_warps=FINISH_WARPS,
    )  # fmt: skip
    grid, sizes = _cut(pixels, write)
    _apply_gradient[grid](
        gradient, pixels, *shared, means, residual, result,
        count, channels, *sizes, SILU=norm.silu, num_warps=write.warps,
    )  # fmt: skip
    return result


def _cut(pixels: Tensor, tiling: Tiling) -> tuple[tuple[int, int], tuple[int, int, int, bool, int]]:
    """Grid, then tiles of one program, pixels of one tile, padded channels, if tiles are full, and stages.

    Full tiles need no masks.

    Depends on one image's size alone, so that an image's result does not depend on its neighbours.
    """
    views, count, channels = pixels.shape
    width = triton.next_power_of_2(channels)
    rows = max(1, min(tiling.numbers // width, triton.next_power_of_2(count)))
    tiles = triton.cdiv(count, rows)
    per_program = max(triton.cdiv(tiles, tiling.programs), min(tiling.least, tiles))
    programs = triton.cdiv(tiles, per_program)
    full = width == channels and programs * per_program * rows == count
    return (programs, views), (per_program, rows, width, full, tiling.stages)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@triton.jit
@no_type_check
def _tile(part, view, tile, count, channels, TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Where a tile starts, its numbers' places from there, in 32 bits, and which of them there are."""
    first = (part * TILES + tile) * ROWS
    start = (view.to(tl.int64) * count + first) * channels
    row, channel = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    there = (first + row < count)[:, None] & (channel < channels)[None, :]
    return start, row[:, None] * channels + channel[None, :], there


@triton.jit
@no_type_check
def _load(pointer, there, FULL: tl.constexpr):
    """Numbers of a tile, zero outside the image."""
    value = tl.load(pointer) if FULL else tl.load(pointer, mask=there, other=0.0)
    return value.to(tl.float32)


@triton.jit
@no_type_check
def _store(pointer, value, there, FULL: tl.constexpr):
    if FULL:
        tl.store(pointer, value.to(pointer.dtype.element_ty))
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), mask=there)


@triton.jit
@no_type_check
def _moments(
    pixels, partial, count, channels,
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Sums of x - k and (x - k)^2 for each channel; k, the first pixel, is there against cancellation."""
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    first = tl.load(pixels + view.to(tl.int64) * count * channels + channel, mask=inside, other=0.0)
    first = first.to(tl.float32)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    squares = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        start, place, there = _tile(part, view, tile, count, channels, TILES, ROWS, WIDTH)
        value = _load(pixels + start + place, there, FULL) - first[None, :]
        if not FULL:
            value = tl.where(there, value, 0.0)
        total += value
        squares += value * value
    output = partial + (view * tl.num_programs(0) + part).to(tl.int64) * 2 * channels + channel
    tl.store(output, tl.sum(total, axis=0), mask=inside)
    tl.store(output + channels, tl.sum(squares, axis=0), mask=inside)


@triton.jit
@no_type_check
def _sum_parts(partial, view, channel, inside, channels, parts, PARTS: tl.constexpr):
    """Add the two partial sums of some channels over all programs of an image."""
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & inside[None, :]
    index = (view * parts + part).to(tl.int64)[:, None] * 2 * channels + channel[None, :]
    first = tl.load(partial + index, mask=mask, other=0.0)
    second = tl.load(partial + index + channels, mask=mask, other=0.0)
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit
@no_type_check
def _finish_moments(
    partial, pixels, shift, center, scale, count, channels, parts, eps, shift_step,
    PER_GROUP: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    group, view = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, BLOCK)
    channel, inside = group * PER_GROUP + member, member < PER_GROUP
    total, squares = _sum_parts(partial, view, channel, inside, channels, parts, PARTS)
    first = tl.load(pixels + view.to(tl.int64) * count * channels + channel, mask=inside, other=0.0)
    offset = tl.zeros([BLOCK], dtype=tl.float32)
    if shift is not None:
        offset = tl.load(shift + view * shift_step + channel, mask=inside, other=0.0).to(tl.float32)
    mean = tl.where(inside, first.to(tl.float32) + total / count + offset, 0.0)
    spread = squares - total * total / count
    group_mean = tl.sum(mean, axis=0) / PER_GROUP
    away = tl.where(inside, mean - group_mean, 0.0)
    variance = tl.sum(spread / count + away * away, axis=0) / PER_GROUP
    output = view * channels + channel
    tl.store(center + output, group_mean - offset, mask=inside)
    deviation = tl.sqrt(tl.maximum(variance, 0.0) + eps)
    tl.store(scale + output, tl.zeros([BLOCK], dtype=tl.float32) + 1.0 / deviation, mask=inside)


@triton.jit
@no_type_check
def _channels(center, scale, weight, bias, view, channel, inside, channels):
    """What a channel is normalised with, ready to be spread over a tile's rows."""
    c = tl.load(center + view * channels + channel, mask=inside, other=0.0)
    s = tl.load(scale + view * channels + channel, mask=inside, other=0.0)
    w = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    return c[None, :], s[None, :], w[None, :], b[None, :]


@triton.jit
@no_type_check
def _apply(
    pixels, center, scale, weight, bias, result, count, channels,
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr, STAGES: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    c, s, w, b = _channels(center, scale, weight, bias, view, channel, inside, channels)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        start, place, there = _tile(part, view, tile, count, channels, TILES, ROWS, WIDTH)
        raw = (_load(pixels + start + place, there, FULL) - c) * s * w + b
        if SILU:
            raw = raw * tl.sigmoid(raw)
        _store(result + start + place, raw, there, FULL)


@triton.jit
@no_type_check
def _pull(gradient, pixels, place, there, c, s, w, b, SILU: tl.constexpr, FULL: tl.constexpr):
    """x_hat, and the gradient on the output of the affine map."""
    normal = (_load(pixels + place, there, FULL) - c) * s
    pull = _load(gradient + place, there, FULL)
    if SILU:
        raw = normal * w + b
        gate = tl.sigmoid(raw)
        pull = pull * gate * (1.0 + raw * (1.0 - gate))
    return normal, pull


@triton.jit
@no_type_check
def _gradient_sums(
    gradient, pixels, center, scale, weight, bias, partial, count, channels,
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr, STAGES: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    """Sums of w g and w g x_hat for each channel."""
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    c, s, w, b = _channels(center, scale, weight, bias, view, channel, inside, channels)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    moment = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        start, place, there = _tile(part, view, tile, count, channels, TILES, ROWS, WIDTH)
        normal, pull = _pull(gradient + start, pixels + start, place, there, c, s, w, b, SILU, FULL)
        total += pull  # 0 outside, as the gradient is
        moment += pull * normal
    output = partial + (view * tl.num_programs(0) + part).to(tl.int64) * 2 * channels + channel
    factor = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(output, tl.sum(total, axis=0) * factor, mask=inside)
    tl.store(output + channels, tl.sum(moment, axis=0) * factor, mask=inside)


@triton.jit
@no_type_check
def _finish_gradient(
    partial, means, count, channels, parts,
    PER_GROUP: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    group, view = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, BLOCK)
    channel, inside = group * PER_GROUP + member, member < PER_GROUP
    total, moment = _sum_parts(partial, view, channel, inside, channels, parts, PARTS)
    output = means + view * 2 * channels + channel
    zeros = tl.zeros([BLOCK], dtype=tl.float32)
    tl.store(output, zeros + tl.sum(total, axis=0) / PER_GROUP / count, mask=inside)
    tl.store(output + channels, zeros + tl.sum(moment, axis=0) / PER_GROUP / count, mask=inside)


@triton.jit
@no_type_check
def _apply_gradient(
    gradient, pixels, center, scale, weight, bias, means, residual, result, count, channels,
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, FULL: tl.constexpr, STAGES: tl.constexpr,
    SILU: tl.constexpr,
):  # fmt: skip
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    c, s, w, b = _channels(center, scale, weight, bias, view, channel, inside, channels)
    mean = tl.load(means + view * 2 * channels + channel, mask=inside, other=0.0)[None, :]
    moment = tl.load(means + (view * 2 + 1) * channels + channel, mask=inside, other=0.0)[None, :]
    for tile in tl.range(0, TILES, num_stages=STAGES):
        start, place, there = _tile(part, view, tile, count, channels, TILES, ROWS, WIDTH)
        normal, pull = _pull(gradient + start, pixels + start, place, there, c, s, w, b, SILU, FULL)
        value = s * (pull * w - mean - normal * moment)
        if residual is not None:
            value += _load(residual + start + place, there, FULL)
        _store(result + start + place, value, there, FULL)
