"""Output on the terminal: progress and messages on stderr, the paths of new files on stdout."""

import os
import sys
import time
import unicodedata
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from pgc3d.errors import InputError

LONGEST = 2000  # characters of a line
SECONDS = 5.0  # between two lines of progress where there is no terminal
# Of a bar: without tqdm's own estimate, which holds for steps of equal cost only.
FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
# Unicode's bidirectional controls, which reorder the text beside them.
BIDIRECTIONAL = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain_line(text: str) -> str:
    """The text as one line of limited length; line breaks, control characters and surrogates are escaped."""

    def escaped(character: str) -> str:
        if unicodedata.category(character) in {"Cc", "Cs", "Zl", "Zp"} or character in BIDIRECTIONAL:
            return character.encode("unicode_escape", "surrogatepass").decode("ascii")
        return character

    line = "".join(map(escaped, text))
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 200]} ... {line[-200:]}"


# Receives the lines of `notify` in place of stderr.
listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def notify(message: str) -> None:
    """Print a line on stderr, or pass it to the `listener`."""
    receive = listener.get()
    (print_error if receive is None else receive)(message)


def print_error(message: str) -> None:
    """Print a line on stderr; nothing where stderr is closed."""
    if message and sys.stderr is not None:
        try:
            print(plain_line(message), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            _discard("stderr")


def emit(line: str) -> None:
    """Print a line on stdout during a run, which continues where stdout is closed or full."""
    _emit(plain_line(line))


def emit_json(line: str) -> None:
    """Print a line of JSON on stdout, of any length; as `emit`."""
    _emit(line)


def _emit(line: str) -> None:
    try:
        _write(f"{line}\n")
    except BrokenPipeError:
        _discard("stdout")
    except OSError as error:
        _discard("stdout")
        print_error(f"warning: standard output must be writable, got: {error.strerror}; {plain_line(line)}")


def deliver(text: str, *, ascii_text: Callable[[], str] | None = None) -> None:
    """Write the result of a command to stdout.

    Args:
        text: complete lines.
        ascii_text: returns the same in ASCII, for a terminal whose encoding lacks a character of `text`;
            without it such characters are escaped.

    Raises:
        InputError: stdout cannot be written; a reader that has closed its end is no error.
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


def prepare_streams() -> None:
    """Escape characters that stdout and stderr cannot encode, and open /dev/null for closed descriptors.

    Otherwise a file that is opened later would get the descriptor of stdout.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def close_stdout() -> None:
    """Flush stdout, so that the interpreter does not fail to flush it at the end of the process."""
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
    """Discard everything that is written to a stream from now on, also at the end of the process."""
    stream = getattr(sys, name)
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        setattr(sys, name, None)


def print_nothing() -> None:
    """Discard everything that is written to both streams from now on."""
    _discard("stdout")
    _discard("stderr")


class Bar:
    """An event callback that prints progress on stderr, and the path of each new file on stdout.

    On a terminal and in a notebook the progress is a bar; elsewhere, as in a log file, a line now and then.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, prefix: str = "", drawn: bool = True
    ) -> None:
        """Begin without a bar.

        Args:
            clock: in seconds.
            prefix: of every line on stderr, as where several runs are at work.
            drawn: whether there may be a bar.
        """
        self._bar: Any = None
        self._clock, self._prefix, self._drawn = clock, prefix, drawn
        self._start: tuple[float, int] | None = None  # time, and steps that were done at it
        self._last = 0.0
        self._measured = ""
        self._stage = ""

    def __call__(self, event: Any) -> None:
        if event.message:
            notify(f"{self._prefix}{event.message}")
        elif event.file is not None:
            if event.kind in {"input", "result"}:
                self.close()
                emit(str(event.file))
        elif event.report is not None:
            self._step(event)
        else:
            self.close()
            notify(f"{self._prefix}{event.phase} ...")

    def _step(self, event: Any) -> None:
        report = event.report
        if event.stage != self._stage:
            self.close()
            self._stage = event.stage
        if report.metrics:
            clipped = [v for name, v in report.metrics.items() if name.endswith("/clipped_fraction")]
            fraction = f"clipped {100 * sum(clipped) / len(clipped):.0f} %, " if clipped else ""
            self._measured = f"{fraction}memory {event.memory / 1e9:.2f} GB"
        if self._drawn and _draws_bars():
            self._draw(event)
        else:
            self._print_step(event)

    def _draw(self, event: Any) -> None:
        from tqdm.auto import tqdm

        report = event.report
        try:
            if self._bar is None:
                label = f"{self._prefix}{_label(event)}"
                self._bar = tqdm(
                    total=report.steps, initial=report.step - 1, desc=label, unit="step", bar_format=FORMAT
                )
            left = "" if event.seconds_left is None else f"{_minutes(event.seconds_left)} left"
            self._bar.set_postfix_str(", ".join(filter(None, (self._measured, left))), refresh=False)
            self._bar.update(report.step - self._bar.n)
        except OSError:  # the terminal was closed
            self._bar = None
            _discard("stderr")

    def _print_step(self, event: Any) -> None:
        report, now = event.report, self._clock()
        if self._start is None:
            self._start, self._last = (now, report.step), now
        if now - self._last < SECONDS and report.step < report.steps:
            return
        self._last = now
        start, done = self._start
        remaining = event.seconds_left
        if remaining is None:
            remaining = (now - start) / max(report.step - done, 1) * (report.steps - report.step)
        place = f"{_label(event)}: step {report.step} of {report.steps}"
        parts = (place, self._measured, f"{_minutes(remaining)} left")
        notify(f"{self._prefix}{', '.join(part for part in parts if part)}")

    def close(self) -> None:
        """End the current bar; the next step starts a new one."""
        self._start = None
        if self._bar is not None:
            try:
                self._bar.close()
            except OSError:
                _discard("stderr")
            self._bar = None


def _label(event: Any) -> str:
    """The phase, with the name of the stage where it has one of its own."""
    return f"{event.phase} {event.stage}" if event.stage not in {"", "main"} else str(event.phase)


def _draws_bars() -> bool:
    """Whether stderr is a terminal or a notebook, on which a line can be overwritten."""
    if os.environ.get("TERM") == "dumb":
        return False
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    try:
        return hasattr(shell, "kernel") or (sys.stderr is not None and sys.stderr.isatty())
    except ValueError:  # closed
        return False


def _minutes(seconds: float) -> str:
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"
