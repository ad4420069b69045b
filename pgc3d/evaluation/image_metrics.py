"""How close pictures are: PSNR, SSIM, overlap of the outlines, angle between normals. One value a picture."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d, normalize

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels

Images = Float[Tensor, "B H W C"]


def psnr(first: Images, second: Images) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1]; infinite where they are equal."""
    error = (first.double() - second.double()).square().mean((1, 2, 3))
    return -10.0 * error.log10()


def ssim(first: Images, second: Images) -> Float[Tensor, " B"]:
    """Structural similarity of pictures in [0, 1], at most 1 (Wang et al. 2004, equation 13).

    Gaussian window of 11 pixels with deviation 1.5, K1 = 0.01, K2 = 0.03, moments weighted without Bessel's
    correction; the mean over all windows inside the picture and over the channels, in float64.

    Raises:
        ValueError: a side is shorter than the window.
    """
    if min(first.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM needs pictures of at least {WINDOW} pixels, got {tuple(first.shape[1:3])}")
    x, y = (images.double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for images in (first, second))
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).reshape(len(first), -1).mean(1)


def _window(images: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 1 h w"]:
    """Gaussian means of all windows that fit in."""
    offset = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weight = torch.exp(-0.5 * (offset / DEVIATION) ** 2)
    weight = weight / weight.sum()
    return conv2d(conv2d(images, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


def mask_iou(first: Float[Tensor, "B H W 1"], second: Float[Tensor, "B H W 1"]) -> Float[Tensor, " B"]:
    """Intersection over union of two outlines, covered where alpha is above 1/2; 1 where both are empty."""
    a, b = (first > 0.5).flatten(1), (second > 0.5).flatten(1)
    union = (a | b).sum(1).double()
    return torch.where(union > 0, (a & b).sum(1) / union.clamp(min=1), 1.0)


def normal_angle(
    first: Float[Tensor, "B H W 3"],
    second: Float[Tensor, "B H W 3"],
    first_alpha: Float[Tensor, "B H W 1"],
    second_alpha: Float[Tensor, "B H W 1"],
) -> Float[Tensor, ""]:
    """Mean angle in degrees between encoded normals, over the pixels that both cover whole; NaN if none.

    One mean over all pictures, since a view from which little overlaps says little.
    """
    both = ((first_alpha > 0.999) & (second_alpha > 0.999))[..., 0]
    a, b = (normalize(2 * normals[both].double() - 1, dim=-1) for normals in (first, second))
    # from the chord, which is exact for small angles where the cosine is not
    return (2 * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1.0))).mean().rad2deg()
