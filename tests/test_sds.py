from dataclasses import replace

import pytest
import torch
from fakes import FlatColor
from steps import FIRST, at, backpropagate
from tiny import tiny_score_distillation, write_tiny_sd, write_tiny_sdxl

from pgc3d.cameras import turntable
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.guidance.bgt import BgtConfig
from pgc3d.guidance.distillation import draw
from pgc3d.guidance.formulas import CleanFormula, CsdFormula, SdsFormula
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.guidance.sds_config import SdsConfig
from pgc3d.guidance.vsd import VsdConfig
from pgc3d.images import resize
from pgc3d.interfaces import Guidance, SupportsMicroBatch
from pgc3d.optimize import Objective
from pgc3d.prompts import view_index, view_prompts
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Rendering, Step, TextEmbedding, Views
from pgc3d.view_prompts import ViewPromptConfig

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


def evaluate(guidance, image, step=FIRST):
    """The guidance's output for images of cameras all around."""
    rendering = rendering_of(image)
    return guidance(image, rendering, Views(turntable(len(image)), rendering.background), step)


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
        z = mean + (log_variance.clamp(-30, 20) / 2).exp() * posterior_noise[row].double()
        z = z * vae.config.scaling_factor
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


def test_noise_is_the_steps(guidance):
    image = draw_image()
    step = Step(index=3, total=10, seed=1, stage="main", scope="color")
    gradient = evaluate(guidance, image, step).gradient
    for other in (replace(step, index=4), replace(step, seed=2), replace(step, stage="fine"),
                  replace(step, scope="normal")):  # fmt: skip
        assert not torch.allclose(evaluate(guidance, image, other).gradient, gradient)
    torch.randn(7)
    assert torch.equal(evaluate(guidance, image, step).gradient, gradient)


def test_image_is_left_alone_and_output_carries_no_graph(guidance):
    assert isinstance(guidance, Guidance)
    image = draw_image().requires_grad_()
    before = image.detach().clone()
    with torch.no_grad():
        output = evaluate(guidance, image)
    assert torch.equal(image, before)
    assert image.grad is None
    assert not output.gradient.requires_grad
    assert all(not value.requires_grad and value.ndim == 0 for value in output.metrics.values())


@pytest.mark.parametrize("size", [48, 96, 200])
def test_any_rendering_is_evaluated_at_the_models_resolution(guidance, size):
    assert guidance.input_resolution(size) == guidance.model.resolution == 64
    image = draw_image(size=size).requires_grad_()
    shown = resize(image, guidance.input_resolution(size))
    output = guidance.gradient(shown.detach(), **draw_inputs())
    assert output.gradient.shape == shown.shape == (BATCH, 64, 64, 3)
    shown.backward(output.gradient)
    assert (image.grad != 0).float().mean() > 0.99  # shrinking skips no pixel
    torch.testing.assert_close(
        image.grad.sum((1, 2)),
        output.gradient.sum((1, 2)),
        rtol=1e-3,
        atol=1e-4 * float(image.grad.abs().sum()),
    )


@pytest.mark.parametrize("size", [32, 64, 128])
def test_a_step_sends_the_models_gradient_to_the_asset_whatever_is_rendered(guidance, size):
    """A plain asset is the same image at every resolution, so its gradient is too."""
    asset = FlatColor(color=(0.2, 0.6, 0.4))
    cameras = turntable(2)
    objective = Objective(lambda step: cameras, guidance, lambda gradient: gradient, ((1.0, 1.0, 1.0),))
    backpropagate(asset, objective, size, Step(index=2, total=10))
    image = torch.tensor([0.2, 0.6, 0.4]).expand(2, 64, 64, 3)
    rendering = rendering_of(image)
    output = guidance(image, rendering, Views(cameras, rendering.background), Step(index=2, total=10))
    length = float(output.gradient.abs().sum())
    torch.testing.assert_close(asset.color.grad, output.gradient.sum((0, 1, 2)), rtol=0, atol=1e-5 * length)


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
        tiny_score_distillation(folders["sdxl"], formula=CsdFormula(), guidance_scale=scale)
        for scale in (1.0, 50.0)
    )
    assert torch.equal(weak.gradient(image, **inputs).gradient, strong.gradient(image, **inputs).gradient)


def test_classifier_score_is_the_slope_of_the_guided_one(folders):
    image, inputs = draw_image(2), draw_inputs(2)
    csd, *guided = (
        tiny_score_distillation(folders["sdxl"], formula=formula, guidance_scale=scale)
        .gradient(image, **inputs).gradient
        for formula, scale in ((CsdFormula(), 9.0), (SdsFormula(), 1.0), (SdsFormula(), 2.0))
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
        t_max=PiecewiseLinear((0.0, 0.98, 1.0, 0.1)),
    )
    cameras, image, step = turntable(BATCH), draw_image(), at(0.5)
    background = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    rendering = replace(rendering_of(image), background=background)
    found = guidance(image, rendering, Views(cameras, background), step).gradient
    sample = draw(guidance.model, BATCH, 64, (0.02, 0.54), step)
    index = view_index(cameras.azimuth, cameras.elevation, background, config)
    assert len(index.unique()) == BATCH
    expected = guidance.gradient(image, **vars(sample), texts=index).gradient
    torch.testing.assert_close(found, expected)


def test_smaller_resolution_and_size_conditions(folders):
    small = tiny_score_distillation(folders["sdxl"], resolution=32)
    image = draw_image(2, size=32)
    assert small.input_resolution(100) == 32
    output = evaluate(small, image)
    assert output.gradient.shape == image.shape
    assert small._time_ids[32].tolist() == [[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]]


def test_resolution_minus_one_is_the_renderings_own(folders):
    image, gradients = draw_image(2, size=32), []
    for resolution in (-1, 32):
        guidance = tiny_score_distillation(folders["sdxl"], resolution=resolution)
        assert guidance.input_resolution(32) == 32
        gradients.append(evaluate(guidance, image).gradient)
    torch.testing.assert_close(*gradients)
    assert tiny_score_distillation(folders["sdxl"], resolution=-1).input_resolution(72) == 72


def test_timesteps_shrink_with_progress(folders):
    guidance = tiny_score_distillation(
        folders["sdxl"], t_min=PiecewiseLinear((0.02,)), t_max=PiecewiseLinear((0.0, 0.98, 1.0, 0.02))
    )
    image = draw_image(1)
    output = evaluate(guidance, image, at(1.0))
    assert output.metrics["timestep"].item() == 20.0


def test_wrong_number_of_prompts_is_refused(guidance):
    short = TextEmbedding(tokens=guidance.positive.tokens[:1], pooled=guidance.positive.pooled[:1])
    with pytest.raises(ValueError, match="must be embeddings of 4 and 1 prompts"):
        ScoreDistillation(
            model=guidance.model,
            positive=short,
            negative=guidance.negative,
            view_prompts_config=guidance.view_prompts_config,
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
    image = draw_image()
    whole = evaluate(guidance, image, at(0.5))
    guidance.micro_batch = micro_batch
    try:
        pieces = evaluate(guidance, image, at(0.5))
    finally:
        guidance.micro_batch = 0
    torch.testing.assert_close(pieces.gradient, whole.gradient, rtol=1e-3, atol=1e-5)
    assert pieces.metrics.keys() == whole.metrics.keys()
    for name, value in whole.metrics.items():
        torch.testing.assert_close(pieces.metrics[name], value, rtol=1e-4, atol=0)


def test_the_whole_batch_at_once_is_one_call(guidance, monkeypatch):
    calls = []
    gradient = guidance.gradient
    monkeypatch.setattr(guidance, "gradient", lambda **inputs: calls.append(1) or gradient(**inputs))
    monkeypatch.setattr(guidance, "micro_batch", BATCH + 1)
    evaluate(guidance, draw_image())
    assert len(calls) == 1
    assert isinstance(guidance, SupportsMicroBatch)


@pytest.mark.parametrize("layout", ["sdxl", "sd"])
@pytest.mark.parametrize("formula", [SdsFormula, CleanFormula], ids=["sds", "x0"])
def test_at_a_scale_of_one_the_unet_sees_the_prompt_alone(folders, layout, formula):
    def evaluated(scale):
        own = formula() if formula is SdsFormula else formula(guidance_scale=scale)
        guidance = tiny_score_distillation(folders[layout], guidance_scale=scale, formula=own)
        batches = []
        seen = guidance.model.unet.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
        gradient = guidance.gradient(draw_image(), **draw_inputs()).gradient
        seen.remove()  # the network may be shared
        return gradient, batches

    (alone, once), (both, twice) = evaluated(1.0), evaluated(1.0 + 1e-12)
    assert (once, twice) == ([BATCH], [2 * BATCH])
    torch.testing.assert_close(alone, both, rtol=1e-4, atol=1e-6 * both.abs().max().item())
    assert alone.abs().max() > 0


@pytest.mark.parametrize("config", [SdsConfig, VsdConfig, BgtConfig])
def test_a_negative_prompt_without_effect_is_refused(config):
    with pytest.raises(
        ValueError, match="negative_prompt must be empty where it has no effect, got 'blurry'"
    ):
        config(guidance_scale=1.0, negative_prompt="blurry")
    assert (
        config(guidance_scale=1.0).requires().models["text"].evaluations
        < config().requires().models["text"].evaluations
    )
    config(guidance_scale=1.5, negative_prompt="blurry")
