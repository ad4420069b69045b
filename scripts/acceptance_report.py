"""The report of an acceptance test: a JSON file, a page that needs no network, an archive, and a table."""

import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from acceptance_expected import Check, check_part, derived, tags_of, verdict_of
from acceptance_parts import PARTS
from acceptance_runs import Trial

from pgc3d import __version__
from pgc3d.disk import atomic_path, replace_file
from pgc3d.report.html import ABSENT, data_uri, listing, section
from pgc3d.report.html import table as compared
from pgc3d.report.images import as_jpeg
from pgc3d.report.page import package_file, policy

JSON, HTML, ARCHIVE = "acceptance.json", "acceptance.html", "acceptance.zip"
FORMAT = 1
PACKED = ("result.json", "log.txt", "views.png", "run/manifest.json", "run/config.yaml", "run/metrics.jsonl")
CLIP_NUMBERS = (
    "clipped_fraction", "speckle", "speckle_over_none", "total_variation", "similarity", "gradient_p50",
    "gradient_p90", "gradient_p99", "gradient_max", "step_ms",
)  # fmt: skip
TAIL_NUMBERS = tuple(
    f"{place}_{name}"
    for place in ("residual", "finished", "empty", "encoder")
    for name in ("p50", "p99", "max", "p99_over_p50", "max_over_p99", "hill", "beyond_0.1")
)
COST_NUMBERS = (
    "steps",
    "step_ms",
    "seconds",
    "seconds_build",
    "seconds_guidance",
    "seconds_export",
    "peak_gb",
)
RUN_NUMBERS = (
    "finite", "skipped_steps", "export_psnr", "coverage_least", "coverage_most", "silhouette_iou",
    "similarity", "similarity_gain", "r_precision", "speckle", "clipped_fraction", "input_psnr", "psnr",
    "mask_iou", "chamfer",
)  # fmt: skip
RESULTS, RULES = ("text-", "texture-", "image-", "sync-", "refine-"), ("clip-",)  # names of parts
PAGE = """<!DOCTYPE html>
<html lang="en" data-ready="true">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1></header>
<main>
{body}
</main>
<footer><p>Made by pgc3d {version}; this file loads nothing from a network.</p></footer>
</body>
</html>
"""


def plain(value: Any) -> Any:
    """A value as strict JSON: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def summarize(results: Mapping[str, Mapping[str, Any]], trial: Trial, *, device: str) -> dict[str, Any]:
    """All that the parts found, with the verdicts on it.

    Args:
        results: the records of the parts, by name.
        trial: what they share.
        device: name of the device that they ran on.
    """
    weights = trial.weights
    tags = tags_of(kind=weights.kind, random=weights.random, steps_scale=trial.steps_scale, device=device)
    numbers, parts = derived(results), {}
    for part in PARTS:
        result = dict(results.get(part.name, {"state": "not run", "reason": "it has not begun"}))
        checks = check_part(part.name, numbers[part.name], tags) if result["state"] == "done" else []
        parts[part.name] = {
            "verdict": verdict_of(result["state"], checks),
            "needed": part.needed,
            "minutes_on_h100": part.minutes,
            "settings": vars(part.work),
            **result,
            "numbers": numbers.get(part.name, {}),
            "checks": [asdict(check) for check in checks],
        }
    failed = [name for name, part in parts.items() if part["needed"] and part["verdict"] == "fail"]
    summary: dict[str, Any] = plain(
        {
            "format": FORMAT,
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "pgc3d": __version__,
            "device": device,
            "models": weights.kind,
            "random_weights": weights.random,
            "steps_scale": trial.steps_scale,
            "seed": trial.seed,
            "is": sorted(tags),
            "failed": failed,
            "parts": parts,
        }
    )
    return summary


def table(summary: Mapping[str, Any]) -> str:
    """The verdicts in lines of text, and the numbers that are out of their ranges."""
    lines = [f"{'part':<22}{'verdict':<9}{'seconds':>8}  reason"]
    for name, part in summary["parts"].items():
        seconds = part.get("seconds")
        shown = "" if seconds is None else f"{seconds:.0f}"
        lines.append(f"{name:<22}{part['verdict']:<9}{shown:>8}  {part.get('reason', '')}".rstrip())
    for check in all_checks(summary):
        if check.verdict == "fail":
            kind = "needed" if check.needed else "a finding"
            lines.append(
                f"{check.part}: {check.number} {number(check.value)}, expected {span(check)}, {kind}"
            )
    counts = [part["verdict"] for part in summary["parts"].values()]
    lines.append(", ".join(f"{counts.count(verdict)} {verdict}" for verdict in ("pass", "fail", "not run")))
    return "\n".join(lines)


def all_checks(summary: Mapping[str, Any]) -> list[Check]:
    """The checks of all parts."""
    found = (check for part in summary["parts"].values() for check in part["checks"])
    return [
        Check(**(check | {"high": math.inf if check["high"] is None else check["high"]})) for check in found
    ]


def number(value: float | None) -> str:
    """A number in a table."""
    return ABSENT if value is None else f"{value:.4g}"


def span(check: Check) -> str:
    """The range of a check."""
    if check.low == check.high:
        return number(check.low)
    return (
        f"at least {number(check.low)}"
        if math.isinf(check.high)
        else f"{number(check.low)} to {number(check.high)}"
    )


def write_report(out: Path, summary: Mapping[str, Any]) -> Path:
    """Write the JSON, the page and the archive; the archive."""
    replace_file(out / JSON, (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
    replace_file(out / HTML, render_page(out, summary).encode("utf-8", errors="backslashreplace"))
    with (
        atomic_path(out / ARCHIVE) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for path in packed_files(out, summary["parts"]):
            archive.write(path, path.relative_to(out))
    return out / ARCHIVE


def packed_files(out: Path, parts: Sequence[str] | Mapping[str, Any]) -> Iterator[Path]:
    """The files of the archive: the report, and of each part its result, log, images and records."""
    yield from (out / JSON, out / HTML)
    for name in parts:
        yield from (path for file in PACKED if (path := out / "parts" / name / file).is_file())


def render_page(out: Path, summary: Mapping[str, Any]) -> str:
    """The page: verdicts, expectations, images, clipping, tails, times, hashes, the machine, all numbers."""
    style, parts = package_file("style.css"), summary["parts"]
    sections = {
        "Verdicts": _verdicts(summary),
        "Expectations": _expectations(summary),
        "Six views of each result": _images(out, parts),
        "Results": _all_numbers(_named(parts, RESULTS), RUN_NUMBERS),
        "Clipping rules": _all_numbers(_named(parts, RULES), CLIP_NUMBERS),
        "Tails of gradients": _all_numbers(_named(parts, ("gradients-",)), TAIL_NUMBERS),
        "A guidance step": _all_numbers(_named(parts, ("step-",))),
        "Times and memory": _numbers(_named(parts, (*RESULTS, *RULES)), COST_NUMBERS),
        "Hashes of the weights": _weights(parts),
        "Machine and versions": _machine(summary),
    }
    body = "".join(
        section(f"part-{index}", title, text) for index, (title, text) in enumerate(sections.items())
    )
    title = f"pgc3d acceptance: {summary['models']} on {summary['device']}"
    return PAGE.format(
        policy=policy(style, ()), title=escape(title), style=style, body=body, version=escape(__version__)
    )


def _yes(holds: bool) -> str:  # noqa: FBT001 - a cell
    return "yes" if holds else "no"


def _verdicts(summary: Mapping[str, Any]) -> str:
    rows = [
        (
            name,
            part["verdict"],
            _yes(part["needed"]),
            number(part["seconds"]) if "seconds" in part else ABSENT,
            str(part.get("reason", "")),
        )
        for name, part in summary["parts"].items()
    ]
    notes = [] if not summary["failed"] else [f"needed parts failed: {', '.join(summary['failed'])}"]
    notes += (
        [f"all runs had fewer steps: {summary['steps_scale']:g} of the planned"]
        if summary["steps_scale"] < 1
        else []
    )
    notes += ["random weights: the images are noise"] if summary["random_weights"] else []
    shown = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return shown + listing(("part", "verdict", "needed", "seconds", "reason"), rows, marked="fail")


def _expectations(summary: Mapping[str, Any]) -> str:
    order = {"fail": 0, "pass": 1, "not run": 2}
    rows = [
        (item.part, item.number, number(item.value), span(item), item.verdict, _yes(item.needed), item.reason)
        for item in sorted(all_checks(summary), key=lambda item: order[item.verdict])
    ]  # fmt: skip
    heads = ("part", "number", "value", "range", "verdict", "needed", "why, or why not")
    return listing(heads, rows, marked="fail")


def _images(out: Path, parts: Mapping[str, Any]) -> str:
    figures = []
    for name in parts:
        path = out / "parts" / name / "views.png"
        if path.is_file():
            source = data_uri(as_jpeg(path.read_bytes()), "image/jpeg")
            figures.append(
                f'<figure><img alt="{escape(name)}" src="{source}">'
                f"<figcaption>{escape(name)}</figcaption></figure>"
            )
    return f'<div class="images">{"".join(figures)}</div>' if figures else ""


def _named(parts: Mapping[str, Any], beginnings: tuple[str, ...]) -> dict[str, Mapping[str, Any]]:
    """The numbers of parts that have some, by the beginnings of their names."""
    return {
        name: part["numbers"]
        for name, part in parts.items()
        if name.startswith(beginnings) and part["numbers"]
    }


def _numbers(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """A row for each part, a column for each number that any part has."""
    used = [name for name in names if any(name in numbers for numbers in columns.values())]
    rows = [(part, *(number(numbers.get(name)) for name in used)) for part, numbers in columns.items()]
    return listing(("part", *used), rows) if used else ""


def _all_numbers(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str] = ()) -> str:
    """A row for each number, of those that are named or of all, a column for each part."""
    every = dict.fromkeys(name for numbers in columns.values() for name in numbers)
    names = [name for name in names or every if name in every]
    rows = [(name, *(number(numbers.get(name)) for numbers in columns.values())) for name in names]
    return listing(("number", *columns), rows) if rows else ""


def _weights(parts: Mapping[str, Any]) -> str:
    found = parts["machine"].get("facts", {}).get("weights", {})
    rows = [
        (alias, file, content["sha256"], f"{content['bytes'] / 1e6:.1f} MB", model["folder"])
        for alias, model in found.items()
        for file, content in model["files"].items()
    ]
    return listing(("model", "file", "SHA-256", "size", "folder"), rows) if rows else ""


def _machine(summary: Mapping[str, Any]) -> str:
    facts = summary["parts"]["machine"].get("facts", {})
    findings = [
        (item["name"], item["state"], item["found"], item["remedy"]) for item in facts.get("doctor", ())
    ]
    versions = [(name, [str(value)]) for name, value in facts.get("versions", {}).items()]
    settings = [
        (name, [str(summary[name])]) for name in ("written", "device", "models", "steps_scale", "seed")
    ]
    shown = compared([*settings, *versions])
    return shown + (listing(("check", "state", "found", "what to do"), findings) if findings else "")
