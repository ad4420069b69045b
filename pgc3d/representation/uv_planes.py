"""Planes of texture coordinates in the cube of a field, for texture sets whose points share texels."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from pgc3d.types import TextureSet

SIDES = 6  # of the cube; the surface, within the unit ball, touches each in a point at most
INWARDS = 1 / 12  # distance of further planes of a side


@dataclass(frozen=True)
class UvPlanes:
    """For each of K texture sets the plane on which a field has the colours of its texture coordinates."""

    shared: Bool[Tensor, " K"]  # sets that have a plane; the others are evaluated on the surface
    wraps: Bool[Tensor, " K"]
    origin: Float[Tensor, "K 3"]  # of u = v = 1 / 2
    axes: Float[Tensor, "K 2 3"]  # of growing u and v

    @classmethod
    def of(cls, sets: Sequence[TextureSet], device: torch.device | str) -> "UvPlanes":
        """The planes of some sets: one on each side of the cube, further ones behind them."""
        shared = torch.tensor([part.shared for part in sets])
        rank = shared.long().cumsum(0) - 1
        axis, sign = rank.clamp(min=0) % 3, 1.0 - 2.0 * (rank.clamp(min=0) % SIDES // 3)
        height = sign * (1.0 - INWARDS * (rank.clamp(min=0) // SIDES))
        unit = [one_hot((axis + turn) % 3, 3).float() for turn in range(3)]
        wraps = torch.tensor([part.wraps for part in sets])
        parts = shared, wraps, height[:, None] * unit[0], torch.stack(unit[1:], dim=1)
        return cls(*(part.to(device) for part in parts))

    def __call__(
        self, points: Float[Tensor, "P 3"], uv: Float[Tensor, "P 2"], sets: Int[Tensor, " P"]
    ) -> Float[Tensor, "P 3"]:
        """The points at which a field is evaluated: on the planes, or the surface points themselves."""
        first = torch.where(self.wraps[sets][:, None], uv - uv.floor(), uv)
        flat = (2 * first - 1)[:, None] @ self.axes[sets]
        return torch.where(self.shared[sets][:, None], self.origin[sets] + flat[:, 0], points)
