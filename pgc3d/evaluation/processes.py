"""Independent jobs, one after the other or in processes beside each other."""

import multiprocessing
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from pgc3d.kernels import share_cores

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")


def in_processes(
    work: Callable[..., Answer], tasks: Mapping[Key, tuple[Any, ...]], *, processes: int
) -> Iterator[tuple[Key, Answer]]:
    """What `work` answers to each task's arguments, with the task's key, as it comes.

    One process is this one, and the order that of the tasks. More share the cores; `work`, arguments and
    answers are pickled for them. What fails in one ends the others as soon as they are done with what they
    are at.
    """
    if processes == 1:
        for key, arguments in tasks.items():
            yield key, work(*arguments)
        return
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes, context, share_cores, (processes,)) as pool:
        try:
            waiting = {pool.submit(work, *arguments): key for key, arguments in tasks.items()}
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
