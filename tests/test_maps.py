import io
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_profiles import profile_bytes
from images import png, tiff
from PIL import Image

from pgc3d.errors import InputError
from pgc3d.inputs.decode import decode_levels
from pgc3d.inputs.image import frame_image, load_prepared_image
from pgc3d.inputs.maps import _place, load_map, prepare_map

HEIGHT, WIDTH = 150, 120


def drawing():
    """An L on nothing, with waves of red from left to right and waves of green downwards."""
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[..., 0] = np.rint(127.5 + 127.5 * np.sin(np.arange(WIDTH) / 3))
    rgba[..., 1] = np.rint(127.5 + 127.5 * np.sin(np.arange(HEIGHT) / 4))[:, None]
    rgba[20:120, 30:60, 3] = 255
    rgba[90:120, 60:100, 3] = 255
    return rgba


def write(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.fixture
def framed(tmp_path):
    return frame_image(write(tmp_path / "picture.png", drawing()), size=256)


@pytest.fixture
def photo(framed, tmp_path):
    (tmp_path / "photo.png").write_bytes(framed.png())
    return load_prepared_image(tmp_path / "photo.png").numpy()


def depth(framed, tmp_path, values, name="given.npy"):
    (tmp_path / "depth.png").write_bytes(prepare_map("depth", write(tmp_path / name, values), framed))
    return load_map("depth", tmp_path / "depth.png", framed.size).numpy()[..., 0]


def normal(framed, tmp_path, values, name="given.npy"):
    (tmp_path / "normal.png").write_bytes(prepare_map("normal", write(tmp_path / name, values), framed))
    return load_map("normal", tmp_path / "normal.png", framed.size).numpy()


def waves():
    rgba = drawing()
    return rgba[..., 0] / 255, rgba[..., 1] / 255


def assert_same_place(found, photo, channel):
    """As in a channel of the picture; a pixel beside it is much worse, on average."""
    inside = photo[..., 3] > 0.99
    wanted = photo[inside][:, channel]
    errors = [np.abs(np.roll(found, shift, axis=1 - channel)[inside] - wanted).mean() for shift in (-1, 0, 1)]
    assert errors[1] < 0.015
    assert errors[1] < 0.4 * min(errors[0], errors[2])


def test_maps_are_framed_as_the_picture_is(framed, photo, tmp_path):
    """What a map shows is where the same values stand in the prepared picture."""
    right, down = waves()
    facing = np.stack([0.3 + 0.4 * right, 0.3 + 0.4 * down, np.ones_like(right)], axis=-1)
    normals = normal(framed, tmp_path, facing)
    for channel, values in enumerate((right, down)):
        assert_same_place(depth(framed, tmp_path, values), photo, channel)
        tilt = normals[..., channel] / normals[..., 2]
        assert_same_place((tilt + 0.4) / 0.8, photo, channel)


def test_scale_shift_and_file_format_of_depth_do_not_matter(framed, tmp_path):
    right, _ = waves()
    levels = np.rint(right * 255)
    expected = depth(framed, tmp_path, levels)
    np.testing.assert_allclose(depth(framed, tmp_path, 1e-3 * levels + 7), expected, atol=3e-3)
    for values in (levels.astype(np.uint8), (257 * levels).astype(np.uint16)):
        np.testing.assert_allclose(depth(framed, tmp_path, values, "given.png"), expected, atol=1e-4)


def test_sixteen_bits_of_depth_are_kept(framed, photo, tmp_path):
    right, _ = waves()
    fine = np.rint(30_000 + 100 * right).astype(np.uint16)
    found = depth(framed, tmp_path, fine, "given.png")[photo[..., 3] > 0.99]
    assert len(np.unique(np.rint(found * 50))) > 40  # an eighth of a bit in eight


@pytest.mark.parametrize("background", [np.inf, np.nan, -1e6, 1e6], ids=str)
def test_the_background_leaves_no_trace(framed, photo, tmp_path, background):
    right, _ = waves()
    inside = photo[..., 3] > 0.5
    outside = drawing()[..., 3] == 0
    expected = depth(framed, tmp_path, right)
    found = depth(framed, tmp_path, np.where(outside, background, right))
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def test_grey_levels_in_all_their_dresses_are_depth(framed, tmp_path):
    """As RGB, with a palette, with alpha, with a profile, from white to black: the same, with all bits."""
    levels = np.rint(30_000 + 20_000 * waves()[0]).astype(int)[..., None]
    expected = depth(framed, tmp_path, levels[..., 0].astype(float))
    rgb, alpha = levels.repeat(3, axis=2), np.full_like(levels, 65535)
    linear = profile_bytes("linear")
    files = {
        "rgb": png(rgb, bits=16, color=2),
        "rgba": png(np.concatenate([rgb, alpha], axis=2), bits=16, color=6),
        "la": png(np.concatenate([levels, alpha], axis=2), bits=16, color=4),
        "profile": png(levels, bits=16, color=0, profile=linear),
        "from white": tiff(65535 - levels, bits=16, photometric=0, order="<"),
        "from white, big-endian": tiff(65535 - levels, bits=16, photometric=0, order=">", deflate=True),
        "float from white": tiff(-levels.astype(np.float32), bits=32, photometric=0, sample_format=3),
        "integer": tiff(levels, bits=32, photometric=1, sample_format=2),
    }
    for name, content in files.items():
        (tmp_path / "given").write_bytes(content)
        (tmp_path / "depth.png").write_bytes(prepare_map("depth", tmp_path / "given", framed))
        found = load_map("depth", tmp_path / "depth.png", framed.size).numpy()[..., 0]
        np.testing.assert_allclose(found, expected, atol=3e-5, err_msg=name)
    (tmp_path / "given").write_bytes(
        png(levels >> 8, bits=8, color=3, palette=np.arange(256).repeat(3).reshape(-1, 3))
    )
    (tmp_path / "depth.png").write_bytes(prepare_map("depth", tmp_path / "given", framed))
    found = load_map("depth", tmp_path / "depth.png", framed.size).numpy()[..., 0]
    np.testing.assert_allclose(found, expected, atol=0.01)
    false_colors = np.stack([levels[..., 0], 65535 - levels[..., 0], levels[..., 0]], axis=-1)
    (tmp_path / "given").write_bytes(png(false_colors, bits=16, color=2))
    assert "must hold grey levels, not colours" in refused(framed, "depth", tmp_path / "given")


@pytest.mark.parametrize("file_format", ["png", "II", "MM", "apart"])
def test_sixteen_bits_of_normals_are_read_in_full(framed, photo, tmp_path, file_format):
    """Below the steps of 8 bits, a slope still has a mean that is right, with no lean to one side."""
    vector = np.array([0.2013, -0.3037, 0.0])
    vector[2] = np.sqrt(1 - (vector**2).sum())
    levels = np.rint(65535 * np.broadcast_to(0.5 * vector + 0.5, (HEIGHT, WIDTH, 3))).astype(int)
    content = {
        "png": lambda: png(levels, bits=16, color=2, profile=profile_bytes("p3")),
        "II": lambda: tiff(levels, bits=16, photometric=2, order="<"),
        "MM": lambda: tiff(levels, bits=16, photometric=2, order=">", deflate=True),
        "apart": lambda: tiff(levels, bits=16, photometric=2, apart=True),
    }[file_format]()
    (tmp_path / "given").write_bytes(content)
    found = _place(decode_levels(tmp_path / "given"), framed, tmp_path)[0][photo[..., 3] > 0.99]
    np.testing.assert_allclose(2 * found - 1, np.broadcast_to(vector, found.shape), atol=4e-5)


def test_normals_come_in_eight_bits_and_as_numbers_and_are_unit(framed, photo, tmp_path):
    vector = np.array([0.48, -0.6, 0.64])
    encoded = np.broadcast_to(0.5 * vector + 0.5, (HEIGHT, WIDTH, 3))
    inside = photo[..., 3] > 0.99
    bytes_ = np.rint(encoded * 255).astype(np.uint8)
    with_alpha = np.dstack([bytes_, drawing()[..., 3]])
    for values, name in ((encoded, "a.npy"), (bytes_, "a.png"), (with_alpha, "b.png")):
        found = normal(framed, tmp_path, values, name)[inside]
        np.testing.assert_allclose(found, np.broadcast_to(vector, found.shape), atol=0.012)
    short = normal(framed, tmp_path, 0.5 + 0.5 * (encoded - 0.5))[inside]
    np.testing.assert_allclose(np.linalg.norm(short, axis=-1), 1, atol=0.01)


def test_a_picture_larger_than_the_working_size_has_its_maps_at_the_same_place(tmp_path):
    large = np.repeat(np.repeat(drawing(), 20, axis=0), 20, axis=1)
    framed = frame_image(write(tmp_path / "large.png", large), size=256)
    assert framed.cutout.size != framed.original
    (tmp_path / "photo.png").write_bytes(framed.png())
    photo = load_prepared_image(tmp_path / "photo.png").numpy()
    assert_same_place(depth(framed, tmp_path, large[..., 0] / 255), photo, 0)


def refused(framed, name, path):
    with pytest.raises(InputError) as error:
        prepare_map(name, path, framed)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_map_of_another_size_is_one_line(framed, tmp_path):
    for name, values in (("depth", np.ones((WIDTH, HEIGHT))), ("normal", np.ones((WIDTH, HEIGHT, 3)))):
        line = refused(framed, name, write(tmp_path / "turned.npy", values))
        assert f"a {name} map must have the size of the input image, 120 x 150, but" in line
        assert "has 150 x 120" in line


def test_unusable_maps_are_one_line(framed, tmp_path):
    right, _ = waves()
    facing = np.stack([right, right, np.ones_like(right)], axis=-1)
    gray = write(tmp_path / "gray.png", np.rint(right * 255).astype(np.uint8))
    rgb = write(tmp_path / "rgb.png", drawing()[..., :3])
    assert "got none at" in refused(framed, "depth", tmp_path / "missing.png")
    assert "got none at" in refused(framed, "depth", tmp_path / "missing.npy")
    assert "must hold grey levels, not colours" in refused(framed, "depth", rgb)
    assert "got grey levels" in refused(framed, "normal", gray)
    assert "must vary over the object" in refused(
        framed, "depth", write(tmp_path / "flat.npy", np.full((HEIGHT, WIDTH), 3.0))
    )
    hole = right.copy()
    hole[100, 40] = np.nan
    assert "finite all over the object" in refused(framed, "depth", write(tmp_path / "hole.npy", hole))
    for values in (facing[..., :2], np.ones(5), np.ones((2, HEIGHT, WIDTH, 3))):
        assert "number(s) a pixel" in refused(framed, "normal", write(tmp_path / "shape.npy", values))
    signed = write(tmp_path / "signed.npy", 2 * facing - 1)
    assert "must hold (n + 1) / 2, numbers in [0, 1]" in refused(framed, "normal", signed)
    away = write(tmp_path / "away.npy", 1 - facing)
    assert "100% of the object have normals with negative z" in refused(framed, "normal", away)
    (tmp_path / "text.npy").write_text("no array")
    assert "must be a whole file" in refused(framed, "depth", tmp_path / "text.npy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "must be a whole file" in refused(framed, "depth", tmp_path / "objects.npy")
    whole = write(tmp_path / "half.npy", right).read_bytes()
    (tmp_path / "half.npy").write_bytes(whole[: len(whole) // 2])
    assert "must be a whole file" in refused(framed, "depth", tmp_path / "half.npy")
    np.save(tmp_path / "words.npy", np.full((HEIGHT, WIDTH), "a"))
    assert "must hold one array of numbers" in refused(framed, "depth", tmp_path / "words.npy")
    half = gray.read_bytes()
    (tmp_path / "half.png").write_bytes(half[: len(half) // 2])
    assert "must be a whole file" in refused(framed, "depth", tmp_path / "half.png")


def test_a_prepared_map_of_another_size_is_one_line(framed, tmp_path):
    depth(framed, tmp_path, waves()[0])
    with pytest.raises(InputError, match="must be a prepared depth map of 128 x 128 pixels, got 256 x 256"):
        load_map("depth", tmp_path / "depth.png", 128)


def whole_array():
    stream = io.BytesIO()
    np.save(stream, np.arange(9.0).reshape(3, 3))
    return stream.getvalue()


@given(position=st.integers(0, len(whole_array()) - 1), value=st.integers(0, 255), end=st.integers(0, 300))
def test_damaged_arrays_raise_nothing_but_input_errors(tmp_path_factory, position, value, end):
    data = bytearray(whole_array())
    data[position] = value
    path = tmp_path_factory.getbasetemp() / "damaged.npy"
    path.write_bytes(data[: max(end, 1)])
    with suppress(InputError):
        load_map("depth", path, 3)
