"""The run directory: all files of a run, written so that a crash loses little.

    RUN/config.yaml             the resolved configuration, valid as input
    RUN/manifest.json           prompt, versions, device, timings, peak memory, files, exit status
    RUN/metrics.jsonl           one JSON object per log interval, with the name of its stage
    RUN/previews/STAGE/         images of the asset while it grows, and of what clipping does in these steps
    RUN/checkpoints/STAGE/step-*.safetensors and .json   tensors, and the record that describes them; the
                                newest two of a stage; the last one of a finished stage is its hand-over
    RUN/tensorboard/STAGE/      event files of TensorBoard, with `logging.tensorboard`
    RUN/checkpoints/STAGE/mesh.safetensors   the surface that a stage textures, where it starts from it

A file appears under its name only when it is complete: written to a temporary name, flushed, then renamed.
The folder may come from an untrusted source: no link in it is followed, and its records are checked.
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
    require_folder,
)
from pgc3d.records import FORMAT, read_record, seal
from pgc3d.records import MANIFEST as MANIFEST_TYPES
from pgc3d.run_files import CHECKPOINTS, CONFIG, FOLDERS, LOCK, MANIFEST, METRICS, PREVIEWS, require_run
from pgc3d.task import PREPARED_NAMES, Task

try:
    import fcntl
except ImportError as error:
    raise BackendUnavailableError(
        "pgc3d must run on a POSIX system (Linux, macOS, or WSL on Windows), for its file locks, but this "
        "Python has no fcntl; on Windows use WSL"
    ) from error

MESH = "mesh.safetensors"
PREPARING = "preparing"  # a status: no step has been made
INTERRUPTED = "interrupted"  # in place of a status of a process that was killed


class RunDirectory:
    """A run's folder; as a context manager it is locked against other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make a new run directory.

        Args:
            path: must not exist, be empty, or hold a run that was stopped before its first step.

        Raises:
            RunDirectoryError: the folder has other content, or cannot be made.
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
        """An existing run directory, without its lock.

        Raises:
            RunDirectoryError: the folder is not a run, holds links, or its run made no step.
        """
        run = cls(path)
        if path.is_dir() and any(path.iterdir()) and run.is_unused():
            raise RunDirectoryError(
                f"{path} must hold a run that has begun, but it was stopped before its first step; start it "
                f"again, with --out {path}"
            )
        require_run(path)
        with writing(path):
            if not os.path.lexists(path / PREVIEWS):
                (path / PREVIEWS).mkdir(exist_ok=True)
            require_folder(path / PREVIEWS)
        return run

    def is_unused(self) -> bool:
        """Whether the folder has no files but those of a run that was stopped before its first step."""
        if not self.path.is_dir():
            return False
        entries = {entry.name: entry for entry in os.scandir(self.path) if not is_temporary(entry.name)}
        known = {LOCK, *FOLDERS}
        if MANIFEST in entries:
            if not self._is_preparing():
                return False
            known |= {MANIFEST, CONFIG, *PREPARED_NAMES.values()}
        elif LOCK in entries and not (self._is_own_lock() and entries.keys() >= set(FOLDERS)):
            return False  # another program's lock
        files = entries.keys() - set(FOLDERS)
        return (
            entries.keys() <= known
            and all(entries[name].is_file(follow_symlinks=False) for name in files)
            and all(_is_empty(entries[name]) for name in entries.keys() & set(FOLDERS))
        )

    def has_begun(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return (self.path / MANIFEST).is_file() and not self.is_unused()

    def is_locked(self) -> bool:
        """Whether a process is writing the folder."""
        if not os.path.lexists(self.path / LOCK):
            return False
        with writing(self.path / LOCK):
            descriptor = open_in_place(self.path, LOCK, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def status(self, record: Mapping[str, Any]) -> str:
        """The status in a manifest, or that the process which wrote it has ended without a last one."""
        status = str(record.get("status", "unknown"))
        if status not in {"running", PREPARING}:
            return status
        try:
            return status if self.is_locked() else INTERRUPTED
        except RunDirectoryError:  # its lock cannot be opened, as in the folder of another user
            return status

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
        """Write the status "preparing" into the folder, which must be locked.

        Raises:
            RunDirectoryError: another process has used the folder since `create`.
        """
        with writing(self.path):
            if not self.is_unused():
                raise RunDirectoryError(
                    f"{self.path} must be unused, but another process has made a run in it; choose another "
                    "--out"
                )
            self.write_manifest({"status": PREPARING})
            for name in (CONFIG, *PREPARED_NAMES.values()):
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
            match = re.fullmatch(rb"\s*(\d{1,10})\s*", os.read(descriptor, 32))
            owner = match[1].decode() if match else "unknown"
            raise RunDirectoryError(
                f"{self.path} must not be in use, but process {owner} is writing it; wait for it or stop it"
            ) from error
        if not is_shared(descriptor):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)  # releases the lock, as the end of the process does
            self._lock = None

    @property
    def config(self) -> Path:
        """Path of the resolved configuration."""
        return self.path / CONFIG

    def preview(self, stage: str, step: int) -> Path:
        """Path of the preview image of a step."""
        return self._folder(PREVIEWS, stage) / f"step-{step:06d}.png"

    def clip_image(self, stage: str, step: int) -> Path:
        """Path of the image of what clipping does in a step, see `clip_images`."""
        return self._folder(PREVIEWS, stage) / clip_image_name(step)

    def _folder(self, kind: str, stage: str) -> Path:
        """The folder of a stage, which is made where it is missing."""
        folder = self.path / kind / stage
        with writing(folder):
            require_folder(self.path / kind)
            if not os.path.lexists(folder):
                folder.mkdir()
            require_folder(folder)
        return folder

    def log_metrics(self, metrics: Mapping[str, float | int | str]) -> None:
        """Append one line to the metrics.

        Raises:
            RunDirectoryError: the file cannot be written, or is a link or a folder.
        """
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
        """Remove a stage's lines after a step from the metrics, and an incomplete one.

        Args:
            stage: name of the stage; the lines of others stay.
            after: number of the last step whose line stays.
        """
        path = self.path / METRICS
        with writing(path):
            if not os.path.lexists(path):
                return
            lines = read_file(path).splitlines(keepends=True)
        kept = [line for line in lines if _is_kept(line, stage, after)]
        if len(kept) < len(lines):
            replace_file(path, b"".join(kept))

    def read_manifest(self) -> dict[str, Any]:
        """The manifest, after a check of its types and its digest.

        Raises:
            RunDirectoryError: it is missing, damaged or edited.
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
        """SHA-256 of files, by their relative paths in the folder, or absolute paths outside it."""
        folder, files = self.path.absolute(), [path.absolute() for path in paths]
        return {
            str(path.relative_to(folder) if path.is_relative_to(folder) else path): sha256(path)
            for path in files
        }

    def config_digest(self) -> str:
        """SHA-256 of the configuration file."""
        with writing(self.config):
            return hashlib.sha256(read_file(self.config)).hexdigest()

    def require_same_inputs(self, record: Mapping[str, Any]) -> None:
        """Check that the input files that a manifest names have not changed since the run began.

        Raises:
            RunDirectoryError: one is missing, has changed, or is a link.
        """
        known = record.get("files", {})
        for path in Task.from_record(record, self.path).files.values():
            name = str(path.relative_to(self.path))
            try:
                for parent in path.relative_to(self.path).parents[:-1]:
                    require_folder(self.path / parent)
                digest = hashlib.sha256(read_file(path)).hexdigest()
            except OSError as error:
                raise RunDirectoryError(
                    f"{path} must exist, an input of the run, got: {error.strerror or error}; put it back"
                ) from error
            if digest != known.get(name, digest):
                raise RunDirectoryError(
                    f"{path} must be as when the run began, but has changed; put it back, or start a new run"
                )

    def save_checkpoint(self, stage: str, checkpoint: Checkpoint) -> None:
        """Write a checkpoint of a stage and delete all but its newest two."""
        write_checkpoint(self._folder(CHECKPOINTS, stage), checkpoint)

    def stage_mesh(self, stage: str) -> Path:
        """The mesh of a stage that textures the surface it starts from."""
        return self._folder(CHECKPOINTS, stage) / MESH

    def checkpoints(self, stage: str) -> list[Path]:
        """The JSON files of a stage's checkpoints, newest first."""
        folder = self.path / CHECKPOINTS / stage
        return checkpoint_files(folder) if self._is_begun(stage) else []

    def load_checkpoint(self, stage: str) -> Checkpoint | None:
        """The newest valid checkpoint of a stage, None where none was written.

        Raises:
            RunDirectoryError: all checkpoints are damaged.
        """
        return read_newest_checkpoint(self.path / CHECKPOINTS / stage) if self._is_begun(stage) else None

    def _is_begun(self, stage: str) -> bool:
        folder = self.path / CHECKPOINTS / stage
        if not os.path.lexists(folder):
            return False
        with writing(folder):
            require_folder(folder)
        return True


def clip_image_name(step: int) -> str:
    """The file name of the image of what clipping does in a step."""
    return f"clipping-{step:06d}.png"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_empty(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, no link, with no content but temporary files."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    with os.scandir(entry.path) as inner:
        return all(is_temporary(item.name) for item in inner)


def _is_kept(line: bytes, stage: str, after: int) -> bool:
    """Whether a line of metrics is complete, and of another stage or not after a step."""
    try:
        values = json.loads(line)
        return line.endswith(b"\n") and (values["stage"] != stage or int(values["step"]) <= after)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return False
