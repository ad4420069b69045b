"""Tables of the study of time to quality: T90, means, and paired differences by arm and number of images."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from study_summary import Line, differences, spread, table
from time_jobs import GRAY

from pgc3d.evaluation.results import interval

QUALITIES = (
    "similarity", "r_precision", "sample_distance", "prior_loss", "speckle", "disagreement", "seconds",
)  # fmt: skip
FALLING = ("sample_distance", "prior_loss", "speckle", "disagreement", "seconds")
PAIRED = ("similarity", "r_precision", "sample_distance", "speckle")
GAINED = 0.9  # of the first arm's gain
RESAMPLES = 2000
UNCLIPPED = "none"

Curves = Float[np.ndarray, "items budgets"]


def values_of(lines: Sequence[Line], arm: str, metric: str, budgets: Sequence[int]) -> Curves:
    """A metric of an arm by item and budget, mean over seeds; NaN where there is none."""
    items = sorted({line["item"] for line in lines})
    found = np.full((len(items), len(budgets)), np.nan)
    for row, item in enumerate(items):
        for column, images in enumerate(budgets):
            own = [
                line["metrics"][metric]
                for line in lines
                if (line["item"], line["arm"], line["images"]) == (item, arm, images) and line["metrics"]
            ]
            if own:
                found[row, column] = np.mean(own)
    return found


def images_to_reach(curve: Float[np.ndarray, " budgets"], budgets: Sequence[int], target: float) -> float:
    """The number of images at which a rising curve crosses a target, between budgets by their logarithm.

    The smallest budget where the curve starts above the target, infinity where it never reaches it.
    """
    places = np.flatnonzero(curve >= target)
    if not len(places):
        return float("inf")
    place = int(places[0])
    if place == 0:
        return float(budgets[0])
    low, high = curve[place - 1], curve[place]
    first, second = np.log(budgets[place - 1]), np.log(budgets[place])
    return float(np.exp(first + (target - low) / (high - low) * (second - first)))


def resampled_t90(
    own: Curves,
    final: Float[np.ndarray, " items"],
    gray: Float[np.ndarray, " items"],
    budgets: Sequence[int],
) -> Float[np.ndarray, " resamples+1"]:
    """T90 of an arm, see the head of `study_time`, with all items and then with resampled ones.

    All arms with the same items have the same resamples, so that their ratios are paired.

    Args:
        own: quality of the arm, larger is better; budgets that no item has are left out, then items that lack
            another one.
        final: of the first arm with its largest budget.
        gray: of the grey meshes.
        budgets: in images, rising.
    """
    made = np.isfinite(own).any(0)
    own, budgets = own[:, made], [budget for budget, there in zip(budgets, made, strict=True) if there]
    whole = np.isfinite(own).all(1) & np.isfinite(final) & np.isfinite(gray)
    own, final, gray = own[whole], final[whole], gray[whole]

    def reached(rows: np.ndarray) -> float:
        start = gray[rows].mean()
        target = start + GAINED * (final[rows].mean() - start)
        return images_to_reach(own[rows].mean(0), budgets, target)

    generator, count = np.random.default_rng(0), len(own)
    rows = [np.arange(count), *(generator.integers(count, size=count) for _ in range(RESAMPLES))]
    return np.array([reached(chosen) for chosen in rows])


def ratios(
    own: Float[np.ndarray, " resamples+1"], first: Float[np.ndarray, " resamples+1"]
) -> Float[np.ndarray, " resamples+1"]:
    """How many times as many images an arm needs; 1 where neither arm reaches the target."""
    neither = np.isinf(own) & np.isinf(first)
    return np.where(neither, 1.0, own / np.where(neither, 1.0, first))


def summarize(
    lines: Sequence[Line], arms: Sequence[str], budgets: Sequence[int], against: str = UNCLIPPED
) -> str:
    """The tables of T90, of all metrics, and of paired differences.

    Args:
        lines: results of runs.
        arms: that have tables, those without results left out. T90 counts from the first one.
        budgets: in images, rising.
        against: what differences are to: a rule, which is that with an arm's own variants and images, or an
            arm and images with a colon between them.
    """
    there = [arm for arm in arms if any(line["arm"] == arm for line in lines)]
    columns = [f"{images} images" for images in budgets]
    parts = [_t90_section(lines, there, budgets)]
    for metric in QUALITIES:
        rows = {arm: [_mean(column) for column in values_of(lines, arm, metric, budgets).T] for arm in there}
        direction = "lower" if metric in FALLING else "higher"
        parts.append(_section(f"{metric} ({direction} is better)", columns, rows))
    named = [{**line, "task": line["item"], "rule": f"{line['arm']}:{line['images']}"} for line in lines]
    for metric in PAIRED:
        rows = {
            arm: [_difference(named, arm, images, metric, against) for images in budgets] for arm in there
        }
        parts.append(_section(f"{metric} minus that of {against}, same meshes and seeds", columns, rows))
    return "\n".join(parts)


def _t90_section(lines: Sequence[Line], arms: Sequence[str], budgets: Sequence[int]) -> str:
    head = ["similarity", "times the first", "R-precision", "times the first"]
    cells: dict[str, list[str]] = {arm: [] for arm in arms}
    for metric in ("similarity", "r_precision"):
        gray = values_of(lines, GRAY, metric, [0])[:, 0]
        curves = {arm: values_of(lines, arm, metric, budgets) for arm in arms}
        first = curves[arms[0]]
        final = first[:, np.isfinite(first).any(0)][:, -1]
        found = {arm: resampled_t90(own, final, gray, budgets) for arm, own in curves.items()}
        for arm, own in found.items():
            cells[arm] += [_spread(own, "{:.0f}"), _spread(ratios(own, found[arms[0]]), "{:.2f}")]
    return _section("T90, images", head, cells)


def _spread(resampled: Float[np.ndarray, " resamples+1"], style: str) -> str:
    low, high = interval(resampled[1:])
    return f"{style.format(resampled[0])} [{style.format(low)}, {style.format(high)}]"


def _section(title: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A heading and the table of arms below it."""
    return f"## {title}\n\n{table(['arm', *columns], [[arm, *cells] for arm, cells in rows.items()])}"


def _mean(values: Float[np.ndarray, " items"]) -> str:
    return f"{np.nanmean(values):.3f}" if np.isfinite(values).any() else "-"


def _difference(lines: Sequence[Line], arm: str, images: int, metric: str, against: str) -> str:
    """An arm minus another one, with its 95 % interval over meshes and seeds."""
    _, *variants = arm.split("+")
    other = against if ":" in against else f"{'+'.join([against, *variants])}:{images}"
    paired = differences(lines, f"{arm}:{images}", other, metric)
    if not paired or other == f"{arm}:{images}":
        return "-"
    return "{:.3f} [{:.3f}, {:.3f}]".format(*spread(paired))
