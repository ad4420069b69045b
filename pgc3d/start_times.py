"""The times of the parts of a start, from the command to the first step, for the record of a run.

They are kept for the run that a thread begins next, since some parts are over before its folder exists.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_parts: ContextVar[dict[str, float] | None] = ContextVar("parts", default=None)
_begin: ContextVar[float | None] = ContextVar("begin", default=None)  # of the process, by `perf_counter`


def count_from_process() -> None:
    """Let the start of the next run count from the start of this process, which makes that run alone."""
    _begin.set(time.perf_counter() - _age())


def _age() -> float:
    """Seconds since this process was started; where the system keeps no record, those that it computed."""
    try:
        status = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace")
        # Behind the name in brackets, which may have spaces, the 20th field is in clock ticks since the boot.
        ticks = int(status.rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.process_time()


def begin() -> None:
    """Begin a run: what was timed before it is no part of it, unless the process makes that run alone."""
    if _begin.get() is None:
        _parts.set(None)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the seconds that the block takes to a part of the start."""
    start = time.perf_counter()
    try:
        yield
    finally:
        parts = _parts.get() or {}
        _parts.set(parts | {name: parts.get(name, 0.0) + time.perf_counter() - start})


def read_parts() -> dict[str, float]:
    """The seconds of each part since the last read."""
    parts = _parts.get() or {}
    _parts.set(None)
    return parts


def read_start() -> float | None:
    """Seconds since the start of the process, at the first call; None where they are not those of a run."""
    start = _begin.get()
    _begin.set(None)
    return None if start is None else time.perf_counter() - start
