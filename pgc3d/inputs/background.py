"""A background image that a user gives, prepared for a run and loaded from its folder."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from pgc3d.backgrounds import Backdrop
from pgc3d.errors import InputError
from pgc3d.images import encode_png
from pgc3d.inputs.decode import Size, decode_image, drop_idle_alpha, ignore
from pgc3d.inputs.formats import Notify


def prepare_backdrop(path: Path, size: int, notify: Notify = ignore) -> bytes:
    """The middle square of a picture, scaled to `size` pixels, as a PNG file.

    Args:
        path: a picture.
        size: side of the square in pixels.
        notify: takes lines about what could not be understood.

    Raises:
        InputError: the file is no picture, too large or damaged, or can be seen through.
    """

    def twice(found: Size) -> Size:
        """Enough for a square of `size` pixels."""
        scale = min(1.0, 2 * size / min(found))
        return max(1, round(found[0] * scale)), max(1, round(found[1] * scale))

    picture = drop_idle_alpha(decode_image(path, target=twice, notify=notify).image)
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
    return Backdrop(image=values.to(device), color=(red, green, blue))
