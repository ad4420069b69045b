"""Every way to store an image means the same colours; what cannot be read is said in one line."""

import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_profiles import profile_bytes, rgb_profile
from images import HEIGHT, LAYOUTS, PROFILES, STORED, WIDTH, by_pillow, grid, make, matches, png, tiff
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.inputs.decode import decode_image, decode_levels

PROFILE_STEPS = 1.5  # of 255: a profile's curves and matrix are rounded


def decoded(path, **options):
    return np.asarray(decode_image(path, **options).image.convert("RGBA"))


def store(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_shows_the_colours_that_its_format_says(name, tmp_path):
    layout = LAYOUTS[name]
    orientations = (1, 6) if "deflate" in name else range(1, 9) if layout.turns else (1,)
    turned = [(None, orientation) for orientation in orientations]
    colored = [(profile, 6) for profile in PROFILES[layout.kind][1:] if layout.profiles]
    for profile, orientation in [*turned, *colored]:
        content, meant = make(layout, profile, orientation)
        said = []
        path = store(tmp_path / f"{profile} {orientation}.{layout.suffix}", content)
        found = decode_image(path, notify=said.append)
        assert found.original == (WIDTH, HEIGHT)
        slack = layout.tolerance + (PROFILE_STEPS if profile else 0.01)
        assert matches(np.asarray(found.image.convert("RGBA")), meant, slack), (profile, orientation)
        assert [("profile" in line) for line in said] == [True] * (
            profile == "broken" or (layout.kind == "cmyk" and not profile)
        )


DATA = [name for name in LAYOUTS if LAYOUTS[name].kind in {"grey", "rgb"} and "P " not in name]


@pytest.mark.parametrize("name", DATA)
def test_a_map_holds_the_numbers_of_its_file(name, tmp_path):
    """All bits of them, whatever profile stands beside them, and from black to white."""
    layout = LAYOUTS[name]
    profiles = {"grey": "linear", "rgb": "adobe"}
    for profile in (None, profiles[layout.kind]) if layout.profiles else (None,):
        for orientation in (1, 8) if layout.turns else (1,):
            stored = np.ascontiguousarray(STORED[orientation](layout.levels))
            content = layout.write(stored, profile_bytes(profile), orientation)
            found = decode_levels(store(tmp_path / f"map.{layout.suffix}", content)).rows(slice(None))
            channels = 3 if layout.kind == "rgb" else 1
            top = 65535 if " 16" in name else 4095 if " 12" in name else layout.levels.max()
            top = 255 if layout.suffix in {"jpg", "webp", "bmp"} else top
            meant = layout.levels[..., :channels] / top
            meant = 1 - meant if "from white" in name else meant
            found = found.reshape(HEIGHT, WIDTH, channels)
            upper_alone = " 16 apart" in name and "deflate" in name and layout.kind == "rgb"
            tolerance = 0.02 if layout.suffix == "jpg" else 1 / 255 if upper_alone else 2e-6
            np.testing.assert_allclose(found, meant, atol=tolerance)


def test_a_profile_that_says_srgb_changes_no_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    content = by_pillow(Image.fromarray(pixels), "PNG", profile=rgb_profile("srgb"))
    np.testing.assert_array_equal(decoded(store(tmp_path / "a.png", content)), pixels)


def test_colours_whose_meaning_is_not_known_are_reported(tmp_path):
    levels = grid(3, 255)
    files = {
        "names a gamma of 1,": png(levels, bits=8, color=2, gamma=1.0),
        "the colour profile of": png(levels, bits=8, color=2, profile=profile_bytes("linear")),  # for grey
        "CMYK colours without a profile": tiff(grid(4, 255), bits=8, photometric=5),
    }
    for line, content in files.items():
        said = []
        path = store(tmp_path / "a", content)
        decode_image(path, notify=said.append)
        assert [line in found and str(path) in found for found in said] == [True]
    said = []
    usual = store(tmp_path / "a.png", png(levels, bits=8, color=2, gamma=0.45455))
    np.testing.assert_array_equal(decoded(usual, notify=said.append)[..., :3], levels)
    assert not said


def refused(path, read=decode_image):
    with pytest.raises(InputError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_numbers_of_32_bits_are_for_maps_alone(tmp_path):
    values = np.linspace(-3, 70_000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    layouts = [("<", np.float32, 3, 1), (">", np.float32, 3, 1), ("<", np.int32, 2, 1), (">", np.int32, 2, 1)]
    for order, kind, sample_format, photometric in [*layouts, ("<", np.float32, 3, 0)]:
        numbers = values.astype(kind)
        content = tiff(numbers, bits=32, photometric=photometric, order=order, sample_format=sample_format)
        path = store(tmp_path / "a.tif", content)
        assert "32 bits a channel" in refused(path)
        meant = numbers[..., 0] if photometric else -numbers[..., 0]
        np.testing.assert_array_equal(decode_levels(path).values, meant)


def test_levels_that_the_decoder_would_misread_are_refused(tmp_path):
    signed = tiff(grid(1, 255), bits=8, photometric=1, sample_format=2)
    assert "levels have a sign" in refused(store(tmp_path / "signed.tif", signed))
    lab = tiff(grid(3, 255), bits=8, photometric=8, apart=True)
    assert "must be stored together" in refused(store(tmp_path / "lab.tif", lab))
    assert "must hold grey levels or RGB" in refused(
        store(tmp_path / "cmyk.tif", tiff(grid(4, 255), bits=8, photometric=5)), decode_levels
    )
    deep = tiff(grid(2, 65535), bits=16, photometric=1, alpha=2)
    line = refused(store(tmp_path / "deep.tif", deep))
    assert "a TIFF whose layout is not read (2 channels of 16 bits" in line
    assert "save it with 8 or 16 bits a channel as PNG" in line


OTHERS = {
    b"\0\0\0\x18ftypheic": ", a HEIC file; export it as PNG",
    b"\0\0\0\x18ftypmif1": ", a HEIC file; export it as PNG",
    b"\0\0\0\x18ftypavif": ", an AVIF file; export it as PNG",
    b"\0\0\0\x18ftypcrx ": ", raw data of a camera, which must be developed first",
    b"\0\0\0\x18ftypisom": ", a video; save one frame as PNG",
    b"GIF89a": ", a GIF; save one frame as PNG",
    b"%PDF-1.7": ", a PDF; export the page as PNG",
    b'<?xml version="1.0"?>\n<svg xmlns="x">': ", an SVG drawing; export it as PNG",
    b"<!DOCTYPE html>": ", a web page; save the image itself",
    b"8BPS\0\1": ", a Photoshop document; export it as PNG",
    b"\0\0\0\x0cJXL \r\n\x87\n": ", a JPEG XL file; export it as PNG",
    b"no image": "got ",
    b"": "got the empty",
}


@pytest.mark.parametrize("start", OTHERS, ids=OTHERS.values())
def test_other_formats_are_named_with_what_to_do(start, tmp_path):
    line = refused(store(tmp_path / "image.png", start + bytes(100) * bool(start)))
    assert line.startswith("an image must be one of PNG, JPEG, WEBP, BMP, TIFF,")
    assert OTHERS[start] in line


@pytest.mark.parametrize("suffix", [".dng", ".NEF", ".cr2"])
def test_the_preview_in_raw_data_is_not_taken_for_the_image(tmp_path, suffix):
    preview = tiff(grid(3, 255), bits=8, photometric=2)
    assert "must be developed first" in refused(store(tmp_path / f"a{suffix}", preview))
    renamed = tiff(grid(3, 255), bits=8, photometric=2, extra=[(50706, 7, b"\1\4\0\0")])
    assert "must be developed first" in refused(store(tmp_path / "a.tif", renamed))


@pytest.mark.parametrize(
    "address", ["https://example.org/cat.png", "HTTP://example.org/cat", "data:image/png;x"]
)
def test_an_address_is_no_file(address, tmp_path):
    assert "download it" in refused(Path(address))
    assert "got none at" in refused(tmp_path / ("long" * 200))


@pytest.mark.parametrize(("side", "millions"), [(9_600, "92"), (20_000, "400")])
def test_the_decoders_own_limit_is_said_as_ours(side, millions, tmp_path):
    """Where nothing behind the header could be decoded."""
    small = png(grid(1, 255), bits=8, color=0)
    huge = png(np.zeros((1, 1, 1)), bits=8, color=0)
    content = huge[:16] + side.to_bytes(4, "big") * 2 + huge[24:29]
    content += zlib.crc32(content[12:29]).to_bytes(4, "big") + small[33:]
    line = refused(store(tmp_path / "huge.png", content))
    assert "at most 64 million pixels" in line
    assert f"got {millions} million" in line


@pytest.mark.parametrize("name", [name for name in LAYOUTS if " apart" not in name])
def test_a_file_that_was_cut_off_is_one_line(name, tmp_path):
    """Or it shows what the whole one does, where no more than the end of its tags is lost."""
    layout = LAYOUTS[name]
    content, meant = make(layout, None, 1)
    for share in (0.1, 0.5, 0.8):
        path = store(tmp_path / f"cut.{layout.suffix}", content[: int(share * len(content))])
        found, line = None, ""
        try:
            found = decoded(path)
        except InputError as error:
            line = str(error)
        if found is None:
            assert str(path) in line
            assert "\n" not in line
        else:
            assert layout.suffix == "tif"
            assert matches(found, meant, layout.tolerance + 0.01)


DAMAGED = [
    "png LA 16",
    "tiff RGBA 16 apart MM",
    "tiff L 12 II deflate",
    "tiff CMYK 8 MM",
    "webp RGBA",
    "jpg CMYK",
]


@given(name=st.sampled_from(DAMAGED), place=st.floats(0, 1), value=st.integers(0, 255))
def test_damaged_files_raise_nothing_but_input_errors(name, place, value, tmp_path_factory):
    profile = PROFILES[LAYOUTS[name].kind][1]
    data = bytearray(make(LAYOUTS[name], profile, 6)[0])
    data[int(place * (len(data) - 1))] = value
    path = store(tmp_path_factory.getbasetemp() / "damaged", data)
    for read in (decode_image, decode_levels):
        with suppress(InputError):
            read(path)


def test_films_are_refused_and_the_first_image_of_a_telephones_pair_is_read(tmp_path):
    frames = [Image.fromarray(grid(3, 255, seed, cell=8).astype(np.uint8)) for seed in (1, 2)]
    for file_format in ("WEBP", "PNG", "TIFF"):
        content = by_pillow(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert "must be a single one" in refused(store(tmp_path / "film", content))
    pair = by_pillow(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100, subsampling=0)
    found = decoded(store(tmp_path / "pair.jpg", pair))[..., :3]
    np.testing.assert_allclose(found.astype(int), np.asarray(frames[0]), atol=5)


def test_an_image_without_pixels_is_one_line(tmp_path):
    refused(store(tmp_path / "none.png", png(np.zeros((0, 0, 1), np.uint8), bits=8, color=0)))
    refused(store(tmp_path / "none.tif", tiff(np.zeros((1, 0, 1), np.uint8), bits=8, photometric=1)))


@pytest.mark.parametrize("name", ["L", "I;16", "LA", "P", "RGB", "RGBA", "CMYK", "1", "JPEG"])
def test_a_large_image_is_shrunk_to_what_the_whole_one_shows(name, tmp_path):
    """Also where strips and squares do not divide it, and with any colour under alpha 0."""
    height, width = 1003, 777
    y, x = np.mgrid[:height, :width] / 700.0
    color = np.stack([0.5 + 0.4 * np.sin(5 * x), 0.5 + 0.4 * np.cos(4 * y), 0.3 + 0.2 * x], axis=-1)
    alpha = (np.hypot(x - 0.5, y - 0.7) < 0.4)[..., None]
    rgba = np.concatenate([np.where(alpha, color, np.random.default_rng(0).random(color.shape)), alpha], -1)
    pixels = np.rint(255 * rgba).astype(np.uint8)
    image = {
        "L": lambda: Image.fromarray(pixels[..., 0] * alpha[..., 0]),
        "I;16": lambda: Image.fromarray(pixels[..., 0].astype(np.uint16) * 257 * alpha[..., 0]),
        "LA": lambda: Image.fromarray(pixels).convert("LA"),
        "P": lambda: Image.fromarray(pixels[..., :3] * alpha).quantize(64),
        "RGB": lambda: Image.fromarray(pixels[..., :3] * alpha),
        "RGBA": lambda: Image.fromarray(pixels),
        "CMYK": lambda: Image.fromarray(pixels[..., :3] * alpha).convert("CMYK"),
        "1": lambda: Image.fromarray(alpha[..., 0]),
        "JPEG": lambda: Image.fromarray(pixels[..., :3] * alpha),
    }[name]()
    path = tmp_path / "large"
    image.save(path, "JPEG" if name == "JPEG" else "TIFF" if name in {"CMYK", "I;16"} else "PNG")
    whole = decode_image(path).image
    small = (width // 6 + 1, height // 6)
    found = decode_image(path, target=lambda _: small)
    assert found.original == (width, height)
    expected = np.asarray(whole.resize(small, Image.Resampling.BOX).convert("RGBA")).astype(float)
    shown = np.asarray(found.image.convert("RGBA")).astype(float)
    weight = expected[..., 3:] / 255
    assert np.abs(shown[..., 3] - expected[..., 3]).mean() < 2.5
    assert (np.abs(shown - expected)[..., :3] * weight).mean() < 2.5
    assert (np.abs(shown - expected)[..., :3] * weight)[weight[..., 0] == 1].max(initial=0) < 90
