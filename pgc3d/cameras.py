"""Cameras, and the one convention for axes and angles in pgc3d.

Right handed, y up. Azimuth 0 puts the camera on +z, looking at the origin; azimuth grows towards +x, so that
seen from above it runs counter-clockwise (as in Zero123). Elevation is positive above. A camera looks along
its -z with x to the right of the image, and det(R) = +1: nothing is mirrored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.ranges import check, number, schedule, span
from pgc3d.requirements import Requirements
from pgc3d.schedules import PiecewiseLinear
from pgc3d.types import Cameras, Step
from pgc3d.view_config import FAR, MAX_FILL, ViewConfig, check_distance

NEAR = 0.1
FRAMING_ROUNDS = 8

CameraSampler: TypeAlias = Callable[[Step], Cameras]
# (count, CPU generator) -> random points of a surface and their unit normals
SurfaceSampler: TypeAlias = Callable[
    [int, torch.Generator], tuple[Float[Tensor, "N 3"], Float[Tensor, "N 3"]]
]


@runtime_checkable
class Visibility(Protocol):
    """Which points of a surface cameras see; `rendering.visibility` has it."""

    def __call__(
        self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"] | None, cameras: Cameras
    ) -> Bool[Tensor, "B P"]:
        """Whether each camera sees each point."""
        ...

    def reachable(
        self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"] | None = None
    ) -> Bool[Tensor, " P"]:
        """Whether points can be seen from outside at all."""
        ...


def perspective(fovy: Float[Tensor, " B"]) -> Float[Tensor, "B 4 4"]:
    """Clip-from-camera matrices of OpenGL projections with aspect 1.

    Args:
        fovy: vertical fields of view in radians, in (0, pi).
    """
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

    Args:
        position: camera centres in the world; none may lie exactly above or below its target.
        target: points in the middle of the images.
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
    """Cameras on spheres around `target`, with the targets in the middle of their images.

    Args:
        azimuth: radians; 0 on +z, growing towards +x.
        elevation: radians in (-pi / 2, pi / 2), positive above.
        distance: from the target, in world units.
        fovy: vertical fields of view in radians.
        target: the origin when None.
    """
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
    # Positive above the object.
    elevation_degrees: tuple[float, float] = span((-10.0, 45.0), -89.0, 89.0, unit="degrees")
    # 0 is the front, and grows towards +x.
    azimuth_degrees: tuple[float, float] = span((-180.0, 180.0), -720.0, 720.0, unit="degrees")
    # Vertical field of view.
    fovy_degrees: tuple[float, float] = span((40.0, 40.0), 0.0, 150.0, unit="degrees", above=True, below=True)
    # Fraction of the image's half height that the unit sphere covers.
    fill: tuple[float, float] = span((0.85, 1.0), 0.0, MAX_FILL, above=True)
    stratified: bool = True  # spread the azimuths of one batch evenly

    def __post_init__(self) -> None:
        check(self)
        check_distance(self.fovy_degrees[0], self.fill[0])

    def requires(self) -> Requirements:
        """No requirements: the cameras are random."""
        return Requirements()

    def largest_fill(self, view: ViewConfig) -> float:
        """Upper end of `fill`."""
        return self.fill[1]

    def build(self, context: "CameraContext") -> CameraSampler:
        """A sampler of new random cameras for each step."""
        batch, device = context.batch, context.device
        return lambda step: sample_orbit(batch, self, step.generator("cameras"), device)


@dataclass(frozen=True)
class ReferenceCameraConfig:
    """The camera of the input image, which the configuration describes as `view`."""

    kind: Literal["reference"] = "reference"

    def requires(self) -> Requirements:
        """No requirements: the camera does not depend on the image's content."""
        return Requirements()

    def largest_fill(self, view: ViewConfig) -> float:
        """That of the input image."""
        return view.fill

    def build(self, context: "CameraContext") -> CameraSampler:
        """A sampler that returns the same camera for each step and view."""
        cameras = reference_view(context.view, context.batch).to(context.device)
        return lambda _: cameras


@dataclass(frozen=True)
class CameraContext:
    """What cameras are built from."""

    batch: int  # views per step
    device: torch.device
    view: ViewConfig = field(default_factory=ViewConfig)  # of the input image
    surface: SurfaceSampler | None = None  # of a given mesh, in the world
    texels: SurfaceSampler | None = None  # of it too, with as many points as there are texels
    visibility: Visibility | None = None  # on it


def fill_distance(fovy: Float[Tensor, " B"], fill: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Distance at which the unit sphere's silhouette covers the fraction `fill` of the image's half height.

    A sphere of radius 1 at distance d is seen under the half angle asin(1 / d).

    Args:
        fovy: vertical fields of view in radians.
        fill: positive fractions; above 1 the silhouette leaves the image.
    """
    half_angle = torch.atan(fill * torch.tan(fovy / 2))
    return 1.0 / torch.sin(half_angle)


def frame_points(
    points: Float[Tensor, "V 3"],
    azimuth: Float[Tensor, " C"],
    elevation: Float[Tensor, " C"],
    fovy: Float[Tensor, " C"],
    *,
    border: float,
    nearest: Float[Tensor, " C"],
) -> tuple[Float[Tensor, "C 3"], Float[Tensor, " C"]]:
    """Targets and distances of cameras that frame points as input images are framed (`InputImageConfig`).

    The points' bounding square is in the middle of the image, and its width is the fraction 1 - `border` of
    the image's, as nearly as `nearest` allows.

    Args:
        points: within the unit ball.
        azimuth: of the cameras, in radians.
        elevation: of the cameras, in radians.
        fovy: vertical fields of view in radians.
        border: fraction of the image's width beside the square, both sides together.
        nearest: least distances from the target.

    Returns:
        The targets in the world, and the distances of the cameras from them.
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
    """Random cameras on a sphere around the origin.

    Args:
        batch: number of cameras B.
        config: ranges of the angles and of the fill.
        generator: on the CPU, so that the cameras are the same on every device.
        device: of the cameras.
    """

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
    """`batch` copies of the camera of the input image, on the CPU."""
    elevation = torch.full((batch,), config.elevation_degrees).deg2rad()
    fovy = torch.full((batch,), config.fovy_degrees).deg2rad()
    distance = fill_distance(fovy, torch.full((batch,), config.fill))
    return orbit(torch.zeros(batch), elevation, distance, fovy)


def turntable(
    views: int, *, elevation_degrees: float = 15.0, fovy_degrees: float = 40.0, fill: float = 0.95
) -> Cameras:
    """Cameras at `views` evenly spaced azimuths around the origin, the first one in front (azimuth 0)."""
    azimuth = torch.arange(views) * (2 * math.pi / views)
    fovy = torch.full((views,), math.radians(fovy_degrees))
    elevation = torch.full((views,), math.radians(elevation_degrees))
    return orbit(azimuth, elevation, fill_distance(fovy, torch.full((views,), fill)), fovy)


@dataclass(frozen=True)
class CloseUpConfig:
    """An orbit whose views become close-ups; `share` and `zoom` are schedules (see `PiecewiseLinear`).

    A close-up has a random point of the surface in the middle, from the side that the surface faces, within
    the orbit's elevations. At zoom z the image shows 1 / z of the width that it would show at zoom 1.
    """

    kind: Literal["close_up"] = "close_up"
    orbit: OrbitConfig = field(default_factory=OrbitConfig)
    share: tuple[float, ...] = schedule((0.3, 0.0, 0.6, 0.5), 0.0, 1.0)  # of the views that are close-ups
    zoom: tuple[float, ...] = schedule((0.3, 1.0, 1.0, 2.5), 1.0, 10.0)  # of a close-up over progress
    # Standard deviation of the view from the surface's normal.
    spread_degrees: float = number(25.0, 0.0, 90.0, unit="degrees")

    def __post_init__(self) -> None:
        check(self)

    def requires(self) -> Requirements:
        """A mesh as input, whose surface exists before the run."""
        return Requirements(inputs=frozenset({"mesh"}))

    def largest_fill(self, view: ViewConfig) -> float:
        """That of the closest close-up."""
        return self.orbit.fill[1] * max(PiecewiseLinear(self.zoom).values)

    def build(self, context: CameraContext) -> CameraSampler:
        """A sampler of new random cameras for each step.

        Raises:
            ValueError: the context has no surface.
        """
        surface, batch, device = context.surface, context.batch, context.device
        if surface is None:
            raise ValueError("close-ups must have the surface of a mesh, got none; use other cameras")
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
    """Random cameras, of which a fraction are close-ups of the surface.

    Args:
        batch: number of cameras B.
        config: fraction and zoom over the progress of the run, and the orbit of the other cameras.
        surface: draws points of the surface and their unit normals, on the CPU.
        progress: of the run, in [0, 1].
        generator: on the CPU, so that the cameras are the same on every device.
        device: of the cameras.
    """
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
    return choose(close, near, whole).to(device)


def choose(condition: Bool[Tensor, " B"], first: Cameras, second: Cameras) -> Cameras:
    """The first cameras where `condition` is true, else the second ones."""

    def select(name: str) -> Tensor:
        if_true, if_false = getattr(first, name), getattr(second, name)
        return torch.where(condition.reshape(-1, *[1] * (if_true.dim() - 1)), if_true, if_false)

    names = ("camera_from_world", "clip_from_camera", "azimuth", "elevation", "distance")
    return Cameras(**{name: select(name) for name in names})
