"""Line charts as SVG text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 20, 10, 26  # margins
POINTS = 400  # of a line, at most
COLORS = 8  # that the style sheet has


@dataclass(frozen=True)
class Series:
    """A line of a chart; points that are not finite interrupt it."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over the same steps."""

    title: str
    series: tuple[Series, ...]
    logarithmic: bool = False


@dataclass(frozen=True)
class _Scale:
    """From values to a coordinate of the image."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        low, high = (
            (math.log10(self.low), math.log10(self.high)) if self.logarithmic else (self.low, self.high)
        )
        place = (math.log10(value) if self.logarithmic else value) - low
        return self.start + (self.end - self.start) * place / (high - low)


def draw(chart: Chart) -> str:
    """A figure with a chart, its title and its legend, as HTML; "" where no value is finite."""
    values = [value for item in chart.series for value in item.values if _counts(value, chart.logarithmic)]
    steps = [step for item in chart.series for step in item.steps]
    if not values or not steps:
        return ""
    low, high = _limits(min(values), max(values), logarithmic=chart.logarithmic)
    first, last = min(steps), max(steps)
    x = _Scale(float(first), float(max(last, first + 1)), float(LEFT), float(WIDTH - RIGHT))
    y = _Scale(low, high, float(HEIGHT - BOTTOM), float(TOP), chart.logarithmic)
    lines = "".join(_line(item, x, y) for item in chart.series)
    legend = "".join(
        f'<span class="key c{item.color % COLORS}{" dashed" if item.dashed else ""}">{escape(item.label)}'
        f" <b>{_last(item)}</b></span>"
        for item in chart.series
    )
    return (
        f"<figure><h4>{escape(chart.title)}</h4>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">'
        f"{_axes(x, y)}{lines}</svg><figcaption>{legend}</figcaption></figure>"
    )


def _counts(value: float, logarithmic: bool) -> bool:  # noqa: FBT001 - of the chart
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _limits(low: float, high: float, *, logarithmic: bool) -> tuple[float, float]:
    if logarithmic:
        low = max(low, high * 1e-6)
        return 10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high * 1.001))
    low = 0.0 if 0 <= low < 0.5 * high else low
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if low == 0.0 else low - margin), high + margin


def _ticks(scale: _Scale, count: int) -> list[float]:
    if scale.logarithmic:
        return [
            10.0**power for power in range(round(math.log10(scale.low)), round(math.log10(scale.high)) + 1)
        ]
    raw = (scale.high - scale.low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= raw * 0.999)
    first = math.ceil(scale.low / step - 1e-9)
    return [step * index for index in range(first, math.floor(scale.high / step + 1e-9) + 1)]


def _axes(x: _Scale, y: _Scale) -> str:
    parts = []
    for value in _ticks(y, 4):
        place = f"{y(value):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place}" y2="{place}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place}" dy="4" text-anchor="end">{value:.4g}</text>')
    for value in _ticks(x, 5):
        parts.append(f'<text x="{x(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:.6g}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    return "".join(parts)


def _line(item: Series, x: _Scale, y: _Scale) -> str:
    runs: list[list[str]] = [[]]
    for step, value in _thinned(item):
        if not _counts(value, y.logarithmic):
            runs.append([])
            continue
        place = min(max(y(max(value, y.low)), TOP), HEIGHT - BOTTOM)
        runs[-1].append(f"{x(float(step)):.1f},{place:.1f}")
    marks = {"class": f"line c{item.color % COLORS}{' dashed' if item.dashed else ''}"}
    drawn = []
    for run in runs:
        if len(run) == 1:
            across, down = run[0].split(",")
            drawn.append(f'<circle class="{marks["class"]}" cx="{across}" cy="{down}" r="2"/>')
        elif run:
            drawn.append(f'<polyline class="{marks["class"]}" points="{" ".join(run)}"/>')
    return "".join(drawn)


def _thinned(item: Series) -> list[tuple[int, float]]:
    """The points, or the lowest and the highest of each of some intervals."""
    points = list(zip(item.steps, item.values, strict=True))
    if len(points) <= POINTS:
        return points
    size = math.ceil(2 * len(points) / POINTS)
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        finite = [point for point in group if math.isfinite(point[1])]
        kept += sorted({min(finite, key=_value), max(finite, key=_value)}) if finite else group[:1]
    return kept


def _value(point: tuple[int, float]) -> float:
    return point[1]


def _last(item: Series) -> str:
    return f"{item.values[-1]:.4g}" if item.values else "-"
