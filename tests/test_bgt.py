"""The denoised target: its timesteps, its gradient in float64, and the colours it pulls towards."""

import math

import pytest
import torch
from steps import at
from test_sds import draw_image, draw_inputs, rendering_of
from tiny import tiny_score_distillation, write_tiny_sdxl

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_objectives
from pgc3d.cameras import turntable
from pgc3d.config import load_config
from pgc3d.guidance.bgt import BgtConfig, DenoisedTarget
from pgc3d.guidance.distillation import NoiseSample, distill
from pgc3d.interfaces import Guidance, SupportsMicroBatch
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.task import Task
from pgc3d.types import Views


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("bgt") / "sdxl")


def make(folder, **options):
    return DenoisedTarget(frozen=tiny_score_distillation(folder, guidance_scale=7.5), **options)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, [681, 431, 181]), (0.25, [466, 216]), (1.0, [250]), (0.04, [595, 345, 95])],
)
def test_timesteps_are_those_of_the_released_code(folder, progress, expected):
    levels = make(folder).levels(progress)
    assert max(abs(one - other) for one, other in zip(levels, expected, strict=True)) <= 1


def test_gradient_is_that_of_both_distances(folder):
    guidance, image, inputs = make(folder, latent=0.3, image=0.7), draw_image(2), draw_inputs(2)
    levels = [600, 350, 100]
    found = guidance.gradient(image, levels=levels, **inputs).gradient
    model, frozen, seen = guidance.frozen.model, guidance.frozen, []
    sample, shown = NoiseSample.split(inputs)
    distill(model, image, sample, lambda latents: seen.append(latents) or latents)
    latents, predict = seen[0], frozen.predictor(64, **shown)
    z = latents.double()
    alphas = [float(model.alphas_cumprod[level]) for level in levels] + [1.0]
    z = math.sqrt(alphas[0]) * z + math.sqrt(1 - alphas[0]) * sample.noise.double()
    for index, level in enumerate(levels):
        u, c = (value.double() for value in predict(z.float(), torch.full((2,), level)))
        eps = u + 7.5 * (c - u)
        clean = (z - math.sqrt(1 - alphas[index]) * eps) / math.sqrt(alphas[index])
        z = math.sqrt(alphas[index + 1]) * clean + math.sqrt(1 - alphas[index + 1]) * eps
    through = distill(model, image, sample, lambda latents: 0.3 * (latents - z.float())).gradient
    expected = through + 0.7 * (image - model.decode(z.float()))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_the_colours_alone_are_a_pull_towards_the_decoded_image(folder):
    guidance, image, inputs = make(folder, latent=0.0, image=1.0), draw_image(1), draw_inputs(1)
    pull = guidance.gradient(image, levels=[250], **inputs).gradient
    target = image - pull
    assert 0 <= target.min() <= target.max() <= 1


def test_micro_batches_give_the_same_gradient(folder):
    guidance, image = make(folder), draw_image(3)
    assert isinstance(guidance, Guidance)
    assert isinstance(guidance, SupportsMicroBatch)
    rendering = rendering_of(image)
    views = Views(turntable(3), rendering.background)
    whole = guidance(image, rendering, views, at(0.3)).gradient
    guidance.micro_batch = 2
    parts = guidance(image, rendering, views, at(0.3)).gradient
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


def test_settings_and_the_decoder_reach_the_guidance(folder):
    config = load_config(
        overrides=[f"models.text.name={folder}", "objectives.color.guidance={kind: bgt, stride: 0.5}"]
    )
    assert config.last.objectives["color"].guidance == BgtConfig(stride=0.5)
    use = config.requires().models["text"]
    assert (use.decoder, use.evaluations) == (True, 4)
    models = LoadedModels(locate_models(config, torch.device("cpu")), torch.device("cpu"))
    context = RunContext.of(config, Task("a chair"), CpuRasterizer(), torch.device("cpu"), models)
    guidance = build_objectives(context, "main")["color"].guidance
    assert guidance.frozen.model.decode(torch.zeros(1, 4, 8, 8)).shape == (1, 64, 64, 3)
