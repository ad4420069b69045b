"""The encoder of diffusers' AutoencoderKL with a lean forward pass and input gradient, for frozen weights.

The modules and their weights are diffusers'. The implementation differs: channels-last throughout; group
normalisation and SiLU in one pass (`kernels.group_norm`); the middle attention by matrix products
(`kernels.attention`); biases are folded into the next normalisation or sum (`offset`); of a residual block
only its input and, unless recomputed, one more tensor are stored for the backward pass.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pgc3d.kernels import group_norm as gn
from pgc3d.kernels.attention import SCORE_BYTES, attention
from pgc3d.kernels.padding import crop_end, pad_end


@dataclass(frozen=True)
class FastEncoder:
    """Memory-saving forward and backward pass of diffusers' `Encoder`; differentiable once, in the pixels."""

    encoder: Any
    recompute: bool = False  # store only the input of each block: half the memory, more time
    score_bytes: int = SCORE_BYTES  # bound of the middle attention's scores
    implementation: gn.Implementation = "auto"

    def __post_init__(self) -> None:
        if reason := why_unsupported(self.encoder):
            raise ValueError(f"the encoder must be supported by the fast path, but {reason}")

    def __call__(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The encoder's output, mean and log variance of the latents."""
        encoder = self.encoder
        x, offset = _convolve(pixels, encoder.conv_in), _wide(encoder.conv_in.bias)
        for block in encoder.down_blocks:
            for resnet in block.resnets:
                x, offset = self._resnet(resnet, x, offset)
            for sampler in block.downsamplers or ():
                x, offset = self._downsample(sampler.conv, x, offset), _wide(sampler.conv.bias)
        first, *others = encoder.mid_block.resnets
        x, offset = self._resnet(first, x, offset)
        for block, resnet in zip(encoder.mid_block.attentions, others, strict=True):
            if block is not None:
                x = self._attend(block, x, offset)
            x, offset = self._resnet(resnet, x, offset)
        x = gn.group_norm(x, _norm(encoder.conv_norm_out), shift=offset, implementation=self.implementation)
        return _convolve(x, encoder.conv_out) + encoder.conv_out.bias[:, None, None]

    def _resnet(self, block: Any, x: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        result: Tensor = _Resnet.apply(x, block, offset, self)  # type: ignore[no-untyped-call]
        if block.conv_shortcut is not None:
            shortcut = block.conv_shortcut
            offset = _wide(shortcut.weight)[:, :, 0, 0] @ offset + _wide(shortcut.bias)
        return result, offset + _wide(block.conv2.bias)

    def _downsample(self, convolution: Any, x: Tensor, offset: Tensor) -> Tensor:
        result: Tensor = _Downsample.apply(x, convolution.weight, offset, self.implementation)  # type: ignore[no-untyped-call]
        return result

    def _attend(self, block: Any, x: Tensor, offset: Tensor) -> Tensor:
        normal = gn.group_norm(
            x, _norm(block.group_norm, silu=False), shift=offset, implementation=self.implementation
        )
        tokens = gn.to_pixels(normal)
        heads = (block.to_q(tokens), block.to_k(tokens), block.to_v(tokens))
        result = attention(*heads, score_bytes=self.score_bytes, keep=not self.recompute)
        return gn.to_image(block.to_out[0](result), x.shape[2]).add_(x)


class _Convolution(torch.autograd.Function):
    """A convolution without bias that stores only its frozen weight for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return functional.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return _convolve_back(gradient.contiguous(memory_format=torch.channels_last), weight), None


class _Downsample(torch.autograd.Function):
    """A convolution of stride 2 over x + offset, with zeros below and on the right."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, implementation: gn.Implementation
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.odd, ctx.implementation = (x.shape[2] % 2, x.shape[3] % 2), implementation
        return functional.conv2d(pad_end(x, offset, implementation), weight, stride=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        padded = functional.conv_transpose2d(gradient, weight, stride=2, output_padding=ctx.odd)
        return crop_end(padded, ctx.implementation), None, None, None


class _Resnet(torch.autograd.Function):
    """shortcut(x) + conv2(act(norm2(conv1(act(norm1(x + offset)))))) without the last biases."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: Any, offset: Tensor, options: FastEncoder) -> Tensor:
        pixels, implementation, height = gn.to_pixels(x), options.implementation, x.shape[2]
        result, hidden, first, second = residual_branch(
            block, pixels, height, (offset, block.conv1.bias), implementation
        )
        shortcut = pixels
        if block.conv_shortcut is not None:
            shortcut = functional.linear(pixels, block.conv_shortcut.weight[:, :, 0, 0])
        ctx.save_for_backward(pixels, None if options.recompute else hidden, *first, *second)
        ctx.block, ctx.implementation, ctx.height = block, implementation, height
        return gn.to_image(result.add_(shortcut), height)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        pixels, hidden, *statistics = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        first, second = (statistics[0], statistics[1]), (statistics[2], statistics[3])
        block, implementation, height = ctx.block, ctx.implementation, ctx.height
        if hidden is None:
            active = gn.reapply(pixels, _norm(block.norm1), first, implementation)
            hidden = _convolve_pixels(active, block.conv1, height)
            del active
        pull = gn.to_pixels(_convolve_back(gradient, block.conv2.weight))
        pull = gn.backward(pull, hidden, _norm(block.norm2), second, implementation=implementation)
        del hidden
        pull = gn.to_pixels(_convolve_back(gn.to_image(pull, height), block.conv1.weight))
        residual = gn.to_pixels(gradient)
        if block.conv_shortcut is not None:
            residual = residual @ block.conv_shortcut.weight[:, :, 0, 0]
        result = gn.backward(
            pull, pixels, _norm(block.norm1), first, residual=residual, implementation=implementation
        )
        return gn.to_image(result, height), None, None, None


def _convolve(x: Tensor, convolution: Any) -> Tensor:
    result: Tensor = _Convolution.apply(x, convolution.weight)  # type: ignore[no-untyped-call]
    return result


def residual_branch(
    block: Any,
    pixels: Float[Tensor, "B P C"],
    height: int,
    shifts: tuple[
        Float[Tensor, " C"] | Float[Tensor, "B C"] | None, Float[Tensor, " D"] | Float[Tensor, "B D"]
    ],
    implementation: gn.Implementation = "auto",
) -> tuple[
    Float[Tensor, "B P D"],
    Float[Tensor, "B P D"],
    gn.Statistics,
    tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]],
]:
    """The residual branch of a block without its last bias, with the inputs of the backward pass.

    Args:
        block: the module, from C to D channels.
        pixels: the input, P = H W.
        height: of the image, H.
        shifts: added before the two normalisations; the second includes the first convolution's bias.
        implementation: of the normalisations.

    Returns:
        The branch and the input of its second normalisation, and the statistics of both normalisations.
    """
    active, first = gn.forward(pixels, _norm(block.norm1), shifts[0], implementation)
    hidden = _convolve_pixels(active, block.conv1, height)
    active, second = gn.forward(hidden, _norm(block.norm2), shifts[1], implementation)
    return _convolve_pixels(active, block.conv2, height), hidden, first, second


def _convolve_pixels(pixels: Tensor, convolution: Any, height: int) -> Tensor:
    return gn.to_pixels(functional.conv2d(gn.to_image(pixels, height), convolution.weight, padding=1))


def _convolve_back(gradient: Tensor, weight: Tensor) -> Tensor:
    """The input gradient of a 3 x 3 convolution of stride 1.

    It is a transposed convolution, which does not need the input: torch's own backward function takes the
    memory format from the input, which is not stored, and would not be channels-last.
    """
    return functional.conv_transpose2d(gradient, weight, padding=1)


def _norm(module: torch.nn.GroupNorm, *, silu: bool = True) -> gn.Norm:
    return gn.Norm(module.weight, module.bias, module.num_groups, module.eps, silu)


def _wide(parameter: Tensor) -> Tensor:
    """The parameter in at least float32, since offsets are summed over blocks."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def why_unsupported(encoder: Any) -> str | None:
    """The first unsupported property of an encoder, None where all are supported."""
    from diffusers.models.autoencoders.vae import Encoder
    from diffusers.models.unets.unet_2d_blocks import DownEncoderBlock2D, UNetMidBlock2D

    if not isinstance(encoder, Encoder):
        return f"it is a {type(encoder).__name__}"
    for block in encoder.down_blocks:
        if not isinstance(block, DownEncoderBlock2D):
            return f"it has a {type(block).__name__}"
    if not isinstance(encoder.mid_block, UNetMidBlock2D):
        return f"its middle is a {type(encoder.mid_block).__name__}"
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        return "its weights are not frozen"
    if len({parameter.dtype for parameter in encoder.parameters()}) != 1:
        return "its weights have several precisions"
    resnets = [resnet for block in encoder.down_blocks for resnet in block.resnets]
    samplers = [sampler for block in encoder.down_blocks for sampler in block.downsamplers or ()]
    attentions = [block for block in encoder.mid_block.attentions if block is not None]
    checks = {
        "a residual block of another kind": all(
            is_plain_resnet(resnet) and resnet.time_emb_proj is None
            for resnet in [*resnets, *encoder.mid_block.resnets]
        ),
        "a sampler of another kind": all(_is_plain_sampler(sampler) for sampler in samplers),
        "an attention of another kind": all(_is_plain_attention(block) for block in attentions),
        "another activation": isinstance(encoder.conv_act, torch.nn.SiLU),
        "another first or last convolution": all(
            _is_plain_convolution(module, 3) for module in (encoder.conv_in, encoder.conv_out)
        ),
    }
    return next((f"it has {fault}" for fault, fine in checks.items() if not fine), None)


def is_plain_resnet(block: Any) -> bool:
    """Whether a module is a standard residual block, with or without time embedding."""
    from diffusers.models.resnet import ResnetBlock2D

    return (
        isinstance(block, ResnetBlock2D)
        and block.time_embedding_norm == "default"
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and (block.dropout.p == 0 or not block.training)
        and isinstance(block.nonlinearity, torch.nn.SiLU)
        and all(_is_plain_convolution(module, 3) for module in (block.conv1, block.conv2))
        and (block.conv_shortcut is None or _is_plain_convolution(block.conv_shortcut, 1))
    )


def _is_plain_convolution(module: Any, kernel: int) -> bool:
    return (
        isinstance(module, torch.nn.Conv2d)
        and module.kernel_size == (kernel, kernel)
        and module.stride == (1, 1)
        and module.padding == (kernel // 2, kernel // 2)
        and module.padding_mode == "zeros"
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.bias is not None
    )


def _is_plain_sampler(sampler: Any) -> bool:
    from diffusers.models.downsampling import Downsample2D

    return (
        isinstance(sampler, Downsample2D)
        and isinstance(sampler.conv, torch.nn.Conv2d)
        and sampler.padding == 0
        and sampler.norm is None
        and sampler.conv.kernel_size == (3, 3)
        and sampler.conv.stride == (2, 2)
        and sampler.conv.bias is not None
    )


def _is_plain_attention(block: Any) -> bool:
    return (
        block.heads == 1
        and block.group_norm is not None
        and block.spatial_norm is None
        and block.norm_q is None
        and block.norm_k is None
        and block.residual_connection
        and block.rescale_output_factor == 1
        and (block.to_out[1].p == 0 or not block.training)
    )
