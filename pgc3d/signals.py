"""Signal handlers that stop a run between two steps, so that it can save."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one: the terminal or the connection is gone


@dataclass
class StopFlag:
    """A flag that is set by a signal, and read by a run after every step."""

    signal: int | None = None  # the number of the signal


@contextmanager
def stop_on_signals(*, insist: bool = True) -> Iterator[StopFlag]:
    """Yield a flag that SIGINT, SIGTERM and SIGHUP set; a second one ends the process at once.

    A signal that the process ignores, as SIGHUP under nohup, remains ignored. Outside the main thread no
    handler is installed.

    Args:
        insist: whether the second one does; not in a process whose launcher passes the same signal on again.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, _: object) -> None:
        if flag.signal is not None and insist:
            os._exit(128 + number)
        flag.signal = flag.signal or number

    known = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    handled = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Delay Python's KeyboardInterrupt in the block; a second one is raised at once.

    Where SIGINT has another handler, and outside the main thread, nothing changes.

    Yields:
        A function that returns whether there was an interrupt.
    """
    interrupts: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return

    def handle(number: int, _: object) -> None:
        if interrupts:
            raise KeyboardInterrupt
        interrupts.append(number)

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(interrupts)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
