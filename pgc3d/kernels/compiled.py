"""numba's compiler with a cache in a writable folder; without one every process compiles.

numba keeps machine code beside the source or below the user's home and refuses to go on where it can write
to neither: installations of another user, containers that run as a user of no name, service accounts.
"""

import logging
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import numba
import torch

logger = logging.getLogger(__name__)


def compiled(**options: Any) -> Any:
    """A decorator: `numba.njit` with these options and a cache for later processes."""

    def decorate(function: Any) -> Any:
        if options.get("parallel"):
            start_threads()
        dispatcher = numba.njit(**options)(function)
        if _keep(dispatcher):
            _tolerate_full_disk(dispatcher)
        return dispatcher

    return decorate


def start_threads() -> None:
    """Start numba's threads where they are not there yet, and leave torch's number of threads as it is.

    As numba starts them it sets the number of OpenMP to that of the cores, which torch's threads are of too:
    one of `OMP_NUM_THREADS` or `torch.set_num_threads` would be lost with the first kernel.
    """
    count = torch.get_num_threads()
    numba.set_num_threads(numba.get_num_threads())
    torch.set_num_threads(count)


def _keep(dispatcher: Any) -> bool:
    """Enable numba's cache, if necessary in the temporary folder; whether that succeeded."""
    if _enable(dispatcher):
        return True
    return _use_temporary_folder() and _enable(dispatcher)


def _enable(dispatcher: Any) -> bool:
    try:
        dispatcher.enable_caching()
    except (RuntimeError, OSError) as error:
        logger.debug("numba has no folder for compiled code: %s", error)
        return False
    return True


def _use_temporary_folder() -> bool:
    """Set numba's cache folder to one in the temporary folder, unless it is configured."""
    if numba.config.CACHE_DIR:
        return False
    folder = temporary_folder()
    if folder is None:
        return False
    numba.config.CACHE_DIR = str(folder)
    logger.debug("numba keeps compiled code in %s", folder)
    return True


def temporary_folder() -> Path | None:
    """A subfolder of the temporary folder that no other user can write to, since code is loaded from it."""
    user = os.getuid()
    try:
        parent = Path(tempfile.gettempdir())
        if parent == Path.cwd():  # the last resort of `tempfile`, where nobody expects such a folder
            return None
        folder = parent / f"pgc3d-numba-{user}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    safe = stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o022
    return folder if safe else None


def _tolerate_full_disk(dispatcher: Any) -> None:
    """Failures to write to the cache are ignored; the code is compiled again in the next process."""
    cache = dispatcher._cache
    save = cache.save_overload

    def save_overload(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except OSError as error:
            logger.debug("numba could not keep compiled code: %s", error)

    cache.save_overload = save_overload
