"""Triton kernels against their plain-torch twins, interpreted on the CPU or compiled on CUDA."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from triton_devices import devices, needs_triton

from pgc3d.errors import BackendUnavailableError
from pgc3d.kernels import hash_grid, require_triton
from pgc3d.kernels.hash_grid import hash_layout


@devices
@pytest.mark.parametrize(("features", "count"), [(2, 37), (3, 8), (1, 1)])
def test_hash_grid_agrees_with_torch(features, count, device):
    from pgc3d.kernels import hash_grid_triton

    layout = hash_layout(levels=2, log2_rows=9, base=3, finest=40)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(count, 3, generator=generator) * 1.2 - 0.1
    points[:2] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])[:count]
    points[5:20] = 0.3 + 0.01 * points[5:20]  # neighbours in the same cell
    table = torch.randn(layout.offsets[-1], features, generator=generator)  # one level dense, one hashed
    gradient = torch.randn(count, 2 * features, generator=generator)
    gradient[3:5] = 0.0
    points, table, gradient = points.to(device), table.to(device), gradient.to(device)
    found = hash_grid_triton.encode(points, table, layout)
    torch.testing.assert_close(found, hash_grid.encode(points, table, layout))
    expected = hash_grid.encode_backward(gradient, points, table, layout, need_points=True)
    found = hash_grid_triton.encode_backward(gradient, points, table, layout, need_points=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    gradient = torch.zeros_like(gradient)
    of_table, of_points = hash_grid_triton.encode_backward(gradient, points, table, layout, need_points=False)
    assert not of_table.any()
    assert of_points is None


def test_a_missing_triton_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(
        BackendUnavailableError, match=r"images on CUDA must have triton, .*; pip install triton"
    ):
        require_triton("images")


@needs_triton
def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path):
    """The interpreter accepts more than the compiler does."""
    script = Path(__file__).parent.parent / "scripts" / "compile_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert "_backward_table" in found.stdout
    assert "compose_triton._forward" in found.stdout
    assert "atom.global.gpu.relaxed.add.v2.f32" in found.stdout
