import math

import numpy as np
import pytest
import torch
from fakes import FlatColor, PullTowardColor
from hypothesis import given
from hypothesis import strategies as st
from image_profiles import profile_bytes, to_srgb
from images import grid, png
from meshes import write_cube
from PIL import Image
from steps import backpropagate
from steps import render as render_step

from pgc3d.backgrounds import Backdrop, draw_backgrounds, put_behind
from pgc3d.cameras import ReferenceCameraConfig, turntable
from pgc3d.colors import named_color
from pgc3d.config import ObjectiveConfig, dump_config, load_config
from pgc3d.errors import InputError
from pgc3d.guidance.reference import ReferenceConfig
from pgc3d.images import resize
from pgc3d.inputs import formats
from pgc3d.inputs.background import load_backdrop, prepare_backdrop
from pgc3d.inputs.image import frame_image
from pgc3d.inputs.mesh import prepare_mesh_file
from pgc3d.optimize import Objective
from pgc3d.presets import split_backgrounds
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.types import GuidanceOutput

CPU = torch.device("cpu")
SIDE = 32
RED, BLUE, GREY = (0.9, 0.1, 0.2), (0.05, 0.3, 0.8), (0.5, 0.5, 0.5)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def backdrop(picture):
    return Backdrop(picture, tuple(picture.mean(dim=(0, 1)).tolist()))


def halves(side=SIDE):
    """Red on the left, blue on the right."""
    left = torch.tensor(RED).expand(side, side // 2, 3)
    return torch.cat([left, torch.tensor(BLUE).expand(side, side // 2, 3)], dim=1)


@pytest.fixture(scope="module", params=["dmtet", "painted"])
def asset(request, tmp_path_factory):
    generator, rasterizer = torch.Generator().manual_seed(0), CpuRasterizer()
    if request.param == "dmtet":
        config = DMTetConfig(resolution=16, color_field=ColorFieldConfig(levels=2))
        return build_dmtet(config, rasterizer=rasterizer, generator=generator)
    path = write_cube(tmp_path_factory.mktemp("meshes") / "cube.glb")
    prepared = prepare_mesh_file(
        path, up="+y", front="auto", crease_degrees=40.0, texture_size=64, rasterizer=rasterizer
    )
    config = TexturedMeshConfig(texture="image", image_size=64)
    return build_textured_mesh(config, prepared, rasterizer=rasterizer, generator=generator)


def render(asset, color, picture=None):
    rendering = render_step(asset, turntable(2), SIDE, torch.tensor([color] * 2))
    return put_behind(rendering, [backdrop(picture)] * 2) if picture is not None else rendering


def gradients(asset, rendering, weights):
    torch.autograd.backward((weights * rendering.color).sum())
    tensors = asset.parameter_store().tensors()
    found = [torch.zeros_like(t) if t.grad is None else t.grad.clone() for t in tensors]
    for tensor in tensors:
        tensor.grad = None
    return found


def test_before_a_picture_an_asset_looks_as_before_the_colours_in_it(asset):
    """Values and gradients, outlines too: each half is what a render over that half's colour shows."""
    weights = noise(2, SIDE, SIDE, 3) - 0.5
    left = torch.zeros(2, SIDE, SIDE, 3)
    left[:, :, : SIDE // 2] = 1
    composed, red, blue = render(asset, GREY, halves()), render(asset, RED), render(asset, BLUE)
    torch.testing.assert_close(composed.color, torch.where(left > 0, red.color, blue.color))
    found = gradients(asset, composed, weights)
    parts = gradients(asset, red, weights * left), gradients(asset, blue, weights * (1 - left))
    expected = [first + second for first, second in zip(*parts, strict=True)]
    assert any(tensor.abs().max() > 1e-3 for tensor in expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_object_hides_the_picture_and_nothing_else_does(asset):
    picture = noise(SIDE, SIDE, 3)
    plain, composed = render(asset, GREY), render(asset, GREY, picture)
    free, covered = (plain.alpha == value for value in (0, 1))
    assert free.any()
    assert covered.any()
    shown = picture.expand(2, -1, -1, -1)
    torch.testing.assert_close(composed.color[free[..., 0]], shown[free[..., 0]])
    assert torch.equal(composed.color[covered[..., 0]], plain.color[covered[..., 0]])
    for layer in ("normal", "depth", "alpha", "background"):
        assert torch.equal(getattr(composed, layer), getattr(plain, layer))


class ChangesTheBackground:
    """A gradient where nothing is in front of the background."""

    def input_resolution(self, rendered):
        return rendered

    def __call__(self, image, rendering, views, step):
        self.image, self.rendering = image, rendering
        return GuidanceOutput(gradient=(rendering.alpha == 0) * noise(*image.shape))


def test_a_gradient_on_the_background_reaches_no_parameter(asset):
    guidance, picture = ChangesTheBackground(), noise(48, 48, 3)
    composed = render(asset, GREY, picture)
    free = composed.alpha == 0
    assert free.any()
    assert not any(found.any() for found in gradients(asset, composed, free * noise(2, SIDE, SIDE, 3)))
    objective = Objective(
        sample_cameras=lambda step: turntable(2),
        guidance=guidance,
        clip=lambda gradient: gradient,
        backgrounds=(backdrop(picture),),
    )
    backpropagate(asset, objective, SIDE)
    for tensor in asset.parameter_store().tensors():
        assert tensor.grad is None or not tensor.grad.any()
        tensor.grad = None
    free = guidance.rendering.alpha[..., 0] == 0
    expected = resize(picture[None], SIDE).expand(2, -1, -1, -1)
    torch.testing.assert_close(guidance.image[free], expected[free])
    assert torch.equal(guidance.image, guidance.rendering.color)
    torch.testing.assert_close(guidance.rendering.background, picture.mean(dim=(0, 1)).expand(2, 3))


def test_views_before_a_colour_stay_as_they_are():
    rendering = render_step(FlatColor(), turntable(3), 8, noise(3, 3))
    assert put_behind(rendering, [None] * 3) is rendering
    mixed = put_behind(rendering, [None, backdrop(noise(8, 8, 3)), None])
    assert torch.equal(mixed.color[::2], rendering.color[::2])


@given(st.integers(1, 40), st.integers(0, 2**20))
def test_a_picture_leaves_the_other_draws_alone(batch, seed):
    """The same views have the same colours as if the picture's place were held by a colour."""
    drop = backdrop(noise(4, 4, 3))
    (colors, drops), (plain, none) = (
        draw_backgrounds((RED, second, None), batch, torch.Generator().manual_seed(seed), CPU)
        for second in (drop, drop.color)
    )
    assert torch.equal(colors, plain)
    assert none == [None] * batch
    mean = (colors == torch.tensor(drop.color)).all(dim=1).tolist()
    assert [found is drop for found in drops] == mean


def test_every_background_is_drawn():
    drop = backdrop(noise(4, 4, 3))
    colors, drops = draw_backgrounds((RED, drop, None), 300, torch.Generator().manual_seed(0), CPU)
    red = int((colors == torch.tensor(RED)).all(dim=1).sum())
    pictures = sum(found is drop for found in drops)
    assert min(red, pictures, 300 - red - pictures) > 60


def store(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def loaded(path, tmp_path, size=SIDE):
    (tmp_path / "prepared.png").write_bytes(prepare_backdrop(path, size))
    return load_backdrop(tmp_path / "prepared.png", CPU)


@pytest.mark.parametrize("size", [24, SIDE, 100])
@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (75, 75)], ids=["wide", "high", "square"])
def test_the_middle_square_covers_a_view(tmp_path, shape, size):
    pixels = np.full((*shape, 3), 255, np.uint8)
    top, left = ((length - min(shape)) // 2 for length in shape)
    square = pixels[top : top + min(shape), left : left + min(shape)]
    square[: min(shape) // 2], square[min(shape) // 2 :] = (200, 0, 0), (0, 0, 100)
    found = loaded(store(tmp_path / "in.png", pixels), tmp_path, size)
    assert found.image.shape == (size, size, 3)
    middle, reach = size // 2, 1 + math.ceil(3 * max(1, size / min(shape)))  # of the filter
    for rows, color in (
        (slice(reach, middle - reach), (200, 0, 0)),
        (slice(middle + reach, -reach), (0, 0, 100)),
    ):
        part = found.image[rows, reach:-reach]
        assert part.numel()
        torch.testing.assert_close(part, (torch.tensor(color) / 255).expand_as(part), atol=5e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(found.color), found.image.mean(dim=(0, 1)))


def test_a_picture_of_the_runs_size_is_kept_exactly(tmp_path):
    pixels = (255 * noise(SIDE, SIDE, 3)).byte()
    found = loaded(store(tmp_path / "in.png", pixels.numpy()), tmp_path)
    assert torch.equal(found.image, pixels / 255)


def test_files_are_read_as_photos_are(tmp_path, monkeypatch):
    """Upright, from 16 bits, from a palette; and refused in the same words."""
    pixels = np.zeros((40, 40), np.uint8)
    pixels[:20], pixels[20:, :20] = 200, 90
    expected = loaded(store(tmp_path / "plain.png", pixels), tmp_path).image
    exif = Image.Exif()
    exif[274] = 3  # stored upside down
    turned = store(tmp_path / "turned.png", np.ascontiguousarray(np.rot90(pixels, 2)), exif=exif)
    deep = store(tmp_path / "deep.png", pixels.astype(np.uint16) * 257)
    Image.fromarray(pixels).quantize(4).save(tmp_path / "palette.png")
    for path in (turned, deep, tmp_path / "palette.png"):
        assert torch.equal(loaded(path, tmp_path).image, expected)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "half.png").write_bytes(deep.read_bytes()[:90])
    monkeypatch.setattr(formats, "MAX_PIXELS", 1000)
    for name in ("missing.png", "text.png", "half.png", "plain.png"):
        lines = []
        for prepare in (lambda path: prepare_backdrop(path, SIDE), frame_image):
            with pytest.raises(InputError) as error:
                prepare(tmp_path / name)
            lines.append(str(error.value))
        assert lines[0] == lines[1]
        assert "\n" not in lines[0]


def test_a_background_has_its_profile_applied(tmp_path):
    levels = grid(3, 255, cell=8)
    for profile in (None, "p3", "broken"):
        said = []
        path = tmp_path / "in.png"
        path.write_bytes(png(levels, bits=8, color=2, profile=profile_bytes(profile)))
        (tmp_path / "prepared.png").write_bytes(prepare_backdrop(path, 16, said.append))
        found = load_backdrop(tmp_path / "prepared.png", CPU).image.numpy()
        meant = to_srgb(levels[:, 4:-4] / 255, "p3" if profile == "p3" else None)
        np.testing.assert_allclose(found, meant, atol=3 / 255)
        assert ["cannot be used" in line for line in said] == [True] * (profile == "broken")


def test_a_wide_background_keeps_its_fineness(tmp_path):
    pixels = np.zeros((200, 3000, 3), np.uint8)
    pixels[:, 1401:1599:2] = 255  # as fine as can be, in the middle square
    found = loaded(store(tmp_path / "wide.png", pixels), tmp_path, 200).image.numpy()
    np.testing.assert_allclose(found, pixels[:, 1400:1600] / 255)


def test_what_can_be_seen_through_is_refused(tmp_path):
    path = store(tmp_path / "glass.png", np.full((8, 8, 4), 100, np.uint8))
    with pytest.raises(InputError, match="must be opaque"):
        prepare_backdrop(path, SIDE)
    with pytest.raises(InputError, match="must be a prepared square image"):
        load_backdrop(path, CPU)


def test_the_reference_view_has_colours_behind_it_alone():
    with pytest.raises(ValueError, match="must have backgrounds of one colour, got 'image'"):
        ObjectiveConfig(
            guidance=ReferenceConfig(), cameras=ReferenceCameraConfig(), backgrounds=("white", "image")
        )


def test_the_guidance_is_told_the_pictures_mean():
    """So that a prompt with a slot for the background names the nearest colour."""
    guidance, drop = PullTowardColor(), backdrop(noise(8, 8, 3))
    objective = Objective(
        sample_cameras=lambda step: turntable(1), guidance=guidance, clip=lambda g: g, backgrounds=(drop,)
    )
    backpropagate(FlatColor(), objective, 8)
    torch.testing.assert_close(guidance.seen[0]["background"], torch.tensor([drop.color]))


@pytest.mark.parametrize(
    ("text", "color"),
    [
        ("#ff8000", (255, 128, 0)), ("#FF8000", (255, 128, 0)), ("#f80", (255, 136, 0)), ("red", (255, 0, 0)),
        ("#ff80", None), ("ff8000", None), ("#gg0000", None), ("#ff8000\n", None), ("", None),
    ],
)  # fmt: skip
def test_colours_have_names_and_numbers(text, color):
    found = named_color(text)
    assert (found and tuple(round(255 * value) for value in found)) == color


def test_a_background_by_its_number_is_no_file_and_stays_in_the_configuration(tmp_path):
    names, picture = split_backgrounds(["#ff8000", "white", "#0c0"])
    assert (names, picture) == (["#ff8000", "white", "#0c0"], None)
    config = load_config(options={"objectives": {"color": {"backgrounds": names}}})
    again = tmp_path / "config.yaml"
    again.write_text(dump_config(config))
    assert load_config([again]) == config
