"""An input picture: read with distrust, freed of its background, and recentred in a square.

Everything becomes 8 bit RGBA with straight alpha on the way; colours are taken as sRGB, whatever profile the
file carries, and all other metadata is dropped.
"""

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError
from torch import Tensor

from pgc3d.errors import InputError, WeightsNotFoundError
from pgc3d.ranges import check, number

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
WORKING_SIDE = 2048  # larger pictures are shrunk before anything looks at their pixels
SMALLEST_OBJECT = 32  # pixels, its longer side
OPAQUE = 250  # an alpha channel that is nowhere below says nothing about the object
BACKGROUND_TOLERANCE = 12  # of 255, what JPEG does to a plain colour
MATTING_MODEL = "isnet-general-use"


@dataclass(frozen=True)
class PhotoConfig:
    """How an input picture is prepared."""

    border: float = number(0.2, 0.0, 0.8)  # share of the square beside the object, both ends together
    matting: bool = True  # pictures without alpha: by rembg; False: their background must be one plain colour
    size: int = number(512, 64, 2048, unit="pixels")  # of the prepared square

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class FramedPhoto:
    """A picture with its object cut out, and where that goes in the prepared square."""

    picture: Image.Image  # RGBA, straight alpha, not larger than WORKING_SIDE
    original: tuple[int, int]  # width and height in the file, upright
    box: tuple[int, int, int, int]  # around the object in `picture`: left, upper, right, lower
    shape: tuple[int, int]  # width and height of the box in the square
    size: int  # pixels of the square

    def place(self, image: Image.Image, resample: Image.Resampling) -> Image.Image:
        """What `image`, of the picture's size, shows of the object, in the middle of a square of zeros."""
        square = Image.new(image.mode, (self.size, self.size))
        corner = ((self.size - self.shape[0]) // 2, (self.size - self.shape[1]) // 2)
        square.paste(image.crop(self.box).resize(self.shape, resample), corner)
        return square

    def png(self) -> bytes:
        """The prepared picture of the object alone, a PNG file with alpha."""
        # LANCZOS premultiplies by itself
        return encode_png(self.place(self.picture, Image.Resampling.LANCZOS))


def frame_photo(path: Path, *, border: float = 0.2, matting: bool = True, size: int = 512) -> FramedPhoto:
    """Find the object of a picture and its place in the square picture that a run works with.

    Args:
        path: a picture; its alpha says what the object is, where it has one.
        border: share of the square that is left free beside the object's longer side.
        matting: find the object with rembg where there is no alpha; else the background must be plain.
        size: side of the square in pixels.

    Raises:
        InputError: the file is no picture, too large or damaged, or shows no object before a background.
        WeightsNotFoundError: rembg's model is not on this disk and cannot be fetched.
    """
    picture = read_picture(path)
    original = picture.size
    picture.thumbnail((WORKING_SIDE, WORKING_SIDE))
    if picture.mode == "RGB":
        picture = _matte(picture) if matting else _cut_plain_background(picture, path)
    box = _object_box(picture, path)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = size * (1.0 - border) / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    return FramedPhoto(picture=picture, original=original, box=box, shape=shape, size=size)


def encode_png(image: Image.Image) -> bytes:
    """A PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def load_photo(path: Path) -> Float[Tensor, "S S 4"]:
    """A prepared picture as RGBA in [0, 1], colours premultiplied: resizing and compositing are linear in it.

    Raises:
        InputError: the file is missing, or not what `FramedPhoto.png` makes.
    """
    picture = _decode(path)
    if picture.mode != "RGBA" or picture.width != picture.height:
        raise InputError(
            f"{path} must be a prepared square picture with alpha, got {picture.mode} of {picture.size}"
        )
    values = torch.from_numpy(np.array(picture)).float() / 255.0
    return torch.cat([values[..., :3] * values[..., 3:], values[..., 3:]], dim=-1)


def read_picture(path: Path) -> Image.Image:
    """Decode to RGB or RGBA, upright; RGB also where the alpha channel says nothing.

    Raises:
        InputError: the file is no picture, too large or damaged.
    """
    picture = _decode(path)
    if picture.mode == "RGBA" and np.asarray(picture.getchannel("A")).min() >= OPAQUE:
        return picture.convert("RGB")
    return picture


def _decode(path: Path) -> Image.Image:
    with open_picture(path) as image:
        return _to_8_bit(ImageOps.exif_transpose(image))


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """A single picture of a bearable size, not decoded yet; what its decoder raises becomes one line.

    Raises:
        InputError: it is something else, or damaged.
    """
    require_small_file(path)
    with decoding(path), Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(
                f"a picture must have at most {MAX_PIXELS / 1e6:.0f} million pixels, {path} has "
                f"{image.width} x {image.height}"
            )
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # the first one of a telephone's MPO is the photo
            raise InputError(f"a picture must be a single one, {path} holds {frames}")
        yield image


def require_small_file(path: Path) -> None:
    """Refuse what is no file or a huge one.

    Raises:
        InputError: it is.
    """
    if not path.is_file():
        raise InputError(f"the picture must be a file, found none at {path}")
    if (found := path.stat().st_size) > MAX_BYTES:
        raise InputError(f"a picture must have at most {MAX_BYTES >> 20} MiB, {path} has {found >> 20}")


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises over a file into one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is dropped anyway
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"a picture must be one of {', '.join(FORMATS)}, {path} is not") from error
    except Exception as error:  # decoders of damaged files raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} must be a whole file, got: {reason}") from error


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray(np.rint(np.asarray(image) / 257.0).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a channel, where 8 and 16 are understood")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _matte(picture: Image.Image) -> Image.Image:
    """Let rembg's network say what the object is."""
    if any(importlib.util.find_spec(name) is None for name in ("rembg", "onnxruntime")):
        raise InputError(
            "a picture without alpha needs its background removed: pip install 'pgc3d[matting]', or "
            "give one with a plain background and --no-matting, or one with alpha"
        )
    from rembg import new_session, remove

    try:
        session = new_session(MATTING_MODEL)
    except Exception as error:  # its download raises whatever its HTTP library and its checks raise
        raise WeightsNotFoundError(
            f"rembg's model {MATTING_MODEL} must be on this disk or fetched at first use, but that failed "
            f"({type(error).__name__}); go online once, put {MATTING_MODEL}.onnx from rembg's releases where "
            "rembg looks for it, or use a plain background and --no-matting"
        ) from error
    mask: Any = remove(picture, session=session, only_mask=True)
    picture.putalpha(mask.convert("L"))
    return picture


def _cut_plain_background(picture: Image.Image, path: Path) -> Image.Image:
    """Remove what has the border's colour and is connected to the border.

    The same colour inside the object stays. One pixel around the object goes with the background, because
    it holds a mixture of both.
    """
    pixels = np.asarray(picture).astype(np.int16)
    frame = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    color = np.median(frame, axis=0)
    plain = (np.abs(pixels - color) <= BACKGROUND_TOLERANCE).all(axis=-1)
    share = (np.abs(frame - color) <= BACKGROUND_TOLERANCE).all(axis=-1).mean()
    if share < 0.98:
        raise InputError(
            f"--no-matting needs a background of one plain colour, but {1 - share:.0%} of the border of "
            f"{path} differ from it; leave --no-matting away, or give a picture with alpha"
        )
    alpha = Image.fromarray(np.where(_connected_to_border(plain), 0, 255).astype(np.uint8))
    picture.putalpha(alpha.filter(ImageFilter.MinFilter(3)))
    return picture


def _connected_to_border(region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """The part of a region that hangs together with the border of the picture, along rows and columns."""
    reached = region.copy()
    reached[1:-1, 1:-1] = False
    before = -1
    while (count := int(reached.sum())) > before:
        before = count
        reached = _fill_runs(_fill_runs(reached, region).T, region.T).T
    return reached


def _fill_runs(reached: Bool[np.ndarray, "H W"], region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Extend to every pixel that a row connects through the region."""
    # Each pixel outside the region starts a new run; so does each row.
    starts = ~region
    starts[:, 0] = True
    runs = np.cumsum(starts).reshape(region.shape)
    hit = np.zeros(runs.size + 1, dtype=np.bool_)
    hit[runs[reached]] = True
    filled: Bool[np.ndarray, "H W"] = hit[runs] & region
    return filled


def _object_box(picture: Image.Image, path: Path) -> tuple[int, int, int, int]:
    """Left, upper, right and lower edge of where alpha is above one half."""
    mask = np.asarray(picture.getchannel("A")) > 127
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = (int(axis[-1] - axis[0] + 1) if len(axis) else 0 for axis in (rows, columns))
    if max(height, width) < SMALLEST_OBJECT:
        raise InputError(
            f"the object must be at least {SMALLEST_OBJECT} pixels large, found {width} x {height} in "
            f"{path}; is it cut out rightly?"
        )
    if mask.mean() > 0.99:
        raise InputError(
            f"an object must stand before a background, but it fills all of {path}; cut it out with some "
            "room around it"
        )
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
