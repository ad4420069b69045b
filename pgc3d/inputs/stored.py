"""How an open image file stores its numbers, as far as the decoder does not expose or use it.

Levels that end below 65535 or count from white to black, a level that is transparent, the low bytes of 16 bit
colours, and channels that are stored one after the other.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import ImageFile, TiffImagePlugin

from pgc3d.errors import InputError
from pgc3d.inputs.formats import open_picture

BITS, PHOTOMETRIC, COMPRESSION, SAMPLES, PLANAR = 258, 262, 259, 277, 284  # TIFF tags
WHITE_IS_ZERO, NOT_COMPRESSED, APART = 0, 1, 2  # their values

Transparent = int | tuple[int, int, int] | None


def top_level(image: ImageFile.ImageFile) -> float | None:
    """What white is among the numbers of an image; None where they have no end."""
    if image.mode in {"I", "F"}:
        return None
    if not image.mode.startswith("I;16"):
        return 255.0
    return float(2 ** max(_tags(image).get(BITS, (16,))) - 1)


def counts_from_white(image: ImageFile.ImageFile) -> bool:
    """Whether 0 is white; the decoder turns this round up to 8 bits."""
    deep = image.mode in {"I", "F"} or image.mode.startswith("I;16")
    return deep and _tags(image).get(PHOTOMETRIC) == WHITE_IS_ZERO


def transparent_level(image: ImageFile.ImageFile) -> Transparent:
    """The level, as decoded, or the colour, as in the file, that is transparent; None where there is none.

    Palettes have theirs in themselves.
    """
    level = image.info.get("transparency")
    if image.mode == "L" and isinstance(level, int):
        return level * {"L;2": 85, "L;4": 17}.get(_raw_mode(image), 1)  # the file's own bits
    return level if image.mode in {"1", "RGB"} or image.mode.startswith("I;16") else None


def repair_tiles(image: ImageFile.ImageFile, path: Path) -> None:
    """Correct how the decoder is going to read a TIFF whose channels are stored one after the other.

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
            f"the channels of {path} must be stored together, they are one after the other; save it as PNG"
        )
    if _tags(image).get(COMPRESSION, 1) == NOT_COMPRESSED and deep:
        order = "L" if _tags(image).prefix == b"II" else "B"
        image.tile = [tile._replace(args=_deep(tile.args, order)) for tile in image.tile]


def _deep(args: Any, order: str) -> Any:
    """A tile's arguments for one channel of 16 bits in place of 8."""
    return (f"{args[0]};16{order}", *args[1:])


def has_low_bytes(image: ImageFile.ImageFile) -> bool:
    """Whether the decoder, before it runs, is going to leave out low bytes that `low_bytes` can read.

    It cannot where alpha is multiplied in, nor where channels are compressed one after the other.
    """
    raw = _raw_mode(image)
    apart = _tags(image).get(PLANAR) == APART and _tags(image).get(COMPRESSION, 1) != NOT_COMPRESSED
    return image.mode in {"RGB", "RGBA"} and ";16" in raw and "a;" not in raw and not apart


def holds_grey(image: ImageFile.ImageFile) -> bool:
    """Whether the decoder, before it runs, is going to make RGBA of grey levels with alpha."""
    return _raw_mode(image) == "LA;16B"


def low_bytes(path: Path) -> UInt8[np.ndarray, "H W C"]:
    """The low bytes of an image for which `has_low_bytes` holds, as they are stored.

    The decoder takes the first or the second byte of each number by the byte order that it is given: this
    gives it the other one.
    """
    with open_picture(path) as image:
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
    """How the decoder is going to read the first tile."""
    if not image.tile:
        return ""
    args = image.tile[0].args
    return str(args if isinstance(args, str) or args is None else args[0])


def _tags(image: ImageFile.ImageFile) -> Any:
    return getattr(image, "tag_v2", {})
