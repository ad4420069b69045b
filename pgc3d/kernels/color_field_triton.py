"""Base colours of a hash grid and an MLP of two layers on CUDA, forward and backward in one pass each.

The twin in plain torch is what `representation.fields.ColorField` does otherwise: encoding, linear layer,
ReLU, linear layer, sigmoid. Forward writes the colours alone; backward finds features and hidden values
again, and only where a block of points has a gradient. Products are sums of three in TF32 (Ootomo and Yokota
2022), nearly as exact as in float32.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from pgc3d.kernels.hash_grid import HashLayout
from pgc3d.kernels.hash_grid_triton import encode_backward, level_parameters, write_features

MAX_WIDTH = 64  # of features and of hidden values: what the registers of a program hold
_BLOCK = 32
# Warps of the whole grid, about two times what an H100 runs at once. A grid has an odd number of programs, so
# that none of them meets the same columns of an image all the time.
_WARPS = 4224


class Layers(NamedTuple):
    """Weights and biases of the MLP."""

    hidden_weight: Float[Tensor, "H F"]
    hidden_bias: Float[Tensor, " H"]
    weight: Float[Tensor, "3 H"]
    bias: Float[Tensor, " 3"]


def fits(features: int, hidden: int) -> bool:
    """Whether the kernels take an MLP of these sizes."""
    return features <= MAX_WIDTH and 16 <= hidden <= MAX_WIDTH and hidden & (hidden - 1) == 0


def color(
    points: Float[Tensor, "P 3"], table: Float[Tensor, "N C"], layout: HashLayout, layers: Layers
) -> Float[Tensor, "P 3"]:
    """Colours at points in [0, 1]^3 (clamped to it); float32."""
    count, programs, sizes = len(points), *_cut(len(points), table, layout, layers)
    colors = torch.empty(count, 3, device=table.device)
    scratch = torch.empty(programs * _BLOCK, layers.hidden_weight.shape[1], device=table.device)
    if count:
        _forward[(programs,)](*_inputs(points, table, layout, layers), scratch, colors, count, **sizes)
    return colors


def color_backward(
    gradient: Float[Tensor, "P 3"],
    points: Float[Tensor, "P 3"],
    table: Float[Tensor, "N C"],
    layout: HashLayout,
    layers: Layers,
    *,
    need_points: bool,
) -> tuple[Float[Tensor, "P 3"] | None, Float[Tensor, "N C"], Layers]:
    """Gradients of `color` for the points, where needed, the table and the layers.

    Those of the layers are sums in a fixed order, the same in every run.
    """
    count, programs, sizes = len(points), *_cut(len(points), table, layout, layers)
    pull = torch.empty(count, layers.hidden_weight.shape[1], device=table.device)
    numbers = [values.numel() for values in layers]
    partial = torch.empty(programs, sum(numbers), device=table.device)
    if count:
        inputs = _inputs(points, table, layout, layers)
        _backward[(programs,)](gradient.contiguous(), *inputs, pull, partial, count, **sizes)
    sums = partial.sum(0).split(numbers)
    of_layers = Layers(*(part.view_as(values) for part, values in zip(sums, layers, strict=True)))
    of_table, of_points = encode_backward(pull, points, table, layout, need_points=need_points)
    return of_points, of_table, of_layers


def _inputs(points: Tensor, table: Tensor, layout: HashLayout, layers: Layers) -> list[Tensor]:
    parameters = level_parameters(layout, str(table.device))
    return [values.contiguous() for values in (points, table, parameters, *layers)]


def _cut(count: int, table: Tensor, layout: HashLayout, layers: Layers) -> tuple[int, dict[str, int]]:
    """Number of programs, and the kernels' sizes; a product needs at least 16 features."""
    hidden, features = layers.hidden_weight.shape
    padded = max(triton.next_power_of_2(features), 16)
    warps = max(padded * hidden // 512, 1)
    sizes = {"LEVELS": len(layout.resolutions), "WIDTH": table.shape[1], "PADDED": padded, "HIDDEN": hidden}
    options = {"BLOCK": _BLOCK, "GROUP": warps, "num_warps": warps}
    return min(triton.cdiv(count, _BLOCK), _WARPS // warps + 1), sizes | options


@triton.jit
@no_type_check
def _hidden(features, hidden_weight, hidden_bias):
    product = tl.dot(features, tl.trans(hidden_weight), input_precision="tf32x3")
    return tl.maximum(product + hidden_bias[None, :], 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _output(hidden, weight, bias, channel: tl.constexpr):
    """One channel of the colours."""
    return tl.sigmoid(tl.sum(hidden * weight[None, :], axis=1) + tl.load(bias + channel))


@triton.jit
@no_type_check
def _channels(values, place, PLANE: tl.constexpr, STRIDE: tl.constexpr, mask):
    """Red, green and blue, `PLANE` apart, at every place."""
    first = values + place * STRIDE
    return (
        tl.load(first, mask=mask, other=0.0),
        tl.load(first + PLANE, mask=mask, other=0.0),
        tl.load(first + 2 * PLANE, mask=mask, other=0.0),
    )


@triton.jit
@no_type_check
def _are_the_origin(points, point, valid):
    """Whether all points are (0.5, 0.5, 0.5), the world's origin."""
    x, y, z = _channels(points, point, 1, 3, valid)
    return tl.max((valid & ((x != 0.5) | (y != 0.5) | (z != 0.5))).to(tl.int32), axis=0) == 0


@triton.jit
@no_type_check
def _store_four(target, STRIDE: tl.constexpr, first, second, third, fourth):
    tl.store(target, first)
    tl.store(target + STRIDE, second)
    tl.store(target + 2 * STRIDE, third)
    tl.store(target + 3 * STRIDE, fourth)


@triton.jit
@no_type_check
def _pull(r, g, b, hidden, red, green, blue, bias):
    """Gradients before the sigmoid, and those before the ReLU."""
    x, y, z = _output(hidden, red, bias, 0), _output(hidden, green, bias, 1), _output(hidden, blue, bias, 2)
    r, g, b = r * x * (1.0 - x), g * y * (1.0 - y), b * z * (1.0 - z)
    total = r[:, None] * red[None, :] + g[:, None] * green[None, :] + b[:, None] * blue[None, :]
    return r, g, b, tl.where(hidden <= 0.0, 0.0, total)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _forward(
    points, table, parameters, hidden_weight, hidden_bias, weight, bias, scratch, colors, count,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Blocks of nothing but the origin, as where an image shows no surface, share one colour."""
    column, neuron = tl.arange(0, PADDED)[None, :], tl.arange(0, HIDDEN)
    known = column < LEVELS * WIDTH
    first = tl.load(hidden_weight + neuron[:, None] * (LEVELS * WIDTH) + column, mask=known, other=0.0)
    first_bias = tl.load(hidden_bias + neuron)
    own = tl.program_id(0)
    place = (own.to(tl.int64) * BLOCK + tl.arange(0, BLOCK))[:, None] * (LEVELS * WIDTH) + column
    origin_red, origin_green, origin_blue, has_origin = 0.0, 0.0, 0.0, False
    block = own
    while block < tl.cdiv(count, BLOCK):
        point = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        valid = point < count
        bare = _are_the_origin(points, point, valid)
        if bare & has_origin:
            target = colors + point * 3
            tl.store(target, origin_red, mask=valid)
            tl.store(target + 1, origin_green, mask=valid)
            tl.store(target + 2, origin_blue, mask=valid)
        else:
            write_features(points, table, parameters, block, count, scratch, own, LEVELS, WIDTH, BLOCK, GROUP)
            tl.debug_barrier()
            features = tl.load(scratch + place, mask=valid[:, None] & known, other=0.0)
            hidden = _hidden(features, first, first_bias)
            for channel in tl.static_range(3):
                value = _output(hidden, tl.load(weight + channel * HIDDEN + neuron), bias, channel)
                tl.store(colors + point * 3 + channel, value, mask=valid)
            tl.debug_barrier()
            if bare:
                origin_color = colors + block.to(tl.int64) * (BLOCK * 3)
                origin_red, origin_green, origin_blue = (
                    tl.load(origin_color),
                    tl.load(origin_color + 1),
                    tl.load(origin_color + 2),
                )
                has_origin = True
        block += tl.num_programs(0)


@triton.jit(do_not_specialize=["count"])
@no_type_check
def _backward(
    gradient, points, table, parameters, hidden_weight, hidden_bias, weight, bias, pull, partial, count,
    LEVELS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Gradients of the features, and sums over the points of one program of those of the layers."""
    FEATURES: tl.constexpr = LEVELS * WIDTH
    column, neuron = tl.arange(0, PADDED)[None, :], tl.arange(0, HIDDEN)
    known = column < FEATURES
    first = tl.load(hidden_weight + neuron[:, None] * FEATURES + column, mask=known, other=0.0)
    first_bias = tl.load(hidden_bias + neuron)
    red, green, blue = _channels(weight, neuron, HIDDEN, 1, neuron < HIDDEN)
    of_first = tl.zeros([HIDDEN, PADDED], dtype=tl.float32)
    of_first_bias = tl.zeros([HIDDEN], dtype=tl.float32)
    of_red, of_green, of_blue = of_first_bias, of_first_bias, of_first_bias
    red_sum = tl.zeros([BLOCK], dtype=tl.float32)
    green_sum, blue_sum = red_sum, red_sum
    block = tl.program_id(0)
    while block < tl.cdiv(count, BLOCK):
        point = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        valid = point < count
        place, mask = pull + point[:, None] * FEATURES + column, valid[:, None] & known
        r, g, b = _channels(gradient, point, 1, 3, valid)
        if tl.max(((r != 0.0) | (g != 0.0) | (b != 0.0)).to(tl.int32), axis=0) > 0:
            write_features(points, table, parameters, block, count, pull, block, LEVELS, WIDTH, BLOCK, GROUP)
            tl.debug_barrier()
            features = tl.load(place, mask=mask, other=0.0)
            hidden = _hidden(features, first, first_bias)
            r, g, b, of_hidden = _pull(r, g, b, hidden, red, green, blue, bias)
            red_sum, green_sum, blue_sum = red_sum + r, green_sum + g, blue_sum + b
            of_red += tl.sum(r[:, None] * hidden, axis=0)
            of_green += tl.sum(g[:, None] * hidden, axis=0)
            of_blue += tl.sum(b[:, None] * hidden, axis=0)
            of_first_bias += tl.sum(of_hidden, axis=0)
            of_first += tl.dot(tl.trans(of_hidden), features, input_precision="tf32x3")
            of_features = tl.dot(of_hidden, first, input_precision="tf32x3")
            tl.debug_barrier()
            tl.store(place, of_features, mask=mask)
        else:
            tl.store(place, tl.zeros([BLOCK, PADDED], dtype=tl.float32), mask=mask)
        block += tl.num_programs(0)
    partial += tl.program_id(0).to(tl.int64) * (HIDDEN * (FEATURES + 4) + 3)
    tl.store(partial + neuron[:, None] * FEATURES + column, of_first, mask=known)
    _store_four(partial + HIDDEN * FEATURES + neuron, HIDDEN, of_first_bias, of_red, of_green, of_blue)
    for channel in tl.static_range(3):
        tl.store(
            partial + HIDDEN * (FEATURES + 4) + channel, tl.sum((red_sum, green_sum, blue_sum)[channel], 0)
        )
