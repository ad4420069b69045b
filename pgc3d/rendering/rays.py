"""Rays of cameras through the unit ball, and the samples on them where space is occupied.

Nothing waits for the device: samples go into buffers of a capacity that is known before, see `march`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.kernels.composite import Spans
from pgc3d.types import Cameras


@dataclass(frozen=True)
class Rays:
    """R rays in the world, view after view and row after row, with where they lie inside the unit ball."""

    origin: Float[Tensor, "R 3"]
    direction: Float[Tensor, "R 3"]  # unit
    near: Float[Tensor, " R"]  # distances along the ray; near = far where it misses the ball
    far: Float[Tensor, " R"]
    cosine: Float[Tensor, " R"]  # between the ray and the camera's -z

    def __len__(self) -> int:
        return len(self.near)


@dataclass(frozen=True)
class Samples:
    """K points on rays, front to back; rows of no ray hold the origin."""

    points: Float[Tensor, "K 3"]
    distance: Float[Tensor, " K"]  # along the ray
    spans: Spans
    total: Int[Tensor, ""]  # points that there are; above K some are missing
    length: float  # of the ray that a sample stands for


def camera_rays(cameras: Cameras, resolution: int) -> Rays:
    """One ray through the centre of every pixel of square images."""
    device, count = cameras.azimuth.device, len(cameras)
    place = (torch.arange(resolution, device=device) + 0.5) / resolution * 2 - 1
    y, x = torch.meshgrid(-place, place, indexing="ij")
    plane = torch.stack([x, y], dim=-1) / cameras.clip_from_camera[:, :1, :1, None]  # [B, H, W, 2]
    local = torch.cat([plane, -torch.ones_like(plane[..., :1])], dim=-1).reshape(count, -1, 3)
    length = local.norm(dim=-1)
    direction = (local / length[..., None]) @ cameras.camera_from_world[:, :3, :3]
    origin = cameras.position[:, None].expand_as(direction)
    return rays_through_ball(origin.reshape(-1, 3), direction.reshape(-1, 3), 1.0 / length.reshape(-1))


def rays_through_ball(
    origin: Float[Tensor, "R 3"], direction: Float[Tensor, "R 3"], cosine: Float[Tensor, " R"]
) -> Rays:
    """Rays with their entry to and exit from the unit ball; directions are unit vectors."""
    along = (origin * direction).sum(-1)
    inside = (along.square() - origin.square().sum(-1) + 1.0).clamp_min(0.0).sqrt()
    near, far = (-along - inside).clamp_min(0.0), (-along + inside).clamp_min(0.0)
    return Rays(origin, direction, near, far, cosine)


@torch.no_grad()
def march(
    rays: Rays,
    occupied: Bool[Tensor, "N N N"],
    *,
    stations: int,
    offset: Float[Tensor, " R"],
    capacity: int | None = None,
) -> Samples:
    """Samples at equal distances along rays where the grid over [-1, 1]^3 is occupied.

    Args:
        rays: inside the unit ball.
        occupied: by x, y and z.
        stations: on a diameter of the ball, so that each stands for 2 / stations of a ray.
        offset: of the first station, in [0, 1) of their distance; random in a training step.
        capacity: rows of the buffers, so that the host need not wait for their number; None waits.

    Returns:
        The samples; those that do not fit are missing, and `total` states how many there are.
    """
    if capacity is None and offset.dtype == torch.float32 and not offset.is_cuda:
        return _march_on_cpu(rays, occupied, stations, offset)
    count, length = len(rays), 2.0 / stations
    station = torch.arange(stations, device=rays.near.device)
    distance = rays.near[:, None] + (station + offset[:, None]) * length
    points = rays.origin[:, None] + distance[..., None] * rays.direction[:, None]
    live = (distance < rays.far[:, None]) & _lookup(occupied, points)
    slot = live.reshape(-1).cumsum(0)
    total = slot[-1]
    rows = int(total) if capacity is None else capacity
    target = torch.where(live.reshape(-1) & (slot <= rows), slot - 1, rows)
    index = torch.zeros(rows + 1, dtype=torch.long, device=slot.device)
    index.scatter_(0, target, torch.arange(count * stations, device=slot.device))
    index = index[:rows]
    used = torch.arange(rows, device=slot.device) < total
    number = live.sum(1)
    start = (number.cumsum(0) - number).clamp(max=rows)
    spans = Spans(
        start=start,
        count=torch.minimum(number, rows - start),
        ray=torch.where(used, index // stations, count),
    )
    flat = points.reshape(-1, 3)[index]
    return Samples(
        points=torch.where(used[:, None], flat, 0.0),
        distance=torch.where(used, distance.reshape(-1)[index], 0.0),
        spans=spans,
        total=total,
        length=length,
    )


def _march_on_cpu(
    rays: Rays, occupied: Bool[Tensor, "N N N"], stations: int, offset: Float[Tensor, " R"]
) -> Samples:
    from pgc3d.kernels.march_numba import march as kernel

    span = torch.stack([rays.near, rays.far])
    points, distance, ray, start, count = kernel(
        rays.origin, rays.direction, span, offset, occupied, stations=stations
    )
    total = count.sum()
    return Samples(points, distance, Spans(start, count, ray), total, 2.0 / stations)


def _lookup(grid: Bool[Tensor, "N N N"], points: Float[Tensor, "*P 3"]) -> Bool[Tensor, "*P"]:
    """The values of the cells that points of [-1, 1]^3 lie in."""
    size = grid.shape[0]
    cell = ((points + 1.0) * (0.5 * size)).long().clamp(0, size - 1)
    return grid.reshape(-1)[(cell[..., 0] * size + cell[..., 1]) * size + cell[..., 2]]
