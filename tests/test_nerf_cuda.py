"""Steps of a NeRF on CUDA: nothing waits for the device, and gradients are those of the CPU."""

import pytest
import torch
from steps import nothing_waits, steps
from test_step_cuda import FixedGradient

from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.context import RepresentationContext
from pgc3d.optimize import Objective, Problem, optimization_step
from pgc3d.rendering import build_rasterizer
from pgc3d.representation.dmtet_config import DMTetConfig
from pgc3d.representation.fields import ColorFieldConfig
from pgc3d.representation.nerf import Nerf
from pgc3d.representation.nerf_config import NerfConfig
from pgc3d.types import Views

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]
CONFIG = NerfConfig(
    stations=64, levels=8, color_field=ColorFieldConfig(levels=8), regularizer_rays=256,
    orientation=0.1, sparsity=0.1, opaque=0.1, entropy=0.1, depth_variance=0.1, shaded=(0.5,),
    blob_radius=0.6,
)  # fmt: skip


def build(device: str, config: NerfConfig = CONFIG) -> Nerf:
    generator = torch.Generator().manual_seed(0)
    place = torch.device(device)
    context = RepresentationContext(
        rasterizer=build_rasterizer("auto", place), device=place, generator=generator, mesh=dict
    )
    nerf = config.build(context)
    with torch.no_grad():
        for parameter in nerf.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(place))
    return nerf


def problem(nerf: Nerf) -> Problem:
    objective = Objective(
        sample_cameras=lambda step: sample_orbit(2, OrbitConfig(), step.generator("cameras"), "cuda"),
        guidance=FixedGradient(),
        clip=lambda gradient: gradient.clamp(-0.1, 0.1),
        backgrounds=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    )
    nerf.parameter_store().use_adam()
    return Problem(representation=nerf, objectives={"color": objective})


def test_steps_do_not_wait_for_the_device() -> None:
    """Through two updates of the occupancy grid, with every regulariser, lit and unlit."""
    nerf = build("cuda")
    assert nerf.occupancy.padded
    task, run = problem(nerf), steps(26)
    for step in run[:4]:
        optimization_step(task, step, resolution=64)
    with nothing_waits():
        outcomes = [optimization_step(task, step, resolution=64, percentiles=True) for step in run[4:]]
    assert all(outcome.finite for outcome in outcomes)


@pytest.mark.parametrize("lit", [0.0, 1.0], ids=["unlit", "lit"])
def test_gradients_are_those_of_the_cpu(lit: float) -> None:
    config = NerfConfig(stations=48, shaded=(lit,), blob_radius=0.6)
    gradients, images = [], []
    for device in ("cpu", "cuda"):
        nerf = build(device, config)
        views = Views(turntable(2).to(device), torch.ones(2, 3, device=device))
        step = steps(2)[0]
        nerf.begin_step(step)
        rendering = nerf.render(views, 48, step)
        torch.autograd.backward((rendering.color.square().sum() + rendering.alpha.sum()) * 1e-3)
        gradients.append([parameter.grad.cpu().flatten() for parameter in nerf.parameters()])
        images.append(rendering.color.detach().cpu())
    assert (images[0] - images[1]).abs().mean() < 1e-3
    for cpu, cuda in zip(*gradients, strict=True):
        assert torch.cosine_similarity(cpu, cuda, dim=0) > 0.99


def test_the_surface_that_is_handed_over_is_that_of_the_cpu() -> None:
    """And a DMTet on the device starts from it, with a colour field of another size."""
    surfaces = []
    for device in ("cpu", "cuda"):
        nerf = build(device, NerfConfig(stations=48, blob_radius=0.6, mesh_resolution=24))
        nerf.begin_step(steps(2)[0])
        surfaces.append(handover := nerf.handover())
        assert handover.surface.vertices.device.type == device
    radii = [float(handover.surface.vertices.norm(dim=1).mean()) for handover in surfaces]
    assert radii[0] == pytest.approx(radii[1], abs=0.01)
    place = torch.device("cuda")
    context = RepresentationContext(
        rasterizer=build_rasterizer("auto", place), device=place,
        generator=torch.Generator().manual_seed(0), mesh=dict, start=surfaces[1],
    )  # fmt: skip
    fine = DMTetConfig(resolution=24, color_field=ColorFieldConfig(levels=4, hidden=16)).build(context)
    assert fine.to_mesh().vertices.device.type == "cuda"
