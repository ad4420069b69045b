"""The extraction that never waits for the device, on CPU tensors: like the exact one, and it mends itself."""

import pytest
import torch
from fakes import PullTowardColor
from steps import FIRST, render, steps
from test_dmtet import cpu_rasterizer, make, ruin
from test_marching_tetrahedra import sphere, torus

from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.errors import DivergedError
from pgc3d.geometry.edges import closed_edges
from pgc3d.geometry.marching_tetrahedra import Capacity, find_cut_edges, surface_size
from pgc3d.geometry.regularizers import adjacent_faces
from pgc3d.optimize import Objective, Problem, optimization_step
from pgc3d.rendering.antialias import edge_topology
from pgc3d.representation.dmtet import DMTet
from pgc3d.representation.dmtet_surface import LOSSES, SizeReadback
from pgc3d.types import Views

ROOMY = Capacity(cubes=3000, vertices=9000, faces=18000)
ALL_LOSSES = dict.fromkeys(LOSSES, 1.0)


def noise(resolution: int = 6) -> torch.Tensor:
    return torch.randn((resolution + 1) ** 3, generator=torch.Generator().manual_seed(4))


def padded(asset: DMTet) -> DMTet:
    """Make it pad from its next step on; the sizes of the surface now are known."""
    asset.padded = True
    asset.begin_step(FIRST)
    asset.end_step(FIRST)
    assert asset.watch.capacity is not None
    return asset


def disturbed(**options: object) -> DMTet:
    asset = make(cpu_rasterizer(), **ALL_LOSSES, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in asset.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return asset


def problem(asset: DMTet) -> Problem:
    objective = Objective(
        sample_cameras=lambda step: sample_orbit(2, OrbitConfig(), step.generator("cameras")),
        guidance=PullTowardColor(),
        clip=lambda gradient: gradient,
        backgrounds=((1.0, 1.0, 1.0),),
    )
    asset.parameter_store().use_adam()
    return Problem(representation=asset, objectives={"color": objective})


def parameters(asset: DMTet) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in asset.parameters()]


@pytest.mark.parametrize("field", [sphere(16), torus(24), noise()], ids=["sphere", "torus", "noise"])
def test_padding_follows_the_exact_surface(field: torch.Tensor) -> None:
    exact, found = find_cut_edges(field), find_cut_edges(field, capacity=ROOMY)
    _, _, vertices, faces = exact.size.tolist()
    assert torch.equal(found.size, exact.size)
    assert torch.equal(surface_size(field), exact.size)
    assert ROOMY.holds(found.size)
    for name in ("first", "second", "first_inside"):
        assert torch.equal(getattr(found, name)[:vertices], getattr(exact, name))
    assert torch.equal(found.faces[:faces], exact.faces)
    padding = found.faces[faces:]
    assert (padding == padding[:, :1]).all()
    assert padding.min() >= vertices
    assert padding.max() < ROOMY.vertices


@pytest.mark.parametrize(
    "capacity",
    [Capacity(50, 9000, 18000), Capacity(3000, 100, 18000), Capacity(3000, 9000, 100), Capacity(1, 1, 2)],
    ids=["cubes", "vertices", "faces", "all"],
)
def test_too_little_room_is_told_and_leaves_valid_indices(capacity: Capacity) -> None:
    found = find_cut_edges(torus(24), capacity=capacity)
    assert not capacity.holds(found.size)
    assert torch.equal(found.size, find_cut_edges(torus(24)).size)
    assert 0 <= found.faces.min() <= found.faces.max() < capacity.vertices
    assert 0 <= found.first.min() <= found.second.max() < 25**3


@pytest.mark.parametrize("field", [sphere(16), torus(24), noise()], ids=["sphere", "torus", "noise"])
def test_one_sort_gives_the_edges_and_the_pairs_of_faces(field: torch.Tensor) -> None:
    exact, found = find_cut_edges(field), find_cut_edges(field, capacity=ROOMY)
    edges = len(exact.faces) * 3 // 2
    topology, pairs = closed_edges(found.faces, ROOMY.vertices)
    expected_pairs = adjacent_faces(exact.faces, closed=True).sort(dim=1).values
    assert torch.equal(pairs[:edges].sort(dim=1).values, expected_pairs)
    assert (topology.edges[edges:, 0] == -1).all()
    expected = edge_topology(exact.faces)
    order = (expected.edges[:, 0] * ROOMY.vertices + expected.edges[:, 1]).argsort()
    assert torch.equal(topology.edges[:edges], expected.edges[order].long())
    wings = topology.opposite[:edges].sort(dim=1).values
    assert torch.equal(wings, expected.opposite[order].long().sort(dim=1).values)


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_padded_step_is_the_exact_one(sdf: str) -> None:
    """Pictures, regularisers and all gradients."""
    results = []
    views = Views(turntable(3), torch.rand(3, 3, generator=torch.Generator().manual_seed(1)))
    for asset in (disturbed(sdf=sdf), padded(disturbed(sdf=sdf))):
        asset.begin_step(FIRST)
        rendering, losses = asset.render(views, 48, FIRST), asset.regularizers(FIRST)
        assert (rendering.complete is not None) == asset.padded
        assert rendering.complete is None or rendering.complete
        pictures = [rendering.color, rendering.normal, rendering.depth, rendering.alpha]
        weights = [torch.rand(p.shape, generator=torch.Generator().manual_seed(7)) for p in pictures]
        total = sum((picture * weight).sum() for picture, weight in zip(pictures, weights, strict=True))
        torch.autograd.backward(total + 100 * sum(losses.values()))
        results.append((pictures, losses, [p.grad for p in asset.parameters()]))
    (pictures, losses, gradients), (padded_pictures, padded_losses, padded_gradients) = results
    torch.testing.assert_close(padded_pictures, pictures, rtol=0, atol=1e-6)
    torch.testing.assert_close(padded_losses, losses, rtol=1e-5, atol=1e-6)
    for found, expected in zip(padded_gradients, gradients, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_surface_without_room_takes_no_step_and_gets_room() -> None:
    asset = padded(disturbed())
    task, before = problem(asset), parameters(asset)
    asset.watch.capacity = Capacity(100, 100, 100)
    outcomes = [optimization_step(task, step, resolution=32) for step in steps(3)]
    assert [bool(outcome.finite) for outcome in outcomes] == [False, True, True]
    assert [outcome.metrics["color/complete"].item() for outcome in outcomes] == [0.0, 1.0, 1.0]
    assert asset.recoveries == 0
    assert any((a != b).any() for a, b in zip(before, parameters(asset), strict=True))


def test_skipped_step_changes_nothing() -> None:
    asset = padded(disturbed())
    before = parameters(asset)
    asset.watch.capacity = Capacity(100, 100, 100)
    optimization_step(problem(asset), FIRST, resolution=32)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(asset), strict=True))


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
@pytest.mark.parametrize("value", [5.0, -5.0, float("nan")], ids=["empty", "full", "nan"])
def test_lost_surface_is_recovered_one_step_later(sdf: str, value: float) -> None:
    asset = padded(make(cpu_rasterizer(), sdf=sdf, redistance_every=0))
    task, expected = problem(asset), asset.to_mesh()
    first, second, third = steps(3)
    optimization_step(task, first, resolution=32)
    ruin(asset, value)
    lost = optimization_step(task, second, resolution=32)
    assert not lost.finite
    assert task.objectives["color"].guidance.seen[-1]["finite"]
    assert asset.recoveries == 0
    found = optimization_step(task, third, resolution=32)
    assert found.finite
    assert asset.recoveries == 1
    extent = asset.to_mesh().vertices.amax(0)
    torch.testing.assert_close(extent, expected.vertices.amax(0), atol=2 * asset.cell, rtol=0)


def test_surface_that_is_lost_again_and_again_ends_the_run() -> None:
    asset = padded(make(cpu_rasterizer(), max_recoveries=2))
    task = problem(asset)

    def lose_it() -> None:
        for step in steps(20):
            asset.residual.data.fill_(5.0)
            optimization_step(task, step, resolution=16)

    with pytest.raises(DivergedError, match="lower lr_sdf"):
        lose_it()
    assert asset.recoveries == 3


@pytest.mark.parametrize("broken", [False, True])
def test_redistancing_keeps_only_a_sound_surface(broken: bool) -> None:  # noqa: FBT001
    asset = padded(make(cpu_rasterizer(), redistance_every=1))
    _, first, second = steps(3)
    views = turntable(1), 16, torch.ones(1, 3)
    render(asset, *views, first)
    asset.residual.data.fill_(float("nan") if broken else 0.02)
    good = asset.good.clone()
    render(asset, *views, second)
    assert torch.equal(asset.good, good) == broken


def test_room_follows_the_size_and_stays_while_it_fits() -> None:
    watch = SizeReadback()
    watch.fit([1, 1000, 2000, 4000])
    capacity = watch.capacity
    assert capacity.holds(torch.tensor([1, 1200, 2400, 4800]))
    assert not capacity.holds(torch.tensor([1, 1200, 2400, capacity.faces]))
    watch.fit([1, 1100, 2200, 4400])
    assert watch.capacity is capacity
    watch.fit([1, 1000, 2000, 5000])
    assert watch.capacity.faces > 6000
    watch.fit([1, 100, 200, 400])
    assert watch.capacity.faces < 1000


def test_size_arrives_one_step_late_and_a_reset_drops_it() -> None:
    watch = SizeReadback()
    assert watch.receive() is None
    watch.send(torch.tensor([1, 2, 3, 4]))
    watch.send(torch.tensor([9, 9, 9, 9]))  # the first is still under way
    assert watch.receive() == [1, 2, 3, 4]
    watch.send(torch.tensor([1, 2, 3, 4]))
    watch.reset()
    assert watch.receive() is None
