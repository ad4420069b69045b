import logging

import pytest
import torch

from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.errors import DivergedError
from pgc3d.geometry.marching_tetrahedra import march
from pgc3d.geometry.sdf import ellipsoid_sdf, redistance
from pgc3d.interfaces import Rasterizer, Representation
from pgc3d.representation.dmtet import DMTet, DMTetConfig, build_dmtet
from pgc3d.types import Fragments, Mesh


class NoRasterizer:
    """Stands where nothing is rasterised."""

    def rasterize(self, clip: torch.Tensor, faces: torch.Tensor, resolution: tuple[int, int]) -> Fragments:
        raise NotImplementedError

    def interpolate(
        self, attributes: torch.Tensor, fragments: Fragments, faces: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError


def make(rasterizer: Rasterizer | None = None, mesh: Mesh | None = None, **options: object) -> DMTet:
    config = DMTetConfig(**{"resolution": 16, "color_levels": 2, **options})  # type: ignore[arg-type]
    return build_dmtet(
        config,
        rasterizer=rasterizer or NoRasterizer(),
        generator=torch.Generator().manual_seed(0),
        mesh=mesh,
    )


def cpu_rasterizer() -> Rasterizer:
    from pgc3d.render.cpu import CpuRasterizer

    return CpuRasterizer()


def test_is_a_representation() -> None:
    assert isinstance(make(), Representation)


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_starts_as_the_asked_ellipsoid(sdf: str) -> None:
    mesh = make(sdf=sdf, resolution=24, radii=(0.4, 0.7, 0.5)).to_mesh()
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([0.4, 0.7, 0.5]), atol=0.02, rtol=0)
    assert not mesh.vertices.requires_grad
    assert (mesh.normals * mesh.vertices).sum(-1).min() > 0


def test_starts_as_the_asked_mesh() -> None:
    vertices, faces = march(ellipsoid_sdf((0.3, 0.6, 0.4), 16))
    mesh = make(init="mesh", mesh=Mesh(vertices, faces, vertices)).to_mesh()
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([0.3, 0.6, 0.4]), atol=0.03, rtol=0)


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_gradients_reach_the_shape(sdf: str) -> None:
    shape = make(sdf=sdf)
    mesh = shape._surface().mesh
    torch.autograd.backward(mesh.vertices.square().sum())
    groups = {group["name"]: group["params"] for group in shape.parameter_groups()}
    assert list(groups) == ["sdf", "deformation", "color.grid", "color.mlp"]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in groups["sdf"])
    assert groups["deformation"][0].grad.abs().sum() > 0


def test_smoothing_moves_a_patch_and_not_a_vertex() -> None:
    def touched(smoothing: float) -> int:
        shape = make(sdf_smoothing=(smoothing, smoothing))
        mesh = shape._surface().mesh
        torch.autograd.backward(mesh.vertices[mesh.vertices[:, 0].argmax()].sum())
        return int((shape.residual.grad != 0).sum())

    assert touched(0.0) <= 2
    assert touched(1.5) > 100


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_redistance_keeps_the_surface_and_empties_a_stored_residual(sdf: str) -> None:
    shape = make(sdf=sdf, sdf_smoothing=(0.0, 0.0))
    if shape.residual is not None:
        shape.residual.data = 0.5 * shape.base + 0.01
    else:
        shape.sdf_field.mlp.layers[-1].bias.data.fill_(0.05)
    before = shape.to_mesh()
    shape.redistance()
    after = shape.to_mesh()
    torch.testing.assert_close(after.faces, before.faces)
    assert (after.vertices - before.vertices).norm(dim=-1).max() < 0.1 * shape.cell
    torch.testing.assert_close(shape.sdf(), redistance(shape.sdf()), atol=0.2 * shape.cell, rtol=0)
    assert shape.residual is None or not shape.residual.any()


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
@pytest.mark.parametrize("value", [5.0, -5.0, float("nan")], ids=["empty", "full", "nan"])
def test_lost_surface_is_recovered_then_reported(
    sdf: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    shape = make(sdf=sdf, max_recoveries=2, redistance_every=0)
    expected = shape.to_mesh()

    def ruin() -> None:
        if shape.residual is not None:
            shape.residual.data.fill_(value)
        else:
            shape.sdf_field.mlp.layers[-1].bias.data.fill_(value)
        if value < 0:
            shape.max_faces = 5000  # the whole cube has twice as many

    with caplog.at_level(logging.WARNING):
        for count in (1, 2):
            ruin()
            torch.testing.assert_close(shape.to_mesh().vertices, expected.vertices)
            assert shape.recoveries == count
    assert len(caplog.records) == 2
    ruin()
    with pytest.raises(DivergedError, match="lower lr_sdf"):
        shape.to_mesh()


def test_deformation_that_is_not_finite_is_recovered() -> None:
    shape = make()
    shape.deformation.data[7] = float("inf")
    assert shape.to_mesh().vertices.isfinite().all()
    assert shape.recoveries == 1


def test_state_gives_the_same_mesh_again() -> None:
    first = make()
    generator = torch.Generator().manual_seed(1)
    for parameter in first.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    first.redistance()
    first.residual.data += 0.01 * torch.randn(first.residual.shape, generator=generator)
    first.calls, first.recoveries = 17, 1
    first._set_smoothing(2.5)
    second = make()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.to_mesh().vertices, second.to_mesh().vertices)
    assert torch.equal(first.to_mesh().faces, second.to_mesh().faces)
    assert (second.calls, second.recoveries) == (17, 1)
    assert second.smoothing == 2.5


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="resolution"):
        DMTetConfig(resolution=2)
    with pytest.raises(ValueError, match="lr_sdf"):
        DMTetConfig(lr_sdf=-1.0)
    with pytest.raises(ValueError, match="mesh must be given"):
        make(init="mesh")


def test_render_has_the_weighted_losses() -> None:
    shape = make(
        cpu_rasterizer(), normal_consistency=2.0, laplacian=1.0, sign_changes=1.0, eikonal=1.0, area=0.5
    )
    rendering = shape.render(turntable(2), 16, torch.ones(2, 3))
    assert set(rendering.losses) == {"normal_consistency", "laplacian", "sign_changes", "eikonal", "area"}
    torch.autograd.backward(rendering.color.sum() + sum(rendering.losses.values()))
    for group in shape.parameter_groups():
        for parameter in group["params"]:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()


def test_rendering_without_gradients_changes_nothing() -> None:
    shape = make(cpu_rasterizer(), redistance_every=1)
    before = {name: value.clone() for name, value in shape.state_dict().items()}
    with torch.no_grad():
        for _ in range(3):
            shape.render(turntable(1), 16, torch.ones(1, 3))
    for name, value in shape.state_dict().items():
        assert torch.equal(value, before[name])


def test_shape_stays_from_shape_until_on() -> None:
    asset = make(cpu_rasterizer(), shape_until=0.5)
    for progress, shaped in ((0.4, True), (0.5, False)):
        asset.zero_grad()
        rendering = asset.render(turntable(1), 32, torch.ones(1, 3), progress=progress)
        assert bool(rendering.losses) == shaped
        torch.autograd.backward(rendering.color.sum())
        assert (asset.residual.grad is not None) == shaped
        assert asset.color.grid.table.grad.abs().sum() > 0


def test_eps_of_the_shape_reaches_its_parameter_group() -> None:
    groups = {group["name"]: group.get("eps") for group in make(eps_sdf=0.25).parameter_groups()}
    assert groups == {"sdf": 0.25, "deformation": None, "color.grid": None, "color.mlp": None}


def test_silhouettes_turn_a_sphere_into_an_ellipsoid() -> None:
    rasterizer = cpu_rasterizer()
    # no regulariser: where no outline passes, Adam would blow its small gradient up to a full step
    shape = make(
        rasterizer, resolution=32, radii=(0.5, 0.5, 0.5), redistance_every=15, normal_consistency=0.0
    )
    target = make(rasterizer, resolution=32, radii=(0.65, 0.35, 0.5))
    groups = [dict(group) for group in shape.parameter_groups()]
    groups[0]["lr"] = 0.02
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    orbit, background = OrbitConfig(elevation_degrees=(-45.0, 45.0)), torch.ones(4, 3)
    for _ in range(30):
        views = sample_orbit(4, orbit, generator)
        with torch.no_grad():
            wanted = target.render(views, 48, background).alpha
        optimizer.zero_grad()
        rendering = shape.render(views, 48, background)
        loss = (rendering.alpha - wanted).square().sum()
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        inside, expected = shape.sdf() < 0, target.sdf() < 0
    overlap = (inside & expected).sum() / (inside | expected).sum()
    assert overlap > 0.9
    assert shape.recoveries == 0
