"""Z-buffer visibility, interpolation, and both backward passes on CUDA; twin of `zbuffer_numba`.

Nothing here waits for the device, and no triangle is too large. Each triangle's bounding box is cut into
items of a few pixels. How many there are is known to the device only, so a fixed number of programs shares
them: each finds an item's triangle by binary search in the running sum of the items, and takes the atomic
minimum of (depth, index) in the pixels that it covers. A last kernel turns the winners into fragments.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels.zbuffer import BOUNDS_MARGIN, DEPTH_STEPS

_PIXELS_PER_ITEM = 16
_BLOCK = 128  # triangles, items or pixels of a program
_PROGRAMS_PER_MULTIPROCESSOR = 8
_NUMBERS = 1024  # pixels times channels of a program that interpolates
_DEPTH_STEPS = tl.constexpr(DEPTH_STEPS)
_MARGIN = tl.constexpr(BOUNDS_MARGIN)
_NOTHING = tl.constexpr((1 << 63) - 1)  # key of a pixel that nothing covers


def find_visible(
    clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], height: int, width: int
) -> Float[Tensor, "B H W 4"]:
    """See `zbuffer_numba.find_visible`."""
    views, vertex_count = clip.shape[:2]
    pixels, jobs = height * width, views * len(faces)
    if jobs == 0 or pixels == 0:
        return clip.new_zeros(views, height, width, 4)
    # Fused products would round the two sides of a shared edge differently.
    sizes = {"vertex_count": vertex_count, "height": height, "width": width, "enable_fp_fusion": False}
    programs, block = _share(clip.device)
    boxes = torch.empty(jobs, 4, dtype=torch.int32, device=clip.device)
    counts = torch.empty(jobs, dtype=torch.int32, device=clip.device)
    _bound[(triton.cdiv(len(faces), _BLOCK), views)](
        clip, faces, boxes, counts, len(faces), **sizes, PIXELS=_PIXELS_PER_ITEM, BLOCK=_BLOCK
    )
    ends = counts.cumsum(0)  # int64: every triangle may fill every image
    keys = torch.full((views * pixels,), _NOTHING.value, dtype=torch.int64, device=clip.device)
    _fill[(programs,)](
        clip, faces, boxes, ends, keys, len(faces), jobs, **sizes, PIXELS=_PIXELS_PER_ITEM, BLOCK=block
    )
    data = torch.empty(views, height, width, 4, dtype=clip.dtype, device=clip.device)
    _resolve[(triton.cdiv(pixels, _BLOCK), views)](clip, faces, keys, data, **sizes, BLOCK=_BLOCK)
    return data


def find_visible_backward(
    gradient: Float[Tensor, "B H W 4"],
    clip: Float[Tensor, "B V 4"],
    data: Float[Tensor, "B H W 4"],
    faces: Int[Tensor, "F 3"],
) -> Float[Tensor, "B V 4"]:
    """See `zbuffer_numba.find_visible_backward`."""
    views, height, width = data.shape[:3]
    grad_clip = torch.zeros_like(clip)
    if data.numel() and len(faces):
        _resolve_backward[(triton.cdiv(height * width, _BLOCK), views)](
            gradient, clip, data, faces, grad_clip, clip.shape[1], height * width, BLOCK=_BLOCK
        )
    return grad_clip


def interpolate(
    attributes: Float[Tensor, "A V C"], data: Float[Tensor, "B H W 4"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, "B H W C"]:
    """See `zbuffer_numba.interpolate`."""
    output = attributes.new_empty(*data.shape[:3], attributes.shape[2])
    if output.numel() == 0 or len(faces) == 0:
        return output.zero_()
    grid, sizes = _channel_grid(attributes, data)
    _interpolate[grid](attributes, data, faces, output, **sizes)
    return output


def interpolate_backward(
    gradient: Float[Tensor, "B H W C"],
    attributes: Float[Tensor, "A V C"],
    data: Float[Tensor, "B H W 4"],
    faces: Int[Tensor, "F 3"],
    *,
    need_attributes: bool,
) -> tuple[Float[Tensor, "A V C"] | None, Float[Tensor, "B H W 4"]]:
    """See `zbuffer_numba.interpolate_backward`."""
    grad_attributes = torch.zeros_like(attributes) if need_attributes else None
    if gradient.numel() == 0 or len(faces) == 0:
        return grad_attributes, torch.zeros_like(data)
    grad_data = torch.empty_like(data)
    grid, sizes = _channel_grid(attributes, data)
    _interpolate_backward[grid](
        gradient, attributes, data, faces, grad_attributes, grad_data, **sizes, NEEDED=need_attributes
    )
    return grad_attributes, grad_data


def _share(device: torch.device) -> tuple[int, int]:
    """Programs that share the items, as many as stay resident, and the items that one takes at a time."""
    if device.type != "cuda":  # interpreted: one after the other, lanes cost little
        return 2, 16 * _BLOCK
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    return _PROGRAMS_PER_MULTIPROCESSOR * multiprocessors, _BLOCK


def _channel_grid(attributes: Tensor, data: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    sets, vertex_count, channels = attributes.shape
    pixels, padded = data.shape[1] * data.shape[2], triton.next_power_of_2(channels)
    block = max(1, _NUMBERS // padded)
    view_stride = vertex_count * channels if sets > 1 else 0
    sizes = {"view_stride": view_stride, "pixel_count": pixels, "channels": channels}
    return (triton.cdiv(pixels, block), data.shape[0]), {**sizes, "CHANNELS": padded, "BLOCK": block}


@triton.jit
@no_type_check
def _vertices(faces, face, mask):
    first = tl.load(faces + face * 3, mask=mask, other=0)
    second = tl.load(faces + face * 3 + 1, mask=mask, other=0)
    return first, second, tl.load(faces + face * 3 + 2, mask=mask, other=0)


@triton.jit
@no_type_check
def _ndc_position(clip, view, vertex, mask, vertex_count):
    """Homogeneous position in float64."""
    place = clip + (view * vertex_count + vertex) * 4
    x = tl.load(place, mask=mask, other=0.0).to(tl.float64)
    y = tl.load(place + 1, mask=mask, other=0.0).to(tl.float64)
    z = tl.load(place + 2, mask=mask, other=0.0).to(tl.float64)
    return x, y, z, tl.load(place + 3, mask=mask, other=0.0).to(tl.float64)


@triton.jit
@no_type_check
def _pixel_position(clip, view, vertex, mask, vertex_count, height, width):
    """The same in pixels: pixel centres are integers after division by w, row 0 on top."""
    x, y, z, w = _ndc_position(clip, view, vertex, mask, vertex_count)
    return 0.5 * width * (x + w) - 0.5 * w, 0.5 * height * (w - y) - 0.5 * w, z, w


@triton.jit
@no_type_check
def _corners(clip, faces, view, face, mask, vertex_count, height, width):
    i0, i1, i2 = _vertices(faces, face, mask)
    ax, ay, az, aw = _pixel_position(clip, view, i0, mask, vertex_count, height, width)
    bx, by, bz, bw = _pixel_position(clip, view, i1, mask, vertex_count, height, width)
    cx, cy, cz, cw = _pixel_position(clip, view, i2, mask, vertex_count, height, width)
    return ax, ay, az, aw, bx, by, bz, bw, cx, cy, cz, cw


@triton.jit
@no_type_check
def _cross(ax, ay, aw, bx, by, bw):
    return ay * bw - aw * by, aw * bx - ax * bw, ax * by - ay * bx


@triton.jit
@no_type_check
def _edges(ax, ay, aw, bx, by, bw, cx, cy, cw):
    """Edge functions of a triangle (coefficients of x, y and 1) and the determinant of its corners."""
    e0x, e0y, e0w = _cross(bx, by, bw, cx, cy, cw)
    e1x, e1y, e1w = _cross(cx, cy, cw, ax, ay, aw)
    e2x, e2y, e2w = _cross(ax, ay, aw, bx, by, bw)
    return e0x, e0y, e0w, e1x, e1y, e1w, e2x, e2y, e2w, ax * e0x + ay * e0y + aw * e0w


@triton.jit
@no_type_check
def _four(a, b, c, d):
    """[N, 4] of four [N]: written in one piece, where single numbers would be scattered."""
    column = tl.arange(0, 4)[None, :]
    lower = tl.where(column == 0, a[:, None], b[:, None])
    upper = tl.where(column == 2, c[:, None], d[:, None])
    return tl.where(column < 2, lower, upper)


@triton.jit
@no_type_check
def _span(a, aw, b, bw, c, cw, size):
    """First pixel and number of pixels along an axis; all, where a corner is behind the camera plane."""
    in_front = (aw > 0) & (bw > 0) & (cw > 0)
    aw, bw, cw = tl.where(in_front, aw, 1.0), tl.where(in_front, bw, 1.0), tl.where(in_front, cw, 1.0)
    a, b, c = a / aw, b / bw, c / cw
    end = size * 1.0  # not .to(): Triton passes a 1 as a Python number
    low = tl.where(in_front, tl.minimum(tl.minimum(a, b), c) - _MARGIN, 0.0)
    high = tl.where(in_front, tl.maximum(tl.maximum(a, b), c) + _MARGIN, end)
    first = tl.ceil(tl.minimum(tl.maximum(low, 0.0), end)).to(tl.int32)
    last = tl.floor(tl.minimum(tl.maximum(high, -1.0), end - 1.0)).to(tl.int32)
    return first, tl.maximum(last - first + 1, 0)


# A mesh that changes in every step must not compile kernels for every divisor of its size.
@triton.jit(do_not_specialize=["face_count", "vertex_count"])
@no_type_check
def _bound(
    clip, faces, boxes, counts, face_count, vertex_count, height, width,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bounding box (x, y, width, height) of every view and triangle, and of how many items it is made."""
    view = tl.program_id(1).to(tl.int64)
    face = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    valid = face < face_count
    ax, ay, az, aw, bx, by, bz, bw, cx, cy, cz, cw = _corners(
        clip, faces, view, face, valid, vertex_count, height, width
    )
    _0x, _0y, _0w, _1x, _1y, _1w, _2x, _2y, _2w, determinant = _edges(ax, ay, aw, bx, by, bw, cx, cy, cw)
    size = tl.abs(ax + ay + az + aw + bx + by + bz + bw + cx + cy + cz + cw) + tl.abs(determinant)
    drawn = valid & (size < float("inf")) & (determinant != 0.0) & ((aw > 0) | (bw > 0) | (cw > 0))
    left, columns = _span(ax, aw, bx, bw, cx, cw, width)
    top, rows = _span(ay, aw, by, bw, cy, cw, height)
    job, area = view * face_count + face, tl.where(drawn, columns * rows, 0)
    target = boxes + job[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(target, _four(left, top, columns, rows), mask=valid[:, None])
    tl.store(counts + job, (area + PIXELS - 1) // PIXELS, mask=valid)


@triton.jit
@no_type_check
def _owner(ends, item, job_count):
    """The job in whose range of items an item lies: the first whose end is larger."""
    low, high = tl.zeros_like(item).to(tl.int32), tl.zeros_like(item).to(tl.int32) + (job_count - 1)
    for _ in range(31):  # halves any int32; turns after the last needed one find what is in the cache
        middle = (low + high) // 2
        later = tl.load(ends + middle) <= item
        low, high = tl.where(later, middle + 1, low), tl.where(later, high, middle)
    return low


@triton.jit(do_not_specialize=["face_count", "job_count", "vertex_count"])
@no_type_check
def _fill(
    clip, faces, boxes, ends, keys, face_count, job_count, vertex_count, height, width,
    PIXELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Take the minimum of (depth, index) over the triangles of every pixel; a lane walks along an item."""
    total = tl.load(ends + job_count - 1)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    while start < total:
        item = start + tl.arange(0, BLOCK)
        valid = item < total
        job = _owner(ends, tl.minimum(item, total - 1), job_count)
        skipped = tl.load(ends + job - 1, mask=job > 0, other=0)
        view = (job // face_count).to(tl.int64)
        face = job - view * face_count
        ax, ay, az, aw, bx, by, bz, bw, cx, cy, cz, cw = _corners(
            clip, faces, view, face, valid, vertex_count, height, width
        )
        e0x, e0y, e0w, e1x, e1y, e1w, e2x, e2y, e2w, determinant = _edges(ax, ay, aw, bx, by, bw, cx, cy, cw)
        sign = tl.where(determinant > 0.0, 1.0, -1.0).to(tl.float64)
        inverse = 1.0 / tl.where(valid, sign * determinant, 1.0)
        left, top = tl.load(boxes + job * 4), tl.load(boxes + job * 4 + 1)
        columns, rows = tl.load(boxes + job * 4 + 2), tl.load(boxes + job * 4 + 3)
        first = ((item - skipped) * PIXELS).to(tl.int32)
        left_over = tl.where(valid, columns * rows - first, 0)
        row, column = first // columns, first % columns
        for step in range(PIXELS):
            x, y = (left + column).to(tl.float64), (top + row).to(tl.float64)
            w0 = sign * (e0x * x + (e0y * y + e0w))
            w1 = sign * (e1x * x + (e1y * y + e1w))
            w2 = sign * (e2x * x + (e2y * y + e2w))
            z = (w0 * az + w1 * bz + w2 * cz) * inverse
            covered = (w0 >= 0.0) & (w1 >= 0.0) & (w2 >= 0.0) & (w0 + w1 + w2 > 0.0)
            covered = covered & (z >= -1.0) & (z <= 1.0) & (step < left_over)
            depth = (tl.where(covered, z + 1.0, 0.0) * _DEPTH_STEPS).to(tl.int64)
            pixel = (view * height + top + row) * width + left + column
            tl.atomic_min(keys + pixel, (depth << 32) | face, mask=covered, sem="relaxed")
            column += 1
            row, column = tl.where(column == columns, row + 1, row), tl.where(column == columns, 0, column)
        start += tl.num_programs(0) * BLOCK


@triton.jit(do_not_specialize=["vertex_count"])
@no_type_check
def _resolve(clip, faces, keys, data, vertex_count, height, width, BLOCK: tl.constexpr):
    """Barycentrics, depth and index of the triangle that won a pixel."""
    view = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < height * width
    pixel = view * height * width + place
    key = tl.load(keys + pixel, mask=valid, other=_NOTHING)
    hit = key != _NOTHING
    face = tl.where(hit, key & 0xFFFFFFFF, 0)
    ax, ay, az, aw, bx, by, bz, bw, cx, cy, cz, cw = _corners(
        clip, faces, view, face, hit, vertex_count, height, width
    )
    e0x, e0y, e0w, e1x, e1y, e1w, e2x, e2y, e2w, determinant = _edges(ax, ay, aw, bx, by, bw, cx, cy, cw)
    x, y = (place % width).to(tl.float64), (place // width).to(tl.float64)
    w0 = e0x * x + (e0y * y + e0w)
    w1 = e1x * x + (e1y * y + e1w)
    w2 = e2x * x + (e2y * y + e2w)
    total = tl.where(hit, w0 + w1 + w2, 1.0)
    z = (w0 * az + w1 * bz + w2 * cz) * (1.0 / tl.where(hit, determinant, 1.0))
    values = _four(w0 / total, w1 / total, z, tl.where(hit, face + 1, 0).to(tl.float64))
    target = data + pixel[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(target, values.to(data.dtype.element_ty), mask=valid[:, None])


@triton.jit
@no_type_check
def _fragment(data, pixel, valid):
    """Barycentrics and triangle of a pixel, and whether it has one."""
    u = tl.load(data + pixel * 4, mask=valid, other=0.0)
    v = tl.load(data + pixel * 4 + 1, mask=valid, other=0.0)
    face = tl.load(data + pixel * 4 + 3, mask=valid, other=0.0).to(tl.int64) - 1
    return u, v, tl.maximum(face, 0), face >= 0


@triton.jit(do_not_specialize=["vertex_count"])
@no_type_check
def _resolve_backward(gradient, clip, data, faces, grad_clip, vertex_count, pixel_count, BLOCK: tl.constexpr):
    """Gradient of u and v to the corners; `zbuffer_numba` has the formula."""
    view = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pixel = view * pixel_count + place
    u, v, face, hit = _fragment(data, pixel, place < pixel_count)
    g0 = tl.load(gradient + pixel * 4, mask=hit, other=0.0).to(tl.float64)
    g1 = tl.load(gradient + pixel * 4 + 1, mask=hit, other=0.0).to(tl.float64)
    live = hit & ((g0 != 0.0) | (g1 != 0.0))
    i0, i1, i2 = _vertices(faces, face, live)
    ax, ay, _az, aw = _ndc_position(clip, view, i0, live, vertex_count)
    bx, by, _bz, bw = _ndc_position(clip, view, i1, live, vertex_count)
    cx, cy, _cz, cw = _ndc_position(clip, view, i2, live, vertex_count)
    e0x, e0y, e0w, e1x, e1y, e1w, e2x, e2y, e2w, determinant = _edges(ax, ay, aw, bx, by, bw, cx, cy, cw)
    determinant = tl.where(live, determinant, 1.0)
    mean = g0 * u + g1 * v
    f0, f1, f2 = (mean - g0) / determinant, (mean - g1) / determinant, mean / determinant
    hx = f0 * e0x + f1 * e1x + f2 * e2x
    hy = f0 * e0y + f1 * e1y + f2 * e2y
    hw = f0 * e0w + f1 * e1w + f2 * e2w
    column = tl.arange(0, 4)[None, :]
    mask, target = live[:, None] & (column != 2), grad_clip + view * vertex_count * 4 + column
    pull = _four(hx, hy, tl.zeros_like(hx), hw).to(grad_clip.dtype.element_ty)
    tl.atomic_add(target + i0[:, None] * 4, pull * u[:, None], mask=mask, sem="relaxed")
    tl.atomic_add(target + i1[:, None] * 4, pull * v[:, None], mask=mask, sem="relaxed")
    tl.atomic_add(target + i2[:, None] * 4, pull * (1 - u - v)[:, None], mask=mask, sem="relaxed")


@triton.jit
@no_type_check
def _rows(faces, face, hit, start, channel, channels):
    """Where the attributes of a triangle's corners lie, [N, CHANNELS] each."""
    i0, i1, i2 = _vertices(faces, face, hit)
    offset = start + channel
    return i0[:, None] * channels + offset, i1[:, None] * channels + offset, i2[:, None] * channels + offset


@triton.jit(do_not_specialize=["view_stride"])
@no_type_check
def _interpolate(
    attributes, data, faces, output, view_stride, pixel_count, channels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < pixel_count
    pixel = view * pixel_count + place
    channel = tl.arange(0, CHANNELS)[None, :]
    u, v, face, hit = _fragment(data, pixel, valid)
    a, b, c = _rows(faces, face, hit, view * view_stride, channel, channels)
    mask = hit[:, None] & (channel < channels)
    mixed = u[:, None] * tl.load(attributes + a, mask=mask, other=0.0)
    mixed += v[:, None] * tl.load(attributes + b, mask=mask, other=0.0)
    mixed += (1 - u - v)[:, None] * tl.load(attributes + c, mask=mask, other=0.0)
    tl.store(output + pixel[:, None] * channels + channel, mixed, mask=valid[:, None] & (channel < channels))


@triton.jit(do_not_specialize=["view_stride"])
@no_type_check
def _interpolate_backward(
    gradient, attributes, data, faces, grad_attributes, grad_data, view_stride, pixel_count, channels,
    NEEDED: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    view = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < pixel_count
    pixel = view * pixel_count + place
    channel = tl.arange(0, CHANNELS)[None, :]
    u, v, face, hit = _fragment(data, pixel, valid)
    a, b, c = _rows(faces, face, hit, view * view_stride, channel, channels)
    mask = hit[:, None] & (channel < channels)
    incoming = tl.load(gradient + pixel[:, None] * channels + channel, mask=mask, other=0.0)
    last = tl.load(attributes + c, mask=mask, other=0.0)
    to_u = tl.sum(incoming * (tl.load(attributes + a, mask=mask, other=0.0) - last), axis=1)
    to_v = tl.sum(incoming * (tl.load(attributes + b, mask=mask, other=0.0) - last), axis=1)
    target = grad_data + pixel[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(target, _four(to_u, to_v, tl.zeros_like(u), tl.zeros_like(u)), mask=valid[:, None])
    if NEEDED:
        mask = mask & (incoming != 0.0)
        tl.atomic_add(grad_attributes + a, u[:, None] * incoming, mask=mask, sem="relaxed")
        tl.atomic_add(grad_attributes + b, v[:, None] * incoming, mask=mask, sem="relaxed")
        tl.atomic_add(grad_attributes + c, (1 - u - v)[:, None] * incoming, mask=mask, sem="relaxed")
