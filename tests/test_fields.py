import pytest
import torch

from pgc3d.kernels import hash_grid, hash_grid_numba
from pgc3d.kernels.hash_grid import HashLayout, hash_layout
from pgc3d.representation.fields import ColorField, HashGrid, Mlp


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layout() -> HashLayout:
    return hash_layout(levels=5, log2_rows=9, base=3, finest=40)


def test_layout_grows_geometrically_and_hashes_what_is_too_large() -> None:
    found = hash_layout(levels=16, log2_rows=19, base=16, finest=4096)
    assert found.resolutions[0] == 16
    assert found.resolutions[-1] == 4096
    assert found.hashed == tuple((n + 1) ** 3 > 2**19 for n in found.resolutions)
    assert len(found.offsets) == 17


def test_numba_agrees_with_torch() -> None:
    points = torch.rand(200, 3, generator=generator()) * 1.2 - 0.1
    points[0], points[1] = 0.0, 1.0
    table = torch.randn(layout().offsets[-1], 2, generator=generator(1))
    gradient = torch.randn(200, 10, generator=generator(2))
    torch.testing.assert_close(
        hash_grid_numba.encode(points, table, layout()), hash_grid.encode(points, table, layout())
    )
    theirs = hash_grid_numba.encode_backward(gradient, points, table, layout(), need_points=True)
    ours = hash_grid.encode_backward(gradient, points, table, layout(), need_points=True)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_gradients_match_finite_differences() -> None:
    grid = HashGrid(levels=3, log2_rows=7, base=2, finest=9, generator=generator()).double()
    grid.table.data.normal_(generator=generator(1))
    points = torch.rand(6, 3, generator=generator(2)).double() * 1.8 - 0.9
    points.requires_grad_()

    def run(place: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(grid, {"table": table}, (place,))

    assert torch.autograd.gradcheck(run, [points, grid.table])


def test_trilinear_grid_reproduces_a_linear_function() -> None:
    grid = HashGrid(levels=1, features=1, log2_rows=12, base=8, finest=8)
    axis = torch.linspace(-1, 1, 9)
    corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    slope = torch.tensor([0.3, -0.7, 1.1])
    grid.table.data = (corners @ slope)[:, None].contiguous()
    points = torch.rand(50, 3, generator=generator()) * 2 - 1
    torch.testing.assert_close(grid(points)[:, 0], points @ slope)


def test_outside_is_the_nearest_inside() -> None:
    grid = HashGrid(generator=generator())
    torch.testing.assert_close(grid(torch.tensor([[3.0, -2.0, 0.5]])), grid(torch.tensor([[1.0, -1.0, 0.5]])))


def test_no_points_give_no_rows() -> None:
    assert HashGrid()(torch.zeros(0, 3)).shape == (0, 16)


def test_color_starts_as_asked_and_stays_in_range() -> None:
    grid = HashGrid(generator=generator())
    field = ColorField(grid, Mlp(grid.width, 3, generator=generator(1)), color=(0.2, 0.5, 0.7))
    points = torch.rand(100, 3, generator=generator(2)) * 2 - 1
    material = field(points)
    torch.testing.assert_close(
        material.base_color, torch.tensor([[0.2, 0.5, 0.7]]).expand(100, 3), atol=1e-3, rtol=0
    )
    grid.table.data.normal_(std=100.0, generator=generator(3))
    assert 0.0 <= field(points).base_color.min() <= field(points).base_color.max() <= 1.0
    assert (material.roughness == 0.8).all()
    assert (material.metallic == 0.0).all()


def test_color_field_learns_two_halves() -> None:
    grid = HashGrid(levels=4, log2_rows=10, base=4, finest=32, generator=generator())
    field = ColorField(grid, Mlp(grid.width, 3, generator=generator(1)))
    optimizer = torch.optim.Adam(field.parameters(), lr=0.02)
    points = torch.rand(500, 3, generator=generator(2)) * 2 - 1
    target = (points[:, :1] > 0).float() * torch.tensor([0.9, 0.1, 0.2])
    for _ in range(60):
        optimizer.zero_grad()
        loss = (field(points).base_color - target).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
    assert loss.item() < 0.01


def test_same_generator_same_field() -> None:
    first, second = (HashGrid(generator=generator(5)) for _ in range(2))
    torch.testing.assert_close(first.table, second.table, rtol=0, atol=0)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="base <= finest"):
        HashGrid(base=32, finest=16)
    with pytest.raises(ValueError, match="colour"):
        ColorField(HashGrid(), Mlp(16, 3), color=(0.0, 0.5, 0.5))
