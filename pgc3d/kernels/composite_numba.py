"""Volume rendering along rays on the CPU; `composite` is the twin in plain torch and states the formulas.

A thread works on whole rays, so the sums have one order whatever the number of threads. `no_type_check`
keeps run-time type checkers from wrapping what numba compiles.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float
from torch import Tensor, from_numpy

from pgc3d.kernels.compiled import compiled
from pgc3d.kernels.composite import Results, Spans


@compiled(parallel=True)
@no_type_check
def _forward(depth, values, start, count, sums, left):
    for r in numba.prange(len(start)):
        passed = 0.0
        for i in range(start[r], start[r] + count[r]):
            weight = np.exp(-passed) * -np.expm1(-np.float64(depth[i]))
            for c in range(values.shape[1]):
                sums[r, c] += np.float32(weight) * values[i, c]
            passed += depth[i]
        left[r] = np.exp(-passed)


@compiled(parallel=True)
@no_type_check
def _backward(sums_gradient, left_gradient, depth, values, start, count, of_depth, of_values):
    channels = values.shape[1]
    for r in numba.prange(len(start)):
        first, last = start[r], start[r] + count[r]
        passed = 0.0
        for i in range(first, last):
            passed += depth[i]
        behind = np.float64(left_gradient[r]) * np.exp(-passed)
        for i in range(last - 1, first - 1, -1):  # back to front: `behind` is what lies behind a sample
            after = np.exp(-passed)
            passed -= depth[i]
            weight = np.exp(-passed) * -np.expm1(-np.float64(depth[i]))
            pull = 0.0
            for c in range(channels):
                pull += values[i, c] * sums_gradient[r, c]
                of_values[i, c] = weight * sums_gradient[r, c]
            of_depth[i] = after * pull - behind
            behind += weight * pull


def forward(
    depth: Float[Tensor, " K"], values: Float[Tensor, "K C"], spans: Spans
) -> tuple[Float[Tensor, "R C"], Float[Tensor, " R"]]:
    """See `composite.forward`; float32 on the CPU."""
    rays = len(spans.start)
    sums, left = np.zeros((rays, values.shape[1]), np.float32), np.ones(rays, np.float32)
    _forward(*_arrays(depth, values), spans.start.numpy(), spans.count.numpy(), sums, left)
    return from_numpy(sums), from_numpy(left)


def backward(
    sums_gradient: Float[Tensor, "R C"],
    left_gradient: Float[Tensor, " R"],
    _: Results,
    depth: Float[Tensor, " K"],
    values: Float[Tensor, "K C"],
    spans: Spans,
) -> tuple[Float[Tensor, " K"], Float[Tensor, "K C"]]:
    """See `composite.backward`; float32 on the CPU. From back to front, the results are not needed."""
    of_depth, of_values = np.zeros(len(depth), np.float32), np.zeros(tuple(values.shape), np.float32)
    incoming = _arrays(sums_gradient, left_gradient)
    _backward(
        *incoming, *_arrays(depth, values), spans.start.numpy(), spans.count.numpy(), of_depth, of_values
    )
    return from_numpy(of_depth), from_numpy(of_values)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
