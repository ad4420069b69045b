"""Fused kernels of colour fields against the field in float64, interpreted on the CPU or compiled on CUDA."""

import pytest
import torch
from test_triton import devices

pytest.importorskip("triton", reason="Triton is not installed")

from pgc3d.kernels.color_field_triton import fits
from pgc3d.representation import fields
from pgc3d.representation.fields import ColorField, HashGrid, Mlp


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(levels: int, features: int, hidden: int, layers: int = 2) -> ColorField:
    """A field whose first level is dense and whose last one is hashed."""
    grid = HashGrid(levels=levels, features=features, log2_rows=9, base=3, finest=40)
    generator = torch.Generator().manual_seed(0)
    mlp = Mlp(grid.width, 3, hidden=hidden, layers=layers, generator=generator)
    field = ColorField(grid, mlp, color=(0.2, 0.5, 0.7))
    for seed, parameter in enumerate((grid.table, *(layer.bias for layer in mlp.layers))):
        parameter.data = 0.5 * draw(*parameter.shape, seed=seed)
    return field


def scattered(count: int) -> torch.Tensor:
    """Points of which some lie outside the cube."""
    return 0.6 * draw(count, 3, seed=5)


def clustered(count: int) -> torch.Tensor:
    """Runs of points in the same cell, and a background at the origin."""
    points = scattered(count // 8 + 1).repeat_interleave(8, dim=0)[:count]
    return torch.where(torch.arange(count)[:, None] % 16 < 10, points + 0.003 * draw(count, 3, seed=6), 0.0)


def sparse(count: int, seed: int = 7) -> torch.Tensor:
    """Gradients that are zero for a whole block of points and for single ones."""
    gradient = draw(count, 3, seed=seed)
    gradient[:32], gradient[35:38] = 0.0, 0.0
    return gradient


def run(field: ColorField, points: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Colours, and the gradients of points and parameters."""
    table = field.grid.table
    points = points.to(table, copy=True).requires_grad_()
    field.zero_grad()
    color = field(points).base_color
    torch.autograd.backward(color, gradient.to(table))
    return [color.detach(), points.grad, *(parameter.grad for parameter in field.parameters())]


def check(field: ColorField, points: torch.Tensor, gradient: torch.Tensor) -> None:
    found = run(field, points, gradient)
    for ours, exact in zip(found, run(field.double(), points, gradient), strict=True):
        scale = max(1.0, exact.abs().max().item()) if exact.numel() else 1.0
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-5 * scale)


@pytest.fixture
def fused(monkeypatch):
    """Every field in float32 takes the kernels, on the CPU too."""
    monkeypatch.setattr(fields, "_is_fused", lambda field: field.grid.table.dtype == torch.float32)


@devices
@pytest.mark.usefixtures("fused")
@pytest.mark.parametrize(
    ("sizes", "points", "gradient"),
    [
        pytest.param((2, 2, 16), scattered(69), sparse(69), id="outside"),
        pytest.param((1, 1, 32), clustered(64), sparse(64), id="runs in a cell"),
        pytest.param((3, 3, 16), scattered(5), draw(5, 3, seed=1), id="padded features"),
        pytest.param((10, 4, 32), scattered(40), sparse(40), id="four levels at once, and two left"),
        pytest.param((1, 1, 64), scattered(40), sparse(40), id="fewer levels than warps"),
        pytest.param((2, 2, 16), scattered(40), torch.zeros(40, 3), id="no gradient"),
        pytest.param((2, 2, 16), scattered(0), torch.zeros(0, 3), id="no points"),
    ],
)
def test_fused_field_is_the_field(sizes, points, gradient, device):
    check(make(*sizes).to(device), points.to(device), gradient.to(device))


@devices
@pytest.mark.usefixtures("fused")
def test_fixed_points_and_no_gradient_at_all(device):
    field, points = make(1, 1, 16).to(device), scattered(9).to(device)
    color = field(points).base_color
    torch.autograd.backward(color.sum())
    with torch.no_grad():
        assert torch.equal(field(points).base_color, color)
    assert field.grid.table.grad.abs().sum() > 0


@devices
@pytest.mark.usefixtures("fused")
def test_programs_share_the_blocks_of_points(device, monkeypatch):
    monkeypatch.setattr("pgc3d.kernels.color_field_triton._WARPS", 1)  # two programs for four blocks
    check(make(1, 1, 16).to(device), scattered(101).to(device), sparse(101).to(device))


@devices
@pytest.mark.usefixtures("fused")
def test_blocks_without_a_surface_have_the_origins_colour(device, monkeypatch):
    monkeypatch.setattr("pgc3d.kernels.color_field_triton._WARPS", 1)  # two programs for seven blocks
    points = scattered(215)
    points[32:64], points[96:215] = 0.0, 0.0
    check(make(2, 2, 16).to(device), points.to(device), sparse(215).to(device))


@devices
@pytest.mark.usefixtures("fused")
def test_what_is_not_finite_stays_so(device):
    field = make(1, 1, 16).to(device)
    field.grid.table.data.fill_(float("nan"))
    color, *gradients = run(field, scattered(3).to(device), torch.ones(3, 3, device=device))
    assert color.isnan().all()
    assert not any(gradient.isfinite().all() for gradient in gradients)


def test_which_sizes_are_fused():
    assert all(fits(features, hidden) for features, hidden in ((16, 32), (20, 64), (64, 64), (1, 16)))
    assert not any(fits(features, hidden) for features, hidden in ((16, 24), (16, 8), (65, 32), (16, 128)))


def test_fields_on_the_cpu_keep_their_way():
    assert not fields._is_fused(make(2, 2, 16))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("sizes", "layers", "is_fused"),
    [((8, 2, 32), 2, True), ((10, 2, 64), 2, True), ((16, 4, 64), 2, True), ((16, 4, 32), 2, True),
     ((8, 2, 16), 2, True), ((8, 2, 32), 3, False), ((8, 2, 24), 2, False)],
)  # fmt: skip
def test_fields_on_cuda_agree_with_float64(sizes, layers, is_fused):
    """In the mean: of so many points, a few are rounded into the next cell or beyond a kink of the MLP."""
    field, points = make(*sizes, layers=layers).cuda(), clustered(200_003).cuda()
    assert fields._is_fused(field) is is_fused
    gradient = sparse(200_003).cuda() * (points != 0)
    found = run(field, points, gradient)
    for ours, exact in zip(found, run(field.double(), points, gradient), strict=True):
        assert (ours - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.gpu
def test_gradients_of_the_mlp_are_the_same_in_every_run():
    field, points, gradient = make(8, 2, 32).cuda(), clustered(100_000).cuda(), sparse(100_000).cuda()
    first, second = (
        [run(field, points, gradient)[0], *(parameter.grad.clone() for parameter in field.mlp.parameters())]
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
