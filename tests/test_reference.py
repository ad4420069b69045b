import math

import pytest
import torch
from steps import FIRST, backpropagate, show

from pgc3d import pgc
from pgc3d.cameras import reference_view
from pgc3d.config import ObjectiveConfig, load_config
from pgc3d.errors import ConfigError
from pgc3d.guidance.reference import SIDE as STATED
from pgc3d.guidance.reference import ReferenceConfig, ReferenceView
from pgc3d.interfaces import Guidance
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.rendering import build_rasterizer
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.types import GuidanceOutput, Rendering, Views
from pgc3d.view_config import ViewConfig

SIDE = 12


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_photo():
    color, alpha = draw(SIDE, SIDE, 3), draw(SIDE, SIDE, 1, seed=1)
    return torch.cat([color * alpha, alpha], dim=-1)


def draw_rendering(batch=2):
    color, alpha = draw(batch, SIDE, SIDE, 3, seed=2), draw(batch, SIDE, SIDE, 1, seed=3)
    return Rendering(color, color, alpha, alpha, background=draw(batch, 3, seed=4))


def view(rendering):
    return Views(reference_view(ViewConfig(), len(rendering.color)), rendering.background)


def loss(photo, rendering, color, mask):
    """From the formula, with straight colours, as a sum over `STATED`^2 pixels."""
    alpha = photo[..., 3:]
    straight = photo[..., :3] / alpha
    target = alpha * straight + (1 - alpha) * rendering.background[:, None, None]
    colors = (alpha * (rendering.color - target).square()).sum()
    return (STATED / SIDE) ** 2 * (color * colors + mask * (rendering.alpha - alpha).square().sum())


def test_gradients_are_those_of_the_summed_loss():
    photo, rendering = draw_photo(), draw_rendering()
    image, alpha = rendering.color.clone().requires_grad_(), rendering.alpha.clone().requires_grad_()
    together = Rendering(image, image, alpha, alpha, rendering.background)
    expected = torch.autograd.grad(loss(photo, together, 0.7, 0.3), [image, alpha])
    guidance = ReferenceView(input_image=photo, color=0.7, mask=0.3)
    output = guidance(rendering.color, rendering, view(rendering), FIRST)
    assert isinstance(guidance, Guidance)
    assert guidance.input_resolution(SIDE) == SIDE
    torch.testing.assert_close(output.gradient, expected[0])
    torch.testing.assert_close(output.buffers["alpha"], expected[1])
    total = output.metrics["loss_color"] + output.metrics["loss_mask"]
    torch.testing.assert_close(total, loss(photo, rendering, 0.7, 0.3))


def test_nothing_pulls_where_the_view_is_the_picture():
    photo, background = draw_photo(), draw(2, 3, seed=4)
    image = photo[..., :3] + (1 - photo[..., 3:]) * background[:, None, None]
    alpha = photo[None, ..., 3:].expand(2, -1, -1, -1)
    rendering = Rendering(image, image, alpha, alpha, background)
    output = ReferenceView(input_image=photo)(image, rendering, view(rendering), FIRST)
    assert output.gradient.abs().max() < 1e-12
    assert output.buffers["alpha"].abs().max() < 1e-12


def smooth(side, *, seed=0):
    """An image, its alpha, depth and normals: low frequencies, drawn at the pixels' centres."""
    phase = draw(8, 2, seed=seed) * 2 * math.pi
    axis = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    y, x = axis[:, None], axis[None, :]
    waves = [0.5 + 0.4 * torch.sin(4 * x + a) * torch.sin(3 * y + b) for a, b in phase]
    *rest, alpha, depth = (wave.float()[..., None] for wave in waves)
    return torch.cat(rest[:3], dim=-1), alpha, 2 + depth, torch.cat(rest[3:], dim=-1)


def test_loss_and_gradients_do_not_depend_on_the_resolution_of_the_rendering():
    color, alpha, depth, normal = smooth(128, seed=1)
    guidance = ReferenceView(
        input_image=torch.cat([color * alpha, alpha], dim=-1), depth_map=1 / depth, normal_map=normal - 0.5
    )
    found = []
    for side in (32, 64, 128):
        color, alpha, depth, normal = (buffer[None] for buffer in smooth(side))
        rendering = Rendering(color, normal, depth, alpha, background=draw(1, 3, seed=4).float())
        output = guidance(color, rendering, view(rendering), FIRST)
        pulls = {"image": output.gradient, **output.buffers}
        numbers = {f"{name}, sum": pull.sum() for name, pull in pulls.items()}
        numbers |= {f"{name}, length": pull.abs().sum() for name, pull in pulls.items()}
        found.append({name: value.item() for name, value in {**numbers, **output.metrics}.items()})
    assert len(found[0]) == 12
    for name, value in found[-1].items():
        # a sum that cancels is compared with the lengths that it is made of
        scale = abs(found[-1].get(name.replace("sum", "length"), value))
        assert scale > 1.0
        for other in found[:-1]:
            assert abs(other[name] - value) < 0.01 * scale, name


def test_reference_camera_is_where_the_configuration_says():
    cameras = reference_view(ViewConfig(elevation_degrees=20.0, fovy_degrees=40.0, fill=0.9), 3)
    assert cameras.azimuth.tolist() == [0.0] * 3
    position = cameras.position[0]
    torch.testing.assert_close(torch.atan2(position[1], position[2]), torch.tensor(math.radians(20.0)))
    # the unit sphere's outline covers 0.9 of the half height
    outline = math.tan(math.asin(1 / cameras.distance[0].item())) / math.tan(math.radians(20.0))
    assert outline == pytest.approx(0.9, rel=1e-5)


def make_dmtet(resolution=16, radii=(0.6, 0.6, 0.6), color=(0.5, 0.5, 0.5)):
    return build_dmtet(
        DMTetConfig(resolution=resolution, radii=radii, color=color, eps_sdf=1e-3),
        rasterizer=build_rasterizer("auto", torch.device("cpu")),
        generator=torch.Generator().manual_seed(0),
    )


def objective(guidance, clip=pgc.NoClip()):  # noqa: B008 - immutable
    cameras = reference_view(ViewConfig(elevation_degrees=15.0))
    return Objective(lambda step: cameras, guidance, clip.build(), ((1.0, 1.0, 1.0),))


class AlphaOnly:
    def __init__(self, size=1.0):
        self.size = size

    def input_resolution(self, rendered):
        return rendered

    def __call__(self, image, rendering, views, step):
        ones = torch.full_like(rendering.alpha, self.size).detach()
        return GuidanceOutput(gradient=torch.zeros_like(image), buffers={"alpha": ones})


@pytest.mark.parametrize("clip", [pgc.NoClip(), pgc.PixelClip(threshold=1e-6)], ids=["none", "pixel"])
def test_a_gradient_on_alpha_reaches_the_shape_and_is_never_clipped(clip):
    found = {}
    for size in (1.0, 3.0):
        shape = make_dmtet()
        backpropagate(shape, objective(AlphaOnly(size), clip), 32)
        found[size] = shape.residual.grad
    assert found[1.0].abs().max() > 0.1
    torch.testing.assert_close(found[3.0], 3 * found[1.0], rtol=1e-4, atol=1e-5)
    assert found[1.0].sum() < 0  # less coverage: the SDF, negative inside, must rise


def test_shape_and_colour_come_to_fit_the_picture():
    goal = make_dmtet(resolution=24, radii=(0.75, 0.45, 0.5), color=(0.8, 0.3, 0.2))
    cameras = reference_view(ViewConfig(elevation_degrees=15.0))
    seen = show(goal, cameras, 48, torch.zeros(1, 3))
    photo = torch.cat([seen.color, seen.alpha], dim=-1)[0]
    shape = make_dmtet()
    shape.parameter_store().use_adam()
    problem = Problem(
        representation=shape, objectives={"reference": objective(ReferenceView(input_image=photo))}
    )
    list(optimize(problem, steps=60, resolution_at=lambda _: 48))
    found = show(shape, cameras, 48, torch.zeros(1, 3))
    inside, wanted = found.alpha > 0.5, seen.alpha > 0.5
    assert (inside & wanted).sum() / (inside | wanted).sum() > 0.93
    assert (found.color - seen.color).abs().mean() < 0.03


def test_reference_goes_with_its_own_camera():
    with pytest.raises(ValueError, match="must have cameras of kind 'reference'"):
        ObjectiveConfig(guidance=ReferenceConfig())
    with pytest.raises(ConfigError, match=r"elevation_degrees must lie in \[-89, 89\], got 95"):
        load_config(overrides=["view.elevation_degrees=95"])
    with pytest.raises(ValueError, match=r"color must lie in \[0, 1000000\]"):
        ReferenceConfig(color=-1.0)
