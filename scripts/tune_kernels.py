"""Time the VAE encoder's kernels for several ways to cut up the work, at the sizes of SDXL's encoder.

Prints milliseconds and bandwidth of group normalisation with SiLU for `Tiling`s (bandwidth with each tensor
read and written as often as it has to be), and milliseconds of the middle attention for bounds of its scores.
The fastest lines are what the defaults in `kernels/` should be. Needs CUDA.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from pgc3d.kernels.attention import attention
from pgc3d.kernels.group_norm import Norm
from pgc3d.kernels.group_norm_triton import Tiling, backward_triton, forward_triton

GROUPS = 32
NUMBERS, PROGRAMS, WARPS, STAGES = (2048, 4096, 8192), (264, 512, 1024, 2048), (4, 8), (1, 3)
SCORE_MIB = (8, 16, 32, 64, 128, 256, 512)
FORWARD_PASSES, BACKWARD_PASSES = 3, 5  # reads and writes of a tensor of the pixels' size


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


def time_group_norm(
    side: int, channels: int, batch: int, repeats: int, dtype: torch.dtype
) -> list[dict[str, float]]:
    """A row for each tiling, the fastest first."""
    pixels, gradient = (
        torch.randn(batch, side * side, channels, device="cuda", dtype=dtype) for _ in range(2)
    )
    ones = torch.ones(channels, device="cuda", dtype=dtype)
    norm = Norm(ones, torch.zeros_like(ones), GROUPS)
    size = pixels.numel() * pixels.element_size()
    rows = []
    for numbers, programs, warps, stages in itertools.product(NUMBERS, PROGRAMS, WARPS, STAGES):
        tiling = Tiling(numbers=numbers, programs=programs, warps=warps, stages=stages)
        _, statistics = forward_triton(pixels, norm, ones, tiling)
        forward = milliseconds(lambda tiling=tiling: forward_triton(pixels, norm, ones, tiling), repeats)  # type: ignore[misc]
        backward = milliseconds(
            lambda tiling=tiling, statistics=statistics: backward_triton(  # type: ignore[misc]
                gradient, pixels, norm, statistics, None, tiling
            ),
            repeats,
        )
        row: dict[str, float] = {"side": side, "channels": channels, "batch": batch}
        row |= {"numbers": numbers, "programs": programs, "warps": warps, "stages": stages}
        row |= {"forward_ms": forward, "backward_ms": backward}
        row |= {"forward_TB_s": FORWARD_PASSES * size / forward / 1e9}
        rows.append(row | {"backward_TB_s": BACKWARD_PASSES * size / backward / 1e9})
    return sorted(rows, key=lambda row: row["forward_ms"] + row["backward_ms"])


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
    parser.add_argument("--side", type=int, default=1024, help="pixels of the picture")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--best", type=int, default=4, help="rows shown of each kind")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    dtype, found = torch.float16, []
    for level, channels in enumerate((128, 256, 512, 512)):
        side = options.side >> level
        rows = time_group_norm(side, channels, options.batch, options.repeats, dtype)
        show(f"group norm with SiLU, {side} x {side}, {channels} channels", rows, options.best)
        found += rows
    rows = time_attention((options.side // 8) ** 2, 512, options.repeats, dtype)
    show("attention, one head of 512", rows, len(rows))
    if options.json:
        content = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": found + rows}
        options.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
