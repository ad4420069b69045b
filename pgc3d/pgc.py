"""Pixel-wise gradient clipping: bound the length of each pixel's gradient, keep its direction.

Source: Pan et al., "Enhancing High-Resolution 3D Generation through Pixel-wise Gradient Clipping", ICLR 2024
(arXiv 2310.12474), eq. 9: g * min(1, c / |g|) for the gradient g of each pixel. The authors' released code
takes the L-infinity norm over the channels, the default here; `norm="l2"` is the Euclidean one.

The module needs torch and jaxtyping alone, and nothing else of pgc3d. In another project, one line for the
rendered image is enough:

    pgc.attach(image, threshold=0.1, dim=1, loss_scale=scaler.get_scale)  # image [B, 3, H, W]

A gradient here is that of a summed loss with respect to an image with values in [0, 1]; channels are last
unless another `dim` is given. All channels of a pixel are set to zero where one of them is NaN or infinite.
Arithmetic is in float32 or wider, and the result has the gradient's dtype. The host never synchronises with
the device, except in a `loss_scale` function of `attach` that does so (a GradScaler's `get_scale` does).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

Norm = Literal["linf", "l2"]
Scalar: TypeAlias = float | Float[Tensor, ""]
Threshold: TypeAlias = float | Float[Tensor, "..."]
Clipper = Callable[[Tensor], Tensor]
Sum = Callable[[Tensor], Tensor]  # of a tensor over the processes that share a batch
_SAMPLE = 65536  # at most so many pixels are sorted for a percentile
# Ranges of settings, for documentation and for configuration files: beyond, products leave single precision.
_BOUND = {"range": {"low": 1e-12, "high": 1e6}}


@dataclass(frozen=True)
class Rows:
    """The images of a batch that one of several processes has, all of which call a rule together.

    A process without images takes part with a gradient of none, [0, ...].
    """

    first: int  # of this process's images in the batch
    total: int  # number of images of all processes
    sum: Sum

    def gather(self, own: Float[Tensor, "b *S"]) -> Float[Tensor, "B *S"]:
        """The entries of all images, from those of this process's."""
        return self.sum(_placed(own, self.first, self.total))


@runtime_checkable
class BatchRule(Protocol):
    """A rule that looks beyond a pixel, so that it depends on how a batch is divided."""

    def clip_rows(self, gradient: Float[Tensor, "b *S C"], rows: Rows) -> Float[Tensor, "b *S C"]:
        """Clip the images of one process as if it had all of the batch."""
        ...


def replace_nonfinite(gradient: Float[Tensor, "..."], *, dim: int = -1) -> Float[Tensor, "..."]:
    """The gradient with every pixel that holds a NaN or an infinity set to zero; the rule `none`."""
    return torch.where(_largest(gradient, dim) < math.inf, gradient, 0.0)


def count_nonfinite(gradient: Float[Tensor, "..."], *, dim: int = -1) -> Int[Tensor, ""]:
    """Number of pixels that hold a NaN or an infinity, as an integer scalar on the device."""
    return (~(_largest(gradient, dim) < math.inf)).sum()


def clip_pixelwise(
    gradient: Float[Tensor, "..."], threshold: Threshold = 0.1, *, norm: Norm = "linf", dim: int = -1
) -> Float[Tensor, "..."]:
    """Shorten every pixel vector that is longer than the threshold (PGC, eq. 9).

    Shorter vectors come back bit for bit, longer ones keep their direction and get the threshold as length.

    Args:
        gradient: d loss / d image.
        threshold: c, positive; may be a tensor, so that one that changes needs no host copy, which broadcasts
            with the lengths: they have the gradient's shape, with 1 along `dim`.
        norm: how a pixel vector is measured over its channels.
        dim: the channel axis.
    """
    _check_threshold(threshold)
    clean, direction, length = polar(gradient, norm, dim)
    return torch.where(length > threshold, direction * threshold, clean).to(gradient.dtype)


def clip_channelwise(
    gradient: Float[Tensor, "..."], threshold: Scalar = 0.1, *, dim: int = -1
) -> Float[Tensor, "..."]:
    """Limit every channel to [-c, c] on its own, which may change the vector's direction (PGC-V)."""
    _check_threshold(threshold)
    limit = torch.as_tensor(threshold, dtype=_wide(gradient.dtype), device=gradient.device)
    return _clean(gradient, dim).clamp(-limit, limit).to(gradient.dtype)


def normalize_pngd(
    gradient: Float[Tensor, "..."], threshold: Scalar = 0.1, *, norm: Norm = "linf", dim: int = -1
) -> Float[Tensor, "..."]:
    """Scale every pixel vector g to c g / (|g| + c): about g where short, of length c where long (PNGD)."""
    _check_threshold(threshold)
    clean, direction, length = polar(gradient, norm, dim)
    # Divided by the larger of c and |g| the formula neither overflows nor loses small vectors.
    short, long = clean / (1 + length / threshold), direction * (threshold / (1 + threshold / length))
    return torch.where(length > threshold, long, short).to(gradient.dtype)


def scale_globally(
    gradient: Float[Tensor, "..."], threshold: Scalar = 0.1, *, dim: int = -1, rows: Rows | None = None
) -> Float[Tensor, "..."]:
    """Scale the whole batch so that its largest absolute channel is c; an all-zero gradient stays zero.

    Args:
        gradient: d loss / d image.
        threshold: c, positive.
        dim: the channel axis.
        rows: the images of this process along the first axis, where several share the batch.
    """
    _check_threshold(threshold)
    clean = _clean(gradient, dim)
    sizes = clean.abs()
    largest = sizes.amax() if rows is None else rows.gather(sizes.flatten(1).amax(1)).amax()
    return (clean / torch.where(largest > 0, largest, 1.0) * threshold).to(gradient.dtype)


def clip_parameters(parameters: Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """Scale the gradients of all parameters in place to a total L2 norm of at most `max_norm`.

    The usual gradient clipping, a baseline for the rules on pixels. Where the total norm is not finite, all
    gradients become zero; an optimiser with momentum still changes the parameters.

    Returns:
        The total norm before the scaling, on the device.
    """
    _check_threshold(max_norm)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    scale = torch.where(total > max_norm, max_norm / total, 1.0).nan_to_num(0.0)
    scale = torch.where(torch.isfinite(total), scale, 0.0)
    for gradient in gradients:
        gradient.mul_(scale.to(gradient.device)).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return total


def statistics(
    gradient: Float[Tensor, "..."],
    clipped: Float[Tensor, "..."],
    *,
    norm: Norm = "linf",
    dim: int = -1,
    percentiles: bool = True,
    mask: Bool[Tensor, "..."] | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Measurements of a gradient before and after a clipping rule, as scalars on the device.

    Args:
        gradient: before clipping.
        clipped: after clipping.
        norm: how a pixel vector is measured over its channels.
        dim: the channel axis.
        percentiles: also measure lengths.
        mask: the pixels that count, of size 1 along `dim`; None for all of them.

    Returns:
        The fractions of the pixels that the rule changed (`clipped_fraction`) and that were not finite
        (`nonfinite_fraction`), and with `percentiles` those of the pixel vectors' lengths before clipping
        (`gradient_p50`, `gradient_p90`, `gradient_p99`, from at most 65536 evenly spread pixels, and
        `gradient_max`); a pixel that was not finite counts as length 0.
    """
    largest = _largest(gradient, dim)
    counted = torch.ones_like(largest, dtype=torch.bool) if mask is None else mask.expand_as(largest)
    number = counted.sum().clamp_min(1)
    changed = (gradient != clipped).any(dim, keepdim=True) & counted
    metrics = {
        "clipped_fraction": changed.sum() / number,
        "nonfinite_fraction": (~(largest < math.inf) & counted).sum() / number,
    }
    if percentiles:
        _, _, length = polar(gradient, norm, dim)
        ordered = sampled(torch.where(counted, length, -1.0)).sort().values  # what does not count comes first
        for percent in (50, 90, 99):
            metrics[f"gradient_p{percent}"] = nonzero_quantile(ordered, ordered < 0, percent / 100).clamp_min(
                0.0
            )
        metrics["gradient_max"] = torch.where(counted, length, 0.0).amax()
    return metrics


def attach(
    tensor: Float[Tensor, "..."],
    threshold: float = 0.1,
    *,
    norm: Norm = "linf",
    dim: int = -1,
    loss_scale: Scalar | Callable[[], Scalar] | None = None,
    clipper: Clipper | None = None,
) -> torch.utils.hooks.RemovableHandle:
    """Clip the gradient of a rendered image during `backward`.

    Args:
        tensor: an image that requires a gradient.
        threshold: c for the unscaled loss.
        norm: as in `clip_pixelwise`.
        dim: the channel axis, 1 for [B, C, H, W].
        loss_scale: the factor of the loss (`GradScaler`), or a function that returns it, called at each
            backward. With one, non-finite numbers stay as they are, so that the scaler detects overflows.
        clipper: another rule, applied to the unscaled gradient; it replaces `threshold`, `norm` and `dim`.

    Returns:
        A handle whose `remove()` ends the clipping.
    """
    _check_threshold(threshold)
    rule = clipper or partial(clip_pixelwise, threshold=threshold, norm=norm, dim=dim)

    def clip(gradient: Tensor) -> Tensor:
        if loss_scale is None:
            return rule(gradient)
        scale = loss_scale() if callable(loss_scale) else loss_scale
        clipped = rule(gradient.to(_wide(gradient.dtype)) / scale) * scale
        return torch.where(gradient.isfinite(), clipped, gradient).to(gradient.dtype)

    handle: torch.utils.hooks.RemovableHandle = tensor.register_hook(clip)  # type: ignore[no-untyped-call]
    return handle


@dataclass(frozen=True)
class PixelClip:
    """Per-pixel norm clipping (PGC)."""

    kind: Literal["pixel"] = "pixel"
    threshold: float = field(default=0.1, metadata=_BOUND)  # c, the longest pixel vector
    norm: Norm = "linf"  # largest channel, or Euclidean length

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def build(self) -> Clipper:
        """The rule as a function of a channel-last gradient."""
        return partial(clip_pixelwise, threshold=self.threshold, norm=self.norm)


@dataclass(frozen=True)
class ChannelClip:
    """Per-channel value clipping (PGC-V)."""

    kind: Literal["channel"] = "channel"
    threshold: float = field(default=0.1, metadata=_BOUND)  # c, the largest channel

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def build(self) -> Clipper:
        """The rule as a function of a channel-last gradient."""
        return partial(clip_channelwise, threshold=self.threshold)


@dataclass(frozen=True)
class PngdClip:
    """Per-pixel soft normalisation (PNGD)."""

    kind: Literal["pngd"] = "pngd"
    threshold: float = field(default=0.1, metadata=_BOUND)  # c, which no pixel vector reaches
    norm: Norm = "linf"  # largest channel, or Euclidean length

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def build(self) -> Clipper:
        """The rule as a function of a channel-last gradient."""
        return partial(normalize_pngd, threshold=self.threshold, norm=self.norm)


@dataclass(frozen=True)
class GlobalScale:
    """One factor for the whole batch, see `scale_globally`."""

    kind: Literal["global"] = "global"
    threshold: float = field(default=0.1, metadata=_BOUND)  # largest channel of the batch

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def build(self) -> "GlobalRule":
        """The rule as a function of a channel-last gradient."""
        return GlobalRule(self.threshold)


@dataclass(frozen=True)
class GlobalRule:
    """`scale_globally` with a threshold."""

    threshold: float

    def __call__(self, gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The scaled gradient."""
        return scale_globally(gradient, self.threshold)

    def clip_rows(self, gradient: Float[Tensor, "b *S C"], rows: Rows) -> Float[Tensor, "b *S C"]:
        """See `BatchRule.clip_rows`."""
        return scale_globally(gradient, self.threshold, rows=rows)


@dataclass(frozen=True)
class ParameterClip:
    """Clipping of parameter gradients: pixels are not clipped, the loop calls `clip_parameters`."""

    kind: Literal["parameter"] = "parameter"
    max_norm: float = field(default=1.0, metadata=_BOUND)  # l2 norm of all gradients together

    def __post_init__(self) -> None:
        _check_threshold(self.max_norm, "max_norm")

    def build(self) -> Clipper:
        """The rule as a function of a channel-last gradient."""
        return replace_nonfinite


@dataclass(frozen=True)
class NoClip:
    """No clipping; non-finite pixels still become zero."""

    kind: Literal["none"] = "none"

    def build(self) -> Clipper:
        """The rule as a function of a channel-last gradient."""
        return replace_nonfinite


def _check_threshold(threshold: Threshold, name: str = "threshold") -> None:
    if not isinstance(threshold, Tensor) and not 0 < threshold < float("inf"):
        raise ValueError(f"a clipping {name} must be positive and finite, got {threshold}")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _clean(gradient: Tensor, dim: int) -> Tensor:
    return replace_nonfinite(gradient, dim=dim).to(_wide(gradient.dtype))


def _largest(gradient: Tensor, dim: int) -> Tensor:
    """The largest absolute value of every pixel [..., 1]: NaN or infinite where any channel is."""
    largest: Tensor = torch.linalg.vector_norm(gradient, math.inf, dim, keepdim=True)
    return largest


def polar(
    gradient: Shaped[Tensor, "..."], norm: Norm, dim: int
) -> tuple[Shaped[Tensor, "..."], Shaped[Tensor, "..."], Shaped[Tensor, "..."]]:
    """Clean pixel vectors, their unit directions, and their lengths [..., 1]; zero has direction zero.

    Dividing by the largest channel first keeps squares from overflowing, and makes the clipped L-infinity
    length the threshold to the last bit.
    """
    largest = _largest(gradient, dim).to(_wide(gradient.dtype))
    finite = largest < math.inf
    clean = torch.where(finite, gradient, 0.0).to(largest.dtype)
    largest = torch.where(finite, largest, 0.0)
    direction = clean / torch.where(largest > 0, largest, 1.0)
    if norm == "linf":
        return clean, direction, largest
    length = torch.linalg.vector_norm(direction, dim=dim, keepdim=True)
    return clean, direction / torch.where(length > 0, length, 1.0), largest * length


def nonzero_quantile(
    ordered: Shaped[Tensor, "..."], skipped: Shaped[Tensor, "..."], fraction: float
) -> Shaped[Tensor, "..."]:
    """The quantile of ascending numbers, without the ones that `skipped` marks, which come first."""
    first = skipped.sum()
    rank = first + (fraction * (len(ordered) - first - 1)).round().long()
    return ordered.gather(0, rank.clamp(0, len(ordered) - 1)[None])[0]


def sampled(length: Shaped[Tensor, "..."], rows: Rows | None = None) -> Shaped[Tensor, "..."]:
    """At most `_SAMPLE` evenly spaced entries, flattened; with `rows`, of the images of all processes."""
    flat = length.flatten()
    image = math.prod(length.shape[1:])
    first, total = (0, flat.numel()) if rows is None else (rows.first * image, rows.total * image)
    stride = -(-total // _SAMPLE)
    # An odd stride visits every column of an image whose width is a power of two.
    stride = stride if stride == 1 else stride | 1
    skipped = -first % stride
    own = flat[skipped::stride]
    if rows is None:
        return own
    return rows.sum(_placed(own, (first + skipped) // stride, -(-total // stride)))


def _placed(values: Tensor, first: int, total: int) -> Tensor:
    """The values as some of `total` rows; the others are zero."""
    everywhere = values.new_zeros(total, *values.shape[1:])
    everywhere[first : first + len(values)] = values
    return everywhere
