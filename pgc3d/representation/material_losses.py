"""Regularisers of a material."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.representation.fields import ColorField
from pgc3d.types import Step

POINTS = 4096  # of a step
REACH = 0.01  # standard deviation of the distance between compared points, in world units


def field_smoothness(field: ColorField, points: Float[Tensor, "P 3"], step: Step) -> Float[Tensor, ""]:
    """Mean absolute difference of the base colours at points and next to them.

    Munkberg et al. 2022 (nvdiffrec), section 3: the prior on the gradient of the diffuse texture.
    """
    jitter = REACH * torch.randn(points.shape, generator=step.generator("smoothness"))
    near = points + jitter.to(points, non_blocking=True)
    both: Tensor = field(torch.cat([points, near])).base_color
    first, second = both.chunk(2)
    return (first - second).abs().mean()


def image_smoothness(
    images: Sequence[tuple[Float[Tensor, "S S C"], Float[Tensor, "S S"]]],
) -> Float[Tensor, ""]:
    """Mean absolute difference of the base colours of neighbouring texels, by the weight of both."""
    total, weights = images[0][0].new_zeros(()), images[0][0].new_zeros(())
    for image, weight in images:
        for axis in (0, 1):
            size = len(image) - 1
            pair = weight.narrow(axis, 0, size) * weight.narrow(axis, 1, size)
            total = total + (image[..., :3].diff(dim=axis).abs().mean(-1) * pair).sum()
            weights = weights + pair.sum()
    return total / weights


def some_points(points: Float[Tensor, "V 3"], step: Step, count: int = POINTS) -> Float[Tensor, "P 3"]:
    """Some of the points, chosen at random, detached, without a synchronisation of host and device."""
    chosen = torch.randint(len(points), (count,), generator=step.generator("smoothness points"))
    return points.detach().index_select(0, chosen.to(points.device, non_blocking=True))
