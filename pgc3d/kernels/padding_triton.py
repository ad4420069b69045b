"""Triton kernels of `padding.py`, their twin: one program copies a part of an image's row."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

BLOCK, WARPS = 4096, 8


def pad_end_triton(x: Float[Tensor, "B C H W"], offset: Float[Tensor, " C"]) -> Float[Tensor, "B C H+1 W+1"]:
    """Twin of `padding.pad_end`."""
    x = x.contiguous(memory_format=torch.channels_last)
    views, channels, height, width = x.shape
    padded = torch.empty(
        (views, channels, height + 1, width + 1),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
    )  # fmt: skip
    grid = (views * (height + 1), triton.cdiv((width + 1) * channels, BLOCK))
    _pad[grid](x, offset, padded, height, width, channels, BLOCK=BLOCK, num_warps=WARPS)
    return padded


def crop_end_triton(padded: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H-1 W-1"]:
    """Twin of `padding.crop_end`."""
    padded = padded.contiguous(memory_format=torch.channels_last)
    views, channels, height, width = padded.shape
    cropped = torch.empty(
        (views, channels, height - 1, width - 1),
        dtype=padded.dtype, device=padded.device, memory_format=torch.channels_last,
    )  # fmt: skip
    grid = (views * (height - 1), triton.cdiv((width - 1) * channels, BLOCK))
    _crop[grid](padded, cropped, height - 1, width - 1, channels, BLOCK=BLOCK, num_warps=WARPS)
    return cropped


@triton.jit
@no_type_check
def _pad(x, offset, padded, height, width, channels, BLOCK: tl.constexpr):
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    view, y = row // (height + 1), row % (height + 1)
    inside = (place < width * channels) & (y < height)
    source = x + (view * height + y).to(tl.int64) * width * channels
    value = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(offset + place % channels, mask=inside, other=0.0).to(tl.float32)
    target = padded + row.to(tl.int64) * (width + 1) * channels
    tl.store(target + place, value.to(padded.dtype.element_ty), mask=place < (width + 1) * channels)


@triton.jit
@no_type_check
def _crop(padded, cropped, height, width, channels, BLOCK: tl.constexpr):
    row, place = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width * channels
    source = padded + (row // height * (height + 1) + row % height).to(tl.int64) * (width + 1) * channels
    target = cropped + row.to(tl.int64) * width * channels
    tl.store(target + place, tl.load(source + place, mask=inside), mask=inside)
