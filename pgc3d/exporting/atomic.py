"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgc3d.errors import InputError
from pgc3d.plain_files import temporary_name


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
