"""Triton kernels of silhouette antialiasing; `silhouette.py` states the rule and is their plain-torch twin.

Nothing here waits for the device: crossings go straight into one key per pixel pair (atomic maximum), and the
blend and its backward pass visit every pair. A key holds the distance in its upper half and
2 * edge + (direction > 0) in its lower half.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0915, PLR0917

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels.silhouette import KEY_SCALE, SAME_DEPTH, SNAP

_SNAP = tl.constexpr(SNAP)
_SAME_DEPTH = tl.constexpr(SAME_DEPTH)
_KEY_SCALE = tl.constexpr(KEY_SCALE)
_HUGE = tl.constexpr(1.0e30)  # pixels; further away counts as not finite
_EDGES_PER_PROGRAM = 128
_PAIRS_PER_PROGRAM = 512


def antialias_triton(
    image: Float[Tensor, "B H W C"],
    data: Float[Tensor, "B H W 4"],
    clip: Float[Tensor, "B V 4"],
    edges: Int[Tensor, "E 2"],
    opposite: Int[Tensor, "E 2"],
) -> Float[Tensor, "B H W C"]:
    """Blend the pixels on either side of silhouette edges; differentiable to image and clip.

    Args:
        image: float32.
        data: float32 fragments.
        clip: float32, in clip space.
        edges: indices of vertices; rows with a negative first entry are skipped.
        opposite: of each edge's two faces, the vertex beside it; the second is -1 at a boundary.
    """
    mixed: Tensor = _Antialias.apply(image, clip, data, edges, opposite)
    return mixed


class _Antialias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, clip: Tensor, data: Tensor, edges: Tensor, opposite: Tensor
    ) -> Tensor:
        image, clip, data = image.contiguous(), clip.contiguous(), data.contiguous()
        edges, opposite = edges.long().contiguous(), opposite.long().contiguous()
        views, height, width, channels = image.shape
        best = torch.zeros(2 * views * height * width, dtype=torch.int64, device=image.device)
        grid = (triton.cdiv(len(edges), _EDGES_PER_PROGRAM), views)
        _find[grid](
            clip, data, edges, opposite, best,
            clip.shape[1], len(edges), height, width, views * height * width, BLOCK=_EDGES_PER_PROGRAM,
        )  # fmt: skip
        output = image.clone()
        _blend[(triton.cdiv(len(best), _PAIRS_PER_PROGRAM),)](
            clip, edges, best, image, output,
            clip.shape[1], height, width, channels, views * height * width, BLOCK=_PAIRS_PER_PROGRAM,
        )  # fmt: skip
        ctx.save_for_backward(image, clip, edges, best)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        image, clip, edges, best = ctx.saved_tensors
        gradient = gradient.contiguous()
        views, height, width, channels = image.shape
        grad_image, grad_clip = gradient.clone(), torch.zeros_like(clip)
        _blend_backward[(triton.cdiv(len(best), _PAIRS_PER_PROGRAM),)](
            clip, edges, best, image, gradient, grad_image, grad_clip,
            clip.shape[1], height, width, channels, views * height * width, BLOCK=_PAIRS_PER_PROGRAM,
        )  # fmt: skip
        return grad_image, grad_clip, None, None, None


@triton.jit
@no_type_check
def _homogeneous(clip, vertex, mask, height, width):
    """Homogeneous pixel position and z of a vertex, in float64."""
    x = tl.load(clip + vertex * 4, mask=mask, other=0.0).to(tl.float64)
    y = tl.load(clip + vertex * 4 + 1, mask=mask, other=0.0).to(tl.float64)
    z = tl.load(clip + vertex * 4 + 2, mask=mask, other=0.0).to(tl.float64)
    w = tl.load(clip + vertex * 4 + 3, mask=mask, other=1.0).to(tl.float64)
    return 0.5 * width * (x + w) - 0.5 * w, 0.5 * height * (w - y) - 0.5 * w, z, w


@triton.jit
@no_type_check
def _look(data, base, pixel, size, stride, mask):
    """Whether a pixel lies in the image, whether it is covered, and the depth that it shows."""
    inside = mask & (pixel >= 0) & (pixel < size)
    index = (base + pixel * stride) * 4
    triangle = tl.load(data + index + 3, mask=inside, other=0.0)
    depth = tl.load(data + index + 2, mask=inside, other=0.0).to(tl.float64)
    return inside, inside & (triangle > 0), depth


# A mesh that changes in every step must not compile kernels for every divisor of its size.
@triton.jit(do_not_specialize=["vertex_count", "edge_count"])
@no_type_check
def _find(
    clip,
    data,
    edges,
    opposite,
    best,
    vertex_count,
    edge_count,
    height,
    width,
    pixel_count,
    BLOCK: tl.constexpr,
):
    view = tl.program_id(1).to(tl.int64)
    edge = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = edge < edge_count
    a = tl.load(edges + edge * 2, mask=valid, other=-1)
    b = tl.load(edges + edge * 2 + 1, mask=valid, other=0)
    c = tl.load(opposite + edge * 2, mask=valid, other=0)
    d = tl.load(opposite + edge * 2 + 1, mask=valid, other=-1)
    valid = valid & (a >= 0)
    view_clip = clip + view * vertex_count * 4
    ax, ay, az, aw = _homogeneous(view_clip, a, valid, height, width)
    bx, by, bz, bw = _homogeneous(view_clip, b, valid, height, width)
    cx, cy, _cz, cw = _homogeneous(view_clip, c, valid, height, width)
    dx, dy, _dz, dw = _homogeneous(view_clip, d, valid & (d >= 0), height, width)
    nx, ny, nw = ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx
    first = nx * cx + ny * cy + nw * cw
    second = tl.where(d >= 0, nx * dx + ny * dy + nw * dw, first)
    side = tl.where(first != 0, first, second)
    valid = valid & (aw > 0) & (bw > 0) & (first * second >= 0) & (side != 0)
    safe_aw, safe_bw = tl.where(valid, aw, 1.0), tl.where(valid, bw, 1.0)
    ax, ay, az = ax / safe_aw, ay / safe_aw, az / safe_aw
    bx, by, bz = bx / safe_bw, by / safe_bw, bz / safe_bw
    valid = valid & (tl.abs(ax) < _HUGE) & (tl.abs(ay) < _HUGE) & (tl.abs(bx) < _HUGE) & (tl.abs(by) < _HUGE)
    along_rows = tl.abs(by - ay) >= tl.abs(bx - ax)
    major_a, major_b = tl.where(along_rows, ay, ax), tl.where(along_rows, by, bx)
    minor_a, minor_b = tl.where(along_rows, ax, ay), tl.where(along_rows, bx, by)
    lines = tl.where(along_rows, height, width)
    size = tl.where(along_rows, width, height)
    stride = tl.where(along_rows, 1, width)
    line_stride = tl.where(along_rows, width, 1)
    low = tl.ceil(tl.minimum(tl.maximum(tl.minimum(major_a, major_b), 0.0), 1.0e6)).to(tl.int32)
    high = tl.ceil(tl.minimum(tl.maximum(tl.maximum(major_a, major_b), 0.0), 1.0e6)).to(tl.int32)
    count = tl.where(valid, tl.maximum(tl.minimum(high, lines) - low, 0), 0)
    step = tl.where(tl.where(along_rows, nx, ny) * side > 0, -1, 1)
    length = tl.where(count > 0, major_b - major_a, 1.0)
    tag = edge * 2 + tl.where(step > 0, 1, 0)
    for offset in range(0, tl.max(count, axis=0)):
        active = offset < count
        scan = low + offset
        fraction = (scan.to(tl.float64) - major_a) / length
        crossing = minor_a + fraction * (minor_b - minor_a)
        depth = az + fraction * (bz - az)
        below = tl.floor(tl.minimum(tl.maximum(crossing, -2.0), 1.0e6)).to(tl.int32)
        inner = tl.where(step > 0, below, below + 1)
        distance = (crossing - inner.to(tl.float64)) * step.to(tl.float64)
        base = view * height * width + scan.to(tl.int64) * line_stride
        _inside, inner_covered, _depth = _look(data, base, inner, size, stride, active)
        _inside, outer_covered, outer_depth = _look(data, base, inner + step, size, stride, active)
        inwards = (inner_covered == 0) & (distance < _SNAP)
        outwards = outer_covered & (distance > 1.0 - _SNAP) & (outer_depth <= depth + _SAME_DEPTH)
        shift = tl.where(inwards, -1, tl.where(outwards, 1, 0))
        inner = inner + shift * step
        distance = distance - shift.to(tl.float64)
        _inside, inner_covered, _depth = _look(data, base, inner, size, stride, active)
        outer_inside, outer_covered, outer_depth = _look(data, base, inner + step, size, stride, active)
        visible = (outer_covered == 0) | (depth <= outer_depth)
        live = inner_covered & outer_inside & visible & (tl.abs(depth) <= 1.0)
        key = (((distance + 1.0) * _KEY_SCALE).to(tl.int64) << 32) | tag
        pair = base + tl.minimum(inner, inner + step) * stride + tl.where(along_rows, 0, pixel_count)
        tl.atomic_max(best + pair, key, mask=live, sem="relaxed")


@triton.jit
@no_type_check
def _decode(clip, edges, key, pair, hit, vertex_count, height, width, pixel_count):
    """Ends of a pair's edge (indices), its two pixels, and where the edge passes between them."""
    along_rows = pair < pixel_count
    lower = tl.where(along_rows, pair, pair - pixel_count)
    view = lower // (height * width)
    row, column = (lower // width) % height, lower % width
    tag = key & 0xFFFFFFFF
    step = tl.where((tag & 1) == 1, 1, -1)
    edge = tag >> 1
    a = tl.load(edges + edge * 2, mask=hit, other=0) + view * vertex_count
    b = tl.load(edges + edge * 2 + 1, mask=hit, other=0) + view * vertex_count
    ax, ay, _az, aw = _homogeneous(clip, a, hit, height, width)
    bx, by, _bz, bw = _homogeneous(clip, b, hit, height, width)
    ax, ay, bx, by = ax / aw, ay / aw, bx / bw, by / bw
    major_a, major_b = tl.where(along_rows, ay, ax), tl.where(along_rows, by, bx)
    minor_a, minor_b = tl.where(along_rows, ax, ay), tl.where(along_rows, bx, by)
    length = tl.where(hit, major_b - major_a, 1.0)
    scan = tl.where(along_rows, row, column).to(tl.float64)
    pixel = tl.where(along_rows, column, row) + tl.where(step > 0, 0, 1)
    fraction = (scan - major_a) / length
    slope = (minor_b - minor_a) / length
    crossing = minor_a + fraction * (minor_b - minor_a)
    weight = (crossing - pixel.to(tl.float64)) * step.to(tl.float64) - 0.5
    upper = lower + tl.where(along_rows, 1, width)
    inner, outer = tl.where(step > 0, lower, upper), tl.where(step > 0, upper, lower)
    return a, b, inner, outer, weight, fraction, slope, step, along_rows


@triton.jit(do_not_specialize=["vertex_count"])
@no_type_check
def _blend(
    clip, edges, best, image, output, vertex_count, height, width, channels, pixel_count, BLOCK: tl.constexpr
):
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(best + pair, mask=pair < 2 * pixel_count, other=0)
    hit = key > 0
    if tl.max(hit.to(tl.int32), axis=0) > 0:
        _a, _b, inner, outer, weight, _share, _slope, _step, _rows = _decode(
            clip, edges, key, pair, hit, vertex_count, height, width, pixel_count
        )
        weight = weight.to(tl.float32)
        target = tl.where(weight > 0, outer, inner)
        for channel in range(0, channels):
            inner_value = tl.load(image + inner * channels + channel, mask=hit, other=0.0)
            outer_value = tl.load(image + outer * channels + channel, mask=hit, other=0.0)
            change = weight * (inner_value - outer_value)
            tl.atomic_add(output + target * channels + channel, change, mask=hit, sem="relaxed")


@triton.jit
@no_type_check
def _add_position_gradient(clip, grad_clip, vertex, gx, gy, mask, height, width):
    """Add the gradient of a pixel position (gx, gy) to x, y and w of its clip position."""
    x = tl.load(clip + vertex * 4, mask=mask, other=0.0).to(tl.float64)
    y = tl.load(clip + vertex * 4 + 1, mask=mask, other=0.0).to(tl.float64)
    w = tl.load(clip + vertex * 4 + 3, mask=mask, other=1.0).to(tl.float64)
    gx, gy = gx * (0.5 * width) / w, -gy * (0.5 * height) / w
    gw = -(gx * x + gy * y) / w
    tl.atomic_add(grad_clip + vertex * 4, gx.to(tl.float32), mask=mask, sem="relaxed")
    tl.atomic_add(grad_clip + vertex * 4 + 1, gy.to(tl.float32), mask=mask, sem="relaxed")
    tl.atomic_add(grad_clip + vertex * 4 + 3, gw.to(tl.float32), mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["vertex_count"])
@no_type_check
def _blend_backward(
    clip, edges, best, image, gradient, grad_image, grad_clip,
    vertex_count, height, width, channels, pixel_count, BLOCK: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(best + pair, mask=pair < 2 * pixel_count, other=0)
    hit = key > 0
    if tl.max(hit.to(tl.int32), axis=0) > 0:
        a, b, inner, outer, weight, fraction, slope, step, along_rows = _decode(
            clip, edges, key, pair, hit, vertex_count, height, width, pixel_count
        )
        weight = weight.to(tl.float32)
        target = tl.where(weight > 0, outer, inner)
        pull = tl.zeros([BLOCK], dtype=tl.float32)
        for channel in range(0, channels):
            received = tl.load(gradient + target * channels + channel, mask=hit, other=0.0)
            inner_value = tl.load(image + inner * channels + channel, mask=hit, other=0.0)
            outer_value = tl.load(image + outer * channels + channel, mask=hit, other=0.0)
            pull += received * (inner_value - outer_value)
            flow = weight * received
            tl.atomic_add(grad_image + inner * channels + channel, flow, mask=hit, sem="relaxed")
            tl.atomic_add(grad_image + outer * channels + channel, -flow, mask=hit, sem="relaxed")
        minor = pull.to(tl.float64) * step.to(tl.float64)
        major = -minor * slope
        gx, gy = tl.where(along_rows, minor, major), tl.where(along_rows, major, minor)
        _add_position_gradient(
            clip, grad_clip, a, gx * (1.0 - fraction), gy * (1.0 - fraction), hit, height, width
        )
        _add_position_gradient(clip, grad_clip, b, gx * fraction, gy * fraction, hit, height, width)
