"""A job of a batch, how it ended, and the record of it in the status file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pgc3d.config import Config
from pgc3d.disk import sha256
from pgc3d.task import Task

State = Literal["waiting", "running", "done", "failed"]


@dataclass(frozen=True)
class Job:
    """One entry of a list."""

    name: str  # of its folder
    digest: str  # of the entry and its input files
    task: Task = field(default_factory=Task)
    config: Config = field(default_factory=Config)
    seeds: tuple[int, ...] = (0,)
    error: str = ""  # why it cannot run
    is_invalid: bool = False  # whether the error is one of the entry, not of the machine


@dataclass(frozen=True)
class Ranked:
    """A seed of a sweep, and what it was ranked by, see `ranking`; only the error where it failed."""

    seed: int
    similarity: float = 0.0
    consistency: float = 0.0
    score: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the process of a job ended."""

    state: Literal["done", "failed", "stopped"]
    reason: str = ""  # one line, of a failure
    asset: str = ""  # path of the mesh file
    seed: int | None = None
    ranking: tuple[Ranked, ...] = ()
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)  # resident, and cuda on such a device


@dataclass(frozen=True)
class Entry:
    """The record of a job in the status file."""

    name: str
    digest: str
    state: State = "waiting"
    reason: str = ""
    folder: str = ""
    asset: str = ""
    seed: int | None = None
    seconds: float = 0.0  # of all processes that worked on it and ended by themselves
    peak_memory_bytes: Mapping[str, int] = field(default_factory=dict)
    ranking: tuple[Ranked, ...] = ()


def digest_of(values: Mapping[str, Any], files: Mapping[str, Path]) -> str:
    """SHA-256 over an entry's values and the contents of the files that it names."""
    contents = sorted(sha256(path) for path in files.values())  # without the folder, which may be moved
    text = json.dumps([dict(values), contents], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
