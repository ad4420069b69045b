"""Decoding of image files: to 8 bit sRGB for an image, to the stored numbers for a map.

Colours with 16 bits are reduced to the upper 8. Large images are shrunk in strips before any other step, so
that memory is hardly more than the decoder's buffer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from PIL import ExifTags, Image, ImageFile

from pgc3d.errors import InputError
from pgc3d.inputs import stored
from pgc3d.inputs.formats import Notify, open_image
from pgc3d.inputs.profiles import Convert, converter, grey_table, plain

OPAQUE = 250  # an alpha channel that is nowhere below has no object mask
_STRIP = 256  # rows, about
_GAP = 1.5  # times the target size: no smaller before the last, smooth step
_READY = frozenset({"L", "LA", "RGB", "RGBA", "CMYK"})  # modes that can be shrunk as they are
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

Size = tuple[int, int]  # width and height


def ignore(line: str) -> None:
    """Discard a line."""


def keep_size(size: Size) -> Size:
    """The size unchanged."""
    return size


@dataclass(frozen=True)
class Decoded:
    """A decoded image."""

    image: Image.Image  # RGB, or RGBA with straight alpha, sRGB, 8 bits a channel, upright
    original: Size  # in the file, upright


@dataclass(frozen=True)
class Levels:
    """The numbers of a map, upright, without colour management."""

    values: Shaped[np.ndarray, "*HWC"]
    top: float | None  # the number of white, None where numbers have no upper bound

    def rows(self, part: slice) -> Float[np.ndarray, "*hWC"]:
        """Rows as float32, in [0, 1] where `top` is known."""
        with np.errstate(over="ignore"):  # values on the object are checked later
            values = self.values[part].astype(np.float32)
        return values if self.top is None else values / np.float32(self.top)


def decode_image(
    path: Path, *, target: Callable[[Size], Size] = keep_size, notify: Notify = ignore
) -> Decoded:
    """The image in sRGB, upright.

    Args:
        path: an image.
        target: the size to shrink to as a function of the size in the file, symmetric in width and height.
        notify: receives one line for each thing that could not be interpreted.

    Raises:
        InputError: the file is no image, too large or damaged.
    """
    with open_image(path) as opened:
        size, target_size = opened.size, target(opened.size)
        # a JPEG is decoded at a smaller size
        drafted = opened.draft(None, target_size) if target_size != size else None
        width, height = drafted[1][2:] if drafted else size
        stored.repair_tiles(opened, path)
        expand, convert = _steps(opened, path, notify)
        keyed = _read_transparent_color(opened, path)
        opened.load()
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    image = convert(
        _shrink(opened if keyed is None else keyed, expand, (float(width), float(height)), target_size)
    )
    if orientation in _TURNS:
        image = image.transpose(_TURNS[orientation])
    return Decoded(image=image, original=(size[1], size[0]) if orientation in {5, 6, 7, 8} else size)


def drop_idle_alpha(image: Image.Image) -> Image.Image:
    """The image as RGB where its alpha is opaque everywhere, else unchanged."""
    idle = image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() >= OPAQUE
    return image.convert("RGB") if idle else image


def decode_levels(path: Path) -> Levels:
    """The numbers of an image as they are stored, upright: grey levels, or three channels; alpha is dropped.

    Raises:
        InputError: the file is no image, too large or damaged, or its colours are neither grey nor RGB.
    """
    with open_image(path) as image:
        stored.repair_tiles(image, path)
        low = stored.low_bytes(path) if stored.has_low_bytes(image) else None
        top, inverted = stored.top_level(image), stored.counts_from_white(image)
        grey = stored.holds_grey(image)
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        values = _numbers(image, path)
    del image  # which is as large again
    if low is not None:
        values, top = values.astype(np.uint16), 65535.0
        values <<= 8
        values |= low
    if values.ndim == 3:
        values = values[..., 0] if grey or values.shape[2] == 2 else values[..., :3]
    if inverted:
        values = values.dtype.type(top or 0) - values
    return Levels(_turned(values, orientation), top)


def _steps(image: ImageFile.ImageFile, path: Path, notify: Notify) -> tuple[Convert | None, Convert]:
    """Conversions of an open file: of strips before they are shrunk, and of the whole image afterwards."""
    transparent = stored.transparent_level(image)
    if image.mode in {"I", "F"}:
        raise InputError(
            f"an image must have 8 or 16 bits a channel without a sign, got 32 bits a channel or a sign in "
            f"{path}; scale its levels and save it as PNG"
        )
    if image.mode == "LAB":
        return converter(image, path, notify), plain
    if image.mode.startswith("I;16"):
        by_profile = grey_table(image)
        table = _grey_of_levels(image, by_profile)
        convert = converter(image, path, notify) if by_profile is None else plain
        return partial(_look_up, table=table, transparent=transparent), convert
    if isinstance(transparent, int):
        table = np.arange(256, dtype=np.uint8)
        return partial(_look_up, table=table, transparent=transparent), converter(image, path, notify)
    if stored.holds_grey(image):
        return lambda strip: strip.convert("LA"), converter(image, path, notify, grey=True)
    if image.mode in _READY:
        return None, converter(image, path, notify)
    goal = {"1": "L", "La": "LA", "P": "RGBA" if image.has_transparency_data else "RGB", "PA": "RGBA"}
    return lambda strip: strip.convert(goal.get(strip.mode, "RGB")), converter(image, path, notify)


def _grey_of_levels(
    image: ImageFile.ImageFile, by_profile: UInt8[np.ndarray, "65536"] | None
) -> UInt8[np.ndarray, "65536"]:
    """A table from the levels of a 16 bit image to 8 bit grey."""
    place = np.clip(np.arange(65536) / (stored.top_level(image) or 65535.0), 0.0, 1.0)
    place = 1.0 - place if stored.counts_from_white(image) else place
    if by_profile is None:
        return np.rint(place * 255.0).astype(np.uint8)
    greys: UInt8[np.ndarray, "65536"] = by_profile[np.rint(place * 65535.0).astype(np.int64)]
    return greys


def _look_up(
    strip: Image.Image, *, table: UInt8[np.ndarray, "N"], transparent: stored.Transparent
) -> Image.Image:
    """Grey levels with 8 bits, and the transparent level as alpha."""
    levels = np.asarray(strip.convert("L") if strip.mode == "1" else strip)
    grey = Image.fromarray(table[levels])
    if transparent is not None:
        grey = Image.merge(
            "LA", (grey, Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
        )
    return grey


def _read_transparent_color(image: ImageFile.ImageFile, path: Path) -> Image.Image | None:
    """The image as RGBA where the file declares a transparent colour, else None."""
    color = stored.transparent_level(image)
    if not isinstance(color, tuple):
        return None
    low = stored.low_bytes(path) if stored.has_low_bytes(image) else None
    values = np.asarray(image)
    if low is None:
        alpha = (values == np.array(color)).all(axis=-1)
    else:
        high = np.array(color) >> 8
        alpha = ((values == high) & (low == np.array(color) & 255)).all(axis=-1)
    channels = (*image.split(), Image.fromarray(np.where(alpha, 0, 255).astype(np.uint8)))
    return Image.merge("RGBA", channels)


def _shrink(
    image: Image.Image, expand: Convert | None, extent: tuple[float, float], target_size: Size
) -> Image.Image:
    """The image at a target size, in a mode of `_READY`.

    A box filter in strips first, then a smooth one, each with colours weighted by alpha.

    Args:
        image: as decoded.
        expand: converts a strip to such a mode; None where the image is in one.
        extent: width and height; the last pixels of a JPEG that is decoded smaller may lie half beyond it.
        target_size: not larger than the image.
    """
    factor = max(1, int(min(extent[0] / target_size[0], extent[1] / target_size[1]) / _GAP))
    small = _expand_strips(image, expand, factor)
    box = (0.0, 0.0, extent[0] / factor, extent[1] / factor)
    if small.size == target_size and box[2] == target_size[0] and box[3] == target_size[1]:
        return small
    return small.resize(target_size, Image.Resampling.BICUBIC, box=box)


def _expand_strips(image: Image.Image, expand: Convert | None, factor: int) -> Image.Image:
    if expand is None and (factor == 1 or "A" not in image.mode):  # alpha is multiplied in, in a copy
        return image.reduce(factor) if factor > 1 else image
    rows = max(1, _STRIP // factor) * factor
    small: Image.Image | None = None
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        strip = strip if expand is None else expand(strip)
        strip = strip.reduce(factor) if factor > 1 else strip
        if small is None:
            small = Image.new(strip.mode, (strip.width, -(-image.height // factor)))
        small.paste(strip, (0, top // factor))
    assert small is not None  # there is a row
    return small


def _numbers(image: Image.Image, path: Path) -> Shaped[np.ndarray, "H W *C"]:
    """The numbers of a decoded image with one, two, three or four channels."""
    goal = {"1": "L", "La": "LA", "P": "RGB", "PA": "RGB", "YCbCr": "RGB", "RGBX": "RGB"}
    if image.mode in goal:
        image.info.pop("transparency", None)
        image = image.convert(goal[image.mode])
    if image.mode in {"CMYK", "LAB", "HSV"}:
        raise InputError(
            f"a map must hold grey levels or RGB, got mode {image.mode} in {path}; save it as PNG"
        )
    return np.array(image)


def _turned(values: Shaped[np.ndarray, "H W *C"], orientation: int) -> Shaped[np.ndarray, "h w *C"]:
    """Upright, by the orientation in a file's metadata."""
    if orientation in {5, 7}:
        values = values.swapaxes(0, 1)
    quarters = {3: 2, 6: -1, 7: 2, 8: 1}.get(orientation, 0)
    flipped = {2: np.fliplr, 4: np.flipud}.get(orientation)
    return flipped(values) if flipped else np.rot90(values, quarters)
