"""Messages between the workers of a cluster and the process that runs a batch, by an actor of Ray.

This module imports nothing heavy: the actor's process passes on what it does not unpickle.
"""

import logging
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pgc3d.signals import StopFlag

INTERVAL = 1.0  # seconds between two messages of a worker; each also brings the stop flag back
PATIENCE = 10.0  # seconds that a worker waits for an answer

Message = tuple[str, str, str, bytes]  # name of a job, id and host name of the worker's node, pickled events


class Link:
    """The actor: keeps messages until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._signal: int | None = None

    def report(self, message: Message) -> int | None:
        """Keep a message; returns the number of the signal that stops the batch."""
        self._messages.append(message)
        return self._signal

    def take(self, signal: int | None) -> list[Message]:
        """The messages since the last call, in their order; `signal` stops the batch."""
        self._signal = signal
        messages, self._messages = self._messages, []
        return messages


def fetched(reference: Any, timeout: float | None = None) -> Any:
    """The value behind a reference of Ray, on a worker.

    Unlike in `ray.get` the task keeps its resources meanwhile, which Ray would give to another one.

    Raises:
        TimeoutError: it did not come in time, in seconds.
    """
    return reference.future().result(timeout)


class Reports:
    """The events of a job on its worker: sent now and then, the last one alone of many steps."""

    def __init__(self, link: Any, name: str, node: str, host: str, stop: StopFlag) -> None:
        self._link, self._head, self._stop = link, (name, node, host), stop
        self._lock, self._events, self._closed = threading.Lock(), list[Any](), threading.Event()

    def __call__(self, event: Any) -> None:
        """Keep an event until the next message."""
        with self._lock:
            last = self._events[-1] if self._events else None
            if last is not None and last.report is not None and event.report is not None:
                self._events.pop()
            self._events.append(event)

    def send(self) -> None:
        """Send the events, also none, and receive the stop flag; without the link the job goes on."""
        import ray

        with self._lock:
            events, self._events = self._events, []
        with suppress(ray.exceptions.RayError, TimeoutError):  # the actor is started again where it died
            signal = fetched(self._link.report.remote((*self._head, pickle.dumps(events))), PATIENCE)
            self._stop.signal = signal if signal is not None else self._stop.signal

    @contextmanager
    def running(self) -> Iterator[None]:
        """Send in the block, from a thread of its own, and what is left at its end."""
        self.send()
        thread = threading.Thread(target=self._repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._closed.set()
            thread.join()
            self.send()

    def _repeat(self) -> None:
        while not self._closed.wait(INTERVAL):
            self.send()


class Warnings(logging.Handler):
    """Passes warnings on as lines, with the time of the last one for each text, so that none floods."""

    def __init__(self, send: Any) -> None:
        super().__init__(logging.WARNING)
        self._send, self._last = send, dict[str, float]()

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a warning on."""
        text, now = record.getMessage(), time.monotonic()
        if now - self._last.get(text, -60.0) >= 60.0:
            self._last[text] = now
            self._send(f"warning: {text}")
