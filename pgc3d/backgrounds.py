"""The background of a view: a colour, a random one, or an image.

Representations render over one colour b. A background image p is composited afterwards: with the antialiased
coverage alpha, the same view over the image is

    color + (1 - alpha) (p - b)

A gradient on a pixel without coverage therefore reaches no parameter, and the gradient with respect to alpha,
on the silhouette, is that of the composite over p.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.images import resize
from pgc3d.rendering.antialias import clamp_overshoot
from pgc3d.types import Rendering

Color: TypeAlias = tuple[float, float, float]  # sRGB


@dataclass(frozen=True, eq=False)
class Backdrop:
    """A background image; it fills the whole view at every resolution."""

    image: Float[Tensor, "S S 3"]  # sRGB in [0, 1], on the device of the views
    color: Color  # its mean, by which prompts name the background


Background: TypeAlias = Color | Backdrop | None  # None is a new random colour each time


def draw_backgrounds(
    backgrounds: Sequence[Background], batch: int, generator: torch.Generator, device: torch.device
) -> tuple[Float[Tensor, "B 3"], list[Backdrop | None]]:
    """One of the backgrounds for each of `batch` views, drawn uniformly.

    Args:
        backgrounds: what is drawn from; at least one.
        batch: number of views B.
        generator: on the CPU.
        device: of the colours that are returned.

    Returns:
        The colours to render over, sRGB in [0, 1], and the background image of each view or None.
    """
    chosen = torch.randint(len(backgrounds), (batch,), generator=generator)
    unknown = (-1.0, -1.0, -1.0)
    colors = [item.color if isinstance(item, Backdrop) else item or unknown for item in backgrounds]
    drawn = torch.tensor(colors)[chosen]
    if None in backgrounds:
        drawn = torch.where(drawn < 0, torch.rand(batch, 3, generator=generator), drawn)
    items = [backgrounds[index] for index in chosen.tolist()]
    backdrops = [item if isinstance(item, Backdrop) else None for item in items]
    return drawn.to(device, non_blocking=True), backdrops


def put_behind(rendering: Rendering, backdrops: Sequence[Backdrop | None]) -> Rendering:
    """The rendering with each view's background image composited behind it; None leaves a view as it is."""
    used = {drop for drop in backdrops if drop is not None}
    if not used:
        return rendering
    side = rendering.color.shape[1]
    scaled = {drop: resize(drop.image[None], side)[0] for drop in used}
    images = torch.stack(
        [
            scaled[drop] if drop is not None else color.expand(side, side, 3)
            for drop, color in zip(backdrops, rendering.background, strict=True)
        ]
    )
    color = rendering.color + (1.0 - rendering.alpha) * (images - rendering.background[:, None, None])
    return replace(rendering, color=clamp_overshoot(color))
