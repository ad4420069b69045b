"""Numbers that tell how noisy and how loud pictures are; sRGB in [0, 1], channel last.

They need no reference. Noise on a plain surface raises speckle and variation, and so does real detail: they
compare results of the same prompt. With a mask only pixels count whose neighbours are all covered.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
    """Share of the pixels with an HSV saturation of at least 0.9 and a value of at least 0.1."""
    inside = _covered(image, mask)
    value, low = image.amax(-1), image.amin(-1)
    loud = (value - low >= SATURATED * value) & (value >= DARK)
    return loud[inside].float().mean()


def statistics(
    image: Float[Tensor, "B H W 3"], mask: Float[Tensor, "B H W 1"] | None = None
) -> dict[str, float]:
    """All of them by name; waits for the device."""
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
