import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.image_config import InputImageConfig
from pgc3d.inputs import cutout, formats
from pgc3d.inputs.image import frame_image, load_prepared_image
from pgc3d.kernels.regions_numba import connected_to_border


def drawing(height=150, width=120):
    """A picture that is its own mirror image in no direction: two coloured bars and a white window."""
    alpha = np.zeros((height, width), np.uint8)
    alpha[20:120, 30:60] = 255
    alpha[90:120, 60:90] = 255
    color = np.zeros((height, width, 3), np.uint8)
    color[20:120, 30:60] = (200, 40, 30)
    color[90:120, 60:90] = (20, 60, 220)
    color[40:60, 40:50] = 255
    return np.dstack([color, alpha])


def on_white(rgba):
    return np.where(rgba[..., 3:] > 0, rgba[..., :3], 255).astype(np.uint8)


def write(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def prepared(path, tmp_path, **options):
    (tmp_path / "prepared.png").write_bytes(frame_image(path, **options).png())
    return load_prepared_image(tmp_path / "prepared.png").numpy()


@pytest.fixture
def reference(tmp_path):
    return prepared(write(tmp_path / "reference.png", drawing()), tmp_path)


def iou(first, second):
    first, second = first[..., 3] > 0.5, second[..., 3] > 0.5
    return (first & second).sum() / (first | second).sum()


@pytest.mark.parametrize("border", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("size", [64, 500])
def test_object_fills_the_square_up_to_its_border_and_stands_in_the_middle(tmp_path, border, size):
    found = prepared(write(tmp_path / "in.png", drawing()), tmp_path, border=border, size=size)
    assert found.shape == (size, size, 4)
    for axis, length in ((1, 100), (0, 60)):
        inside = np.flatnonzero((found[..., 3] > 0.5).any(axis=axis))
        assert abs(len(inside) - size * (1 - border) * length / 100) <= 1.5
        assert abs(inside[0] + inside[-1] - (size - 1)) <= 2


def test_where_the_object_stands_and_how_large_it_is_does_not_matter(tmp_path, reference):
    moved = np.pad(drawing(), ((70, 5), (0, 200), (0, 0)))
    np.testing.assert_array_equal(prepared(write(tmp_path / "moved.png", moved), tmp_path), reference)
    large = np.repeat(np.repeat(drawing(), 3, axis=0), 3, axis=1)
    found = prepared(write(tmp_path / "large.png", large), tmp_path)
    assert np.abs(found - reference).mean() < 0.02


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, reference, orientation):
    stored = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: np.swapaxes(a, 0, 1), 6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a, -1),
    }[orientation](drawing())  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    path = write(tmp_path / "turned.png", np.ascontiguousarray(stored), exif=exif)
    np.testing.assert_array_equal(prepared(path, tmp_path), reference)


def grayscale(rgba):
    return np.asarray(Image.fromarray(rgba).convert("LA"))


def test_channels_of_every_kind_are_understood(tmp_path):
    gray = grayscale(drawing())
    expected = prepared(write(tmp_path / "gray_alpha.png", gray), tmp_path)
    np.testing.assert_array_equal(expected[..., 0], expected[..., 2])
    assert iou(expected, prepared(write(tmp_path / "rgba.png", drawing()), tmp_path)) == 1

    flat = np.where(gray[..., 1] > 0, gray[..., 0], 255).astype(np.uint8)
    eight = prepared(write(tmp_path / "gray.png", flat), tmp_path, matting=False)
    sixteen = prepared(write(tmp_path / "gray16.png", flat.astype(np.uint16) * 257), tmp_path, matting=False)
    np.testing.assert_array_equal(eight, sixteen)
    assert iou(eight, expected) > 0.9

    palette = Image.fromarray(on_white(drawing())).quantize(8)
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    without_window = prepared(tmp_path / "palette.png", tmp_path)
    assert without_window[..., 3].mean() > 0.1
    bits = Image.fromarray(flat < 250).convert("1")
    bits.save(tmp_path / "bits.png")
    assert prepared(tmp_path / "bits.png", tmp_path, matting=False)[..., 3].mean() > 0.1


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.png", {}), ("a.jpg", {"quality": 85}), ("a.webp", {"quality": 90}), ("a.bmp", {}), ("a.tif", {})],
)
def test_plain_background_is_removed_and_its_colour_inside_the_object_stays(
    tmp_path, reference, name, options
):
    path = write(tmp_path / name, on_white(drawing()), **options)
    found = prepared(path, tmp_path, matting=False)
    assert iou(found, reference) > 0.93
    row, column = 0.5 * 0.2 * 512 + 0.8 * 512 * 30 / 100, 0.5 * 512 + 0.8 * 512 * (45 - 60) / 100
    assert found[int(row), int(column)].min() > 0.9  # the white window


def test_opaque_alpha_counts_as_none(tmp_path):
    opaque = np.dstack([on_white(drawing()), np.full((150, 120), 255, np.uint8)])
    plain = prepared(write(tmp_path / "rgb.png", on_white(drawing())), tmp_path, matting=False)
    np.testing.assert_array_equal(prepared(write(tmp_path / "o.png", opaque), tmp_path, matting=False), plain)


def test_a_square_object_without_a_border_is_read_back(tmp_path):
    pixels = np.full((150, 150, 4), 200, np.uint8)
    pixels[:5, :, 3] = 0  # there is an alpha, and the object is square beside it
    pixels[:, :5, 3] = 0
    pixels[..., 3] |= (np.indices((150, 150)) >= 5).all(0).astype(np.uint8) * 255
    assert (prepared(write(tmp_path / "square.png", pixels), tmp_path, border=0.0)[..., 3] == 1).all()


def test_transparent_colours_leave_no_fringe(tmp_path):
    rgba = drawing()
    rgba[..., :3][rgba[..., 3] == 0] = (0, 255, 0)
    found = prepared(write(tmp_path / "green.png", rgba), tmp_path, size=100)
    assert (found[..., 1] <= np.maximum(found[..., 0], found[..., 2]) + 0.02).all()


def refused(path, **options):
    with pytest.raises(InputError) as error:
        frame_image(path, **options).png()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unusable_pictures_are_one_line(tmp_path, monkeypatch):
    assert "got none at" in refused(tmp_path / "missing.png")
    assert "got none at" in refused(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    assert "must be one of PNG, JPEG" in refused(tmp_path / "text.png")
    frames = [Image.fromarray(on_white(drawing())), Image.fromarray(255 - on_white(drawing()))]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert "must be one of PNG, JPEG" in refused(tmp_path / "film.gif")
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    assert "must be a single one" in refused(tmp_path / "film.png")
    Image.fromarray(np.ones((64, 64), np.float32)).save(tmp_path / "float.tif")
    assert "32 bits a channel" in refused(tmp_path / "float.tif")
    whole = write(tmp_path / "whole.png", drawing()).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    assert "must be a whole file" in refused(tmp_path / "half.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert "of one plain colour" in refused(write(tmp_path / "noise.png", noise), matting=False)
    monkeypatch.setattr(formats, "MAX_BYTES", 100)
    assert "at most 0 MiB" in refused(tmp_path / "noise.png")


def test_pictures_without_an_object_are_one_line(tmp_path):
    white = np.full((64, 64, 3), 255, np.uint8)
    assert "got 0 x 0" in refused(write(tmp_path / "white.png", white), matting=False)
    empty = np.zeros((64, 64, 4), np.uint8)
    assert "got 0 x 0" in refused(write(tmp_path / "empty.png", empty))
    full = np.full((64, 64, 4), 255, np.uint8)
    full[0, 0, 3] = 0
    assert "fills all of" in refused(write(tmp_path / "full.png", full))


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    path = write(tmp_path / "large.png", np.zeros((9000, 9000), np.uint8))
    data = bytearray(path.read_bytes())
    data[60:] = bytes(len(data) - 60)  # nothing behind the header could be decoded
    path.write_bytes(data)
    assert "64 million pixels" in refused(path)


def test_what_is_missing_for_matting_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(cutout.importlib.util, "find_spec", lambda name: None)
    path = write(tmp_path / "rgb.png", on_white(drawing()))
    assert "pip install 'pgc3d[matting]'" in refused(path)


def whole_file():
    stream = io.BytesIO()
    Image.fromarray(drawing(50, 120)[:, :60]).save(stream, format="PNG")
    return stream.getvalue()


@given(position=st.integers(0, len(whole_file()) - 1), value=st.integers(0, 255), end=st.integers(0, 10**6))
def test_damaged_files_raise_nothing_but_input_errors(tmp_path_factory, position, value, end):
    data = bytearray(whole_file())
    data[position] = value
    path = Path(tmp_path_factory.getbasetemp()) / "damaged.png"
    path.write_bytes(data[: max(end, 1)])
    with suppress(InputError):
        frame_image(path, matting=False)


def flood(region):
    """Pixel by pixel from the border."""
    height, width = region.shape
    edge = [
        (y, x) for y in range(height) for x in range(width) if y in (0, height - 1) or x in (0, width - 1)
    ]
    stack, reached = [place for place in edge if region[place]], np.zeros_like(region)
    while stack:
        y, x = stack.pop()
        if not (0 <= y < height and 0 <= x < width) or reached[y, x] or not region[y, x]:
            continue
        reached[y, x] = True
        stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return reached


@given(arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_background_is_what_a_flood_from_the_border_reaches(region):
    np.testing.assert_array_equal(connected_to_border(region), flood(region))


@pytest.mark.parametrize("options", [{"border": -0.1}, {"border": 0.9}, {"size": 8}])
def test_wrong_settings_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must lie in"):
        InputImageConfig(**options)
