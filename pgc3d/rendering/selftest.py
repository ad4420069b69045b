"""A quick check that a device's rasteriser agrees with the geometry, for machines nobody has tried."""

import torch

from pgc3d.choices import Backend
from pgc3d.rendering import build_rasterizer

SIDE = 64  # pixels


def compare_rasterizers(device: torch.device, backend: Backend = "auto") -> float:
    """The fraction of pixels of an image of two triangles whose triangle is wrong.

    A triangle at depth 0.5 is partly behind one at depth 0. Which one a pixel shows follows from the signs of
    its centre's distances to their edges; the edges pass no pixel centre.

    Args:
        device: to rasterise on.
        backend: of the rasteriser.

    Raises:
        BackendUnavailableError: there is no rasteriser for the device.
    """
    back = torch.tensor([[-0.83, -0.71, 0.5, 1.0], [0.87, -0.73, 0.5, 1.0], [0.03, 0.89, 0.5, 1.0]])
    front = torch.tensor([[-0.31, -0.93, 0.0, 1.0], [0.91, 0.11, 0.0, 1.0], [-0.57, 0.37, 0.0, 1.0]])
    faces = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32)
    fragments = build_rasterizer(backend, device).rasterize(
        torch.cat([back, front])[None].to(device), faces.to(device), (SIDE, SIDE)
    )
    expected = torch.where(_inside(front), 2, torch.where(_inside(back), 1, 0))
    return float((fragments.data[0, ..., 3].round().cpu() != expected).double().mean())


def _inside(corners: torch.Tensor) -> torch.Tensor:
    """Which pixel centres of the image lie in a triangle of clip space with w = 1; row 0 is at y = 1."""
    place = (torch.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = torch.meshgrid(-place, place, indexing="ij")
    inside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    for start, end in zip(corners, corners.roll(-1, 0), strict=True):
        inside &= (end[0] - start[0]) * (y - start[1]) - (end[1] - start[1]) * (x - start[0]) > 0
    return inside
