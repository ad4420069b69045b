"""Rendering of meshes: rasteriser backends, silhouette antialiasing, shading."""

from typing import Literal

import torch

from pgc3d.errors import BackendUnavailableError
from pgc3d.interfaces import Rasterizer


def build_rasterizer(backend: Literal["auto", "nvdiffrast", "cpu"], device: torch.device) -> Rasterizer:
    """Make the rasteriser that works on tensors of `device`; `auto` is nvdiffrast on CUDA, else the CPU one.

    Raises:
        BackendUnavailableError: the backend's library is missing, or it cannot work on `device`.
    """
    if backend == "nvdiffrast" or (backend == "auto" and device.type == "cuda"):
        from pgc3d.render.nvdiffrast import NvdiffrastRasterizer

        return NvdiffrastRasterizer(device)
    if device.type != "cpu":
        raise BackendUnavailableError(
            f"the cpu rasterizer needs tensors on the CPU, got {device}; use the cpu device or nvdiffrast"
        )
    try:
        from pgc3d.render.cpu import CpuRasterizer
    except ImportError as error:
        raise BackendUnavailableError(
            f"the cpu rasterizer needs numba, which cannot be imported ({error}); pip install numba"
        ) from error
    return CpuRasterizer()
