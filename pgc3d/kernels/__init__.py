"""Kernels in Triton and numba, each with a twin in plain torch; they are imported where they are used."""

import torch

from pgc3d.errors import BackendUnavailableError


def require_triton(part: str) -> None:
    """See that Triton is there.

    Args:
        part: Who needs it, in the plural.

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
    """Let torch and the numba kernels take at most so many threads in this process.

    Several processes on one computer would otherwise each start as many as there are cores.
    """
    import numba

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
