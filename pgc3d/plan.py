"""What a run will take on this GPU, estimated before its first step, and made to fit.

Memory is what is there at the moment when the UNet runs and the encoder's graph and the renderer's wait:

    weights + pixels (kept of the encoder) + pixels (kept of the renderer) + latent pixels (the UNet's own)

A recorded UNet keeps its memory, so that the encoder's backward pass needs more beside it.

ControlNets add weights, arithmetic, and answers that are kept while the UNet runs; they run before it, when
less is there at once. LoRAs are part of the weights and cost nothing.

Time is arithmetic over a share of the rate at which this GPU multiplies large matrices. `Costs` holds the
constants, fitted to steps of SDXL at 1024 x 1024 and SD at 512 on an H100, one to four pictures, with and
without a depth ControlNet. What torch held is met within 7 % for diffusers' own code; ours is never
underrated, and overrated by 24 % at most. Times leave out what a GPU waits for the host.
`scripts/benchmark_step.py` prints what they predict beside what it measures.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from pgc3d.build.models import LocatedModel, is_fast
from pgc3d.config import Config, ObjectiveConfig, StageConfig
from pgc3d.diffusion.fast.accelerate import SMALL
from pgc3d.diffusion.files import WEIGHTS, ModelFolder, read_json, weight_files
from pgc3d.diffusion.single_file import count_unet
from pgc3d.errors import OutOfMemoryError

RESERVE = 0.05  # of the free memory, for what the allocator cannot use
# Times that what ControlNets answer lies in memory where it goes from one recording to another.
RECORDED_ANSWERS = 2.5
RECORDING_BYTES = 2e8  # of a recording's own memory, what it does not use and nothing else can


@dataclass(frozen=True)
class Costs:
    """Constants of the estimate for one way to run the modules."""

    encoder_tensors: float  # kept of each residual block, in sizes of its output
    encoder_work: float  # forward and backward arithmetic, in forward passes
    share: float  # of the matmul rate that the step reaches
    unet_tensors: float = 50.0  # alive in the UNet, in sizes of its first layer's output
    unet_work: float = (
        0.142  # operations for each parameter and latent pixel; most layers work at lower sizes
    )
    # Kept of all ControlNets' answers and conditions, in the same sizes: counted from the shapes, 5.8 in
    # SDXL's layout and 7.2 in SD's.
    control_tensors: float = 7.2
    # Parameters from which on a UNet is not recorded. A recorded one's memory is its own, and beside it the
    # encoder keeps the probabilities of its attention.
    recorded_below: float = 0.0


PLAIN = Costs(encoder_tensors=6.4, encoder_work=2.0, share=0.17)  # diffusers' own code
PLAIN_LOW = replace(PLAIN, encoder_tensors=1.5, encoder_work=3.0)
FAST = Costs(encoder_tensors=2.0, encoder_work=2.0, share=0.5, unet_tensors=25.0, recorded_below=math.inf)
FAST_LOW = replace(FAST, encoder_tensors=1.0, encoder_work=2.4, share=0.45, recorded_below=SMALL)


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a latent diffusion model that the estimate needs."""

    unet_parameters: int
    unet_channels: int  # of its first layer
    vae_channels: tuple[int, ...]  # of its levels
    vae_layers: int
    resolution: int  # pixels that it was made for
    controls: Mapping[str, int] = field(default_factory=dict)  # parameters of the ControlNets beside it

    @property
    def downscale(self) -> int:
        """Pixels per latent."""
        return int(2 ** (len(self.vae_channels) - 1))


@dataclass(frozen=True)
class Estimate:
    """What a step takes."""

    bytes: float  # at most at once
    operations: float


def read_size(folder: ModelFolder, controls: Mapping[str, ModelFolder]) -> ModelSize:
    """The sizes of a checkpoint and its ControlNets, from their configs and the headers of their weights."""
    parts = (folder.path / "unet", folder.vae or folder.path / "vae")
    unet, vae = (read_json(part / "config.json") for part in parts)
    channels = tuple(vae["block_out_channels"])
    return ModelSize(
        unet_parameters=count_unet(folder.file) if folder.file else _parameters_of(folder.path / "unet"),
        unet_channels=int(unet["block_out_channels"][0]),
        vae_channels=channels,
        vae_layers=int(vae.get("layers_per_block", 1)),
        resolution=int(unet["sample_size"]) * 2 ** (len(channels) - 1),
        controls={name: _parameters_of(found.path) for name, found in controls.items()},
    )


def _parameters_of(network: Path) -> int:
    """Of a UNet or a ControlNet, whose weights have the same file names."""
    return count_parameters(weight_files(network, WEIGHTS["unet"], prefer_half=True))


def count_parameters(files: Sequence[Path]) -> int:
    """How many numbers some safetensors files hold; reads only the headers."""
    from safetensors import safe_open

    total = 0
    for file in files:
        with safe_open(file, framework="pt") as handle:
            total += sum(math.prod(handle.get_slice(name).get_shape()) for name in handle.keys())  # noqa: SIM118
    return total


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
    render_bytes: int = 1100,
) -> Estimate:
    """What one objective's share of a step takes, with the weights of everything that is loaded.

    Args:
        size: the model.
        costs: how it runs.
        side: of the images that the model evaluates, in pixels.
        render_side: pixels of the rendering.
        batch: views of a step.
        micro_batch: views that the model evaluates at once.
        item: bytes of a number.
        controls: names of the model's ControlNets that this objective uses, once for each time.
        render_bytes: kept of the renderer for each pixel.
    """
    pixels = [side**2 / 4**level for level in range(len(size.vae_channels))]
    levels = list(zip(pixels, size.vae_channels, strict=True))
    levels.append(levels[-1])  # the middle block has about as much as one level
    kept = sum(2 * count * channels for count, channels in levels) * costs.encoder_tensors / 2
    working = 4 * pixels[0] * size.vae_channels[0]
    latent = (side / size.downscale) ** 2
    recorded = size.unet_parameters < costs.recorded_below
    answers = costs.control_tensors * (RECORDED_ANSWERS if recorded else 1.0)
    tensors = costs.unet_tensors + (answers if controls else 0.0)
    unet = 2 * latent * size.unet_channels * tensors
    passing = working + unet + latent**2 if recorded else max(working, unet)
    views = micro_batch * item * (size.vae_layers * kept + passing)
    weights = _weights(size, item)
    recordings = RECORDING_BYTES * (1 + len(controls)) if recorded else 0.0
    return Estimate(
        bytes=weights + views + recordings + batch * render_side**2 * render_bytes,
        operations=batch * _operations(size, costs, levels, latent, controls),
    )


def _weights(size: ModelSize, item: int) -> float:
    return float((size.unet_parameters + sum(size.controls.values())) * item)


def _operations(
    size: ModelSize,
    costs: Costs,
    levels: Sequence[tuple[float, int]],
    latent: float,
    controls: Collection[str],
) -> float:
    """Arithmetic for one view; of each of the encoder's levels the pixels and channels are given."""
    convolutions = sum(2 * size.vae_layers * 18 * count * channels**2 for count, channels in levels)
    attention = 4 * latent**2 * size.vae_channels[-1]
    asked = size.unet_parameters + sum(size.controls[name] for name in controls)
    predict = 2 * latent * asked * costs.unet_work
    return (convolutions + attention) * costs.encoder_work + predict


def costs_of(config: Config, *, fast: bool) -> Costs:
    """The way in which a run goes."""
    low = config.run.low_memory
    return (FAST_LOW if low else FAST) if fast else (PLAIN_LOW if low else PLAIN)


def estimate_run(config: Config, sizes: Mapping[str, ModelSize]) -> Estimate:
    """The largest step of a run, over its stages; `sizes` are those of the entries of `models`."""
    steps = [estimate_stage(config, stage, sizes) for stage in config.stages.values()]
    return max(steps, key=lambda step: step.bytes)


def estimate_stage(config: Config, stage: StageConfig, sizes: Mapping[str, ModelSize]) -> Estimate:
    """The largest step of a stage: all weights with the rest of its largest objective, and all arithmetic."""
    names = stage.requires().models
    weights = sum(_weights(sizes[name], _item(config, name)) for name in names)
    parts = [_estimate_objective(config, stage, item, sizes) for item in stage.objectives.values()]
    return Estimate(
        bytes=weights + max(part.bytes for part in parts), operations=sum(part.operations for part in parts)
    )


def _estimate_objective(
    config: Config, stage: StageConfig, objective: ObjectiveConfig, sizes: Mapping[str, ModelSize]
) -> Estimate:
    """What one objective takes beside the weights; one without a model renders only."""
    run, side = config.run, max(stage.resolution)
    rendered = stage.representation.render_bytes(low_memory=run.low_memory)
    found = [Estimate(bytes=float(objective.batch * side**2 * rendered), operations=0.0)]
    for name, use in objective.guidance.requires().models.items():
        step = estimate(
            sizes[name],
            costs_of(config, fast=is_fast(config.models[name], use)),
            side=objective.guidance.input_resolution(side, sizes[name].resolution),
            render_side=side,
            batch=objective.batch,
            micro_batch=1 if run.low_memory else min(run.micro_batch or objective.batch, objective.batch),
            item=_item(config, name),
            controls=use.controls,
            render_bytes=rendered,
        )
        found.append(replace(step, bytes=step.bytes - _weights(sizes[name], _item(config, name))))
    return Estimate(
        bytes=max(step.bytes for step in found), operations=sum(step.operations for step in found)
    )


def _item(config: Config, name: str) -> int:
    """Bytes of a number of a model."""
    return 4 if config.models[name].dtype == "float32" else 2


def lowered(config: Config) -> list[Config]:
    """The configuration, and what to try instead, each needing less memory than the one before."""
    stages = config.stages.values()
    largest = max(objective.batch for stage in stages for objective in stage.objectives.values())
    now = min(config.run.micro_batch or largest, largest)
    tries = [config]
    while now > 1 and not config.run.low_memory:
        now //= 2
        tries.append(replace(config, run=replace(config.run, micro_batch=now)))
    if not config.run.low_memory:
        tries.append(replace(config, run=replace(config.run, low_memory=True)))
    return tries


def fit(config: Config, sizes: Mapping[str, ModelSize], free: int) -> tuple[Config, Estimate]:
    """The first of `lowered` that fits into `free` bytes.

    Raises:
        OutOfMemoryError: none does.
    """
    for candidate in lowered(config):
        expected = estimate_run(candidate, sizes)
        if expected.bytes <= free * (1 - RESERVE):
            return candidate, expected
    fewer = "use fewer ControlNets, " if any(size.controls for size in sizes.values()) else ""
    largest = max(max(stage.resolution) for stage in config.stages.values())
    raise OutOfMemoryError(
        f"the run must fit the GPU, where {free / 1e9:.1f} GB are free, but about "
        f"{expected.bytes / 1e9:.1f} GB are needed even with --low-memory; {fewer}lower "
        f"--resolution (now {largest}) or stop what else uses the GPU"
    )


def plan_run(config: Config, located: Mapping[str, LocatedModel], device: torch.device) -> tuple[Config, str]:
    """Make a run fit the GPU; the configuration to use, and one line for the user.

    The line is empty on a CPU and for runs without a model, which nothing is known about.

    Raises:
        OutOfMemoryError: it cannot be made to fit.
    """
    if device.type != "cuda" or not located:
        return config, ""
    free, _ = torch.cuda.mem_get_info(device)
    sizes = {name: read_size(model.folder, model.controls) for name, model in located.items()}
    fitting, expected = fit(config, sizes, free)
    rate = matmul_rate(device, torch.float16)
    seconds = sum(
        stage.steps * estimate_stage(fitting, stage, sizes).operations / (rate * _share(fitting, stage))
        for stage in fitting.stages.values()
    )
    return fitting, describe(config, fitting, expected, seconds, free, torch.cuda.get_device_name(device))


def _share(config: Config, stage: StageConfig) -> float:
    """Of the matmul rate, by the slowest way in which a model of the stage runs."""
    uses = stage.requires().models.items()
    ways = [costs_of(config, fast=is_fast(config.models[name], use)) for name, use in uses]
    return min((way.share for way in ways), default=1.0)


def describe(asked: Config, fitting: Config, expected: Estimate, seconds: float, free: int, name: str) -> str:
    """The plan in one line; `seconds` is the time of all steps."""
    changed = ""
    if fitting.run.low_memory and not asked.run.low_memory:
        changed = "; more would not fit, so this run is as with --low-memory"
    elif fitting.run.micro_batch != asked.run.micro_batch:
        changed = f"; more would not fit, so the model evaluates {fitting.run.micro_batch} views at a time"
    minutes = seconds / 60
    each = seconds / sum(stage.steps for stage in fitting.stages.values())
    time = f", about {each:.2f} s a step at the full resolution, {minutes:.0f} min"
    # Small models wait for the host, of which the estimate knows nothing.
    return (
        f"expected on {name}: at most {expected.bytes / 1e9:.1f} of {free / 1e9:.1f} GB free"
        f"{time if minutes >= 1 else ''}{changed}"
    )


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 5) -> float:
    """Operations a second of a large matrix product, the fastest of some."""
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(repeats + 1):
        best = min(best, _seconds_of_product(a))
    return 2 * size**3 / best


def _seconds_of_product(a: torch.Tensor) -> float:
    import time

    if a.device.type != "cuda":
        start = time.perf_counter()
        a @ a
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    a @ a
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000
