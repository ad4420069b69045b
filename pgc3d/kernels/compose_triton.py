"""Composition of surface attributes into an image on CUDA, forward and backward in one pass each.

The reference in plain torch is `render.mesh_renderer._compose` with `render.shading`, which states the
formulas. Only the inputs are stored for the backward pass.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: PLR0913, PLR0917

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from pgc3d.kernels import light

_BLOCK = 128  # pixels of a program
_AMBIENT, _KEY, _SKY = (tl.constexpr(fraction) for fraction in (light.AMBIENT, light.KEY, light.SKY))
_SRGB_KNEE, _LINEAR_KNEE = tl.constexpr(light.SRGB_KNEE), tl.constexpr(light.LINEAR_KNEE)
_SLOPE, _OFFSET, _GAMMA = (tl.constexpr(number) for number in (light.SLOPE, light.OFFSET, light.GAMMA))
_SHORTEST = tl.constexpr(1e-12)  # `eps` of `torch.nn.functional.normalize`


def compose(
    places: Float[Tensor, "P 6"],
    color: Float[Tensor, "P 3"],
    data: Float[Tensor, "B H W 4"],
    key: Float[Tensor, "B 3"],
    camera_from_world: Float[Tensor, "B 4 4"],
    background: Float[Tensor, "B 3"],
    *,
    shading: bool,
) -> tuple[Float[Tensor, "B H W 7"], Float[Tensor, "B H W 1"]]:
    """Colour, encoded normal and alpha of every pixel, without antialiasing, and its depth.

    Args:
        places: World points and normals of all pixels in order; float32, as everything. Differentiable.
        color: Base colour, sRGB. Differentiable.
        data: Fragments.
        key: Direction towards the light, world space, unit length.
        camera_from_world: Depth is along -z.
        background: sRGB.
        shading: Light the base colour.
    """
    inputs = (places, color, data, key, camera_from_world, background)
    image, depth = _Compose.apply(*inputs, shading)
    return image, depth


class _Compose(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        places: Tensor,
        color: Tensor,
        data: Tensor,
        key: Tensor,
        camera: Tensor,
        background: Tensor,
        shading: bool,  # noqa: FBT001 - autograd passes no keywords
    ) -> tuple[Tensor, Tensor]:
        inputs = [values.contiguous() for values in (places, color, data, key, camera)]
        views, height, width = data.shape[:3]
        image = torch.empty(views, height, width, 7, dtype=places.dtype, device=places.device)
        depth = torch.empty(views, height, width, 1, dtype=places.dtype, device=places.device)
        if image.numel():
            _forward[_grid(data)](
                *inputs, background.contiguous(), image, depth, height * width,
                SHADING=shading, BLOCK=_BLOCK,
            )  # fmt: skip
        ctx.save_for_backward(*inputs)
        ctx.shading = shading
        ctx.set_materialize_grads(False)
        return image, depth

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        places, color, data, key, camera = ctx.saved_tensors
        views, height, width = data.shape[:3]
        of_image, of_depth = gradients
        of_image = data.new_zeros(views, height, width, 7) if of_image is None else of_image.contiguous()
        of_places = torch.empty_like(places) if ctx.needs_input_grad[0] else None
        of_color = torch.empty_like(color)
        if data.numel():
            _backward[_grid(data)](
                of_image, None if of_depth is None else of_depth.contiguous(),
                places, color, data, key, camera, of_places, of_color, height * width,
                SHADING=ctx.shading, PLACES=of_places is not None, DEPTH=of_depth is not None, BLOCK=_BLOCK,
            )  # fmt: skip
        return of_places, of_color, None, None, None, None, None


def _grid(data: Tensor) -> tuple[int, int]:
    views, height, width = data.shape[:3]
    return triton.cdiv(height * width, _BLOCK), views


@triton.jit
@no_type_check
def _three(values, place, mask):
    """Three neighbouring numbers at every place, 0 beside the mask."""
    first = tl.load(values + place, mask=mask, other=0.0)
    second = tl.load(values + place + 1, mask=mask, other=0.0)
    return first, second, tl.load(values + place + 2, mask=mask, other=0.0)


@triton.jit
@no_type_check
def _row(values):
    """Three neighbouring numbers."""
    return tl.load(values), tl.load(values + 1), tl.load(values + 2)


@triton.jit
@no_type_check
def _four(a, b, c, d):
    """[N, 4] of four [N]: written in one piece, where single numbers would be scattered."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], 4])


@triton.jit
@no_type_check
def _eight(a, b, c, d, e, f, g, h):
    """The same of eight."""
    return tl.reshape(tl.join(_four(a, c, e, g), _four(b, d, f, h)), [a.shape[0], 8])


@triton.jit
@no_type_check
def _pixels(data, pixel_count, BLOCK: tl.constexpr):
    """View, flat indices over all views, which of them are in the image, and which show something."""
    view = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = place < pixel_count
    pixel = view * pixel_count + place
    return view, pixel, valid, tl.load(data + pixel * 4 + 3, mask=valid, other=0.0) > 0.0


@triton.jit
@no_type_check
def _unit(x, y, z):
    """Unit vectors and the lengths that they had."""
    length = tl.sqrt(x * x + y * y + z * z)
    divisor = tl.where(length < _SHORTEST, _SHORTEST, length)
    return x / divisor, y / divisor, z / divisor, length


@triton.jit
@no_type_check
def _decode(color):
    """Decode sRGB to linear light; with its derivative."""
    low = color <= _SRGB_KNEE
    base = (tl.where(low, 1.0, color) + _OFFSET) / (1.0 + _OFFSET)
    power = tl.exp2(_GAMMA * tl.log2(base))
    slope = _GAMMA * power / (base * (1.0 + _OFFSET))
    return tl.where(low, color / _SLOPE, power), tl.where(low, 1.0 / _SLOPE, slope)


@triton.jit
@no_type_check
def _encode(color):
    """Encode linear light as sRGB; with its derivative."""
    low = color <= _LINEAR_KNEE
    base = tl.where(low, 1.0, color)
    power = (1.0 + _OFFSET) * tl.exp2(tl.log2(base) / _GAMMA)
    return tl.where(low, color * _SLOPE, power - _OFFSET), tl.where(low, _SLOPE, power / (_GAMMA * base))


@triton.jit
@no_type_check
def _shade(color, irradiance):
    """Lit colour of a channel, and its derivatives to the base colour and to the light on it."""
    linear, slope = _decode(color)
    lit, gain = _encode(linear * irradiance)
    return lit, gain * irradiance * slope, gain * linear


@triton.jit
@no_type_check
def _light(x, y, z, key):
    """Irradiance of unit normals, the key direction, and the cosine between them."""
    key_x, key_y, key_z = _row(key)
    cosine = x * key_x + y * key_y + z * key_z
    irradiance = _AMBIENT + _KEY * tl.where(cosine < 0.0, 0.0, cosine) + _SKY * (0.5 + 0.5 * y)
    return irradiance, key_x, key_y, key_z, cosine


@triton.jit
@no_type_check
def _forward(
    places, color, data, key, camera, background, image, depth, pixel_count,
    SHADING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    view, pixel, valid, hit = _pixels(data, pixel_count, BLOCK)
    x, y, z = _three(places, pixel * 6, hit)
    normal_x, normal_y, normal_z = _three(places, pixel * 6 + 3, hit)
    normal_x, normal_y, normal_z, _length = _unit(normal_x, normal_y, normal_z)
    red, green, blue = _three(color, pixel * 3, hit)
    if SHADING:
        irradiance, _x, _y, _z, _cosine = _light(normal_x, normal_y, normal_z, key + view * 3)
        red, _color, _light_on = _shade(red, irradiance)
        green, _color, _light_on = _shade(green, irradiance)
        blue, _color, _light_on = _shade(blue, irradiance)
    empty_red, empty_green, empty_blue = _row(background + view * 3)
    alpha = tl.where(hit, 1.0, 0.0)
    layers = _eight(
        tl.where(hit, red, empty_red), tl.where(hit, green, empty_green), tl.where(hit, blue, empty_blue),
        0.5 * normal_x + 0.5, 0.5 * normal_y + 0.5, 0.5 * normal_z + 0.5, alpha, alpha,
    )  # fmt: skip
    column = tl.arange(0, 8)[None, :]
    tl.store(image + pixel[:, None] * 7 + column, layers, mask=valid[:, None] & (column < 7))
    behind_x, behind_y, behind_z = _row(camera + view * 16 + 8)
    distance = -(behind_x * x + behind_y * y + behind_z * z) - tl.load(camera + view * 16 + 11)
    tl.store(depth + pixel, tl.where(hit, distance, 0.0), mask=valid)


@triton.jit
@no_type_check
def _backward(
    of_image, of_depth, places, color, data, key, camera, of_places, of_color, pixel_count,
    SHADING: tl.constexpr, PLACES: tl.constexpr, DEPTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of points, normals and colours: zeros where nothing is, as the masked loads give zeros."""
    view, pixel, valid, hit = _pixels(data, pixel_count, BLOCK)
    red_pull, green_pull, blue_pull = _three(of_image, pixel * 7, hit)
    pull_x, pull_y, pull_z = _three(of_image, pixel * 7 + 3, hit)
    pull_x, pull_y, pull_z = 0.5 * pull_x, 0.5 * pull_y, 0.5 * pull_z
    normal_x, normal_y, normal_z = _three(places, pixel * 6 + 3, hit)
    normal_x, normal_y, normal_z, length = _unit(normal_x, normal_y, normal_z)
    if SHADING:
        irradiance, key_x, key_y, key_z, cosine = _light(normal_x, normal_y, normal_z, key + view * 3)
        red, green, blue = _three(color, pixel * 3, hit)
        _lit, red_slope, red_light = _shade(red, irradiance)
        _lit, green_slope, green_light = _shade(green, irradiance)
        _lit, blue_slope, blue_light = _shade(blue, irradiance)
        light_pull = red_pull * red_light + green_pull * green_light + blue_pull * blue_light
        red_pull, green_pull, blue_pull = (
            red_pull * red_slope,
            green_pull * green_slope,
            blue_pull * blue_slope,
        )
        key_pull = tl.where(cosine >= 0.0, _KEY * light_pull, 0.0)
        pull_x, pull_z = pull_x + key_pull * key_x, pull_z + key_pull * key_z
        pull_y += key_pull * key_y + 0.5 * _SKY * light_pull
    colors = _four(red_pull, green_pull, blue_pull, blue_pull)
    channel = tl.arange(0, 4)[None, :]
    tl.store(of_color + pixel[:, None] * 3 + channel, colors, mask=valid[:, None] & (channel < 3))
    if PLACES:
        along = pull_x * normal_x + pull_y * normal_y + pull_z * normal_z
        along = tl.where(length < _SHORTEST, 0.0, along)
        divisor = tl.where(length < _SHORTEST, _SHORTEST, length)
        x, y, z = tl.zeros_like(pull_x), tl.zeros_like(pull_x), tl.zeros_like(pull_x)
        if DEPTH:
            depth_pull = tl.load(of_depth + pixel, mask=hit, other=0.0)
            behind_x, behind_y, behind_z = _row(camera + view * 16 + 8)
            x, y, z = -behind_x * depth_pull, -behind_y * depth_pull, -behind_z * depth_pull
        pulls = _eight(
            x, y, z,
            (pull_x - along * normal_x) / divisor,
            (pull_y - along * normal_y) / divisor,
            (pull_z - along * normal_z) / divisor,
            z, z,
        )  # fmt: skip
        column = tl.arange(0, 8)[None, :]
        tl.store(of_places + pixel[:, None] * 6 + column, pulls, mask=valid[:, None] & (column < 6))
