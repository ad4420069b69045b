"""What lies behind the object in a view: a colour, a random one, or a picture.

Representations render over one colour b. A picture p is put there afterwards: with the antialiased coverage,
the same view over the picture is

    color + (1 - alpha) (p - b)

so that what a guidance says about the background reaches no parameter, and what it says about the outline
is weighed against the picture.
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
    """A picture that covers every view, whatever its resolution."""

    image: Float[Tensor, "S S 3"]  # sRGB, on the device of the views
    color: Color  # its mean, by which prompts name the background


Background: TypeAlias = Color | Backdrop | None  # None is a new random colour each time


def draw_backgrounds(
    backgrounds: Sequence[Background], batch: int, generator: torch.Generator, device: torch.device
) -> tuple[Float[Tensor, "B 3"], list[Backdrop | None]]:
    """One of the backgrounds for every view: the colours to render over, and the pictures to put there."""
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
    """Put each view's picture where its background is; None leaves a view as it is."""
    shown = [drop for drop in backdrops if drop is not None]
    if not shown:
        return rendering
    side = rendering.color.shape[1]
    scaled = {drop: resize(drop.image[None], side)[0] for drop in set(shown)}
    pictures = torch.stack(
        [
            scaled[drop] if drop is not None else color.expand(side, side, 3)
            for drop, color in zip(backdrops, rendering.background, strict=True)
        ]
    )
    color = rendering.color + (1.0 - rendering.alpha) * (pictures - rendering.background[:, None, None])
    return replace(rendering, color=clamp_overshoot(color))
