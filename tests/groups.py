"""Processes that stay, with gloo between them, in which tests call functions of `process_laws`."""

import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


class Group:
    """Up to `size` processes that call a function together, and each return what it returned."""

    def __init__(self, size: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self.connections = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_work, args=(rank, size, port, theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def call(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(processes, *arguments)` returns in each of `size` processes.

        Raises:
            AssertionError: it raised in one of them.
        """
        for connection in self.connections[:size]:
            connection.send((size, function, arguments))
        answers = [connection.recv() for connection in self.connections[:size]]
        errors = [f"process {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        assert not errors, "\n".join(errors)
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _work(rank: int, size: int, port: int, connection: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0"}
    import torch.distributed as dist

    from pgc3d.parallel import PATIENCE, Place, Processes

    dist.init_process_group("gloo", timeout=PATIENCE)
    groups = {count: dist.new_group(range(count), timeout=PATIENCE) for count in range(2, size + 1)}
    while True:
        count, function, arguments = connection.recv()
        control = groups.get(count)
        processes = Processes(Place(rank, count), control=control, on_device=count)
        try:
            connection.send(("", function(processes, *arguments)))
        except Exception:
            connection.send((traceback.format_exc(), None))
