"""Writers of image files in many layouts, and the colours that they mean, from the formats' own rules."""

import io
import struct
import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from image_profiles import INKS, lab_to_srgb, profile_bytes, to_srgb
from PIL import Image

# Files


def pack_bits(levels, bits, order=">"):
    """Rows of levels [H, N] as bytes, each row filled up to whole bytes."""
    if bits == 8:
        return levels.astype(np.uint8).tobytes()
    if bits == 16:
        return levels.astype(f"{order}u2").tobytes()
    each = (levels[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.reshape(len(levels), -1).astype(np.uint8), axis=1).tobytes()


def exif(orientation):
    found = Image.Exif()
    found[274] = orientation
    return found


def png(levels, *, bits, color, palette=None, transparent=None, profile=None, orientation=1, gamma=None):
    """A PNG file of levels [H, W, C], of a colour type, with filter 0."""
    height, width = levels.shape[:2]
    rows = [b"\0" + pack_bits(row.reshape(1, -1), bits) for row in levels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    if gamma is not None:
        chunks.append((b"gAMA", struct.pack(">I", round(gamma * 100000))))
    if profile is not None:
        chunks.append((b"iCCP", b"test\0\0" + zlib.compress(profile)))
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparent is not None:
        chunks.append((b"tRNS", transparent))
    if orientation != 1:
        chunks.append((b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    body = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def tiff(
    levels, *, bits, photometric, order="<", apart=False, deflate=False, alpha=None, palette=None,
    sample_format=1, profile=None, orientation=1, extra=(),
):  # fmt: skip
    """A TIFF file of levels [H, W, C] in one strip, or one for each channel; floats as they are."""
    height, width, channels = levels.shape
    planes = [levels[..., index : index + 1] for index in range(channels)] if apart else [levels]
    if levels.dtype.kind == "f":
        strips = [plane.astype(f"{order}f4").tobytes() for plane in planes]
    elif bits == 32:
        strips = [plane.astype(f"{order}i4").tobytes() for plane in planes]
    else:
        strips = [pack_bits(plane.reshape(height, -1), bits, order) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    tags = [
        (256, 4, (width,)), (257, 4, (height,)), (258, 3, (bits,) * channels),
        (259, 3, (8 if deflate else 1,)),
        (262, 3, (photometric,)), (274, 3, (orientation,)), (277, 3, (channels,)), (278, 4, (height,)),
        (279, 4, [len(strip) for strip in strips]), (284, 3, (2 if apart else 1,)),
        (339, 3, (sample_format,) * channels), *extra,
    ]  # fmt: skip
    tags += [(320, 3, (palette.astype(int).T * 257).reshape(-1))] if palette is not None else []
    tags += [(338, 3, (alpha,))] if alpha is not None else []
    tags += [(34675, 7, profile)] if profile is not None else []
    offset = 8
    places = [offset + sum(map(len, strips[:index])) for index in range(len(strips))]
    data = b"".join(strips)
    tags = sorted([*tags, (273, 4, places)], key=lambda tag: tag[0])
    head, codes = b"", {3: "H", 4: "I", 7: "B"}
    for tag, kind, values in tags:
        content = struct.pack(f"{order}{len(values)}{codes[kind]}", *values)
        if len(content) > 4:
            place, data = 8 + len(data), data + content + bytes(len(content) % 2)
            content = struct.pack(f"{order}I", place)
        head += struct.pack(f"{order}HHI", tag, kind, len(values)) + content.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(data))
    return start + data + struct.pack(f"{order}H", len(tags)) + head + bytes(4)


def by_pillow(image, file_format, *, profile=None, orientation=1, **options):
    stream = io.BytesIO()
    if profile is not None:
        options["icc_profile"] = profile
    if orientation != 1:
        options["exif"] = exif(orientation).tobytes()
    image.save(stream, file_format, **options)
    return stream.getvalue()


STORED = {  # how an upright image is stored, for each orientation
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1), 6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a, -1),
}  # fmt: skip


# The matrix of layouts

HEIGHT, WIDTH = 16, 24


@dataclass(frozen=True)
class Layout:
    """One way to store an image: `write` makes a file, `mean` gives the RGBA that it means, in [0, 1]."""

    suffix: str
    kind: str  # "grey", "rgb", "cmyk" or "lab"
    write: object  # (stored levels, profile bytes, orientation) -> bytes
    levels: np.ndarray  # [H, W, C] upright
    mean: object  # (levels, profile name) -> [H, W, 4]
    tolerance: float = 1.0  # of 255
    turns: bool = True  # whether the format has an orientation
    profiles: bool = True  # whether the format has a profile


def grid(channels, top, seed=0, cell=1):
    """Levels that are their own mirror image in no direction."""
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, top + 1, (HEIGHT // cell, WIDTH // cell, channels))
    return levels.repeat(cell, 0).repeat(cell, 1)


def opaque(color):
    color = np.broadcast_to(color, (*color.shape[:2], 3))
    return np.concatenate([color, np.ones_like(color[..., :1])], axis=-1)


def mean_upper(*, alpha=False):
    """Of colours with 16 bits the upper 8 count."""
    mean = mean_levels(255, alpha=alpha)
    return lambda levels, profile: mean(levels >> 8, profile)


def mean_levels(top, *, alpha=False, invert=False, transparent=None):
    def mean(levels, profile):
        color = levels / top
        opacity = color[..., -1:] if alpha else np.ones_like(color[..., :1])
        color = color[..., :-1] if alpha else color
        color = to_srgb(1 - color if invert else color, profile)
        if transparent is not None:
            opacity = 1.0 - (levels == transparent).all(axis=-1, keepdims=True)
        return np.concatenate([np.broadcast_to(color, (*color.shape[:2], 3)), opacity], axis=-1)

    return mean


def mean_keyed(top, key):
    """A colour with all its bits is transparent, of the others the upper 8 count."""
    mean, shift = mean_levels(255), 8 if top == 65535 else 0

    def keyed(levels, profile):
        found = mean(levels >> shift, profile)
        found[..., 3] = 1.0 - (levels == key).all(axis=-1)
        return found

    return keyed


def png_layouts():
    layouts = {}

    def add(name, kind, levels, mean, **options):
        def write(stored, profile, orientation):
            return png(stored, profile=profile, orientation=orientation, **options)

        layouts[f"png {name}"] = Layout("png", kind, write, levels, mean)

    for bits in (1, 2, 4, 8, 16):
        top = 2**bits - 1
        levels = grid(1, top, bits)
        key = levels[3, 5].copy()
        add(f"L {bits}", "grey", levels, mean_levels(top), bits=bits, color=0)
        add(
            f"L {bits} tRNS", "grey", levels, mean_levels(top, transparent=key), bits=bits, color=0,
            transparent=struct.pack(">H", key[0]),
        )  # fmt: skip
    for bits in (8, 16):
        top = 2**bits - 1
        levels, upper = grid(3, top, bits), mean_upper if bits == 16 else partial(mean_levels, top)
        levels[4:8] = levels[3, 5]
        levels[5] = levels[5] ^ 1  # another colour, in 16 bits by its low bytes alone
        key = levels[3, 5].copy()
        add(f"RGB {bits}", "rgb", levels, upper(), bits=bits, color=2)
        add(
            f"RGB {bits} tRNS", "rgb", levels, mean_keyed(top, key), bits=bits, color=2,
            transparent=struct.pack(">3H", *key),
        )  # fmt: skip
        add(f"LA {bits}", "grey", grid(2, top, bits), upper(alpha=True), bits=bits, color=4)
        add(f"RGBA {bits}", "rgb", grid(4, top, bits), upper(alpha=True), bits=bits, color=6)
    for bits in (1, 2, 4, 8):
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
        alphas = np.arange(2**bits) * 37 % 256
        levels = grid(1, 2**bits - 1, bits)

        def mean_alpha(levels, profile, palette=palette, alphas=alphas):
            color = to_srgb(palette[levels[..., 0]] / 255, profile)
            return np.concatenate([color, alphas[levels] / 255], axis=-1)

        mean = partial(mean_palette, palette=palette)
        add(f"P {bits}", "rgb", levels, mean, bits=bits, color=3, palette=palette)
        add(
            f"P {bits} tRNS", "rgb", levels, mean_alpha, bits=bits, color=3, palette=palette,
            transparent=alphas.astype(np.uint8).tobytes(),
        )  # fmt: skip
    return layouts


def mean_cmyk(levels, profile):
    if profile != "cmyk":
        ink = levels / 255
        return opaque((1 - ink[..., :3]) * (1 - ink[..., 3:]))
    lab = np.array([INKS.get(tuple(pixel), (0, 0, 0)) for pixel in (levels // 255).reshape(-1, 4)], float)
    return opaque(lab_to_srgb(lab).reshape(*levels.shape[:2], 3))


def mean_lab(levels, profile):
    return opaque(
        lab_to_srgb(np.concatenate([levels[..., :1] / 2.55, levels[..., 1:].astype(np.int8)], axis=-1))
    )


def tiff_layouts():
    layouts = {}

    def add(name, kind, levels, mean, *, tolerance=1.0, **options):
        for order in "<>":
            for deflate in (False, True):
                write = partial(write_tiff, order=order, deflate=deflate, **options)
                full = f"tiff {name} {'II' if order == '<' else 'MM'}{' deflate' if deflate else ''}"
                layouts[full] = Layout("tif", kind, write, levels, mean, tolerance)

    for apart in (False, True):
        add_grey_tiffs(partial(add, apart=apart), " apart" if apart else "")
        add_color_tiffs(partial(add, apart=apart), " apart" if apart else "")
    add("LA 8", "grey", grid(2, 255), mean_levels(255, alpha=True), bits=8, photometric=1, alpha=2)
    inks = np.array(list(INKS))[np.random.default_rng(1).integers(0, len(INKS), (HEIGHT, WIDTH))] * 255
    add("CMYK 8", "cmyk", inks, mean_cmyk, bits=8, photometric=5, tolerance=2.0)
    lab = np.random.default_rng(2).integers(0, 40, (HEIGHT, WIDTH, 3)) - [-110, 20, 20]
    lab[..., 1:] %= 256
    add("LAB 8", "lab", lab, mean_lab, bits=8, photometric=8, tolerance=2.0)
    return layouts


def write_tiff(stored, profile, orientation, **options):
    return tiff(stored, profile=profile, orientation=orientation, **options)


def add_grey_tiffs(add, tail):
    for bits in (1, 2, 4, 8, 12, 16):
        top = 2**bits - 1
        levels = grid(1, top, bits)
        add(f"L {bits}{tail}", "grey", levels, mean_levels(top), bits=bits, photometric=1)
        white = mean_levels(top, invert=True)
        add(f"L {bits} from white{tail}", "grey", levels, white, bits=bits, photometric=0)


def add_color_tiffs(add, tail):
    for bits in (8, 16):
        top, upper = 2**bits - 1, mean_upper if bits == 16 else partial(mean_levels, 255)
        options = {"bits": bits, "photometric": 2}
        add(f"RGB {bits}{tail}", "rgb", grid(3, top, bits), upper(), **options)
        add(f"RGBA {bits}{tail}", "rgb", grid(4, top, bits), upper(alpha=True), alpha=2, **options)
    for bits in (4, 8):
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3))
        mean = partial(mean_palette, palette=palette)
        add(
            f"P {bits}{tail}", "rgb", grid(1, 2**bits - 1, bits), mean, bits=bits, photometric=3,
            palette=palette,
        )  # fmt: skip


def mean_palette(levels, profile, *, palette):
    return opaque(to_srgb(palette[levels[..., 0]] / 255, profile))


def pillow_layouts():
    layouts = {}

    def add(name, mode, kind, levels, mean, *, tolerance=1.0, turns=True, profiles=True, **options):
        def write(stored, profile, orientation):
            pixels = np.ascontiguousarray(stored.astype(np.uint8))
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels, mode)
            return by_pillow(image, options["format"], profile=profile, orientation=orientation,
                             **{k: v for k, v in options.items() if k != "format"})  # fmt: skip

        suffix = {"JPEG": "jpg", "WEBP": "webp", "BMP": "bmp"}[options["format"]]
        layouts[f"{suffix} {name}"] = Layout(suffix, kind, write, levels, mean, tolerance, turns, profiles)

    jpeg = {"format": "JPEG", "quality": 100, "subsampling": 0, "tolerance": 5.0}
    add("L", "L", "grey", grid(1, 255, cell=8), mean_levels(255), **jpeg)
    add("RGB", "RGB", "rgb", grid(3, 255, cell=8), mean_levels(255), **jpeg)
    inks = np.array(list(INKS))[np.random.default_rng(1).integers(0, len(INKS), (2, 3))] * 255
    add("CMYK", "CMYK", "cmyk", inks.repeat(8, 0).repeat(8, 1), mean_cmyk, **jpeg)
    webp = {"format": "WEBP", "lossless": True, "exact": True}
    add("RGB", "RGB", "rgb", grid(3, 255), mean_levels(255), **webp)
    add("RGBA", "RGBA", "rgb", grid(4, 255), mean_levels(255, alpha=True), **webp)
    bmp = {"format": "BMP", "turns": False, "profiles": False}
    add("L", "L", "grey", grid(1, 255), mean_levels(255), **bmp)
    add("RGB", "RGB", "rgb", grid(3, 255), mean_levels(255), **bmp)
    return layouts


LAYOUTS = png_layouts() | tiff_layouts() | pillow_layouts()
PROFILES = {
    "grey": (None, "gray18", "linear", "broken"),
    "rgb": (None, "srgb", "p3", "adobe", "broken"),
    "cmyk": (None, "cmyk", "broken"),
    "lab": (None,),
}


def cases(layout):
    """All (profile, orientation) that a layout has."""
    profiles = PROFILES[layout.kind] if layout.profiles else (None,)
    return [(profile, turn) for profile in profiles for turn in (range(1, 9) if layout.turns else (1,))]


def make(layout, profile, orientation):
    """A file of a layout, and the RGBA of 0 to 255 that it means."""
    stored = STORED[orientation](layout.levels)
    name = None if profile == "broken" else profile
    content = layout.write(np.ascontiguousarray(stored), profile_bytes(profile), orientation)
    return content, 255 * layout.mean(layout.levels, name)


def matches(found, meant, tolerance):
    """Whether colours agree where they can be seen, and alpha everywhere."""
    if found.shape != meant.shape or np.abs(found[..., 3] - meant[..., 3]).max() > 1:
        return False
    seen = meant[..., 3] > 0
    return bool(np.abs(found[seen, :3].astype(float) - meant[seen, :3]).max(initial=0) <= tolerance)
