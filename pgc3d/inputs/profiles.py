"""Colours by their ICC profile, turned into sRGB."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

from pgc3d.inputs.formats import Notify

_KINDS = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab ": "LAB"}  # by the profile's colour space
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
# Not optimised, which puts a coarse table in the place of the curves.
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOOPTIMIZE
_ROUNDING = 1  # of 255, largest change by a profile that is sRGB under another name

Convert = Callable[[Image.Image], Image.Image]


def plain(image: Image.Image) -> Image.Image:
    """RGB or RGBA with the values as they are."""
    return _convert(image, kind="", transform=None)


def converter(image: Image.Image, path: Path, notify: Notify, *, grey: bool = False) -> Convert:
    """The conversion of an opened image's colours to sRGB.

    A profile that cannot be read or used is reported, and the values are kept as without a profile.

    Args:
        image: an open file; its profile and its mode are used.
        path: its name.
        notify: receives a line about an unusable profile, or about colours of unknown meaning.
        grey: the file holds grey levels, though it is decoded as RGB.

    Returns:
        A function of an image in mode L, LA, RGB, RGBA, CMYK or LAB; it returns RGB or RGBA.
    """
    info, kind = image.info, "L" if grey else _kind(image.mode)
    if kind == "LAB":  # its numbers have a meaning of their own
        return partial(_convert, kind="LAB", transform=_transform(ImageCms.createProfile("LAB"), "LAB"))
    if "icc_profile" in info:
        decoded = _from_profile(info["icc_profile"])
        if decoded is not None and (decoded[0] == kind or (decoded[0], kind) == ("RGB", "L")):
            return partial(_convert, kind=decoded[0], transform=decoded[1])
        notify(f"the colour profile of {path} cannot be used; its colours are taken as sRGB")
    elif kind == "CMYK":
        notify(
            f"{path} has CMYK colours without a profile, which are approximate; save it as sRGB to be exact"
        )
    elif abs(info.get("gamma", 1 / 2.2) - 1 / 2.2) > 0.05 and "srgb" not in info:
        gamma = info["gamma"]
        notify(f"{path} names a gamma of {gamma:.3g}, which is not applied; its colours are taken as sRGB")
    return plain


def _kind(mode: str) -> str:
    """The colour space of an image mode, one of `_KINDS`."""
    if mode in {"CMYK", "LAB"}:
        return mode
    return "L" if mode in {"1", "L", "LA", "La"} or mode.startswith("I") else "RGB"


def grey_table(image: Image.Image) -> UInt8[np.ndarray, "65536"] | None:
    """The sRGB grey of each 16 bit level by the image's profile; None where it has none for grey.

    A table of 16 bits keeps the shadows of a linear profile apart.
    """
    data = image.info.get("icc_profile")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data or b""))
        if profile.profile.xcolor_space != "GRAY":
            return None
        transform = _transform(profile, "I;16")
    except (OSError, ImageCms.PyCMSError):
        return None
    levels = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))
    return np.asarray(_apply(transform, levels))[..., 0].reshape(-1)


def _from_profile(data: Any) -> tuple[str, Any] | None:
    """The kind of colours that a profile is for, and its transform, None where that is sRGB.

    None where the profile cannot be read or used.
    """
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        kind = _KINDS[profile.profile.xcolor_space]
        transform = _transform(profile, kind)
    except (OSError, TypeError, KeyError, ImageCms.PyCMSError):
        return None
    return kind, None if kind == "RGB" and _is_identity(transform) else transform


def _transform(profile: Any, mode: str) -> Any:
    return ImageCms.buildTransform(
        profile, ImageCms.createProfile("sRGB"), mode, "RGB", renderingIntent=_INTENT, flags=_FLAGS
    )


def _is_identity(transform: Any) -> bool:
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(27, 27, 3)
    decoded = np.asarray(_apply(transform, Image.fromarray(colors)))
    return bool(np.abs(decoded.astype(int) - colors).max() <= _ROUNDING)


def _apply(transform: Any, image: Image.Image) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only with inPlace
    return converted


def _convert(image: Image.Image, *, kind: str, transform: Any) -> Image.Image:
    """Alpha passes; grey is looked up by a profile for grey, or as the neutral colours of one for RGB."""
    alpha = image.getchannel("A") if image.mode in {"LA", "RGBA"} else None
    opaque = image.convert(image.mode.removesuffix("A")) if alpha else image
    if transform is not None and kind == opaque.mode:
        opaque = _apply(transform, opaque)
    elif transform is not None:
        opaque = _apply(transform, opaque.convert("RGB"))
    opaque = opaque.convert("RGB")
    if alpha is not None:
        opaque.putalpha(alpha)
    return opaque
