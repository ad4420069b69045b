"""What a run says on the terminal: its progress and messages on stderr, the files made on stdout."""

import logging
import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any

from pgc3d.errors import InputError

LONGEST = 2000  # characters of a line
SECONDS = 5.0  # between two lines of progress where there is no terminal
# They reorder what stands beside them.
TURNED = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain_line(text: str) -> str:
    """The text as one line: line breaks, control characters and bytes that are no text as escapes."""

    def escaped(character: str) -> str:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in TURNED:
            return character.encode("unicode_escape", "surrogatepass").decode("ascii")
        return character

    line = "".join(map(escaped, text))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 200]} ... {line[-200:]}"


def notify(message: str) -> None:
    """A line on stderr; where nobody reads that any more, nothing."""
    if message and sys.stderr is not None:
        try:
            print(plain_line(message), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            _discard("stderr")


def tell(line: str) -> None:
    """A line on stdout beside the work, which goes on where stdout is closed or full."""
    try:
        _write(f"{plain_line(line)}\n")
    except BrokenPipeError:
        _discard("stdout")
    except OSError as error:
        _discard("stdout")
        notify(f"warning: standard output must be writable, got: {error.strerror}; {line}")


def deliver(text: str, *, ascii_text: Callable[[], str] | None = None) -> None:
    """Write what a command was called for on stdout.

    Args:
        text: whole lines.
        ascii_text: the same for a terminal that lacks a character; else that becomes an escape.

    Raises:
        InputError: it cannot be written; a reader that left is none.
    """
    try:
        if ascii_text is not None and not _fits(text):
            text = ascii_text()
        _write(text)
    except BrokenPipeError:
        _discard("stdout")
    except OSError as error:
        _discard("stdout")
        raise InputError(f"standard output must be writable, got: {error.strerror}") from error


class Warnings(logging.Handler):
    """Says what libraries and pgc3d itself log."""

    def emit(self, record: logging.LogRecord) -> None:
        """A line on stderr."""
        notify(f"warning: {record.getMessage()}")


def prepare_streams() -> None:
    """Make stdout write every character, and keep files that are opened later from taking its place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def close_stdout() -> None:
    """Write what is left, so that the end of the process finds nothing that it cannot write."""
    try:
        _write("")
    except OSError:
        _discard("stdout")


def _fits(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _write(text: str) -> None:
    if sys.stdout is not None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _discard(name: str) -> None:
    """Let what is written to a stream from now on, at the end of the process too, go nowhere."""
    stream = getattr(sys, name)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        setattr(sys, name, None)


class Bar:
    """Tells the events of a run: progress on stderr, a line on stdout for each file made.

    On a terminal and in a notebook the progress is a bar; elsewhere, as in a log file, a line now and then.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar: Any = None
        self._clock = clock
        self._start: tuple[float, int] | None = None  # when, and the steps that were done then
        self._last = 0.0
        self._measured = ""

    def __call__(self, event: Any) -> None:
        if event.message:
            notify(event.message)
        elif event.file is not None:
            self.close()
            tell(str(event.file))
        elif event.report is not None:
            self._step(event)
        else:
            self.close()
            notify(f"{event.phase} ...")

    def _step(self, event: Any) -> None:
        report = event.report
        if report.metrics:
            clipped = [v for name, v in report.metrics.items() if name.endswith("/clipped_fraction")]
            share = f"clipped {100 * sum(clipped) / len(clipped):.0f} %, " if clipped else ""
            self._measured = f"{share}memory {event.memory / 1e9:.2f} GB"
        if _draws_bars():
            self._draw(event)
        else:
            self._tell_step(event)

    def _draw(self, event: Any) -> None:
        from tqdm.auto import tqdm

        report = event.report
        try:
            if self._bar is None:
                self._bar = tqdm(total=report.steps, initial=report.step - 1, desc=_label(event), unit="step")
            self._bar.update(report.step - self._bar.n)
            if report.metrics:
                self._bar.set_postfix_str(self._measured)
        except OSError:  # the terminal is gone
            self._bar = None
            _discard("stderr")

    def _tell_step(self, event: Any) -> None:
        report, now = event.report, self._clock()
        if self._start is None:
            self._start, self._last = (now, report.step), now
        if now - self._last < SECONDS and report.step < report.steps:
            return
        self._last = now
        began, done = self._start
        left = (now - began) / max(report.step - done, 1) * (report.steps - report.step)
        where = f"{_label(event)}: step {report.step} of {report.steps}"
        notify(", ".join(part for part in (where, self._measured, f"{_minutes(left)} left") if part))

    def close(self) -> None:
        """Leave the bar as it is; the next event starts another one."""
        self._start = None
        if self._bar is not None:
            try:
                self._bar.close()
            except OSError:
                _discard("stderr")
            self._bar = None


def _label(event: Any) -> str:
    """What a bar shows: the phase, and the stage in a run of several."""
    return f"{event.phase} {event.stage}" if event.stage not in {"", "main"} else str(event.phase)


def _draws_bars() -> bool:
    """Whether a line that was written can be replaced."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    try:
        return hasattr(shell, "kernel") or (sys.stderr is not None and sys.stderr.isatty())
    except ValueError:  # closed
        return False


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
