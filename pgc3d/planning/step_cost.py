"""The memory and the arithmetic of one objective in a step, from the sizes of its model.

Peak memory is that of the moment when the UNet runs while the activations of the encoder and the renderer are
kept for their backward passes:

    weights + pixels (activations of the encoder) + pixels (of the renderer) + latent pixels (of the UNet)

A UNet in a CUDA graph ("recorded") keeps its memory, so that the encoder's backward pass adds to it.

ControlNets add weights, arithmetic, and residuals that are kept while the UNet runs; they run before it, when
less memory is used. LoRAs are added to the weights and cost nothing. A style adds the weights of its adapter;
its few tokens are not counted, and the image encoder is freed before the UNet is loaded.

`Costs` holds the constants, fitted to steps of SDXL at 1024 x 1024 and SD at 512 on an H100, one to four
images, with and without a depth ControlNet. The estimates are within 7 % of what torch held for diffusers'
own code; for ours they are never below it, and above it by 24 % at most. `scripts/benchmark_step.py` prints
estimates beside measurements.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pgc3d.planning.model_size import ModelSize

# Copies in memory of the ControlNets' residuals, where they go from one CUDA graph to another.
RECORDED_COPIES = 2.5
RECORDING_BYTES = 3.5e8  # of each CUDA graph's memory pool, unused and not available to others


@dataclass(frozen=True)
class Costs:
    """Constants of the estimate for one implementation of the networks."""

    encoder_tensors: float  # activations kept per residual block, in multiples of its output
    encoder_work: float  # arithmetic of forward and backward pass, in multiples of a forward pass
    matmul_fraction: float  # of the matmul rate that a step reaches
    unet_tensors: float = 50.0  # alive in the UNet at once, in multiples of its first layer's output
    # Multiply-adds per parameter and latent pixel, of two evaluations: most layers run at lower resolutions.
    unet_work: float = 0.142
    # Activations that the UNet keeps for a backward pass to its adapters, in the same multiples: counted from
    # the shapes, 775 in SDXL's layout and 395 in SD's; recomputed 57 and what one block keeps.
    trained_tensors: float = 775.0
    # Residuals and conditions kept of all ControlNets, in the same multiples: counted from the shapes, 5.8 in
    # SDXL's layout and 7.2 in SD's.
    control_tensors: float = 7.2
    recorded: bool = False  # the networks as CUDA graphs, whose memory is not shared
    scores: float = 0.0  # probabilities that the encoder's attention keeps, in multiples of all of them


PLAIN = Costs(encoder_tensors=6.4, encoder_work=2.0, matmul_fraction=0.17)  # diffusers' own code
PLAIN_LOW = replace(PLAIN, encoder_tensors=1.5, encoder_work=3.0, trained_tensors=150.0)
FAST = Costs(
    encoder_tensors=2.0, encoder_work=2.0, matmul_fraction=0.5, unet_tensors=25.0, recorded=True, scores=1.0
)
FAST_LOW = replace(FAST, encoder_tensors=1.0, encoder_work=2.4, matmul_fraction=0.45, scores=0.0)


@dataclass(frozen=True)
class Estimate:
    """The cost of a step."""

    bytes: float  # peak memory
    operations: float  # floating-point operations


def estimate(  # noqa: PLR0913 - one for each size
    size: ModelSize,
    costs: Costs,
    *,
    side: int,
    render_side: int,
    batch: int,
    micro_batch: int,
    item: int,
    controls: Collection[str] = (),
    evaluations: int = 2,
    encodes: bool = True,
    render_bytes: int = 1100,
    again_bytes: int = 0,
) -> Estimate:
    """The cost of one objective in a step, with all weights of its model and the ControlNets.

    Args:
        size: the model.
        costs: constants of its implementation.
        side: of the images that the model evaluates, in pixels.
        render_side: of the renders, in pixels.
        batch: views per step.
        micro_batch: views that the model evaluates at once.
        item: bytes per number.
        controls: names of the ControlNets that this objective uses, repeated where one is used twice.
        evaluations: of the UNet and the ControlNets for each view, in one batch.
        encodes: whether images are encoded; otherwise operations are those of the UNet alone.
        render_bytes: kept of the renderer per rendered pixel until the backward pass.
        again_bytes: for each pixel of one view, which the backward pass renders again.
    """
    pixels = [side**2 / 4**level for level in range(len(size.vae_channels))]
    levels = list(zip(pixels, size.vae_channels, strict=True))
    levels.append(levels[-1])  # the middle block has about as much as one level
    kept = sum(2 * count * channels for count, channels in levels) * costs.encoder_tensors / 2
    working = 4 * pixels[0] * size.vae_channels[0]
    latent = (side / size.downscale) ** 2
    residuals = costs.control_tensors * (RECORDED_COPIES if costs.recorded else 1.0)
    tensors = costs.unet_tensors + (residuals if controls else 0.0)
    unet = evaluations * latent * size.unet_channels * tensors
    passing = working + unet + costs.scores * latent**2 if costs.recorded else max(working, unet)
    views = micro_batch * item * (size.vae_layers * kept + passing)
    # The backward pass of the renders, when the guidance's other memory is free.
    again = render_side**2 * again_bytes + (micro_batch * item * unet if costs.recorded else 0.0)
    weights = weight_bytes(size, item)
    recordings = RECORDING_BYTES * (1 + len(controls)) if costs.recorded else 0.0
    return Estimate(
        bytes=weights + recordings + max(views, again) + batch * render_side**2 * render_bytes,
        operations=batch * _operations(size, costs, levels if encodes else [], latent, controls, evaluations),
    )


def weight_bytes(size: ModelSize, item: int) -> float:
    """Bytes of the weights of a model with its ControlNets and style, at `item` bytes per number."""
    return float((size.unet_parameters + size.style + sum(size.controls.values())) * item)


def _operations(
    size: ModelSize,
    costs: Costs,
    levels: Sequence[tuple[float, int]],
    latent: float,
    controls: Collection[str],
    evaluations: int,
) -> float:
    """Operations for one view; `levels` are the encoder's (pixels, channels), none where it is not used."""
    convolutions = sum(2 * size.vae_layers * 18 * count * channels**2 for count, channels in levels)
    attention = 4 * latent**2 * size.vae_channels[-1] if levels else 0.0
    parameters = size.unet_parameters + sum(size.controls[name] for name in controls)
    predict = evaluations * latent * parameters * costs.unet_work
    return (convolutions + attention) * costs.encoder_work + predict
