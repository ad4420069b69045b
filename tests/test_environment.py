"""Laws of environment light: what is known of it without any renderer."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from pgc3d.errors import InputError
from pgc3d.inputs.light import load_light
from pgc3d.rendering.brdf import brdf_table, look_up
from pgc3d.rendering.environment import (
    HEIGHT,
    LEVELS,
    WIDTH,
    Environment,
    directions,
    filtered,
    harmonics,
    solid_angles,
)
from pgc3d.rendering.lighting import EnvironmentShading, Lighting, bumped
from pgc3d.rendering.lights import LIGHTS, balanced
from pgc3d.types import Material, Step

BRIGHTNESS = 0.5


def unit(count, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 3, generator=generator, dtype=dtype), dim=1)


def first_light(count):
    return torch.zeros(count, dtype=torch.int64)


@pytest.fixture(scope="module")
def lights():
    return filtered(torch.stack([balanced(light.radiance(), BRIGHTNESS) for light in LIGHTS.values()]))


@pytest.fixture(scope="module")
def white():
    return filtered(torch.ones(1, HEIGHT, WIDTH, 3))


def shading(lights, index=0, turn=0.0):
    table = brdf_table()
    return EnvironmentShading(lights, table, torch.tensor([index]), torch.tensor([turn]))


def material(count, color=0.5, roughness=0.5, metallic=0.0, dtype=torch.float32):
    full = torch.full((count, 1), 1.0, dtype=dtype)
    return Material(color * full.expand(count, 3).clone(), roughness * full, metallic * full)


def test_white_light_is_one_in_every_direction_and_for_every_roughness(white):
    normal = unit(500)
    torch.testing.assert_close(white.diffuse(normal, first_light(500)), torch.ones(500, 3))
    roughness = torch.linspace(0, 1, 500)[:, None]
    glossy = white.glossy(normal, roughness, first_light(500))
    torch.testing.assert_close(glossy, torch.ones(500, 3), atol=1e-5, rtol=0)


def test_no_surface_reflects_more_than_it_gets():
    table = brdf_table()
    total = table.sum(-1)
    assert table.min() >= 0
    assert total.max() <= 1.0 + 1e-6
    assert total[0, 1:].min() > 0.999  # a mirror loses nothing
    assert (total[:, 32:].diff(dim=0) <= 1e-3).all()  # rougher metals lose more between their facets


def test_white_metal_in_white_light_shows_the_table(white):
    normal, towards = unit(200), unit(200, seed=1)
    towards = torch.where((normal * towards).sum(1, keepdim=True) < 0, -towards, towards)
    metal = material(200, color=1.0, roughness=0.6, metallic=1.0)
    found = shading(white).linear(metal, normal, towards, first_light(200))
    scale, bias = look_up(brdf_table(), (normal * towards).sum(1, keepdim=True), metal.roughness)
    torch.testing.assert_close(found, (scale + bias).expand(200, 3), atol=1e-5, rtol=0)
    assert found.max() <= 1.0 + 1e-5


@pytest.mark.parametrize("roughness", [0.1, 0.3, 0.63, 1.0])
@pytest.mark.parametrize("cosine", [0.12, 0.5, 0.97])
def test_the_table_is_the_integral(roughness, cosine):
    """Over directions of light, of the reflection as it is written: D G F / (4 n.l n.v) times n.l."""
    alpha = roughness**2
    height = (np.arange(3000) + 0.5) / 3000
    place = (np.arange(400) + 0.5) / 200 - 1
    light_z, place = np.meshgrid(height, place, indexing="ij")
    angle, measure = (
        np.pi + np.pi * place**3,
        3 * np.pi * place**2 / 200 / 3000,
    )  # finer at the mirror's direction
    view = np.array([math.sqrt(1 - cosine**2), 0.0, cosine])
    across = np.sqrt(1 - light_z**2)
    light = np.stack([across * np.cos(angle), across * np.sin(angle), light_z], axis=-1)
    half = light + view
    half /= np.linalg.norm(half, axis=-1, keepdims=True)
    distribution = alpha**2 / (np.pi * ((half[..., 2] * alpha) ** 2 + 1 - half[..., 2] ** 2) ** 2)

    def smith(z):
        return z * 0 + np.sqrt(alpha**2 + (1 - alpha**2) * z**2)

    visible = 0.5 / (cosine * smith(light_z) + light_z * smith(np.array(cosine)))
    fresnel = (1 - (half * view).sum(-1)) ** 5
    weight = distribution * visible * light_z * measure
    expected = torch.tensor([(weight * (1 - fresnel)).sum(), (weight * fresnel).sum()])
    found = look_up(brdf_table(), torch.tensor([[cosine]]), torch.tensor([[roughness]]))
    torch.testing.assert_close(torch.cat(found)[:, 0].double(), expected, atol=8e-3, rtol=0)


def test_mean_irradiance_of_every_light_is_grey_and_no_white_surface_is_far_beyond_white(lights):
    normal = directions(32, 64).reshape(-1, 3).float()
    weight = (solid_angles(32, 64) / (4 * math.pi)).expand(32, 64).reshape(-1, 1).float()
    for index in range(len(LIGHTS)):
        irradiance = lights.diffuse(normal, torch.full((len(normal),), index))
        torch.testing.assert_close((irradiance * weight).sum(0), torch.full((3,), 0.5), atol=5e-3, rtol=0)
        assert irradiance.max() < 1.2


def test_harmonics_are_orthonormal():
    basis = harmonics(directions(256, 512)).reshape(-1, 9)
    weight = solid_angles(256, 512).expand(256, 512).reshape(-1, 1)
    torch.testing.assert_close(basis.T @ (basis * weight), torch.eye(9).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("index", range(len(LIGHTS)))
def test_irradiance_is_that_of_monte_carlo(lights, index):
    """Within what nine coefficients can do: a clamped cosine has a few per cent beyond degree 2."""
    radiance = balanced(list(LIGHTS.values())[index].radiance(), BRIGHTNESS)
    source = directions(HEIGHT, WIDTH).reshape(-1, 3)
    generator = np.random.default_rng(0)
    weight = solid_angles(HEIGHT, WIDTH).expand(HEIGHT, WIDTH).reshape(-1).numpy()
    drawn = generator.choice(len(source), 40_000, p=weight / weight.sum())
    normal = unit(50, dtype=torch.float64)
    cosine = (normal @ source[drawn].T).clamp(min=0)
    expected = 4 * cosine @ radiance.reshape(-1, 3)[drawn] / len(drawn)  # 4 pi / pi
    found = lights.diffuse(normal.float(), torch.full((50,), index)).double()
    assert (found - expected).abs().mean() < 0.025
    assert (found - expected).abs().max() < 0.08


@pytest.mark.parametrize("roughness", [0.35, 0.5, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("name", ["studio", "sun"])
def test_glossy_light_is_that_of_monte_carlo(lights, roughness, name):
    index = list(LIGHTS).index(name)
    direction = unit(40, seed=3)
    light = torch.full((40,), index)
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 20_000, generator=generator).double()
    alpha = roughness**2
    height = ((1 - first) / (1 + (alpha**2 - 1) * first)).sqrt()  # of half vectors drawn from D n.h
    across, angle = (1 - height**2).sqrt(), 2 * math.pi * second
    half = torch.stack([across * angle.cos(), across * angle.sin(), height], dim=1)
    expected = []
    for axis in direction.double():
        side = normalize(torch.linalg.cross(axis, axis.roll(1) + 0.3), dim=0)
        frame = torch.stack([side, torch.linalg.cross(axis, side), axis])
        around = half @ frame
        towards = 2 * (around @ axis)[:, None] * around - axis
        weight = (towards @ axis).clamp(min=0)[:, None]
        unfiltered = torch.full((len(towards), 1), LEVELS[0])
        seen = lights.glossy(towards.float(), unfiltered, torch.full((len(towards),), index)).double()
        expected.append((seen * weight).sum(0) / weight.sum())
    found = lights.glossy(direction, torch.full((40, 1), roughness), light).double()
    error = (found - torch.stack(expected)).abs() / torch.stack(expected)
    assert error.mean() < 0.05
    assert error.max() < (0.1 if roughness in LEVELS else 0.35)  # between two levels it is a mean of both


def test_light_of_columns_wraps_and_the_middle_is_in_front():
    """A lamp in the middle of the image lies on +z, one to its right on -x, as seen from inside."""
    image = torch.full((1, HEIGHT, WIDTH, 3), 0.1)
    image[0, HEIGHT // 2 - 2 : HEIGHT // 2 + 2, WIDTH // 2 - 2 : WIDTH // 2 + 2, 0] = 50.0
    image[0, HEIGHT // 2 - 2 : HEIGHT // 2 + 2, 3 * WIDTH // 4 - 2 : 3 * WIDTH // 4 + 2, 1] = 50.0
    image[0, :4, :, 2] = 50.0
    light = filtered(image)
    axes = torch.tensor([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]])
    found = light.glossy(axes, torch.full((3, 1), LEVELS[0]), first_light(3))
    assert (found.diagonal() > 40).all()
    assert found.argmax(dim=1).tolist() == [0, 1, 2]
    behind = torch.tensor([[1e-4, 0.0, -1.0], [-1e-4, 0.0, -1.0]])
    seam = light.glossy(behind, torch.full((2, 1), 0.3), first_light(2))
    torch.testing.assert_close(seam[0], seam[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["base_color", "roughness", "metallic", "normal"])
def test_gradients_are_those_of_finite_differences(lights, name):
    double = Environment(lights.irradiance.double(), lights.radiance.double())
    light = EnvironmentShading(double, brdf_table().double(), torch.tensor([0]), torch.tensor([0.3]).double())
    normal, towards = unit(40, dtype=torch.float64), unit(40, seed=1, dtype=torch.float64)
    towards = torch.where((normal * towards).sum(1, keepdim=True) < 0, -towards, towards)
    known = material(40, color=0.43, roughness=0.456, metallic=0.31, dtype=torch.float64)
    inputs = {**vars(known), "normal": normal}
    inputs[name] = inputs[name].clone().requires_grad_()

    def shade(values):
        parts = {**inputs, name: values}
        made = Material(parts["base_color"], parts["roughness"], parts["metallic"])
        return light.linear(made, parts["normal"], towards, first_light(40)).sum(1)

    shade(inputs[name]).sum().backward()
    step, base = 1e-6, inputs[name].detach()
    for channel in range(base.shape[1]):
        move = torch.zeros_like(base)
        move[:, channel] = step
        expected = (shade(base + move) - shade(base - move)) / (2 * step)
        found = inputs[name].grad[:, channel]
        # a difference across the edge of a texel or a cell of the table has another slope on its other side
        close = (found - expected).abs() < 1e-5 * (1 + expected.abs())
        assert close.float().mean() > 0.97


def test_gradients_are_finite_where_there_is_no_surface(lights):
    normal = torch.zeros(3, 3, requires_grad=True)
    towards = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 1.0]])
    color = torch.tensor([[0.0, 0.5, 1.0]]).expand(3, 3).clone().requires_grad_()
    metal = Material(color, torch.full((3, 1), 0.08), torch.ones(3, 1))
    shown = shading(lights)(metal, normalize(normal, dim=-1), towards, first_light(3))
    shown.sum().backward()
    assert shown.isfinite().all()
    assert normal.grad.isfinite().all()
    assert color.grad.isfinite().all()


def test_lights_are_drawn_by_the_step_alone_and_evaluation_has_the_first_one_as_it_is(lights):
    lighting = Lighting.of(lights, "cpu")
    step = Step(index=3, total=10, seed=1)
    first, again = lighting.for_views(64, step), lighting.for_views(64, step)
    assert torch.equal(first.chosen, again.chosen)
    assert torch.equal(first.turn, again.turn)
    assert first.chosen.unique().tolist() == list(range(len(LIGHTS)))
    assert first.turn.std() > 1.5
    assert not torch.equal(first.turn, lighting.for_views(64, Step(index=4, total=10, seed=1)).turn)
    fixed = lighting.for_views(8, None)
    assert not fixed.chosen.any()
    assert not fixed.turn.any()
    assert not Lighting.of(lights, "cpu", rotate=False).for_views(8, step).turn.any()


def test_a_flat_bump_is_no_bump_and_slopes_tilt_towards_the_tangents():
    normal, tangent = torch.tensor([[0.0, 0, 1]]), torch.tensor([[2.0, 0, 0.5, 1]])
    front, back = torch.ones(1), -torch.ones(1)
    torch.testing.assert_close(bumped(normal, tangent, torch.zeros(1, 2), front), normal)
    slope = torch.tensor([[0.5, 0.25]])
    expected = normalize(torch.tensor([[0.5, 0.25, 1.0]]), dim=1)
    torch.testing.assert_close(bumped(normal, tangent, slope, front), expected)
    mirrored = tangent * torch.tensor([1.0, 1, 1, -1])
    torch.testing.assert_close(bumped(normal, mirrored, slope, front), expected * torch.tensor([1.0, -1, 1]))
    # of a back face the whole frame is reversed: its normal points to the camera, its slopes away
    torch.testing.assert_close(bumped(-normal, tangent, slope, back), -expected)


def test_an_image_is_a_light(tmp_path):
    pixels = np.zeros((100, 200, 3), dtype=np.uint8) + 20
    pixels[40:60, 90:110] = (255, 128, 64)
    Image.fromarray(pixels).save(tmp_path / "room.png")
    light = load_light(tmp_path / "room.png")
    assert light.shape == (HEIGHT, WIDTH, 3)
    centre = light[HEIGHT // 2, WIDTH // 2]
    torch.testing.assert_close(centre, torch.tensor([1.0, 0.2158, 0.0513]), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nothing of the kind", "no image|must be"),
        (b"#?RADIANCE\n", "a file of linear light"),
        ((50, 50), "twice as wide as high, got 50 x 50"),
        ((100, 50), "must have red, green and blue"),
    ],
)
def test_a_light_that_is_none_is_one_line(tmp_path, content, message):
    path = tmp_path / "light.png"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.new("RGB", content, (200, 0, 0)).save(path)
    with pytest.raises(InputError, match=message) as caught:
        load_light(path)
    assert "\n" not in str(caught.value)
    assert "light.png" in str(caught.value)
