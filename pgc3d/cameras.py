"""Cameras: THE convention of pgc3d.

Right handed, y up. Azimuth 0 puts the camera on +z, looking at the origin; azimuth grows towards +x, so that
seen from above it runs counter-clockwise (as in Zero123). Elevation is positive above. A camera looks along
its -z with x to the right of the image, and det(R) = +1: nothing is mirrored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.ranges import check, number, schedule, span
from pgc3d.requirements import Requirements
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Cameras, Step

NEAR, FAR = 0.1, 100.0
FRAMING_ROUNDS = 8
MAX_FILL = 10.0  # the camera nearly touches the unit sphere

CameraSampler: TypeAlias = Callable[[Step], Cameras]
# (count, CPU generator) -> random points of a surface and their unit normals
SurfaceSampler: TypeAlias = Callable[
    [int, torch.Generator], tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]
]


def perspective(fovy: Float[Tensor, " B"]) -> Float[Tensor, "B 4 4"]:
    """OpenGL projection with aspect 1; `fovy` is the vertical field of view."""
    focal = 1.0 / torch.tan(fovy / 2)
    matrix = torch.zeros(len(fovy), 4, 4, dtype=fovy.dtype, device=fovy.device)
    matrix[:, 0, 0] = focal
    matrix[:, 1, 1] = focal
    matrix[:, 2, 2] = -(FAR + NEAR) / (FAR - NEAR)
    matrix[:, 2, 3] = -2 * FAR * NEAR / (FAR - NEAR)
    matrix[:, 3, 2] = -1.0
    return matrix


def look_at(position: Float[Tensor, "B 3"], target: Float[Tensor, "B 3"]) -> Float[Tensor, "B 4 4"]:
    """World-to-camera matrices with the world's y upwards in the image.

    The position must not lie exactly above or below the target.
    """
    backward = torch.nn.functional.normalize(position - target, dim=-1)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=position.dtype, device=position.device).expand_as(position)
    right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(backward, right), backward], dim=1)  # [B, 3, 3]
    matrix = torch.eye(4, dtype=position.dtype, device=position.device).repeat(len(position), 1, 1)
    matrix[:, :3, :3] = rotation
    matrix[:, :3, 3] = -(rotation @ position[..., None])[..., 0]
    return matrix


def orbit(
    azimuth: Float[Tensor, " B"],
    elevation: Float[Tensor, " B"],
    distance: Float[Tensor, " B"],
    fovy: Float[Tensor, " B"],
    target: Float[Tensor, "B 3"] | None = None,
) -> Cameras:
    """Cameras on a sphere around `target` (the origin when None)."""
    if target is None:
        target = torch.zeros(len(azimuth), 3, dtype=azimuth.dtype, device=azimuth.device)
    horizontal = torch.cos(elevation)
    direction = torch.stack(
        [horizontal * torch.sin(azimuth), torch.sin(elevation), horizontal * torch.cos(azimuth)], dim=-1
    )
    return Cameras(
        camera_from_world=look_at(target + distance[:, None] * direction, target),
        clip_from_camera=perspective(fovy),
        azimuth=azimuth,
        elevation=elevation,
        distance=distance,
    )


@dataclass(frozen=True)
class OrbitConfig:
    """Random cameras on a sphere; ranges are [low, high]."""

    kind: Literal["orbit"] = "orbit"
    elevation_degrees: tuple[float, float] = span((-10.0, 45.0), -89.0, 89.0, unit="degrees")
    azimuth_degrees: tuple[float, float] = span((-180.0, 180.0), -720.0, 720.0, unit="degrees")
    fovy_degrees: tuple[float, float] = span((40.0, 40.0), 0.0, 150.0, unit="degrees", above=True, below=True)
    # Share of the image's half height that the unit sphere covers.
    fill: tuple[float, float] = span((0.85, 1.0), 0.0, MAX_FILL, above=True)
    stratified: bool = True  # spread the azimuths of one batch evenly

    def __post_init__(self) -> None:
        check(self)
        _check_distance(self.fovy_degrees[0], self.fill[0])

    def requires(self) -> Requirements:
        """Nothing."""
        return Requirements()

    def build(self, context: "CameraContext") -> CameraSampler:
        """New random cameras for each step."""
        batch, device = context.batch, context.device
        return lambda step: sample_orbit(batch, self, step.generator("cameras"), device)


@dataclass(frozen=True)
class ViewConfig:
    """The camera that took the input picture, as far as anyone knows; its azimuth is 0."""

    elevation_degrees: float = number(0.0, -89.0, 89.0, unit="degrees")
    fovy_degrees: float = number(40.0, 0.0, 150.0, unit="degrees", above=True, below=True)
    fill: float = number(1.0, 0.0, MAX_FILL, above=True)  # as in `OrbitConfig`

    def __post_init__(self) -> None:
        check(self)
        _check_distance(self.fovy_degrees, self.fill)


@dataclass(frozen=True)
class ReferenceCameraConfig:
    """The camera of the input image, which the configuration describes as `view`."""

    kind: Literal["reference"] = "reference"

    def requires(self) -> Requirements:
        """Nothing: the camera is known without the image."""
        return Requirements()

    def build(self, context: "CameraContext") -> CameraSampler:
        """The same camera for each step and view."""
        cameras = reference_view(context.view, context.batch).to(context.device)
        return lambda _: cameras


@dataclass(frozen=True)
class CameraContext:
    """What cameras are built from."""

    batch: int  # views of a step
    device: torch.device
    view: ViewConfig = field(default_factory=ViewConfig)  # of the input image
    surface: SurfaceSampler | None = None  # of a given mesh, in the world


def fill_distance(fovy: Float[Tensor, " B"], fill: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Distance at which the unit sphere's outline covers `fill` of the image's half height.

    A sphere of radius 1 at distance d is seen under the half angle asin(1 / d).
    """
    half_angle = torch.atan(fill * torch.tan(fovy / 2))
    return 1.0 / torch.sin(half_angle)


def _check_distance(fovy_degrees: float, fill: float) -> None:
    """Raise ValueError where the unit sphere would lie beyond what cameras see."""
    # In double precision: a sine of zero would divide.
    angle, share = torch.tensor([[math.radians(fovy_degrees)], [fill]], dtype=torch.float64)
    distance = fill_distance(angle, share).item()
    if distance + 1.0 > FAR:
        raise ValueError(
            f"cameras must stand within {FAR - 1.0:g} of the origin, got {distance:.1f} for fovy_degrees "
            f"{fovy_degrees:g} and fill {fill:g}; raise one of them"
        )


def frame_points(
    points: Float[Tensor, "V 3"],
    azimuth: Float[Tensor, " C"],
    elevation: Float[Tensor, " C"],
    fovy: Float[Tensor, " C"],
    *,
    border: float,
    nearest: Float[Tensor, " C"],
) -> tuple[Float[Tensor, "C 3"], Float[Tensor, " C"]]:
    """Targets and distances of cameras that see the points' bounding square as `PhotoConfig` wants it.

    It is in the middle of the picture and 1 - `border` of it wide, as nearly as `nearest` allows.

    Args:
        points: within the unit ball.
        azimuth: directions that the cameras look from.
        elevation: likewise.
        fovy: vertical fields of view.
        border: share of the picture that the square leaves free.
        nearest: distances that no camera falls below.
    """
    distance = fill_distance(fovy, torch.ones_like(fovy))
    target = points.new_zeros(len(azimuth), 3)
    homogeneous = torch.nn.functional.pad(points, (0, 1), value=1.0)
    for _ in range(FRAMING_ROUNDS):
        cameras = orbit(azimuth, elevation, distance, fovy, target)
        clip = homogeneous @ cameras.clip_from_world.transpose(1, 2)  # [C, V, 4]
        screen = clip[..., :2] / clip[..., 3:]
        low, high = screen.amin(1), screen.amax(1)
        shift = (low + high) / 2 * (torch.tan(fovy / 2) * distance)[:, None]
        target = target + (shift[:, :, None] * cameras.camera_from_world[:, :2, :3]).sum(1)
        distance = torch.maximum(distance * (high - low).amax(-1) / 2 / (1 - border), nearest)
    return target, distance


def sample_orbit(
    batch: int, config: OrbitConfig, generator: torch.Generator, device: torch.device | str = "cpu"
) -> Cameras:
    """Draw random cameras; the numbers come from a CPU generator, so that every device sees the same ones."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    low, high = (math.radians(angle) for angle in config.azimuth_degrees)
    azimuth = uniform(0.0, 1.0)
    if config.stratified:
        azimuth = (azimuth + torch.arange(batch)) / batch
        azimuth = torch.remainder(azimuth + torch.rand(1, generator=generator), 1.0)
    elevation = uniform(*config.elevation_degrees).deg2rad()
    fovy = uniform(*config.fovy_degrees).deg2rad()
    distance = fill_distance(fovy, uniform(*config.fill))
    return orbit(low + (high - low) * azimuth, elevation, distance, fovy).to(device)


def reference_view(config: ViewConfig, batch: int = 1) -> Cameras:
    """The camera of the input picture, several times."""
    elevation = torch.full((batch,), config.elevation_degrees).deg2rad()
    fovy = torch.full((batch,), config.fovy_degrees).deg2rad()
    distance = fill_distance(fovy, torch.full((batch,), config.fill))
    return orbit(torch.zeros(batch), elevation, distance, fovy)


def turntable(
    views: int, *, elevation_degrees: float = 15.0, fovy_degrees: float = 40.0, fill: float = 0.95
) -> Cameras:
    """Evenly spaced cameras around the object, the first one in front."""
    azimuth = torch.arange(views) * (2 * math.pi / views)
    fovy = torch.full((views,), math.radians(fovy_degrees))
    elevation = torch.full((views,), math.radians(elevation_degrees))
    return orbit(azimuth, elevation, fill_distance(fovy, torch.full((views,), fill)), fovy)


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
