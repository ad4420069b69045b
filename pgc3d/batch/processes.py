"""Jobs in processes of their own, some beside each other: what one of them does not free, its end frees.

Unlike `evaluation.processes.in_processes`, one that is killed, as by the system where memory runs out, does
not end the others, and each can be stopped between two steps. A process that its parent left behind, when
that was killed, ends at once, so that the job's folder can be used again.
"""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from pgc3d.signals import STOPPING, StopFlag

POLL = 0.2  # seconds between two reads of the parent's stop flag
STEP_EVENTS = 0.5  # seconds between two events of steps; each is a message to the parent
Work = Callable[..., Any]  # (*arguments, on_event=, stop=) -> the answer
Event = Any  # `events.Event`; importing it here would delay each process by the seconds that torch takes


@dataclass(frozen=True)
class Died:
    """The answer for a process that ended without one."""

    exit_code: int

    def __str__(self) -> str:
        if self.exit_code >= 0:
            return f"the process of a run must end with a result, but ended with code {self.exit_code}"
        name = signal.Signals(-self.exit_code).name
        hint = "; the system does so where memory runs out: use --low-memory, or fewer --jobs"
        return f"the process of a run must end by itself, but was killed by {name}" + (
            hint if name == "SIGKILL" else ""
        )


@dataclass
class _Running:
    process: Any
    connection: Connection
    answer: Any = None
    stopped: bool = False  # whether the stop flag was sent


def run_processes(
    work: Work,
    tasks: Mapping[str, tuple[Any, ...]],
    *,
    processes: int,
    stop: StopFlag,
    on_begin: Callable[[str], None],
    on_event: Callable[[str, Event], None],
) -> Iterator[tuple[str, Any]]:
    """The answers of `work`, with the task's key, as they come; each call has a process of its own.

    Args:
        work: pickled, as are arguments and answers.
        tasks: arguments by key; begun in their order.
        processes: how many at once.
        stop: once its `signal` is set, no further task begins, and those that run receive it.
        on_begin: called with the key of each task that begins.
        on_event: called with the key and each event of a task.

    Yields:
        A key, and the answer or a `Died`.
    """
    remaining, running = list(tasks), dict[str, _Running]()
    resource_tracker.ensure_running()  # which changes the signal mask, see `_held_signals`
    try:
        while running or (remaining and stop.signal is None):
            while remaining and len(running) < processes and stop.signal is None:
                key = remaining.pop(0)
                on_begin(key)
                running[key] = _start(work, tasks[key])
            wait([item.connection for item in running.values()], timeout=POLL)
            for key, item in list(running.items()):
                _send_stop(item, stop)
                if _receive(key, item, on_event):
                    del running[key]
                    yield key, item.answer
    finally:
        for item in running.values():  # only after an error of the caller
            item.process.kill()


def _start(work: Work, arguments: tuple[Any, ...]) -> _Running:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(work, arguments, theirs), daemon=True)
    with _held_signals():
        process.start()
    theirs.close()  # so that the end of the child closes the pipe
    return _Running(process, ours)


@contextmanager
def _held_signals() -> Iterator[None]:
    """Delay the signals that stop a batch; a process that starts in the block inherits this.

    In a terminal they go to all processes, and the parent decides what they do.
    """
    numbers = [getattr(signal, name) for name in STOPPING]
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _send_stop(item: _Running, stop: StopFlag) -> None:
    if stop.signal is not None and not item.stopped:
        item.stopped = True
        with suppress(OSError):  # it has ended
            item.connection.send(stop.signal)


def _receive(key: str, item: _Running, on_event: Callable[[str, Event], None]) -> bool:
    """Read all messages of a process; returns whether it has ended."""
    try:
        while item.connection.poll():
            kind, content = item.connection.recv()
            if kind == "event":
                on_event(key, content)
            else:
                item.answer = content
        return False
    except (EOFError, OSError):
        item.connection.close()
        item.process.join()
        if item.answer is None:
            item.answer = Died(item.process.exitcode)
        item.process.close()
        return True


def _child(work: Work, arguments: tuple[Any, ...], connection: Connection) -> None:
    numbers = [getattr(signal, name) for name in STOPPING]
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
    logging.basicConfig(level=logging.WARNING, format="warning: %(message)s")
    stop = StopFlag()
    threading.Thread(target=_listen, args=(connection, stop), daemon=True).start()
    connection.send(("answer", work(*arguments, on_event=_sender(connection), stop=stop)))


def _listen(connection: Connection, stop: StopFlag) -> None:
    """Set the flag when the parent sends a signal's number; end the process when the parent has died."""
    try:
        while True:
            stop.signal = connection.recv()
    except (EOFError, OSError):
        os._exit(1)


def _sender(connection: Connection) -> Callable[[Event], None]:
    """An event callback that sends events to the parent, those of steps now and then."""
    last = 0.0

    def send(event: Event) -> None:
        nonlocal last
        if event.report is not None:
            now = time.monotonic()
            if now - last < STEP_EVENTS and event.report.step < event.report.steps:
                return
            last = now
        connection.send(("event", event))

    return send
