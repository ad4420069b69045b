"""Stand-ins with known answers: an asset of one colour, and a guidance whose gradient is written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pgc3d.interfaces import ParameterGroup
from pgc3d.types import Cameras, GuidanceOutput, Material, Mesh, Rendering


class FlatColor(nn.Module):
    """An asset that looks the same from everywhere: one colour over the whole picture."""

    def __init__(
        self, color: tuple[float, float, float] = (0.5, 0.5, 0.5), lr: float = 0.05, decay: float = 0.0
    ) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.tensor(color))
        self.lr, self.decay = lr, decay
        self.resolutions: list[int] = []

    def render(
        self, cameras: Cameras, resolution: int, background: Tensor, *, progress: float = 1.0
    ) -> Rendering:
        self.resolutions.append(resolution)
        size = (len(cameras), resolution, resolution)
        color = self.color.expand(*size, 3)
        return Rendering(
            color=color,
            normal=color,
            depth=torch.ones(*size, 1),
            alpha=torch.ones(*size, 1),
            background=background,
            losses={"size": self.decay * self.color.square().sum()},
        )

    def parameter_groups(self) -> list[ParameterGroup]:
        return [{"name": "color", "params": [self.color], "lr": self.lr}]

    def to_mesh(self) -> Mesh:
        vertices = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        return Mesh(
            vertices=vertices, faces=torch.tensor([[0, 1, 2]]), normals=torch.tensor([[0.0, 0.0, 1.0]] * 3)
        )

    def material(self, points: Tensor) -> Material:
        ones = torch.ones(len(points), 1)
        return Material(
            base_color=self.color.detach().expand(len(points), 3), roughness=ones, metallic=0 * ones
        )


@dataclass
class PullTowardColor:
    """Gradient of 0.5 * |image - color|^2, summed over the image; not finite in the calls `broken`."""

    color: tuple[float, float, float] = (1.0, 0.0, 0.0)
    broken: frozenset[int] = frozenset()
    noise: float = 0.0
    generator: torch.Generator = field(default_factory=torch.Generator)
    calls: int = 0
    seen: list[Mapping[str, object]] = field(default_factory=list)

    def __call__(
        self, image: Tensor, rendering: Rendering, cameras: Cameras, progress: float
    ) -> GuidanceOutput:
        self.seen.append(
            {
                "requires_grad": image.requires_grad,
                "progress": progress,
                "background": rendering.background,
                "finite": bool(image.isfinite().all()),
            }
        )
        gradient = image - torch.tensor(self.color)
        gradient = gradient + self.noise * torch.randn(gradient.shape, generator=self.generator)
        if self.calls in self.broken:
            gradient = torch.full_like(gradient, float("nan"))
        self.calls += 1
        return GuidanceOutput(gradient=gradient, metrics={"loss": 0.5 * gradient.square().sum()})
