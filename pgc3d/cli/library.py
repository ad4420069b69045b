"""The import of the library by commands, which check their arguments before it."""

from pgc3d.imports import importing
from pgc3d.start_times import timed


def import_library() -> None:
    """Import what runs are made with, and torch, which takes a second."""
    with timed("imports"), importing():
        from pgc3d import pipeline, presets  # noqa: F401
