"""Opening of image files, with an error that names the kind of a file that is not supported."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from pgc3d.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
DNG_VERSION, SAMPLE_FORMAT = 50706, 339  # TIFF tags
SIGNED = 2  # a sample format

Notify = Callable[[str], None]  # receives one line for the user

_URL = re.compile(r"(?:https?|ftp|s3|gs|data):", re.IGNORECASE)
_EXPORT = "export it as PNG, JPEG or 16 bit TIFF"
_RAW = ("raw data of a camera, which must be developed first", _EXPORT)
_RAW_SUFFIX = re.compile(
    r"\.(?:3fr|arw|cr[23w]|dcr|dng|erf|iiq|kdc|mef|mos|mrw|ne?rw|nef|orf|pef|raf|raw|rw[2l]|sr[2fw]|x3f)",
    re.IGNORECASE,
)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _of_magic(start: bytes) -> tuple[str, str] | None:
    """The kind of a file by its first bytes and the remedy; None where the kind is not known."""
    brand = start[8:12] if start[4:8] == b"ftyp" else b""
    known: tuple[tuple[bool, str, str], ...] = (
        (
            brand in _HEIC_BRANDS,
            "a HEIC file",
            f"{_EXPORT} (on a phone: choose the most compatible format)",
        ),
        (brand in {b"avif", b"avis"}, "an AVIF file", _EXPORT),
        (brand == b"crx ", *_RAW),
        (start.startswith((b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"IIU\0", b"FOVb")), *_RAW),
        (start[:4] == b"II*\0" and start[8:10] == b"CR", *_RAW),
        (brand != b"", "a video", "save one frame as PNG"),
        (start.startswith(b"GIF8"), "a GIF", "save one frame as PNG"),
        (start.startswith(b"%PDF"), "a PDF", "export the page as PNG"),
        (b"<svg" in start, "an SVG drawing", "export it as PNG, 1024 pixels or larger"),
        (
            start.lstrip().lower().startswith((b"<!doctype html", b"<html")),
            "a web page",
            "save the image itself",
        ),
        (start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")), "a JPEG XL file", _EXPORT),
        (start.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")), "a JPEG 2000 file", _EXPORT),
        (start.startswith(b"8BPS"), "a Photoshop document", _EXPORT),
        (start.startswith((b"v/1\x01", b"#?RADIANCE")), "a file of linear light", _EXPORT),
        (start.startswith(b"\x93NUMPY"), "an array", "save it as PNG; --depth and --normal read arrays"),
        (
            start.startswith(b"version https://git-lfs"),
            "a pointer of Git LFS",
            "fetch the file with git lfs pull",
        ),
    )
    return next(((what, advice) for is_match, what, advice in known if is_match), None)


def require_small_file(path: Path) -> None:
    """Check that a path is a file of at most `MAX_BYTES`.

    Raises:
        InputError: it is not, or is empty.
    """
    if _URL.match(str(path)):
        raise InputError(
            f"the image must be a file on this computer, got the address {str(path)[:80]}; download it"
        )
    try:
        is_file, size = path.is_file(), path.stat().st_size if path.is_file() else 0
    except OSError as error:  # an invalid name, or a folder without permission
        reason = error.strerror or str(error)
        raise InputError(f"the image must be a file, got none at {path}: {reason}") from error
    except ValueError:  # a NUL in its name
        is_file, size = False, 0
    if not is_file:
        raise InputError(f"the image must be a file, got none at {path}")
    if size > MAX_BYTES:
        raise InputError(
            f"an image must have at most {MAX_BYTES >> 20} MiB, got {size >> 20} in {path}; shrink it"
        )
    if size == 0:
        raise InputError(f"an image must be one of {', '.join(FORMATS)}, got the empty {path}; copy it again")


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An opened image of at most `MAX_PIXELS`, not decoded yet; errors of the decoder become an InputError.

    Raises:
        InputError: the file is of another kind, too large or damaged.
    """
    require_small_file(path)
    if _RAW_SUFFIX.fullmatch(path.suffix):  # many open as a TIFF with the preview in it
        raise _other_format(path, *_RAW)
    _name_layouts()
    # Not by its name: the decoder would map the file into memory and forget its orientation.
    with decoding(path), path.open("rb") as file, Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > MAX_PIXELS:
            raise _too_many_pixels(path, f"{image.width} x {image.height}")
        if min(image.size) < 1:
            raise InputError(f"an image must have pixels, got {image.width} x {image.height} in {path}")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # the first one of a phone's MPO is the image
            raise InputError(
                f"an image must be a single one, got {frames} in {path}; save the one that is meant as PNG"
            )
        _require_plain_numbers(image, path)
        yield image


def _name_layouts() -> None:
    """Register grey TIFF layouts that Pillow does not list; `stored` interprets their levels."""
    table: dict[Any, tuple[str, str]] = TiffImagePlugin.OPEN_INFO
    for order in (TiffImagePlugin.II, TiffImagePlugin.MM):
        for photometric in (0, 1):
            deep = "I;16" if order == TiffImagePlugin.II else "I;16B"
            for bits, modes in ((12, ("I;16", "I;12")), (16, (deep, deep))):
                table.setdefault((order, photometric, (1,), 1, (bits,), ()), modes)


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Convert every exception of a decoder to an InputError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata that is dropped anyway
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise _unidentified(path) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        count = re.search(r"(\d+) pixels", str(error))
        millions = f"{int(count[1]) / 1e6:.0f} million" if count else "more"
        raise _too_many_pixels(path, millions) from error
    except Exception as error:  # decoders of damaged files raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} must be a whole file, got: {reason}") from error


def _too_many_pixels(path: Path, size: str) -> InputError:
    return InputError(
        f"an image must have at most {MAX_PIXELS / 1e6:.0f} million pixels, got {size} in {path}; shrink it"
    )


def _other_format(path: Path, what: str, advice: str) -> InputError:
    return InputError(f"an image must be one of {', '.join(FORMATS)}, got {path}, {what}; {advice}")


def _unidentified(path: Path) -> InputError:
    with path.open("rb") as file:
        start = file.read(1024)
    if known := _of_magic(start):
        return _other_format(path, *known)
    if start.startswith(_TIFF_STARTS):
        what = f"a TIFF whose layout is not read{_layout(path)}"
        return _other_format(path, what, "save it with 8 or 16 bits a channel as PNG")
    return InputError(f"an image must be one of {', '.join(FORMATS)}, got {path}")


def _layout(path: Path) -> str:
    """The layout of a TIFF in brackets; empty where its tags cannot be read."""
    with suppress(Exception), path.open("rb") as file:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(258, (1,))
        return (
            f" ({tags.get(277, 1)} channels of {max(bits)} bits, photometric interpretation {tags.get(262)})"
        )
    return ""


def _require_plain_numbers(image: Image.Image, path: Path) -> None:
    """Check that an image is no TIFF that the decoder misreads: raw data, or signed levels."""
    tags = getattr(image, "tag_v2", {})
    if DNG_VERSION in tags:
        raise _other_format(path, *_RAW)
    if image.mode == "L" and SIGNED in tags.get(SAMPLE_FORMAT, ()):
        what = "a TIFF whose levels have a sign"
        raise _other_format(path, what, "save it with 8 or 16 bits without one")
