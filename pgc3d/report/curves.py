"""The metrics of a run as curves over its steps."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LARGEST, LEAST = 1e300, 1e-290  # magnitudes of values: larger ones are not finite, smaller ones 0


@dataclass(frozen=True)
class Curve:
    """One metric of one stage; `steps` and `values` have the same length."""

    stage: str
    name: str  # as color/clipped_fraction
    steps: tuple[int, ...]
    values: tuple[float, ...]  # NaN where the metric was not finite


def read_curves(content: bytes) -> tuple[tuple[Curve, ...], int]:
    """The curves in the content of metrics.jsonl, in the order of their first values.

    Returns:
        The curves, and the number of lines that are damaged and left out.
    """
    points: dict[tuple[str, str], dict[int, float]] = {}
    damaged = 0
    for line in content.splitlines():
        record = _record(line)
        if record is None:
            damaged += 1
            continue
        for name, value in _numbers(record):
            points.setdefault((record["stage"], name), {})[record["step"]] = value
    curves = (
        Curve(stage, name, tuple(sorted(found)), tuple(found[step] for step in sorted(found)))
        for (stage, name), found in points.items()
    )
    return tuple(curves), damaged


def _record(line: bytes) -> dict[str, Any] | None:
    """The object of a line, None where it has no stage or no step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record.setdefault("stage", "main")
    step = record.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**53:
        return None
    return record if isinstance(record["stage"], str) else None


def _numbers(record: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if name in {"stage", "step"} or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        magnitude = abs(value)
        yield name, float(value) if LEAST < magnitude < LARGEST else 0.0 if magnitude < 1 else math.nan
