"""Positions in single precision, where that does not bend the mesh."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgc3d.errors import InputError

MAX_BEND = 1e-4  # by which vertices may move when they are rounded, of the mesh's extent


def in_single(vertices: NDArray[np.float64], path: Path) -> Tensor:
    """Vertices [V, 3] in float32.

    Raises:
        InputError: that would bend the mesh, since it is small and far from the origin.
    """
    finite = vertices[np.isfinite(vertices).all(axis=1)]
    if len(finite):
        extent = float(np.ptp(finite, axis=0).max())
        with np.errstate(over="ignore"):
            single = finite.astype(np.float32)
        moved = np.abs(finite - single).max()
        if not np.isfinite(single).all():
            raise InputError(
                f"vertices must be finite, got numbers beyond those of single precision in {path}; "
                "scale the mesh down"
            )
        if extent > 0 and moved > MAX_BEND * extent:
            raise InputError(
                f"the mesh must lie near the origin, but in {path} single precision moves vertices by "
                f"{min(moved / extent, 9.99):.2%} of its size; move it to the origin"
            )
    return torch.from_numpy(vertices).float()
