from dataclasses import replace

import pytest
import torch
from tiny import tiny_score_distillation, write_tiny_sd, write_tiny_sdxl

from pgc3d.cameras import turntable
from pgc3d.diffusion.latent import resize
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.guidance.distillation import draw
from pgc3d.guidance.sds import ScoreDistillation, SdsConfig
from pgc3d.interfaces import Divisible, Guidance
from pgc3d.prompts import ViewPromptConfig, view_index, view_prompts
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Rendering, TextEmbedding

BATCH = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("sds")
    return {
        "sdxl": write_tiny_sdxl(root / "sdxl"),
        "sd": write_tiny_sd(root / "sd", prediction_type="v_prediction"),
    }


@pytest.fixture(scope="module")
def guidances(folders):
    return {layout: tiny_score_distillation(folder, guidance_scale=7.5) for layout, folder in folders.items()}


@pytest.fixture
def guidance(guidances):
    guidances["sdxl"].generator.manual_seed(0)
    return guidances["sdxl"]


def draw_image(batch=BATCH, size=64, seed=1):
    return torch.rand((batch, size, size, 3), generator=torch.Generator().manual_seed(seed))


def draw_inputs(batch=BATCH, seed=2):
    generator = torch.Generator().manual_seed(seed)
    noise, posterior = torch.randn((2, batch, 4, 8, 8), generator=generator)
    return {
        "timesteps": torch.tensor([20, 500, 950])[:batch],
        "noise": noise,
        "posterior_noise": posterior,
        "texts": torch.tensor([0, 1, 2])[:batch],
    }


def rendering_of(image):
    one = image[..., :1]
    return Rendering(color=image, normal=image, depth=one, alpha=one, background=torch.ones(len(image), 3))


def in_double(guidance):
    """The same guidance with copies of its modules in float64."""
    import copy

    model = guidance.model
    unet, vae = copy.deepcopy(model.unet), copy.deepcopy(model.vae)
    torch.nn.Module.to(unet, dtype=torch.float64)
    torch.nn.Module.to(vae, dtype=torch.float64)
    return unet, vae, model.alphas_cumprod.double()


def reference_gradient(guidance, image, *, timesteps, noise, posterior_noise, texts):
    """Score distillation picture by picture in float64, written from the formulas."""
    unet, vae, signal = in_double(guidance)
    gradients = []
    for row in range(len(image)):
        pixels = image[row : row + 1].double().requires_grad_()
        moments = vae.quant_conv(vae.encoder(pixels.permute(0, 3, 1, 2) * 2 - 1))
        mean, log_variance = moments.chunk(2, dim=1)
        z = (mean + (log_variance.clamp(-30, 20) / 2).exp() * posterior_noise[row].double()) * 0.13025
        abar, eps = signal[timesteps[row]], noise[row : row + 1].double()
        z_t = abar.sqrt() * z.detach() + (1 - abar).sqrt() * eps
        predictions = []
        for embedding, index in ((guidance.negative, 0), (guidance.positive, int(texts[row]))):
            added = {}
            if embedding.pooled is not None:
                sizes = torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]], dtype=torch.float64)
                added = {"text_embeds": embedding.pooled[index : index + 1].double(), "time_ids": sizes}
            tokens = embedding.tokens[index : index + 1].double()
            with torch.no_grad():
                raw = unet(z_t, timesteps[row], encoder_hidden_states=tokens, added_cond_kwargs=added).sample
            velocity = guidance.model.prediction == "v_prediction"
            predictions.append(abar.sqrt() * raw + (1 - abar).sqrt() * z_t if velocity else raw)
        guided = predictions[0] + guidance.guidance_scale * (predictions[1] - predictions[0])
        gradients.append(torch.autograd.grad((z * ((1 - abar) * (guided - eps))).sum(), pixels)[0])
    return torch.cat(gradients)


@pytest.mark.parametrize("layout", ["sdxl", "sd"])
def test_gradient_agrees_with_float64_reference(guidances, layout):
    guidance, image, inputs = guidances[layout], draw_image(), draw_inputs()
    found = guidance.gradient(image, **inputs).gradient
    expected = reference_gradient(guidance, image, **inputs)
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert error < 1e-4, f"relative error {error:.1e}"


def test_gradient_is_that_of_latents_times_fixed_score(guidance):
    # Finite differences of <encode(x), score> with the score held still: nothing flows through the UNet.
    unet, vae, signal = in_double(guidance)
    model = replace(guidance.model, unet=unet, vae=vae, alphas_cumprod=signal)
    image, inputs = draw_image(1), draw_inputs(1)
    exact = image.double().requires_grad_()
    generator = torch.Generator().manual_seed(3)
    score = torch.randn((1, 4, 8, 8), generator=generator, dtype=torch.float64)

    def loss(x):
        return (model.encode(x, inputs["posterior_noise"].double()).double() * score).sum()

    latents = model.encode(exact, inputs["posterior_noise"].double())
    found = model.encoder_gradient(exact, latents, score.to(latents.dtype)).double()
    direction = torch.randn(image.shape, generator=generator, dtype=torch.float64)
    step = 1e-3
    with torch.no_grad():
        difference = (loss(exact + step * direction) - loss(exact - step * direction)) / (2 * step)
    torch.testing.assert_close((found * direction).sum(), difference, rtol=1e-3, atol=1e-6)


def test_pictures_of_a_batch_do_not_influence_each_other(guidance):
    # Also: the gradient is summed over the picture, not averaged over the batch.
    image, inputs = draw_image(), draw_inputs()
    together = guidance.gradient(image, **inputs).gradient
    for row in range(BATCH):
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        alone = guidance.gradient(image[row : row + 1], **one).gradient
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-5)


def test_same_generator_state_same_gradient(guidance):
    image = draw_image()
    state = guidance.generator.get_state()
    first = guidance(image, rendering_of(image), turntable(BATCH), 0.3)
    second = guidance(image, rendering_of(image), turntable(BATCH), 0.3)
    guidance.generator.set_state(state)
    again = guidance(image, rendering_of(image), turntable(BATCH), 0.3)
    assert torch.equal(first.gradient, again.gradient)
    assert not torch.equal(first.gradient, second.gradient)


def test_image_is_left_alone_and_output_carries_no_graph(guidance):
    assert isinstance(guidance, Guidance)
    image = draw_image().requires_grad_()
    before = image.detach().clone()
    with torch.no_grad():
        output = guidance(image, rendering_of(image), turntable(BATCH), 0.0)
    assert torch.equal(image, before)
    assert image.grad is None
    assert not output.gradient.requires_grad
    assert all(not value.requires_grad and value.ndim == 0 for value in output.metrics.values())


@pytest.mark.parametrize("size", [48, 96, 200])
def test_any_size_is_looked_at_in_the_models_resolution(guidance, size):
    image, inputs = draw_image(size=size), draw_inputs()
    output = guidance.gradient(image, **inputs)
    assert output.gradient.shape == image.shape
    assert (output.gradient != 0).float().mean() > 0.99  # shrinking skips no pixel


@pytest.mark.parametrize("size", [32, 64, 100])
def test_resize_keeps_constants_and_means(size):
    image = torch.full((1, 64, 64, 3), 0.3)
    torch.testing.assert_close(resize(image, size), torch.full((1, size, size, 3), 0.3))
    image = draw_image(1).requires_grad_()
    resize(image, size).mean().backward()
    torch.testing.assert_close(image.grad.sum(), torch.tensor(1.0))


def test_views_get_their_own_prompt(guidance):
    image, inputs = draw_image(1).repeat(2, 1, 1, 1), draw_inputs(1)
    inputs = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in inputs.items()}
    inputs["texts"] = torch.tensor([0, 2])
    gradient = guidance.gradient(image, **inputs).gradient
    assert (gradient[0] - gradient[1]).abs().max() > 1e-4


def test_classifier_score_ignores_the_guidance_scale(folders):
    image, inputs = draw_image(1), draw_inputs(1)
    weak, strong = (
        tiny_score_distillation(folders["sdxl"], formula="csd", guidance_scale=scale) for scale in (1.0, 50.0)
    )
    assert torch.equal(weak.gradient(image, **inputs).gradient, strong.gradient(image, **inputs).gradient)


def test_classifier_score_is_the_slope_of_the_guided_one(folders):
    image, inputs = draw_image(2), draw_inputs(2)
    csd, *guided = (
        tiny_score_distillation(folders["sdxl"], formula=formula, guidance_scale=scale)
        .gradient(image, **inputs).gradient
        for formula, scale in (("csd", 9.0), ("sds", 1.0), ("sds", 2.0))
    )  # fmt: skip
    torch.testing.assert_close(csd, guided[1] - guided[0], rtol=1e-3, atol=1e-4 * csd.abs().max().item())


def test_a_call_asks_about_its_own_views_backgrounds_and_noise_levels(folders):
    folder = folders["sdxl"]
    config = ViewPromptConfig(template="{prompt} {azimuth} {background}", azimuth_step_degrees=60.0)
    texts = view_prompts("a cat", config)
    guidance = ScoreDistillation(
        model=load_latent_diffusion(folder),
        positive=encode_prompts(resolve_model(folder), texts),
        negative=encode_prompts(resolve_model(folder), [""]),
        view_prompts_config=config,
        generator=torch.Generator().manual_seed(0),
        t_max=PiecewiseLinear((0.0, 0.98, 1.0, 0.1)),
    )
    cameras, image, progress = turntable(BATCH), draw_image(), 0.5
    background = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = guidance(image, replace(rendering_of(image), background=background), cameras, progress).gradient
    draws = draw(guidance.model, BATCH, 64, (0.02, 0.54), torch.Generator().manual_seed(0))
    index = view_index(cameras.azimuth, cameras.elevation, background, config)
    assert len(index.unique()) == BATCH
    expected = guidance.gradient(image, **vars(draws), texts=index).gradient
    torch.testing.assert_close(found, expected)


def test_smaller_resolution_and_size_conditions(folders):
    small = tiny_score_distillation(folders["sdxl"], resolution=32)
    image = draw_image(2, size=32)
    output = small(image, rendering_of(image), turntable(2), 0.0)
    assert output.gradient.shape == image.shape
    assert small._time_ids[32].tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]]


def test_resolution_minus_one_is_the_pictures_own(folders):
    image = draw_image(2, size=32)
    gradients = [
        tiny_score_distillation(folders["sdxl"], resolution=resolution)(
            image, rendering_of(image), turntable(2), 0.0
        ).gradient
        for resolution in (-1, 32)
    ]
    torch.testing.assert_close(*gradients)


def test_timesteps_shrink_with_progress(folders):
    guidance = tiny_score_distillation(
        folders["sdxl"], t_min=PiecewiseLinear((0.02,)), t_max=PiecewiseLinear((0.0, 0.98, 1.0, 0.02))
    )
    image = draw_image(1)
    output = guidance(image, rendering_of(image), turntable(1), 1.0)
    assert output.metrics["timestep"].item() == 20.0


def test_wrong_number_of_prompts_is_refused(guidance):
    short = TextEmbedding(tokens=guidance.positive.tokens[:1], pooled=guidance.positive.pooled[:1])
    with pytest.raises(ValueError, match="must be 4 positive and 1 negative"):
        ScoreDistillation(
            model=guidance.model,
            positive=short,
            negative=guidance.negative,
            view_prompts_config=guidance.view_prompts_config,
            generator=torch.Generator(),
        )


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": -1.0},
        {"resolution": 100},
        {"target_size": -1},
        {"t_max": (0.01,)},
        {"t_min": (0.0, 0.1, 0.2)},
    ],
)
def test_wrong_config_is_refused(change):
    with pytest.raises(ValueError, match="got"):
        SdsConfig(**change)


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_a_few_pictures_at_a_time_give_the_same_gradient(guidance, micro_batch):
    inputs = (image := draw_image()), rendering_of(image), turntable(BATCH), 0.5
    whole = guidance(*inputs)
    state = guidance.generator.get_state()
    guidance.generator.manual_seed(0)
    guidance.micro_batch = micro_batch
    try:
        pieces = guidance(*inputs)
    finally:
        guidance.micro_batch = 0
    assert torch.equal(guidance.generator.get_state(), state)
    torch.testing.assert_close(pieces.gradient, whole.gradient, rtol=1e-3, atol=1e-5)
    assert pieces.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        torch.testing.assert_close(pieces.metrics[name], value, rtol=1e-4, atol=0)


def test_the_whole_batch_at_once_is_one_call(guidance, monkeypatch):
    calls = []
    gradient = guidance.gradient
    monkeypatch.setattr(guidance, "gradient", lambda **inputs: calls.append(1) or gradient(**inputs))
    monkeypatch.setattr(guidance, "micro_batch", BATCH + 1)
    guidance((image := draw_image()), rendering_of(image), turntable(BATCH), 0.5)
    assert len(calls) == 1
    assert isinstance(guidance, Divisible)
