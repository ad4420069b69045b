"""Writing to the disk, with one line for what it refuses."""

import errno
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pgc3d.errors import RunDirectoryError
from pgc3d.exporting.atomic import replace_files


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunDirectoryError(
                f"the disk must have room, but it was full while writing {path}; free some space and use "
                "`pgc3d resume`"
            ) from error
        raise RunDirectoryError(f"{path} must be writable, got: {error.strerror or error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or all of the new one, even after a power cut."""
    with writing(path):
        replace_files({path: content})


def sha256(path: Path) -> str:
    """Hash of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_free_space(folder: Path, size: int) -> None:
    """Refuse a folder whose disk has less than `size` bytes left.

    Raises:
        RunDirectoryError: there is less.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise RunDirectoryError(
            f"the disk of {folder} must have {size / 1e6:.0f} MB free for this run, found "
            f"{free / 1e6:.0f} MB; free some space or choose another --out"
        )


def new_folder(path: Path, *, alternative: str = "") -> None:
    """Make a folder; one that exists must be empty, and an error names the alternative.

    Raises:
        RunDirectoryError: the folder holds something, or cannot be made.
    """
    with writing(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunDirectoryError(
                f"the output folder must not exist or be empty, but {path} is not; "
                f"choose another --out{alternative}"
            )
        path.mkdir(parents=True, exist_ok=True)
