"""How what a worker makes reaches the place of a batch: at once and whole, and never twice.

A worker that sees the batch's folder, on one machine or by a shared file system, works in it: the locks and
checkpoints of run folders then do all of this. Otherwise it works in a folder of its own node, and

- with a folder as the place, the run returns as an archive through Ray's object store when it ends;
- with a URL, checkpoints go to `.states/NAME.tar` while it runs, and the files to `.incoming/` when it ends.

Only the driver, which receives one answer for each job, moves results to their names: a folder by renaming,
objects by copies of which the manifest is the last. A run without a manifest is none.
"""

import io
import os
import secrets
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from pgc3d.batch.archives import job_files, pack, packed, unpack
from pgc3d.batch.lists import SWEEPS
from pgc3d.batch.storage import Storage
from pgc3d.disk import writing
from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import temporary_name
from pgc3d.run_directory import RunDirectory
from pgc3d.run_files import MANIFEST

INCOMING, STATES = ".incoming", ".states"
UPLOAD_FRACTION = 0.1  # of the time of a run, at most, in which it waits for uploads of its checkpoints


@dataclass(frozen=True)
class Staged:
    """What a worker hands over with its answer."""

    archive: bytes = b""  # of a folder that it does not share
    prefix: str = ""  # of the objects that it uploaded
    files: tuple[str, ...] = ()  # below the prefix, by their paths in the batch's folder


@dataclass
class Desk:
    """The folder that a worker writes the runs of one job in, and the time that uploads took."""

    folder: Path
    is_shared: bool  # the batch's own
    opened: float = field(default_factory=time.monotonic)
    uploading: float = 0.0  # seconds


@runtime_checkable
class Staging(Protocol):
    """Both ends of the way; sent to the workers."""

    def stored(self, name: str) -> bytes:
        """On the driver: the archive that a worker continues from, b"" where it finds that itself."""

    def enter(self, scratch: Path, name: str, stored: Callable[[], bytes]) -> Desk:
        """On a worker: the folder for a job, with its last checkpoint where there is one."""

    def save(self, desk: Desk, name: str) -> None:
        """On a worker: keep the state of a run, after a checkpoint."""

    def leave(self, desk: Desk, name: str, *, done: bool) -> Staged:
        """On a worker: hand over a run that is done, or keep the state of one that is not."""

    def publish(self, name: str, staged: Staged) -> None:
        """On the driver: move a result to its name."""

    def clean(self, name: str, staged: Staged) -> None:
        """On the driver, after the status file has the job: remove what is needed no longer."""

    def close(self) -> None:
        """On the driver: remove what only a batch that runs needs."""


def has_begun(out: Path, name: str) -> bool:
    """Whether there is a run of a job, or of one of its seeds, in the folder of a batch."""
    return RunDirectory(out / name).has_begun() or (out / SWEEPS / name).exists()


@dataclass(frozen=True)
class FolderStaging:
    """To a folder: in place where a worker sees it, else by archives."""

    out: Path  # absolute
    mark: str  # name of a file in it, by which a worker recognises the folder

    @classmethod
    def open(cls, out: Path) -> "FolderStaging":
        """The staging of a batch whose folder is locked; what an earlier one left is removed."""
        staging = cls(out.absolute(), temporary_name("shared"))  # removed with the next batch's lock
        with writing(out):
            shutil.rmtree(out / INCOMING, ignore_errors=True)
            (out / staging.mark).touch()
        return staging

    def stored(self, name: str) -> bytes:
        """The archive of a run that has begun."""
        return packed(self.out, name) if has_begun(self.out, name) else b""

    def enter(self, scratch: Path, name: str, stored: Callable[[], bytes]) -> Desk:
        """The batch's folder where it is there, else the scratch folder with what is stored."""
        if (self.out / self.mark).is_file():
            return Desk(self.out, is_shared=True)
        if content := stored():
            unpack(io.BytesIO(content), scratch)
        return Desk(scratch, is_shared=False)

    def save(self, desk: Desk, name: str) -> None:
        """Nothing: a checkpoint in the batch's folder is kept, another one is lost with its worker."""

    def leave(self, desk: Desk, name: str, *, done: bool) -> Staged:
        """The archive, also of a run that was stopped or failed, unless it is in its place."""
        return Staged() if desk.is_shared else Staged(packed(desk.folder, name))

    def publish(self, name: str, staged: Staged) -> None:
        """Unpack an archive beside the runs, and rename its folders to their places.

        Raises:
            RunDirectoryError: the folder cannot be written, or the archive is damaged.
        """
        if not staged.archive:
            return
        incoming = self.out / INCOMING / secrets.token_hex(8)
        with writing(self.out / name):
            incoming.mkdir(parents=True)
            try:
                unpack(io.BytesIO(staged.archive), incoming)
            except tarfile.TarError as error:
                raise RunDirectoryError(
                    f"the archive of {name} must be whole, but is damaged: {error}; use --retry"
                ) from error
            for part in (Path(SWEEPS, name), Path(name)):  # the run last: it is what counts
                _move(incoming / part, self.out / part, old=incoming / "old" / part)
            shutil.rmtree(incoming)

    def clean(self, name: str, staged: Staged) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Remove the mark."""
        (self.out / self.mark).unlink(missing_ok=True)
        shutil.rmtree(self.out / INCOMING, ignore_errors=True)


def _move(source: Path, target: Path, *, old: Path) -> None:
    """Rename a folder where it exists; an earlier state at the target is moved away."""
    if source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        old.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            os.rename(target, old)  # noqa: PTH104 - atomic
        os.rename(source, target)  # noqa: PTH104 - atomic


@dataclass(frozen=True)
class UrlStaging:
    """To storage behind a URL."""

    storage: Storage

    @classmethod
    def open(cls, storage: Storage) -> "UrlStaging":
        """The staging of a batch that is locked; what an earlier one left is removed."""
        if left := storage.all_names(INCOMING):
            storage.remove(left)
        return cls(storage)

    def stored(self, name: str) -> bytes:
        """Nothing: workers read the storage."""
        return b""

    def enter(self, scratch: Path, name: str, stored: Callable[[], bytes]) -> Desk:
        """The scratch folder with the last state."""
        archive = scratch / "state.tar"
        if self.storage.download(_state(name), archive):
            with archive.open("rb") as stream:
                unpack(stream, scratch)
            archive.unlink()
        return Desk(scratch, is_shared=False)

    def save(self, desk: Desk, name: str) -> None:
        """Upload the state, unless the uploads take more than their part of the time.

        Raises:
            RunDirectoryError: the storage cannot be written.
        """
        begin = time.monotonic()
        if desk.uploading <= UPLOAD_FRACTION * (begin - desk.opened):
            self._upload_state(desk.folder, name)
            desk.uploading += time.monotonic() - begin

    def _upload_state(self, folder: Path, name: str) -> None:
        with tempfile.TemporaryDirectory() as temporary, writing(folder):
            archive = Path(temporary) / "state.tar"
            with archive.open("wb") as stream:
                pack(folder, name, stream)
            self.storage.upload({_state(name): archive})

    def leave(self, desk: Desk, name: str, *, done: bool) -> Staged:
        """Upload the files of a run that is done, else the state."""
        files = {path.relative_to(desk.folder).as_posix(): path for path in job_files(desk.folder, name)}
        if not files:
            return Staged()
        if not done:
            self._upload_state(desk.folder, name)
            return Staged()
        prefix = f"{INCOMING}/{name}-{secrets.token_hex(8)}"
        self.storage.upload({f"{prefix}/{file}": path for file, path in files.items()})
        return Staged(prefix=prefix, files=tuple(files))

    def publish(self, name: str, staged: Staged) -> None:
        """Copy the objects to their names, the manifest of the run last.

        Raises:
            RunDirectoryError: the storage cannot be written.
        """
        manifest = f"{name}/{MANIFEST}"
        rest = [file for file in staged.files if file != manifest]
        for files in (rest, [manifest]) if staged.files else ():
            self.storage.copy({f"{staged.prefix}/{file}": file for file in files})

    def clean(self, name: str, staged: Staged) -> None:
        """Remove the first copy, and the state.

        Raises:
            RunDirectoryError: the storage cannot be written.
        """
        if staged.files:
            state = [_state(name)] if self.storage.exists(_state(name)) else []
            self.storage.remove([*(f"{staged.prefix}/{file}" for file in staged.files), *state])

    def close(self) -> None:
        """Nothing: the states of jobs that are not done stay."""


def _state(name: str) -> str:
    return f"{STATES}/{name}.tar"
