"""Writing files and folders completely or not at all, with one-line errors."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgc3d.errors import InputError, RunDirectoryError
from pgc3d.plain_files import temporary_name


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunDirectoryError, in one line, for an OSError in the block; `path` is named in it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunDirectoryError(
                f"the disk must have space left, but it was full while writing {path}; free some and use "
                "`pgc3d resume`"
            ) from error
        raise RunDirectoryError(f"{path} must be writable, got: {error.strerror or error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or all of the new one, even after a power cut.

    Raises:
        RunDirectoryError: the folder cannot be written or the disk is full.
    """
    with writing(path):
        replace_files({path: content})


def sha256(path: Path) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_free_space(folder: Path, size: int) -> None:
    """Check that the disk of a folder has at least `size` bytes free.

    Args:
        folder: may be one that does not exist yet.
        size: in bytes.

    Raises:
        RunDirectoryError: it has less.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise RunDirectoryError(
            f"the disk of {folder} must have {size / 1e6:.0f} MB free for this run, got "
            f"{free / 1e6:.0f} MB; free some space or choose another --out"
        )


def new_folder(path: Path, *, alternative: str = "") -> None:
    """Make a folder; one that exists must be empty.

    Args:
        path: the folder; its parents are made too.
        alternative: end of the error message for a folder that is not empty.

    Raises:
        RunDirectoryError: the folder is not empty, or cannot be made.
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
    """Yield a temporary path beside `path`; its file replaces `path` when the block ends without an error.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.touch(exist_ok=False)  # fails before the work where the folder cannot be written
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are complete on the disk before they are renamed, in order.

    Args:
        contents: the bytes of each file, by its path.

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
    """`replace_files` for output files that the user named.

    Args:
        contents: the bytes of each file, by its path.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    try:
        replace_files(contents)
    except OSError as error:
        raise _cannot_write(next(iter(contents)), error) from error


@contextmanager
def new_files(path: Path) -> Iterator[Path]:
    """Yield the path's name in a temporary folder; what the block writes there is moved beside `path`.

    Args:
        path: must not exist; its folder is made.

    Raises:
        InputError: one of the files exists already, the folder cannot be written or the disk is full; nothing
            is replaced or left behind.
    """
    _require_new([path])
    scratch = path.with_name(temporary_name(path.stem))
    try:
        scratch.mkdir(parents=True)
        yield scratch / path.name
        made = sorted(scratch.iterdir(), key=lambda file: file.name == path.name)  # the path itself last
        _require_new(path.with_name(file.name) for file in made)
        for file in made:
            os.rename(file, path.with_name(file.name))  # noqa: PTH104
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_new(paths: Iterable[Path]) -> None:
    for path in paths:
        if os.path.lexists(path):  # a broken link exists, too
            raise InputError(
                f"--out must be a new file, but {path} exists, and no file is replaced; choose another name, "
                "or remove that one"
            )


def default_folder(parent: Path, prompt: str, seed: int) -> Path:
    """A path below `parent` that does not exist, named after the prompt and the seed."""
    return free_name(parent / f"{folder_name(prompt)}-{seed}")


def folder_name(text: str) -> str:
    """A name of up to 48 small letters, digits and dashes from a prompt or a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "run"


def free_name(path: Path) -> Path:
    """The path, with the first number from 2 that makes it new where it exists already."""
    number, candidate = 1, path
    while os.path.lexists(candidate):  # a broken link exists, too
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path.parent} must be a folder that can be written, with space for {path.name}, "
        f"got: {error.strerror or error}; free some space or choose another folder"
    )
