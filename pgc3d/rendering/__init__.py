"""Rendering of meshes: rasteriser backends, silhouette antialiasing, shading."""

import torch

from pgc3d.choices import Backend
from pgc3d.errors import BackendUnavailableError
from pgc3d.interfaces import Rasterizer


def build_rasterizer(backend: Backend, device: torch.device) -> Rasterizer:
    """The rasteriser for tensors of `device`; `auto` is triton on CUDA, cpu on a CPU.

    Raises:
        BackendUnavailableError: the backend's library is missing, or it does not support `device`.
    """
    if backend == "auto":
        backend = "triton" if device.type == "cuda" else "cpu"
    if backend == "nvdiffrast":
        from pgc3d.rendering.nvdiffrast import NvdiffrastRasterizer

        return NvdiffrastRasterizer(device)
    if backend == "triton":
        return _triton_rasterizer(device)
    if device.type != "cpu":
        raise BackendUnavailableError(
            f"the cpu rasterizer must have tensors on the CPU, got {device}; use the cpu device, or auto"
        )
    try:
        from pgc3d.rendering.cpu import CpuRasterizer
    except ImportError as error:
        raise BackendUnavailableError(
            f"the cpu rasterizer must have numba, but it cannot be imported ({error}); pip install numba"
        ) from error
    return CpuRasterizer()


def _triton_rasterizer(device: torch.device) -> Rasterizer:
    if device.type != "cuda" or not torch.cuda.is_available():
        raise BackendUnavailableError(
            f"the triton rasterizer must have a CUDA device, got {device} "
            f"(CUDA available: {torch.cuda.is_available()}); use --device cpu, or a CUDA build of torch"
        )
    try:
        from pgc3d.rendering.triton import TritonRasterizer
    except ImportError as error:
        raise BackendUnavailableError(
            f"the triton rasterizer must have triton, but it cannot be imported ({error}); pip install "
            "triton, or --set run.rasterizer=nvdiffrast"
        ) from error
    return TritonRasterizer()
