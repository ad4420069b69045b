"""Which part of a mesh's texels a run's cameras saw."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pgc3d.rendering.visibility import SurfaceVisibility
from pgc3d.types import Cameras


@dataclass(frozen=True)
class Coverage:
    """Fractions of the texels on a surface; together with `seen` they are 1."""

    unseen: float  # that a camera outside could see, and none of the run's did
    hidden: float  # inside, where no camera outside can see

    @property
    def seen(self) -> float:
        """The fraction that cameras of the run saw."""
        return 1.0 - self.unseen - self.hidden

    @property
    def remark(self) -> str:
        """A line for the user."""
        return (
            f"cameras saw {self.seen:.1%} of the texels, {self.hidden:.1%} lie inside, where none can, and "
            f"{self.unseen:.1%} were not seen; these have the colours of their neighbours"
        )


def seen_points(
    cameras: Iterable[Cameras],
    points: Float[Tensor, "P 3"],
    normals: Float[Tensor, "P 3"],
    visibility: SurfaceVisibility,
) -> Bool[Tensor, " P"]:
    """Whether any of the cameras sees each point."""
    seen = torch.zeros(len(points), dtype=torch.bool, device=visibility.vertices.device)
    for some in cameras:
        seen |= visibility(points, normals, some).any(dim=0)
    return seen


def measure_coverage(
    cameras: Iterable[Cameras],
    points: Float[Tensor, "P 3"],
    normals: Float[Tensor, "P 3"],
    visibility: SurfaceVisibility,
) -> Coverage:
    """The coverage of points that were drawn by texels."""
    seen = seen_points(cameras, points, normals, visibility)
    outside = visibility.reachable(points, normals)
    return Coverage(
        unseen=float((outside & ~seen).float().mean()), hidden=float((~outside & ~seen).float().mean())
    )
