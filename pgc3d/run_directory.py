"""The run directory: everything a run leaves on the disk, written so that a crash loses little.

    RUN/config.yaml             the resolved configuration, valid as input
    RUN/manifest.json           prompt, versions, device, timings, peak memory, files, exit status
    RUN/metrics.jsonl           one JSON object per log interval, with the name of its stage
    RUN/previews/STAGE/         images of the asset while it grows
    RUN/checkpoints/STAGE/step-*.safetensors and .json   tensors, and what describes them; the last two of a
                                stage are kept, and the last one of a finished stage is its hand-over

A file appears under its name only when it is complete: written beside it, flushed, then renamed. The folder
may come from someone else: no link in it is followed, and its records are checked before they are used.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pgc3d.checkpoint_files import Checkpoint, checkpoint_files, read_newest_checkpoint, write_checkpoint
from pgc3d.disk import new_folder, replace_file, sha256, writing
from pgc3d.errors import BackendUnavailableError, RunDirectoryError
from pgc3d.plain_files import (
    is_shared,
    is_temporary,
    open_in_place,
    read_file,
    remove_temporaries,
    require_file,
    require_folder,
)
from pgc3d.records import FORMAT, read_record, seal
from pgc3d.records import MANIFEST as MANIFEST_TYPES
from pgc3d.task import KEPT, Task

try:
    import fcntl
except ImportError as error:
    raise BackendUnavailableError(
        "pgc3d must run on a POSIX system (Linux, macOS, or WSL on Windows), for its file locks, but this "
        "Python has no fcntl; on Windows use WSL"
    ) from error

CONFIG, MANIFEST, METRICS, LOCK = "config.yaml", "manifest.json", "metrics.jsonl", ".lock"
PREVIEWS, CHECKPOINTS = FOLDERS = ("previews", "checkpoints")
PREPARING = "preparing"  # a status: no step can have been made


class RunDirectory:
    """A run's folder; as a context manager it is locked against other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make a new folder; one that exists must be empty, or hold a run that was stopped before it began.

        Raises:
            RunDirectoryError: the folder holds something else, or cannot be made.
        """
        run = cls(path)
        with writing(path):
            if not run.is_unused():
                is_run = (path / MANIFEST).exists()
                new_folder(path, alternative=f", or continue it with `pgc3d resume {path}`" if is_run else "")
            for folder in FOLDERS:
                (path / folder).mkdir(exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run.

        Raises:
            RunDirectoryError: the folder is not a run, holds links, or its run never began.
        """
        run = cls(path)
        if path.is_dir() and any(path.iterdir()) and run.is_unused():
            raise RunDirectoryError(
                f"{path} must hold a run that has begun, but it was stopped before that; make it again, "
                f"--out {path} may be used for it"
            )
        parts = {CONFIG: require_file, MANIFEST: require_file, CHECKPOINTS: require_folder}
        for name, require in parts.items():
            try:
                require(path / name)
            except OSError as error:
                raise RunDirectoryError(
                    f"{path} must be the folder of a run, but {path / name} is missing; give the folder that "
                    "`pgc3d text` wrote"
                ) from error
        with writing(path):
            if not os.path.lexists(path / PREVIEWS):
                (path / PREVIEWS).mkdir()
            require_folder(path / PREVIEWS)
        return run

    def is_unused(self) -> bool:
        """Whether nothing is in the folder but what a run leaves that is stopped before it begins."""
        if not self.path.is_dir():
            return False
        entries = {entry.name: entry for entry in os.scandir(self.path) if not is_temporary(entry.name)}
        known = {LOCK, *FOLDERS}
        if MANIFEST in entries:
            if not self._is_preparing():
                return False
            known |= {MANIFEST, CONFIG, *KEPT.values()}
        elif LOCK in entries and not (self._is_own_lock() and entries.keys() >= set(FOLDERS)):
            return False  # someone else's
        files = entries.keys() - set(FOLDERS)
        return (
            entries.keys() <= known
            and all(entries[name].is_file(follow_symlinks=False) for name in files)
            and all(_is_empty(entries[name]) for name in entries.keys() & set(FOLDERS))
        )

    def _is_preparing(self) -> bool:
        try:
            return self.read_manifest().get("status") == PREPARING
        except RunDirectoryError:
            return False

    def _is_own_lock(self) -> bool:
        try:
            return re.fullmatch(rb"\d{0,10}", read_file(self.path / LOCK)) is not None
        except (OSError, RunDirectoryError):
            return False

    def begin(self) -> None:
        """Mark the folder, which is locked, as that of a run whose inputs are being prepared.

        Raises:
            RunDirectoryError: another process used the folder since `create`.
        """
        with writing(self.path):
            if not self.is_unused():
                raise RunDirectoryError(
                    f"{self.path} must be unused, but another process has made a run in it"
                )
            self.write_manifest({"status": PREPARING})
            for name in (CONFIG, *KEPT.values()):
                (self.path / name).unlink(missing_ok=True)

    def __enter__(self) -> "RunDirectory":
        with writing(self.path / LOCK):
            descriptor = open_in_place(self.path, LOCK, os.O_RDWR)
            try:
                self._take(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        self._lock = descriptor
        with writing(self.path):
            for folder in self._folders():
                remove_temporaries(folder)
        return self

    def _folders(self) -> Iterator[Path]:
        """The run's folder, those in it, and those of the stages."""
        yield self.path
        for name in FOLDERS:
            yield self.path / name
            yield from (Path(entry) for entry in os.scandir(self.path / name) if _is_folder(entry))

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            found = re.fullmatch(rb"\s*(\d{1,10})\s*", os.read(descriptor, 32))
            owner = found[1].decode() if found else "unknown"
            raise RunDirectoryError(
                f"{self.path} must not be in use, but process {owner} is writing it; wait for it or stop it"
            ) from error
        if not is_shared(descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the kernel drops the lock, also when the process dies
            self._lock = None

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    def preview(self, stage: str, step: int) -> Path:
        """Where the image of a step goes."""
        return self._folder(PREVIEWS, stage) / f"step-{step:06d}.png"

    def _folder(self, kind: str, stage: str) -> Path:
        """The folder of a stage, made where it is not there."""
        folder = self.path / kind / stage
        with writing(folder):
            require_folder(self.path / kind)
            if not os.path.lexists(folder):
                folder.mkdir()
            require_folder(folder)
        return folder

    def log_metrics(self, metrics: Mapping[str, float | int | str]) -> None:
        """Append one line."""
        path = self.path / METRICS
        line = (json.dumps(dict(metrics)) + "\n").encode()
        with writing(path):
            descriptor = open_in_place(self.path, METRICS, os.O_WRONLY | os.O_APPEND)
            with os.fdopen(descriptor, "ab") as stream:
                if not is_shared(descriptor):
                    stream.write(line)
                    return
        replace_file(path, read_file(path) + line)

    def drop_metrics(self, stage: str, *, after: int) -> None:
        """Keep the lines of other stages, and of this one up to a step; later ones and a torn one go."""
        path = self.path / METRICS
        with writing(path):
            if not os.path.lexists(path):
                return
            lines = read_file(path).splitlines(keepends=True)
        kept = [line for line in lines if _is_kept(line, stage, after)]
        if len(kept) < len(lines):
            replace_file(path, b"".join(kept))

    def read_manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote last.

        Raises:
            RunDirectoryError: it is not readable.
        """
        path = self.path / MANIFEST
        try:
            return read_record(read_file(path), MANIFEST_TYPES)
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path} must be a run's manifest, but is damaged: {error}") from error

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        record = seal({**manifest, "format": FORMAT})
        replace_file(self.path / MANIFEST, (json.dumps(record, indent=2) + "\n").encode())

    def hash_files(self, paths: Iterator[Path] | list[Path]) -> dict[str, str]:
        """SHA-256 of files, by their name inside the folder (in full where they lie outside)."""
        return {
            str(path.relative_to(self.path) if path.is_relative_to(self.path) else path): sha256(path)
            for path in paths
        }

    def config_digest(self) -> str:
        """SHA-256 of the configuration as it lies there."""
        with writing(self.config):
            return hashlib.sha256(read_file(self.config)).hexdigest()

    def require_same_inputs(self, record: Mapping[str, Any]) -> None:
        """See that the files that a manifest names are in the folder, as they were when the run began.

        Raises:
            RunDirectoryError: one is missing, has changed, or is no file of its own.
        """
        known = record.get("files", {})
        for path in Task.from_record(record, self.path).files.values():
            name = str(path.relative_to(self.path))
            try:
                for parent in path.relative_to(self.path).parents[:-1]:
                    require_folder(self.path / parent)
                found = hashlib.sha256(read_file(path)).hexdigest()
            except OSError as error:
                raise RunDirectoryError(
                    f"{path} must be there, as the run needs it, got: {error.strerror or error}"
                ) from error
            if found != known.get(name, found):
                raise RunDirectoryError(
                    f"{path} must be as when the run began, but has changed; put it back, or start a new run"
                )

    def save_checkpoint(self, stage: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint of a stage and drop all but its newest two."""
        write_checkpoint(self._folder(CHECKPOINTS, stage), checkpoint)

    def checkpoints(self, stage: str) -> list[Path]:
        """The JSON files of a stage's checkpoints, newest first."""
        folder = self.path / CHECKPOINTS / stage
        return checkpoint_files(folder) if self._is_begun(stage) else []

    def load_checkpoint(self, stage: str) -> Checkpoint | None:
        """The newest whole checkpoint of a stage, None where none was written."""
        return read_newest_checkpoint(self.path / CHECKPOINTS / stage) if self._is_begun(stage) else None

    def _is_begun(self, stage: str) -> bool:
        folder = self.path / CHECKPOINTS / stage
        if not os.path.lexists(folder):
            return False
        with writing(folder):
            require_folder(folder)
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_empty(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder of its own with nothing in it but what `remove_temporaries` removes."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    with os.scandir(entry.path) as inner:
        return all(is_temporary(found.name) for found in inner)


def _is_kept(line: bytes, stage: str, after: int) -> bool:
    """Whether a line of metrics is whole, and of another stage or not after a step."""
    try:
        found = json.loads(line)
        return line.endswith(b"\n") and (found["stage"] != stage or int(found["step"]) <= after)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return False
