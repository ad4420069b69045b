"""Group normalisation (Wu and He 2018) with SiLU, channels-last, with a gradient to the input only.

The plain functions here state the arithmetic and are the twin of the Triton kernels in
`group_norm_triton.py`. Both work on pixels [B, P, C], an image's memory in channels-last order, accumulate
in at least float32, and hand each other the same statistics: `center` (the group's mean, less the shift) and
`scale` (1 / standard deviation), both per image and channel.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Implementation: TypeAlias = Literal["auto", "torch", "triton"]
Pixels: TypeAlias = Float[Tensor, "B P C"]
Shift: TypeAlias = Float[Tensor, " C"] | Float[Tensor, "B C"]
Statistics: TypeAlias = tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]  # center, scale


@dataclass(frozen=True)
class Norm:
    """The frozen parameters of a group normalisation and what happens to its output."""

    weight: Float[Tensor, " C"]
    bias: Float[Tensor, " C"]
    groups: int
    eps: float = 1e-6
    silu: bool = True

    def __post_init__(self) -> None:
        if len(self.weight) % self.groups:
            raise ValueError(f"groups must divide the {len(self.weight)} channels, got {self.groups}")
        if self.weight.requires_grad or self.bias.requires_grad:
            raise ValueError("weight and bias must be frozen, got one that needs a gradient")


def group_norm(
    x: Float[Tensor, "B C H W"],
    norm: Norm,
    *,
    shift: Shift | None = None,
    implementation: Implementation = "auto",
) -> Float[Tensor, "B C H W"]:
    """Normalise x + shift in groups of channels, then SiLU where `norm.silu` is set.

    Args:
        x: any memory order; channels-last is not copied. The result is channels-last.
        norm: the parameters.
        shift: a constant for each channel, or each image and channel, such as the bias that a convolution
            before left out; no gradient.
        implementation: `auto` is Triton on CUDA, plain torch elsewhere.
    """
    result: Tensor = _GroupNorm.apply(x, norm, shift, implementation)  # type: ignore[no-untyped-call]
    return result


def to_pixels(x: Float[Tensor, "B C H W"]) -> Pixels:
    """The image as [B, H W, C], contiguous; no copy where it is channels-last."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def to_image(pixels: Pixels, height: int) -> Float[Tensor, "B C H W"]:
    """The inverse of `to_pixels`, channels-last."""
    views, count, channels = pixels.shape
    return pixels.reshape(views, height, count // height, channels).permute(0, 3, 1, 2)


def forward(
    pixels: Pixels, norm: Norm, shift: Shift | None, implementation: Implementation = "auto"
) -> tuple[Pixels, Statistics]:
    """The normalised pixels and the statistics that the backward pass needs."""
    if uses_triton(implementation, pixels):
        from pgc3d.kernels.group_norm_triton import forward_triton

        return forward_triton(pixels, norm, shift)
    wide = pixels.to(_accumulator(pixels))
    offset = torch.zeros_like(wide[:, 0]) if shift is None else shift.to(wide.dtype).expand_as(wide[:, 0])
    grouped = _grouped(wide + offset[:, None], norm)
    mean = grouped.mean(dim=(1, 3))
    variance = (grouped - mean[:, None, :, None]).square().mean(dim=(1, 3))
    repeats = pixels.shape[-1] // norm.groups
    center = mean.repeat_interleave(repeats, dim=1) - offset
    scale = (variance + norm.eps).rsqrt().repeat_interleave(repeats, dim=1)
    return _activate(wide, norm, (center, scale)).to(pixels.dtype), (center, scale)


def reapply(
    pixels: Pixels, norm: Norm, statistics: Statistics, implementation: Implementation = "auto"
) -> Pixels:
    """The output of `forward` once more, from its statistics."""
    if uses_triton(implementation, pixels):
        from pgc3d.kernels.group_norm_triton import apply_triton

        return apply_triton(pixels, norm, statistics)
    return _activate(pixels.to(_accumulator(pixels)), norm, statistics).to(pixels.dtype)


def backward(
    gradient: Pixels,
    pixels: Pixels,
    norm: Norm,
    statistics: Statistics,
    *,
    residual: Pixels | None = None,
    implementation: Implementation = "auto",
) -> Pixels:
    """The gradient of `forward` to its pixels, plus `residual`.

    With x_hat = (x - center) scale, u = w x_hat + b and g = d loss / d u, over each group of N numbers:
    dx = scale (w g - sum(w g) / N - x_hat sum(w g x_hat) / N).
    """
    if uses_triton(implementation, pixels):
        from pgc3d.kernels.group_norm_triton import backward_triton

        return backward_triton(gradient, pixels, norm, statistics, residual)
    wide = pixels.to(_accumulator(pixels))
    center, scale = (value[:, None] for value in statistics)
    weight, bias = norm.weight.to(wide.dtype), norm.bias.to(wide.dtype)
    normal = (wide - center) * scale
    pull = gradient.to(wide.dtype)
    if norm.silu:
        raw = normal * weight + bias
        gate = torch.sigmoid(raw)
        pull = pull * gate * (1 + raw * (1 - gate))
    pull = pull * weight
    result = scale * (pull - _group_mean(pull, norm) - normal * _group_mean(pull * normal, norm))
    if residual is not None:
        result = result + residual.to(wide.dtype)
    return result.to(pixels.dtype)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Norm, shift: Tensor | None, implementation: Implementation
    ) -> Tensor:
        pixels = to_pixels(x)
        result, statistics = forward(pixels, norm, shift, implementation)
        ctx.save_for_backward(pixels, *statistics)
        ctx.norm, ctx.implementation, ctx.height = norm, implementation, x.shape[2]
        return to_image(result, ctx.height)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        pixels, center, scale = ctx.saved_tensors
        result = backward(
            to_pixels(gradient), pixels, ctx.norm, (center, scale), implementation=ctx.implementation
        )
        return to_image(result, ctx.height), None, None, None


def _activate(wide: Pixels, norm: Norm, statistics: Statistics) -> Pixels:
    center, scale = (value[:, None] for value in statistics)
    raw = (wide - center) * scale * norm.weight.to(wide.dtype) + norm.bias.to(wide.dtype)
    return torch.nn.functional.silu(raw) if norm.silu else raw


def _group_mean(values: Pixels, norm: Norm) -> Float[Tensor, "B 1 C"]:
    means = _grouped(values, norm).mean(dim=(1, 3))
    return means.repeat_interleave(values.shape[-1] // norm.groups, dim=1)[:, None]


def _grouped(values: Pixels, norm: Norm) -> Float[Tensor, "B P G D"]:
    return values.reshape(*values.shape[:2], norm.groups, values.shape[-1] // norm.groups)


def _accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def uses_triton(implementation: Implementation, x: Float[Tensor, "..."]) -> bool:
    """Whether a kernel or its twin in torch is to run on `x`."""
    return implementation == "triton" or (implementation == "auto" and x.device.type == "cuda")
