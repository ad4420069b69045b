"""What a signal does to a run: it ends between two steps, with everything saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")  # the last one: the terminal or the connection is gone


@dataclass
class StopFlag:
    """Set by a signal, looked at on step edges."""

    signal: int | None = None


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Let SIGINT, SIGTERM and SIGHUP set a flag; a second one ends the process at once.

    A signal that is ignored, as SIGHUP below nohup, stays so.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, _: object) -> None:
        if flag.signal is not None:
            os._exit(128 + number)
        flag.signal = number

    known = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    heard = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_held() -> Iterator[Callable[[], bool]]:
    """Hold Python's KeyboardInterrupt back, and tell whether there was one; a second one is raised at once.

    Where something else handles SIGINT, or in another thread, nothing is changed.
    """
    found: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield lambda: False
        return

    def handle(number: int, _: object) -> None:
        if found:
            raise KeyboardInterrupt
        found.append(number)

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(found)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
