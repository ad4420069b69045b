"""Tables and plots of a clipping study: means, bootstrap intervals, paired differences."""

import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from pgc3d.evaluation.results import bootstrap, interval, rises

REFERENCES = ("none", "pixel=0.1")
FALLING = ("speckle", "total_variation", "saturated_fraction", "seconds", "chamfer", "vae_distance")
MAIN = {
    "text": ("speckle", "total_variation", "saturated_fraction", "clipped_fraction", "r_precision"),
    "image": ("psnr", "chamfer", "speckle", "clipped_fraction"),
}
SHARED = "shared_"  # before metrics in the frame of the truth

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
    mean, bounds = np.mean([group.mean() for group in groups]), interval(bootstrap([groups])[:, 0])
    # differences that cancel are 0
    mean, low, high = (round(float(number), 12) for number in (mean, *bounds))
    return mean, low, high


def differences(
    lines: Sequence[Line], rule: str, reference: str, metric: str
) -> dict[tuple[str, int], float]:
    """Rule minus reference, of the same object and seed; what only one of them has is left out."""
    own, other = (values_of(lines, name, metric) for name in (rule, reference))
    return {key: own[key] - other[key] for key in own if key in other}


def verdict(low: float, high: float, metric: str) -> str:
    """The verdict of an interval of differences; metrics without a direction only differ."""
    if low <= 0 <= high:
        return "tie"
    if not better(metric):
        return "differs"
    return "win" if (low > 0) == (better(metric) == "higher") else "loss"


def better(metric: str) -> str:
    """The direction of a metric: "higher", "lower", or nothing."""
    if metric.removeprefix(SHARED) in FALLING:
        return "lower"
    return "higher" if rises(metric) else ""


def report(lines: Sequence[Line]) -> str:
    """The report of the text jobs, then of the image jobs."""
    parts = []
    for kind in dict.fromkeys(line["kind"] for line in lines):
        own = [line for line in lines if line["kind"] == kind]
        parts += [f"# Tasks of kind {kind}\n", overview(own), summarize(own, references=REFERENCES)]
    return "\n".join(parts)


def main_metrics(lines: Sequence[Line]) -> list[str]:
    """The main metrics of one kind of task, in the frame of the truth where it was measured."""
    known = {name for line in lines for name in line["metrics"]}
    wanted = MAIN[lines[0]["kind"]]
    chosen = [SHARED + metric if SHARED + metric in known else metric for metric in wanted]
    return [metric for metric in chosen if metric in known]


def overview(lines: Sequence[Line]) -> str:
    """One Markdown table of the main metrics of one kind of task: means, and differences to no clipping."""
    reference, metrics = REFERENCES[0], main_metrics(lines)
    head = ["rule", *(cell for metric in metrics for cell in (metric, f"minus {reference}"))]
    rows = []
    for rule in dict.fromkeys(line["rule"] for line in lines):
        cells = [_row(lines, rule, metric, [reference])[1:3] for metric in metrics]
        rows.append([rule, *(cell for pair in cells for cell in pair)])
    return table(head, rows)


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
    if any(metric.startswith(SHARED) for metric in metrics):
        parts.append(
            f"{SHARED}...: in the frame of the truth, in which place and size count; the same metrics "
            "without it: each mesh centred and scaled on its own.\n"
        )
    for metric in metrics:
        direction = f" ({better(metric)} is better)" if better(metric) else ""
        head = ["rule", "mean", *(f"minus {reference}" for reference in references), "runs", "failed"]
        parts.append(f"## {metric}{direction}\n")
        parts.append(table(head, [_row(lines, rule, metric, references) for rule in rules]))
    return "\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with a line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


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
    """A row of panels for each kind of task, rules from the top down.

    Paired differences to no clipping where a metric has a direction and there are such runs, else means: what
    objects differ by would hide what rules differ by.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    kinds = dict.fromkeys(line["kind"] for line in lines)
    groups = [[line for line in lines if line["kind"] == kind] for kind in kinds]
    counts = [len({line["rule"] for line in own}) for own in groups]
    columns = max(len(main_metrics(own)) for own in groups)
    size = (3.5 * columns, sum(1 + 0.3 * count for count in counts))
    figure, axes = plt.subplots(
        len(groups), columns, figsize=size, layout="constrained", squeeze=False, height_ratios=counts
    )
    for row, own in zip(axes, groups, strict=True):
        for axis, metric in zip_longest(row, main_metrics(own)):
            if metric:
                _draw(axis, own, metric)
            else:
                axis.set_visible(False)
        for axis in row[1:]:
            axis.set_yticklabels([])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axis: Any, lines: Sequence[Line], metric: str) -> None:
    reference, rules = REFERENCES[0], list(dict.fromkeys(line["rule"] for line in lines))
    paired = better(metric) != "" and reference in rules
    for row, rule in enumerate(rules):
        values = differences(lines, rule, reference, metric) if paired else values_of(lines, rule, metric)
        if values:
            mean, low, high = spread(values)
            axis.plot([low, high], [row, row], color="C0")
            axis.plot([mean], [row], "o", color="C0")
    title = metric.replace("_", " ") + (f"\nminus {reference}, {better(metric)} is better" if paired else "")
    axis.set(title=title, yticks=range(len(rules)), ylim=(len(rules) - 0.5, -0.5))
    axis.set_yticklabels(rules)
    axis.grid(axis="x", alpha=0.3)
    if paired:
        axis.axvline(0.0, color="black", linewidth=0.8)
