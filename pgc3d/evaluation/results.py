"""Results of a benchmark: records as JSON, means with bootstrap intervals, a table."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pgc3d.errors import InputError

RESAMPLES = 2000
LEVEL = 0.95
HIGHER_IS_BETTER = ("psnr", "ssim", "iou", "f_score", "r_precision")

Values = Sequence[NDArray[np.float64]]  # of each object, one value a seed


@dataclass(frozen=True)
class Record:
    """The metrics of one result, or the error for which it could not be measured."""

    method: str
    item: str
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    key: str = ""  # of everything that the numbers depend on


def to_json(record: Record) -> dict[str, Any]:
    """A JSON object; infinity becomes the string "inf", a missing value null."""
    metrics = {name: _plain(value) for name, value in record.metrics.items()}
    return {**vars(record), "metrics": metrics}


def from_json(content: Mapping[str, Any]) -> Record:
    """The inverse of `to_json`.

    Raises:
        InputError: a field is missing or of a wrong type.
    """
    try:
        metrics = {
            name: math.nan if value is None else float(value) for name, value in content["metrics"].items()
        }
        return Record(**{**content, "metrics": metrics})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"a record of a benchmark must hold its fields, got: {error}") from error


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def write_results(path: Path, records: Sequence[Record], protocol: Mapping[str, Any]) -> None:
    """Write protocol, records and summary as one JSON file."""
    from pgc3d.disk import write_files

    content = {
        "protocol": dict(protocol),
        "summary": summarize(records),
        "records": [to_json(record) for record in records],
    }
    write_files({path: (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()})


def read_results(path: Path) -> list[Record]:
    """The records of a file that `write_results` wrote.

    Raises:
        InputError: the file cannot be read as such.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        records = content["records"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} must be the results of a benchmark, got: {error}") from error
    return [from_json(record) for record in records]


def bootstrap(
    tables: Sequence[Values], *, resamples: int = RESAMPLES
) -> Float[np.ndarray, "resamples tables"]:
    """Bootstrap means [resamples, tables] over objects, and within each object over seeds, with replacement.

    All tables list the same objects, and every resample draws the same ones for all, so that differences of
    columns are paired. An object's value is the mean over its seeds, so that objects have equal weights. The
    random numbers are always the same.

    Args:
        tables: for each method the values of every object, one for each seed.
        resamples: number of bootstrap samples.
    """
    generator = np.random.default_rng(0)
    count = len(tables[0])
    objects = generator.integers(count, size=(resamples, count))
    means = np.empty((resamples, len(tables)))
    for column, table in enumerate(tables):
        sizes = np.array([len(values) for values in table])
        padded = np.zeros((count, sizes.max()))
        for row, values in enumerate(table):
            padded[row, : len(values)] = values
        size = sizes[objects][..., None]
        sample = (generator.random((*objects.shape, padded.shape[1])) * size).astype(np.int64)
        chosen = padded[objects[..., None], sample]
        used = np.arange(padded.shape[1]) < size
        means[:, column] = (np.where(used, chosen, 0.0).sum(-1) / size[..., 0]).mean(1)
    return means


def interval(means: Float[np.ndarray, " resamples"]) -> tuple[float, float]:
    """Ends of the percentile interval at 95 %; members of the sample, since infinities do not interpolate."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], method="closest_observation")
    return float(low), float(high)


def values_of(records: Iterable[Record], method: str, metric: str) -> dict[str, Float[np.ndarray, " seeds"]]:
    """Values of a metric by object, one for each seed; objects without a value are left out."""
    by_object: dict[str, list[float]] = {}
    for record in records:
        value = record.metrics.get(metric, math.nan)
        if record.method == method and not math.isnan(value):
            by_object.setdefault(record.item, []).append(value)
    return {item: np.array(values) for item, values in by_object.items()}


def summarize(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Mean, interval and counts of every metric by method, and how many results failed."""
    summary: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(record.method for record in records):
        own = [record for record in records if record.method == method]
        summary[method] = {"failed": sum(bool(record.error) for record in own)}
        for metric in _metrics(own):
            table = list(values_of(own, method, metric).values())
            if not table:
                continue
            low, high = interval(bootstrap([table])[:, 0])
            mean = float(np.mean([values.mean() for values in table]))
            summary[method][metric] = {
                "mean": _plain(mean),
                "low": _plain(low),
                "high": _plain(high),
                "objects": len(table),
                "values": sum(len(values) for values in table),
            }
    return summary


def _metrics(records: Iterable[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.metrics))


def table(records: Sequence[Record], frame: str) -> str:
    """A Markdown table: metrics by methods, each a mean with its interval; its header names the frame.

    Every method after the first is followed by its paired difference from the first one, over the objects
    that both have; it is marked with * where its interval excludes zero. A single object has no interval.
    """
    summary = summarize(records)
    methods = list(summary)
    head = [f"metric, {frame} frame", methods[0]]
    for method in methods[1:]:
        head += [method, f"{method} - {methods[0]}"]
    lines = [head, ["---"] * len(head)]
    for metric in _metrics(records):
        better = "" if metric == "rotation_degrees" else " ↑" if rises(metric) else " ↓"
        row = [metric + better, _cell(summary[methods[0]].get(metric))]
        for method in methods[1:]:
            row += [_cell(summary[method].get(metric)), _difference(records, methods[0], method, metric)]
        lines.append(row)
    counts = [f"{_objects(records, method)} / {summary[method]['failed']}" for method in methods]
    lines.append(["objects / failed results", counts[0]])
    for count in counts[1:]:
        lines[-1] += [count, ""]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def rises(metric: str) -> bool:
    """Whether larger values of a metric are better."""
    return any(part in metric for part in HIGHER_IS_BETTER)


def _objects(records: Iterable[Record], method: str) -> int:
    return len({record.item for record in records if record.method == method and not record.error})


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    mean, low, high = (float(entry[name]) for name in ("mean", "low", "high"))
    return f"{mean:.4g} [{low:.4g}, {high:.4g}]" if low < high else f"{mean:.4g}"


def _difference(records: Sequence[Record], first: str, second: str, metric: str) -> str:
    a, b = (values_of(records, method, metric) for method in (first, second))
    shared = [item for item in a if item in b]
    finite = [item for item in shared if np.isfinite([*a[item], *b[item]]).all()]
    if not shared or len(finite) < len(shared):
        return "-"
    means = bootstrap([[a[item] for item in shared], [b[item] for item in shared]])
    low, high = interval(means[:, 1] - means[:, 0])
    mean = float(np.mean([b[item].mean() - a[item].mean() for item in shared]))
    if len(shared) == 1:  # no interval
        return f"{mean:+.4g}"
    mark = "" if low <= 0.0 <= high else " *"
    return f"{mean:+.4g} [{low:+.4g}, {high:+.4g}]{mark}"
