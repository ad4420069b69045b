"""Kernels in Triton and numba, each with a reference in plain torch; imported where they are used."""

import torch

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
            f"{part} on CUDA need triton, which cannot be imported ({error}); pip install triton"
        ) from error


def use_threads(count: int) -> None:
    """Limit the number of threads of torch and of the numba kernels in this process.

    Several processes on one computer would otherwise each start as many as there are cores.
    """
    import numba

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
