"""The processes that make one run together: each computes some views of a step, and all make the same step.

They are started by `--gpus` or torchrun, one for each GPU of a computer. All build the same objects and draw
the same random numbers; each renders and evaluates its rows of the views (`Shard`). Gradients are summed, and
the fused optimisers make the same step from the same sum, so that the parameters stay equal to the last bit
and are never sent.

All communication is a sequence that is the same in all processes, since it depends on reduced values alone.
Before each exchange of tensors, and after each step, there is a meeting: a message of some bytes, by gloo
between the hosts, which states of each process whether it can go on. One that failed states that in its next
meeting, whatever that is for. So no process waits on its device for another one that will not come: all of
them take back the step together where one ran out of memory, and end together where one failed. Where one is
gone, its connections close, and the others raise at once.

With one GPU for each process tensors go through NCCL; on a CPU, and where processes share a GPU, through
gloo. `PGC3D_SHARE_GPU=1` lets several processes share a GPU, to try a run of many on few: it is slower.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from pgc3d.errors import BackendUnavailableError, Pgc3dError, ProcessError
from pgc3d.shard import WHOLE, Shard

T = TypeVar("T")
SHARE_GPU = "PGC3D_SHARE_GPU"
PATIENCE = timedelta(days=1)  # with a process that is alive: previews and checkpoints of the first take long
MESSAGE = 256  # bytes
OK, OUT_OF_MEMORY, FAILED = range(3)  # in a meeting the worst one counts


class OutOfMemoryElsewhere(MemoryError):
    """Another process of the run ran out of memory, and all take back the step."""


@dataclass(frozen=True)
class Place:
    """The place of this process among those of the run on this computer, from torchrun's variables."""

    rank: int
    size: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """The place that torchrun or `--gpus` gave to a process; the only one where there are no others.

        Raises:
            BackendUnavailableError: there are processes on several computers.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if not all(environment.get(name, "").isdigit() for name in names):
            return cls(0, 1)
        rank, size, _, local = (int(environment[name]) for name in names)
        if local != size:
            raise BackendUnavailableError(
                f"the processes of a run must be on one computer, got {local} of {size} here; use torchrun "
                "--nnodes 1"
            )
        return cls(rank, size)


class Processes:
    """This process among those of a run, and what they do together; every call is one of all of them.

    In a run of one process the calls return what they were given.
    """

    def __init__(
        self, place: Place = Place(0, 1), *, control: Any = None, tensors: Any = None, on_device: int = 1
    ) -> None:
        """Use process groups, or none where there is one process.

        Args:
            place: of this process.
            control: gloo's group, for meetings.
            tensors: the group for tensors; None for those of the control group, through the host.
            on_device: number of processes that share this one's device.
        """
        self.rank, self.size, self.on_device = place.rank, place.size, on_device
        self._control, self._tensors = control, tensors
        self._waited = 0.0
        self._exchanged = False  # whether this step's gradients were added: it cannot be taken back
        self._over = False  # whether there are no more meetings
        self.shard = Shard(self.rank, self.size, sum=self.sum) if self.size > 1 else WHOLE

    @property
    def leads(self) -> bool:
        """Whether this is the process that has the run directory and the terminal."""
        return self.rank == 0

    def agree(self, signal: int | None) -> int | None:
        """Meet after a step; the largest number of a signal that any of the processes has received."""
        self._exchanged = False
        if self.size == 1:
            return signal
        found = int(self._meet(0 if signal is None else signal + 1)[1])
        return found - 1 if found else None

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; they are pickled."""
        if self.size == 1:
            return [value]
        self._meet()
        return self._gather(value)

    def first_then_others(self, work: Callable[[], T]) -> T:
        """The result of some work, which the first process does before the others do it."""
        if self.leads:
            result = work()
            self.gather(None)
            return result
        self.gather(None)
        return work()

    def sum(self, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """The sum of a tensor over all processes, bit by bit the same in all of them."""
        if self.size == 1:
            return values
        total = values.clone()
        self._meet()
        return self._add(total)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace the values of tensors by those that they have in the first process."""
        if self.size == 1:
            return
        for tensor in tensors:
            own = tensor.detach()
            with torch.no_grad():
                tensor.copy_(self.sum(own if self.leads else torch.zeros_like(own)))

    def add_gradients(self, tensors: Sequence[Tensor], extra: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Replace the gradients of parameters by their sums over all processes; returns the sum of `extra`.

        A parameter that has no gradient in any process keeps none.

        Args:
            tensors: parameters, at most 254.
            extra: numbers of this process, [K].
        """
        if self.size == 1:
            return extra
        met = self._meet(flags=[tensor.grad is not None for tensor in tensors])
        used = [tensor for tensor, flag in zip(tensors, met[2:].tolist(), strict=False) if flag]
        total = sum_gradients(used, self.sum, extra)
        self._exchanged = True
        return total

    def can_retry(self, error: BaseException) -> bool:
        """Whether all processes take back the step in which this one ran out of memory, or another one.

        Once the gradients are added, the others have made the step, and the run must end.
        """
        if self.size == 1 or isinstance(error, OutOfMemoryElsewhere):
            return True
        if self._exchanged:
            return False
        self._meet(status=OUT_OF_MEMORY)
        return True

    def finish(self) -> None:
        """Meet for the last time: what the first process does from now on is its own affair."""
        if not self._over and self.size > 1:
            self._meet()
        self._over = True

    def announce(self, error: BaseException) -> None:
        """End all other processes too, which raise what this one failed of."""
        if self._over or self.size == 1:
            return
        self._over = True
        with suppress(ProcessError):
            self._exchange(FAILED)
            self._gather(_described(error))

    def read_waited(self) -> float:
        """Seconds that the host spent in meetings since the last read."""
        waited, self._waited = self._waited, 0.0
        return waited

    def _meet(self, number: int = 0, flags: Sequence[bool] = (), status: int = OK) -> Tensor:
        """The largest bytes of all messages.

        Raises:
            ProcessError: another process failed or is gone.
            OutOfMemoryElsewhere: another process ran out of memory.
        """
        met = self._exchange(status, number, flags)
        if met[0] == FAILED:
            self._over = True
            raise _failure(self._gather(None))
        if met[0] == OUT_OF_MEMORY and status == OK:
            raise OutOfMemoryElsewhere("out of memory in another process")
        return met

    def _exchange(self, status: int, number: int = 0, flags: Sequence[bool] = ()) -> Tensor:
        message = torch.zeros(MESSAGE, dtype=torch.uint8)
        content = torch.tensor([status, number, *flags], dtype=torch.uint8)
        message[: len(content)] = content
        start = time.perf_counter()
        self._call(lambda: dist.all_reduce(message, dist.ReduceOp.MAX, group=self._control))
        self._waited += time.perf_counter() - start
        return message

    def _gather(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.size
        self._call(lambda: dist.all_gather_object(values, value, group=self._control))
        return values

    def _add(self, values: Tensor) -> Tensor:
        """Sum a tensor in place; where processes have no group for its device, through the host."""
        if self._tensors is not None:
            self._call(lambda: dist.all_reduce(values, group=self._tensors))
            return values
        host = values.cpu()
        self._call(lambda: dist.all_reduce(host, group=self._control))
        return host.to(values.device)

    def _call(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except RuntimeError as error:  # gloo's and NCCL's, when a connection was closed
            self._over = True
            raise ProcessError(
                f"all {self.size} processes of a run must go on, but one ended or was killed; use `pgc3d "
                "resume` to continue from the last checkpoint",
                is_lost=True,
            ) from error


ALONE = Processes()


def sum_gradients(
    tensors: Sequence[Tensor],
    total: Callable[[Shaped[Tensor, "..."]], Shaped[Tensor, "..."]],
    extra: Shaped[Tensor, "..."],
) -> Shaped[Tensor, "..."]:
    """Replace gradients by their sums over all processes, in one exchange; returns that of `extra`.

    Args:
        tensors: parameters; where this process has no gradient of one, it adds nothing to it.
        total: sums a tensor over all processes.
        extra: numbers of this process, [K].
    """
    gradients = [tensor.grad if tensor.grad is not None else torch.zeros_like(tensor) for tensor in tensors]
    flat = total(torch.cat([extra, *(gradient.reshape(-1) for gradient in gradients)]))
    sizes = [len(extra), *(gradient.numel() for gradient in gradients)]
    summed, *parts = torch.split(flat, sizes)
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.grad = part.view_as(tensor)
    return summed


def fingerprint(tensors: Sequence[Tensor]) -> int:
    """The sum of all 32-bit words of float32 tensors: equal ones have the same, in any order of summation."""
    words = [tensor.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
    return int(torch.stack(words).sum())


@contextmanager
def joined(device: torch.device, *, automatic: bool) -> Iterator[Processes]:
    """The processes of the run that this one belongs to, for the block; an error in it ends all of them.

    This process's GPU becomes the current one.

    Args:
        device: that the run uses.
        automatic: whether it was chosen by what the computer has.

    Raises:
        BackendUnavailableError: there are more processes than GPUs, or some on other computers.
    """
    place = Place.of(os.environ)
    if place.size == 1:
        yield ALONE
        return
    on_device = _use_device(place, device, automatic=automatic)
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("gloo", timeout=PATIENCE)
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    exclusive = device.type == "cuda" and on_device == 1
    tensors = dist.new_group(backend="nccl", timeout=PATIENCE) if exclusive else None
    processes = Processes(place, control=control, tensors=tensors, on_device=on_device)
    try:
        yield processes
    except BaseException as error:
        processes.announce(error)
        raise
    if own:  # after an error the groups may wait for a process that is gone
        dist.destroy_process_group()


def _use_device(place: Place, device: torch.device, *, automatic: bool) -> int:
    """Choose this process's GPU; the number of processes that share it, or the processor."""
    found = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cpu" and not automatic:
        return place.size
    if not found or (found < place.size and os.environ.get(SHARE_GPU) != "1"):
        raise BackendUnavailableError(
            f"{place.size} processes must have as many GPUs, but {found} were found; use --gpus "
            f"{max(found, 1)}, or several processes on the processor with --device cpu"
        )
    torch.cuda.set_device(place.rank % found)
    return -(-place.size // found)


def _described(error: BaseException) -> tuple[int, str, bool]:
    """The exit code, the text, and whether it is a line for a user."""
    if isinstance(error, Pgc3dError):
        return error.exit_code, str(error), True
    return 1, "".join(traceback.format_exception(error)), False


def _failure(reports: Sequence[tuple[int, str, bool] | None]) -> Exception:
    """The error of the first process that described one."""
    for rank, report in enumerate(reports):
        if report is not None:
            (code, text, is_line), place = report, f"process {rank} of {len(reports)}"
            if is_line:
                return ProcessError(f"{place}: {text}", exit_code=code)
            return RuntimeError(f"{place} failed:\n{text}")
    return ProcessError("another process of the run must go on, but it failed")
