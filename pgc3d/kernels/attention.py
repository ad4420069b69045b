"""Attention of one wide head by matrix products in blocks of query rows, with its own backward pass.

Fused attention kernels support head sizes up to 256, and the fallback for the 512 channels of a VAE's middle
block has a backward pass many times slower than its matrix products. Here the probabilities of a block of
rows are computed, used, and either stored for the backward pass or recomputed in it, which bounds the memory
by the block.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SCORE_BYTES = 256 << 20  # of a block's scores: large matrix products, few launches
SMALL_SCORE_BYTES = 32 << 20


def attention(
    query: Float[Tensor, "B N D"],
    key: Float[Tensor, "B M D"],
    value: Float[Tensor, "B M E"],
    *,
    score_bytes: int = SCORE_BYTES,
    keep: bool = False,
) -> Float[Tensor, "B N E"]:
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1), differentiable once in all three.

    Scores are float32 where the inputs are bfloat16, whose 8 bits are too few for an exponent.

    Args:
        query: B independent images, N tokens.
        key: M tokens.
        value: M tokens.
        score_bytes: bound of the scores that are held at once; at least one row of every image is.
        keep: keep all probabilities for the backward pass, B N M numbers, which saves it a product and
            a softmax.
    """
    item = query.element_size() * (2 if query.dtype == torch.bfloat16 else 1)
    rows = max(1, score_bytes // (query.shape[0] * key.shape[1] * item))
    rows = rows // 128 * 128 or rows  # whole tiles of a matrix product
    result: Tensor = _Attention.apply(query, key, value, rows, keep)  # type: ignore[no-untyped-call]
    return result


def attention_plain(
    query: Float[Tensor, "B N D"], key: Float[Tensor, "B M D"], value: Float[Tensor, "B M E"]
) -> Float[Tensor, "B N E"]:
    """The reference of `attention`: one expression, differentiated by autograd."""
    scores = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    return torch.softmax(scores, dim=-1) @ value


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: int, keep: bool) -> Tensor:  # noqa: FBT001
        result = query.new_empty(*query.shape[:2], value.shape[-1])
        stored = []
        for block in _blocks(query.shape[1], rows):
            probabilities = _probabilities(query[:, block], key)
            result[:, block] = probabilities @ value
            stored += [probabilities] if keep else []
        ctx.save_for_backward(query, key, value, result, *stored)
        ctx.rows = rows
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, result, *stored = ctx.saved_tensors
        gradient, peak = _lift(gradient)
        scale = query.shape[-1] ** -0.5
        wide = torch.promote_types(query.dtype, torch.float32)
        grad_query = torch.empty_like(query)
        grad_key, grad_value = torch.zeros_like(key, dtype=wide), torch.zeros_like(value, dtype=wide)
        pulls, values = _centred(gradient, result, value)
        for number, block in enumerate(_blocks(query.shape[1], ctx.rows)):
            rows = query[:, block]
            probabilities = stored[number] if stored else _probabilities(rows, key)
            grad_value += probabilities.transpose(1, 2) @ gradient[:, block]
            pull_scores = (pulls[:, block] @ values.transpose(1, 2)).mul_(probabilities)
            grad_query[:, block] = _product(pull_scores, key, scale)
            grad_key += _product(pull_scores.transpose(1, 2), rows, scale)
        grads = (grad_query, grad_key, grad_value)
        query_pull, key_pull, value_pull = ((grad * peak).to(query.dtype) for grad in grads)
        return query_pull, key_pull, value_pull, None, None


def _blocks(count: int, rows: int) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, count, rows))


def _centred(gradient: Tensor, result: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Factors whose product is dp - sum(p dp): softmax's backward pass is that times p.

    The sum over a row's probabilities is that of gradient times result. It rides in the product as columns
    beside ones: two, since half precision holds only its leading digits, and more of zeros, because products
    need sizes that are multiples of eight.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    total = -(gradient.to(wide) * result.to(wide)).sum(dim=-1, keepdim=True)
    leading = total.to(gradient.dtype)
    remainder = (total - leading.to(wide)).to(gradient.dtype)
    zeros = gradient.new_zeros(*gradient.shape[:2], 6)
    ones = value.new_ones(*value.shape[:2], 8)
    return torch.cat([gradient, leading, remainder, zeros], dim=-1), torch.cat([value, ones], dim=-1)


def _probabilities(query: Tensor, key: Tensor) -> Tensor:
    scale = query.shape[-1] ** -0.5
    if query.dtype != torch.bfloat16:
        return torch.softmax(_product(query, key.transpose(1, 2), scale), dim=-1)
    if query.device.type == "cuda":
        scores = torch.bmm(query, key.transpose(1, 2), out_dtype=torch.float32)
    else:
        scores = query.float() @ key.float().transpose(1, 2)
    return torch.softmax(scores.mul_(scale), dim=-1).to(query.dtype)


def _product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """The product times `scale`, which is applied before the result is rounded."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def _lift(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A float16 gradient with a peak near 1, against underflow in the scores' gradient, and the peak."""
    if gradient.dtype != torch.float16:
        return gradient, gradient.new_ones(())
    peak = gradient.abs().amax(dim=(1, 2), keepdim=True).float()
    peak = torch.exp2(peak.clamp(min=2.0**-24).log2().floor())
    return (gradient / peak).to(gradient.dtype), peak
