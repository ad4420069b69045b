"""Results that are kept until their files change."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
Stamp = tuple[int, int]  # time of the last change in nanoseconds, and size


def stamp(path: Path) -> Stamp | None:
    """What changes when a file is written; None where it is missing."""
    try:
        found = path.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_mtime_ns, found.st_size


class Latest(Generic[T]):
    """The result of a function for the newest key; threads wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: tuple[object, T] | None = None

    def get(self, key: object, make: Callable[[], T]) -> T:
        """The result for a key, made where the last key was another one.

        Args:
            key: of the result.
            make: the function; what it raises is raised here, and nothing is kept then.
        """
        with self._lock:
            if self._found is None or self._found[0] != key:
                self._found = key, make()
            return self._found[1]
