"""Where an export goes that the user gave a place: a file, or a folder."""

from pathlib import Path

from pgc3d.choices import Format
from pgc3d.disk import folder_name, free_name
from pgc3d.errors import InputError
from pgc3d.mesh_io.formats import WRITABLE


def format_of(out: Path, format: Format | None) -> Format | None:
    """The format for a place: that of a file's suffix, else the one that was given.

    Args:
        out: a file, or a folder: what is one already, or has no suffix.
        format: None where none was given.

    Raises:
        InputError: no format has the suffix, or it is another one than the one that was given.
    """
    if _is_folder(out):
        return format
    found = next((name for name in WRITABLE if out.suffix.lower() == f".{name}"), None)
    if found is None:
        known = ", ".join(f".{name}" for name in WRITABLE)
        raise InputError(
            f"--out must be a folder or end in {known}, got {out}; change its end, or make that folder first"
        )
    if format not in (None, found):
        raise InputError(f"--format must be that of --out, got {format} and {out}; remove one of them")
    return found  # type: ignore[return-value] # a key of `FORMATS`


def export_path(out: Path, run: Path, format: Format) -> Path:
    """The mesh file to write: the file that was given, or one in the folder, named after the run.

    Args:
        out: the place.
        run: folder of the run.
        format: of the file.
    """
    return free_name(out / f"{folder_name(run.resolve().name)}.{format}") if _is_folder(out) else out


def _is_folder(out: Path) -> bool:
    return out.is_dir() or not out.suffix
