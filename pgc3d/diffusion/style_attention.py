"""Cross attention with an IP-Adapter (arXiv 2308.06721), which adds an attention to the tokens of an image.

    attention(q, k(text), v(text)) + weight attention(q, k'(image), v'(image))                        (eq. 5)

The tokens of the image follow those of the text.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

KEYS, VALUES = "ip_adapter.{}.to_k_ip.weight", "ip_adapter.{}.to_v_ip.weight"  # names in an adapter's file


class StyleAttention:
    """The processor of diffusers' `Attention` to a text and an image; works with fused projections, too.

    The module has a layer `to_kv_style` in addition, with the adapter's keys and values of the image.
    """

    def __init__(self, tokens: int, weight: float) -> None:
        """Store the settings.

        Args:
            tokens: of the image, the last ones of the hidden states.
            weight: of the image's attention; 0 leaves it out.
        """
        self.tokens, self.weight = tokens, weight

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "N P C"],
        encoder_hidden_states: Float[Tensor, "N T D"],
        attention_mask: None = None,
        temb: None = None,
    ) -> Float[Tensor, "N P C"]:
        """The attention's output.

        Args:
            attn: the module.
            hidden_states: of the image's latent pixels.
            encoder_hidden_states: tokens of the text, then those of the style image.
            attention_mask: none, as in UNets for text.
            temb: none.
        """
        text = encoder_hidden_states[:, : encoder_hidden_states.shape[1] - self.tokens]
        query = attn.to_q(hidden_states)
        if attn.fused_projections:
            key, value = attn.to_kv(text).chunk(2, dim=-1)
        else:
            key, value = attn.to_k(text), attn.to_v(text)
        result = _attend(attn.heads, query, key, value)
        if self.weight:
            key, value = attn.to_kv_style(encoder_hidden_states[:, -self.tokens :]).chunk(2, dim=-1)
            result = result + self.weight * _attend(attn.heads, query, key, value)
        return attn.to_out[0](result)


def _attend(
    heads: int, query: Float[Tensor, "N P C"], key: Float[Tensor, "N T C"], value: Float[Tensor, "N T C"]
) -> Float[Tensor, "N P C"]:
    query, key, value = (
        part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (query, key, value)
    )
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def text_attentions(unet: Any) -> list[Any]:
    """The cross attentions of diffusers' UNet2DConditionModel, in the order of an adapter's file."""
    return [
        unet.get_submodule(name.removesuffix(".processor"))
        for name in unet.attn_processors
        if name.endswith("attn2.processor")
    ]


def layer_numbers(count: int) -> list[int]:
    """Numbers of the cross attentions in a file, which counts the self attentions before each, too."""
    return [2 * index + 1 for index in range(count)]


@torch.no_grad()
def attach_style(unet: Any, weights: Mapping[str, Tensor], *, tokens: int, weight: float) -> None:
    """Add the adapter's layers to a UNet in place; its hidden states must then have the image's tokens.

    Args:
        unet: without fused projections.
        weights: of the adapter, by the names of its file.
        tokens: of the image.
        weight: of the image's attention.
    """
    attentions = text_attentions(unet)
    for number, attention in zip(layer_numbers(len(attentions)), attentions, strict=True):
        like = attention.to_k.weight
        both = torch.cat([weights[KEYS.format(number)], weights[VALUES.format(number)]])
        layer = torch.nn.Linear(both.shape[1], both.shape[0], bias=False, device="meta")
        layer.load_state_dict({"weight": both.to(like.device, like.dtype)}, assign=True)
        attention.to_kv_style = layer.requires_grad_(False)  # noqa: FBT003 - torch's own signature
        attention.set_processor(StyleAttention(tokens, weight))
