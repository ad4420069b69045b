"""Stand-ins with known answers: an asset of one colour, and a guidance whose gradient is written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pgc3d.parameters import ParameterGroup, ParameterStore
from pgc3d.types import GuidanceOutput, Handover, Material, Mesh, Rendering, Step, Views


class FlatColor(nn.Module):
    """An asset that looks the same from everywhere: one colour over the whole image."""

    def __init__(
        self, color: tuple[float, float, float] = (0.5, 0.5, 0.5), lr: float = 0.05, decay: float = 0.0
    ) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.tensor(color))
        self.lr, self.decay = lr, decay
        self.resolutions: list[int] = []
        self.begun: list[int] = []
        self.ended: list[int] = []
        self._store: ParameterStore | None = None

    def begin_step(self, step: Step) -> None:
        self.begun.append(step.index)

    def end_step(self, step: Step) -> None:
        self.ended.append(step.index)

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        self.resolutions.append(resolution)
        size = (len(views), resolution, resolution)
        color = self.color.expand(*size, 3)
        return Rendering(
            color=color,
            normal=color,
            depth=torch.ones(*size, 1),
            alpha=torch.ones(*size, 1),
            background=views.background,
        )

    def regularizers(self, step: Step) -> dict[str, Tensor]:
        return {"size": self.decay * self.color.square().sum()}

    def parameter_store(self) -> ParameterStore:
        if self._store is None:
            self._store = ParameterStore([ParameterGroup(name="color", params=[self.color], lr=self.lr)])
        return self._store

    def handover(self) -> Handover:
        return Handover(surface=self.to_mesh(), sdf=None, material=self.material)

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
    side: int = 0  # of the images that are evaluated, 0 for the rendering's
    calls: int = 0
    seen: list[Mapping[str, object]] = field(default_factory=list)

    def input_resolution(self, rendered: int) -> int:
        return self.side or rendered

    def __call__(self, image: Tensor, rendering: Rendering, views: Views, step: Step) -> GuidanceOutput:
        self.seen.append(
            {
                "requires_grad": image.requires_grad,
                "progress": step.progress,
                "background": rendering.background,
                "finite": bool(image.isfinite().all()),
            }
        )
        gradient = image - torch.tensor(self.color)
        gradient = gradient + self.noise * torch.randn(gradient.shape, generator=step.generator("noise"))
        if self.calls in self.broken:
            gradient = torch.full_like(gradient, float("nan"))
        self.calls += 1
        return GuidanceOutput(gradient=gradient, metrics={"loss": 0.5 * gradient.square().sum()})
