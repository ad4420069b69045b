"""Processes that stay, with process groups between them, in which programs and tests call functions together.

Unlike those of `pgc3d --gpus` they can work in smaller numbers too, so that runs of one and of several
processes alternate, with models that are loaded once.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from typing import Any


class ProcessGroup:
    """Up to `size` processes that call a function together, and each return what it returned."""

    def __init__(self, size: int, device: str = "cpu") -> None:
        """Start the processes.

        Args:
            size: number of processes.
            device: "cpu", or "cuda" for a GPU each; where there are fewer, they share them.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self._connections = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_work, args=(rank, size, device, port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self._processes:
            process.start()
        for _, theirs in pipes:
            theirs.close()

    def call(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(processes, *arguments)` returns in each of `size` processes.

        Raises:
            AssertionError: it raised in one of them.
        """
        for connection in self._connections[:size]:
            connection.send((size, function, arguments))
        answers = [_answer(connection) for connection in self._connections[:size]]
        errors = [f"process {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        if errors:
            raise AssertionError("\n".join(errors))
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _answer(connection: Any) -> tuple[str, Any]:
    try:
        answer: tuple[str, Any] = connection.recv()
        return answer
    except EOFError:
        return "it has ended", None


def _work(rank: int, size: int, device: str, port: int, connection: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    import torch
    import torch.distributed as dist

    from pgc3d.parallel import PATIENCE, Place, Processes

    found = torch.cuda.device_count() if device == "cuda" else 0
    if found:
        torch.cuda.set_device(rank % found)
    dist.init_process_group("gloo", timeout=PATIENCE)
    control: dict[int, Any] = {1: None}
    tensors: dict[int, Any] = {}
    for count in range(2, size + 1):
        control[count] = dist.new_group(range(count), timeout=PATIENCE)
        if found >= count:
            tensors[count] = dist.new_group(range(count), backend="nccl", timeout=PATIENCE)
    while True:
        count, function, arguments = connection.recv()
        on_device = -(-count // found) if found else count
        processes = Processes(
            Place(rank, count), control=control[count], tensors=tensors.get(count), on_device=on_device
        )
        try:
            connection.send(("", function(processes, *arguments)))
        except Exception as error:
            processes.announce(error)
            with suppress(OSError):
                connection.send((traceback.format_exc(), None))
