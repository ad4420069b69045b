"""Volume rendering along rays: forward and backward in plain torch, for any device.

`composite_numba` and `composite_triton` are the twins for the CPU and for CUDA. The samples of all rays lie
one ray after the other in buffers of K rows; `Spans` states which rows belong to which ray. Transmittance is
the exponential of a sum of optical depths, never a product, so that its gradient is exact where a sample is
opaque. Formulas: NeRF, Mildenhall et al. 2020, equation 3; the gradients follow from it, see `backward`.
"""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Spans:
    """The rows of each of R rays in buffers of K rows; rows of no ray have the number R."""

    start: Int[Tensor, " R"]  # first row
    count: Int[Tensor, " R"]  # rows, 0 for a ray without samples
    ray: Int[Tensor, " K"]  # of each row

    def spread(self, values: Float[Tensor, "R *C"]) -> Float[Tensor, "K *C"]:
        """For each row the value of its ray; zero for rows of no ray."""
        return torch.cat([values, values.new_zeros(1, *values.shape[1:])])[self.ray]


Results: TypeAlias = tuple[Float[Tensor, "R C"], Float[Tensor, " R"]]  # of `forward`


def forward(
    depth: Float[Tensor, " K"], values: Float[Tensor, "K C"], spans: Spans
) -> tuple[Float[Tensor, "R C"], Float[Tensor, " R"]]:
    """Weighted sums of values along rays, and the transmittance that is left behind them.

    With optical depths d_i of the samples, front to back: T_i = exp(-sum_{j<i} d_j),
    w_i = T_i (1 - exp(-d_i)); the results are sum_i w_i v_i and exp(-sum_i d_i).
    """
    _, weights = _weights(depth, spans)
    sums = _sum_rays(weights[:, None] * values, spans)
    left = torch.exp(-_sum_rays(_used(depth, spans)[:, None].double(), spans)[:, 0])
    return sums, left.to(depth.dtype)


def backward(
    sums_gradient: Float[Tensor, "R C"],
    left_gradient: Float[Tensor, " R"],
    results: Results,
    depth: Float[Tensor, " K"],
    values: Float[Tensor, "K C"],
    spans: Spans,
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K C"]]:
    """Gradients of `forward`, which had the `results`, for optical depths and values.

    With g the gradient of the sums, h that of the transmittance and u_i = v_i . g:
    d / d v_i = w_i g,  d / d d_i = T_{i+1} u_i - sum_{j>i} w_j u_j - h exp(-sum_j d_j).
    Of the sum over all j, which is g times the result, what lies in front is subtracted.
    """
    transmittance, weights = _weights(depth, spans)
    padded = spans.spread(sums_gradient)
    pull = (values * padded).sum(-1)
    weighted = (weights * pull).double()
    running = weighted.cumsum(0)
    before = _at_start(running - weighted, spans)
    sums, left = results
    behind = spans.spread((sums * sums_gradient).sum(1).double()) - (running - before)
    after = transmittance * torch.exp(-depth)
    result = after * pull - behind.to(depth.dtype) - spans.spread(left * left_gradient)
    return _used(result, spans), weights[:, None] * padded


def _weights(depth: Tensor, spans: Spans) -> tuple[Tensor, Tensor]:
    """Transmittance in front of each sample, and its weight; zero for rows of no ray."""
    used = _used(depth, spans).double()  # sums over all rays: single precision loses the first digits
    before = used.cumsum(0) - used
    transmittance = torch.exp(_at_start(before, spans) - before).to(depth.dtype)
    return transmittance, _used(transmittance * -torch.expm1(-depth), spans)


def _used(values: Tensor, spans: Spans) -> Tensor:
    return torch.where(spans.ray < len(spans.start), values, 0.0)


def _at_start(values: Tensor, spans: Spans) -> Tensor:
    """For each row the value in the first row of its ray."""
    first = values[spans.start.clamp(max=max(len(values) - 1, 0))] if len(values) else values.new_zeros(0)
    return spans.spread(first)


def _sum_rays(values: Tensor, spans: Spans) -> Tensor:
    total = values.new_zeros(len(spans.start) + 1, values.shape[1])
    return total.index_add_(0, spans.ray, values)[:-1]
