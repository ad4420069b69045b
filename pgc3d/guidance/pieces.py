"""A guidance that looks at a few pictures at a time: the same gradient in less memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from pgc3d.types import GuidanceOutput


def in_pieces(gradient: Callable[..., GuidanceOutput], size: int, **inputs: Tensor | None) -> GuidanceOutput:
    """Call `gradient` with at most `size` pictures at a time and put the answers together.

    Args:
        gradient: its answer for a picture must not depend on the others, and its metrics must be means.
        size: pictures of a call, 0 for all of them.
        inputs: each has one row per picture, or is None.
    """
    batch = next(len(value) for value in inputs.values() if value is not None)
    if not 0 < size < batch:
        return gradient(**inputs)
    outputs, shares = [], []
    for start in range(0, batch, size):
        rows = slice(start, start + size)
        part = {name: None if value is None else value[rows] for name, value in inputs.items()}
        outputs.append(gradient(**part))
        shares.append(min(size, batch - start) / batch)
    pairs = list(zip(shares, outputs, strict=True))
    metrics = {
        name: torch.stack([share * output.metrics[name] for share, output in pairs]).sum()
        for name in outputs[0].metrics
    }
    return GuidanceOutput(gradient=torch.cat([output.gradient for output in outputs]), metrics=metrics)
