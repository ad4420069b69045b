"""Files of a folder from an untrusted source: no link is followed, and no file outside is read or written.

The checks hold for a folder that no other process changes at the same time, for which a run has its lock.
"""

import os
import re
import secrets
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from pgc3d.errors import RunDirectoryError

KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFREG: "a file",
}
TEMPORARY = re.compile(r"\..+\.pgc3d-[0-9a-f]{8}\.tmp(\.[A-Za-z0-9]{1,8})?")


def temporary_name(name: str) -> str:
    """A new name for a temporary file, with the suffix of `name`, from which encoders derive the format."""
    suffix = PurePosixPath(name).suffix
    suffix = suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", suffix) else ""
    stem = name.removesuffix(suffix)
    while len(os.fsencode(stem)) > 200:  # a name may have 255 bytes
        stem = stem[:-1]
    return f".{stem}.pgc3d-{secrets.token_hex(4)}.tmp{suffix}"


def is_temporary(name: str) -> bool:
    """Whether a name is one that `temporary_name` makes."""
    return TEMPORARY.fullmatch(name) is not None


def require_inside(name: str) -> PurePosixPath:
    """The relative path of a file inside a folder.

    Raises:
        ValueError: the name leads, or could lead on some system, out of the folder.
    """
    path, other = PurePosixPath(name), PureWindowsPath(name)
    is_unsafe = (
        not path.parts
        or path.is_absolute()
        or bool(other.anchor)
        or ".." in (*path.parts, *other.parts)
        or any(not letter.isprintable() for letter in name)
        or len(name) > 255
    )
    if is_unsafe:
        raise ValueError(f"a file of a run must be named inside its folder, got {name[:80]!r}")
    return path


def require_file(path: Path) -> None:
    """Check that a path is a regular file.

    Raises:
        RunDirectoryError: it is a link, a folder, or a device.
        FileNotFoundError: it does not exist.
    """
    _require(path, path.lstat().st_mode, stat.S_IFREG)


def require_folder(path: Path) -> None:
    """Check that a path is a folder and no link.

    Raises:
        RunDirectoryError: it is a link, a file, or a device.
        FileNotFoundError: it does not exist.
    """
    _require(path, path.lstat().st_mode, stat.S_IFDIR)


def _require(path: Path, mode: int, expected: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind != expected:
        raise RunDirectoryError(
            f"{path} must be {KINDS[expected]} of the run itself, got {KINDS.get(kind, 'something else')}; "
            "a run folder holds neither links nor devices: remove it, or start a new run"
        )


def read_file(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        RunDirectoryError: it is a link, a folder, or a device.
        OSError: it cannot be read.
    """
    require_file(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        _require(path, os.fstat(descriptor).st_mode, stat.S_IFREG)
        return stream.read()


def open_in_place(folder: Path, name: str, flags: int) -> int:
    """A descriptor of a file in a folder, to be written in place; a missing file is made.

    Args:
        folder: must exist.
        name: of the file.
        flags: as of `os.open`.

    Raises:
        RunDirectoryError: it is a link, a folder, or a device.
        OSError: it cannot be opened.
    """
    path = folder / name
    if os.path.lexists(path):
        require_file(path)
    parent = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o644, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        _require(path, os.fstat(descriptor).st_mode, stat.S_IFREG)
    except RunDirectoryError:
        os.close(descriptor)
        raise
    return descriptor


def is_shared(descriptor: int) -> bool:
    """Whether a file has several hard links, as in some backups: writing in place would change them all."""
    return os.fstat(descriptor).st_nlink > 1


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder."""
    with os.scandir(folder) as entries:
        temporaries = [
            entry.path
            for entry in entries
            if is_temporary(entry.name) and entry.is_file(follow_symlinks=False)
        ]
    for path in temporaries:
        Path(path).unlink(missing_ok=True)
