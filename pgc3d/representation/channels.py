"""The numbers that a texture stores for each point, and the material that they stand for."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.types import Material

Pair = tuple[float, float]
INSIDE = 0.01  # least distance of a first value from its bounds, as a fraction of their difference


@runtime_checkable
class Channels(Protocol):
    """C numbers of a point, each within bounds."""

    @property
    def bounds(self) -> tuple[Pair, ...]:
        """Least and largest value of each channel."""
        ...

    def material(self, values: Float[Tensor, "P C"]) -> Material:
        """The material of stored values."""
        ...

    def values(self, material: Material) -> Float[Tensor, "P C"]:
        """The values to store for a material, not bounded."""
        ...


@dataclass(frozen=True)
class ColorChannels:
    """The base colour alone; roughness and metallic are the same everywhere."""

    roughness: float = 0.8
    metallic: float = 0.0

    @property
    def bounds(self) -> tuple[Pair, ...]:
        """See `Channels.bounds`."""
        return ((0.0, 1.0),) * 3

    def material(self, values: Float[Tensor, "P 3"]) -> Material:
        """See `Channels.material`."""
        return Material(
            base_color=values,
            roughness=torch.full_like(values[:, :1], self.roughness).detach(),
            metallic=torch.full_like(values[:, :1], self.metallic).detach(),
        )

    def values(self, material: Material) -> Float[Tensor, "P 3"]:
        """See `Channels.values`."""
        return material.base_color


@dataclass(frozen=True)
class PbrChannels:
    """Base colour in sRGB, roughness and metallic, and with bump two slopes."""

    base_color: Pair = (0.03, 0.97)
    roughness: Pair = (0.08, 1.0)
    metallic: Pair = (0.0, 1.0)
    slope: float = 0.0  # largest slope of the bump along an axis; 0 is no bump

    @property
    def bounds(self) -> tuple[Pair, ...]:
        """See `Channels.bounds`."""
        bump = ((-self.slope, self.slope),) * 2 if self.slope > 0 else ()
        return (*[self.base_color] * 3, self.roughness, self.metallic, *bump)

    def material(self, values: Float[Tensor, "P C"]) -> Material:
        """See `Channels.material`."""
        slope = values[:, 5:7] if self.slope > 0 else None
        return Material(values[:, :3], values[:, 3:4], values[:, 4:5], slope)

    def values(self, material: Material) -> Float[Tensor, "P C"]:
        """See `Channels.values`; a material without a bump is flat."""
        parts = [material.base_color, material.roughness, material.metallic]
        if self.slope > 0:
            flat = torch.zeros_like(material.base_color[:, :2])
            parts.append(flat if material.slope is None else material.slope)
        return torch.cat(parts, dim=1)


def first_values(
    channels: Channels, *, color: tuple[float, float, float], roughness: float, metallic: float
) -> Float[Tensor, " C"]:
    """The values of one material without a bump, clamped a little inside the bounds."""
    rows = [torch.tensor([row]) for row in (color, (roughness,), (metallic,))]
    low, high = torch.tensor(channels.bounds).unbind(1)
    margin = INSIDE * (high - low)
    values = channels.values(Material(*rows))[0]
    return torch.minimum(torch.maximum(values, low + margin), high - margin)
