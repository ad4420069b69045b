"""Which charts the metrics of one run or two make."""

from collections.abc import Iterator, Sequence

from pgc3d.report.charts import Chart, Series
from pgc3d.report.curves import Curve
from pgc3d.session import SECONDS_LEFT

CLIPPING = ("clipped_fraction", "nonfinite_fraction", "skipped_steps", "skipped_in_a_row")
GRADIENT = "gradient_"  # p50, p90, p99 and max of the gradient's magnitude before clipping
SECONDS, TIMES = "seconds/", "seconds per step"


def is_clipping(name: str) -> bool:
    """Whether a metric is about the clipping of gradients."""
    last = name.rsplit("/", 1)[-1]
    return last in CLIPPING or last.startswith(GRADIENT) or "threshold" in last


def clipping_charts(runs: Sequence[Sequence[Curve]]) -> tuple[Chart, ...]:
    """Charts of the clip statistics: one for all percentiles of an objective, and one for each other metric.

    Args:
        runs: the curves of each run; the second run's lines are dashed.
    """
    return tuple(_charts([[curve for curve in curves if is_clipping(curve.name)] for curves in runs]))


def other_charts(runs: Sequence[Sequence[Curve]]) -> tuple[Chart, ...]:
    """Charts of the other metrics; the seconds per step of all parts share one."""
    own = [[c for c in curves if not is_clipping(c.name) and c.name != SECONDS_LEFT] for curves in runs]
    return tuple(_charts(own))


def _charts(runs: list[list[Curve]]) -> Iterator[Chart]:
    every = [curve for curves in runs for curve in curves]
    stages = list(dict.fromkeys(curve.stage for curve in every))
    for stage in stages:
        titles = dict.fromkeys(_title(curve.name) for curve in every if curve.stage == stage)
        for title in titles:
            series = tuple(_series(runs, stage, title))
            if all(value == 0 for item in series for value in item.values):
                continue  # as nonfinite_fraction in most runs
            prefix = f"{stage}: " if len(stages) > 1 else ""
            yield Chart(f"{prefix}{title}", series, logarithmic=GRADIENT in title or title == TIMES)


def _title(name: str) -> str:
    """The chart that a metric belongs to."""
    if name.startswith(SECONDS):
        return TIMES
    start, slash, last = name.rpartition("/")
    return f"{start}{slash}{GRADIENT}*" if last.startswith(GRADIENT) else name


def _series(runs: list[list[Curve]], stage: str, title: str) -> Iterator[Series]:
    names = list(dict.fromkeys(c.name for curves in runs for c in curves if _belongs(c, stage, title)))
    for index, curves in enumerate(runs):
        for curve in curves:
            if _belongs(curve, stage, title):
                run = f"{'AB'[index]} " if len(runs) > 1 else ""
                label = f"{run}{curve.name.rsplit('/', 1)[-1]}"
                color = names.index(curve.name) if len(names) > 1 else index
                yield Series(label, curve.steps, curve.values, color, dashed=index > 0)


def _belongs(curve: Curve, stage: str, title: str) -> bool:
    return curve.stage == stage and _title(curve.name) == title
