"""Zero padding at the bottom and right of channels-last images, for a convolution of stride 2."""

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.kernels.group_norm import Implementation, uses_triton


def pad_end(
    x: Float[Tensor, "B C H W"], offset: Float[Tensor, " C"], implementation: Implementation = "auto"
) -> Float[Tensor, "B C H+1 W+1"]:
    """X + offset, with zeros below and on the right; channels-last."""
    if uses_triton(implementation, x):
        from pgc3d.kernels.padding_triton import pad_end_triton

        return pad_end_triton(x, offset)
    views, channels, height, width = x.shape
    padded = x.new_zeros(views, height + 1, width + 1, channels).permute(0, 3, 1, 2)
    torch.add(x, offset[:, None, None].to(x.dtype), out=padded[:, :, :height, :width])
    return padded


def crop_end(
    padded: Float[Tensor, "B C H W"], implementation: Implementation = "auto"
) -> Float[Tensor, "B C H-1 W-1"]:
    """All but the last row and column; a channels-last copy."""
    if uses_triton(implementation, padded):
        from pgc3d.kernels.padding_triton import crop_end_triton

        return crop_end_triton(padded)
    return padded[:, :, :-1, :-1].contiguous(memory_format=torch.channels_last)
