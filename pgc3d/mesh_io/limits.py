"""Limits of mesh files: sizes, checked before allocation, and the other files that they may refer to."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from pgc3d.errors import InputError

MAX_BYTES = 1 << 30  # of the file, and of each file that it refers to
MAX_FACES = 2_000_000
MAX_VERTICES = 6_000_000


def require_counts(path: Path, *, vertices: int = 0, faces: int = 1) -> None:
    """Check that a mesh has faces and is not too large for a run.

    Raises:
        InputError: it has none or too many.
    """
    if faces > MAX_FACES or vertices > MAX_VERTICES:
        raise InputError(
            f"a mesh must have at most {MAX_FACES / 1e6:g} M faces and {MAX_VERTICES / 1e6:g} M vertices, "
            f"got {path} with {max(faces, 0)} faces and {vertices} vertices; decimate it first"
        )
    if faces == 0:
        raise InputError(f"the mesh must have faces, got none in {path}; points and lines cannot be textured")


def require_limited(path: Path, kind: str = "mesh file") -> None:
    """Check that a path is a file of at most `MAX_BYTES`.

    Raises:
        InputError: it is not.
    """
    with _readable(path, kind):
        if not path.is_file():
            raise InputError(f"the {kind} must exist, got {path}; check the path")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                f"a {kind} must have at most {MAX_BYTES / 1e6:.0f} MB, got {path} with {size / 1e6:.0f} MB; "
                "reduce the mesh"
            )


def read_limited(path: Path, kind: str = "mesh file") -> bytes:
    """The content of a file.

    Raises:
        InputError: it is missing, cannot be read, or is larger than `MAX_BYTES`.
    """
    require_limited(path, kind)
    with _readable(path, kind):
        return path.read_bytes()


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Raise InputError for an OSError in the block."""
    try:
        yield
    except OSError as error:
        raise InputError(f"the {kind} must be readable, got {path}: {error.strerror or error}") from error


def inside(folder: Path, name: str, source: Path) -> Path:
    """The path of the file that `source` refers to by `name`, percent-encoded or not.

    Raises:
        InputError: it is absolute, a URL, or leads out of the folder, also by a symbolic link.
    """
    decoded = unquote(name).replace("\\", "/").strip()
    try:
        # a file may really have a per cent sign in its name
        raw = name.replace("\\", "/").strip()
        local = raw if raw != decoded and (folder / raw).is_file() else decoded
        outside = re.match(r"[a-z][a-z0-9+.-]*:", local, re.IGNORECASE) or local.startswith(("/", "~"))
        target = folder / local
        if (
            not outside
            and ".." not in Path(local).parts
            and target.resolve().is_relative_to(folder.resolve())
        ):
            return target
    except (OSError, ValueError):  # a name that no file can have: too long, with a null byte
        pass
    raise InputError(
        f"a mesh must refer to files in its own folder only, but {source.name} names {name[:200]!r}; "
        "put all files into one folder"
    )
