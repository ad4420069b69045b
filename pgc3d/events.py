"""What a run reports to its caller."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pgc3d.optimize import StepReport

Phase = Literal["build", "optimize", "export", "render"]
FileKind = Literal["input", "preview", "clipping", "checkpoint", "result"]


@dataclass(frozen=True)
class Event:
    """Progress of a run: a message, a step, a file, or without any of these the start of a phase."""

    phase: Phase
    message: str = ""  # one line for the user
    report: StepReport | None = None  # after a step
    memory: int = 0  # bytes in use on the device, at the log interval
    file: Path | str | None = None  # that was written; text where it is a URL, of a batch
    kind: FileKind = "result"  # of the file
    stage: str = ""  # name of the stage, with a report, a preview or a checkpoint
    progress: float = 0.0  # of the steps of all stages, in [0, 1], with a report
    seconds_left: float | None = None  # estimate for the rest of the run, with a report


EventCallback = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing: the default of `on_event`."""
