"""The time and the cost of many runs on several computers, one run at a time on each GPU."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from pgc3d.planning.forecast import Forecast

HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Fleet:
    """A list of runs on some computers; None where a time was not measured."""

    jobs: int
    nodes: int  # computers
    gpus: int  # of each
    seconds: float | None  # until the last run is done
    assets_per_hour: float | None
    gpu_hours: float | None  # of all GPUs, until the last run is done
    price: float | None = None  # of a GPU for an hour
    missing: tuple[str, ...] = ()  # parts that the times lack

    @property
    def cost(self) -> float | None:
        """The price of all GPUs, in its currency."""
        return None if self.price is None or self.gpu_hours is None else self.price * self.gpu_hours


def fleet(
    forecasts: Sequence[Forecast], *, nodes: int = 1, gpus: int = 1, price: float | None = None
) -> Fleet:
    """The time of the runs, each of which begins on the first GPU that is free, in their order.

    Args:
        forecasts: of the runs, at least one.
        nodes: number of computers.
        gpus: of each.
        price: of a GPU for an hour.
    """
    missing = tuple(dict.fromkeys(part for item in forecasts for part in item.missing))
    times = [item.seconds for item in forecasts]
    known = [seconds for seconds in times if seconds is not None]
    if len(known) < len(times):
        return Fleet(len(times), nodes, gpus, None, None, None, price, missing)
    free = [0.0] * (nodes * gpus)
    for seconds in known:
        heapq.heapreplace(free, free[0] + seconds)
    total = max(free)
    rate = HOUR * len(times) / total if total else None
    return Fleet(len(times), nodes, gpus, total, rate, nodes * gpus * total / HOUR, price, missing)
