"""Physically based shading by environment lights that are drawn and turned for each view."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.rendering.brdf import brdf_table, look_up
from pgc3d.rendering.environment import Environment
from pgc3d.rendering.shading import linear_to_srgb, srgb_to_linear
from pgc3d.types import Material, Step

DIELECTRIC = 0.04  # reflectance of non-metals at normal incidence
LEAST_COSINE = 1e-4  # between normal and viewer


@dataclass(frozen=True)
class Lighting:
    """Lights to draw from, and the table of the reflection; all on one device."""

    lights: Environment
    table: Float[Tensor, "S S 2"]
    rotate: bool = True  # by a random angle about y, for each view

    @classmethod
    def of(cls, lights: Environment, device: torch.device | str, *, rotate: bool = True) -> "Lighting":
        """The lights on a device."""
        return cls(lights.to(device), brdf_table().to(device), rotate)

    def for_views(self, count: int, step: Step | None) -> "EnvironmentShading":
        """The shading of this process's views; for evaluation (None), by the first light as it is."""
        chosen, turn = torch.zeros(count, dtype=torch.int64), torch.zeros(count)
        if step is not None:
            generator, (total, own) = step.generator("light"), step.rows(count)
            chosen = torch.randint(len(self.lights), (total,), generator=generator)[own]
            turn = 2 * math.pi * torch.rand(total, generator=generator)[own] if self.rotate else turn
        device = self.table.device
        return EnvironmentShading(
            self.lights,
            self.table,
            chosen.to(device, non_blocking=True),
            turn.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class EnvironmentShading:
    """A `Shading`: one light for each view, turned about y."""

    lights: Environment
    table: Float[Tensor, "S S 2"]
    chosen: Int[Tensor, " B"]
    turn: Float[Tensor, " B"]  # radians, from +z towards +x

    def __call__(
        self,
        material: Material,
        normal: Float[Tensor, "P 3"],
        to_camera: Float[Tensor, "P 3"],
        view: Int[Tensor, " P"],
    ) -> Float[Tensor, "P 3"]:
        """See `Shading`."""
        return linear_to_srgb(self.linear(material, normal, to_camera, view))

    def linear(
        self,
        material: Material,
        normal: Float[Tensor, "P 3"],
        to_camera: Float[Tensor, "P 3"],
        view: Int[Tensor, " P"],
    ) -> Float[Tensor, "P 3"]:
        """Radiance towards the camera, by the split-sum approximation (Karis 2013).

        Diffuse light is base colour (1 - metallic) times irradiance / pi; occlusion is left out.
        """
        color, metallic, roughness = (
            srgb_to_linear(material.base_color),
            material.metallic,
            material.roughness,
        )
        light, turn = self.chosen[view], self.turn[view]
        facing = (normal * to_camera).sum(-1, keepdim=True)
        reflected = 2.0 * facing * normal - to_camera
        scale, bias = look_up(self.table, facing.clamp(LEAST_COSINE, 1.0), roughness)
        specular = DIELECTRIC * (1.0 - metallic) + color * metallic
        diffuse = color * (1.0 - metallic) * self.lights.diffuse(_turned(normal, turn), light)
        glossy = self.lights.glossy(_turned(reflected, turn), roughness, light)
        return diffuse + (specular * scale + bias) * glossy


def _turned(direction: Float[Tensor, "P 3"], turn: Float[Tensor, " P"]) -> Float[Tensor, "P 3"]:
    """Directions in the axes of lights that were turned about y."""
    x, y, z = direction.unbind(1)
    sine, cosine = turn.sin().to(x), turn.cos().to(x)
    return torch.stack([x * cosine - z * sine, y, x * sine + z * cosine], dim=1)


def bumped(
    normal: Float[Tensor, "P 3"],
    tangent: Float[Tensor, "P 4"],
    slope: Float[Tensor, "P 2"],
    side: Float[Tensor, " P"],
) -> Float[Tensor, "P 3"]:
    """Normals tilted by a bump, unit.

    Args:
        normal: unit, on the side of the camera.
        tangent: direction of growing u, of any length, and the sign of the bitangent, as in glTF.
        slope: of the bump along tangent and bitangent.
        side: 1 for front faces, -1 for back faces, whose whole frame is reversed.
    """
    front = normal * side[:, None]
    along = tangent[:, :3] - front * (front * tangent[:, :3]).sum(-1, keepdim=True)
    along = normalize(along, dim=-1)
    across = torch.linalg.cross(front, along) * torch.where(tangent[:, 3:] < 0, -1.0, 1.0)
    tilted = normalize(slope[:, :1] * along + slope[:, 1:] * across + front, dim=-1)
    return tilted * side[:, None]
