"""An input image: read with distrust, freed of its background, and recentred in a square.

Everything becomes 8 bit sRGB with straight alpha on the way; all metadata but the colour profile and the
orientation is dropped.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.images import encode_png
from pgc3d.inputs.cutout import Box, cut_plain_background, find_object, matte
from pgc3d.inputs.decode import Size, decode_image, drop_idle_alpha, ignore
from pgc3d.inputs.formats import Notify

WORKING_SIDE = 2048  # larger images are shrunk before any pixel is processed


@dataclass(frozen=True)
class FramedPhoto:
    """An image with its object cut out, and where that goes in the prepared square."""

    picture: Image.Image  # RGBA, straight alpha, not larger than WORKING_SIDE
    original: Size  # in the file, upright
    box: Box  # around the object in `picture`
    shape: tuple[int, int]  # width and height of the box in the square
    size: int  # pixels of the square

    def place(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """The object's part of `image`, which has the input's size, in the middle of a square of zeros."""
        square = Image.new(image.mode, (self.size, self.size))
        corner = ((self.size - self.shape[0]) // 2, (self.size - self.shape[1]) // 2)
        square.paste(image.crop(self.box).resize(self.shape, resample), corner)
        return square

    def png(self) -> bytes:
        """The prepared image of the object alone, a PNG file with alpha."""
        # LANCZOS premultiplies by itself
        return encode_png(self.place(self.picture, Image.Resampling.LANCZOS))


def frame_photo(
    path: Path, *, border: float = 0.2, matting: bool = True, size: int = 512, notify: Notify = ignore
) -> FramedPhoto:
    """Find the object of an image and its place in the square image that a run works with.

    Args:
        path: an image; its alpha is the object's mask, where it has one.
        border: fraction of the square that is left free beside the object's longer side.
        matting: find the object with rembg where there is no alpha; else the background must be plain.
        size: side of the square in pixels.
        notify: receives one line for each thing that was left out or may be wrong.

    Raises:
        InputError: the file is no image, too large or damaged, or shows no object before a background.
        WeightsNotFoundError: rembg's model is not on this disk and cannot be fetched.
    """
    decoded = decode_image(path, target=_working_size, notify=notify)
    picture = drop_idle_alpha(decoded.image)
    if picture.mode == "RGB":
        picture = matte(picture) if matting else cut_plain_background(picture, path)
    picture, box = find_object(picture, path, notify)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = size * (1.0 - border) / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return FramedPhoto(picture=picture, original=decoded.original, box=box, shape=shape, size=size)


def _working_size(size: Size) -> Size:
    scale = min(1.0, WORKING_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def load_photo(path: Path) -> Float[Tensor, "S S 4"]:
    """A prepared image as RGBA in [0, 1], colours premultiplied: resizing and compositing are linear in it.

    Raises:
        InputError: the file is missing, or not what `FramedPhoto.png` makes.
    """
    picture = decode_image(path).image
    if picture.mode != "RGBA" or picture.width != picture.height:
        raise InputError(
            f"{path} must be a prepared square picture with alpha, got {picture.mode} of {picture.size}"
        )
    values = torch.from_numpy(np.array(picture)).float() / 255.0
    return torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], dim=-1)
