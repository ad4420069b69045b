"""Recover a known material from its own renders, under lights that vary and under one that does not.

    python scripts/recover_material.py --steps 300 --cameras 4

A sphere has patches of random base colour, roughness and metallic. A second sphere of one material is
optimised until its renders, from random views under the same lights, are those of the first. Prints the mean
absolute error of each property over the surface for several sets of lights: what one leaves open stays wrong.
"""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pgc3d.cameras import orbit
from pgc3d.interfaces import Rasterizer
from pgc3d.optimize import Objective, Problem, optimize
from pgc3d.rendering.cpu import CpuRasterizer
from pgc3d.representation.image_texture import ImageTextures
from pgc3d.representation.pbr import PbrConfig
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.representation.textured_mesh_config import TexturedMeshConfig, build_textured_mesh
from pgc3d.types import Cameras, GuidanceOutput, Placement, PreparedMesh, Rendering, Step, Views

LIGHTS: Mapping[str, PbrConfig] = {
    "five lights, turned": PbrConfig(),
    "one light, turned": PbrConfig(lights=("studio",)),
    "one fixed light": PbrConfig(lights=("studio",), rotate=False),
    "one fixed overcast sky": PbrConfig(lights=("overcast",), rotate=False),
}
PATCHES = (4, 8)  # rows and columns
PROPERTIES = {"base colour": slice(0, 3), "roughness": slice(3, 4), "metallic": slice(4, 5)}


def sphere(rows: int = 24) -> PreparedMesh:
    """A sphere with latitude and longitude as texture coordinates."""
    columns = 2 * rows
    polar = torch.linspace(0, torch.pi, rows + 1)[:, None].expand(-1, columns + 1)
    azimuth = torch.linspace(0, 2 * torch.pi, columns + 1).expand(rows + 1, -1)
    x, z = polar.sin() * azimuth.sin(), polar.sin() * azimuth.cos()
    vertices = torch.stack([x, polar.cos(), z], dim=-1).reshape(-1, 3)
    uv = torch.stack([azimuth / (2 * torch.pi), 1 - polar / torch.pi], dim=-1).reshape(-1, 2)
    index = torch.arange((rows + 1) * (columns + 1)).reshape(rows + 1, columns + 1)
    corners = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    quads = torch.stack(corners, dim=-1).reshape(-1, 4)
    faces = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    area = torch.linalg.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    ).norm(dim=1)
    faces = faces[area > 1e-6]  # not those at the poles
    grid = index % columns + index // (columns + 1) * columns  # the seam's columns are one, and so are poles
    grid[0], grid[-1] = grid[0, 0], grid[-1, 0]
    welded = grid.reshape(-1)[faces]
    return PreparedMesh(
        vertices,
        faces,
        vertices.clone(),
        faces,
        uv,
        faces,
        welded,
        Placement.identity(),
        torch.zeros_like(faces[:, 0]),
    )


def patches(size: int, generator: torch.Generator) -> Tensor:
    """A texture [size, size, 5] of random patches: half of them metal."""
    rows, columns = PATCHES
    color = 0.15 + 0.75 * torch.rand(rows, columns, 3, generator=generator)
    roughness = 0.15 + 0.7 * torch.rand(rows, columns, 1, generator=generator)
    metallic = (torch.rand(rows, columns, 1, generator=generator) < 0.5).float()
    cells = torch.cat([color, roughness, metallic], dim=-1).permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(cells, size=(size, size))[0].permute(1, 2, 0).contiguous()


@dataclass
class Match:
    """A guidance whose gradient is that of the squared difference to the renders of a known asset."""

    known: TexturedMesh
    noise: float = 0.0  # standard deviation, of every pixel of a target

    def input_resolution(self, rendered: int) -> int:
        """The resolution of the render."""
        return rendered

    def __call__(self, image: Tensor, rendering: Rendering, views: Views, step: Step) -> GuidanceOutput:
        """See `Guidance`; the step draws the same lights for the known asset."""
        with torch.no_grad():
            target = self.known.render(views, image.shape[1], step).color
        error = image - target
        error = error + self.noise * torch.randn(error.shape, generator=step.generator("noise"))
        return GuidanceOutput(gradient=2 * error, metrics={"error": error.square().mean()})


def sample_views(step: Step, *, cameras: int = 0) -> Cameras:
    """Four views from all sides; of that many cameras on a ring in turn where their number is given."""
    turn, height = torch.rand(2, 4, generator=step.generator("cameras"))
    if cameras:
        turn = (torch.arange(4) + 4 * step.index) % cameras / cameras
        height = torch.full((4,), 0.6)
    flat = torch.ones(4)
    return orbit(2 * torch.pi * turn, (2 * height - 1).asin(), 3 * flat, 0.75 * flat)


def build(material: PbrConfig, size: int, rasterizer: Rasterizer, rate: float = 0.02) -> TexturedMesh:
    """The sphere with one material, in the middle of everything."""
    config = TexturedMeshConfig(
        texture="image", image_size=size, lr_image=rate, roughness=0.5, metallic=0.5, material=material
    )
    generator = torch.Generator().manual_seed(0)
    return build_textured_mesh(config, sphere(), rasterizer=rasterizer, generator=generator)


def texels(asset: TexturedMesh) -> Tensor:
    """The image that a sphere is textured with."""
    assert isinstance(asset.texture, ImageTextures)
    return asset.texture[0].image


@dataclass(frozen=True)
class Setting:
    """What an object is recovered from."""

    steps: int = 300
    resolution: int = 64
    cameras: int = 0  # number of cameras on a ring; 0 draws new ones in every step
    noise: float = 0.0  # standard deviation, of every pixel of a target


def recover(material: PbrConfig, setting: Setting, *, size: int = 64, seed: int = 0) -> dict[str, float]:
    """Mean absolute errors by property, after some steps under the lights of a material.

    They are means over the part of the surface that is seen: all of it, or for cameras on a ring its middle.
    """
    rasterizer = CpuRasterizer()
    known, found = build(material, size, rasterizer), build(material, size, rasterizer)
    truth = patches(size, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        texels(known).copy_(truth)
    found.parameter_store().use_adam()
    objective = Objective(
        sample_cameras=partial(sample_views, cameras=setting.cameras),
        guidance=Match(known, setting.noise),
        clip=lambda gradient: gradient,
        backgrounds=((0.0, 0.0, 0.0),),
    )
    problem = Problem(
        representation=found,
        objectives={"color": objective},
        lr_scale=lambda progress: 1.0 - 0.95 * progress,
    )
    for _ in optimize(problem, steps=setting.steps, resolution_at=lambda _: setting.resolution, seed=seed):
        pass
    image = texels(found).detach()
    polar = (torch.arange(size) + 0.5) * torch.pi / size
    weight = (polar.sin() * (polar.cos().abs() < (0.7 if setting.cameras else 1.0)))[:, None, None]
    error = (image - truth).abs() * weight / weight.mean()
    return {name: error[..., channels].mean().item() for name, channels in PROPERTIES.items()}


def table(setting: Setting, seeds: int) -> Iterator[str]:
    """The lines of the table."""
    yield f"{'mean absolute error':<24}" + "".join(f"{name:>13}" for name in PROPERTIES)
    for name, material in LIGHTS.items():
        runs = [recover(material, setting, seed=seed) for seed in range(seeds)]
        means = (sum(run[part] for run in runs) / seeds for part in PROPERTIES)
        yield f"{name:<24}" + "".join(f"{mean:13.4f}" for mean in means)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=1, help="random objects")
    parser.add_argument("--cameras", type=int, default=0, help="fixed ones on a ring; 0: random ones")
    parser.add_argument("--noise", type=float, default=0.0, help="of the targets, standard deviation")
    arguments = parser.parse_args()
    setting = Setting(steps=arguments.steps, cameras=arguments.cameras, noise=arguments.noise)
    for line in table(setting, arguments.seeds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
