"""Renderings that are evaluated as latents: what they are, what is clipped, and where the gradient goes."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from fakes import FlatColor
from steps import FIRST
from tiny import tiny_score_distillation, write_tiny_sd, write_tiny_sdxl

from pgc3d import pgc
from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_stage
from pgc3d.cameras import turntable
from pgc3d.config import load_config
from pgc3d.errors import ConfigError
from pgc3d.guidance.sds_config import SdsConfig, _require_four_channels
from pgc3d.interfaces import SupportsLatents
from pgc3d.optimize import Objective, begin, finish, optimization_step
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.stopwatch import Stopwatch
from pgc3d.task import Task
from pgc3d.types import Rendering, Step, Views

CPU = torch.device("cpu")
SIDE, BATCH = 64, 2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("latents")
    return {"sdxl": write_tiny_sdxl(root / "sdxl"), "sd": write_tiny_sd(root / "sd")}


class Fixed(FlatColor):
    """A representation whose buffers are the parameters."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.normal = torch.rand(BATCH, SIDE, SIDE, 3, generator=generator).requires_grad_()
        self.alpha = (0.2 + 0.8 * torch.rand(BATCH, SIDE, SIDE, 1, generator=generator)).requires_grad_()

    def render(self, views, resolution, step):
        return Rendering(
            color=self.normal.detach(),
            normal=self.normal,
            depth=self.alpha.detach(),
            alpha=self.alpha,
            background=views.background,
        )


def evaluated(guidance, clip, target="normal"):
    asset, cameras = Fixed(), turntable(BATCH)
    objective = Objective(lambda step: cameras, guidance, clip, ((1.0, 1.0, 1.0),), target=target)
    stopwatch = Stopwatch(CPU)
    roots, metrics = finish(begin(asset, objective, FIRST, resolution=SIDE, stopwatch=stopwatch), stopwatch)
    return asset, cameras, roots, metrics


@pytest.mark.parametrize("layout", ["sdxl", "sd"])
def test_gradient_is_that_of_the_latents_through_the_resize_alone(folders, layout):
    guidance = tiny_score_distillation(folders[layout], as_latent=True, guidance_scale=7.5)
    assert isinstance(guidance, SupportsLatents)
    assert guidance.input_resolution(512) == 8
    asset, cameras, roots, _ = evaluated(guidance, pgc.NoClip().build())
    (image, gradient), *others = roots
    assert not others
    assert image.shape == gradient.shape == (BATCH, 8, 8, 4)
    # The latents, by their definition: means over 8 x 8 pixels with the weights of the resize.
    both = torch.cat([2 * asset.normal - 1, asset.alpha], dim=-1).permute(0, 3, 1, 2)
    latents = torch.nn.functional.interpolate(both, size=(8, 8), mode="bilinear", antialias=True)
    torch.testing.assert_close(image, latents.permute(0, 2, 3, 1))
    views = Views(cameras, torch.ones(BATCH, 3))
    step = FIRST
    score = guidance.latent_gradient(latents.detach(), asset.render(views, SIDE, step), views, step)
    torch.testing.assert_close(gradient, score.permute(0, 2, 3, 1))
    image.backward(gradient)
    expected = torch.autograd.grad(latents, (asset.normal, asset.alpha), score)
    torch.testing.assert_close(asset.normal.grad, expected[0])
    torch.testing.assert_close(asset.alpha.grad, expected[1])
    # On a render of 64 pixels a pixel has 1/64 of a latent's gradient, twice that for [0, 1] to [-1, 1].
    torch.testing.assert_close(asset.normal.grad.sum((1, 2)), 2 * gradient[..., :3].sum((1, 2)))


def test_a_threshold_bounds_the_four_channels_of_a_latent_pixel(folders):
    guidance = tiny_score_distillation(folders["sd"], as_latent=True, guidance_scale=7.5)
    free = evaluated(guidance, pgc.NoClip().build())[2][0][1]
    found = evaluated(guidance, pgc.PixelClip(threshold=0.5).build())[2][0][1]
    longest = free.abs().amax(-1, keepdim=True)
    torch.testing.assert_close(found, free * (0.5 / longest).clamp_max(1.0))
    assert (longest > 0.5).any()


def test_colours_are_latents_too(folders):
    guidance = tiny_score_distillation(folders["sd"], as_latent=True)
    image = evaluated(guidance, pgc.NoClip().build(), target="color")[2][0][0]
    assert image.shape[-1] == 4


def test_a_stage_of_normals_as_latents_moves_the_shape(folders):
    config = load_config(
        overrides=[
            f"models.text.name={folders['sd']}", "representation.resolution=8", "run.resolution=[64]",
            "run.resolution_until=[]", "run.steps=4", "optimizer.lr_scale=[1.0]",
            "objectives.color.target=normal", "objectives.color.guidance.as_latent=true",
            "objectives.color.clip=adaptive", "representation.sdf_smoothing=[1.0, 1.0]",
        ]
    )  # fmt: skip
    models = LoadedModels(locate_models(config, CPU), CPU)
    problem = build_stage(
        RunContext.of(config, Task("a chair"), CpuRasterizer(), CPU, models), "main"
    ).problem
    before = {name: value.clone() for name, value in problem.representation.state_dict().items()}
    for index in range(3):
        output = optimization_step(problem, Step(index=index, total=4), resolution=64)
        assert output.finite
        assert output.metrics["color/coverage"] > 0
    after = problem.representation.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(after[name], value)}
    assert changed
    assert not any(name.startswith("color") for name in changed)


def test_other_numbers_of_channels_are_refused(folders):
    model = tiny_score_distillation(folders["sd"]).model
    config = SimpleNamespace(latent_channels=16, block_out_channels=(1, 1, 1, 1))
    with pytest.raises(ConfigError, match="model of 4 latent channels, got 16 of sd3; use as_latent=false"):
        _require_four_channels(replace(model, vae=SimpleNamespace(config=config)), "sd3")
    _require_four_channels(model, "sd")
    with pytest.raises(ValueError, match="without a linear_encoder"):
        SdsConfig(as_latent=True, linear_encoder="file.json")
