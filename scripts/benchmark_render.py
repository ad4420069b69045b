"""Time the renderer's parts, forward and backward, by number of triangles and resolution."""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pgc3d.cameras import turntable
from pgc3d.interfaces import Rasterizer
from pgc3d.render import build_rasterizer
from pgc3d.render.antialias import EdgeTopology, antialias, edge_topology
from pgc3d.render.mesh_renderer import project
from pgc3d.types import Cameras, Fragments

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--triangles", type=int, nargs="+", default=[5_000, 50_000, 150_000])
    parser.add_argument("--resolutions", type=int, nargs="+", default=[128, 256, 512, 1024])
    parser.add_argument("--views", type=int, default=None, help="4 on CUDA, else 1")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    device = torch.device(options.device)
    rasterizer = build_rasterizer("auto", device)
    cameras = turntable(options.views or (4 if device.type == "cuda" else 1)).to(device)
    print(f"{device}, {len(cameras)} views, milliseconds, fastest of {options.repeats}")
    print(f"{'triangles':>9} {'pixels':>6} " + " ".join(f"{name:>15}" for name in (*PARTS, "sum")))
    for triangles in options.triangles:
        vertices, faces = bumpy_sphere(triangles, device)
        for resolution in options.resolutions:
            times = time_parts(rasterizer, cameras, vertices, faces, resolution, options.repeats)
            row = [times[name] for name in PARTS]
            cells = " ".join(f"{value:15.2f}" for value in (*row, sum(row)))
            print(f"{len(faces):>9} {resolution:>6} {cells}")


if __name__ == "__main__":
    main()
