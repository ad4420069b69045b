"""Evaluation of a guidance in micro-batches: the same gradient in less memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pgc3d.types import GuidanceOutput


def in_micro_batches(
    gradient: Callable[..., GuidanceOutput], size: int, **inputs: Tensor | Sequence[Tensor]
) -> GuidanceOutput:
    """The output of `gradient` for all images, evaluated on at most `size` of them at a time.

    Args:
        gradient: its gradient for an image must not depend on the others, and its metrics must be means.
        size: images of a micro-batch, 0 for all of them.
        inputs: tensors with one row for each image, or sequences of such; the first is a tensor.
    """
    batch = len(next(iter(inputs.values())))
    if not 0 < size < batch:
        return gradient(**inputs)
    outputs, fractions = [], []
    for start in range(0, batch, size):
        rows = slice(start, start + size)
        outputs.append(gradient(**{name: _select(value, rows) for name, value in inputs.items()}))
        fractions.append(min(size, batch - start) / batch)
    pairs = list(zip(fractions, outputs, strict=True))
    metrics = {
        name: torch.stack([fraction * output.metrics[name] for fraction, output in pairs]).sum()
        for name in outputs[0].metrics
    }
    return GuidanceOutput(gradient=torch.cat([output.gradient for output in outputs]), metrics=metrics)


def _select(value: Tensor | Sequence[Tensor], rows: slice) -> Tensor | list[Tensor]:
    return value[rows] if isinstance(value, Tensor) else [item[rows] for item in value]
