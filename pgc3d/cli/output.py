"""What a command prints: text for people, JSON lines for other programs, or only errors and results."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pgc3d.cli.console import Bar, emit, emit_json, listener, notify, print_error
from pgc3d.cli.json_lines import End, Error, File, Line, Message, Phase, Start, Step, Warning, encode
from pgc3d.errors import InputError

COMMANDS = ("text", "image", "texture", "resume", "batch")  # that have --json and --quiet
JSON, QUIET = "--json", "--quiet"


@runtime_checkable
class Progress(Protocol):
    """An event callback, see `events.Event`."""

    def __call__(self, event: Any) -> None:
        """Print an event."""

    def close(self) -> None:
        """End what is drawn of the progress; the next event starts it again."""


@runtime_checkable
class Output(Protocol):
    """Where a command's lines go."""

    def warn(self, text: str) -> None:
        """Print a warning of a library or of pgc3d itself."""

    def fail(self, text: str, code: int) -> None:
        """Print the error that ends the command."""

    def fail_job(self, job: str, text: str) -> None:
        """Print why a job of a batch failed."""

    def start(self, run: Path | str) -> None:
        """Print that a run or a batch begins."""

    def progress(self, job: str | None = None, *, drawn: bool = True) -> Progress:
        """What prints the events of a run, or of a batch's job."""

    def end(self, end: End, *, result: str = "", advice: str = "") -> None:
        """Print how the command ended: a line for stdout, or one about what to do next."""


class Text:
    """Lines for people: progress on stderr, and the paths of files on stdout."""

    def warn(self, text: str) -> None:
        """Print a line on stderr."""
        notify(f"warning: {text}")

    def fail(self, text: str, code: int) -> None:
        """Print a line on stderr."""
        notify(f"error: {text}")

    def fail_job(self, job: str, text: str) -> None:
        """Nothing: the batch's own lines have it."""

    def start(self, run: Path | str) -> None:
        """Nothing: the phases follow."""

    def progress(self, job: str | None = None, *, drawn: bool = True) -> Progress:
        """A bar, or lines where there is no terminal."""
        return Bar(prefix="" if job is None else f"[{job}] ", drawn=drawn)

    def end(self, end: End, *, result: str = "", advice: str = "") -> None:
        """Print the result on stdout, and the advice on stderr."""
        notify(advice)
        if result:
            emit(result)


class Quiet:
    """Only errors, on stderr, and the paths of results, on stdout."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def fail(self, text: str, code: int) -> None:
        """Print a line on stderr."""
        print_error(f"error: {text}")

    def fail_job(self, job: str, text: str) -> None:
        """Print a line on stderr."""
        print_error(f"error: [{job}] {text}")

    def start(self, run: Path | str) -> None:
        """Nothing."""

    def progress(self, job: str | None = None, *, drawn: bool = True) -> Progress:
        """What prints the paths of results."""
        return _Results()

    def end(self, end: End, *, result: str = "", advice: str = "") -> None:
        """Print what to do after a run that was stopped."""
        if advice:
            print_error(advice)


class _Results:
    def __call__(self, event: Any) -> None:
        if event.file is not None and event.kind == "result":
            emit(str(event.file))

    def close(self) -> None:
        """Nothing is drawn."""


class JsonLines:
    """The lines of `json_lines` on stdout; stderr stays empty."""

    def __init__(self, command: str, clock: Callable[[], float] = time.time) -> None:
        self._command, self._clock = command, clock

    def write(self, line: Line, job: str | None = None) -> None:
        """Write one line."""
        emit_json(encode(line, time=self._clock(), job=job))

    def note(self, text: str) -> None:
        """Write a line for the user."""
        if text:
            self.write(Message(text))

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.write(Warning(text))

    def fail(self, text: str, code: int) -> None:
        """Write the last line."""
        self.write(Error(text, code))

    def fail_job(self, job: str, text: str) -> None:
        """Write a warning of the job."""
        self.write(Warning(text), job)

    def start(self, run: Path | str) -> None:
        """Write the first line of a run."""
        from pgc3d import __version__

        self.write(Start(self._command, __version__, str(run)))

    def progress(self, job: str | None = None, *, drawn: bool = True) -> Progress:
        """What writes each event as a line."""
        return _JsonProgress(self, job)

    def end(self, end: End, *, result: str = "", advice: str = "") -> None:
        """Write the last line."""
        self.note(advice)
        self.write(end)


class _JsonProgress:
    def __init__(self, output: JsonLines, job: str | None) -> None:
        self._output, self._job = output, job

    def __call__(self, event: Any) -> None:
        self._output.write(_line_of(event), self._job)

    def close(self) -> None:
        """Nothing is drawn."""


def _line_of(event: Any) -> Line:
    if event.message:
        return Message(event.message)
    if event.file is not None:
        return File(str(event.file), event.kind, event.stage)
    if event.report is None:
        return Phase(event.phase)
    report = event.report
    return Step(
        event.stage, report.step, report.steps, event.progress, event.seconds_left,
        report.metrics, event.memory if report.metrics is not None else None,
    )  # fmt: skip


_current: ContextVar[Output] = ContextVar("output", default=Text())  # noqa: B039 - it has no state


def current() -> Output:
    """The output of the command that runs."""
    return _current.get()


def choose_output(arguments: Sequence[str]) -> None:
    """Take the output that a command line names, before it is parsed: also its mistakes are printed there.

    Args:
        arguments: those behind `pgc3d`.

    Raises:
        InputError: it names two.
    """
    options = [text for text in arguments if text in {JSON, QUIET, "--"}]
    options = options[: options.index("--")] if "--" in options else options
    command = arguments[0] if arguments else ""
    output: Output = Text()
    note: Callable[[str], None] | None = None
    if command in COMMANDS and JSON in options:
        output = lines = JsonLines(command)
        note = lines.note
    elif command in COMMANDS and QUIET in options:
        output, note = Quiet(), _discard
    if note is not None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of downloads, on stderr
    _current.set(output)
    listener.set(note)
    if command in COMMANDS and {JSON, QUIET} <= set(options):
        raise InputError("--json must not be given beside --quiet, got both; remove one of them")


def _discard(text: str) -> None:
    pass


class Warnings(logging.Handler):
    """Prints warnings that libraries and pgc3d itself log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        current().warn(record.getMessage())
