"""A user's own light: an image of all directions, in latitude and longitude."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.inputs.decode import Size, decode_image, drop_idle_alpha
from pgc3d.rendering.environment import HEIGHT, WIDTH
from pgc3d.rendering.shading import srgb_to_linear

LEAST = 1e-4  # of the mean of a channel: less is no light that could be in white balance


def load_light(path: Path) -> Float[Tensor, "H W 3"]:
    """The linear radiance [HEIGHT, WIDTH, 3] of an sRGB image whose middle is +z and whose top is +y.

    What is brighter than white in the scene is white in such an image, so that its highlights are dim.

    Raises:
        InputError: the file is no image, too large or damaged, not twice as wide as high, or not opaque, or a
            channel is dark.
    """

    def working_size(size_in_file: Size) -> Size:
        """A size of at least four texels for one of the light, which are averaged in linear light."""
        scale = min(1.0, 4 * HEIGHT / min(size_in_file))
        return max(1, round(size_in_file[0] * scale)), max(1, round(size_in_file[1] * scale))

    decoded = decode_image(path, target=working_size)
    image, (width, height) = drop_idle_alpha(decoded.image), decoded.original
    if image.mode != "RGB":
        raise InputError(f"a light must be opaque, got {path} with an alpha channel; save it without one")
    if not 1.9 <= width / height <= 2.1:
        raise InputError(
            f"a light must be an image in latitude and longitude, twice as wide as high, got {width} x "
            f"{height} in {path}"
        )
    image = image.resize((4 * WIDTH, 4 * HEIGHT), Image.Resampling.BILINEAR)
    linear = srgb_to_linear(torch.from_numpy(np.array(image)).float() / 255)
    light: Tensor = linear.reshape(HEIGHT, 4, WIDTH, 4, 3).mean((1, 3))
    if bool((light.mean((0, 1)) < LEAST).any()):
        raise InputError(f"a light must have red, green and blue in it, but {path} lacks one; brighten it")
    return light
