"""Kernels in Triton and numba, each with a reference in plain torch; imported where they are used."""

import os
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Float

from pgc3d.errors import BackendUnavailableError


def require_triton(part: str) -> None:
    """Check that Triton can be imported.

    Args:
        part: The parts that use it, in the plural, for the message.

    Raises:
        BackendUnavailableError: Triton cannot be imported.
    """
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            f"{part} on CUDA must have triton, but it cannot be imported ({error}); pip install triton"
        ) from error


def use_threads(count: int) -> None:
    """Limit the number of threads of torch and of the numba kernels in this process.

    Several processes on one computer would otherwise each start as many as there are cores.
    """
    import numba

    # Numba first: as it starts its threads it sets the number of OpenMP, which torch's threads are of too.
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(count)


def allowed_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(processes: int) -> None:
    """Limit the threads of this process to its fraction of the allowed cores, beside other processes."""
    use_threads(max(1, allowed_cores() // processes))


def kernels_for(tensor: Float[torch.Tensor, "..."], name: str, part: str) -> Any:
    """The module of kernels that works on a tensor, among the twins NAME, NAME_numba and NAME_triton.

    Args:
        tensor: float32 on CUDA takes Triton, float32 elsewhere numba, every other type plain torch.
        name: of the module in plain torch.
        part: Who needs it, in the plural.

    Raises:
        BackendUnavailableError: Triton is needed and not there.
    """
    suffix = ""
    if tensor.dtype == torch.float32:
        suffix = "_triton" if tensor.is_cuda else "_numba"
    if suffix == "_triton":
        require_triton(part)
    return import_module(f"pgc3d.kernels.{name}{suffix}")
