"""Cameras that come closer while a run goes on: first the whole object, later parts of its surface."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.cameras import (
    CameraContext,
    CameraSampler,
    OrbitConfig,
    SurfaceSampler,
    fill_distance,
    orbit,
    sample_orbit,
)
from pgc3d.ranges import check, number, schedule
from pgc3d.requirements import Requirements
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Cameras


@dataclass(frozen=True)
class CloseUpConfig:
    """An orbit whose views become close-ups; `share` and `zoom` are schedules (see `PiecewiseLinear`).

    A close-up looks at a random point of the surface, from the side that the surface faces, within the
    orbit's elevations. At zoom z the picture shows 1 / z of the width that the whole object would fill there.
    """

    kind: Literal["close_up"] = "close_up"
    orbit: OrbitConfig = field(default_factory=OrbitConfig)
    share: tuple[float, ...] = schedule((0.3, 0.0, 0.6, 0.5), 0.0, 1.0)  # of the views that are close-ups
    zoom: tuple[float, ...] = schedule((0.3, 1.0, 1.0, 2.5), 1.0, 10.0)
    # Standard deviation of the view from the surface's normal.
    spread_degrees: float = number(25.0, 0.0, 90.0, unit="degrees")

    def __post_init__(self) -> None:
        check(self)

    def requires(self) -> Requirements:
        """A given mesh, whose surface is known before the run."""
        return Requirements(inputs=frozenset({"mesh"}))

    def build(self, context: CameraContext) -> CameraSampler:
        """New random cameras for each step.

        Raises:
            ValueError: there is no surface.
        """
        surface, batch, device = context.surface, context.batch, context.device
        if surface is None:
            raise ValueError("close-ups must have a surface to point at")
        return lambda step: sample_close_ups(
            batch, self, surface, step.progress, step.generator("cameras"), device
        )


def sample_close_ups(
    batch: int,
    config: CloseUpConfig,
    surface: SurfaceSampler,
    progress: float,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Cameras:
    """Draw cameras for a share of the run; `surface` draws points with unit normals, all on the CPU."""
    whole = sample_orbit(batch, config.orbit, generator)
    close = torch.rand(batch, generator=generator) < PiecewiseLinear(config.share)(progress)
    points, normals = surface(batch, generator)
    spread = math.radians(config.spread_degrees)
    direction = normalize(normals, dim=1)
    azimuth = torch.atan2(direction[:, 0], direction[:, 2]) + spread * torch.randn(batch, generator=generator)
    elevation = torch.asin(direction[:, 1].clamp(-1, 1)) + spread * torch.randn(batch, generator=generator)
    low, high = (math.radians(angle) for angle in config.orbit.elevation_degrees)
    fovy = 2 * torch.atan(1 / whole.clip_from_camera[:, 1, 1])
    fill = torch.full((batch,), sum(config.orbit.fill) / 2)
    # A narrower view from the same place: the camera never enters the object.
    narrow = 2 * torch.atan(torch.tan(fovy / 2) / PiecewiseLinear(config.zoom)(progress))
    near = orbit(azimuth, elevation.clamp(low, high), fill_distance(fovy, fill), narrow, points)
    return _choose(close, near, whole).to(device)


def _choose(condition: Tensor, first: Cameras, second: Cameras) -> Cameras:
    def pick(name: str) -> Tensor:
        ours, others = getattr(first, name), getattr(second, name)
        return torch.where(condition.reshape(-1, *[1] * (ours.dim() - 1)), ours, others)

    names = ("camera_from_world", "clip_from_camera", "azimuth", "elevation", "distance")
    return Cameras(**{name: pick(name) for name in names})
