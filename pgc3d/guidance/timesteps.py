"""Settings of the timesteps that a guidance draws."""

from dataclasses import dataclass

from pgc3d.ranges import check, number, span
from pgc3d.schedules import PiecewiseLinear, dream_time


@dataclass(frozen=True)
class DreamTimeConfig:
    """One timestep for all images of a step, which falls over the run; see `schedules.dream_time`.

    The range and the numbers are those of the code of PGC-3D, as fractions of all timesteps.
    """

    range: tuple[float, float] = span((0.2, 0.681), 0.0, 1.0)  # of the timesteps
    flat: tuple[float, float] = span((0.5, 0.8), 0.0, 1.0)  # timesteps on which a run spends most steps
    spread: tuple[float, float] = number((0.1, 0.3), 1e-3, 10.0)  # below and above them

    def __post_init__(self) -> None:
        check(self)
        if self.range[1] - self.range[0] < 0.01:
            raise ValueError(f"range must cover at least 0.01 of all timesteps, got {list(self.range)}")

    def schedule(self) -> PiecewiseLinear:
        """The timestep over progress, a fraction."""
        return dream_time(*self.range, flat=self.flat, spread=self.spread)


def timestep_range(
    low: tuple[float, ...], high: tuple[float, ...], dreamtime: DreamTimeConfig | None
) -> dict[str, PiecewiseLinear]:
    """The schedules `t_min` and `t_max` of settings of these names; equal ones by DreamTime."""
    if dreamtime is None:
        return {"t_min": PiecewiseLinear(low), "t_max": PiecewiseLinear(high)}
    falling = dreamtime.schedule()
    return {"t_min": falling, "t_max": falling}
