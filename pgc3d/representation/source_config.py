"""Settings of the texture that a mesh has before a run."""

from dataclasses import dataclass
from typing import Literal

from pgc3d.ranges import check, number


@dataclass(frozen=True)
class SourceConfig:
    """What becomes of the texture that the file has, or that the task gives for it.

    `none`: it is not used. `keep`: the colours are new, and outside the mask the source stays.
    `start`: the colours start from it, too.

    `strength` s bounds the change: no channel of a texel, in sRGB, changes by more than min(s, bound). The
    low frequencies of the change are penalised by the weight keep (1 - s) / s, see
    `refinement.low_frequencies`.
    """

    use: Literal["none", "keep", "start"] = "none"  # see the class
    size: int = number(0, 0, 8192, unit="pixels")  # of the result's longer side; 0: the source's own
    strength: float = number(1.0, 0.0, 1.0)  # s, how much may change
    bound: float = number(1.0, 0.0, 1.0, unit="in sRGB")  # of the change of a channel
    keep: float = number(1.0, 0.0, 1e4)  # weight of the penalty
    cells: int = number(32, 1, 1024)  # along a side of the texture, whose means are the low frequencies

    def __post_init__(self) -> None:
        check(self)
        if self.cells & (self.cells - 1):
            raise ValueError(f"cells must be a power of two, got {self.cells}")

    @property
    def largest_change(self) -> float:
        """Bound of the change of a channel of a texel, in sRGB, in [0, 1]."""
        return min(self.strength, self.bound)

    @property
    def keep_weight(self) -> float:
        """Weight of the low frequencies of the change; 0 at strength 0, where nothing changes."""
        return self.keep * (1 - self.strength) / self.strength if self.strength > 0 else 0.0
