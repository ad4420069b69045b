"""Tables and plots of a clipping study: means, bootstrap intervals, paired differences."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pgc3d.evaluation.results import bootstrap, interval

REFERENCES = ("none", "pixel=0.1")
LOWER_IS_BETTER = ("speckle", "total_variation", "saturated_fraction", "seconds")

Line = Mapping[str, Any]
Values = Mapping[tuple[str, int], float]  # by object and seed


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a study; one that a crash cut off is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def values_of(lines: Sequence[Line], rule: str, metric: str) -> dict[tuple[str, int], float]:
    """A metric of a rule's runs that did not fail."""
    return {
        (line["task"], line["seed"]): float(line["metrics"][metric])
        for line in lines
        if line["rule"] == rule and metric in line["metrics"]
    }


def spread(values: Values) -> tuple[float, float, float]:
    """Mean of the objects' means and the ends of its 95 % interval, see `results.bootstrap`."""
    objects = sorted({name for name, _ in values})
    groups = [np.array([value for (name, _), value in values.items() if name == own]) for own in objects]
    low, high = interval(bootstrap([groups])[:, 0])
    return float(np.mean([group.mean() for group in groups])), low, high


def differences(
    lines: Sequence[Line], rule: str, reference: str, metric: str
) -> dict[tuple[str, int], float]:
    """Rule minus reference, of the same object and seed; what only one of them has is left out."""
    own, other = (values_of(lines, name, metric) for name in (rule, reference))
    return {key: own[key] - other[key] for key in own if key in other}


def verdict(low: float, high: float, metric: str) -> str:
    """What an interval of differences says; metrics without a direction only differ."""
    if low <= 0 <= high:
        return "tie"
    if metric not in LOWER_IS_BETTER:
        return "differs"
    return "win" if high < 0 else "loss"


def summarize(lines: Sequence[Line], *, references: Sequence[str]) -> str:
    """A Markdown table for each metric, rules in the order of the study, and how many runs failed."""
    rules = list(dict.fromkeys(line["rule"] for line in lines))
    metrics = list(dict.fromkeys(name for line in lines for name in line["metrics"]))
    objects, seeds = ({line[key] for line in lines} for key in ("task", "seed"))
    parts = [
        f"{len(objects)} objects, {len(seeds)} seeds, {len(lines)} runs. Mean [95 % bootstrap interval over "
        "objects and seeds]; differences are paired by object and seed. A tie is a difference whose interval "
        "holds zero.\n"
    ]
    for metric in metrics:
        better = " (lower is better)" if metric in LOWER_IS_BETTER else ""
        head = ["rule", "mean", *(f"minus {reference}" for reference in references), "runs", "failed"]
        rows = [head, ["---"] * len(head)]
        rows += [_row(lines, rule, metric, references) for rule in rules]
        parts.append(f"## {metric}{better}\n")
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n")
    return "\n".join(parts)


def _row(lines: Sequence[Line], rule: str, metric: str, references: Sequence[str]) -> list[str]:
    values = values_of(lines, rule, metric)
    failed = sum(line["rule"] == rule and bool(line["error"]) for line in lines)
    if not values:
        return [rule, "-", *("-" for _ in references), "0", str(failed)]
    mean, low, high = spread(values)
    cells = [rule, f"{mean:.4g} [{low:.4g}, {high:.4g}]"]
    for reference in references:
        paired = differences(lines, rule, reference, metric)
        if rule == reference or not paired:
            cells.append("-")
            continue
        mean, low, high = spread(paired)
        cells.append(f"{mean:+.3g} [{low:+.3g}, {high:+.3g}] {verdict(low, high, metric)}")
    return [*cells, str(len(values)), str(failed)]


def plot_summary(path: Path, lines: Sequence[Line]) -> None:
    """Means with their intervals, a panel for each metric that has a direction, and the clipped share."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rules = list(dict.fromkeys(line["rule"] for line in lines))
    shown = ("speckle", "total_variation", "saturated_fraction", "clipped_fraction")
    figure, axes = plt.subplots(1, len(shown), figsize=(14, 1 + 0.3 * len(rules)), layout="constrained")
    for axis, metric in zip(axes, shown, strict=True):
        for row, rule in enumerate(rules):
            values = values_of(lines, rule, metric)
            if values:
                mean, low, high = spread(values)
                axis.plot([low, high], [row, row], color="C0")
                axis.plot([mean], [row], "o", color="C0")
        axis.set(title=metric.replace("_", " "), yticks=range(len(rules)), ylim=(len(rules) - 0.5, -0.5))
        axis.set_yticklabels(rules if axis is axes[0] else [""] * len(rules))
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
