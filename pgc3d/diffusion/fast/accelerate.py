"""Acceleration of a `LatentDiffusion` on CUDA: memory-saving encoder, compiled UNet, CUDA graphs."""

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch

from pgc3d.diffusion.fast.cuda_graph import GraphedNetwork
from pgc3d.diffusion.fast.encoder import FastEncoder, why_unsupported
from pgc3d.diffusion.fast.unet import ChannelsLast, fuse_projections, replace_blocks
from pgc3d.diffusion.hub import cache_folder
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.kernels.attention import SCORE_BYTES, SMALL_SCORE_BYTES

logger = logging.getLogger(__name__)

# Compiling takes about a minute at any size, longer than it saves in a run of the bundled prior (20 M).
COMPILED_FROM = 100_000_000  # parameters
# The blocks of a network; code between them takes a small fraction of the time. Each kind of
# block is compiled once: on an H100 SDXL's first step takes 60 s; the whole UNet as one took 157 s for ten.
# The compiler's own CUDA graphs do not fit: the outputs of all blocks of a kind would lie in the same memory.
BLOCKS = (ChannelsLast.__name__, "ResnetBlock2D")
_KINDS = 64  # widths and sizes of blocks that one network may have


def accelerate(
    model: LatentDiffusion, *, low_memory: bool = False, compiled: bool | None = None
) -> LatentDiffusion:
    """Replace the forward passes of the modules; results are the same up to rounding.

    Weights are put into channels-last order in place, and nothing is copied. Each new shape of images
    compiles the UNet's blocks once; the compiled code is kept in the user's cache for later runs. On CUDA
    the UNet is recorded as a graph, since one image at a time it would wait for the host: SDXL's step takes
    83 ms without one and 66 with one on an H200, for 1.0 GiB.

    Args:
        model: its modules are changed.
        low_memory: keep less between the encoder's forward and backward pass, at the price of time.
        compiled: whether the UNet's blocks are; None is yes from `COMPILED_FROM` on.
    """
    vae = model.vae
    model = replace(model, predictor=accelerate_network(model.unet, compiled=compiled))
    if reason := why_unsupported(vae.encoder):
        logger.warning("the VAE's encoder runs in diffusers' implementation, since %s", reason)
        return spare_memory(model) if low_memory else model
    vae.encoder.to(memory_format=torch.channels_last)
    score_bytes = SMALL_SCORE_BYTES if low_memory else SCORE_BYTES
    encoder: Any = FastEncoder(vae.encoder, recompute=low_memory, score_bytes=score_bytes)
    return replace(model, encoder=encoder)


def accelerate_network(network: Any, *, compiled: bool | None = None) -> Callable[..., Any]:
    """Put a UNet or ControlNet in channels-last order and compile its blocks, in place; see `accelerate`.

    Returns:
        What to call in its place: itself, on CUDA what records it as a graph.
    """
    network.to(memory_format=torch.channels_last)
    if compiled is None:
        compiled = sum(parameter.numel() for parameter in network.parameters()) >= COMPILED_FROM
    if compiled:
        keep_compiled_code()
        replace_blocks(network)
        fuse_projections(network)
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _KINDS)
        for block in network.modules():
            if type(block).__name__ in BLOCKS:
                block.compile(dynamic=False)
    if next(network.parameters()).is_cuda:
        return GraphedNetwork(network)
    return cast("Callable[..., Any]", network)


def spare_memory(model: LatentDiffusion) -> LatentDiffusion:
    """Recompute diffusers' encoder, and UNet, block by block in backward passes: less memory, more time."""
    model.vae.enable_gradient_checkpointing()
    model.unet.enable_gradient_checkpointing()
    return model


def release_decoder(model: LatentDiffusion) -> None:
    """Free the VAE's decoder, which score distillation does not use; `decode` is not available afterwards."""
    for module in (model.vae.decoder, model.vae.post_quant_conv):
        if module is not None:
            module.to("meta")


def keep_compiled_code() -> None:
    """Set the cache folder of torch's compiler and of Triton to pgc3d's, unless the environment names one.

    Both read these variables at every look-up in the cache; the keys include the versions and the device.
    """
    folder = cache_folder()
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
