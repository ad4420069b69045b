"""Fast imports of large libraries: without garbage collections, and without what nothing uses.

Torch, diffusers and what they import make half a million objects that stay. The collector goes through them
again and again, and once more at the end of the process, for next to nothing: on a CPU a fifth of the time of
the imports, and four fifths of that of the end.

Only a process that is the command line's from start to end leaves libraries out. Diffusers finds out at its
import, once, whether its optional dependencies are installed: a program that calls this package as a library
may use parts of diffusers that need them.
"""

import atexit
import gc
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

owns_process: ContextVar[bool] = ContextVar("owns_process", default=False)  # set by `own_process`
# Optional dependencies of diffusers that its UNets, ControlNets and VAEs do not use: it imports peft and
# transformers for other networks and for its own adapters, and scipy for schedulers.
UNUSED_BY_DIFFUSERS = ("peft", "transformers", "scipy")


def own_process() -> None:
    """Declare that this process, from here to its end, runs nothing but the command line."""
    owns_process.set(True)
    # Registered before the libraries are imported, and so called after their functions.
    atexit.register(gc.freeze)


@contextmanager
def importing() -> Iterator[None]:
    """Import libraries in the block; in an own process their objects are not looked through later, either."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if owns_process.get():
            gc.freeze()
        if enabled:
            gc.enable()


@contextmanager
def importing_diffusers() -> Iterator[None]:
    """As `importing`, of parts of diffusers; in an own process without its dependencies that they do not use.

    After the block those are as before it, and can be imported as ever.
    """
    with importing():
        if not owns_process.get() or "diffusers" in sys.modules:
            yield
            return
        with _left_out(UNUSED_BY_DIFFUSERS), _without_distributions():
            yield


@contextmanager
def _left_out(names: Sequence[str]) -> Iterator[None]:
    """Packages cannot be imported in the block: None in `sys.modules` is Python's own mark of that."""
    present = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(present)


@contextmanager
def _without_distributions() -> Iterator[None]:
    """No package has another name as a distribution in the block.

    Diffusers looks the distributions of all installed packages up at its import, which reads some files of
    each, for the names of three quantizers.
    """

    def packages_distributions() -> Mapping[str, list[str]]:
        return {}

    original = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = packages_distributions
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = original
