"""What in an image is the object: pieces, specks, and what the frame cuts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.inputs.image import frame_image
from pgc3d.kernels.regions_numba import connected_to_border, distance, label_regions

SIDE = 300


def prepared():
    rgba = np.zeros((SIDE, SIDE, 4), np.uint8)
    rgba[..., :3] = (90, 40, 160)
    return rgba


def square():
    rgba = prepared()
    rgba[100:200, 100:200, 3] = 255
    return rgba


def framed(tmp_path, rgba, **options):
    said = []
    Image.fromarray(rgba).save(tmp_path / "in.png")
    found = frame_image(tmp_path / "in.png", notify=said.append, **options)
    assert all("\n" not in line and str(tmp_path / "in.png") in line for line in said)
    return found, said


def on_plain(rgba, color=(240, 240, 240)):
    return np.where(rgba[..., 3:] > 127, rgba[..., :3], np.array(color)).astype(np.uint8)


def with_pixel(rgba):
    rgba[3, 3, 3] = 255
    return 1


def with_soft_pixel(rgba):
    rgba[1:6, 1:6, 3] = 90
    rgba[3, 3, 3] = 255
    return 1


def with_dust(rgba):
    for y in range(5, SIDE, 25):
        for x in (5, 40, 260, 290):
            rgba[y : y + 2, x : x + 2, 3] = 255
    return 12 * 4


def with_watermark(rgba):
    for x in range(200, 290, 15):
        rgba[280:286, x : x + 8, 3] = 255
    return 6


SPECKS = {"one pixel": with_pixel, "soft": with_soft_pixel, "dust": with_dust, "watermark": with_watermark}


@pytest.mark.parametrize("add", SPECKS.values(), ids=SPECKS)
def test_specks_change_nothing_and_are_reported(tmp_path, add):
    clean, said = framed(tmp_path, square())
    assert not said
    rgba = square()
    count = add(rgba)
    found, said = framed(tmp_path, rgba)
    assert (found.box, found.png()) == (clean.box, clean.png())
    assert len(said) == 1
    assert f"left out {count} speck{'s' * (count > 1)} apart from the object" in said[0]
    assert np.asarray(found.cutout)[..., 3].sum() == 255 * 100 * 100


def test_specks_before_a_plain_background_are_left_out_too(tmp_path):
    clean, _ = framed(tmp_path, on_plain(square()), matting=False)
    rgba = square()
    rgba[20:25, 20:25, 3] = 255
    found, said = framed(tmp_path, on_plain(rgba), matting=False)
    assert found.box == clean.box
    assert ["left out 1 speck" in line for line in said] == [True]


def test_a_speck_beside_a_concave_object_is_left_out(tmp_path):
    """Its box contains it."""
    rgba = prepared()
    rgba[50:250, 50:90, 3] = rgba[210:250, 50:250, 3] = 255
    clean, _ = framed(tmp_path, rgba)
    rgba[80:84, 200:204, 3] = 255
    found, said = framed(tmp_path, rgba)
    assert found.png() == clean.png()
    assert len(said) == 1


KEPT = {
    "near": (slice(92, 96), slice(120, 124)),
    "of a tenth of the size": (slice(20, 52), slice(20, 52)),
    "long": (slice(20, 60), slice(20, 22)),
}


@pytest.mark.parametrize("place", KEPT.values(), ids=KEPT)
def test_pieces_of_real_size_and_near_ones_stay(tmp_path, place):
    rgba = square()
    rgba[(*place, 3)] = 255
    found, said = framed(tmp_path, rgba)
    assert found.box[:2] == (min(100, place[1].start), min(100, place[0].start))
    assert np.asarray(found.cutout)[place][..., 3].min() == 255
    assert not any("left out" in line for line in said)


def test_what_an_outline_encloses_belongs_to_it(tmp_path):
    """The eyes of a face that is drawn as a line, however small."""
    rgba = prepared()
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot(y - 150, x - 150)
    rgba[(radius < 100) & (radius > 95), 3] = 255
    rgba[120:123, [110, 111, 190, 191], 3] = 255
    found, said = framed(tmp_path, rgba)
    assert not said
    assert np.asarray(found.cutout)[121, 110, 3] == 255


def test_two_objects_are_reported_and_kept(tmp_path):
    rgba = prepared()
    rgba[100:200, 20:120, 3] = rgba[100:200, 200:250, 3] = 255
    found, said = framed(tmp_path, rgba)
    assert found.box == (20, 100, 250, 200)
    assert len(said) == 1
    assert "shows 2 separate pieces" in said[0]
    assert "the second has 50% of the first one's pixels" in said[0]


BORDERS = {
    "left": np.s_[100:200, :120], "right": np.s_[100:200, 180:], "top": np.s_[:120, 100:200],
    "bottom": np.s_[180:, 100:200], "left and top": np.s_[:150, :150], "left and right": np.s_[100:200, :],
}  # fmt: skip


@pytest.mark.parametrize("plain", [False, True], ids=["alpha", "plain background"])
@pytest.mark.parametrize("names", BORDERS)
def test_the_borders_that_cut_an_object_are_named(tmp_path, names, plain):
    rgba = prepared()
    rgba[(*BORDERS[names], 3)] = 255
    found, said = framed(tmp_path, on_plain(rgba) if plain else rgba, matting=not plain)
    assert len(said) == 1
    assert f"reaches the {names} border{'s' * (' and ' in names)} of the image" in said[0]
    assert np.asarray(found.cutout)[..., 3].max() == 255


def test_an_image_trimmed_to_its_object_is_not_cut(tmp_path):
    y, x = np.mgrid[:SIDE, :SIDE]
    rgba = prepared()
    rgba[np.hypot(y - 149.5, x - 149.5) <= 150, 3] = 255
    _, said = framed(tmp_path, rgba)
    assert not said


def gradient():
    return np.broadcast_to(np.linspace(120, 250, SIDE), (SIDE, SIDE))


def vignette():
    y, x = np.mgrid[:SIDE, :SIDE] - 149.5
    return 250 - 90 * (np.hypot(y, x) / 212) ** 4


def checks():
    y, x = np.mgrid[:SIDE, :SIDE]
    return np.where((y // 20 + x // 20) % 2, 250.0, 150.0)


@pytest.mark.parametrize("background", [gradient, vignette, checks])
def test_a_background_that_is_not_plain_is_still_refused(tmp_path, background):
    levels = np.where(square()[..., 3] > 0, 20, background()).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "in.png")
    with pytest.raises(
        InputError,
        match=r"must go with a background of one plain colour, got another in .*% of the border of",
    ):
        frame_image(tmp_path / "in.png", matting=False)


def reference_labels(mask, *, diagonal):
    """Region by region, by search."""
    labels, count = np.zeros(mask.shape, int), 0
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    steps += [(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else []
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start]:
            continue
        count, stack = count + 1, [start]
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and not labels[y, x]:
                labels[y, x] = count
                stack += [(y + dy, x + dx) for dy, dx in steps]
    return labels, count


MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(MASKS, st.booleans())
def test_regions_are_those_of_a_search(mask, diagonal):
    labels, count = label_regions(mask, diagonal=diagonal)
    expected, expected_count = reference_labels(mask, diagonal=diagonal)
    np.testing.assert_array_equal(labels, expected)
    assert count == expected_count


@given(MASKS)
def test_distance_is_the_nearest_pixels(mask):
    mask[0, 0] = True
    points, (y, x) = np.argwhere(mask), np.indices(mask.shape)
    steps = np.maximum(np.abs(y[..., None] - points[:, 0]), np.abs(x[..., None] - points[:, 1])).min(axis=-1)
    np.testing.assert_array_equal(distance(mask), steps)


def winding(side):
    """One corridor through the whole image."""
    region = np.zeros((side, side), bool)
    region[::2] = True
    region[1::4, -1] = region[3::4, 0] = True
    region[:, 0] &= np.arange(side) % 4 != 0
    region[0, 0] = True
    return region


def test_time_grows_with_the_pixels_of_a_winding_background():
    """Not with their square: three million pixels of one corridor take well below a second."""
    import time

    connected_to_border(winding(16))  # compiled
    start = time.process_time()
    reached = connected_to_border(winding(2048))
    assert time.process_time() - start < 1.0
    np.testing.assert_array_equal(reached, winding(2048))
