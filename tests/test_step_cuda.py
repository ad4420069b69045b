"""Optimisation steps on CUDA: nothing waits for the device, and they are those of the CPU."""

import importlib.util

import pytest
import torch
from steps import nothing_waits, steps
from test_dmtet import make

from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.choices import Backend
from pgc3d.kernels import hash_grid
from pgc3d.optimize import Objective, Problem, optimization_step
from pgc3d.rendering import build_rasterizer
from pgc3d.representation.dmtet import DMTet
from pgc3d.types import GuidanceOutput, Views

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
    pytest.mark.filterwarnings("ignore:.*Profiler clears events"),
]
needs_nvdiffrast = pytest.mark.skipif(
    importlib.util.find_spec("nvdiffrast") is None, reason="nvdiffrast is not installed"
)
backends = pytest.mark.parametrize("backend", ["triton", pytest.param("nvdiffrast", marks=needs_nvdiffrast)])


def build(device: str, backend: Backend = "auto", **options: object) -> DMTet:
    asset = make(build_rasterizer(backend, torch.device(device)), resolution=32, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in asset.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    asset.padded = device == "cuda"
    return asset.to(device)


class FixedGradient:
    """A small gradient at a resolution of its own."""

    def input_resolution(self, rendered: int) -> int:
        return 64

    def __call__(self, image, rendering, views, step) -> GuidanceOutput:
        return GuidanceOutput(gradient=0.05 * (image - 0.3))


def problem(asset: DMTet, device: str) -> Problem:
    objective = Objective(
        sample_cameras=lambda step: sample_orbit(2, OrbitConfig(), step.generator("cameras"), device),
        guidance=FixedGradient(),
        clip=lambda gradient: gradient.clamp(-0.1, 0.1),
        backgrounds=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    )
    asset.parameter_store().use_adam()
    return Problem(representation=asset, objectives={"color": objective, "again": objective})


@backends
def test_steps_do_not_wait_for_the_device(backend: Backend) -> None:
    """Through a redistancing and more room, and with every regulariser."""
    weights = dict.fromkeys(("laplacian", "sign_changes", "eikonal", "area"), 0.1)
    asset = build("cuda", backend, redistance_every=5, eps_sdf=1e-3, **weights)
    task, run = problem(asset, "cuda"), steps(18)
    for step in run[:6]:
        optimization_step(task, step, resolution=128)
    with nothing_waits():
        outcomes = [optimization_step(task, step, resolution=128, percentiles=True) for step in run[6:]]
    assert all(outcome.finite for outcome in outcomes)
    assert asset.recoveries == 0


def test_libraries_do_not_wait_for_the_device_either() -> None:
    """Torch's own check does not see what extensions do."""
    from torch.profiler import ProfilerActivity, profile

    task, run = problem(build("cuda", "triton", redistance_every=0), "cuda"), steps(9)
    for step in run[:6]:
        optimization_step(task, step, resolution=128)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for step in run[6:]:
            optimization_step(task, step, resolution=128)
    calls = {event.key for event in found.key_averages()}
    if not any("LaunchKernel" in name for name in calls):
        pytest.skip("the profiler sees no CUDA calls here")
    assert not {"cudaStreamSynchronize", "cudaEventSynchronize", "cuStreamSynchronize"} & calls


def test_lost_surface_is_recovered_without_a_step() -> None:
    asset = build("cuda", redistance_every=0)
    task, run = problem(asset, "cuda"), steps(7)
    optimization_step(task, run[0], resolution=64)
    asset.residual.data.fill_(float("nan"))
    outcomes = [optimization_step(task, step, resolution=64) for step in run[1:]]
    assert not outcomes[0].finite
    assert outcomes[-1].finite
    assert asset.recoveries == 1


@backends
def test_gradients_are_those_of_the_cpu(backend: Backend) -> None:
    gradients = []
    for device, rasterizer in (("cpu", "cpu"), ("cuda", backend)):
        asset = build(device, rasterizer, normal_consistency=1.0)
        views = Views(turntable(2).to(device), torch.ones(2, 3, device=device))
        for step in steps(2):  # the second one is padded
            asset.begin_step(step)
            rendering, losses = asset.render(views, 128, step), asset.regularizers(step)
        assert (rendering.complete is None) == (device == "cpu")
        total = (rendering.color.square().sum() + rendering.alpha.sum()) * 1e-3 + sum(losses.values())
        torch.autograd.backward(total)
        gradients.append([parameter.grad.cpu().flatten() for parameter in asset.parameters()])
    for cpu, cuda in zip(*gradients, strict=True):
        assert torch.cosine_similarity(cpu, cuda, dim=0) > 0.99


def test_hash_grid_agrees_on_many_points() -> None:
    from pgc3d.kernels import hash_grid_triton

    layout = hash_grid.hash_layout(levels=8, log2_rows=15, base=8, finest=256)
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(100_000, 3, generator=generator) * 1.2 - 0.1).cuda()
    table = torch.randn(layout.offsets[-1], 2, generator=generator).cuda()
    gradient = torch.randn(100_000, 16, generator=generator).cuda()
    features = hash_grid.encode(points, table, layout)
    torch.testing.assert_close(hash_grid_triton.encode(points, table, layout), features, atol=1e-4, rtol=0)
    found = hash_grid_triton.encode_backward(gradient, points, table, layout, need_points=True)
    expected = hash_grid.encode_backward(gradient, points, table, layout, need_points=True)
    for ours, theirs in zip(found, expected, strict=True):  # a few points are rounded into the next cell
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_handed_over_field_is_that_of_the_cpu() -> None:
    points = 2 * torch.rand(10_000, 3, generator=torch.Generator().manual_seed(1)) - 1
    cpu, cuda = (build(device, "auto").handover() for device in ("cpu", "cuda"))
    torch.testing.assert_close(cuda.sdf(points.cuda()).cpu(), cpu.sdf(points), atol=1e-4, rtol=0)
