"""The input files of a job on another machine: its own copies where it has equal ones, else those sent."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pgc3d.disk import sha256
from pgc3d.mesh_io.reader import source_files
from pgc3d.plain_files import require_inside
from pgc3d.task import Task


@dataclass(frozen=True)
class SentFile:
    """A file of a job's inputs."""

    path: Path  # on the machine that sends it, absolute
    digest: str  # SHA-256
    content: Any  # where the bytes are: a reference of Ray's object store


@dataclass(frozen=True)
class SentInput:
    """One of the inputs, with the files beside it that it names, as the textures of a mesh."""

    file: SentFile
    beside: Mapping[str, SentFile]  # by their paths in the folder of `file`


def sent_inputs(task: Task, put: Callable[[bytes], Any]) -> dict[str, SentInput]:
    """The input files of a task, by the names of its attributes.

    Args:
        task: whose files exist.
        put: stores bytes and returns what stands for them.

    Raises:
        OSError: a file cannot be read.
    """
    found = {}
    for kind, path in task.files.items():
        own = path.absolute()
        others = source_files(own) if kind == "mesh" else []
        beside = {
            other.relative_to(own.parent).as_posix(): _sent(other, put)
            for other in dict.fromkeys(others)
            if other != own and other.is_relative_to(own.parent)
        }
        found[kind] = SentInput(_sent(own, put), beside)
    return found


def _sent(path: Path, put: Callable[[bytes], Any]) -> SentFile:
    content = path.read_bytes()
    return SentFile(path, hashlib.sha256(content).hexdigest(), put(content))


def received(task: Task, inputs: Mapping[str, SentInput], folder: Path, get: Callable[[Any], bytes]) -> Task:
    """The task with paths of this machine.

    Args:
        task: as it was sent.
        inputs: of `sent_inputs`.
        folder: for files that this machine does not have.
        get: returns the bytes of what `put` returned.

    Raises:
        ValueError: the path of a file leads out of its folder.
        OSError: a file cannot be written.
    """
    paths = {kind: _received(sent, folder / kind, get) for kind, sent in inputs.items()}
    return replace(task, **paths)  # type: ignore[arg-type] # the attributes of `Task.files`


def _received(sent: SentInput, folder: Path, get: Callable[[Any], bytes]) -> Path:
    if all(_is_here(file) for file in (sent.file, *sent.beside.values())):
        return sent.file.path
    target = folder / sent.file.path.name  # a run is named after it in its manifest
    for path, file in {target.name: sent.file, **sent.beside}.items():
        place = folder / require_inside(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(get(file.content))
    return target


def _is_here(file: SentFile) -> bool:
    return file.path.is_file() and sha256(file.path) == file.digest
