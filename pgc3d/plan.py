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

from pgc3d.config import Config
from pgc3d.diffusion.accelerate import SMALL
from pgc3d.diffusion.files import WEIGHTS, ModelFolder, read_json, weight_files
from pgc3d.diffusion.single_file import count_unet
from pgc3d.errors import OutOfMemoryError
from pgc3d.guidance.sds import SdsConfig
from pgc3d.teachers import Models, text_objectives

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
    render_bytes: int = 1100  # kept of the renderer, for each pixel
    # Parameters from which on a UNet is not recorded. A recorded one's memory is its own, and beside it the
    # encoder keeps the probabilities of its attention.
    recorded_below: float = 0.0


PLAIN = Costs(encoder_tensors=6.4, encoder_work=2.0, share=0.17)  # diffusers' own code
PLAIN_LOW = replace(PLAIN, encoder_tensors=1.5, encoder_work=3.0)
FAST = Costs(encoder_tensors=2.0, encoder_work=2.0, share=0.5, unet_tensors=25.0, recorded_below=math.inf)
FAST_LOW = replace(
    FAST, encoder_tensors=1.0, encoder_work=2.4, share=0.45, render_bytes=720, recorded_below=SMALL
)


@dataclass(frozen=True)
class Teacher:
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


def read_teacher(folder: ModelFolder, controls: Mapping[str, ModelFolder]) -> Teacher:
    """The sizes of a checkpoint and its ControlNets, from their configs and the headers of their weights."""
    parts = (folder.path / "unet", folder.vae or folder.path / "vae")
    unet, vae = (read_json(part / "config.json") for part in parts)
    channels = tuple(vae["block_out_channels"])
    return Teacher(
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


def estimate(
    teacher: Teacher,
    costs: Costs,
    *,
    side: int,
    render_side: int,
    batch: int,
    micro_batch: int,
    item: int,
    controls: Collection[str] = (),
) -> Estimate:
    """What one objective's share of a step takes, with the weights of everything that is loaded.

    Args:
        teacher: the model.
        costs: how it runs.
        side: pixels at which the model looks.
        render_side: pixels of the rendering.
        batch: views of a step.
        micro_batch: views that the model looks at at once.
        item: bytes of a number.
        controls: names of the teacher's ControlNets that this objective asks, once for each time.
    """
    pixels = [side**2 / 4**level for level in range(len(teacher.vae_channels))]
    levels = list(zip(pixels, teacher.vae_channels, strict=True))
    levels.append(levels[-1])  # the middle block has about as much as one level
    kept = sum(2 * count * channels for count, channels in levels) * costs.encoder_tensors / 2
    working = 4 * pixels[0] * teacher.vae_channels[0]
    latent = (side / teacher.downscale) ** 2
    recorded = teacher.unet_parameters < costs.recorded_below
    answers = costs.control_tensors * (RECORDED_ANSWERS if recorded else 1.0)
    tensors = costs.unet_tensors + (answers if controls else 0.0)
    unet = 2 * latent * teacher.unet_channels * tensors
    passing = working + unet + latent**2 if recorded else max(working, unet)
    views = micro_batch * item * (teacher.vae_layers * kept + passing)
    weights = (teacher.unet_parameters + sum(teacher.controls.values())) * item
    recordings = RECORDING_BYTES * (1 + len(controls)) if recorded else 0.0
    return Estimate(
        bytes=weights + views + recordings + batch * render_side**2 * costs.render_bytes,
        operations=batch * _operations(teacher, costs, levels, latent, controls),
    )


def _operations(
    teacher: Teacher,
    costs: Costs,
    levels: Sequence[tuple[float, int]],
    latent: float,
    controls: Collection[str],
) -> float:
    """Arithmetic for one view; of each of the encoder's levels the pixels and channels are given."""
    convolutions = sum(2 * teacher.vae_layers * 18 * count * channels**2 for count, channels in levels)
    attention = 4 * latent**2 * teacher.vae_channels[-1]
    asked = teacher.unet_parameters + sum(teacher.controls[name] for name in controls)
    predict = 2 * latent * asked * costs.unet_work
    return (convolutions + attention) * costs.encoder_work + predict


def costs_of(config: Config, *, fast: bool) -> Costs:
    """The way in which a run goes."""
    low = config.run.low_memory
    return (FAST_LOW if low else FAST) if fast else (PLAIN_LOW if low else PLAIN)


def estimate_run(config: Config, teacher: Teacher, *, fast: bool) -> Estimate:
    """The largest step of a run: memory of its largest objective, arithmetic of all."""
    low, costs = config.run.low_memory, costs_of(config, fast=fast)
    item = 4 if config.model.dtype == "float32" else 2
    steps = []
    for name, guidance in text_objectives(config).items():
        objective = config.objectives[name]
        render_side = max(config.run.resolution)
        steps.append(
            estimate(
                teacher,
                costs,
                side=_side(guidance, teacher, render_side),
                render_side=render_side,
                batch=objective.batch,
                micro_batch=1 if low else min(config.run.micro_batch or objective.batch, objective.batch),
                item=item,
                controls=[control.model for control in guidance.controls.values()],
            )
        )
    return Estimate(
        bytes=max(step.bytes for step in steps), operations=sum(step.operations for step in steps)
    )


def _side(guidance: SdsConfig, teacher: Teacher, render_side: int) -> int:
    asked = guidance.resolution
    return render_side if asked < 0 else asked or teacher.resolution


def lowered(config: Config) -> list[Config]:
    """The configuration, and what to try instead, each needing less memory than the one before."""
    largest = max(objective.batch for objective in config.objectives.values())
    now = min(config.run.micro_batch or largest, largest)
    tries = [config]
    while now > 1 and not config.run.low_memory:
        now //= 2
        tries.append(replace(config, run=replace(config.run, micro_batch=now)))
    if not config.run.low_memory:
        tries.append(replace(config, run=replace(config.run, low_memory=True)))
    return tries


def fit(config: Config, teacher: Teacher, free: int, *, fast: bool) -> tuple[Config, Estimate]:
    """The first of `lowered` that fits.

    Args:
        config: what was asked for.
        teacher: the model.
        free: bytes that the run may use.
        fast: whether the fast path runs.

    Raises:
        OutOfMemoryError: none does.
    """
    for candidate in lowered(config):
        expected = estimate_run(candidate, teacher, fast=fast)
        if expected.bytes <= free * (1 - RESERVE):
            return candidate, expected
    fewer = "use fewer ControlNets, " if teacher.controls else ""
    raise OutOfMemoryError(
        f"the run must fit the GPU, where {free / 1e9:.1f} GB are free, but about "
        f"{expected.bytes / 1e9:.1f} GB are needed even with --low-memory; {fewer}lower "
        f"--resolution (now {max(config.run.resolution)}) or stop what else uses the GPU"
    )


def plan_run(config: Config, models: Models, device: torch.device) -> tuple[Config, str]:
    """Make a run fit the GPU; the configuration to use, and one line for the user.

    The line is empty on a CPU and for runs without a text-to-image model, which nothing is known about.

    Raises:
        OutOfMemoryError: it cannot be made to fit.
    """
    if device.type != "cuda" or models.text is None:
        return config, ""
    free, _ = torch.cuda.mem_get_info(device)
    fast = config.model.fast == "auto"
    fitting, expected = fit(config, read_teacher(models.text, models.controls), free, fast=fast)
    rate = matmul_rate(device, torch.float16)
    seconds = expected.operations / (rate * costs_of(fitting, fast=fast).share)
    return fitting, describe(config, fitting, expected, seconds, free, torch.cuda.get_device_name(device))


def describe(asked: Config, fitting: Config, expected: Estimate, seconds: float, free: int, name: str) -> str:
    """The plan in one line."""
    changed = ""
    if fitting.run.low_memory and not asked.run.low_memory:
        changed = "; more would not fit, so this run is as with --low-memory"
    elif fitting.run.micro_batch != asked.run.micro_batch:
        changed = f"; more would not fit, so the model looks at {fitting.run.micro_batch} views at a time"
    minutes = seconds * fitting.run.steps / 60
    time = f", about {seconds:.2f} s a step at the full resolution, {minutes:.0f} min"
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
