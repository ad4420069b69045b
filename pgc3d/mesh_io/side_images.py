"""Images that a mesh file refers to: opened when their colours are used, never for the surface."""

import io
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from PIL import Image

from pgc3d.errors import InputError
from pgc3d.mesh_io.limits import inside, read_limited
from pgc3d.mesh_io.lines import quoted

MAX_PIXELS = 1 << 28


def image_loader(name: str, source: Path) -> Callable[[], Image.Image]:
    """A function that opens an image of `source`, once for all its calls.

    It raises InputError where the image is missing, damaged, too large or outside the folder of `source`.
    """
    return cache(partial(_load, name, source))


def refusal(message: str) -> Callable[[], Image.Image]:
    """A function like that of `image_loader` that raises an error, for colours of an unread library."""

    def refuse() -> Image.Image:
        raise InputError(message)

    return refuse


def is_inside(name: str, source: Path) -> bool:
    """Whether `source` may refer to a file of this name."""
    try:
        inside(source.parent, name, source)
    except InputError:
        return False
    return True


def is_file(path: Path) -> bool:
    """Whether a file exists; False for an invalid name."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder exists; False for an invalid name."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _load(name: str, source: Path) -> Image.Image:
    path = inside(source.parent, name, source)
    if not is_file(path):
        raise InputError(
            f"an image of a mesh must exist, but {source.name} names {quoted(name)} and there is none; "
            "put it beside the mesh"
        )
    data = read_limited(path, "image of a mesh")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata; the size is checked here
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    f"an image of a mesh must have at most {MAX_PIXELS / 1e6:.0f} million pixels, got {path} "
                    f"with {image.width} x {image.height}; reduce it"
                )
            image.load()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # decoders of damaged files raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"an image of a mesh must be readable, got {path}: {reason}; save it again"
        ) from error
    return image
