"""Synthesised lights: a sky of three colours and soft lamps, each in white balance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.rendering.environment import HEIGHT, WIDTH, directions, solid_angles

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Lamp:
    """A round or rectangular source far away, with a soft edge."""

    azimuth: float  # degrees; 0 on +z, grows towards +x
    elevation: float  # degrees
    radiance: Color
    half: tuple[float, float]  # half of its width and its height, degrees
    edge: float = 4.0  # width of the edge, degrees
    round: bool = False

    def __call__(self, direction: Float[Tensor, "H W 3"]) -> Float[Tensor, "H W 1"]:
        """Its brightness in [0, 1] in each direction."""
        turn, rise = math.radians(self.azimuth), math.radians(self.elevation)
        x, z = math.sin(turn), math.cos(turn)
        towards = direction.new_tensor([math.cos(rise) * x, math.sin(rise), math.cos(rise) * z])
        right = direction.new_tensor([z, 0.0, -x])
        above = torch.linalg.cross(towards, right)
        depth = direction @ towards
        across, along = (torch.atan2(direction @ axis, depth).rad2deg() for axis in (right, above))
        scaled = torch.stack([across / self.half[0], along / self.half[1]])
        reach = scaled.norm(dim=0) if self.round else scaled.abs().amax(dim=0)
        outside = (reach - 1.0) * min(self.half) / self.edge
        return ((0.5 - outside).clamp(0.0, 1.0) * (depth > 0))[..., None]


@dataclass(frozen=True)
class SyntheticLight:
    """A gradient from the ground over the horizon to the zenith, and lamps."""

    zenith: Color
    horizon: Color
    ground: Color
    lamps: tuple[Lamp, ...] = ()
    falloff: float = 1.0  # exponent of the sine of the elevation between horizon and zenith

    def radiance(self) -> Float[Tensor, "H W 3"]:
        """Linear radiance of `HEIGHT` by `WIDTH` texels, see `environment`."""
        direction = directions(HEIGHT, WIDTH)
        zenith, horizon, ground = (direction.new_tensor(color) for color in self._colors)
        sine = direction[..., 1:2]
        sky = horizon + (zenith - horizon) * sine.clamp(min=0.0) ** self.falloff
        blend = (0.5 + sine / 0.1).clamp(0.0, 1.0)  # about six degrees around the horizon
        light = ground + (sky - ground) * blend
        for lamp in self.lamps:
            light = light + lamp(direction) * direction.new_tensor(lamp.radiance)
        return light

    @property
    def _colors(self) -> tuple[Color, Color, Color]:
        return self.zenith, self.horizon, self.ground


def _grey(value: float) -> Color:
    return (value, value, value)


LIGHTS: Mapping[str, SyntheticLight] = {
    "studio": SyntheticLight(
        _grey(0.30), _grey(0.35), _grey(0.22),
        lamps=(
            Lamp(-40.0, 35.0, _grey(5.0), half=(18.0, 24.0)),
            Lamp(55.0, 15.0, _grey(2.5), half=(10.0, 30.0)),
            Lamp(165.0, 40.0, _grey(4.0), half=(24.0, 10.0)),
        ),
    ),
    "softbox": SyntheticLight(
        _grey(0.25), _grey(0.25), _grey(0.3), lamps=(Lamp(10.0, 65.0, _grey(3.0), half=(34.0, 26.0)),)
    ),
    "sun": SyntheticLight(
        (0.25, 0.45, 0.95), (0.75, 0.85, 1.0), (0.35, 0.30, 0.24), falloff=0.6,
        lamps=(Lamp(35.0, 45.0, (30.0, 27.0, 22.0), half=(5.0, 5.0), round=True),),
    ),
    "sunset": SyntheticLight(
        (0.20, 0.28, 0.55), (1.1, 0.75, 0.5), (0.22, 0.17, 0.15), falloff=0.5,
        lamps=(Lamp(-60.0, 12.0, (24.0, 15.0, 8.0), half=(6.0, 6.0), round=True),),
    ),
    "overcast": SyntheticLight(_grey(1.0), _grey(0.35), _grey(0.15)),  # CIE overcast: 1 to 1/3
}  # fmt: skip


def balanced(radiance: Float[Tensor, "H W 3"], brightness: float) -> Float[Tensor, "H W 3"]:
    """The light scaled in each channel so that its mean over all directions is `brightness`.

    That is also the mean of irradiance / pi over all normals: a white surface is grey on average.

    Raises:
        ValueError: it has no light in a channel.
    """
    weight = solid_angles(*radiance.shape[:2]) / (4 * math.pi)
    mean = (radiance.double() * weight[..., None]).sum((0, 1))
    if not bool((mean > 0).all()):
        raise ValueError("a light must have red, green and blue in it, got one without")
    return radiance.double() * (brightness / mean)
