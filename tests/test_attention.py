import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pgc3d.kernels.attention import attention, attention_plain

LEAST = {torch.float64: 1 - 1e-12, torch.float32: 1 - 1e-10, torch.float16: 0.9999, torch.bfloat16: 0.999}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def triple(views=2, tokens=37, others=37, size=24, width=24):
    return draw(views, tokens, size), draw(views, others, size, seed=1), draw(views, others, width, seed=2)


def gradients(function, inputs, gradient):
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    output = function(*inputs)
    return output.detach(), torch.autograd.grad(output, inputs, gradient)


def cosine(a, b):
    return torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


@pytest.mark.parametrize("dtype", LEAST, ids=str)
@pytest.mark.parametrize("score_bytes", [1, 5000, 1 << 20], ids=["row by row", "some rows", "at once"])
@pytest.mark.parametrize("keep", [False, True], ids=["computed again", "kept"])
def test_value_and_gradients_are_those_of_the_definition(dtype, score_bytes, keep):
    inputs = [value.to(dtype) for value in triple()]
    gradient = draw(2, 37, 24, seed=3).to(dtype)
    exact, pulls = gradients(attention_plain, [value.double() for value in inputs], gradient.double())
    found, found_pulls = gradients(
        lambda *qkv: attention(*qkv, score_bytes=score_bytes, keep=keep), inputs, gradient
    )
    assert found.dtype == dtype
    for value, expected in zip((found, *found_pulls), (exact, *pulls), strict=True):
        assert cosine(value, expected) > LEAST[dtype]
        torch.testing.assert_close(value.double().norm(), expected.norm(), rtol=1e-2, atol=0)


def test_gradients_agree_with_finite_differences():
    inputs = [value.requires_grad_() for value in triple(tokens=5, others=4, size=3, width=2)]
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, score_bytes=70), inputs)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4000))
def test_number_of_rows_at_once_changes_nothing(tokens, others, score_bytes):
    inputs = triple(tokens=tokens, others=others, size=4, width=3)
    gradient = draw(2, tokens, 3, seed=3)
    exact, pulls = gradients(attention_plain, inputs, gradient)
    found, found_pulls = gradients(lambda *qkv: attention(*qkv, score_bytes=score_bytes), inputs, gradient)
    for value, expected in zip((found, *found_pulls), (exact, *pulls), strict=True):
        torch.testing.assert_close(value, expected)


def test_a_tiny_gradient_survives_half_precision():
    # One score's share of it, about 1e-8, is below what float16 can hold.
    inputs = [value.half() for value in triple(tokens=200, others=200)]
    gradient = (draw(2, 200, 24, seed=3) * 1e-4).half()
    _, pulls = gradients(attention_plain, [value.double() for value in inputs], gradient.double())
    _, found = gradients(attention, inputs, gradient)
    assert min(cosine(a, b) for a, b in zip(found, pulls, strict=True)) > 0.9995


def test_scores_beyond_bfloat16s_digits_keep_their_order():
    # Scores near 200 lie 1 apart in bfloat16; the true difference of 0.25 decides between the two values.
    query, key = torch.tensor([[[16.0]]]), torch.tensor([[[12.5], [12.515625]]])
    value = torch.tensor([[[0.0], [1.0]]])
    exact = attention_plain(query, key.bfloat16().float(), value)
    found = attention(query.bfloat16(), key.bfloat16(), value.bfloat16())
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=4e-3)
