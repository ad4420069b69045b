"""Steps of a NeRF: renders change nothing, and a resumed run is an uninterrupted one, padded or not."""

from dataclasses import replace

import pytest
import torch

from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.context import RepresentationContext
from pgc3d.evaluation.wholeness import wholeness
from pgc3d.geometry.marching_tetrahedra import march as marching
from pgc3d.kernels.composite import Spans
from pgc3d.optimize import Objective, Problem, optimization_step
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.rendering.rays import Rays, Samples, camera_rays, march
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.nerf_config import FILL, NerfConfig
from pgc3d.representation.nerf_losses import ray_losses
from pgc3d.representation.nerf_surface import _solid
from pgc3d.types import GuidanceOutput, Step, Views

CPU = torch.device("cpu")
COLORS = ColorFieldConfig(levels=2, finest=16)
CONFIG = NerfConfig(
    stations=32, occupancy=16, occupancy_every=4, levels=2, finest=16, color_field=COLORS,
    regularizer_rays=64, sparsity=0.1, orientation=0.1, lr_grid=0.1, lr_mlp=0.1,
    shaded=(0.5,), blob_radius=0.3,
)  # fmt: skip
TOTAL = 12


def make(config=CONFIG, *, padded=False):
    generator = torch.Generator().manual_seed(0)
    context = RepresentationContext(
        rasterizer=CpuRasterizer(), device=CPU, generator=generator, mesh=dict, fill=1.0
    )
    nerf = config.build(context)
    nerf.occupancy.padded = padded
    return nerf


class Growing:
    """A gradient that makes the image darker, so that the object grows."""

    def input_resolution(self, rendered):
        return rendered

    def __call__(self, image, rendering, views, step):
        return GuidanceOutput(gradient=0.1 * torch.ones_like(image))


def problem(nerf):
    objective = Objective(
        sample_cameras=lambda step: sample_orbit(1, OrbitConfig(), step.generator("cameras")),
        guidance=Growing(),
        clip=lambda gradient: gradient,
        backgrounds=((1.0, 1.0, 1.0),),
    )
    nerf.parameter_store().use_adam()
    return Problem(representation=nerf, objectives={"color": objective})


def work(nerf, task, first, last):
    """Whether each of the steps was made."""
    steps = (Step(index=index, total=TOTAL) for index in range(first, last))
    return [bool(optimization_step(task, step, resolution=32).finite) for step in steps]


def everything(nerf):
    own = {f"own.{name}": value for name, value in nerf.state_dict().items()}
    return own | {f"adam.{name}": value for name, value in nerf.parameter_store().state_dict().items()}


def copied(state):
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("padded", [False, True])
def test_renders_change_nothing(padded):
    nerf = make(padded=padded)
    nerf.begin_step(Step(index=0, total=TOTAL))
    state, attributes = copied(nerf.state_dict()), dict(vars(nerf.occupancy))
    views = Views(turntable(2), torch.ones(2, 3))
    for step in (Step(index=0, total=TOTAL), None):
        first, second = (nerf.render(views, 16, step) for _ in range(2))
        assert torch.equal(first.color, second.color)
    nerf.regularizers(Step(index=0, total=TOTAL))
    assert all(torch.equal(value, state[name]) for name, value in nerf.state_dict().items())
    assert all(vars(nerf.occupancy)[name] is value for name, value in attributes.items())


@pytest.mark.parametrize("at", [1, 4, 5, 9])
def test_a_resumed_run_is_an_uninterrupted_one_through_an_overflow(at, monkeypatch):
    """A small capacity, a scene that grows: some steps are skipped, the same ones in both runs."""
    monkeypatch.setattr("pgc3d.representation.occupancy.SPARE", 0)
    monkeypatch.setattr("pgc3d.representation.occupancy.MARGIN", 1.0)
    whole, task = made()
    outcomes = work(whole, task, 0, TOTAL)
    assert not all(outcomes)
    assert outcomes[-1]

    first, task = made()
    before = work(first, task, 0, at)
    second, task = made()
    second.load_state_dict(copied(first.state_dict()))
    second.parameter_store().load_state_dict(copied(first.parameter_store().state_dict()))
    assert before + work(second, task, at, TOTAL) == outcomes
    found = everything(second)
    assert all(torch.equal(found[name], value) for name, value in everything(whole).items())


def made():
    nerf = make(padded=True)
    return nerf, problem(nerf)


def test_padding_changes_no_render():
    nerf, padded = make(), make(padded=True)
    views, step = Views(turntable(2), torch.ones(2, 3)), Step(index=0, total=TOTAL)
    for asset in (nerf, padded):
        asset.begin_step(step)
    found, wanted = padded.render(views, 16, step), nerf.render(views, 16, step)
    assert bool(found.complete)
    torch.testing.assert_close(found.color, wanted.color)
    torch.testing.assert_close(padded.regularizers(step), nerf.regularizers(step))


@pytest.mark.parametrize("fill", [0.5, 1.0, 3.0])
def test_the_capacity_holds_the_samples_of_any_view_that_is_as_close(fill):
    context = RepresentationContext(
        rasterizer=CpuRasterizer(), device=CPU, generator=torch.Generator().manual_seed(0), mesh=dict,
        fill=fill,
    )  # fmt: skip
    nerf = replace(CONFIG, blob_radius=0.9).build(context)
    nerf.occupancy.padded = True
    for index in range(20):
        step = Step(index=index, total=TOTAL)
        nerf.begin_step(step)
        cameras = sample_orbit(2, OrbitConfig(fill=(fill, fill)), step.generator("cameras"))
        assert bool(nerf.render(Views(cameras, torch.ones(2, 3)), 32, step).complete)


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"shaded": (0.0,)}, {"levels": 12, "hidden": 32, "color_field": replace(COLORS, hidden=64)}],
)
def test_the_memory_of_a_render_is_the_one_that_plans_use(options, low_memory):
    config = replace(NerfConfig(), **options)
    context = RepresentationContext(
        rasterizer=CpuRasterizer(), device=CPU, generator=torch.Generator().manual_seed(0), mesh=dict,
        low_memory=low_memory,
    )  # fmt: skip
    nerf = config.build(context)
    step, kept = Step(index=0, total=TOTAL), {}
    nerf.begin_step(step)
    own = {parameter.data_ptr() for parameter in nerf.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage, tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nerf.render(Views(turntable(2), torch.ones(2, 3)), 48, step)
    total = sum(storage.nbytes() for storage, _ in kept.values())
    samples = FILL * config.stations * 2 * 48**2
    planned = config.sample_bytes(low_memory=low_memory) * samples
    assert 0.8 < total / planned <= 1.05
    # On CUDA there are buffers with a margin, and in the backward pass gradients.
    assert config.render_bytes(low_memory=low_memory) * 2 * 48**2 > 1.49 * planned


@pytest.mark.parametrize("options", [{}, {"shaded": (0.0,)}, {"textureless": 1.0}])
def test_fields_that_are_recomputed_give_the_same_images_and_gradients(options, monkeypatch):
    monkeypatch.setattr("pgc3d.representation.nerf.CHUNK", 1000)  # several, and the last one not full
    found = []
    for low_memory in (False, True):
        context = RepresentationContext(
            rasterizer=CpuRasterizer(), device=CPU, generator=torch.Generator().manual_seed(0), mesh=dict,
            low_memory=low_memory,
        )  # fmt: skip
        nerf, step = replace(NerfConfig(), **options).build(context), Step(index=0, total=TOTAL)
        nerf.begin_step(step)
        rendering = nerf.render(Views(turntable(2), torch.ones(2, 3)), 24, step)
        (rendering.color.square().sum() + rendering.alpha.sum() + rendering.normal.sum()).backward()
        gradients = [parameter.grad for parameter in nerf.parameters() if parameter.grad is not None]
        found.append([rendering.color, rendering.alpha, rendering.depth, *gradients])
    assert any(gradient.abs().max() > 0 for gradient in found[0][3:])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["opaque", "entropy"])
@pytest.mark.parametrize(("depth", "sign"), [(0.2, 1.0), (2.0, -1.0)], ids=["thin", "dense"])
def test_entropy_empties_thin_rays_and_fills_dense_ones(name, depth, sign):
    """Gradient descent goes against the gradient of the density."""
    spans = Spans(start=torch.tensor([0]), count=torch.tensor([1]), ray=torch.tensor([0]))
    place = torch.zeros(1, 3)
    samples = Samples(place, torch.ones(1), spans, total=torch.tensor(1), length=1.0)
    rays = Rays(place, place, torch.zeros(1), torch.ones(1), torch.ones(1))
    density = torch.tensor([depth], requires_grad=True)
    (gradient,) = torch.autograd.grad(ray_losses(rays, samples, density, None)[name], density)
    assert gradient.item() * sign > 0.01


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_samples_on_the_cpu_are_those_of_plain_torch(share):
    generator = torch.Generator().manual_seed(0)
    occupied = torch.rand(8, 8, 8, generator=generator) < share
    rays = camera_rays(turntable(2), 24)
    options = {"stations": 32, "offset": torch.rand(len(rays), generator=generator)}
    found, padded = (
        march(rays, occupied, **options),
        march(rays, occupied, capacity=len(rays) * 32, **options),
    )
    count = len(found.points)
    assert count == found.total == padded.total
    assert (count > 0) == (share > 0)
    torch.testing.assert_close(found.points, padded.points[:count])
    torch.testing.assert_close(found.distance, padded.distance[:count])
    assert torch.equal(found.spans.ray, padded.spans.ray[:count])
    assert torch.equal(found.spans.start, padded.spans.start)
    assert torch.equal(found.spans.count, padded.spans.count)


def test_no_part_of_a_surface_is_apart_and_none_is_inside():
    """Of a set at the threshold of percolation, where corner neighbours decide."""
    inside = _solid(torch.rand(24, 24, 24, generator=torch.Generator().manual_seed(3)) < 0.3)
    vertices, faces = marching(torch.where(inside, -1.0, 1.0))
    found = wholeness(vertices, faces, least_area=0.0)
    assert found.voids == 0
    assert found.components == 1
    assert found.handles > 10
