import math

import pytest
import torch

from pgc3d import pgc
from pgc3d.cameras import ViewConfig, orbit, reference_view, sample_orbit
from pgc3d.config import ObjectiveConfig, load_config
from pgc3d.errors import ConfigError
from pgc3d.guidance.reference import ReferenceConfig, ReferenceView
from pgc3d.interfaces import Guidance
from pgc3d.optimize import Objective, Problem, Stopwatch, accumulate, optimization_step
from pgc3d.render import build_rasterizer
from pgc3d.representation.dmtet import DMTetConfig, build_dmtet
from pgc3d.types import GuidanceOutput, Rendering

SIDE = 12


def draw(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_photo():
    color, alpha = draw(SIDE, SIDE, 3), draw(SIDE, SIDE, 1, seed=1)
    return torch.cat([color * alpha, alpha], dim=-1)


def draw_rendering(batch=2):
    color, alpha = draw(batch, SIDE, SIDE, 3, seed=2), draw(batch, SIDE, SIDE, 1, seed=3)
    return Rendering(color, color, alpha, alpha, background=draw(batch, 3, seed=4))


def loss(photo, rendering, color, mask):
    """From the formula, with straight colours."""
    alpha = photo[..., 3:]
    straight = photo[..., :3] / alpha
    target = alpha * straight + (1 - alpha) * rendering.background[:, None, None]
    colors = (alpha * (rendering.color - target).square()).sum()
    return color * colors + mask * (rendering.alpha - alpha).square().sum()


def test_gradients_are_those_of_the_summed_loss():
    photo, rendering = draw_photo(), draw_rendering()
    image, alpha = rendering.color.clone().requires_grad_(), rendering.alpha.clone().requires_grad_()
    together = Rendering(image, image, alpha, alpha, rendering.background)
    expected = torch.autograd.grad(loss(photo, together, 0.7, 0.3), [image, alpha])
    guidance = ReferenceView(photo=photo, color=0.7, mask=0.3)
    output = guidance(rendering.color, rendering, reference_view(ViewConfig(), 2), 0.5)
    assert isinstance(guidance, Guidance)
    torch.testing.assert_close(output.gradient, expected[0])
    torch.testing.assert_close(output.layers["alpha"], expected[1])
    total = output.metrics["loss_color"] + output.metrics["loss_mask"]
    torch.testing.assert_close(total, loss(photo, rendering, 0.7, 0.3))


def test_nothing_pulls_where_the_view_is_the_picture():
    photo, background = draw_photo(), draw(2, 3, seed=4)
    image = photo[..., :3] + (1 - photo[..., 3:]) * background[:, None, None]
    alpha = photo[None, ..., 3:].expand(2, -1, -1, -1)
    rendering = Rendering(image, image, alpha, alpha, background)
    output = ReferenceView(photo=photo)(image, rendering, reference_view(ViewConfig(), 2), 0.0)
    assert output.gradient.abs().max() < 1e-12
    assert output.layers["alpha"].abs().max() < 1e-12


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
    return Objective(lambda *_: cameras, guidance, clip.build(), ((1.0, 1.0, 1.0),))


class AlphaOnly:
    def __init__(self, size=1.0):
        self.size = size

    def __call__(self, image, rendering, cameras, progress):
        ones = torch.full_like(rendering.alpha, self.size).detach()
        return GuidanceOutput(gradient=torch.zeros_like(image), layers={"alpha": ones})


@pytest.mark.parametrize("clip", [pgc.NoClip(), pgc.PixelClip(threshold=1e-6)], ids=["none", "pixel"])
def test_a_gradient_on_alpha_reaches_the_shape_and_is_never_clipped(clip):
    found = {}
    for size in (1.0, 3.0):
        shape = make_dmtet()
        accumulate(
            shape, objective(AlphaOnly(size), clip), resolution=32, progress=0.0,
            generator=torch.Generator(), stopwatch=Stopwatch(torch.device("cpu")), regulariser_share=0.0,
        )  # fmt: skip
        found[size] = shape.residual.grad
    assert found[1.0].abs().max() > 0.1
    torch.testing.assert_close(found[3.0], 3 * found[1.0], rtol=1e-4, atol=1e-5)
    assert found[1.0].sum() < 0  # less coverage: the SDF, negative inside, must rise


def test_shape_and_colour_come_to_fit_the_picture():
    goal = make_dmtet(resolution=24, radii=(0.75, 0.45, 0.5), color=(0.8, 0.3, 0.2))
    cameras = reference_view(ViewConfig(elevation_degrees=15.0))
    with torch.no_grad():
        seen = goal.render(cameras, 48, torch.zeros(1, 3))
    photo = torch.cat([seen.color, seen.alpha], dim=-1)[0]
    shape = make_dmtet()
    groups = [dict(group) for group in shape.parameter_groups()]
    problem = Problem(
        representation=shape,
        objectives={"reference": objective(ReferenceView(photo=photo))},
        optimizer=torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True),
        generator=torch.Generator().manual_seed(0),
    )
    for step in range(60):
        optimization_step(problem, resolution=48, progress=step / 60)
    with torch.no_grad():
        found = shape.render(cameras, 48, torch.zeros(1, 3))
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


def test_novel_views_at_the_reference_cameras_distance_have_its_distance():
    from pgc3d.cameras import OrbitConfig

    config = OrbitConfig(fovy_degrees=(40.0, 40.0), fill=(1.0, 1.0))
    cameras = sample_orbit(5, config, torch.Generator().manual_seed(0))
    reference = reference_view(ViewConfig(fovy_degrees=40.0, fill=1.0))
    torch.testing.assert_close(cameras.distance, reference.distance.expand(5))
    same = orbit(torch.zeros(1), torch.zeros(1), reference.distance, torch.tensor([math.radians(40.0)]))
    torch.testing.assert_close(same.clip_from_camera, reference.clip_from_camera)
