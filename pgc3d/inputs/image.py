"""An input image: validated, its background removed, and recentred in a square.

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
class FramedImage:
    """An image with its background removed, and the placement of its object in the prepared square."""

    cutout: Image.Image  # RGBA, straight alpha, not larger than WORKING_SIDE
    original: Size  # in the file, upright
    box: Box  # around the object in `cutout`
    shape: tuple[int, int]  # width and height of the box in the square
    size: int  # pixels of the square

    def place(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """The object's box of an image of the input's size, centred in a square of zeros."""
        square = Image.new(image.mode, (self.size, self.size))
        corner = ((self.size - self.shape[0]) // 2, (self.size - self.shape[1]) // 2)
        square.paste(image.crop(self.box).resize(self.shape, resample), corner)
        return square

    def png(self) -> bytes:
        """The prepared image of the object alone, a PNG file with alpha."""
        # LANCZOS premultiplies by itself
        return encode_png(self.place(self.cutout, Image.Resampling.LANCZOS))


def frame_image(
    path: Path, *, border: float = 0.2, matting: bool = True, size: int = 512, notify: Notify = ignore
) -> FramedImage:
    """Find the object of an image and its placement in the prepared square image of a run.

    Args:
        path: an image; its alpha is the object's mask, where it has one.
        border: fraction of the square's side that is margin along the object's longer side.
        matting: find the object with rembg where there is no alpha; otherwise the background must be plain.
        size: side of the square in pixels.
        notify: receives one line for each thing that was dropped or may be wrong.

    Raises:
        InputError: the file is no image, too large or damaged, or has no object in front of a background.
        WeightsNotFoundError: rembg's model is neither on the disk nor can it be downloaded.
    """
    decoded = decode_image(path, target=_working_size, notify=notify)
    cutout = drop_idle_alpha(decoded.image)
    if cutout.mode == "RGB":
        cutout = matte(cutout) if matting else cut_plain_background(cutout, path)
    cutout, box = find_object(cutout, path, notify)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = size * (1.0 - border) / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return FramedImage(cutout=cutout, original=decoded.original, box=box, shape=shape, size=size)


def _working_size(size: Size) -> Size:
    scale = min(1.0, WORKING_SIDE / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def load_prepared_image(path: Path) -> Float[Tensor, "S S 4"]:
    """A prepared image as RGBA in [0, 1], colours premultiplied: resizing and compositing are linear in it.

    Raises:
        InputError: the file is missing, or not what `FramedImage.png` makes.
    """
    cutout = decode_image(path).image
    if cutout.mode != "RGBA" or cutout.width != cutout.height:
        raise InputError(
            f"{path} must be a prepared square image with alpha, got {cutout.mode} of {cutout.size}"
        )
    values = torch.from_numpy(np.array(cutout)).float() / 255.0
    return torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], dim=-1)
