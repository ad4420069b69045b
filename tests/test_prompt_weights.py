"""Weights in prompts: what is parsed, which tokens they reach, and the laws of the embeddings."""

from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_tiny_sd, write_tiny_sdxl

from pgc3d.diffusion.models import resolve_model
from pgc3d.diffusion.text import encode_prompts, weigh
from pgc3d.errors import InputError
from pgc3d.mini import text_model
from pgc3d.prompt_weights import Part, parse_prompt, plain_text, token_weights, weight_note
from pgc3d.prompts import view_prompts
from pgc3d.view_prompts import ViewPromptConfig

PARSED = {
    "a (rusty:1.3) chair": [("a ", 1.0), ("rusty", 1.3), (" chair", 1.0)],
    "((red:1.2) chair:1.5)": [("red", 1.8), (" chair", 1.5)],
    "(a (b:2) c:0.5)": [("a ", 0.5), ("b", 1.0), (" c", 0.5)],
    "(red:1.0) chair": [("red chair", 1.0)],
    "(red : .5)": [("red", 0.5)],
    "(red:0) (blue:4)": [("red", 0.0), (" ", 1.0), ("blue", 4.0)],
    "a chair (red)": [("a chair (red)", 1.0)],
    "((red))": [("((red))", 1.0)],
    "[red] {blue}": [("[red] {blue}", 1.0)],
    "a chair (red": [("a chair (red", 1.0)],
    "a chair red:1.3)": [("a chair red:1.3)", 1.0)],
    "(a (b:2)": [("(a ", 1.0), ("b", 2.0)],
    "()": [("()", 1.0)],
    "(:2) x": [(" x", 1.0)],
    r"a \(red:1.3\) chair": [("a (red:1.3) chair", 1.0)],
    r"(size 2\:1:1.2)": [("size 2:1", 1.2)],
    r"(a\:2)": [("(a:2)", 1.0)],
    r"(16\:9) \ x": [("(16:9) \\ x", 1.0)],
    "(a: b:2)": [("a: b", 2.0)],
    "(a:b)": [("(a:b)", 1.0)],
    "": [],
}


@pytest.mark.parametrize(("prompt", "parts"), PARSED.items(), ids=repr)
def test_prompts_are_parsed_by_the_rules(prompt, parts):
    found = parse_prompt(prompt)
    assert [part.text for part in found] == [text for text, _ in parts]
    assert [part.weight for part in found] == pytest.approx([weight for _, weight in parts])


@given(st.text(st.sampled_from("ab ,"), max_size=20))
def test_a_text_without_parentheses_is_itself(text):
    assert plain_text(text) == text


@given(st.text(st.characters(exclude_characters=":\\"), max_size=20))
def test_a_text_without_numbers_is_itself_whatever_its_parentheses(text):
    assert plain_text(text) == text
    assert weight_note(text) == ""


@given(st.text(st.sampled_from("ab(): 1.\\"), max_size=30))
def test_any_text_is_parsed_or_refused(text):
    with suppress(InputError):
        assert all(part.weight >= 0 for part in parse_prompt(text))


@pytest.mark.parametrize("weight", ["4.1", "-1", "9", "100000000000"])
def test_a_weight_out_of_range_is_refused_with_the_way_to_write_text(weight):
    with pytest.raises(InputError, match=r"must lie in \[0, 4\], got .* write \\\( and \\\)"):
        parse_prompt(f"a screen (16:{weight})")


def test_a_token_in_two_parts_has_their_mean():
    parts = (Part("ab", 1.0), Part("cd", 2.0))
    assert token_weights(parts, [(0, 0), (0, 2), (1, 3), (2, 4), (0, 0)]) == [1.0, 1.0, 1.5, 2.0, 1.0]


@pytest.fixture(scope="module", params=["sdxl", "sd", "mini"])
def source(request, tmp_path_factory):
    if request.param == "mini":
        return resolve_model(text_model())
    write = {"sdxl": write_tiny_sdxl, "sd": write_tiny_sd}[request.param]
    return resolve_model(write(tmp_path_factory.mktemp("weights")))


def tokens(source, *prompts):
    return encode_prompts(source, prompts).tokens


def test_weight_one_is_bit_identical(source):
    plain = encode_prompts(source, ["a red chair"])
    one = encode_prompts(source, ["a (red:1.0) (chair:1)"])
    assert torch.equal(plain.tokens, one.tokens)
    assert plain.pooled is None or torch.equal(plain.pooled, one.pooled)
    mixed = tokens(source, "a red chair", "a (red:1.5) chair")  # a weighted prompt beside it
    torch.testing.assert_close(mixed[:1], plain.tokens, rtol=1e-5, atol=1e-5)


def test_embeddings_are_linear_in_the_weight_and_end_at_the_empty_prompt(source):
    weights = (0.0, 0.5, 1.5, 3.0)
    found = {weight: tokens(source, f"(a red chair:{weight})") for weight in weights}
    plain, empty = tokens(source, "a red chair", "").split(1)
    for weight, embedded in found.items():
        expected = empty + weight * (plain - empty)
        moved = (embedded - plain).abs().amax(-1)[0] > 1e-6
        close = torch.where(moved[:, None], expected[0], plain[0])
        torch.testing.assert_close(embedded[0], close, rtol=1e-4, atol=1e-4)
        assert moved.any()


def test_only_the_tokens_of_the_word_change(source):
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(source.path / "tokenizer")
    for text, word in (
        ("a red wooden chair, front view", "wooden"),
        ("a chair and a red  chair", "red  chair"),
    ):
        weighted = text.replace(word, f"({word}:2)")
        start = text.index(word)
        offsets = tokenizer(text, return_offsets_mapping=True).offset_mapping
        expected = [start <= a < b <= start + len(word) for a, b in offsets]
        plain, changed = tokens(source, text), tokens(source, weighted)
        moved = (plain != changed).any(-1)[0][: len(expected)].tolist()
        assert moved == expected, text


def test_several_words_and_a_view(source):
    """The words of the camera go on behind a weighted prompt."""
    texts = view_prompts("a (red:1.5) chair", ViewPromptConfig())
    assert texts[0] == "a (red:1.5) chair, front view"
    both = tokens(source, "a (red:1.5) (chair:0.5), front view")
    first, second = tokens(source, "a (red:1.5) chair, front view", "a red (chair:0.5), front view").split(1)
    plain = tokens(source, "a red chair, front view")
    torch.testing.assert_close(both - plain, (first - plain) + (second - plain), rtol=1e-3, atol=1e-4)


def test_a_long_prompt_is_cut_as_before(source, caplog):
    text = "a red chair " * 60
    plain, weighted = tokens(source, text), tokens(source, f"(a:2){text[1:]}")
    assert plain.shape == weighted.shape
    assert (plain != weighted).any(-1)[0].nonzero().flatten().tolist() == [1]
    assert "its end is cut off" in caplog.text


def test_the_pooled_embedding_stays(source):
    plain, weighted = encode_prompts(source, ["a red chair"]), encode_prompts(source, ["a (red:2) chair"])
    if plain.pooled is not None:
        torch.testing.assert_close(plain.pooled, weighted.pooled, rtol=1e-5, atol=1e-5)


def test_weights_of_one_return_the_same_numbers():
    hidden, empty = torch.randn(2, 5, 3), torch.randn(1, 5, 3)
    assert torch.equal(weigh(hidden, empty, torch.ones(2, 5)), hidden)
