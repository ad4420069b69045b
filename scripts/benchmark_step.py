"""Time one guidance step: diffusers' own code against ours, in one process, alternating.

Full-size modules with random weights, on which time and memory do not depend. `diffusers` is what the
original code runs: half precision, scaled-dot-product attention, no compiler. A step is encoding, the UNet
with classifier-free guidance, and the encoder's gradient; nothing waits for the device in between. Prints a
table and, with --json, writes all numbers. `--tiny --device cpu` runs the same code in seconds.
"""

import argparse
import copy
import gc
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_modules import Inputs, make_control, make_inputs, make_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pgc3d.diffusion.controlnet import Control, control_residuals
from pgc3d.diffusion.fast.accelerate import accelerate, accelerate_network
from pgc3d.diffusion.fast.cuda_graph import GraphedNetwork
from pgc3d.diffusion.fast.encoder import FastEncoder
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.kernels.attention import SMALL_SCORE_BYTES
from pgc3d.planning import step_cost
from pgc3d.planning.model_size import ModelSize
from pgc3d.stopwatch import matmul_rate

PARTS = ("encode", "unet", "gradient")
COLUMNS = {  # with their widths
    "model": 14,
    "batch": 5,
    "code": 17,
    **dict.fromkeys(PARTS, 8),
    "step": 8,
    "an image": 8,
    "faster": 6,
    "share": 5,
    "GiB": 5,
    "cosine": 8,
    "first run": 9,
}


@dataclass(frozen=True)
class Code:
    """An implementation of the modules, and the planner's costs of it."""

    model: LatentDiffusion
    costs: step_cost.Costs
    controls: tuple[Control, ...] = ()

    @property
    def modules(self) -> list[Any]:
        """All that has weights."""
        return [self.model.unet, self.model.vae, *(_own(control.network) for control in self.controls)]

    def copied(self, dtype: torch.dtype | None = None) -> "Code":
        """The same with weights of its own, in another precision where one is given."""
        unet, vae, *networks = (
            torch.nn.Module.to(copy.deepcopy(module), dtype=dtype) for module in self.modules
        )
        pairs = zip(self.controls, networks, strict=True)
        return replace(
            self,
            model=replace(self.model, unet=unet, vae=vae),
            controls=tuple(replace(control, network=network) for control, network in pairs),
        )


def _own(network: Any) -> Any:
    """The module behind what is called."""
    return network.network if isinstance(network, GraphedNetwork) else network


@dataclass
class Clock:
    """Marks between the parts of steps; read after all of them, so that no step waits."""

    device: torch.device
    steps: list[list[Any]] = field(default_factory=list)

    def mark(self, *, new: bool = False) -> None:
        """A point in time; the first one of a step is `new`."""
        if new:
            self.steps.append([])
        if self.device.type != "cuda":
            self.steps[-1].append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self.steps[-1].append(event)

    def medians(self) -> dict[str, float]:
        """Milliseconds of each part and of the whole step."""
        synchronize(self.device)
        spans = [[_span(a, b) for a, b in pairwise(marks)] for marks in self.steps]
        parts = {name: median(step[i] for step in spans) for i, name in enumerate(PARTS)}
        return parts | {"step": median(sum(step) for step in spans)}


def _span(start: Any, end: Any) -> float:
    return float(1e3 * (end - start)) if isinstance(start, float) else float(start.elapsed_time(end))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_step(code: Code, inputs: Inputs, clock: Clock | None = None) -> tuple[Tensor, Tensor]:
    """One step as `guidance.sds` does it; the image's gradient and the noise that was predicted.

    The gradient on the latents is given, so that a comparison of image gradients measures the accuracy of the
    encoder; the prediction is compared separately.
    """
    mark: Callable[..., None] = clock.mark if clock else lambda **_: None
    model, shown = code.model, inputs.image[..., :1].expand_as(inputs.image)
    controls = [(control, shown) for control in code.controls]
    image = inputs.image.detach().requires_grad_()
    mark(new=True)
    with torch.enable_grad():
        latents = model.encode(image, inputs.posterior_noise)
    mark()
    signal = model.alphas_cumprod[inputs.timesteps][:, None, None, None]
    _, predicted = model.predict(
        signal.sqrt() * latents.detach() + (1 - signal).sqrt() * inputs.noise,
        inputs.timesteps,
        conditional=inputs.conditional,
        unconditional=inputs.unconditional,
        time_ids=inputs.time_ids,
        residuals=partial(control_residuals, controls) if controls else None,
    )
    mark()
    gradient = model.encoder_gradient(image, latents, inputs.pull)
    mark()
    return gradient, predicted.clone()


def own_bytes(code: Code) -> int:
    """Bytes of the weights."""
    parameters = [parameter for module in code.modules for parameter in module.parameters()]
    return sum(p.numel() * p.element_size() for p in parameters if not p.is_meta)


def peak_bytes(code: Code, inputs: Inputs) -> int | None:
    """The peak memory of one step, with its own weights and without other codes'; CUDA only."""
    if code.model.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    for network in (code.model.predictor, *(control.network for control in code.controls)):
        if isinstance(network, GraphedNetwork):
            network.release()  # what is recorded again belongs to the step
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    run_step(code, inputs)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved() - before + own_bytes(code)


def count_operations(code: Code, inputs: Inputs) -> int:
    """Arithmetic of a step of diffusers' code, in matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        run_step(code, inputs)
    return int(counter.get_total_flops())


def reference(code: Code, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The same step in float32, by diffusers' code; one image at a time, as more might not fit."""
    exact = code.copied(torch.float32)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [run_step(exact, inputs.one_image(number)) for number in range(len(inputs.image))]
    gradients, predictions = zip(*parts, strict=True)
    return torch.cat(gradients), torch.cat(predictions)


def agreement(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Cosines with the reference: of the image's gradient, and of the prediction."""
    cosines = [
        torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()
        for a, b in zip(found, expected, strict=True)
    ]
    return dict(zip(("cosine_gradient", "cosine_prediction"), cosines, strict=True))


def make_codes(model: LatentDiffusion, controls: tuple[Control, ...], *, compiled: bool) -> dict[str, Code]:
    """The compared implementations; that of pgc3d has its own copy of the weights."""
    theirs = Code(model, step_cost.PLAIN, controls)
    ours = theirs.copied()
    ours = replace(
        ours,
        model=accelerate(ours.model, compiled=compiled),
        controls=tuple(
            replace(control, network=accelerate_network(control.network, compiled=compiled))
            for control in ours.controls
        ),
        costs=step_cost.FAST,
    )
    lean = FastEncoder(ours.model.vae.encoder, recompute=True, score_bytes=SMALL_SCORE_BYTES)
    low = replace(ours, model=replace(ours.model, encoder=lean), costs=step_cost.FAST_LOW)
    return {"diffusers": theirs, "pgc3d": ours, "pgc3d, low memory": low}


def expectation(code: Code, batch: int, rate: float) -> dict[str, float]:
    """The planner's estimates for a step, all views at once."""
    model, costs = code.model, code.costs
    vae, unet = model.vae.config, model.unet
    size = ModelSize(
        unet_parameters=sum(p.numel() for p in unet.parameters()),
        unet_channels=unet.config.block_out_channels[0],
        vae_channels=tuple(vae.block_out_channels),
        vae_layers=vae.layers_per_block,
        resolution=model.resolution,
        controls={
            control.condition: sum(p.numel() for p in _own(control.network).parameters())
            for control in code.controls
        },
    )
    item = next(unet.parameters()).element_size()
    side = model.resolution
    found = step_cost.estimate(
        size, costs, side=side, render_side=0, batch=batch, micro_batch=batch, item=item,
        controls=size.controls,
    )  # fmt: skip
    return {
        "planned_bytes": found.bytes,
        "planned_ms": 1e3 * found.operations / (rate * costs.matmul_fraction),
    }


def measure(codes: dict[str, Code], batch: int, *, repeats: int, rate: float) -> list[dict[str, Any]]:
    """A row for each code."""
    theirs = codes["diffusers"]
    inputs, device = make_inputs(theirs.model, batch), theirs.model.device
    exact = reference(theirs, inputs)
    operations = count_operations(theirs, inputs)
    rows: list[dict[str, Any]] = []
    for name, code in codes.items():
        start = time.perf_counter()
        found = run_step(code, inputs)
        synchronize(device)
        row: dict[str, Any] = {"model": theirs.model.layout, "control": bool(code.controls), "batch": batch}
        row |= {"code": name, "operations": operations, "first_run_s": time.perf_counter() - start}
        row |= {"bytes": peak_bytes(code, inputs), **agreement(found, exact)}
        rows.append(row | expectation(code, batch, rate))
    clocks = {name: Clock(device) for name in codes}
    for _ in range(repeats):
        for name, code in codes.items():
            run_step(code, inputs, clocks[name])
    for row in rows:
        row["ms"] = clocks[row["code"]].medians()
        row["share"] = operations / (row["ms"]["step"] / 1e3) / rate
        row["faster"] = clocks["diffusers"].medians()["step"] / row["ms"]["step"]
    return rows


def measure_model(
    make: Callable[[], LatentDiffusion],
    options: argparse.Namespace,
    rate: float,
    *,
    start: float,
    control: bool,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of each batch; the model is gone afterwards."""
    model = make()
    controls = (make_control(model),) if control else ()
    codes = make_codes(model, controls, compiled=model.device.type == "cuda")
    for batch in options.batches:
        if time.perf_counter() - start > options.budget_seconds:
            print(f"out of time before batch {batch}")
            return
        yield measure(codes, batch, repeats=options.repeats, rate=rate)


def format_row(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    size = "-" if row["bytes"] is None else f"{row['bytes'] / 2**30:.1f}"
    return (
        row["model"] + (" + control" if row["control"] else ""),
        str(row["batch"]),
        row["code"],
        *(f"{row['ms'][name]:.1f}" for name in (*PARTS, "step")),
        f"{row['ms']['step'] / row['batch']:.1f}",
        f"{row['faster']:.2f}x",
        f"{100 * row['share']:.0f} %",
        size,
        f"{row['cosine_gradient']:.5f}",
        f"{row['first_run_s']:.1f} s",
    )


def print_line(cells: Iterable[str]) -> None:
    """A line of a Markdown table."""
    padded = (cell.ljust(width) for cell, width in zip(cells, COLUMNS.values(), strict=True))
    print("| " + " | ".join(padded) + " |", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=("sdxl", "sd"), default=["sdxl", "sd"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 2], help="the most important first")
    parser.add_argument("--control", action="store_true", help="each model also with a depth ControlNet")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--budget-seconds", type=float, default=540.0, help="no new row starts after this")
    parser.add_argument("--tiny", action="store_true", help="miniature modules, to try the script itself")
    parser.add_argument("--json", type=Path, default=None)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    start, options = time.perf_counter(), parse(arguments)
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    dtype = torch.float16 if cuda else torch.float32
    rate = matmul_rate(device, dtype, size=512 if options.tiny else 8192)
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    report: dict[str, Any] = {
        "device": name, "torch": torch.__version__, "matmul_rate": rate, "repeats": options.repeats,
        "rows": [],
    }  # fmt: skip
    print(f"{name}, torch {torch.__version__}, {dtype}, matrix products at {rate / 1e12:.1f} TFLOP/s")
    print(f"milliseconds, medians of {options.repeats}; cosine of the image's gradient with float32")
    print_line(COLUMNS)
    print_line("-" * width for width in COLUMNS.values())
    for layout, control in product(options.models, (False, True) if options.control else (False,)):
        if time.perf_counter() - start > options.budget_seconds:
            print(f"out of time before {layout}{' + control' * control}")
            continue
        make = partial(make_model, layout, tiny=options.tiny, device=device, dtype=dtype)
        for rows in measure_model(make, options, rate, start=start, control=control):
            report["rows"] += rows
            for row in rows:
                print_line(format_row(row))
            if options.json:
                options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
        gc.collect()  # the next model must not lie between what is left of this one, where it seems smaller
        if cuda:
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
