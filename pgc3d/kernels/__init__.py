"""Kernels in Triton and numba, each with a twin in plain torch; they are imported where they are used."""

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
