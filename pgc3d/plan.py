"""Estimates of a run's GPU memory and time before its first step, and settings with which it fits.

Of a step with its models; `memory.py` checks the textures of an export, on any device and without models.

Peak memory is that of the moment when the UNet runs while the activations of the encoder and the renderer are
kept for their backward passes:

    weights + pixels (activations of the encoder) + pixels (of the renderer) + latent pixels (of the UNet)

A UNet in a CUDA graph ("recorded") keeps its memory, so that the encoder's backward pass adds to it.

A guidance that trains adapters does so after the encoder's backward pass, when its activations are freed: of
the UNet's activations, kept for the backward pass, and the encoder's the larger ones count. Its network has
diffusers' own modules, with weights of its own where the frozen one is accelerated.

ControlNets add weights, arithmetic, and residuals that are kept while the UNet runs; they run before it, when
less memory is used. LoRAs are added to the weights and cost nothing. A style adds the weights of its adapter;
its few tokens are not counted, and the image encoder is freed before the UNet is loaded.

Time is the number of operations over a fraction of the rate at which this GPU multiplies large matrices.
`Costs` holds the constants, fitted to steps of SDXL at 1024 x 1024 and SD at 512 on an H100, one to four
images, with and without a depth ControlNet. The estimates are within 7 % of what torch held for diffusers'
own code; for ours they are never below it, and above it by 24 % at most. Times are without those in which the
GPU waits for the host. `scripts/benchmark_step.py` prints estimates beside measurements.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from pgc3d.build.models import LocatedModel, is_fast
from pgc3d.config import Config, ObjectiveConfig, StageConfig
from pgc3d.diffusion.fast.accelerate import SMALL
from pgc3d.errors import OutOfMemoryError
from pgc3d.memory import free_memory
from pgc3d.model_size import ModelSize, read_size
from pgc3d.requirements import ModelUse
from pgc3d.stopwatch import matmul_rate

FROZEN = ModelUse()
RESERVE = 0.05  # fraction of the free memory that the allocator cannot use
# Copies in memory of the ControlNets' residuals, where they go from one CUDA graph to another.
RECORDED_COPIES = 2.5
# Evaluations of the UNet with adapters for each view: one without a gradient, and a training step.
TRAINED_EVALUATIONS = 4
ADAPTER_BYTES = 2e8  # of the adapters, their gradients and Adam's state
# Alive in the VAE's decoder at once, in multiples of its last layer's output: of SDXL at 1024 px 6.7 GB were
# reserved for each of two views, 7.4 for one.
DECODER_TENSORS = 28.0
RECORDING_BYTES = 2e8  # of each CUDA graph's memory pool, unused and not available to others


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
    # Only UNets with fewer parameters are recorded. The memory of a recorded one is not shared, and the
    # encoder keeps the probabilities of its attention in addition.
    recorded_below: float = 0.0


PLAIN = Costs(encoder_tensors=6.4, encoder_work=2.0, matmul_fraction=0.17)  # diffusers' own code
PLAIN_LOW = replace(PLAIN, encoder_tensors=1.5, encoder_work=3.0, trained_tensors=150.0)
FAST = Costs(
    encoder_tensors=2.0, encoder_work=2.0, matmul_fraction=0.5, unet_tensors=25.0, recorded_below=math.inf
)
FAST_LOW = replace(FAST, encoder_tensors=1.0, encoder_work=2.4, matmul_fraction=0.45, recorded_below=SMALL)


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
    """
    pixels = [side**2 / 4**level for level in range(len(size.vae_channels))]
    levels = list(zip(pixels, size.vae_channels, strict=True))
    levels.append(levels[-1])  # the middle block has about as much as one level
    kept = sum(2 * count * channels for count, channels in levels) * costs.encoder_tensors / 2
    working = 4 * pixels[0] * size.vae_channels[0]
    latent = (side / size.downscale) ** 2
    recorded = size.unet_parameters < costs.recorded_below
    residuals = costs.control_tensors * (RECORDED_COPIES if recorded else 1.0)
    tensors = costs.unet_tensors + (residuals if controls else 0.0)
    unet = evaluations * latent * size.unet_channels * tensors
    passing = working + unet + latent**2 if recorded else max(working, unet)
    views = micro_batch * item * (size.vae_layers * kept + passing)
    weights = _weights(size, item)
    recordings = RECORDING_BYTES * (1 + len(controls)) if recorded else 0.0
    return Estimate(
        bytes=weights + views + recordings + batch * render_side**2 * render_bytes,
        operations=batch * _operations(size, costs, levels if encodes else [], latent, controls, evaluations),
    )


def _weights(size: ModelSize, item: int) -> float:
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


def costs_of(config: Config, *, fast: bool) -> Costs:
    """The constants of a run's settings; `fast` is that of `is_fast`."""
    low = config.run.low_memory
    return (FAST_LOW if low else FAST) if fast else (PLAIN_LOW if low else PLAIN)


def estimate_run(config: Config, sizes: Mapping[str, ModelSize]) -> Estimate:
    """The cost of a step of the stage that needs most memory.

    Args:
        config: of the run.
        sizes: of the models, by their entries in `models`.
    """
    steps = [estimate_stage(config, stage, sizes) for stage in config.stages.values()]
    return max(steps, key=lambda step: step.bytes)


def estimate_stage(config: Config, stage: StageConfig, sizes: Mapping[str, ModelSize]) -> Estimate:
    """The cost of a step of one stage, at its largest resolution.

    Memory is that of all weights and the activations of the largest objective, operations those of all
    objectives.

    Args:
        config: of the run.
        stage: one of its stages.
        sizes: of the models, by their entries in `models`.
    """
    weights = sum(_all_weights(config, name, use, sizes) for name, use in stage.requires().models.items())
    parts = [_estimate_objective(config, stage, item, sizes) for item in stage.objectives.values()]
    largest = max(*(part.bytes for part in parts), _initial_views(config, stage, sizes))
    return Estimate(bytes=weights + largest, operations=sum(part.operations for part in parts))


def _initial_views(config: Config, stage: StageConfig, sizes: Mapping[str, ModelSize]) -> float:
    """Bytes of the sampling of initial views without the weights: its decoder needs more than the UNet."""
    if stage.init is None or not stage.init.requires().models:
        return 0.0
    run, size = config.run, sizes[stage.init.model]
    views = 1 if run.low_memory else min(run.micro_batch or stage.init.count, stage.init.count)
    tensors = DECODER_TENSORS * size.resolution**2 * size.vae_channels[0]
    recordings = RECORDING_BYTES * (1 + len(stage.init.controls))
    return float(views * tensors * _item(config, stage.init.model)) + recordings


def _all_weights(config: Config, name: str, use: ModelUse, sizes: Mapping[str, ModelSize]) -> float:
    """Bytes of a model's weights, with those of a second UNet and its adapters where the use trains."""
    weights, item = _weights(sizes[name], _item(config, name)), _item(config, name)
    if not use.trains:
        return weights
    second = (
        (sizes[name].unet_parameters + sizes[name].style) * item
        if is_fast(config.models[name], FROZEN)
        else 0
    )
    return weights + second + ADAPTER_BYTES


def _estimate_objective(
    config: Config, stage: StageConfig, objective: ObjectiveConfig, sizes: Mapping[str, ModelSize]
) -> Estimate:
    """The cost of one objective without the weights; of one without a model, that of its renders."""
    run, side = config.run, max(stage.resolution)
    rendered = stage.representation.render_bytes(low_memory=run.low_memory)
    parts = [Estimate(bytes=float(objective.batch * side**2 * rendered), operations=0.0)]
    for name, use in objective.guidance.requires().models.items():
        seen = objective.guidance.input_resolution(side, sizes[name].resolution)
        step = estimate(
            sizes[name],
            costs_of(config, fast=is_fast(config.models[name], FROZEN)),
            side=seen,
            render_side=side,
            batch=objective.batch,
            micro_batch=1 if run.low_memory else min(run.micro_batch or objective.batch, objective.batch),
            item=_item(config, name),
            controls=use.controls,
            evaluations=use.evaluations,
            encodes=use.encodes,
            render_bytes=rendered,
        )
        step = replace(step, bytes=step.bytes - _weights(sizes[name], _item(config, name)))
        parts.append(_with_training(config, objective, name, step, sizes[name], seen) if use.trains else step)
    return Estimate(max(part.bytes for part in parts), sum(part.operations for part in parts))


def _with_training(
    config: Config, objective: ObjectiveConfig, name: str, step: Estimate, size: ModelSize, side: int
) -> Estimate:
    """The cost of a step whose guidance trains adapters on the latents of its images, without the weights."""
    costs, run = costs_of(config, fast=False), config.run
    views = 1 if run.low_memory else min(run.micro_batch or objective.batch, objective.batch)
    latent = (side / size.downscale) ** 2
    tensors = costs.trained_tensors + costs.unet_tensors
    kept = views * _item(config, name) * latent * size.unet_channels * tensors
    work = TRAINED_EVALUATIONS * latent * size.unet_parameters * costs.unet_work
    return Estimate(bytes=max(step.bytes, kept), operations=step.operations + objective.batch * work)


def _item(config: Config, name: str) -> int:
    """Bytes per number of a model's weights and activations."""
    return 4 if config.models[name].dtype == "float32" else 2


def lowered(config: Config) -> list[Config]:
    """The configuration, followed by alternatives that each need less memory than the one before."""
    stages = config.stages.values()
    largest = max(objective.batch for stage in stages for objective in stage.objectives.values())
    micro_batch = min(config.run.micro_batch or largest, largest)
    candidates = [config]
    while micro_batch > 1 and not config.run.low_memory:
        micro_batch //= 2
        candidates.append(replace(config, run=replace(config.run, micro_batch=micro_batch)))
    if not config.run.low_memory:
        candidates.append(replace(config, run=replace(config.run, low_memory=True)))
    return candidates


def fit(config: Config, sizes: Mapping[str, ModelSize], free: int) -> tuple[Config, Estimate]:
    """The first configuration of `lowered` that fits into the free memory, and its largest step.

    Args:
        config: of the run.
        sizes: of the models, by their entries in `models`.
        free: bytes.

    Raises:
        OutOfMemoryError: none fits.
    """
    for candidate in lowered(config):
        expected = estimate_run(candidate, sizes)
        if expected.bytes <= free * (1 - RESERVE):
            return candidate, expected
    fewer = "use fewer ControlNets, " if any(size.controls for size in sizes.values()) else ""
    raise OutOfMemoryError(
        f"the run must fit the GPU, where {free / 1e9:.1f} GB are free, but about "
        f"{expected.bytes / 1e9:.1f} GB are needed even with --low-memory; {fewer}lower "
        f"{', '.join(config.memory_settings())} or stop other processes on the GPU"
    )


def plan_run(
    config: Config,
    located: Mapping[str, LocatedModel],
    device: torch.device,
    *,
    processes: int = 1,
    on_device: int = 1,
) -> tuple[Config, str]:
    """The configuration with which a run fits the GPU, and a line about it for the user.

    On a CPU and for runs without a model there is no estimate of the models: the renders alone must fit, and
    the line is empty unless they need --low-memory.

    Args:
        config: of the run.
        located: its models, by their entries in `models`.
        device: that the run uses.
        processes: that share the views of each step.
        on_device: those of them that share the device.

    Raises:
        OutOfMemoryError: the run does not fit with any of the alternatives.
    """
    free = free_memory(device) // on_device
    fitting, line = _plan(config.of_one_process(processes), located, device, free)
    return replace(config, run=fitting.run), line


def _plan(
    config: Config, located: Mapping[str, LocatedModel], device: torch.device, free: int
) -> tuple[Config, str]:
    if device.type != "cuda" or not located:
        return _fit_renders(config, free)
    sizes = {
        name: read_size(model.folder, model.controls, model.style_size) for name, model in located.items()
    }
    fitting, expected = fit(config, sizes, free)
    rate = matmul_rate(device, torch.float16)
    seconds = sum(
        stage.steps
        * estimate_stage(fitting, stage, sizes).operations
        / (rate * _matmul_fraction(fitting, stage))
        for stage in fitting.stages.values()
    )
    return fitting, describe(config, fitting, expected, seconds, free, torch.cuda.get_device_name(device))


def _fit_renders(config: Config, free: int) -> tuple[Config, str]:
    """The configuration, or that with --low-memory, whose renders fit; a volume's can need tens of GB."""
    for low_memory in (config.run.low_memory, True):
        needed = max(
            objective.batch
            * max(stage.resolution) ** 2
            * stage.representation.render_bytes(low_memory=low_memory)
            for stage in config.stages.values()
            for objective in stage.objectives.values()
        )
        if needed <= free * (1 - RESERVE):
            changed = low_memory != config.run.low_memory
            line = "more memory is not free, so this run is as with --low-memory" if changed else ""
            return replace(config, run=replace(config.run, low_memory=low_memory)), line
    raise OutOfMemoryError(
        f"the renders of a step must fit the memory, where {free / 1e9:.1f} GB are free, but need about "
        f"{needed / 1e9:.1f} GB even with --low-memory; lower {', '.join(config.memory_settings())}"
    )


def _matmul_fraction(config: Config, stage: StageConfig) -> float:
    """Of the matmul rate, for the slowest implementation of the stage's models."""
    uses = stage.requires().models.items()
    costs = [costs_of(config, fast=is_fast(config.models[name], use)) for name, use in uses]
    return min((item.matmul_fraction for item in costs), default=1.0)


def describe(
    requested: Config, fitting: Config, expected: Estimate, seconds: float, free: int, name: str
) -> str:
    """The estimate in one line.

    Args:
        requested: the configuration of the user.
        fitting: the configuration that is used.
        expected: its largest step.
        seconds: of all steps together.
        free: bytes of memory.
        name: of the GPU.
    """
    changed = ""
    if fitting.run.low_memory and not requested.run.low_memory:
        changed = "; more would not fit, so this run is as with --low-memory"
    elif fitting.run.micro_batch != requested.run.micro_batch:
        changed = f"; more would not fit, so the model evaluates {fitting.run.micro_batch} views at a time"
    each = seconds / sum(stage.steps for stage in fitting.stages.values())
    # No time below a minute: the steps of small models are bound by the host, which the estimate leaves out.
    time = (
        f", about {each:.2f} s a step at the full resolution, {seconds / 60:.0f} min" if seconds >= 60 else ""
    )
    memory = f"{expected.bytes / 1e9:.1f} of {free / 1e9:.1f} GB free"
    return f"expected on {name}: at most {memory}{time}{changed}"
