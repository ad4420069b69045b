"""Perp-Neg (arXiv 2304.04968): other views' prompts as negative prompts, against objects with several fronts.

A camera between two of the views front, side and back gets the mixture of both texts as its prompt, and the
texts of the views that it must not show as negative prompts. Weights and mixtures are those of threestudio.
Where the view prompts have more directions than these, as those of the bundled prior, each camera keeps its
own prompt: a mixture stands for texts that are missing, and is none that such a model was trained with.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pgc3d.errors import ConfigError
from pgc3d.prompts import view_index, view_prompts
from pgc3d.types import Views
from pgc3d.view_prompts import ViewPromptConfig

# (a, b, c) of the weights -(a exp(-b r) + c), by the pair of views and the negative one
FRONT_OR_SIDE = (4.0, 0.5, -2.426)
SIDE_OF_BACK = (1.0, 0.5, -0.606)
FRONT_OF_BACK = (1.0, 0.5, 0.967)


@dataclass(frozen=True)
class ViewMixture:
    """The prompt and the two negative prompts of each image, as indices into `view_prompts`."""

    first: Int[Tensor, " B"]
    second: Int[Tensor, " B"]
    fraction: Float[Tensor, " B"]  # of the first text in the prompt, in [0, 1]
    negatives: Int[Tensor, "B 2"]
    weights: Float[Tensor, "B 2"]  # of the negative prompts, at most 0

    def tensors(self) -> tuple[Shaped[Tensor, "B *_"], ...]:
        """The fields, each with a row for each image."""
        return tuple(vars(self).values())


def quarter(
    azimuth: Float[Tensor, " B"],
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B 2"], Float[Tensor, " B"]]:
    """How far each camera has turned through its quarter.

    Args:
        azimuth: radians, of any range.

    Returns:
        r, 1 at the front or side with which the quarter begins and 0 at its end; the weights of the negative
        prompts (front and side before the side, side and front behind it); and 1 behind the side, else 0.
    """
    quarters = _signed(azimuth).abs() / (math.pi / 2)  # in [0, 2]
    behind = (quarters >= 1).to(quarters.dtype)
    r = 1 + behind - quarters

    def weight(curve: tuple[float, float, float], along: Tensor) -> Tensor:
        a, b, c = curve
        return -(a * torch.exp(-b * along) + c)

    before = torch.stack([weight(FRONT_OR_SIDE, r), weight(FRONT_OR_SIDE, 1 - r)], dim=1)
    after = torch.stack([weight(SIDE_OF_BACK, r), weight(FRONT_OF_BACK, r)], dim=1)
    return r, torch.where(behind[:, None] > 0, after, before).clamp_max(0.0), behind


def mixture(views: Views, config: ViewPromptConfig, device: torch.device, scale: float = 1.0) -> ViewMixture:
    """The prompts of views, computed on the device.

    Texts are those of the camera's own elevation and background, and of the side that it is on.

    Args:
        views: cameras and backgrounds.
        config: of the view prompts.
        device: of the model.
        scale: factor of the weights.
    """
    azimuth, elevation = views.cameras.azimuth.to(device), views.cameras.elevation.to(device)
    background = views.background.to(device)
    side_angle = torch.where(_signed(azimuth) < 0, -math.pi / 2, math.pi / 2).to(azimuth.dtype)
    front, side, back = (
        view_index(angle, elevation, background, config)
        for angle in (torch.zeros_like(azimuth), side_angle, torch.full_like(azimuth, math.pi))
    )
    r, weights, behind = quarter(azimuth)
    first, second = torch.where(behind > 0, side, front), torch.where(behind > 0, back, side)
    negatives = torch.stack([first, torch.where(behind > 0, front, side)], dim=1)
    if has_more_directions(config):
        first = second = view_index(azimuth, elevation, background, config)
    return ViewMixture(first, second, r, negatives, scale * weights)


def _signed(azimuth: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """The same direction in [-pi, pi), negative on the left of the front."""
    return torch.remainder(azimuth + math.pi, 2 * math.pi) - math.pi


def has_more_directions(config: ViewPromptConfig) -> bool:
    """Whether the prompts of cameras differ in more directions than front, back and the two sides."""
    step = config.azimuth_step_degrees
    return (360.0 / step if step > 0 else len(config.azimuth_words)) > 4


def require_views(config: ViewPromptConfig, model: str) -> None:
    """Raise ConfigError unless front, side and back have prompts of their own."""
    azimuth = torch.tensor([0.0, math.pi / 2, math.pi])
    level, white = torch.zeros(3), torch.ones(3, 3)
    index = view_index(azimuth, level, white, config).tolist()
    if len(set(index)) < 3:
        texts = [view_prompts("PROMPT", config)[number] for number in index]
        raise ConfigError(
            f"perp_neg must have different prompts for front, side and back, got "
            f"{', '.join(map(repr, texts))} of {model}; set models.{model}.view_prompts, or perp_neg=0"
        )
