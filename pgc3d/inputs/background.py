"""Background and style image of a run: prepared from the user's file, and loaded from the run directory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from pgc3d.backgrounds import Backdrop
from pgc3d.errors import InputError
from pgc3d.images import encode_png
from pgc3d.inputs.decode import Size, decode_image, drop_idle_alpha, ignore
from pgc3d.inputs.formats import Notify


def prepare_backdrop(path: Path, size: int, notify: Notify = ignore, *, what: str = "a background") -> bytes:
    """The central square of an image, scaled to `size` pixels, as a PNG file.

    Args:
        path: an image.
        size: side of the square in pixels.
        notify: receives one line for each thing that could not be interpreted.
        what: the image is, for messages.

    Raises:
        InputError: the file is no image, too large or damaged, or not opaque.
    """

    def working_size(size_in_file: Size) -> Size:
        """A size whose shorter side is at most twice `size`."""
        scale = min(1.0, 2 * size / min(size_in_file))
        return max(1, round(size_in_file[0] * scale)), max(1, round(size_in_file[1] * scale))

    image = drop_idle_alpha(decode_image(path, target=working_size, notify=notify).image)
    if image.mode != "RGB":
        raise InputError(
            f"{what} must be opaque, got {path} with transparent pixels; save it without an alpha channel"
        )
    return encode_png(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))


def load_backdrop(path: Path, device: torch.device) -> Backdrop:
    """The prepared background on a device, with its mean colour.

    Raises:
        InputError: the file is missing, or not what `prepare_backdrop` makes.
    """
    image = drop_idle_alpha(decode_image(path).image)
    if image.mode != "RGB" or image.width != image.height:
        raise InputError(
            f"{path} must be a prepared square image without alpha, got {image.mode} of {image.size}"
        )
    values = torch.from_numpy(np.array(image)).float() / 255.0
    red, green, blue = values.mean(dim=(0, 1)).tolist()
    return Backdrop(image=values.to(device), color=(red, green, blue))


def style_loader(path: Path | None) -> Callable[[], Float[Tensor, "S S 3"]] | None:
    """A function that loads the prepared style image, sRGB in [0, 1] on the CPU; None where there is none."""
    return None if path is None else lambda: load_backdrop(path, torch.device("cpu")).image
