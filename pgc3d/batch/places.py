"""Where the status and the runs of a batch are: a folder, or storage behind a URL."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from pgc3d.batch.job import Entry
from pgc3d.batch.lists import STATUS
from pgc3d.batch.staging import STATES, FolderStaging, Staging, UrlStaging, has_begun
from pgc3d.batch.status import locked, parse_status, status_bytes
from pgc3d.batch.storage import Storage
from pgc3d.disk import replace_file
from pgc3d.errors import RunDirectoryError
from pgc3d.plain_files import read_file


@runtime_checkable
class Place(Protocol):
    """The status file of a batch, its lock, and what there is of each job."""

    def locked(self) -> AbstractContextManager[None]:
        """Make the place, and keep other processes of this machine from running a batch in it."""

    def read(self) -> dict[str, Entry]:
        """The records of the jobs by name; none where there is no status file."""

    def write(self, entries: Mapping[str, Entry], unlisted: Mapping[str, Entry]) -> None:
        """Replace the status file: the jobs of the list, and those that were on it earlier."""

    def path(self, *parts: str) -> str:
        """A path or URL in the place: of a job's folder, and of a file in that."""

    def has_run(self, name: str) -> bool:
        """Whether there is a folder of a job."""

    def has_begun(self, name: str) -> bool:
        """Whether there is a run of a job, or of one of its seeds."""

    def staging(self) -> Staging:
        """How runs of other machines come here; while it is locked."""


@dataclass(frozen=True)
class Folder:
    """A folder of this machine, or one that machines share."""

    root: Path

    def locked(self) -> AbstractContextManager[None]:
        """Make the folder, and keep other processes from running a batch in it."""
        return locked(self.root)

    def read(self) -> dict[str, Entry]:
        """The records of the jobs by name.

        Raises:
            RunDirectoryError: the file is damaged.
        """
        path = self.root / STATUS
        if not os.path.lexists(path):
            return {}
        try:
            return parse_status(read_file(path), str(path))
        except OSError as error:
            raise RunDirectoryError(f"{path} must be readable, got: {error.strerror or error}") from error

    def write(self, entries: Mapping[str, Entry], unlisted: Mapping[str, Entry]) -> None:
        """Replace the status file.

        Raises:
            RunDirectoryError: the folder cannot be written or the disk is full.
        """
        replace_file(self.root / STATUS, status_bytes(entries, unlisted))

    def path(self, *parts: str) -> str:
        """A path in the folder."""
        return str(self.root.joinpath(*parts))

    def has_run(self, name: str) -> bool:
        """Whether there is a folder of a job."""
        return (self.root / name).is_dir()

    def has_begun(self, name: str) -> bool:
        """Whether there is a run of a job, or of one of its seeds."""
        return has_begun(self.root, name)

    def staging(self) -> FolderStaging:
        """In place where workers see the folder, else by archives."""
        return FolderStaging.open(self.root)


@dataclass(frozen=True)
class Bucket:
    """Storage behind a URL."""

    storage: Storage

    def locked(self) -> AbstractContextManager[None]:
        """Keep other processes of this user and machine from running a batch in it; storage has no locks."""
        digest = hashlib.sha256(self.storage.url.encode()).hexdigest()[:16]
        return locked(Path(tempfile.gettempdir()) / f"pgc3d-{os.getuid()}" / digest)

    def read(self) -> dict[str, Entry]:
        """The records of the jobs by name.

        Raises:
            RunDirectoryError: the file is damaged, or the storage cannot be read.
        """
        content = self.storage.read(STATUS)
        return {} if content is None else parse_status(content, self.path(STATUS))

    def write(self, entries: Mapping[str, Entry], unlisted: Mapping[str, Entry]) -> None:
        """Replace the status file.

        Raises:
            RunDirectoryError: the storage cannot be written.
        """
        self.storage.write(STATUS, status_bytes(entries, unlisted))

    def path(self, *parts: str) -> str:
        """A URL in the storage."""
        return "/".join((self.storage.url, *parts))

    def has_run(self, name: str) -> bool:
        """Whether there is a run that is done."""
        return name in self._names

    def has_begun(self, name: str) -> bool:
        """Whether there is a run of a job, or the state of one."""
        return self.has_run(name) or self.storage.exists(f"{STATES}/{name}.tar")

    def staging(self) -> UrlStaging:
        """By objects under other names."""
        return UrlStaging.open(self.storage)

    @cached_property
    def _names(self) -> set[str]:
        """What there is at the begin of a batch: one request for each thousand of runs."""
        return self.storage.names()
