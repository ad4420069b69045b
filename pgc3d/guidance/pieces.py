"""A guidance that looks at a few pictures at a time: the same gradient in less memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgc3d.types import GuidanceOutput


def in_pieces(
    gradient: Callable[..., GuidanceOutput], size: int, **inputs: Tensor | Sequence[Tensor]
) -> GuidanceOutput:
    """Call `gradient` with at most `size` pictures at a time and put the answers together.

    Args:
        gradient: its answer for a picture must not depend on the others, and its metrics must be means.
        size: pictures of a call, 0 for all of them.
        inputs: tensors with one row per picture, or sequences of such; the first is a tensor.
    """
    batch = len(next(iter(inputs.values())))
    if not 0 < size < batch:
        return gradient(**inputs)
    outputs, shares = [], []
    for start in range(0, batch, size):
        rows = slice(start, start + size)
        outputs.append(gradient(**{name: _select(value, rows) for name, value in inputs.items()}))
        shares.append(min(size, batch - start) / batch)
    pairs = list(zip(shares, outputs, strict=True))
    metrics = {
        name: torch.stack([share * output.metrics[name] for share, output in pairs]).sum()
        for name in outputs[0].metrics
    }
    return GuidanceOutput(gradient=torch.cat([output.gradient for output in outputs]), metrics=metrics)


def _select(value: Tensor | Sequence[Tensor], rows: slice) -> Tensor | list[Tensor]:
    return value[rows] if isinstance(value, Tensor) else [item[rows] for item in value]
