"""Storage of an image file's numbers, where the decoder (Pillow) does not expose or apply it.

Levels that end below 65535 or are inverted, a transparent level, the low bytes of 16 bit colours, and planar
channels.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ImageFile, TiffImagePlugin

from pgc3d.errors import InputError
from pgc3d.inputs.formats import open_image

BITS, PHOTOMETRIC, COMPRESSION, SAMPLES, PLANAR = 258, 262, 259, 277, 284  # TIFF tags
WHITE_IS_ZERO, NOT_COMPRESSED, APART = 0, 1, 2  # their values

Transparent = int | tuple[int, int, int] | None


def top_level(image: ImageFile.ImageFile) -> float | None:
    """The number of white in an image; None where numbers have no upper bound."""
    if image.mode in {"I", "F"}:
        return None
    if not image.mode.startswith("I;16"):
        return 255.0
    return float(2 ** max(_tags(image).get(BITS, (16,))) - 1)


def counts_from_white(image: ImageFile.ImageFile) -> bool:
    """Whether 0 is white and the decoder does not invert it, which it does up to 8 bits."""
    deep = image.mode in {"I", "F"} or image.mode.startswith("I;16")
    return deep and _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO


def transparent_level(image: ImageFile.ImageFile) -> Transparent:
    """The transparent level, as decoded, or colour, as in the file; None where there is none.

    Palettes hold their own transparency.
    """
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int):
        return level * {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)  # the file's own bits
    return level if image.mode in {"1", "RGB"} or image.mode.startswith("I;16") else None


def repair_tiles(image: ImageFile.ImageFile, path: Path) -> None:
    """Correct the decoder's tiles of an open TIFF with planar channels.

    Raises:
        InputError: the layout cannot be read.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or _tags(image).get(PLANAR) != APART:
        return
    if _tags(image).get(SAMPLES, 1) == 1:  # then there is nothing to store apart
        image.tag_v2[PLANAR] = 1
        image._setup()
        return
    deep = max(_tags(image).get(BITS, (8,))) == 16
    if image.mode in {"LAB", "YCbCr", "LA", "La", "PA"} or (image.mode == "CMYK" and deep):
        raise InputError(
            f"the channels of {path} must be stored together, got one after the other; save it as PNG"
        )
    if _tags(image).get(COMPRESSION, 1) == NOT_COMPRESSED and deep:
        order = "L" if _tags(image).prefix == b"II" else "B"
        image.tile = [tile._replace(args=_deep(tile.args, order)) for tile in image.tile]


def _deep(args: Any, order: str) -> Any:
    """The arguments of a tile for one channel of 16 instead of 8 bits."""
    return (f"{args[0]};16{order}", *args[1:])


def has_low_bytes(image: ImageFile.ImageFile) -> bool:
    """Whether the decoder of an open file drops low bytes that `low_bytes` can read.

    False where alpha is premultiplied, and where channels are planar and compressed.
    """
    raw = _raw_mode(image)
    apart = _tags(image).get(PLANAR) == APART and _tags(image).get(COMPRESSION, 1) != NOT_COMPRESSED
    return image.mode in {"RGB", "RGBA"} and ";16" in raw and "a;" not in raw and not apart


def holds_grey(image: ImageFile.ImageFile) -> bool:
    """Whether the decoder of an open file converts grey levels with alpha to RGBA."""
    return _raw_mode(image) == "LA;16B"


def low_bytes(path: Path) -> UInt8[np.ndarray, "H W C"]:
    """The low bytes of an image for which `has_low_bytes` holds, as they are stored.

    The decoder keeps one byte of each number, selected by the raw mode's byte order, which is swapped here.
    """
    with open_image(path) as image:
        repair_tiles(image, path)
        grey = holds_grey(image)
        image.tile = [tile._replace(args=_other_bytes(tile.args)) for tile in image.tile]
        image.load()
        values = np.array(image)
    return values[..., [1, 1, 1, 3]] if grey else values


def _other_bytes(args: Any) -> Any:
    if not isinstance(args, str):
        return (_other_bytes(args[0]), *args[1:])
    if args == "LA;16B":
        return "RGBA"  # all four bytes
    order = args[-1] if args[-1] in "LB" else {"little": "L", "big": "B"}[sys.byteorder]
    return args[:-1] + {"L": "B", "B": "L"}[order]


def _raw_mode(image: ImageFile.ImageFile) -> str:
    """The raw mode of the decoder for the first tile."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args if isinstance(args, str) or args is None else args[0])


def _tags(image: ImageFile.ImageFile) -> Any:
    return getattr(image, "tag_v2", {})
