"""Images as tensors, bytes and files: sRGB in [0, 1], channel last."""

import io

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor


def to_bytes(images: Float[Tensor, "*N C"]) -> UInt8[Tensor, "*N C"]:
    """Images or colours in [0, 1] as 8-bit ones on the CPU, clamped, rounded; non-finite values become 0."""
    finite = torch.nan_to_num(images.detach(), nan=0.0, posinf=0.0, neginf=0.0)
    return (finite.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def encode_png(image: UInt8[Tensor, "H W C"] | UInt8[Tensor, "H W"] | Image.Image) -> bytes:
    """The content of a PNG file of an image."""
    pillow = image if isinstance(image, Image.Image) else Image.fromarray(image.cpu().numpy())
    stream = io.BytesIO()
    pillow.save(stream, format="PNG")
    return stream.getvalue()


def resize(image: Float[Tensor, "B H W C"], resolution: int) -> Float[Tensor, "B r r C"]:
    """Images of side `resolution`, resized bilinearly.

    The filter is widened where the images shrink (antialiasing), so that every input pixel has a gradient.
    """
    if image.shape[1] == image.shape[2] == resolution:
        return image
    shrinks = max(image.shape[1:3]) > resolution
    resized = torch.nn.functional.interpolate(
        image.permute(0, 3, 1, 2), size=(resolution, resolution), mode="bilinear", antialias=shrinks
    )
    return resized.permute(0, 2, 3, 1)


def psnr(
    first: Float[Tensor, "B H W C"],
    second: Float[Tensor, "B H W C"],
    mask: Bool[Tensor, "B H W 1"] | None = None,
) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio of each pair of images, in dB and float64; infinite where they are equal.

    Args:
        first: images in [0, 1].
        second: images in [0, 1].
        mask: the pixels that count, all when None; an image without any has NaN.
    """
    error = (first.double() - second.double()).square()
    if mask is None:
        return -10.0 * error.mean((1, 2, 3)).log10()
    inside = mask.expand_as(error)
    return -10.0 * (torch.where(inside, error, 0.0).sum((1, 2, 3)) / inside.sum((1, 2, 3))).log10()
