"""What to do with a file of a format that is not read."""

from pathlib import Path


def explain_foreign(path: Path, data: bytes) -> str | None:  # noqa: ARG001
    """One line on how to convert a format that is not read, None where nothing is known about it."""
    return None
