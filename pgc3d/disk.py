"""Writing to the disk, with one line for what it refuses."""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.plain_files import temporary_name


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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.touch(exist_ok=False)  # a folder that cannot be written shows before the work is done
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are complete on the disk before the first one shows, in order.

    Raises:
        OSError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = {path: path.with_name(temporary_name(path.name)) for path in contents}
    try:
        for path, data in contents.items():
            with temporary[path].open("xb") as stream:
                stream.write(data)
            _sync(temporary[path])
        for path, source in temporary.items():
            os.replace(source, path)  # noqa: PTH105
        for folder in {path.parent for path in contents}:
            _sync(folder)
    finally:
        for source in temporary.values():
            source.unlink(missing_ok=True)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """`replace_files` for files that a user asked for.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    try:
        replace_files(contents)
    except OSError as error:
        raise _cannot_write(next(iter(contents)), error) from error


def _sync(path: Path) -> None:
    """Force a file, or the entries of a folder, onto the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path.parent} must be a folder that can be written, with room for {path.name}, "
        f"got: {error.strerror or error}; free some space or choose another place"
    )
