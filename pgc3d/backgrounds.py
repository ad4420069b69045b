"""What lies behind the object in a view: a colour, a random one, or a picture.

Representations render over one colour b. A picture p is put there afterwards: with the antialiased coverage,
the same view over the picture is

    color + (1 - alpha) (p - b)

so that what a guidance says about the background reaches no parameter, and what it says about the outline
is weighed against the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from pgc3d.diffusion.latent import resize
from pgc3d.errors import InputError
from pgc3d.inputs.decode import Size, decode_image, drop_idle_alpha, ignore
from pgc3d.inputs.formats import Say
from pgc3d.inputs.image import encode_png
from pgc3d.rendering.antialias import clamp_overshoot
from pgc3d.types import Rendering

Color: TypeAlias = tuple[float, float, float]  # sRGB


@dataclass(frozen=True, eq=False)
class Backdrop:
    """A picture that covers every view, whatever its resolution."""

    picture: Float[Tensor, "S S 3"]  # sRGB, on the device of the views
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
    scaled = {drop: resize(drop.picture[None], side)[0] for drop in set(shown)}
    pictures = torch.stack(
        [
            scaled[drop] if drop is not None else color.expand(side, side, 3)
            for drop, color in zip(backdrops, rendering.background, strict=True)
        ]
    )
    color = rendering.color + (1.0 - rendering.alpha) * (pictures - rendering.background[:, None, None])
    return replace(rendering, color=clamp_overshoot(color))


def prepare_backdrop(path: Path, size: int, say: Say = ignore) -> bytes:
    """The middle square of a picture, scaled to `size` pixels, as a PNG file.

    Args:
        path: a picture.
        size: side of the square in pixels.
        say: takes lines about what could not be understood.

    Raises:
        InputError: the file is no picture, too large or damaged, or can be seen through.
    """

    def twice(found: Size) -> Size:
        """Enough for a square of `size` pixels."""
        scale = min(1.0, 2 * size / min(found))
        return max(1, round(found[0] * scale)), max(1, round(found[1] * scale))

    picture = drop_idle_alpha(decode_image(path, target=twice, say=say).image)
    if picture.mode != "RGB":
        raise InputError(f"a background must be opaque, {path} is not; save it without an alpha channel")
    return encode_png(ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS))


def load_backdrop(path: Path, device: torch.device) -> Backdrop:
    """A prepared picture.

    Raises:
        InputError: the file is missing, or not what `prepare_backdrop` makes.
    """
    picture = drop_idle_alpha(decode_image(path).image)
    if picture.mode != "RGB" or picture.width != picture.height:
        raise InputError(
            f"{path} must be a prepared square picture without alpha, got {picture.mode} of {picture.size}"
        )
    values = torch.from_numpy(np.array(picture)).float() / 255.0
    red, green, blue = values.mean(dim=(0, 1)).tolist()
    return Backdrop(picture=values.to(device), color=(red, green, blue))
