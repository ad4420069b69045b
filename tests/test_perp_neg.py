"""Perp-Neg: weights of the published table, prompts of the views, and the perpendicular part alone."""

import math
from dataclasses import replace

import pytest
import torch
from steps import at
from test_sds import draw_image, draw_inputs, rendering_of
from tiny import tiny_score_distillation, write_tiny_sd, write_tiny_sdxl

from pgc3d.cameras import orbit, turntable
from pgc3d.diffusion.latent import select
from pgc3d.errors import ConfigError
from pgc3d.guidance import score
from pgc3d.guidance.perp_neg import mixture, quarter, require_views
from pgc3d.mini import text_model
from pgc3d.prompts import view_index, view_prompts
from pgc3d.types import Views
from pgc3d.view_prompts import ViewPromptConfig

CPU = torch.device("cpu")
# r, and the weights of (front, side) before the side, (side, front) behind it
TABLE = [
    (0.0, (-1.574, 0.0), (-0.394, -1.967)),
    (0.25, (-1.104, -0.323), (-0.276, -1.849)),
    (0.5, (-0.689, -0.689), (-0.173, -1.746)),
    (0.75, (-0.323, -1.104), (-0.081, -1.654)),
    (1.0, (0.0, -1.574), (-0.001, -1.574)),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("perp")
    return {"sdxl": write_tiny_sdxl(root / "sdxl"), "sd": write_tiny_sd(root / "sd")}


def radians(*degrees):
    return torch.tensor([math.radians(value) for value in degrees], dtype=torch.float64)


@pytest.mark.parametrize(("r", "before", "behind"), TABLE)
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_weights_are_those_of_the_table(r, before, behind, side):
    degrees = [side * 90 * (1 - r), side * (90 + 90 * (1 - r)) - side * 1e-9 * (r == 0)]
    if r == 0:
        degrees[0] -= side * 1e-9  # exactly at the side the quarter behind it begins
    found_r, weights, found_behind = quarter(radians(*degrees))
    torch.testing.assert_close(found_r, torch.tensor([r, r], dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        weights, torch.tensor([before, behind], dtype=torch.float64), atol=6e-4, rtol=0
    )
    assert found_behind.tolist() == [0.0, 1.0]


def test_weights_have_a_period_of_one_turn_and_never_attract():
    azimuth = torch.linspace(-7.0, 7.0, 999, dtype=torch.float64)
    _, weights, _ = quarter(azimuth)
    assert weights.max() <= 0
    torch.testing.assert_close(quarter(azimuth + 2 * math.pi)[1], weights)


def views_at(*degrees, elevation=10.0):
    azimuth = radians(*degrees).float()
    ones = torch.ones_like(azimuth)
    cameras = orbit(azimuth, math.radians(elevation) * ones, 3 * ones, 0.7 * ones)
    return Views(cameras, torch.ones(len(azimuth), 3))


def words(config, index):
    return [view_prompts("x", config)[number] for number in index.tolist()]


def test_prompts_are_those_of_the_ends_of_the_cameras_quarter():
    config = ViewPromptConfig()
    found = mixture(views_at(30.0, -30.0, 120.0, -120.0), config, CPU)
    assert words(config, found.first) == ["x, front view"] * 2 + ["x, side view"] * 2
    assert words(config, found.second) == ["x, side view"] * 2 + ["x, back view"] * 2
    torch.testing.assert_close(found.fraction, torch.tensor([2.0, 2.0, 2.0, 2.0]) / 3)
    assert words(config, found.negatives[0]) == ["x, front view", "x, side view"]
    assert words(config, found.negatives[2]) == ["x, side view", "x, front view"]
    overhead = mixture(views_at(30.0, 120.0, elevation=70.0), config, CPU)
    assert set(words(config, torch.cat([overhead.first, overhead.second]))) == {"x, overhead view"}


def test_prompts_of_the_bundled_prior_are_on_the_cameras_side():
    config = text_model_views()
    found = mixture(views_at(30.0, -30.0), config, CPU)
    assert ["right" in text for text in words(config, found.negatives[:, 1])] == [True, False]
    assert all("ninety" in text for text in words(config, found.negatives[:, 1]))
    assert all("front" in text for text in words(config, found.negatives[:, 0]))
    # It has a text for every 15 degrees, and needs no mixtures of others.
    assert torch.equal(found.first, found.second)
    assert ["thirty" in text for text in words(config, found.first)] == [True, True]
    require_views(config, "mini")


def text_model_views():
    from pgc3d.diffusion.models import resolve_model

    return resolve_model(text_model()).view_prompts


def test_the_conditional_prediction_changes_across_itself_alone():
    u, c, first, second = torch.randn((4, 2, 4, 5, 5), generator=torch.Generator().manual_seed(1)).double()
    weights = torch.tensor([[-1.5, -0.3], [0.0, -2.0]], dtype=torch.float64)
    found = score.perp_neg(u, c, [first, second], weights)
    for row in range(2):
        e, total = (c - u)[row].flatten(), (c - u)[row].flatten().clone()
        for number, negative in enumerate((first, second)):
            x = (negative - u)[row].flatten()
            total += weights[row, number] * (x - (x @ e) / (e @ e) * e)
        torch.testing.assert_close((found - u)[row].flatten(), total)
        torch.testing.assert_close((found - c)[row].flatten() @ e, torch.zeros((), dtype=torch.float64))
    # A negative prompt that is the prompt itself, or the empty one, changes nothing.
    torch.testing.assert_close(score.perp_neg(u, c, [c, u], weights), c)


@pytest.mark.parametrize("layout", ["sdxl", "sd"])
def test_gradient_is_that_of_the_mixed_predictions(folders, layout):
    guidance = tiny_score_distillation(folders[layout], guidance_scale=7.5, perp_neg=2.0)
    image, views = draw_image(2), views_at(40.0, 160.0)
    inputs = draw_inputs(2)
    mixed = mixture(views, guidance.view_prompts_config, CPU, 2.0)
    found = guidance.gradient(image, **inputs, mixed=mixed.tensors()).gradient

    model, z = guidance.model, {}

    def score_of(latents):
        z["latents"] = latents
        return latents

    from pgc3d.guidance.distillation import NoiseSample, distill
    from pgc3d.schedules import add_noise

    sample = NoiseSample(*(inputs[name] for name in ("timesteps", "noise", "posterior_noise")))
    distill(model, image, sample, score_of)
    abar = model.alphas_cumprod[sample.timesteps]
    noisy = add_noise(z["latents"], sample.noise, abar)

    def predict(embedding):
        empty = select(guidance.negative, torch.zeros(2, dtype=torch.long))
        time_ids = model.time_ids(64, 64)
        return model.predict(noisy, sample.timesteps, conditional=embedding, unconditional=empty,
                             time_ids=time_ids)  # fmt: skip

    first, second = (select(guidance.positive, index) for index in (mixed.first, mixed.second))
    share = mixed.fraction
    blended = replace(
        first,
        tokens=share[:, None, None] * first.tokens + (1 - share[:, None, None]) * second.tokens,
        pooled=None
        if first.pooled is None
        else share[:, None] * first.pooled + (1 - share[:, None]) * second.pooled,
    )
    uncond, cond = predict(blended)
    negatives = [predict(select(guidance.positive, index))[1] for index in mixed.negatives.unbind(1)]
    direction = cond - uncond
    total = direction.clone()
    for number, negative in enumerate(negatives):
        total += mixed.weights[:, number, None, None, None] * score.perpendicular(
            negative - uncond, direction
        )
    latent = (1 - abar)[:, None, None, None] * (uncond + 7.5 * total - sample.noise)
    expected = distill(model, image, sample, lambda _: latent).gradient
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_micro_batches_give_the_same_gradient(folders):
    guidance = tiny_score_distillation(folders["sd"], perp_neg=1.0)
    plain = tiny_score_distillation(folders["sd"])
    image, cameras = draw_image(3), turntable(3)
    rendering = rendering_of(image)
    views = Views(cameras, rendering.background)
    whole = guidance(image, rendering, views, at(0.5)).gradient
    guidance.micro_batch = 2
    torch.testing.assert_close(
        guidance(image, rendering, views, at(0.5)).gradient, whole, rtol=1e-3, atol=1e-4
    )
    assert not torch.allclose(plain(image, rendering, views, at(0.5)).gradient[1:], whole[1:], rtol=0.05)


def test_views_without_prompts_of_their_own_are_refused():
    with pytest.raises(ConfigError, match=r"must have different prompts .* models.text.view_prompts"):
        require_views(ViewPromptConfig(template="{prompt}"), "text")
    assert view_index(radians(0.0).float(), torch.zeros(1), torch.ones(1, 3), ViewPromptConfig()) == 0
