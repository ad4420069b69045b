"""The run directory: everything a run leaves on the disk, written so that a crash loses little.

    RUN/config.yaml             the resolved configuration, valid as input
    RUN/manifest.json           prompt, versions, device, timings, peak memory, files, exit status
    RUN/metrics.jsonl           one JSON object per log interval
    RUN/previews/               pictures of the asset while it grows
    RUN/checkpoints/step-*.safetensors and .json   tensors, and what describes them; the last two are kept

A file appears under its name only when it is complete: written beside it, flushed, then renamed.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pgc3d.errors import RunDirectoryError
from pgc3d.export.atomic import replace_files

logger = logging.getLogger(__name__)

KEPT_CHECKPOINTS = 2
CONFIG, MANIFEST, METRICS, LOCK = "config.yaml", "manifest.json", "metrics.jsonl", ".lock"


@dataclass(frozen=True)
class Checkpoint:
    """The state at a step edge; `values` is whatever JSON can hold."""

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunDirectoryError(
                f"the disk must have room, but it was full while writing {path}; free some space and use "
                "`pgc3d resume`"
            ) from error
        raise RunDirectoryError(f"{path} must be writable, got: {error.strerror or error}") from error


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or all of the new one, even after a power cut."""
    with writing(path):
        replace_files({path: content})


def sha256(path: Path) -> str:
    """Hash of a file's content in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_free_space(folder: Path, size: int) -> None:
    """Refuse a folder whose disk has less than `size` bytes left.

    Raises:
        RunDirectoryError: there is less.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < size:
        raise RunDirectoryError(
            f"the disk of {folder} must have {size / 1e6:.0f} MB free for this run, found "
            f"{free / 1e6:.0f} MB; free some space or choose another --out"
        )


def new_folder(path: Path, *, alternative: str = "") -> None:
    """Make a folder; one that exists must be empty, and an error names the alternative.

    Raises:
        RunDirectoryError: the folder holds something, or cannot be made.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(
            f"the output folder must not exist or be empty, but {path} is not; "
            f"choose another --out{alternative}"
        )
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


class RunDirectory:
    """A run's folder; as a context manager it is locked against other processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make a new folder; one that exists must be empty.

        Raises:
            RunDirectoryError: the folder holds something, or cannot be made.
        """
        new_folder(path, alternative=f", or continue it with `pgc3d resume {path}`")
        with writing(path):
            for folder in (path / "previews", path / "checkpoints"):
                folder.mkdir(exist_ok=True)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """An existing run.

        Raises:
            RunDirectoryError: the folder is not a run.
        """
        parts = {CONFIG: Path.is_file, MANIFEST: Path.is_file, "checkpoints": Path.is_dir}
        for name, is_there in parts.items():
            if not is_there(path / name):
                raise RunDirectoryError(
                    f"{path} must be the folder of a run, but {path / name} is missing; give the folder that "
                    "`pgc3d text` wrote"
                )
        return cls(path)

    def __enter__(self) -> "RunDirectory":
        with writing(self.path / LOCK):
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise RunDirectoryError(
                f"{self.path} must not be in use, but process {owner} is writing it; wait for it or stop it"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._lock = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)  # the kernel drops the lock, also when the process dies
            self._lock = None

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    def preview(self, step: int) -> Path:
        """Where the picture of a step goes."""
        return self.path / "previews" / f"step-{step:06d}.png"

    def log_metrics(self, metrics: Mapping[str, float | int]) -> None:
        """Append one line."""
        with writing(self.path / METRICS), (self.path / METRICS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(metrics)) + "\n")

    def drop_metrics(self, *, after: int) -> None:
        """Keep the lines up to a step; later ones and a torn one go."""
        path = self.path / METRICS
        if not path.is_file():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if (step := _step_of(line)) is not None and step <= after]
        if len(kept) < len(lines):
            replace_file(path, b"".join(kept))

    def read_manifest(self) -> dict[str, Any]:
        """What `write_manifest` wrote last.

        Raises:
            RunDirectoryError: it is not readable.
        """
        path = self.path / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunDirectoryError(f"{path} must be a run's manifest, but is damaged: {error}") from error
        if not isinstance(manifest, dict):
            raise RunDirectoryError(f"{path} must be a run's manifest, but is damaged: it holds no object")
        return manifest

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        replace_file(self.path / MANIFEST, (json.dumps(manifest, indent=2, default=str) + "\n").encode())

    def hash_files(self, paths: Iterator[Path] | list[Path]) -> dict[str, str]:
        """SHA-256 of files, by their name inside the folder (in full where they lie outside)."""
        return {
            str(path.relative_to(self.path) if path.is_relative_to(self.path) else path): sha256(path)
            for path in paths
        }

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint and drop all but the newest two; the JSON comes last and makes it valid."""
        from safetensors.torch import save

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
        content = save({name: tensor.clone() for name, tensor in tensors.items()})
        target = self.path / "checkpoints" / f"step-{checkpoint.step:06d}.safetensors"
        replace_file(target, content)
        digest = hashlib.sha256(content).hexdigest()
        record = {"step": checkpoint.step, "sha256": digest, "values": dict(checkpoint.values)}
        replace_file(target.with_suffix(".json"), (json.dumps(record) + "\n").encode())
        for old in self.checkpoints()[KEPT_CHECKPOINTS:]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def checkpoints(self) -> list[Path]:
        """The JSON files of the checkpoints, newest first."""
        return sorted((self.path / "checkpoints").glob("step-*.json"), reverse=True)

    def load_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where none was ever written.

        A damaged one is passed over with a warning.

        Raises:
            RunDirectoryError: there are checkpoints and all of them are damaged.
        """
        found = self.checkpoints()
        for path in found:
            try:
                return _read_checkpoint(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                logger.warning("checkpoint %s is damaged (%s); trying the one before it", path.stem, error)
        if found:
            raise RunDirectoryError(
                f"{self.path} must have a whole checkpoint, but all {len(found)} are damaged; start a new run"
            )
        return None


def _read_checkpoint(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load

    record = json.loads(path.read_text(encoding="utf-8"))
    content = path.with_suffix(".safetensors").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != record["sha256"]:
        raise ValueError(f"sha256 must be {record['sha256'][:12]}, got {found[:12]}")
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return Checkpoint(step=int(record["step"]), tensors=tensors, values=record["values"])


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics, None where it was torn."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None
