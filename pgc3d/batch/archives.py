"""What there is of a job, as one archive: complete or absent wherever it is sent to."""

import io
import tarfile
from pathlib import Path

from pgc3d.batch.lists import SWEEPS
from pgc3d.plain_files import is_temporary
from pgc3d.run_files import LOCK


def job_files(folder: Path, name: str) -> list[Path]:
    """The files of a job's run and of its sweep in a batch's folder, without locks and temporary files."""
    return [path for path in _entries(folder, name) if path.is_file()]


def _entries(folder: Path, name: str) -> list[Path]:
    """The files and folders; empty folders are part of a run."""
    roots = (folder / name, folder / SWEEPS / name)
    found = [path for root in roots for path in sorted(root.rglob("*"))]
    kept = [path for path in found if path.name != LOCK and not is_temporary(path.name)]
    return [path for path in kept if not path.is_symlink() and (path.is_file() or path.is_dir())]


def pack(folder: Path, name: str, target: io.BufferedIOBase) -> None:
    """Write what there is of a job as a tar archive, with the paths in the batch's folder."""
    with tarfile.open(fileobj=target, mode="w") as archive:
        for path in _entries(folder, name):
            archive.add(path, path.relative_to(folder).as_posix(), recursive=False)


def packed(folder: Path, name: str) -> bytes:
    """The archive of `pack`; b"" where there is no file of the job."""
    stream = io.BytesIO()
    if job_files(folder, name):
        pack(folder, name, stream)
    return stream.getvalue()


def unpack(source: io.BufferedIOBase, folder: Path) -> None:
    """Write the files and folders of an archive of `pack` below a folder.

    Raises:
        tarfile.TarError: the archive is damaged, or has a path that leads out of the folder.
    """
    with tarfile.open(fileobj=source, mode="r:") as archive:
        archive.extractall(folder, filter="data")
