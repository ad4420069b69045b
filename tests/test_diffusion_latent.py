import json
from dataclasses import replace

import pytest
import torch
from tiny import edit_json, write_tiny_sd, write_tiny_sdxl

from pgc3d.diffusion.latent import select
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("latent"))


@pytest.fixture(scope="module")
def model(folder):
    return load_latent_diffusion(folder)


@pytest.fixture(scope="module")
def embedding(folder):
    return encode_prompts(resolve_model(folder), ["", "a red chair"])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def predict(model, embedding, noisy, timesteps, size=64):
    ones = torch.ones_like(timesteps)
    return model.predict(
        noisy,
        timesteps,
        conditional=select(embedding, ones),
        unconditional=select(embedding, ones * 0),
        time_ids=model.time_ids(size, size),
    )


def test_encode_agrees_with_the_librarys_posterior(model):
    image, noise = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0)), draw(2, 4, 8, 8)
    posterior = model.vae.encode(image.permute(0, 3, 1, 2) * 2 - 1).latent_dist
    expected = (posterior.mean + posterior.std * noise) * 0.13025
    torch.testing.assert_close(model.encode(image, noise), expected, rtol=1e-4, atol=1e-6)


def test_decode_agrees_with_the_library_and_stays_in_range(model):
    latents = draw(2, 4, 8, 8)
    image = model.decode(latents)
    expected = model.vae.decode(latents / 0.13025).sample.permute(0, 2, 3, 1) / 2 + 0.5
    torch.testing.assert_close(image, expected.clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert 0.0 <= image.min() <= image.max() <= 1.0


def test_shapes_and_sizes_come_from_the_checkpoint(model):
    assert (model.resolution, model.downscale, model.train_steps) == (64, 8, 1000)
    assert model.latent_shape(3, 128) == (3, 4, 16, 16)
    assert model.layout == "sdxl"
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    assert not model.unet.training


def test_one_batch_equals_two_calls_of_the_library(model, embedding):
    noisy, timesteps = draw(2, 4, 8, 8), torch.tensor([10, 900])
    found = predict(model, embedding, noisy, timesteps)
    for row in range(2):
        expected = model.unet(
            noisy,
            timesteps,
            encoder_hidden_states=embedding.tokens[row].expand(2, -1, -1),
            added_cond_kwargs={
                "text_embeds": embedding.pooled[row].expand(2, -1),
                "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
            },
        ).sample
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


def test_size_conditions_reach_the_model(model, embedding):
    noisy, timesteps = draw(1, 4, 8, 8), torch.tensor([500])
    small = predict(model, embedding, noisy, timesteps, size=32)[1]
    large = predict(model, embedding, noisy, timesteps, size=64)[1]
    assert (small - large).abs().max() > 1e-5
    ids = model.time_ids(512, 256, crop=(3, 5))
    assert ids.tolist() == [[512.0, 512.0, 3.0, 5.0, 256.0, 256.0]]


def test_sdxl_without_size_conditions_is_refused(model, embedding):
    one = select(embedding, torch.tensor([0]))
    with pytest.raises(ValueError, match="time_ids"):
        model.predict(draw(1, 4, 8, 8), torch.tensor([5]), conditional=one, unconditional=one)


def test_velocity_model_returns_epsilon(tmp_path, model, embedding):
    velocity = replace(model, prediction="v_prediction")
    noisy, timesteps = draw(1, 4, 8, 8), torch.tensor([300])
    raw = predict(model, embedding, noisy, timesteps)[1]
    signal = model.alphas_cumprod[300]
    expected = signal.sqrt() * raw + (1 - signal).sqrt() * noisy
    torch.testing.assert_close(predict(velocity, embedding, noisy, timesteps)[1], expected)


def test_sd_layout_takes_no_size_conditions(tmp_path):
    source = resolve_model(write_tiny_sd(tmp_path / "sd"))
    model = load_latent_diffusion(source)
    embedding = encode_prompts(source, ["", "a cat"])
    assert embedding.pooled is None
    assert model.time_ids(64, 64) is None
    uncond, cond = predict(model, embedding, draw(1, 4, 8, 8), torch.tensor([500]))
    assert uncond.shape == cond.shape == (1, 4, 8, 8)


@pytest.mark.parametrize("vae_dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradient_keeps_its_direction_and_scale(folder, model, vae_dtype):
    # A score as small as 1e-7 would be lost on its way through float16 without the internal scale.
    half = load_latent_diffusion(folder, vae_dtype=vae_dtype)
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise, score = (
        draw(2, 4, 8, 8),
        draw(2, 4, 8, 8, seed=1) * torch.tensor([1e-7, 300.0])[:, None, None, None],
    )
    expected = model.encoder_gradient(image, model.encode(image, noise), score)
    found = half.encoder_gradient(image, half.encode(image, noise), score)
    assert found.dtype == torch.float32
    for row in range(2):
        cosine = torch.cosine_similarity(found[row].flatten(), expected[row].flatten(), dim=0)
        assert cosine > 0.999
        torch.testing.assert_close(found[row].norm(), expected[row].norm(), rtol=0.02, atol=0)


def test_zero_score_gives_zero_gradient_in_half_precision(folder):
    half = load_latent_diffusion(folder, vae_dtype=torch.float16)
    image = torch.rand(1, 64, 64, 3).requires_grad_()
    latents = half.encode(image, draw(1, 4, 8, 8))
    assert half.encoder_gradient(image, latents, torch.zeros_like(latents)).count_nonzero() == 0


def test_vae_that_overflows_in_half_precision_is_refused(tmp_path):
    folder = write_tiny_sdxl(tmp_path / "model")
    edit_json(folder / "vae" / "config.json", force_upcast=True)
    with pytest.raises(ConfigError, match=r"float16 must not need float32.*bfloat16.*fp16-fix"):
        load_latent_diffusion(folder, vae_dtype=torch.float16)
    model = load_latent_diffusion(folder, dtype=torch.bfloat16, vae_dtype=torch.bfloat16)
    assert next(model.vae.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", ["sdxl", "sd"])
def test_vae_that_says_nothing_overflows_in_sdxl_only(tmp_path, layout):
    write = {"sdxl": write_tiny_sdxl, "sd": write_tiny_sd}[layout]
    folder = write(tmp_path / "model")
    config = folder / "vae" / "config.json"
    settings = json.loads(config.read_text())
    del settings["force_upcast"]
    config.write_text(json.dumps(settings))
    if layout == "sd":
        model = load_latent_diffusion(folder, vae_dtype=torch.float16)
        assert next(model.vae.parameters()).dtype == torch.float16
    else:
        with pytest.raises(ConfigError, match="float16 must not need float32"):
            load_latent_diffusion(folder, vae_dtype=torch.float16)


def test_turbo_layout_differs_in_its_sampler_only(tmp_path, model):
    folder = write_tiny_sdxl(tmp_path / "turbo")
    edit_json(
        folder / "scheduler" / "scheduler_config.json",
        _class_name="EulerAncestralDiscreteScheduler",
        timestep_spacing="trailing",
    )
    edit_json(folder / "model_index.json", image_encoder=[None, None], feature_extractor=[None, None])
    turbo = load_latent_diffusion(folder)
    assert torch.equal(turbo.alphas_cumprod, model.alphas_cumprod)
    assert (turbo.prediction, turbo.train_steps, turbo.layout) == ("epsilon", 1000, "sdxl")
    assert turbo.alphas_cumprod[-1] > 0  # the signal does not end at zero, as the score needs it
