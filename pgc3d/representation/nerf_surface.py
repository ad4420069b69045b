"""The surface of a NeRF: the level of its density whose silhouettes agree best with those of the volume."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool3d, pad

from pgc3d.cameras import turntable
from pgc3d.errors import DivergedError
from pgc3d.geometry.marching_tetrahedra import grid_points, march
from pgc3d.geometry.normals import vertex_normals
from pgc3d.geometry.sdf import redistance, sample_grid
from pgc3d.interfaces import Rasterizer
from pgc3d.rendering.mesh_renderer import project
from pgc3d.types import Cameras, Mesh, Rendering, Step, Views

LEVELS = torch.logspace(-0.3, 2.3, 24).tolist()  # densities that are tried, from 0.5 to 200
VIEWS, SIDE = 8, 128  # in which silhouettes are compared
# Opacity from which on a pixel of the volume belongs to its silhouette. Thin parts stay translucent for long:
# at one half, legs that are visible would be left out.
SEEN = 0.3
LEAST_ISLAND = 0.02  # of the largest component's volume
CLAMP = 4.0  # largest absolute value of a field
LEAST = 1e-3  # distance of a field's values from 0
LOST = 0.02  # fraction of the volume's silhouette whose loss is stated


@runtime_checkable
class Volume(Protocol):
    """What a surface is extracted from."""

    @property
    def device(self) -> torch.device:
        """Of the points and cameras."""

    def density_at(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, " P"]:
        """The density at points in the world, at least 0, per world unit."""

    def render(self, views: Views, resolution: int, step: Step | None) -> Rendering:
        """See `Representation.render`."""


@dataclass(frozen=True)
class ExtractedSurface:
    """A surface, its distance field, and how it was found."""

    mesh: Mesh
    sdf: Callable[[Float[Tensor, "P 3"]], Float[Tensor, " P"]]  # negative inside
    level: float  # density on the surface
    agreement: float  # mean intersection over union of the silhouettes
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Grid:
    """A density at the points of a grid over [-1, 1]^3; rays see nothing of it beyond the unit ball."""

    density: Float[Tensor, "X Y Z"]
    outside: Float[Tensor, "X Y Z"]  # distance to the unit ball, negative in it

    def inside(self, level: float) -> Bool[Tensor, "X Y Z"]:
        """Where the density is above a level."""
        return (self.density > level) & (self.outside < 0)

    def level_set(self, level: float, inside: Bool[Tensor, "X Y Z"]) -> Float[Tensor, "X Y Z"]:
        """A field that is negative on a set of points, with its zero where the density is a level.

        The logarithm is closer to linear across the surface than the density itself. Where a dense scene
        reaches the unit ball, the zero is on that.
        """
        density = self.density.clamp_min(1e-6).where(self.outside < 0, torch.inf)
        slope = CLAMP * (len(density) - 1) / 4.0  # the field is linear within two cells of the ball
        field = (level / density).log().maximum(slope * self.outside).clamp(-CLAMP, CLAMP)
        return torch.where(inside, field.clamp(max=-LEAST), field.clamp(min=LEAST))


def extract_surface(volume: Volume, resolution: int, rasterizer: Rasterizer) -> ExtractedSurface:
    """The surface on a grid of `resolution` cells along an axis; islands and inner surfaces are removed.

    Raises:
        DivergedError: no level has a surface.
    """
    size = resolution + 1
    device = volume.device
    points = grid_points(resolution, device)
    grid = _Grid(
        density=volume.density_at(points).reshape(size, size, size),
        outside=(points.norm(dim=-1) - 1.0).reshape(size, size, size),
    )
    cameras = turntable(VIEWS).to(device)
    seen = volume.render(Views(cameras, torch.ones(VIEWS, 3, device=device)), SIDE, None).alpha > SEEN
    level = _best_level(grid, seen, cameras, rasterizer)
    field = grid.level_set(level, _solid(grid.inside(level)))
    mesh = _mesh(field)
    shown = _silhouettes(mesh, cameras, rasterizer)
    agreement = _agreement(seen, shown)
    missing = seen & ~shown
    distance = redistance(field)[..., None]
    return ExtractedSurface(
        mesh=mesh,
        sdf=lambda points: sample_grid(distance, points)[:, 0],
        level=level,
        agreement=agreement,
        notes=_notes(level, agreement, float(missing.sum() / seen.sum().clamp_min(1))),
    )


def _notes(level: float, agreement: float, lost: float) -> tuple[str, ...]:
    first = f"surface at density {level:.3g}: its silhouettes agree with the volume's to {agreement:.2f}"
    if lost <= LOST:
        return (first,)
    return first, f"{100 * lost:.0f} % of the volume's silhouettes is thinner than the grid and was lost"


def _best_level(
    grid: "_Grid", seen: Bool[Tensor, "B H W 1"], cameras: Cameras, rasterizer: Rasterizer
) -> float:
    """The level of `LEVELS` whose silhouettes agree best with those of the volume.

    Raises:
        DivergedError: no level has a surface.
    """
    found: list[tuple[float, float]] = []
    for level in LEVELS:
        inside = _inner(grid.inside(level))
        if bool(inside.any()):
            mesh = _mesh(grid.level_set(level, inside))
            found.append((_agreement(seen, _silhouettes(mesh, cameras, rasterizer)), level))
    if not found:
        raise DivergedError(
            f"the volume must have a surface, but its density is nowhere above {LEVELS[0]:.1f}; train "
            "longer, or lower the weight of sparsity"
        )
    _, level = max(found)
    return level


def _inner(inside: Bool[Tensor, "X Y Z"]) -> Bool[Tensor, "X Y Z"]:
    """A set without the border of the grid, so that its surface is closed."""
    inner = torch.zeros_like(inside)
    inner[1:-1, 1:-1, 1:-1] = inside[1:-1, 1:-1, 1:-1]
    return inner


def _solid(inside: Bool[Tensor, "X Y Z"]) -> Bool[Tensor, "X Y Z"]:
    """A set without inner surfaces and islands."""
    return _without_islands(_without_voids(_inner(inside)))


def _without_voids(inside: Bool[Tensor, "X Y Z"]) -> Bool[Tensor, "X Y Z"]:
    """The set with all points that cannot be reached from the border: NeRFs are hollow."""
    outside = ~inside
    border = torch.zeros_like(inside)
    border[0] = border[-1] = border[:, 0] = border[:, -1] = border[..., 0] = border[..., -1] = True
    reached = _spread((border & outside).float(), outside)
    return ~(reached > 0)


def _without_islands(inside: Bool[Tensor, "X Y Z"]) -> Bool[Tensor, "X Y Z"]:
    """The components with at least `LEAST_ISLAND` of the largest one's volume."""
    number = torch.arange(1, inside.numel() + 1, device=inside.device).reshape(inside.shape)
    label = _spread(torch.where(inside, number, 0).double(), inside)
    names, index, volume = torch.unique(label, return_inverse=True, return_counts=True)
    volume = torch.where(names > 0, volume, 0)
    return (volume >= LEAST_ISLAND * volume.max())[index] & inside


def _spread(values: Float[Tensor, "X Y Z"], within: Bool[Tensor, "X Y Z"]) -> Float[Tensor, "X Y Z"]:
    """The largest value of each connected component of a set, connected as the surface's tetrahedra are.

    Their edges lead from a point p to p + d and p - d, d in {0, 1}^3, see `marching_tetrahedra`. By all 26
    neighbours, parts would count as one that the surface separates.
    """
    while True:
        padded = pad(values, (1, 1, 1, 1, 1, 1))[None, None]  # values are not negative
        blocks = max_pool3d(padded, 2, 1)[0, 0]
        around = torch.maximum(blocks[1:, 1:, 1:], blocks[:-1, :-1, :-1])
        spread = torch.where(within, around, 0.0)
        if torch.equal(spread, values):
            return spread
        values = spread


def _mesh(field: Float[Tensor, "X Y Z"]) -> Mesh:
    vertices, faces = march(field)
    return Mesh(vertices, faces, vertex_normals(vertices, faces))


def _silhouettes(mesh: Mesh, cameras: Cameras, rasterizer: Rasterizer) -> Bool[Tensor, "B H W 1"]:
    clip = project(mesh.vertices, cameras)
    return rasterizer.rasterize(clip, mesh.faces, (SIDE, SIDE)).mask > 0


def _agreement(first: Bool[Tensor, "B H W 1"], second: Bool[Tensor, "B H W 1"]) -> float:
    """Mean intersection over union."""
    both = (first & second).sum((1, 2, 3)).float()
    either = (first | second).sum((1, 2, 3)).clamp_min(1)
    return float((both / either).mean())
