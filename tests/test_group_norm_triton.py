"""The Triton kernels against their twin: in Triton's interpreter on a CPU, compiled on CUDA.

That nothing is written outside the outputs, and nothing read that was not written, is what this checks:
`compute-sanitizer --error-exitcode 1 python -m pytest tests/test_group_norm_triton.py -m ""`, and the same
with `--tool initcheck`.
"""

import pytest
import torch
from test_group_norm import cast, draw

pytest.importorskip("triton", reason="Triton is not installed")

from pgc3d.kernels import group_norm as gn
from pgc3d.kernels.group_norm_triton import Tiling, apply_triton, backward_triton, forward_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# views, pixels, channels, groups, how the work is cut
CASES = {
    "several programs": (2, 70, 24, 8, Tiling(numbers=512, programs=3, warps=4)),
    "several tiles": (1, 50, 16, 4, Tiling(numbers=128, programs=2, warps=4, stages=2)),
    "full tiles": (2, 64, 16, 4, Tiling(numbers=128, programs=4, warps=4)),
    "one pixel": (2, 1, 8, 8, Tiling()),
    "odd channels": (1, 33, 21, 3, Tiling(numbers=256, programs=4, warps=4)),
}


@pytest.fixture(autouse=True)
def poisoned_buffers():
    """Fresh memory holds NaN, so that an element that is never written shows."""
    torch.use_deterministic_algorithms(mode=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


def case(name, dtype, *, silu, mean=0.0):
    views, count, channels, groups, tiling = CASES[name]
    pixels, gradient, residual = (draw(views, count, channels, seed=seed) for seed in (0, 1, 2))
    pixels, gradient, residual = (value.to(DEVICE, dtype) for value in (pixels + mean, gradient, residual))
    weight, bias, shift = (draw(channels, seed=seed).to(DEVICE, dtype) for seed in (3, 4, 5))
    return pixels, gradient, residual, gn.Norm(weight, bias, groups, silu=silu), shift, tiling


def twin(pixels, gradient, residual, norm, shift):
    norm, pixels = cast(norm, torch.float64), pixels.double()
    shift = None if shift is None else shift.double()
    y, statistics = gn.forward(pixels, norm, shift, "torch")
    residual = None if residual is None else residual.double()
    return y, gn.backward(
        gradient.double(), pixels, norm, statistics, residual=residual, implementation="torch"
    )


def close(found, expected, dtype):
    atol = TOLERANCE[dtype] * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def check(name, dtype, *, silu=True, with_shift=True, with_residual=True, mean=0.0):
    pixels, gradient, residual, norm, shift, tiling = case(name, dtype, silu=silu, mean=mean)
    shift, residual = shift if with_shift else None, residual if with_residual else None
    y, pull = twin(pixels, gradient, residual, norm, shift)
    found, statistics = forward_triton(pixels, norm, shift, tiling)
    close(found, y, dtype)
    assert torch.equal(apply_triton(pixels, norm, statistics, tiling), found)
    close(backward_triton(gradient, pixels, norm, statistics, residual, tiling), pull, dtype)


@pytest.mark.parametrize("name", CASES)
def test_kernels_agree_with_their_twin(name):
    check(name, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_kernels_agree_in_half_precision(dtype):
    check("several tiles", dtype)


def test_kernels_agree_without_activation_shift_and_residual():
    check("several tiles", torch.float32, silu=False, with_shift=False, with_residual=False)


def test_kernels_agree_with_a_shift_for_each_picture():
    pixels, _, _, norm, _, tiling = case("several programs", torch.float32, silu=True)
    shift = draw(*pixels.shape[::2], seed=6).to(DEVICE)
    y, _ = gn.forward(pixels.double(), cast(norm, torch.float64), shift.double(), "torch")
    close(forward_triton(pixels, norm, shift.float(), tiling)[0], y, torch.float32)


def test_a_large_mean_costs_no_precision():
    pixels, _, _, norm, shift, tiling = case("several tiles", torch.float32, silu=False, mean=1000.0)
    y, _ = gn.forward(pixels.double(), cast(norm, torch.float64), shift.double(), "torch")
    torch.testing.assert_close(forward_triton(pixels, norm, shift, tiling)[0].double(), y, rtol=0, atol=2e-3)


def test_same_numbers_in_every_run_and_for_every_batch():
    pixels, gradient, residual, norm, shift, tiling = case("several programs", torch.float32, silu=True)
    found, statistics = forward_triton(pixels, norm, shift, tiling)
    alone, first = forward_triton(pixels[:1].contiguous(), norm, shift, tiling)
    assert torch.equal(found[:1], alone)
    pull = backward_triton(gradient, pixels, norm, statistics, residual, tiling)
    part = (value[:1].contiguous() for value in (gradient, pixels))
    assert torch.equal(pull[:1], backward_triton(*part, norm, first, residual[:1], tiling))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("silu", [True, False], ids=["silu", "linear"])
@pytest.mark.parametrize(
    ("views", "side", "channels", "groups"),
    [(1, 512, 128, 32), (4, 96, 256, 32), (2, 128, 512, 32), (3, 77, 96, 8), (1, 33, 320, 32), (2, 5, 48, 3)],
)
def test_kernels_agree_at_the_sizes_of_an_encoder(views, side, channels, groups, silu, dtype):
    CASES["large"] = (views, side * side, channels, groups, Tiling())
    check("large", dtype, silu=silu)
