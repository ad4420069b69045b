import logging
import os

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from tiny import write_tiny_sdxl

from pgc3d.diffusion.fast.accelerate import (
    accelerate,
    accelerate_network,
    keep_compiled_code,
    release_decoder,
    spare_memory,
)
from pgc3d.diffusion.fast.encoder import FastEncoder
from pgc3d.diffusion.fast.unet import ChannelsLast, FastResnet, fuse_projections, replace_blocks
from pgc3d.diffusion.latent import select
from pgc3d.diffusion.models import load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("accelerate"))


@pytest.fixture(scope="module")
def embedding(folder):
    return encode_prompts(resolve_model(folder), ["", "a red chair"])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encode(model):
    """Latents and the gradient of a picture."""
    image = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    latents = model.encode(image, draw(2, 4, 8, 8))
    return latents.detach(), model.encoder_gradient(image, latents, draw(2, 4, 8, 8, seed=1))


def predict(model, embedding):
    one = torch.ones(1, dtype=torch.int64)
    return model.predict(
        draw(1, 4, 8, 8),
        500 * one,
        conditional=select(embedding, one),
        unconditional=select(embedding, 0 * one),
        time_ids=model.time_ids(64, 64),
    )


@pytest.mark.parametrize("low_memory", [False, True])
def test_acceleration_keeps_the_results(folder, embedding, low_memory):
    plain = load_latent_diffusion(folder)
    expected, predicted = encode(plain), predict(plain, embedding)
    fast = accelerate(load_latent_diffusion(folder), low_memory=low_memory, compiled=False)
    assert isinstance(fast.encoder, FastEncoder)
    assert fast.encoder.recompute == low_memory
    for found, value in zip((*encode(fast), *predict(fast, embedding)), (*expected, *predicted), strict=True):
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4 * value.abs().max().item())


@pytest.mark.parametrize("change", [replace_blocks, fuse_projections])
def test_a_rebuilt_unet_gives_the_same(folder, embedding, change):
    expected, model = predict(load_latent_diffusion(folder), embedding), load_latent_diffusion(folder)
    before = sum(parameter.numel() for parameter in model.unet.parameters())
    names = {name for name, _ in model.unet.named_parameters()}
    change(model.unet)
    assert {name for name, _ in model.unet.named_parameters()} != names
    assert sum(parameter.numel() for parameter in model.unet.parameters()) == before
    assert not any(parameter.requires_grad for parameter in model.unet.parameters())
    for found, value in zip(predict(model, embedding), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


@pytest.mark.parametrize("change", [replace_blocks, fuse_projections])
def test_rebuilding_twice_is_rebuilding_once(folder, change):
    unet = load_latent_diffusion(folder).unet
    change(unet)
    once = list(unet.named_parameters())
    change(unet)
    assert all(a == b and p is q for (a, p), (b, q) in zip(once, unet.named_parameters(), strict=True))


def test_blocks_hand_on_images_in_channels_last_order(folder, embedding):
    model = load_latent_diffusion(folder)
    orders = {True: set(), False: set()}
    for rebuilt in (False, True):
        if rebuilt:
            replace_blocks(model.unet)
        kinds = (FastResnet, ChannelsLast) if rebuilt else (Transformer2DModel,)
        hooks = [
            block.register_forward_hook(lambda _, __, out, found=orders[rebuilt]: found.add(is_last(out)))
            for block in model.unet.modules()
            if isinstance(block, kinds)
        ]
        predict(model, embedding)
        for hook in hooks:
            hook.remove()
    assert orders == {True: {True}, False: {False}}


def is_last(outputs):
    image = outputs[0] if isinstance(outputs, tuple) else outputs
    return image.is_contiguous(memory_format=torch.channels_last)


def test_an_encoder_of_another_kind_runs_as_it_is_and_that_is_said(folder, caplog):
    model = load_latent_diffusion(folder)
    expected = encode(model)
    model.vae.encoder.conv_in.padding_mode = "reflect"
    with caplog.at_level(logging.WARNING):
        other = accelerate(model, compiled=False)
    assert other.encoder is None
    assert [record.message for record in caplog.records] == [
        "the VAE's encoder runs in diffusers' implementation, since it has another first or last convolution"
    ]
    assert not torch.equal(encode(other)[0], expected[0])


def test_sparing_memory_changes_no_number(folder):
    expected = encode(load_latent_diffusion(folder))
    spared = spare_memory(load_latent_diffusion(folder))
    assert spared.vae.encoder.gradient_checkpointing
    for found, value in zip(encode(spared), expected, strict=True):
        assert torch.equal(found, value)


def test_a_released_decoder_holds_no_memory_and_encoding_goes_on(folder):
    model = load_latent_diffusion(folder)
    expected = encode(model)
    release_decoder(model)
    parts = [*model.vae.decoder.parameters(), *model.vae.post_quant_conv.parameters()]
    assert all(parameter.is_meta for parameter in parts)
    assert torch.equal(encode(model)[1], expected[1])


def test_compiled_code_is_kept_in_the_users_cache_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "/elsewhere")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    keep_compiled_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "pgc3d" / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "/elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # the compiler's own
def test_only_networks_that_are_worth_it_are_compiled_block_by_block(tmp_path, monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    with torch.device("meta"):
        small, large = (
            torch.nn.ModuleList([Transformer2DModel(8, dim // 8, in_channels=dim)]) for dim in (512, 4096)
        )
    for network in (small, large):
        accelerate_network(network)
    assert small[0]._compiled_call_impl is None
    assert large[0]._compiled_call_impl is not None
    assert large._compiled_call_impl is None
    accelerate_network(small, compiled=True)
    assert small[0]._compiled_call_impl is not None
