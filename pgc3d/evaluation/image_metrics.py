"""Image metrics: SSIM, silhouette IoU and normal angle of two images, and statistics of one image."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, normalize

WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels

Images = Float[Tensor, "B H W C"]


def ssim(first: Images, second: Images) -> Float[Tensor, " B"]:
    """Structural similarity of each pair of images in [0, 1], at most 1 (Wang et al. 2004, equation 13).

    Gaussian window of 11 pixels with deviation 1.5, K1 = 0.01, K2 = 0.03, moments weighted without Bessel's
    correction; the mean over all windows inside the image and over the channels, in float64.

    Raises:
        ValueError: a side is shorter than the window.
    """
    if min(first.shape[1:3]) < WINDOW:
        raise ValueError(f"images must have at least {WINDOW} pixels a side, got {tuple(first.shape[1:3])}")
    x, y = (images.double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for images in (first, second))
    mean_x, mean_y = _window(x), _window(y)
    variance_x, variance_y = _window(x * x) - mean_x**2, _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).reshape(len(first), -1).mean(1)


def _window(images: Float[Tensor, "N 1 H W"]) -> Float[Tensor, "N 1 h w"]:
    """Gaussian means of all windows that lie inside the image."""
    offset = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weight = torch.exp(-0.5 * (offset / DEVIATION) ** 2)
    weight = weight / weight.sum()
    return conv2d(conv2d(images, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))


def mask_iou(first: Float[Tensor, "B H W 1"], second: Float[Tensor, "B H W 1"]) -> Float[Tensor, " B"]:
    """Intersection over union of two silhouettes, alpha > 1/2, for each image; 1 where both are empty."""
    a, b = (first > 0.5).flatten(1), (second > 0.5).flatten(1)
    union = (a | b).sum(1).double()
    return torch.where(union > 0, (a & b).sum(1) / union.clamp(min=1), 1.0)


def normal_angle(
    first: Float[Tensor, "B H W 3"],
    second: Float[Tensor, "B H W 3"],
    first_alpha: Float[Tensor, "B H W 1"],
    second_alpha: Float[Tensor, "B H W 1"],
) -> Float[Tensor, ""]:
    """Mean angle in degrees between encoded normals, over the pixels that both cover fully; NaN if none.

    One mean over the pixels of all images, so that a view with little overlap has little weight.

    Args:
        first: normals as (n + 1) / 2.
        second: likewise.
        first_alpha: coverage of the first images; only pixels of coverage 1 in both enter.
        second_alpha: coverage of the second ones.
    """
    both = ((first_alpha > 0.999) & (second_alpha > 0.999))[..., 0]
    a, b = (normalize(2 * normals[both].double() - 1, dim=-1) for normals in (first, second))
    # from the chord, which is exact for small angles where the cosine is not
    return (2 * torch.asin(((a - b).norm(dim=-1) / 2).clamp(max=1.0))).mean().rad2deg()


COVERED = 0.999
SATURATED, DARK = 0.9, 0.1  # HSV


def speckle(
    image: Float[Tensor, "B H W 3"], mask: Float[Tensor, "B H W 1"] | None = None
) -> Float[Tensor, ""]:
    """High-frequency energy: mean absolute Laplacian over the 4-neighbourhood, times 1000."""
    center = image[:, 1:-1, 1:-1]
    neighbours = image[:, :-2, 1:-1] + image[:, 2:, 1:-1] + image[:, 1:-1, :-2] + image[:, 1:-1, 2:]
    inside = _covered(image, mask)
    inside = inside[:, 1:-1, 1:-1] & _cross(inside)
    return 1000 * (neighbours - 4 * center).abs().mean(-1)[inside].mean()


def total_variation(
    image: Float[Tensor, "B H W 3"], mask: Float[Tensor, "B H W 1"] | None = None
) -> Float[Tensor, ""]:
    """Mean absolute difference to the pixel at the right and to the one below, times 1000."""
    inside = _covered(image, mask)
    right = (image[:, :, 1:] - image[:, :, :-1]).abs().mean(-1)[inside[:, :, 1:] & inside[:, :, :-1]]
    below = (image[:, 1:] - image[:, :-1]).abs().mean(-1)[inside[:, 1:] & inside[:, :-1]]
    return 1000 * torch.cat([right, below]).mean()


def saturated_fraction(
    image: Float[Tensor, "B H W 3"], mask: Float[Tensor, "B H W 1"] | None = None
) -> Float[Tensor, ""]:
    """Fraction of the pixels with an HSV saturation of at least 0.9 and a value of at least 0.1."""
    inside = _covered(image, mask)
    value, low = image.amax(-1), image.amin(-1)
    loud = (value - low >= SATURATED * value) & (value >= DARK)
    return loud[inside].float().mean()


def statistics(
    image: Float[Tensor, "B H W 3"], mask: Float[Tensor, "B H W 1"] | None = None
) -> dict[str, float]:
    """Speckle, total variation and saturated fraction by name; synchronises with the device."""
    measures = (speckle, total_variation, saturated_fraction)
    return {measure.__name__: measure(image, mask).item() for measure in measures}


def _covered(image: Tensor, mask: Tensor | None) -> Bool[Tensor, "B H W"]:
    if mask is None:
        return torch.ones(image.shape[:3], dtype=torch.bool, device=image.device)
    return mask[..., 0] > COVERED


def _cross(inside: Bool[Tensor, "B H W"]) -> Bool[Tensor, "B h w"]:
    """Whether the four neighbours of each inner pixel are covered."""
    above, below = inside[:, :-2, 1:-1], inside[:, 2:, 1:-1]
    return above & below & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:]
