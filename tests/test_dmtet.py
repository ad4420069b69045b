import logging

import pytest
import torch
from fakes import PullTowardColor
from steps import FIRST, at, render, show, steps

from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.errors import DivergedError, InputError
from pgc3d.geometry.marching_tetrahedra import march
from pgc3d.geometry.sdf import ellipsoid_sdf, redistance
from pgc3d.interfaces import Meshable, Rasterizer, Representation
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.representation.dmtet import DMTet
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.types import Fragments, Handover, Material, Mesh, Rendering, Step, Views


class NoRasterizer:
    """Stands where nothing is rasterised."""

    def rasterize(self, clip: torch.Tensor, faces: torch.Tensor, resolution: tuple[int, int]) -> Fragments:
        raise NotImplementedError

    def interpolate(
        self, attributes: torch.Tensor, fragments: Fragments, faces: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError


def make(rasterizer: Rasterizer | None = None, start: Handover | None = None, **options: object) -> DMTet:
    config = DMTetConfig(**{"resolution": 16, "color_field": ColorFieldConfig(levels=2), **options})  # type: ignore[arg-type]
    return build_dmtet(
        config,
        rasterizer=rasterizer or NoRasterizer(),
        generator=torch.Generator().manual_seed(0),
        start=start,
    )


def render_begun(shape: DMTet, step: Step) -> Rendering:
    return shape.render(Views(turntable(2), torch.ones(2, 3)), 32, step)


def cpu_rasterizer() -> Rasterizer:
    from pgc3d.rendering.cpu import CpuRasterizer

    return CpuRasterizer()


def test_is_a_representation() -> None:
    assert isinstance(make(), Representation)
    assert isinstance(make(), Meshable)


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_starts_as_the_asked_ellipsoid(sdf: str) -> None:
    mesh = make(sdf=sdf, resolution=24, radii=(0.4, 0.7, 0.5)).to_mesh()
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([0.4, 0.7, 0.5]), atol=0.02, rtol=0)
    assert not mesh.vertices.requires_grad
    assert (mesh.normals * mesh.vertices).sum(-1).min() > 0


def green(points: torch.Tensor) -> Material:
    ones = torch.ones(len(points), 1)
    return Material(torch.tensor([0.2, 0.7, 0.3]).expand(len(points), 3), 0.8 * ones, 0.0 * ones)


def test_starts_as_the_mesh_and_the_colours_of_an_earlier_stage() -> None:
    """Of a representation that has neither a distance field nor weights that fit."""
    vertices, faces = march(ellipsoid_sdf((0.3, 0.6, 0.4), 16))
    start = Handover(surface=Mesh(vertices, faces, vertices), sdf=None, material=green)
    shape = make(start=start)
    mesh = shape.to_mesh()
    torch.testing.assert_close(mesh.vertices.amax(0), torch.tensor([0.3, 0.6, 0.4]), atol=0.03, rtol=0)
    color = shape.material(mesh.vertices).base_color.detach()
    torch.testing.assert_close(color, green(mesh.vertices).base_color.clone(), atol=0.02, rtol=0)
    assert all(parameter.grad is None for parameter in shape.parameters())


def test_what_has_no_surface_cannot_be_started_from() -> None:
    with pytest.raises(InputError, match="must start from a stage with a surface"):
        make(start=Handover(surface=None, sdf=None, material=green))


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_gradients_reach_the_shape(sdf: str) -> None:
    shape = make(sdf=sdf)
    mesh = shape._surface().mesh
    torch.autograd.backward(mesh.vertices.square().sum())
    groups = {group["name"]: group["params"] for group in shape.parameter_store().groups}
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


def ruin(shape: DMTet, value: float) -> None:
    """Lose the surface: 5 leaves nothing inside, -5 nothing outside."""
    with torch.no_grad():
        if shape.residual is not None:
            shape.residual.fill_(value)
        else:
            shape.sdf_field.mlp.layers[-1].bias.fill_(value)
    if value < 0:
        shape.max_faces = 5000  # the whole cube has twice as many


lost = pytest.mark.parametrize("value", [5.0, -5.0, float("nan")], ids=["empty", "full", "nan"])


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
@lost
def test_lost_surface_is_recovered_then_reported(
    sdf: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    shape = make(sdf=sdf, max_recoveries=2, redistance_every=0)
    expected = shape.to_mesh()
    with caplog.at_level(logging.WARNING):
        for count in (1, 2):
            ruin(shape, value)
            shape.begin_step(Step(index=count, total=10))
            torch.testing.assert_close(shape.to_mesh().vertices, expected.vertices)
            assert shape.recoveries == count
    assert len(caplog.records) == 2
    ruin(shape, value)
    with pytest.raises(DivergedError, match="lower lr_sdf"):
        shape.begin_step(Step(index=3, total=10))


def copy_state(shape: DMTet) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in shape.state_dict().items()}


def assert_same_state(shape: DMTet, expected: dict[str, torch.Tensor]) -> None:
    for name, value in shape.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("sdf", ["grid", "mlp"])
@pytest.mark.parametrize("padded", [False, True])
@lost
def test_evaluation_of_a_lost_surface_shows_the_last_valid_one_and_changes_nothing(
    sdf: str,
    padded: bool,  # noqa: FBT001
    value: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shape = make(cpu_rasterizer(), sdf=sdf, redistance_every=5)
    shape.padded = padded
    first = shape.to_mesh()
    with torch.no_grad():  # another shape than the first, remembered when the distance is restored
        shape.base.add_(1.5 * shape.cell)
    shape.begin_step(Step(index=5, total=10))
    shape.end_step(Step(index=5, total=10))
    valid, views = shape.to_mesh(), (turntable(2), 32, torch.ones(2, 3))
    assert valid.vertices.norm(dim=1).max() < first.vertices.norm(dim=1).max() - shape.cell
    seen = show(shape, *views)
    ruin(shape, value)
    before = copy_state(shape)
    with caplog.at_level(logging.WARNING):
        found = show(shape, *views)
        handover = shape.handover()
        for mesh in (shape.to_mesh(), handover.surface):
            torch.testing.assert_close(mesh.vertices, valid.vertices)
            assert torch.equal(mesh.faces, valid.faces)
    torch.testing.assert_close(found.color, seen.color)
    torch.testing.assert_close(found.alpha, seen.alpha)
    assert handover.sdf(valid.vertices).abs().max() < 0.1 * shape.cell
    assert_same_state(shape, before)
    assert shape.recoveries == 0
    assert not caplog.records


def test_deformation_that_is_not_finite_is_recovered() -> None:
    shape = make()
    shape.deformation.data[7] = float("inf")
    assert shape.to_mesh().vertices.isfinite().all()
    assert shape.recoveries == 0
    shape.begin_step(FIRST)
    assert shape.recoveries == 1
    assert shape.deformation.isfinite().all()
    assert shape.to_mesh().vertices.isfinite().all()


def test_state_gives_the_same_mesh_again() -> None:
    first = make()
    generator = torch.Generator().manual_seed(1)
    for parameter in first.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
    first.redistance()
    first.residual.data += 0.01 * torch.randn(first.residual.shape, generator=generator)
    first._prepared, first.recoveries = 17, 1
    first._set_smoothing(2.5)
    second = make()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.to_mesh().vertices, second.to_mesh().vertices)
    assert torch.equal(first.to_mesh().faces, second.to_mesh().faces)
    assert (second._prepared, second.recoveries) == (17, 1)
    assert second.smoothing == 2.5


def test_bad_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="resolution"):
        DMTetConfig(resolution=2)
    with pytest.raises(ValueError, match="lr_sdf"):
        DMTetConfig(lr_sdf=-1.0)


def test_a_step_has_the_weighted_regularisers() -> None:
    names = {"normal_consistency": 2.0, "laplacian": 1.0, "sign_changes": 1.0, "eikonal": 1.0, "area": 0.5}
    shape, plain = make(cpu_rasterizer(), **names), make(**dict.fromkeys(names, 1.0))
    rendering = render(shape, turntable(2), 16, torch.ones(2, 3))
    for asset in (shape, plain):
        asset.begin_step(FIRST)
    losses, expected = shape.regularizers(FIRST), plain.regularizers(FIRST)
    assert losses.keys() == names.keys()
    for name, weight in names.items():
        torch.testing.assert_close(losses[name], weight * expected[name])
    torch.autograd.backward(rendering.color.sum() + sum(losses.values()))
    for parameter in shape.parameter_store().tensors():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_a_step_must_be_begun_before_it_is_rendered() -> None:
    shape, views = make(cpu_rasterizer()), (turntable(1), 16, torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="begin_step must be called before step 0"):
        shape.regularizers(FIRST)
    render(shape, *views)
    with pytest.raises(RuntimeError, match="begin_step must be called before step 0"):
        shape.regularizers(FIRST)  # it has ended
    shape.begin_step(FIRST)
    with pytest.raises(RuntimeError, match="begin_step must be called before step 1"):
        shape.regularizers(Step(index=1, total=10))


@pytest.mark.parametrize("padded", [False, True])
def test_evaluation_has_no_gradients_and_changes_nothing(padded: bool) -> None:  # noqa: FBT001
    shape = make(cpu_rasterizer(), redistance_every=1)
    shape.padded = padded
    before = copy_state(shape)
    for _ in range(3):
        rendering = show(shape, turntable(1), 16, torch.ones(1, 3))
        assert not any(buffer.requires_grad for buffer in (rendering.color, rendering.alpha, rendering.depth))
        assert rendering.complete is None
    assert_same_state(shape, before)
    assert shape.watch.capacity is None


def test_all_renders_of_a_step_show_its_surface() -> None:
    """Evaluation in between, as at a checkpoint, does not end it."""
    shape, views = make(cpu_rasterizer()), (turntable(2), 32, torch.ones(2, 3))
    step = Step(index=3, total=10)
    expected = render(shape, *views, step)
    shape.begin_step(step)
    first = render_begun(shape, step)
    show(shape, *views)
    second = render_begun(shape, step)
    for found in (first, second):
        assert torch.equal(found.color, expected.color)
        assert torch.equal(found.depth, expected.depth)


def test_shape_stays_from_shape_until_on() -> None:
    asset = make(cpu_rasterizer(), shape_until=0.5)
    for progress, shaped in ((0.4, True), (0.5, False)):
        asset.zero_grad()
        step = at(progress)
        asset.begin_step(step)
        rendering = asset.render(Views(turntable(1), torch.ones(1, 3)), 32, step)
        assert bool(asset.regularizers(step)) == shaped
        torch.autograd.backward(rendering.color.sum())
        assert (asset.residual.grad is not None) == shaped
        assert asset.color.grid.table.grad.abs().sum() > 0


def test_eps_of_the_shape_reaches_its_parameter_group() -> None:
    groups = make(eps_sdf=0.25).parameter_store().groups
    assert {group["name"]: group.get("relative_eps") for group in groups} == {
        "sdf": 0.25, "deformation": None, "color.grid": None, "color.mlp": None,
    }  # fmt: skip


def test_the_parameter_store_is_one() -> None:
    shape = make()
    assert shape.parameter_store() is shape.parameter_store()


def pull(color: tuple[float, float, float]) -> Objective:
    return Objective(
        sample_cameras=lambda step: sample_orbit(1, OrbitConfig(), step.generator("cameras")),
        guidance=PullTowardColor(color),
        clip=lambda gradient: gradient,
        backgrounds=((1.0, 1.0, 1.0),),
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("sdf", ["grid", "mlp"])
def test_the_distance_is_restored_every_so_many_steps_for_any_number_of_objectives(
    sdf: str, count: int
) -> None:
    shape = make(cpu_rasterizer(), sdf=sdf, redistance_every=4)
    shape.parameter_store().use_adam()
    task = Problem(shape, {str(number): pull((0.5, 0.1 * number, 0.5)) for number in range(count)})
    before, changed = shape.base.clone(), []
    for report in optimize(task, steps=14, resolution_at=lambda _: 16):
        if not torch.equal(shape.base, before):
            changed.append(report.step - 1)
        before = shape.base.clone()
    assert changed == [4, 8, 12]


@pytest.mark.parametrize("padded", [False, True])
def test_a_step_that_is_done_again_begins_where_it_began(padded: bool) -> None:  # noqa: FBT001
    """As after running out of memory in it: the field is not made a distance twice."""
    shape = make(cpu_rasterizer(), redistance_every=5)
    shape.padded = padded
    shape.begin_step(FIRST)
    shape.residual.data += 0.01
    step, views = Step(index=5, total=10), (turntable(1), 32, torch.ones(1, 3))
    before = shape.base.clone()
    first, state = render(shape, *views, step), copy_state(shape)
    assert not torch.equal(shape.base, before)
    shape.begin_step(step)  # breaks off here: it is not ended
    again = render(shape, *views, step)
    assert_same_state(shape, state)
    assert torch.equal(again.color, first.color)


def test_silhouettes_turn_a_sphere_into_an_ellipsoid() -> None:
    rasterizer = cpu_rasterizer()
    # no regulariser: where no outline passes, Adam would blow its small gradient up to a full step
    shape = make(
        rasterizer,
        resolution=32,
        radii=(0.5, 0.5, 0.5),
        redistance_every=15,
        normal_consistency=0.0,
        lr_sdf=0.02,
    )
    target = make(rasterizer, resolution=32, radii=(0.65, 0.35, 0.5))
    store = shape.parameter_store()
    store.use_adam(betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(0)
    orbit, background = OrbitConfig(elevation_degrees=(-45.0, 45.0)), torch.ones(4, 3)
    for step in steps(30):
        views = sample_orbit(4, orbit, generator)
        wanted = show(target, views, 48, background).alpha
        store.zero_grad()
        rendering = render(shape, views, 48, background, step)
        loss = (rendering.alpha - wanted).square().sum()
        torch.autograd.backward(loss)
        store.step(torch.ones((), dtype=torch.bool))
    with torch.no_grad():
        inside, expected = shape.sdf() < 0, target.sdf() < 0
    overlap = (inside & expected).sum() / (inside | expected).sum()
    assert overlap > 0.9
    assert shape.recoveries == 0
