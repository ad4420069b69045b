"""Triton kernels of group normalisation; `group_norm.py` states the arithmetic and is their twin.

Every picture's pixels are split over many programs, whose partial sums a second kernel adds up in a fixed
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

from pgc3d.kernels.group_norm import Norm, Statistics


@dataclass(frozen=True)
class Tiling:
    """How the work is cut up."""

    numbers: int = 4096  # in a tile of whole pixels
    programs: int = 1024  # at most, for each picture; their partial sums are added by one program
    warps: int = 8


DEFAULT_TILING = Tiling()


def forward_triton(
    pixels: Tensor, norm: Norm, shift: Tensor | None, tiling: Tiling = DEFAULT_TILING
) -> tuple[Tensor, Statistics]:
    """Twin of `group_norm.forward`."""
    views, count, channels = pixels.shape
    grid, sizes = _cut(pixels, tiling)
    partial = _empty(pixels, views, grid[0], 2, channels)
    center, scale = _empty(pixels, views, channels), _empty(pixels, views, channels)
    _moments[grid](pixels, partial, count, channels, *sizes, num_warps=tiling.warps)
    _finish_moments[norm.groups, views](
        partial, pixels, shift, center, scale, count, channels, grid[0], norm.eps,
        PER_GROUP=channels // norm.groups, BLOCK=triton.next_power_of_2(channels // norm.groups),
        PARTS=triton.next_power_of_2(grid[0]), num_warps=tiling.warps,
    )  # fmt: skip
    return apply_triton(pixels, norm, (center, scale), tiling), (center, scale)


def apply_triton(
    pixels: Tensor, norm: Norm, statistics: Statistics, tiling: Tiling = DEFAULT_TILING
) -> Tensor:
    """Twin of `group_norm.reapply`."""
    grid, sizes = _cut(pixels, tiling)
    result = torch.empty_like(pixels)
    _apply[grid](
        pixels, *statistics, norm.weight, norm.bias, result,
        pixels.shape[1], pixels.shape[2], *sizes, SILU=norm.silu, num_warps=tiling.warps,
    )  # fmt: skip
    return result


def backward_triton(
    gradient: Tensor,
    pixels: Tensor,
    norm: Norm,
    statistics: Statistics,
    residual: Tensor | None,
    tiling: Tiling = DEFAULT_TILING,
) -> Tensor:
    """Twin of `group_norm.backward`."""
    views, count, channels = pixels.shape
    gradient = gradient.contiguous()
    residual = None if residual is None else residual.contiguous()
    grid, sizes = _cut(pixels, tiling)
    partial = _empty(pixels, views, grid[0], 2, channels)
    means = _empty(pixels, views, 2, channels)
    result = torch.empty_like(pixels)
    shared = (*statistics, norm.weight, norm.bias)
    _gradient_sums[grid](
        gradient, pixels, *shared, partial, count, channels, *sizes, SILU=norm.silu, num_warps=tiling.warps
    )
    _finish_gradient[norm.groups, views](
        partial, means, count, channels, grid[0],
        PER_GROUP=channels // norm.groups, BLOCK=triton.next_power_of_2(channels // norm.groups),
        PARTS=triton.next_power_of_2(grid[0]), num_warps=tiling.warps,
    )  # fmt: skip
    _apply_gradient[grid](
        gradient, pixels, *shared, means, residual, result,
        count, channels, *sizes, SILU=norm.silu, num_warps=tiling.warps,
    )  # fmt: skip
    return result


def _cut(pixels: Tensor, tiling: Tiling) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Grid, tiles of one program, pixels of one tile, and channels padded to a power of two.

    Depends on one picture's size alone, so that a picture's result does not depend on its neighbours.
    """
    views, count, channels = pixels.shape
    width = triton.next_power_of_2(channels)
    rows = max(1, min(tiling.numbers // width, triton.next_power_of_2(count)))
    tiles = triton.cdiv(count, rows)
    share = triton.cdiv(tiles, tiling.programs)
    return (triton.cdiv(tiles, share), views), (share, rows, width)


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


@triton.jit
@no_type_check
def _moments(pixels, partial, count, channels, TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sums of x - k and (x - k)^2 for each channel; k, the first pixel, is there against cancellation."""
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    base = pixels + view.to(tl.int64) * count * channels
    first = tl.load(base + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    squares = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    for tile in range(0, TILES):
        row = (part * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & inside[None, :]
        index = row.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(base + index, mask=mask, other=0.0).to(tl.float32)
        value = tl.where(mask, value - first[None, :], 0.0)
        total += value
        squares += value * value
    output = partial + (view * tl.num_programs(0) + part).to(tl.int64) * 2 * channels + channel
    tl.store(output, tl.sum(total, axis=0), mask=inside)
    tl.store(output + channels, tl.sum(squares, axis=0), mask=inside)


@triton.jit
@no_type_check
def _sum_parts(partial, view, channel, inside, channels, parts, PARTS: tl.constexpr):
    """Add the two partial sums of some channels over all programs of a picture."""
    part = tl.arange(0, PARTS)
    mask = (part < parts)[:, None] & inside[None, :]
    index = (view * parts + part).to(tl.int64)[:, None] * 2 * channels + channel[None, :]
    first = tl.load(partial + index, mask=mask, other=0.0)
    second = tl.load(partial + index + channels, mask=mask, other=0.0)
    return tl.sum(first, axis=0), tl.sum(second, axis=0)


@triton.jit
@no_type_check
def _finish_moments(
    partial, pixels, shift, center, scale, count, channels, parts, eps,
    PER_GROUP: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    group, view = tl.program_id(0), tl.program_id(1)
    member = tl.arange(0, BLOCK)
    channel, inside = group * PER_GROUP + member, member < PER_GROUP
    total, squares = _sum_parts(partial, view, channel, inside, channels, parts, PARTS)
    first = tl.load(pixels + view.to(tl.int64) * count * channels + channel, mask=inside, other=0.0)
    offset = tl.zeros([BLOCK], dtype=tl.float32)
    if shift is not None:
        offset = tl.load(shift + channel, mask=inside, other=0.0).to(tl.float32)
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
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    base = view.to(tl.int64) * count * channels
    c, s, w, b = _channels(center, scale, weight, bias, view, channel, inside, channels)
    for tile in range(0, TILES):
        row = (part * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & inside[None, :]
        index = base + row.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(pixels + index, mask=mask, other=0.0).to(tl.float32)
        raw = (value - c) * s * w + b
        if SILU:
            raw = raw * tl.sigmoid(raw)
        tl.store(result + index, raw.to(result.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def _pull(gradient, pixels, index, mask, c, s, w, b, SILU: tl.constexpr):
    """x_hat, and the gradient on the output of the affine map."""
    normal = (tl.load(pixels + index, mask=mask, other=0.0).to(tl.float32) - c) * s
    pull = tl.load(gradient + index, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        raw = normal * w + b
        gate = tl.sigmoid(raw)
        pull = pull * gate * (1.0 + raw * (1.0 - gate))
    return normal, pull


@triton.jit
@no_type_check
def _gradient_sums(
    gradient, pixels, center, scale, weight, bias, partial, count, channels,
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """Sums of w g and w g x_hat for each channel."""
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    base = view.to(tl.int64) * count * channels
    c, s, w, b = _channels(center, scale, weight, bias, view, channel, inside, channels)
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    moment = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    for tile in range(0, TILES):
        row = (part * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & inside[None, :]
        index = base + row.to(tl.int64)[:, None] * channels + channel[None, :]
        normal, pull = _pull(gradient, pixels, index, mask, c, s, w, b, SILU)
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
    TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    part, view = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    inside = channel < channels
    base = view.to(tl.int64) * count * channels
    c, s, w, b = _channels(center, scale, weight, bias, view, channel, inside, channels)
    mean = tl.load(means + view * 2 * channels + channel, mask=inside, other=0.0)[None, :]
    moment = tl.load(means + (view * 2 + 1) * channels + channel, mask=inside, other=0.0)[None, :]
    for tile in range(0, TILES):
        row = (part * TILES + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < count)[:, None] & inside[None, :]
        index = base + row.to(tl.int64)[:, None] * channels + channel[None, :]
        normal, pull = _pull(gradient, pixels, index, mask, c, s, w, b, SILU)
        value = s * (pull * w - mean - normal * moment)
        if residual is not None:
            value += tl.load(residual + index, mask=mask, other=0.0).to(tl.float32)
        tl.store(result + index, value.to(result.dtype.element_ty), mask=mask)
