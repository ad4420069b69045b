"""Which points of a surface cameras see."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pgc3d.cameras import fill_distance, orbit
from pgc3d.geometry.normals import face_normals
from pgc3d.interfaces import Rasterizer
from pgc3d.rendering.mesh_renderer import project
from pgc3d.types import Cameras

GRAZING = 0.15  # cosine between a point's normal and the view below which it is not seen
SLACK = 1.0  # pixels by which a point may lie behind the surface that is drawn
AT_ONCE = 32  # cameras
AROUND = 96  # directions from which everything that is not inside is seen
TALLEST = math.radians(89)  # elevation, beyond which a camera has no upright image


@dataclass(frozen=True)
class SurfaceVisibility:
    """Tests of visibility on a fixed surface, on one device."""

    vertices: Float[Tensor, "V 3"]  # in the world
    faces: Int[Tensor, "F 3"]
    rasterizer: Rasterizer
    resolution: int = 128  # of the depth images

    @torch.no_grad()
    def __call__(
        self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"] | None, cameras: Cameras
    ) -> Bool[Tensor, "B P"]:
        """Whether each camera sees each point: in its image, nothing before it, and not at a grazing angle.

        Both sides of a surface are seen, as in renders. Points in space, which have no normals, are seen
        where nothing is before them.
        """
        device = self.vertices.device
        points = points.to(device)
        normals = None if normals is None else normals.to(device)
        seen = [torch.zeros(0, len(points), dtype=torch.bool, device=device)]
        for start in range(0, len(cameras), AT_ONCE):
            seen.append(self._seen(points, normals, cameras[start : start + AT_ONCE].to(device)))
        return torch.cat(seen)

    @cached_property
    def _face_normals(self) -> Float[Tensor, "F 3"]:
        return face_normals(self.vertices, self.faces)

    def _seen(self, points: Tensor, normals: Tensor | None, cameras: Cameras) -> Bool[Tensor, "B P"]:
        size = self.resolution
        fragments = self.rasterizer.rasterize(project(self.vertices, cameras), self.faces, (size, size))
        drawn = self.rasterizer.interpolate(self.vertices[None], fragments, self.faces)
        clip = project(points, cameras)  # [B, P, 4]
        place = clip[..., :2] / clip[..., 3:].clamp_min(1e-6)
        inside = (clip[..., 3] > 1e-6) & (place.abs() < 1).all(dim=-1)
        column = ((place[..., 0] + 1) / 2 * size).long().clamp(0, size - 1)
        row = ((1 - place[..., 1]) / 2 * size).long().clamp(0, size - 1)
        view = torch.arange(len(cameras), device=points.device)[:, None]
        hit = fragments.triangle[view, row, column] >= 0
        towards = cameras.position[:, None] - points
        distance = towards.norm(dim=-1)
        nearest = (cameras.position[:, None] - drawn[view, row, column]).norm(dim=-1)
        cosine, facing = torch.ones_like(distance), hit
        if normals is not None:
            cosine = (normals * towards).sum(-1).abs() / distance.clamp_min(1e-9)
            # of a thin plate, the other side lies hardly farther away
            drawn_normal = self._face_normals[fragments.triangle[view, row, column]]
            facing = (drawn_normal * normals).sum(-1) > 0
        pixel = 2 * distance / (size * cameras.clip_from_camera[:, 1, 1, None])
        slack = SLACK * pixel / cosine.clamp_min(GRAZING)
        nearer = distance <= nearest + slack
        visible = nearer | ~hit if normals is None else hit & facing & nearer
        return inside & visible & (cosine >= GRAZING)

    def reachable(
        self, points: Float[Tensor, "P 3"], normals: Float[Tensor, "P 3"] | None = None
    ) -> Bool[Tensor, " P"]:
        """Whether points can be seen from outside at all; those beyond the unit ball can."""
        beyond = points.to(self.vertices.device).norm(dim=1) > 1.0
        return beyond | self(points, normals, cameras_around()).any(dim=0)


def cameras_around(count: int = AROUND) -> Cameras:
    """Cameras in directions that are spread evenly over the sphere, each with the unit ball in its image.

    The directions are those of a Fibonacci lattice (Gonzalez 2010).
    """
    index = torch.arange(count)
    elevation = torch.asin(1 - (2 * index + 1) / count).clamp(-TALLEST, TALLEST)
    azimuth = torch.remainder(index * math.pi * (3 - math.sqrt(5)), 2 * math.pi)
    fovy = torch.full((count,), math.radians(20.0))
    return orbit(azimuth, elevation, fill_distance(fovy, torch.ones(count)), fovy)
