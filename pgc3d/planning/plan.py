"""Estimates of a run's GPU memory and time before its first step, and settings with which it fits.

Of a step with its models, see `step_cost`; `memory.py` checks the textures of an export, on any device and
without models.

A guidance that trains adapters does so after the encoder's backward pass, when its activations are freed: of
the UNet's activations, kept for the backward pass, and the encoder's the larger ones count. Its network has
diffusers' own modules, with weights of its own where the frozen one is accelerated.

Time is the number of operations over a fraction of the rate at which this GPU multiplies large matrices,
without the times in which the GPU waits for the host.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from pgc3d.build.models import LocatedModel, is_fast
from pgc3d.config import Config, ObjectiveConfig, StageConfig
from pgc3d.devices import AUTO, device_of
from pgc3d.errors import OutOfMemoryError
from pgc3d.memory import free_memory
from pgc3d.planning.model_size import ModelSize, read_size
from pgc3d.planning.step_cost import (
    FAST,
    FAST_LOW,
    PLAIN,
    PLAIN_LOW,
    RECORDING_BYTES,
    Costs,
    Estimate,
    estimate,
    weight_bytes,
)
from pgc3d.requirements import ModelUse
from pgc3d.stopwatch import matmul_rate

FROZEN = ModelUse()
RESERVE = 0.05  # fraction of the free memory that the allocator cannot use
TRAINED_EVALUATIONS = (
    4  # of the UNet with adapters for each view: one without a gradient, and a training step
)
ADAPTER_BYTES = 2e8  # of the adapters, their gradients and Adam's state
# Alive in the VAE's decoder at once, in multiples of its last layer's output: of SDXL at 1024 px 6.7 GB were
# reserved for each of two views, 7.4 for one.
DECODER_TENSORS = 28.0
COPIED_BYTES = 64  # of a rendered pixel's buffers on the device of a model that is not the run's


def costs_of(config: Config, *, fast: bool) -> Costs:
    """The constants of a run's settings; `fast` is that of `is_fast`."""
    low = config.run.low_memory
    return (FAST_LOW if low else FAST) if fast else (PLAIN_LOW if low else PLAIN)


def estimate_run(config: Config, sizes: Mapping[str, ModelSize], device: str | None = None) -> Estimate:
    """The cost of a step of the stage that needs most memory.

    Args:
        config: of the run.
        sizes: of the models, by their entries in `models`.
        device: as in `estimate_stage`.
    """
    steps = [estimate_stage(config, stage, sizes, device) for stage in config.stages.values()]
    return max(steps, key=lambda step: step.bytes)


def estimate_stage(
    config: Config, stage: StageConfig, sizes: Mapping[str, ModelSize], device: str | None = None
) -> Estimate:
    """The cost of a step of one stage, at its largest resolution.

    Memory is that of all weights and the activations of the largest objective, operations those of all
    objectives. The run's device also has the renders of all objectives whose models are elsewhere, at once.

    Args:
        config: of the run.
        stage: one of its stages.
        sizes: of the models, by their entries in `models`.
        device: whose memory and work is counted, as models name it; None where all share one.
    """
    names = [name for name in stage.requires().models if device in {None, config.models[name].device}]
    uses = stage.requires().models
    weights = sum(_all_weights(config, name, uses[name], sizes) for name in names)
    parts, waiting = [_initial_views(config, stage, sizes) if device in {None, AUTO} else 0.0], 0.0
    operations = 0.0
    for item in stage.objectives.values():
        place = _place(config, item)
        if device in {None, place}:
            rendered = None if device in {None, AUTO} else COPIED_BYTES
            part = _estimate_objective(config, stage, item, sizes, rendered)
            parts.append(part.bytes)
            operations += part.operations
        elif device == AUTO:
            waiting += _renders(config, stage, item)
    return Estimate(bytes=weights + waiting + max(parts), operations=operations)


def _place(config: Config, objective: ObjectiveConfig) -> str:
    """The device of an objective's models, which have one together, as they name it."""
    return next((config.models[name].device for name in objective.guidance.requires().models), AUTO)


def _renders(config: Config, stage: StageConfig, objective: ObjectiveConfig) -> float:
    """Bytes that the renders of an objective keep."""
    rendered = stage.representation.render_bytes(low_memory=config.run.low_memory)
    return float(objective.batch * max(stage.resolution) ** 2 * rendered)


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
    weights, item = weight_bytes(sizes[name], _item(config, name)), _item(config, name)
    if not use.trains:
        return weights
    second = (
        (sizes[name].unet_parameters + sizes[name].style) * item
        if is_fast(config.models[name], FROZEN)
        else 0
    )
    return weights + second + ADAPTER_BYTES


def _estimate_objective(
    config: Config,
    stage: StageConfig,
    objective: ObjectiveConfig,
    sizes: Mapping[str, ModelSize],
    rendered: int | None = None,
) -> Estimate:
    """The cost of one objective without the weights; of one without a model, that of its renders.

    Args:
        config: of the run.
        stage: of the objective.
        objective: one of the stage.
        sizes: of the models, by their entries in `models`.
        rendered: bytes kept of a rendered pixel on this device; the representation's when None.
    """
    run, side = config.run, max(stage.resolution)
    again = 0
    if rendered is None:
        rendered = stage.representation.render_bytes(low_memory=run.low_memory)
        again = stage.representation.again_bytes(low_memory=run.low_memory)
    parts = [Estimate(bytes=float(side**2 * (objective.batch * rendered + again)), operations=0.0)]
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
            again_bytes=again,
        )
        step = replace(step, bytes=step.bytes - weight_bytes(sizes[name], _item(config, name)))
        parts.append(_with_training(config, objective, name, step, sizes[name], seen) if use.trains else step)
    return Estimate(
        bytes=max(part.bytes for part in parts), operations=sum(part.operations for part in parts)
    )


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


def fit(
    config: Config, sizes: Mapping[str, ModelSize], free: int, others: Mapping[str, int] | None = None
) -> tuple[Config, Estimate]:
    """The first configuration of `lowered` that fits into the free memory, and its largest step.

    Args:
        config: of the run.
        sizes: of the models, by their entries in `models`.
        free: bytes.
        others: free bytes of other devices that models name, by those names.

    Raises:
        OutOfMemoryError: none fits.
    """
    available: dict[str | None, int] = {AUTO if others else None: free}
    available.update((others or {}).items())
    for candidate in lowered(config):
        expected = {place: estimate_run(candidate, sizes, place) for place in available}
        over = [place for place in available if expected[place].bytes > available[place] * (1 - RESERVE)]
        if not over:
            return candidate, next(iter(expected.values()))
    place = over[0]
    fewer = "use fewer ControlNets, " if any(size.controls for size in sizes.values()) else ""
    where, needed = "the GPU" if place in {None, AUTO} else place, expected[place].bytes / (1 - RESERVE)
    raise OutOfMemoryError(
        f"the run must fit {where}, where {available[place] / 1e9:.1f} GB are free, but about "
        f"{needed / 1e9:.1f} GB are needed even with --low-memory; {fewer}lower "
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
    named = _with_places(config, device)
    others = {place: free_memory(torch.device(place)) for place in places(named)}
    fitting, expected = fit(named, sizes, free, others)
    rate = matmul_rate(device, torch.float16)
    seconds = sum(
        stage.steps * _operations(fitting, stage, sizes) / (rate * _matmul_fraction(fitting, stage))
        for stage in fitting.stages.values()
    )
    line = describe(config, fitting, expected, seconds, free, torch.cuda.get_device_name(device))
    for place, there in others.items():
        planned = estimate_run(fitting, sizes, place).bytes
        line += f"; on {place} at most {planned / 1e9:.1f} of {there / 1e9:.1f} GB free"
    return fitting, line


def _with_places(config: Config, device: torch.device) -> Config:
    """The configuration with `auto` for the run's own device, in whatever form models name it."""
    models = {
        name: replace(model, device=AUTO) if device_of(model.device, device) == device else model
        for name, model in config.models.items()
    }
    return replace(config, models=models)


def places(config: Config) -> list[str]:
    """The CUDA devices beside the run's that its models name."""
    named = (config.models[name].device for name in config.requires().models)
    return sorted({place for place in named if place.startswith("cuda")})


def _operations(config: Config, stage: StageConfig, sizes: Mapping[str, ModelSize]) -> float:
    """Operations of the device that has most of them in a step: the devices work at the same time."""
    found = places(config)
    each: list[str | None] = [AUTO, *found] if found else [None]
    return max(estimate_stage(config, stage, sizes, place).operations for place in each)


def _fit_renders(config: Config, free: int) -> tuple[Config, str]:
    """The configuration, or that with --low-memory, whose renders fit; a volume's can need tens of GB."""
    for low_memory in (config.run.low_memory, True):
        needed = max(
            max(stage.resolution) ** 2
            * (
                objective.batch * stage.representation.render_bytes(low_memory=low_memory)
                + stage.representation.again_bytes(low_memory=low_memory)
            )
            for stage in config.stages.values()
            for objective in stage.objectives.values()
        )
        if needed <= free * (1 - RESERVE):
            changed = low_memory != config.run.low_memory
            line = "more memory is not free, so this run is as with --low-memory" if changed else ""
            return replace(config, run=replace(config.run, low_memory=low_memory)), line
    raise OutOfMemoryError(
        f"the renders of a step must fit the memory, where {free / 1e9:.1f} GB are free, but need about "
        f"{needed / (1 - RESERVE) / 1e9:.1f} GB even with --low-memory; "
        f"lower {', '.join(config.memory_settings())}"
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
    changed = changes(requested, fitting)
    minutes = seconds / 60
    each = seconds / sum(stage.steps for stage in fitting.stages.values())
    time = f", about {each:.2f} s a step at the full resolution, {minutes:.0f} min"
    # No time below a minute: the steps of small models are bound by the host, which the estimate leaves out.
    return (
        f"expected on {name}: at most {expected.bytes / 1e9:.1f} of {free / 1e9:.1f} GB free"
        f"{time if minutes >= 1 else ''}{f'; {changed}' if changed else ''}"
    )


def changes(requested: Config, fitting: Config) -> str:
    """What differs between the user's configuration and the one that fits, in words; "" for nothing."""
    if fitting.run.low_memory and not requested.run.low_memory:
        return "more would not fit, so this run is as with --low-memory"
    if fitting.run.micro_batch != requested.run.micro_batch:
        return f"more would not fit, so the model evaluates {fitting.run.micro_batch} views at a time"
    return ""
