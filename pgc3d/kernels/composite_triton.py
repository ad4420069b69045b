"""Volume rendering along rays on CUDA; `composite` is the twin in plain torch and states the formulas.

One program works on one ray and walks over its samples in blocks, so nothing is written twice and the result
does not depend on the order in which programs run.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from pgc3d.kernels.composite import Results, Spans

BLOCK = 32  # samples of a ray that are worked on at once


@triton.jit
@no_type_check
def _opacity(depth):
    """1 - exp(-depth), also where that is far below the spacing of numbers at 1."""
    short = depth * (1.0 - depth * (0.5 - depth / 6.0))
    return tl.where(depth < 1e-3, short, 1.0 - tl.exp(-depth))


@triton.jit
@no_type_check
def _forward(  # noqa: PLR0913, PLR0917 - a kernel
    depth, values, start, count, sums, left,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0)
    first, number = tl.load(start + ray), tl.load(count + ray)
    channel = tl.arange(0, WIDTH)
    real = channel < CHANNELS
    total = tl.zeros([WIDTH], dtype=tl.float32)
    passed = 0.0
    for low in range(0, number, BLOCK):
        place = low + tl.arange(0, BLOCK)
        live = place < number
        here = tl.load(depth + first + place, mask=live, other=0.0)
        weight = tl.exp(-(passed + tl.cumsum(here, 0) - here)) * _opacity(here)
        rows = tl.load(
            values + (first + place)[:, None] * CHANNELS + channel[None, :],
            mask=live[:, None] & real[None, :],
            other=0.0,
        )
        total += tl.sum(weight[:, None] * rows, 0)
        passed += tl.sum(here, 0)
    tl.store(sums + ray * CHANNELS + channel, total, mask=real)
    tl.store(left + ray, tl.exp(-passed))


@triton.jit
@no_type_check
def _backward(  # noqa: PLR0913, PLR0917 - a kernel
    sums_gradient, left_gradient, sums, left, depth, values, start, count, of_depth, of_values,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0)
    first, number = tl.load(start + ray), tl.load(count + ray)
    channel = tl.arange(0, WIDTH)
    real = channel < CHANNELS
    gradient = tl.load(sums_gradient + ray * CHANNELS + channel, mask=real, other=0.0)
    whole = tl.sum(gradient * tl.load(sums + ray * CHANNELS + channel, mask=real, other=0.0), 0)
    of_left = tl.load(left_gradient + ray) * tl.load(left + ray)
    passed, done = 0.0, 0.0
    for low in range(0, number, BLOCK):
        place = low + tl.arange(0, BLOCK)
        live = place < number
        here = tl.load(depth + first + place, mask=live, other=0.0)
        before = passed + tl.cumsum(here, 0) - here
        weight = tl.exp(-before) * _opacity(here)
        where = (first + place)[:, None] * CHANNELS + channel[None, :]
        mask = live[:, None] & real[None, :]
        rows = tl.load(values + where, mask=mask, other=0.0)
        pull = tl.sum(rows * gradient[None, :], 1)
        behind = whole - (done + tl.cumsum(weight * pull, 0))
        tl.store(of_depth + first + place, tl.exp(-before - here) * pull - behind - of_left, mask=live)
        tl.store(of_values + where, weight[:, None] * gradient[None, :], mask=mask)
        passed += tl.sum(here, 0)
        done += tl.sum(weight * pull, 0)


def forward(
    depth: Float[Tensor, " K"], values: Float[Tensor, "K C"], spans: Spans
) -> tuple[Float[Tensor, "R C"], Float[Tensor, " R"]]:
    """See `composite.forward`; float32."""
    rays, channels = len(spans.start), values.shape[1]
    sums, left = values.new_empty(rays, channels), values.new_empty(rays)
    width = triton.next_power_of_2(channels)
    _forward[(rays,)](
        depth.contiguous(), values.contiguous(), spans.start, spans.count, sums, left,
        CHANNELS=channels, WIDTH=width, BLOCK=BLOCK,
    )  # fmt: skip
    return sums, left


def backward(
    sums_gradient: Float[Tensor, "R C"],
    left_gradient: Float[Tensor, " R"],
    results: Results,
    depth: Float[Tensor, " K"],
    values: Float[Tensor, "K C"],
    spans: Spans,
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K C"]]:
    """See `composite.backward`; float32. Rows of no ray get zeros."""
    rays, channels = len(spans.start), values.shape[1]
    sums, left = results
    of_depth, of_values = torch.zeros_like(depth), torch.zeros_like(values)
    width = triton.next_power_of_2(channels)
    _backward[(rays,)](
        sums_gradient.contiguous(), left_gradient.contiguous(), sums, left, depth.contiguous(),
        values.contiguous(), spans.start, spans.count, of_depth, of_values,
        CHANNELS=channels, WIDTH=width, BLOCK=BLOCK,
    )  # fmt: skip
    return of_depth, of_values
