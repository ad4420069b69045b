"""The lines of `--json`: one JSON object each on stdout, and nothing else there.

Every line has `format` (1), `event` (the name of one of the classes below, in lower case), `time` (seconds
since the epoch) and `job` (the name of a batch's job, null elsewhere), and the fields of its class. Numbers
that are not finite are null. The first line of a run is `start`, the last one `end` or `error`; lines before
`start` are about automatic choices. A process that is killed writes no last line.

A later version of pgc3d may add events and fields without another `format`; a reader ignores what it does not
support.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

FORMAT = 1


@dataclass(frozen=True)
class Start:
    """A run begins, or continues."""

    command: str  # text, image, texture, resume or batch
    version: str  # of pgc3d
    run: str  # the run's folder, or that of the batch


@dataclass(frozen=True)
class Phase:
    """A part of a run begins: build, optimize, export or render."""

    phase: str


@dataclass(frozen=True)
class Message:
    """A line for the user, as about an automatic choice."""

    text: str


@dataclass(frozen=True)
class Warning:
    """A line about something that may spoil the result."""

    text: str


@dataclass(frozen=True)
class Step:
    """A step is done."""

    stage: str
    step: int  # that are done of the stage
    steps: int  # of the stage
    progress: float  # of the steps of all stages, in [0, 1]
    seconds_left: float | None  # estimate for the rest of the run; null at its beginning
    metrics: Mapping[str, float | None] | None  # means since the last ones; null between log intervals
    memory_bytes: int | None  # in use on the device; null where metrics are


@dataclass(frozen=True)
class File:
    """A file was written."""

    path: str
    kind: str  # input, preview, clipping, checkpoint or result; clipping: see `clip_images`
    stage: str  # of a preview, of clipping or a checkpoint, else ""


@dataclass(frozen=True)
class End:
    """The run is done, or was stopped by a signal and saved."""

    status: str  # done, stopped, or failed: where jobs of a batch failed
    exit_code: int
    run: str
    files: tuple[str, ...]  # the results


@dataclass(frozen=True)
class Error:
    """The run failed; the state that was saved can be resumed."""

    text: str  # what must hold, what was found, what to do
    exit_code: int


Line: TypeAlias = Start | Phase | Message | Warning | Step | File | End | Error


def encode(line: Line, *, time: float, job: str | None = None) -> str:
    """The line as JSON in ASCII, without a line break.

    Args:
        line: one of the classes above.
        time: seconds since the epoch.
        job: name of a batch's job.
    """
    head = {"format": FORMAT, "event": type(line).__name__.lower(), "time": round(time, 3), "job": job}
    return json.dumps(_finite(head | asdict(line)), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
