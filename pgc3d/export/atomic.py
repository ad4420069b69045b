"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pgc3d.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces `path` when the block ends well.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        temporary.touch()  # a folder that cannot be written shows before the work is done
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)  # noqa: PTH105
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files that belong together: all are complete on the disk before the first one shows, in order.

    Raises:
        InputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    temporary = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp") for path in contents}
    current = next(iter(contents))
    try:
        for path, data in contents.items():
            current = path
            temporary[path].write_bytes(data)
            _sync(temporary[path])
        for current, source in temporary.items():
            os.replace(source, current)  # noqa: PTH105
        _sync(current.parent)
    except OSError as error:
        raise _cannot_write(current, error) from error
    finally:
        for source in temporary.values():
            source.unlink(missing_ok=True)


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
