"""`--gpus N`: several processes that make one run, which this one starts, passes signals to, and waits for.

torch's own launcher, `torchrun -m pgc3d`, does the same with the same variables; it writes logs and tables of
its own where a process fails, and its signals reach processes twice. Here each process is a group of its own,
so that a signal from the terminal reaches this one alone, which passes it on once.
"""

import functools
import inspect
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any

import typer

from pgc3d.cli.console import close_stdout, print_nothing
from pgc3d.cli.options import collected
from pgc3d.cli.output import current
from pgc3d.cli.prompt_file import read_stdin
from pgc3d.errors import InputError, Pgc3dError, ProcessError
from pgc3d.signals import STOPPING

LAUNCHER = "PGC3D_LAUNCHER"  # the descriptor of a pipe that is closed when the launcher ends
POLL = 0.1  # seconds
AFTER_A_KILL = 20.0  # seconds that the others may take to end after one was killed
AFTER_AN_END = 120.0  # likewise after one ended by an error, as they may save
command_line: ContextVar[Sequence[str]] = ContextVar("command_line", default=())  # behind `pgc3d`
GpusOption = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        max=64,
        help="Processes that share the views of each step, one for each GPU; with --device cpu on its cores.",
    ),
]


def in_processes(command: Callable[..., int]) -> Callable[..., int]:
    """The command with the option `--gpus`, which runs it in several processes."""

    @functools.wraps(command)
    def started(*, gpus: int | None, **values: Any) -> int:
        if gpus is not None and collected.get() is not None:
            raise InputError(
                f"--gpus must be an option of one run, got {gpus} in a list or a query; remove it"
            )
        if gpus is None or gpus == 1 or "RANK" in os.environ:
            return command(**values)
        stdin = read_stdin() if values.get("prompt") == "-" else b""
        return launch(command_line.get(), gpus, stdin=stdin)

    own = list(inspect.signature(command).parameters.values())
    added = inspect.Parameter("gpus", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=GpusOption)
    started.__signature__ = inspect.Signature([*own, added])  # type: ignore[attr-defined]
    return started


def be_quiet_behind_the_first() -> None:
    """Print nothing in a process that is not the first one of its run."""
    if os.environ.get("RANK", "0") != "0" and "LOCAL_RANK" in os.environ:
        print_nothing()


def end_with_launcher() -> None:
    """Stop this process, as by SIGTERM, when the launcher that started it is gone."""
    descriptor = os.environ.pop(LAUNCHER, "")
    if not descriptor.isdigit():
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(int(descriptor), 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def end_without_the_lost(error: Pgc3dError) -> None:
    """End this process at once where another one of its run is gone, for which its device may wait."""
    if isinstance(error, ProcessError) and error.is_lost:
        close_stdout()
        os._exit(error.exit_code)


def launch(arguments: Sequence[str], count: int, *, stdin: bytes = b"") -> int:
    """Run a command line in `count` processes; the exit code of the first one.

    Args:
        arguments: those behind `pgc3d`.
        count: number of processes.
        stdin: what each of them reads from its standard input.
    """
    theirs, ours = os.pipe()
    processes = _started(arguments, count, theirs)
    os.close(theirs)
    with _passed_on(processes):
        _write(processes, stdin)
        killed = _wait(processes)
    os.close(ours)
    code = processes[0].returncode
    if code >= 0:
        return int(code)
    name = signal.Signals(-code).name
    rank = 0 if killed is None else killed
    text = (
        f"all {count} processes of a run must go on, but process {rank} was killed"
        f"{f' by {name}' if rank == 0 else ''}; use `pgc3d resume` to continue from the last checkpoint"
    )
    current().fail(text, ProcessError.exit_code)
    return ProcessError.exit_code


def _started(arguments: Sequence[str], count: int, pipe: int) -> list["subprocess.Popen[bytes]"]:
    environment = {
        **os.environ,
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        LAUNCHER: str(pipe),
    }
    if sys.platform == "linux":  # the name of the computer need not have an address
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return [
        subprocess.Popen(
            [sys.executable, "-m", "pgc3d", *arguments],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.PIPE,
            pass_fds=(pipe,),
            process_group=0,
        )
        for rank in range(count)
    ]


def _write(processes: Sequence["subprocess.Popen[bytes]"], stdin: bytes) -> None:
    for process in processes:
        assert process.stdin is not None
        with suppress(OSError), process.stdin as stream:  # a process may have ended before it read
            stream.write(stdin)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(processes: Sequence["subprocess.Popen[bytes]"]) -> int | None:
    """Wait until all have ended; one that outlives the failure of another for too long is killed.

    Returns:
        The rank of the first that was killed; None where none was.
    """
    deadline, killed = float("inf"), None
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if killed is None and any(code is not None and code < 0 for code in codes):
            killed = next(rank for rank, code in enumerate(codes) if code is not None and code < 0)
            deadline = time.monotonic() + AFTER_A_KILL
        elif deadline == float("inf") and any(codes):
            deadline = time.monotonic() + AFTER_AN_END
        if time.monotonic() > deadline:
            _send(processes, signal.SIGKILL)
        time.sleep(POLL)
    return killed


@contextmanager
def _passed_on(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Pass the first signal that stops a run to all processes, and kill them by the second one."""
    received: list[int] = []

    def handle(number: int, _: object) -> None:
        _send(processes, signal.SIGKILL if received else number)
        received.append(number)

    known = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    handled = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _send(processes: Sequence["subprocess.Popen[bytes]"], number: int) -> None:
    for process in processes:
        process.send_signal(number)  # nothing where it has ended
