"""Renders and gradients for tests: of one step that is begun and ended, or for evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pgc3d.interfaces import Representation
from pgc3d.optimize import Objective, begin, finish
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import Cameras, Rendering, Step, Views


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Fail where torch waits for the CUDA device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


FIRST = Step(index=0, total=100)


def steps(total: int, *, start: int = 0) -> list[Step]:
    """The steps of a run."""
    return [Step(index=index, total=total) for index in range(start, total)]


def at(progress: float) -> Step:
    """A step of a run of 1001 at that progress, in thousandths."""
    return Step(index=round(1000 * progress), total=1001)


def show(asset: Representation, cameras: Cameras, resolution: int, background: Tensor) -> Rendering:
    """Render for evaluation."""
    return asset.render(Views(cameras, background), resolution, None)


def render(
    asset: Representation, cameras: Cameras, resolution: int, background: Tensor, step: Step = FIRST
) -> Rendering:
    """Render in a step of its own, with gradients."""
    asset.begin_step(step)
    rendering = asset.render(Views(cameras, background), resolution, step)
    asset.end_step(step)
    return rendering


def backpropagate(
    asset: Representation, objective: Objective, resolution: int, step: Step = FIRST
) -> dict[str, Tensor]:
    """Add an objective's gradients to the parameters, without regularisers; its metrics."""
    asset.begin_step(step)
    stopwatch = Stopwatch(asset.parameter_store().device)
    begun = begin(asset, objective, step, resolution=resolution, stopwatch=stopwatch)
    roots, metrics = finish(begun, stopwatch)
    roots = [(root, gradient) for root, gradient in roots if root.requires_grad]
    torch.autograd.backward([root for root, _ in roots], [gradient for _, gradient in roots])
    asset.end_step(step)
    return metrics
