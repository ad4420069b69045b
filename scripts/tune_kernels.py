"""Time the VAE encoder's kernels for several ways to cut up the work, at the sizes of SDXL's encoder.

Prints milliseconds and bandwidth of each kernel of group normalisation with SiLU for `Tiling`s, and
milliseconds of the middle attention for bounds of its scores. The fastest lines are what the constants in
`kernels/` should be. Needs CUDA.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pgc3d.kernels import group_norm_triton as triton_norm
from pgc3d.kernels.attention import attention
from pgc3d.kernels.group_norm import Norm
from pgc3d.kernels.group_norm_triton import Tiling

GROUPS = 32
NUMBERS, PROGRAMS, WARPS, STAGES = (2048, 4096, 8192), (1056, 2112), (4, 8), (1, 2, 3)
SCORE_MIB = (8, 16, 32, 64, 128, 256, 512)


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median by CUDA events, after two runs that compile and warm up."""
    spans = []
    for _ in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        spans.append((start, end))
    torch.cuda.synchronize()
    return float(median(start.elapsed_time(end) for start, end in spans[2:]))


@dataclass(frozen=True)
class Kernel:
    """One of the kernels, ready to be started with any tiling."""

    start: Callable[[Tiling], Callable[[], object]]
    passes: int  # reads and writes of a tensor of the pixels' size


def make_kernels(side: int, channels: int, batch: int, dtype: torch.dtype) -> dict[str, Kernel]:
    """The four kernels over whole images, on random images."""
    shape = batch, side * side, channels
    pixels, gradient, residual = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(3))
    ones = torch.ones(channels, device="cuda", dtype=dtype)
    norm = Norm(ones, torch.zeros_like(ones), GROUPS)
    result, statistics = triton_norm.forward_triton(pixels, norm, None)
    means = torch.zeros(batch, 2, channels, device="cuda")
    shared = (*statistics, norm.weight, norm.bias)

    def kernel(function: Any, passes: int, *before: Any, written: Any = None, **options: Any) -> Kernel:
        def start(tiling: Tiling) -> Callable[[], object]:
            grid, sizes = triton_norm._cut(pixels, tiling)
            partial = torch.empty(batch, grid[0], 2, channels, device="cuda")
            output = partial if written is None else written
            return lambda: function[grid](
                *before, output, *shape[1:], *sizes, **options, num_warps=tiling.warps
            )  # fmt: skip

        return Kernel(start, passes)

    silu = {"SILU": True}
    pulls = (gradient, pixels, *shared)
    return {
        "moments": kernel(triton_norm._moments, 1, pixels),
        "apply": kernel(triton_norm._apply, 2, pixels, *shared, written=result, **silu),
        "gradient sums": kernel(triton_norm._gradient_sums, 2, *pulls, **silu),
        "apply gradient": kernel(
            triton_norm._apply_gradient, 4, *pulls, means, residual, written=result, **silu
        ),
    }


def time_kernel(kernel: Kernel, size: int, repeats: int) -> list[dict[str, float]]:
    """A row for each tiling, the fastest first; `size` is a tensor's, in bytes."""
    rows: list[dict[str, float]] = []
    for numbers, programs, warps, stages in itertools.product(NUMBERS, PROGRAMS, WARPS, STAGES):
        tiling = Tiling(numbers=numbers, programs=programs, warps=warps, stages=stages)
        time = milliseconds(kernel.start(tiling), repeats)
        row: dict[str, float] = {"numbers": numbers, "programs": programs, "warps": warps, "stages": stages}
        rows.append(row | {"ms": time, "TB_s": kernel.passes * size / time / 1e9})
    return sorted(rows, key=lambda row: row["ms"])


def time_attention(tokens: int, size: int, repeats: int, dtype: torch.dtype) -> list[dict[str, float]]:
    """A row for each bound of the scores, the fastest first."""
    heads = [torch.randn(1, tokens, size, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    gradient = torch.randn(1, tokens, size, device="cuda", dtype=dtype)
    rows = []
    for mib in SCORE_MIB:
        output = attention(*heads, score_bytes=mib << 20)
        forward = milliseconds(lambda mib=mib: attention(*heads, score_bytes=mib << 20), repeats)  # type: ignore[misc]
        backward = milliseconds(
            lambda output=output: torch.autograd.grad(output, heads, gradient, retain_graph=True),  # type: ignore[misc]
            repeats,
        )
        rows.append({"tokens": tokens, "score_MiB": mib, "forward_ms": forward, "backward_ms": backward})
    return sorted(rows, key=lambda row: row["forward_ms"] + row["backward_ms"])


def show(title: str, rows: list[dict[str, float]], best: int) -> None:
    """The fastest rows."""
    print(title)
    for row in rows[:best]:
        print("   ", "  ".join(f"{name} {value:g}" for name, value in row.items()), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the image")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--best", type=int, default=4, help="rows shown of each kind")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    dtype = torch.float16
    found: list[dict[str, Any]] = []
    for level, channels in enumerate((128, 256, 512, 512)):
        side = options.side >> level
        size = options.batch * side**2 * channels * dtype.itemsize
        for name, kernel in make_kernels(side, channels, options.batch, dtype).items():
            rows = time_kernel(kernel, size, options.repeats)
            show(f"{name}, {side} x {side}, {channels} channels", rows, options.best)
            found += [{"kernel": name, "side": side, "channels": channels, **row} for row in rows]
    rows = time_attention((options.side // 8) ** 2, 512, options.repeats, dtype)
    show("attention, one head of 512", rows, len(rows))
    if options.json:
        content = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": found + rows}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
