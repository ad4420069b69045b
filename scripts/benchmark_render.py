"""Time the renderer's parts, forward and backward, by number of triangles and resolution.

With --step: time whole optimisation steps of a DMTet, of a textured mesh as for SDXL (--mesh FILE), or of the
NeRF of the pipeline magic3d (--volume unlit or lit), at the loop's own parts, with a fixed image gradient in
place of a guidance, so that all of it is what a run pays beside its guidance. On CUDA the steps between two
logs run under torch's check that nothing waits for the device, and a profile counts the launches and all
waits, also those inside libraries, which that check does not see.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from pgc3d import pgc
from pgc3d.build.inputs import prepare_mesh
from pgc3d.cameras import OrbitConfig, sample_orbit, turntable
from pgc3d.choices import Backend
from pgc3d.config import load_config, preset
from pgc3d.context import RepresentationContext
from pgc3d.geometry.edges import EdgeTopology
from pgc3d.interfaces import Meshable, Rasterizer
from pgc3d.optimize import Objective, Problem, optimization_step
from pgc3d.pipelines import find_pipeline
from pgc3d.rendering import build_rasterizer
from pgc3d.rendering.antialias import antialias, edge_topology
from pgc3d.rendering.mesh_renderer import project
from pgc3d.representation.dmtet import DMTet
from pgc3d.representation.dmtet_config import DMTetConfig, build_dmtet
from pgc3d.representation.nerf import Nerf
from pgc3d.representation.nerf_config import NerfConfig
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.stopwatch import Stopwatch
from pgc3d.types import Cameras, Fragments, GuidanceOutput, PreparedMesh, Rendering, Step, Views

PARTS = (
    "topology",
    "rasterize",
    "rasterize bwd",
    "interpolate",
    "interpolate bwd",
    "antialias",
    "antialias bwd",
)


def bumpy_sphere(triangles: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A closed mesh of about that many triangles with waves on its surface."""
    rows = max(3, round((triangles / 4) ** 0.5))
    columns = 2 * rows
    polar = (torch.arange(rows + 1) / rows * torch.pi)[:, None]
    azimuth = torch.arange(columns) / columns * 2 * torch.pi
    radius = 0.8 + 0.1 * torch.sin(6 * azimuth) * torch.sin(5 * polar)
    x, z = torch.sin(polar) * torch.cos(azimuth), torch.sin(polar) * torch.sin(azimuth)
    vertices = (torch.stack([x, torch.cos(polar).expand_as(x), z], dim=-1) * radius[..., None]).reshape(-1, 3)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    a, b = row * columns + column, row * columns + (column + 1) % columns
    faces = torch.stack(
        [torch.stack([a, b, a + columns], -1), torch.stack([b, b + columns, a + columns], -1)]
    )
    return vertices.to(device), faces.reshape(-1, 3).to(device)


def measure(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The fastest run in milliseconds; on CUDA by events, so that launches overlap as in a real step."""
    work()
    times: list[float] = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize(device)
            start.record()
            work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - begin))
    return min(times)


def time_parts(
    rasterizer: Rasterizer, cameras: Cameras, vertices: Tensor, faces: Tensor, resolution: int, repeats: int
) -> dict[str, float]:
    """Milliseconds of every part, each on its own."""
    device, size = vertices.device, (resolution, resolution)
    clip = project(vertices, cameras).requires_grad_()
    attributes = torch.cat([vertices, vertices], dim=1)[None].requires_grad_()
    topology: EdgeTopology = edge_topology(faces, len(vertices))
    fragments = rasterizer.rasterize(clip, faces, size)
    fixed = Fragments(data=fragments.data.detach().requires_grad_())
    surface = rasterizer.interpolate(attributes, fixed, faces)
    image = torch.rand(*fixed.data.shape[:3], 7, device=device).requires_grad_()
    smooth = antialias(image, fixed, clip, faces, topology)

    def backward(output: Tensor, *inputs: Tensor) -> Callable[[], object]:
        gradient = torch.rand_like(output)
        return lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)

    work: dict[str, Callable[[], object]] = {
        "topology": lambda: edge_topology(faces, len(vertices)),
        "rasterize": lambda: rasterizer.rasterize(clip, faces, size),
        "rasterize bwd": backward(fragments.data, clip),
        "interpolate": lambda: rasterizer.interpolate(attributes, fixed, faces),
        "interpolate bwd": backward(surface, attributes, fixed.data),
        "antialias": lambda: antialias(image, fixed, clip, faces, topology),
        "antialias bwd": backward(smooth, image, clip),
    }
    return {name: measure(part, device, repeats) for name, part in work.items()}


class FixedGradient:
    """Replaces a guidance: the same small gradient in every step, after matrix products.

    Behind a guidance's work the host has time to launch the rest of the step; without any products, launching
    is what takes the time on a fast GPU.
    """

    def __init__(self, views: int, resolution: int, device: torch.device, products: int) -> None:
        self.factor = torch.randn(8192 if products else 0, 8192, device=device, dtype=torch.bfloat16)
        self.products = products
        noise = torch.randn(views, resolution, resolution, 3, generator=torch.Generator().manual_seed(0))
        self.gradient = 0.05 * noise.to(device)
        self.held = 0  # bytes on CUDA, at most, when it is called

    def input_resolution(self, rendered: int) -> int:
        """The rendering's own."""
        return rendered

    def __call__(self, image: Tensor, rendering: Rendering, views: Views, step: Step) -> GuidanceOutput:
        if image.is_cuda:
            self.held = max(self.held, torch.cuda.memory_allocated(image.device))
        for _ in range(self.products):
            torch.mm(self.factor, self.factor)
        return GuidanceOutput(gradient=self.gradient)


def build_step(
    rasterizer: Rasterizer, options: argparse.Namespace, resolution: int, device: torch.device
) -> Problem:
    """A DMTet with the regulariser and the clipping of a run."""
    generator = torch.Generator().manual_seed(0)
    views = options.views or 2
    asset: DMTet | TexturedMesh | Nerf
    if options.mesh:
        asset = build_painting(options.mesh, rasterizer, generator, device)
    elif options.volume:
        asset = build_volume(rasterizer, generator, device, lit=options.volume == "lit")
    else:  # a lumpy one
        config = DMTetConfig(resolution=options.cells, radii=(0.6, 0.5, 0.45), sdf_smoothing=(1.0, 1.0))
        asset = build_dmtet(config, rasterizer=rasterizer, generator=generator, device=device)

    def sample(step: Step) -> Cameras:
        return sample_orbit(views, OrbitConfig(), step.generator("cameras"), device)

    objective = Objective(
        sample_cameras=sample,
        guidance=FixedGradient(views, resolution, device, options.products),
        clip=pgc.PixelClip().build(),
        backgrounds=((1.0, 1.0, 1.0), (0.0, 0.0, 0.0)),
    )
    asset.recompute = options.low_memory
    asset.parameter_store().use_adam()
    return Problem(representation=asset, objectives={"color": objective})


def build_painting(
    path: Path, rasterizer: Rasterizer, generator: torch.Generator, device: torch.device
) -> TexturedMesh:
    """A user's mesh under the field of the preset `texture-sdxl`."""
    config = load_config([preset("texture-sdxl")])
    representation = config.last.representation
    assert isinstance(representation, TexturedMeshConfig)
    prepared = prepare_mesh(config, path, device)
    return build_textured_mesh(
        representation, prepared, rasterizer=rasterizer, generator=generator, device=device
    )


def build_volume(
    rasterizer: Rasterizer, generator: torch.Generator, device: torch.device, *, lit: bool
) -> Nerf:
    """The NeRF of the pipeline magic3d at full size, with normals in every step or in none."""
    config = load_config(find_pipeline("text", "magic3d").files).first.representation
    assert isinstance(config, NerfConfig)
    config = replace(config, shaded=(1.0 if lit else 0.0,), orientation=config.orientation if lit else 0.0)
    return config.build(
        RepresentationContext(rasterizer=rasterizer, device=device, generator=generator, mesh=_no_mesh)
    )


def _no_mesh() -> PreparedMesh:
    raise ValueError("a NeRF must not need a mesh")


@contextmanager
def nothing_waits(device: torch.device) -> Iterator[None]:
    """Fail where torch waits for the device."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def step_at(index: int) -> Step:
    """A step at the start of a long run; the distance is restored in its time."""
    return Step(index=index, total=100_000)


def time_step(problem: Problem, resolution: int, steps: int, device: torch.device) -> dict[str, float]:
    """Milliseconds a step by part; `whole` is from the first launch to the end of the last kernel."""
    stopwatch = Stopwatch(device)

    def run(indices: range) -> None:
        for index in indices:
            optimization_step(problem, step_at(index), resolution=resolution, stopwatch=stopwatch)

    run(range(5))
    stopwatch.read()
    begin = time.perf_counter()
    with nothing_waits(device):
        run(range(5, 5 + steps))
    launched = time.perf_counter() - begin
    seconds = stopwatch.read()
    whole = time.perf_counter() - begin
    parts = {name: 1e3 * value / steps for name, value in seconds.items()}
    return {**parts, "whole": 1e3 * whole / steps, "launching": 1e3 * launched / steps}


def profile_step(problem: Problem, resolution: int, steps: int = 5, rows: int = 25) -> None:
    """Print the device's work in a step, the number of launches, and the synchronisations."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for index in range(1, 1 + steps):
            optimization_step(problem, step_at(index), resolution=resolution)
    averages = found.key_averages()
    print(averages.table(sort_by="self_cuda_time_total", row_limit=rows, max_name_column_width=60))
    counts = {event.key: event.count for event in averages}
    launches = sum(count for name, count in counts.items() if "LaunchKernel" in name)
    waits = {name: count for name, count in counts.items() if name.endswith("Synchronize")}
    print(f"{launches / steps:.0f} launches a step; waits in {steps} steps and once at the end: {waits}")


def benchmark_step(options: argparse.Namespace, device: torch.device, backend: Backend) -> None:
    """Print the parts of a step for every resolution."""
    views = options.views or 2
    for resolution in options.resolutions:
        rasterizer = build_rasterizer(backend, device)
        problem = build_step(rasterizer, options, resolution, device)
        times = time_step(problem, resolution, options.repeats, device)
        asset = problem.representation
        if isinstance(asset, Nerf):
            samples = asset.occupancy.capacity(views * resolution**2) or 0
            scene = f"NeRF, buffers for {samples / 1e6:.2f} million samples"
        elif isinstance(asset, TexturedMesh):
            scene = f"{len(asset.mesh.faces)} textured triangles"
        else:
            assert isinstance(asset, Meshable)
            scene = f"{options.cells} cells, {len(asset.to_mesh().faces)} triangles"
        scene += f", {views} views, {resolution} px"
        print(f"{device}, {backend} rasterizer, {scene}, milliseconds a step")
        print("  " + ", ".join(f"{name} {value:.2f}" for name, value in times.items()))
        if device.type == "cuda":
            guidance = problem.objectives["color"].guidance
            assert isinstance(guidance, FixedGradient)
            held = guidance.held / views / resolution**2
            print(f"  peak memory {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
            print(f"  held at the guidance {guidance.held / 2**30:.2f} GiB, {held:.0f} bytes for each pixel")
            torch.cuda.reset_peak_memory_stats()
        if isinstance(asset, DMTet) and asset.recoveries:
            print(f"  the surface was recovered {asset.recoveries} times")
        if options.profile and device.type == "cuda":
            profile_step(problem, resolution)


def benchmark_parts(options: argparse.Namespace, device: torch.device, backend: Backend) -> None:
    """Print a line for every mesh and resolution."""
    rasterizer = build_rasterizer(backend, device)
    cameras = turntable(options.views or (4 if device.type == "cuda" else 1)).to(device)
    title = f"{device}, {backend} rasterizer, {len(cameras)} views"
    print(f"{title}, milliseconds, fastest of {options.repeats}")
    print(f"{'triangles':>9} {'pixels':>6} " + " ".join(f"{name:>15}" for name in (*PARTS, "sum")))
    for triangles in options.triangles:
        vertices, faces = bumpy_sphere(triangles, device)
        for resolution in options.resolutions:
            times = time_parts(rasterizer, cameras, vertices, faces, resolution, options.repeats)
            row = [times[name] for name in PARTS]
            cells = " ".join(f"{value:15.2f}" for value in (*row, sum(row)))
            print(f"{len(faces):>9} {resolution:>6} {cells}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backends", nargs="+", choices=get_args(Backend), default=["auto"])
    parser.add_argument("--triangles", type=int, nargs="+", default=[5_000, 50_000, 150_000])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--views", type=int, default=None, help="4 on CUDA, else 1")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--step", action="store_true", help="whole optimisation steps, 2 views")
    parser.add_argument("--mesh", type=Path, default=None, help="textured instead of a DMTet, with --step")
    parser.add_argument("--volume", choices=("unlit", "lit"), help="a NeRF instead, with --step")
    parser.add_argument("--low-memory", action="store_true", help="as a run's option, with --step")
    parser.add_argument("--cells", type=int, default=128, help="of the DMTet, with --step")
    parser.add_argument("--products", type=int, default=0, help="8192 x 8192, in the place of a guidance")
    parser.add_argument("--profile", action="store_true", help="with --step on CUDA: kernels and waits")
    options = parser.parse_args()
    device = torch.device(options.device)
    for backend in options.backends:
        if options.step:
            benchmark_step(options, device, backend)
        else:
            benchmark_parts(options, device, backend)


if __name__ == "__main__":
    main()
