"""The density field of a NeRF: a hash grid and an MLP around a soft ball."""

from dataclasses import dataclass
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from pgc3d.representation.fields import HashGrid, Mlp

Activation = Literal["softplus", "exp"]
MAX_EXPONENT = 15.0  # of exp, beyond which its gradient would overflow half of all steps


@dataclass(frozen=True)
class Blob:
    """The density, before its activation, that a field starts with: strength (1 - |x| / radius).

    Magic3D, Lin et al. 2023, section 4.1; without it score distillation finds the empty scene.
    """

    strength: float = 10.0
    radius: float = 0.5

    def __call__(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        distance: Tensor = points.norm(dim=-1)
        return self.strength * (1.0 - distance / self.radius)


class DensityField(nn.Module):
    """Density per unit of length at points of [-1, 1]^3, not negative."""

    def __init__(self, grid: HashGrid, mlp: Mlp, *, blob: Blob, activation: Activation = "softplus") -> None:
        """Start as the blob alone; `mlp` has one output."""
        super().__init__()
        self.grid, self.mlp, self.blob, self.activation = grid, mlp, blob, activation
        self.restart()

    @property
    def levels(self) -> int:
        """Of the grid."""
        return len(self.grid.layout.resolutions)

    def forward(self, points: Float[Tensor, "P 3"], levels: int | None = None) -> Float[Tensor, " P"]:
        """The density; of the first `levels` levels of the grid alone where they are given."""
        raw = self._raw(points, levels)
        return softplus(raw) if self.activation == "softplus" else raw.clamp(max=MAX_EXPONENT).exp()

    def _raw(self, points: Float[Tensor, "P 3"], levels: int | None) -> Float[Tensor, " P"]:
        """The field before its activation."""
        features = self.grid(points)
        if levels is not None and levels < self.levels:
            used = levels * (self.grid.width // self.levels)
            features = torch.cat([features[:, :used], torch.zeros_like(features[:, used:])], dim=1)
        return cast("Tensor", self.mlp(features))[:, 0] + self.blob(points)

    def spacing(self, levels: int) -> float:
        """Edge of a cell of the finest of the first `levels` levels, in world units."""
        return 2.0 / self.grid.layout.resolutions[min(levels, self.levels) - 1]

    def normals(self, points: Float[Tensor, "P 3"], levels: int) -> Float[Tensor, "P 3"]:
        """Unit vectors along which the density falls fastest, from finite differences over 1.5 cells.

        The activation grows, so that the field before it has the same normals; it is closer to linear.
        Differentiable in the field's weights; zero where the density is constant.
        """
        reach = 1.5 * self.spacing(levels) / 3**0.5
        taps = _taps(points.device).to(points.dtype)
        around = (points[:, None] + reach * taps).reshape(-1, 3)
        values = self._raw(around, levels).reshape(-1, 4)
        return -normalize(values @ taps, dim=-1, eps=1e-6)

    @torch.no_grad()
    def restart(self) -> None:
        """Make the field the blob again."""
        for parameter in self.parameters():
            parameter.nan_to_num_(0.0, 0.0, 0.0)
        cast("Tensor", self.mlp.layers[-1].weight).zero_()
        cast("Tensor", self.mlp.layers[-1].bias).zero_()


def _taps(device: torch.device) -> Float[Tensor, "4 3"]:
    """Corners of a regular tetrahedron: four values give a gradient without a preferred axis.

    Made on the device, since a copy from the host would be waited for.
    """
    index = torch.arange(4, device=device)
    x, y = 1.0 - 2.0 * (index // 2), 1.0 - 2.0 * (index % 2)
    return torch.stack([x, y, x * y], dim=1)
