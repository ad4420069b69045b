"""The part of a run's views that a process computes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def unchanged(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The values: their sum over the processes of a run that has one."""
    return values


@dataclass(frozen=True)
class Shard:
    """The part of every step's views that this process computes, and sums over all processes."""

    rank: int = 0  # of this process, in [0, size)
    size: int = 1  # number of processes
    turn: int = 0  # by how many ranks the rows are shifted, so that objectives of one view are spread
    # The sum of a tensor over all processes, which all have to call in the same order.
    sum: Callable[[Shaped[Tensor, "..."]], Shaped[Tensor, "..."]] = unchanged

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must lie in [0, {self.size}), got {self.rank}")

    def rows(self, batch: int) -> slice:
        """The rows of a batch that this process computes; all shards together cover each row once."""
        place = (self.rank + self.turn) % self.size
        return slice(batch * place // self.size, batch * (place + 1) // self.size)

    def largest(self, batch: int) -> int:
        """The most rows of a batch that any process computes."""
        return -(-batch // self.size)

    def of_first(self, values: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
        """The values that the process of rank 0 has, in all processes."""
        if self.size == 1:
            return values
        return self.sum(values if self.rank == 0 else torch.zeros_like(values))


WHOLE = Shard()  # of a run of one process
