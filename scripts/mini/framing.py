"""Cameras of the image prior: an input view, framed like a prepared image, and matching other views.

The scale of an object cannot be inferred from an image. So the object's square covers the same fraction of
every input image, which fixes the object's scale and centre for all its other views.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pgc3d.cameras import fill_distance, frame_points, orbit
from pgc3d.types import Cameras

FOVY_DEGREES = 40.0
FILL = 1.0  # all cameras are where the unit sphere just fits the image
BORDER_RATIO = 0.2  # fraction of the input image's side that is margin
LARGEST = 1.25  # radius, in unit spheres, that the object may get by framing
CONDITION_ELEVATION_DEGREES = (-10.0, 50.0)
TARGET_ELEVATION_DEGREES = (-10.0, 80.0)


def frame(
    vertices: Float[Tensor, "V 3"], azimuth: Float[Tensor, " C"], elevation: Float[Tensor, " C"]
) -> tuple[Float[Tensor, "C 3"], Float[Tensor, " C"]]:
    """Target points and distances of cameras that frame the object in the view from each direction.

    The bounding square of the vertices is in the middle of the image and 1 - BORDER_RATIO wide. An object
    that is much longer than this view shows stays smaller, lest its other views leave the image.

    Args:
        vertices: farthest vertex at radius 1.
        azimuth: of the view that shall be framed.
        elevation: likewise.
    """
    fovy = torch.full_like(azimuth, FOVY_DEGREES).deg2rad()
    nearest = fill_distance(fovy, torch.full_like(fovy, FILL)) / LARGEST
    return frame_points(vertices, azimuth, elevation, fovy, border=BORDER_RATIO, nearest=nearest)


def view_groups(
    vertices: Float[Tensor, "V 3"],
    azimuth: Float[Tensor, "C K"],
    elevation: Float[Tensor, "C K"],
) -> Cameras:
    """C x K cameras around an object that is framed in the first view of each group.

    The camera moves instead of the object: distances are in the model's own unit, and a pinhole camera sees
    the same when everything is scaled.
    """
    center, distance = frame(vertices, azimuth[:, 0], elevation[:, 0])
    views = azimuth.shape[1]
    flat = azimuth.reshape(-1)
    fovy = torch.full_like(flat, FOVY_DEGREES).deg2rad()
    return orbit(
        flat, elevation.reshape(-1), distance.repeat_interleave(views), fovy,
        center.repeat_interleave(views, 0),
    )  # fmt: skip


def random_directions(
    views: int, generator: torch.Generator
) -> tuple[Float[Tensor, "1 K"], Float[Tensor, "1 K"]]:
    """Azimuths and elevations of a group of views; the first is that of an input image."""
    azimuth = torch.rand(1, views, generator=generator) * (2 * math.pi)
    low, high = (
        torch.tensor([first, *[other] * (views - 1)])
        for first, other in zip(CONDITION_ELEVATION_DEGREES, TARGET_ELEVATION_DEGREES, strict=True)
    )
    return azimuth, (low + (high - low) * torch.rand(1, views, generator=generator)).deg2rad()


def is_input(image: Float[Tensor, "B 3 H W"], elevation: Float[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Whether these views on white could be input images: the object is whole and not seen from above."""
    edge = torch.cat([image[..., (0, -1), :].flatten(1), image[..., (0, -1)].flatten(1)], 1)
    return (edge.amin(1) > 0.98) & (elevation <= math.radians(CONDITION_ELEVATION_DEGREES[1]))
