"""Times of named parts of a program, and the speed of a device."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Stopwatch:
    """Sums of the times of named parts, from device events on CUDA and the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to the sum of `name`."""
        start = self._now()
        yield
        self._spans.append((name, start, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last read; synchronises with the device."""
        if self._cuda:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for name, start, end in self._spans:
            span = start.elapsed_time(end) / 1000 if self._cuda else end - start
            seconds[name] = seconds.get(name, 0.0) + span
        self._spans.clear()
        return seconds


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 5) -> float:
    """Measured operations per second of a product of two square matrices, the fastest of some.

    Args:
        device: to measure.
        dtype: of the matrices.
        size: their side.
        repeats: of the measurement, after one that is not the last.
    """
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(repeats + 1):
        best = min(best, _seconds_of_product(a))
    return 2 * size**3 / best


def _seconds_of_product(a: torch.Tensor) -> float:
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
