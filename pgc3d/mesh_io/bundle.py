"""A mesh file and all files that it names, in one archive, so that a run needs the user's files no longer."""

import io
import re
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pgc3d.errors import RunDirectoryError
from pgc3d.mesh_io.gltf_document import parse_document
from pgc3d.mesh_io.gltf_edit import raw_root
from pgc3d.mesh_io.limits import inside, read_limited
from pgc3d.mesh_io.lines import decoded, plain_text
from pgc3d.mesh_io.mtl import library_paths, map_names
from pgc3d.mesh_io.side_images import is_file, is_inside
from pgc3d.plain_files import require_inside

DOCUMENTS = {
    "glb": "glb",
    "gltf": "glb",
    "obj": "obj",
}  # formats that come back, and what they are written as
DATE = (1980, 1, 1, 0, 0, 0)  # of all entries, so that equal files make equal archives


def document_format(path: Path) -> str | None:
    """The format in which a mesh file can be written with all its contents; None for surfaces alone."""
    return DOCUMENTS.get(path.suffix.lower().removeprefix("."))


def pack_document(path: Path) -> bytes:
    """The archive of a mesh file, first, and the files in its folder that it names, uncompressed.

    Raises:
        InputError: a file cannot be read, or a buffer of a glTF is missing.
    """
    stream = io.BytesIO()
    data = read_limited(path)
    named = _gltf_files(data, path) if document_format(path) == "glb" else _obj_files(data, path)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(path.name, DATE), data)
        for name, file in named.items():
            if name != path.name:
                archive.writestr(zipfile.ZipInfo(name, DATE), read_limited(file, f"file of {path.name}"))
    return stream.getvalue()


def archived_format(archive: Path) -> str | None:
    """The format of an archive's mesh file, as of `document_format`; None where the archive is damaged."""
    try:
        with zipfile.ZipFile(archive) as files:
            return document_format(Path(files.namelist()[0]))
    except (OSError, IndexError, zipfile.BadZipFile):
        return None


@contextmanager
def opened_document(archive: Path) -> Iterator[Path]:
    """The mesh file of an archive in a temporary folder, with its other files beside it.

    Raises:
        RunDirectoryError: the archive is damaged, or not one of `pack_document`.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            with zipfile.ZipFile(archive) as files:
                infos = files.infolist()
                names = [str(require_inside(info.filename)) for info in infos]
                if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or not names:
                    raise ValueError("its entries must be stored plainly")
                for name, info in zip(names, infos, strict=True):
                    target = Path(folder) / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(files.read(info))
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise RunDirectoryError(
                f"{archive} must hold the run's mesh file, but is missing or damaged ({error}); "
                "start a new run"
            ) from error
        yield Path(folder) / names[0]


def _gltf_files(data: bytes, path: Path) -> dict[str, Path]:
    """The files that a glTF names anywhere, by their paths in its folder; all its buffers can be read."""
    document = parse_document(data, path)
    for index in range(len(document.buffers)):
        document.buffer(index)
    found: list[str] = []
    waiting: list[Any] = [raw_root(data)]
    while waiting:
        value = waiting.pop()
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(child, (dict, list)):
                waiting.append(child)
            elif key == "uri" and isinstance(child, str) and child[:5].lower() != "data:":
                found.append(child)
    return _existing(found, path)


def _obj_files(data: bytes, path: Path) -> dict[str, Path]:
    """The material libraries of an OBJ and the images that they name, by their paths in its folder."""
    lines = re.findall(rb"^[ \t]*mtllib[ \t]+([^\n]*)", plain_text(data), re.MULTILINE)
    found: dict[str, Path] = {}
    for line in dict.fromkeys(lines):
        for library in library_paths(decoded(line), path):
            found[library.relative_to(path.parent).as_posix()] = library
            images = _existing(map_names(library), library)
            found |= {file.relative_to(path.parent).as_posix(): file for file in images.values()}
    return found


def _existing(names: list[str], path: Path) -> dict[str, Path]:
    """The files of these names that exist in the folder of `path`, by their paths in it."""
    files = [inside(path.parent, name, path) for name in dict.fromkeys(names) if is_inside(name, path)]
    return {file.relative_to(path.parent).as_posix(): file for file in files if is_file(file)}
