"""Work for processes in tests of batches, in a file of its own that they import quickly."""

import os
import signal
import time
from types import SimpleNamespace


def work(what, *, on_event, stop):
    """Wait to be stopped, be killed, or answer."""
    if what == "waits":
        on_event(SimpleNamespace(report=None, message=f"{os.getpid()}"))
        while stop.signal is None:
            time.sleep(0.01)
        return int(stop.signal)
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()
