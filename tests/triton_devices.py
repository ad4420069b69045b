"""Where kernels of Triton are tested: in its interpreter on a CPU, compiled on CUDA."""

import importlib.util

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
interpreted = pytest.param(
    "cpu",
    marks=[needs_triton, pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled here")],
)
devices = pytest.mark.parametrize("device", [interpreted, pytest.param("cuda", marks=pytest.mark.gpu)])
