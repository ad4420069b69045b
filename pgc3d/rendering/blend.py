"""Colours of a surface from the images of several views: at each point, the mean over the views that see it.

The surface is that of depth images, so that any representation has one and no texture coordinates are used;
the mean is that in a texture without limit of resolution (SyncMVD, arXiv 2311.12891, section 3.2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import grid_sample, max_pool2d, normalize

from pgc3d.rendering.mesh_renderer import project
from pgc3d.rendering.rays import camera_rays
from pgc3d.rendering.visibility import GRAZING
from pgc3d.types import Cameras, Rendering

SLACK = 1.5  # pixels by which a point may lie behind what a view shows
STEEP = 16.0  # pixels of depth within a pixel's neighbours above which they are an edge

Image = Float[Tensor, "V H W 3"]


@dataclass(frozen=True)
class Correspondence:
    """The P surface points at the pixels of V square views, and where each view sees them."""

    pixel: Int[Tensor, " P"]  # of a point, in the flattened [V, H, W]
    place: Float[Tensor, "V P 2"]  # in each view's image, as `grid_sample` takes it
    cosine: Float[Tensor, "V P"]  # between the normal and the direction to the camera, 0 where not seen

    def blend(self, images: Image, sharpness: float) -> Image:
        """The images with the mean colour of all views at each point; other pixels stay as they are.

        Args:
            images: of the views.
            sharpness: exponent of the cosines that are the weights; 0 for equal ones.
        """
        total = torch.zeros(len(self.pixel), 3, device=images.device)
        weights = torch.zeros(len(self.pixel), 1, device=images.device)
        for image, place, cosine in zip(images, self.place, self.cosine, strict=True):
            weight = torch.where(cosine > 0, cosine**sharpness, 0.0)[:, None]
            found = grid_sample(
                image.permute(2, 0, 1)[None], place[None, None], padding_mode="border", align_corners=False
            )
            total = total + weight * found[0, :, 0].T
            weights = weights + weight
        flat = images.reshape(-1, 3)
        mean = torch.where(weights > 0, total / weights.clamp_min(1e-12), flat[self.pixel])
        return flat.index_put((self.pixel,), mean).view_as(images)


@torch.no_grad()
def correspond(rendering: Rendering, cameras: Cameras) -> Correspondence:
    """Where each view sees the points that all views show.

    A view sees a point where nothing lies before it, not at a grazing angle, from the side that it shows, and
    not at an edge of the depth, where a pixel mixes the colours of several surfaces. Both sides of a surface
    count, as in renders.

    Args:
        rendering: of square images.
        cameras: of the views.
    """
    count, side = len(cameras), rendering.depth.shape[1]
    pixel = torch.nonzero(rendering.depth.reshape(-1) > 0)[:, 0]
    rays = camera_rays(cameras, side)
    along = rendering.depth.reshape(-1)[pixel] / rays.cosine[pixel]
    points = rays.origin[pixel] + along[:, None] * rays.direction[pixel]
    normals = normalize(2 * rendering.normal.reshape(-1, 3)[pixel] - 1, dim=-1)
    smooth = _smooth(rendering.depth, cameras)
    places, cosines = [], []
    for view in range(count):
        one = cameras[view : view + 1]
        place, cosine = _seen_by(one, points, normals, rendering, smooth, view)
        places.append(place)
        cosines.append(cosine)
    return Correspondence(pixel, torch.stack(places), torch.stack(cosines))


def _seen_by(
    camera: Cameras,
    points: Float[Tensor, "P 3"],
    normals: Float[Tensor, "P 3"],
    rendering: Rendering,
    smooth: Bool[Tensor, "V H W"],
    view: int,
) -> tuple[Float[Tensor, "P 2"], Float[Tensor, " P"]]:
    """Where the view sees the points, and the cosines at which it does."""
    side = rendering.depth.shape[1]
    clip = project(points, camera)[0]
    depth = clip[:, 3].clamp_min(1e-6)
    place = torch.stack([clip[:, 0], -clip[:, 1]], dim=-1) / depth[:, None]
    inside = (clip[:, 3] > 1e-6) & (place.abs() < 1).all(dim=-1)
    column, row = ((place + 1) / 2 * side).long().clamp(0, side - 1).unbind(-1)
    towards = normalize(camera.position - points, dim=-1)
    cosine = (normals * towards).sum(-1)
    shown = 2 * rendering.normal[view, row, column] - 1
    same_side = (shown * normals).sum(-1) > 0
    slack = SLACK * _pixel(depth, camera.clip_from_camera[0, 1, 1], side) / cosine.abs().clamp_min(GRAZING)
    nearest = depth <= rendering.depth[view, row, column, 0] + slack
    seen = inside & same_side & nearest & smooth[view, row, column] & (cosine.abs() >= GRAZING)
    return place, torch.where(seen, cosine.abs(), 0.0)


def _smooth(depth: Float[Tensor, "V H W 1"], cameras: Cameras) -> Bool[Tensor, "V H W"]:
    """Pixels that show a surface, as all their neighbours do, without a step of the depth."""
    rows = depth.permute(0, 3, 1, 2)
    far = max_pool2d(rows, 3, stride=1, padding=1)
    near = -max_pool2d(-rows, 3, stride=1, padding=1)
    focal = cameras.clip_from_camera[:, 1, 1, None, None, None]
    steps = (far - near) <= STEEP * _pixel(far, focal, depth.shape[1])
    return ((near > 0) & steps)[:, 0]


def _pixel(depth: Tensor, focal: Tensor, side: int) -> Tensor:
    """Side of a pixel at a depth along the view axis, in units of the world."""
    return 2 * depth / (side * focal)
