import json
from dataclasses import replace

import pytest
import torch
from steps import FIRST
from tiny import tiny_score_distillation, write_tiny_sdxl

from pgc3d.build.models import LoadedModels, locate_models
from pgc3d.build.run import RunContext, build_objectives
from pgc3d.cameras import turntable
from pgc3d.config import load_config
from pgc3d.diffusion.linear_encoder import (
    LinearEncoder,
    fit_linear_encoder,
    read_linear_encoder,
    shrink,
)
from pgc3d.errors import InputError
from pgc3d.guidance.distillation import draw as draw_noise
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task
from pgc3d.types import Rendering, Views


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def encoder():
    return LinearEncoder(matrix=draw(3, 4, seed=1), bias=draw(4, seed=2))


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (20, 30)])
def test_pull_back_is_the_transpose_of_the_linear_map(encoder, size):
    """Column by column: what each pixel's colour does to the latents, without autograd."""
    gradient = draw(1, 4, 4, 5, seed=3)
    zero = encoder.encode(torch.zeros(1, *size, 3, dtype=torch.float64), (4, 5))
    expected = torch.empty(1, *size, 3, dtype=torch.float64)
    for place in range(expected.numel()):
        basis = torch.zeros(expected.numel(), dtype=torch.float64)
        basis[place] = 1
        column = encoder.encode(basis.reshape(expected.shape), (4, 5)) - zero
        expected.view(-1)[place] = (column * gradient).sum()
    torch.testing.assert_close(encoder.pull_back(gradient, size), expected, rtol=1e-10, atol=1e-12)


def test_pull_back_enlarges_bilinearly_inside_the_picture(encoder):
    gradient = draw(2, 4, 8, 8, seed=4)
    found = encoder.pull_back(gradient, (64, 64))
    colors = torch.einsum("bchw,kc->bkhw", gradient, encoder.matrix)
    large = torch.nn.functional.interpolate(colors, size=(64, 64), mode="bilinear").permute(0, 2, 3, 1) / 64
    torch.testing.assert_close(found[:, 12:-12, 12:-12], large[:, 12:-12, 12:-12])


def test_a_plain_picture_keeps_its_colour_when_shrunk():
    assert torch.equal(shrink(torch.full((1, 24, 24, 3), 0.25), (3, 3)), torch.full((1, 3, 3, 3), 0.25))


def test_ridge_recovers_a_known_matrix(encoder):
    colors = torch.rand(4000, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    latents = colors @ encoder.matrix + encoder.bias
    exact = fit_linear_encoder(colors, latents, ridge=0.0)
    torch.testing.assert_close(exact.matrix.double(), encoder.matrix, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exact.bias.double(), encoder.bias, rtol=1e-5, atol=1e-6)
    noisy = fit_linear_encoder(colors, latents + 0.1 * draw(4000, 4, seed=6), ridge=1e-3)
    assert (noisy.matrix - encoder.matrix).abs().max() < 0.1


def test_a_ridge_shortens_the_matrix_and_keeps_the_mean(encoder):
    colors = torch.rand(500, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    latents = colors @ encoder.matrix + encoder.bias
    weak, strong = (fit_linear_encoder(colors, latents, ridge=ridge) for ridge in (1e-3, 1.0))
    assert strong.matrix.norm() < weak.matrix.norm()
    for fitted in (weak, strong):
        mean = (colors.float() @ fitted.matrix + fitted.bias).mean(0)
        torch.testing.assert_close(mean.double(), latents.mean(0), rtol=1e-4, atol=1e-4)


@pytest.fixture
def written(tmp_path, encoder):
    path = tmp_path / "linear.json"
    path.write_text(json.dumps({"matrix": encoder.matrix.tolist(), "bias": encoder.bias.tolist()}))
    return path


def guidance_of(folder, options):
    config = load_config(options={"models": {"text": {"name": str(folder)}}, **options})
    device = torch.device("cpu")
    models = LoadedModels(locate_models(config, device), device)
    rasterizer = build_rasterizer("cpu", device)
    context = RunContext.of(config, Task("a red chair"), rasterizer, device, models)
    return build_objectives(context, "main")["color"].guidance


def test_guidance_sends_the_same_latent_gradient_through_the_matrix(folder, written):
    """From the configuration down: only the way from latents to pixels changes."""
    image = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(8))
    options = {"objectives": {"color": {"guidance": {"linear_encoder": str(written)}}}}
    guidance = guidance_of(folder, options)
    ones = torch.ones(1, 64, 64, 1)
    rendering = Rendering(image, image, ones, ones, background=torch.ones(1, 3))
    inputs = rendering, Views(turntable(1), rendering.background), FIRST
    output = guidance(image, *inputs)
    exact = guidance_of(folder, {})
    expected = exact(image, *inputs)
    assert torch.equal(output.metrics["latent_gradient"], expected.metrics["latent_gradient"])
    assert not torch.allclose(output.gradient, expected.gradient)
    sample = draw_noise(guidance.model, 1, 64, (guidance.t_min(0.0), guidance.t_max(0.0)), FIRST)
    latents = guidance.model.encode(image, sample.posterior_noise)
    pulled = guidance.linear_encoder.pull_back(guidance.latent_gradient(latents, *inputs), (64, 64))
    torch.testing.assert_close(output.gradient, pulled)


def test_latents_can_be_evaluated_by_themselves(folder):
    guidance = tiny_score_distillation(folder)
    image = torch.rand((1, 64, 64, 3), generator=torch.Generator().manual_seed(9))
    ones = torch.ones(1, 64, 64, 1)
    rendering = Rendering(image, image, ones, ones, background=torch.ones(1, 3))
    inputs = rendering, Views(turntable(1), rendering.background), FIRST
    sample = draw_noise(guidance.model, 1, 64, (guidance.t_min(0.0), guidance.t_max(0.0)), FIRST)
    latents = guidance.model.encode(image, sample.posterior_noise)
    found = guidance.latent_gradient(latents, *inputs)
    through_pixels = guidance(image, *inputs)
    assert found.flatten(1).norm(dim=1).mean() == pytest.approx(
        through_pixels.metrics["latent_gradient"].item()
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a file of scripts/fit_linear_encoder.py"),
        ("{", "must be a file of scripts/fit_linear_encoder.py"),
        ('{"matrix": [[1]]}', "must be a file of scripts/fit_linear_encoder.py"),
        ('{"matrix": [[1, 2], [3, 4], [5, 6]], "bias": [0, 0]}', "must map 3 to 4 channels"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path, folder, content, message):
    path = tmp_path / "linear.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_linear_encoder(path, tiny_score_distillation(folder).model)
    assert "\n" not in str(caught.value)


def test_the_file_decides_for_the_device(written, folder):
    model = tiny_score_distillation(folder).model
    found = read_linear_encoder(written, replace(model, alphas_cumprod=model.alphas_cumprod.to("meta")))
    assert found.matrix.device.type == found.bias.device.type == "meta"
