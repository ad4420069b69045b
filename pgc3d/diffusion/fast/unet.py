"""Modules of diffusers' UNets and ControlNets with fewer passes over memory, for inference."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pgc3d.diffusion.fast.encoder import is_plain_resnet, residual_branch
from pgc3d.diffusion.style_attention import StyleAttention
from pgc3d.kernels import group_norm as gn

TRANSFORMER = "Transformer2DModel"


class FastResnet(torch.nn.Module):
    """A residual block with SiLU, the preceding bias and the time embedding fused into the normalisations."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "B C H W"], time: Float[Tensor, "B E"]) -> Float[Tensor, "B D H W"]:
        """The output of the block, channels-last."""
        block, pixels, height = self.block, gn.to_pixels(x), x.shape[2]
        shift = block.time_emb_proj(functional.silu(time)) + block.conv1.bias
        result, *_ = residual_branch(block, pixels, height, (None, shift))
        bias = block.conv2.bias
        if block.conv_shortcut is None:
            result.add_(pixels).add_(bias)
        else:
            shortcut = block.conv_shortcut
            result.add_(functional.linear(pixels, shortcut.weight[:, :, 0, 0], shortcut.bias + bias))
        return gn.to_image(result, height)


class ChannelsLast(torch.nn.Module):
    """A block of diffusers whose images are channels-last, whatever the order of its own.

    Its transformers return another one, which the next block and the joining of skipped images would have to
    reorder in passes of their own; compiled with the block it costs none.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, *inputs: Any, **named: Any) -> tuple[Float[Tensor, "B C H W"], ...]:
        """The block's images, which it returns as a tuple (`return_dict=False`)."""
        return tuple(
            image.contiguous(memory_format=torch.channels_last) for image in self.block(*inputs, **named)
        )


def replace_blocks(network: Any) -> None:
    """Replace a network's supported residual blocks by `FastResnet`s, its transformers by `ChannelsLast`."""
    for module in list(network.modules()):
        if isinstance(module, FastResnet | ChannelsLast):
            continue
        for name, block in list(module.named_children()):
            if is_plain_resnet(block) and block.time_emb_proj is not None:
                setattr(module, name, FastResnet(block))
            elif type(block).__name__ == TRANSFORMER:
                setattr(module, name, ChannelsLast(block))


@torch.no_grad()
def fuse_projections(network: Any) -> None:
    """Fuse the projections of query, key and value (or, in cross attention, of key and value) in place."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0, FusedAttnProcessor2_0

    for attention in network.modules():
        if not isinstance(attention, Attention) or attention.fused_projections:
            continue
        if isinstance(attention.processor, AttnProcessor2_0 | StyleAttention):
            attention.fuse_projections()
            if isinstance(attention.processor, AttnProcessor2_0):
                attention.set_processor(FusedAttnProcessor2_0())
            attention.to_k = attention.to_v = None
            if not attention.is_cross_attention:
                attention.to_q = None
    network.requires_grad_(requires_grad=False)
