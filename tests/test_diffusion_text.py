import gc
import logging

import pytest
import torch
from tiny import write_tiny_sd, write_tiny_sdxl

from pgc3d.diffusion.models import resolve_model
from pgc3d.diffusion.text import encode_prompts


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return resolve_model(write_tiny_sdxl(tmp_path_factory.mktemp("text")))


def tokenizer_and_encoder(source, suffix):
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    kind = CLIPTextModelWithProjection if suffix else CLIPTextModel
    tokenizer = CLIPTokenizer.from_pretrained(source.path / f"tokenizer{suffix}")
    return tokenizer, kind.from_pretrained(source.path / f"text_encoder{suffix}").eval()


@torch.no_grad()
def test_tokens_are_the_last_but_one_layers_side_by_side(source):
    prompts = ["a red chair, front view", "a cat"]
    found = encode_prompts(source, prompts)
    expected = []
    for suffix in ("", "_2"):
        tokenizer, encoder = tokenizer_and_encoder(source, suffix)
        text_model = encoder.text_model if suffix else getattr(encoder, "text_model", encoder)
        layers, caught = text_model.encoder.layers, []
        # The input of the last layer is the output of the last but one, whatever the library lists.
        handle = layers[-1].register_forward_pre_hook(lambda _, args, kwargs, caught=caught: caught.append(
            args[0] if args else kwargs["hidden_states"]), with_kwargs=True)  # fmt: skip
        output = encoder(
            tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        )
        handle.remove()
        expected.append(caught[0])
    torch.testing.assert_close(found.tokens, torch.cat(expected, dim=-1))
    torch.testing.assert_close(found.pooled, output.text_embeds)
    assert found.tokens.shape == (2, 77, 64)


def test_more_prompts_than_one_batch_keep_their_order(source):
    prompts = [f"a cat, azimuth {degrees}" for degrees in range(0, 360, 15)]
    together = encode_prompts(source, prompts)
    alone = encode_prompts(source, prompts[20:21])
    assert len(together.tokens) == 24
    torch.testing.assert_close(together.tokens[20:21], alone.tokens)
    torch.testing.assert_close(together.pooled[20:21], alone.pooled)


def test_empty_prompts_become_zeros_where_that_is_said(source, tmp_path):
    prompts = ["a cat", "", "a dog"]
    plain, zeros = encode_prompts(source, prompts), encode_prompts(source, prompts, empty_zeros=True)
    assert plain.tokens[1].abs().max() > 0
    assert plain.pooled[1].abs().max() > 0
    assert zeros.tokens[1].count_nonzero() == zeros.pooled[1].count_nonzero() == 0
    for row in (0, 2):
        assert torch.equal(zeros.tokens[row], plain.tokens[row])
        assert torch.equal(zeros.pooled[row], plain.pooled[row])
    sd = encode_prompts(resolve_model(write_tiny_sd(tmp_path / "sd")), ["", "a"], empty_zeros=True)
    assert sd.pooled is None
    assert sd.tokens[0].count_nonzero() == 0


def test_encoders_are_gone_afterwards(source):
    encode_prompts(source, ["a cat"])
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing).__name__.startswith("CLIPText")
                and isinstance(thing, torch.nn.Module)]  # fmt: skip


def test_prompt_that_is_too_long_is_cut_and_said(source, caplog):
    with caplog.at_level(logging.WARNING, logger="pgc3d"):
        long = encode_prompts(source, ["chair " * 40])
    assert "is cut off" in caplog.text
    assert long.tokens.shape[1] == 77


def test_sd_layout_gives_final_hidden_states(tmp_path):
    source = resolve_model(write_tiny_sd(tmp_path / "sd"))
    found = encode_prompts(source, ["a cat"])
    tokenizer, encoder = tokenizer_and_encoder(source, "")
    ids = tokenizer(["a cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    torch.testing.assert_close(found.tokens, encoder(ids).last_hidden_state.detach())
    assert found.pooled is None


def test_half_precision_embedding(source):
    found = encode_prompts(source, ["a cat"], dtype=torch.bfloat16)
    exact = encode_prompts(source, ["a cat"])
    assert found.tokens.dtype == torch.bfloat16
    torch.testing.assert_close(found.tokens.float(), exact.tokens, rtol=0.1, atol=0.1)
