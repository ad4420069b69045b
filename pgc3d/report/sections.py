"""The sections of a report, as HTML."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from pgc3d.report.asset import AssetFacts
from pgc3d.report.charts import draw
from pgc3d.report.facts import RunFacts
from pgc3d.report.html import ABSENT, bytes_text, columns, data_uri, listing, section, table
from pgc3d.report.mesh_health import PERCENTILES, MeshHealth, SurfaceHealth
from pgc3d.report.plots import clipping_charts, other_charts

Runs = Sequence[RunFacts]


def labels(runs: Runs) -> list[str]:
    """The heads of columns: nothing for one run, letters and names for two."""
    return [f"{'AB'[index]}: {run.name}" for index, run in enumerate(runs)] if len(runs) > 1 else []


def summary(runs: Runs) -> str:
    """Prompt, state and stages of each run, and what the report lacks."""
    rows = [
        ("prompt", [str(run.record.get("prompt") or ABSENT) for run in runs]),
        ("seed", [str(run.record.get("seed", ABSENT)) for run in runs]),
        ("status", [run.status for run in runs]),
        ("steps", [_steps(run) for run in runs]),
        ("folder", [run.path for run in runs]),
        ("device", [_device(run.record.get("device")) for run in runs]),
    ]
    notes = []
    for index, run in enumerate(runs):
        who = f"{'AB'[index]}: " if len(runs) > 1 else ""
        unfinished = () if run.finished else (f"the run is not finished; its status is {run.status!r}",)
        notes += [f'<p class="note">{escape(who + note)}</p>' for note in (*unfinished, *run.notes)]
    return section("summary", "Run", "".join(notes) + table(rows, labels(runs)))


def viewers(runs: Runs) -> str:
    """A viewer for the asset of each run, with the data and the buttons that `page.js` connects."""
    parts = []
    for index, run in enumerate(runs):
        asset, head = run.asset, escape("".join(labels(runs)[index : index + 1]))
        title = f"<h3>{head}</h3>" if head else ""
        if asset is None or asset.glb is None:
            parts.append(f'{title}<p class="note">no asset to display</p>')
            continue
        data = base64.b64encode(asset.glb).decode("ascii")
        parts.append(
            f'{title}<div class="viewer" data-asset="asset-{index}"><p class="state">loading ...</p></div>'
            f'<script type="application/octet-stream" id="asset-{index}">{data}</script>'
        )
    return section("asset", "Asset", f'<div id="controls" class="buttons" hidden></div>{columns(parts)}')


def images(runs: Runs) -> str:
    """The turntable, the video and the images of each run."""
    heads, parts = labels(runs), []
    for index, run in enumerate(runs):
        title = f"<h3>{escape(heads[index])}</h3>" if heads else ""
        groups = [f'<div class="images">{_turntable(run.asset)}{_video(run)}</div>']
        for group in dict.fromkeys(image.group for image in run.images):
            figures = "".join(
                f'<figure><img alt="{escape(image.label)}" src="{data_uri(image.jpeg, "image/jpeg")}">'
                f"<figcaption>{escape(image.label)}</figcaption></figure>"
                for image in run.images
                if image.group == group
            )
            groups.append(f'<h4>{escape(group)}</h4><div class="images">{figures}</div>')
        parts.append(title + "".join(groups))
    return section("images", "Images and turntable", columns(parts))


def _turntable(asset: AssetFacts | None) -> str:
    if asset is None or asset.turntable is None:
        return ""
    strip = asset.turntable
    return (
        f'<figure class="turntable" data-frames="{strip.frames}"><div><img alt="turntable of the asset" '
        f'src="{data_uri(strip.jpeg, "image/jpeg")}"></div><input type="range" min="0" '
        f'max="{strip.frames - 1}" value="0" aria-label="azimuth"><figcaption>turntable of '
        f"{escape(asset.name)}</figcaption></figure>"
    )


def _video(run: RunFacts) -> str:
    if run.video is None:
        return ""
    uri = data_uri(run.video, "video/mp4")
    return f'<figure><video controls loop muted src="{uri}"></video><figcaption>video</figcaption></figure>'


def clipping(runs: Runs) -> str:
    """The charts of the clip statistics."""
    drawn = "".join(draw(chart) for chart in clipping_charts([run.curves for run in runs]))
    return section("clipping", "Clip statistics", drawn and f'<div class="charts">{drawn}</div>')


def curves(runs: Runs) -> str:
    """The charts of all other metrics."""
    drawn = "".join(draw(chart) for chart in other_charts([run.curves for run in runs]))
    return section("curves", "Curves", drawn and f'<div class="charts">{drawn}</div>')


def mesh_health(runs: Runs) -> str:
    """The health of the meshes, and of the texture coordinates of each of their materials."""
    found = [run.asset.health if run.asset else None for run in runs]
    if not any(found):
        return ""
    names = _health_rows(next(item for item in found if item is not None))
    columns_of = [dict(_health_rows(item)) if item else {} for item in found]
    rows = [(name, [values.get(name, ABSENT) for values in columns_of]) for name, _ in names]
    heads = ("material", "triangles", "image", "coordinates", "overlap", "of the image used", _percentiles())
    below = []
    for head, item in zip(labels(runs) or [""], found, strict=True):
        if item is not None and item.surfaces:
            below.append(f"<h3>{escape(head or 'Texture coordinates')}</h3>")
            below.append(listing(heads, [_surface_row(surface) for surface in item.surfaces]))
    return section("mesh", "Mesh", table(rows, labels(runs)) + "".join(below))


def _percentiles() -> str:
    return f"texels per unit of length ({', '.join(f'{100 * part:.0f}' for part in PERCENTILES)} %)"


def _health_rows(health: MeshHealth) -> list[tuple[str, str]]:
    return [
        ("triangles", f"{health.triangles:,}"),
        ("vertices", f"{health.vertices:,}"),
        ("size", " x ".join(f"{side:.4g}" for side in health.size)),
        ("components of at least 1 % of the area", str(health.components)),
        ("smaller components", str(health.fragments)),
        ("area of the largest component", f"{health.largest:.1%}"),
        ("handles", str(health.handles)),
        ("enclosed voids", str(health.voids)),
        ("holes", str(health.holes)),
        ("closed", "yes" if health.closed else f"no, {health.open_edges} edges with one face"),
        ("manifold", "yes" if health.manifold else _why_not_manifold(health)),
        ("degenerate faces", str(health.degenerate)),
    ]


def _why_not_manifold(health: MeshHealth) -> str:
    crowded = f"{health.crowded_edges} edges with three faces or more"
    return f"no, {crowded}, {health.turned_edges} between faces of opposite winding"


def _surface_row(surface: SurfaceHealth) -> list[str]:
    return [
        surface.name or ABSENT,
        f"{surface.triangles:,}",
        " x ".join(map(str, surface.image)) if surface.image else ABSENT,
        surface.coordinates,
        ABSENT if surface.overlap is None else f"{surface.overlap:.2%}",
        ABSENT if surface.used is None else f"{surface.used:.1%}",
        ABSENT if surface.density is None else ", ".join(f"{value:.4g}" for value in surface.density),
    ]


def costs(runs: Runs) -> str:
    """Seconds of each part, and the memory."""
    parts = dict.fromkeys(name for run in runs for name in run.record.get("seconds", {}))
    rows = [(name, [_seconds(run.record.get("seconds", {}).get(name)) for run in runs]) for name in parts]
    if parts:
        total = [_seconds(sum(run.record.get("seconds", {}).values())) for run in runs]
        rows.append(("all parts", total))
    starts = dict.fromkeys(name for run in runs for name in _mapping(run.record.get("start_parts")))
    for name in starts:
        values = [_mapping(run.record.get("start_parts")).get(name) for run in runs]
        rows.append((f"of start and build: {name}", [_seconds(value) for value in values]))
    kinds = dict.fromkeys(name for run in runs for name in _mapping(run.record.get("peak_memory_bytes")))
    for kind in kinds:
        values = [_mapping(run.record.get("peak_memory_bytes")).get(kind) for run in runs]
        shown = [bytes_text(value) if isinstance(value, int | float) else ABSENT for value in values]
        rows.append((f"peak memory, {kind}", shown))
    rows += [
        (name, [_joined(run.record.get(key)) for run in runs])
        for key, name in (("expected", "expected"), ("out_of_memory", "out of memory"))
        if any(key in run.record for run in runs)
    ]
    return section("costs", "Times and memory", table(rows, labels(runs)))


def settings(runs: Runs) -> str:
    """The whole configuration of each run, and for two runs the settings that differ."""
    differing = ""
    if len(runs) > 1:
        names = dict.fromkeys(name for run in runs for name in run.settings)
        rows = [(name, [run.settings.get(name, ABSENT) for run in runs]) for name in names]
        rows = [row for row in rows if len(set(row[1])) > 1]
        differing = table(rows, labels(runs)) or "<p>All settings are the same.</p>"
    heads = labels(runs) or ["config.yaml"]
    whole = [
        f"<details><summary>{escape(head)}</summary><pre>{escape(run.settings_text)}</pre></details>"
        for head, run in zip(heads, runs, strict=True)
    ]
    return section("settings", "Settings", differing + columns(whole))


def records(runs: Runs) -> str:
    """Versions, models, and the hashes of files, each compared with the file."""
    names = dict.fromkeys(name for run in runs for name in _mapping(run.record.get("versions")))
    versions = [
        (name, [_joined(_mapping(run.record.get("versions")).get(name)) for run in runs]) for name in names
    ]
    parts = [table(versions, labels(runs))]
    heads = labels(runs) or [""]
    for head, run in zip(heads, runs, strict=True):
        rows = [(item.name, item.sha256, item.state) for item in run.files]
        for kind in ("inputs", "models"):
            for key, item in run.record.get(kind, {}).items():
                name = f"{kind.removesuffix('s')} {key}: {_place(item.get('name', ABSENT))}"
                digest = item.get("sha256") or item.get("commit") or ABSENT
                rows.append((name, digest, "not read again"))
        for lora in run.record.get("loras", []):
            rows.append(
                (f"LoRA {_place(lora['path'])} x {lora['scale']:g}", lora["sha256"], "not read again")
            )
        parts.append(f"<h3>{escape(head)}</h3>" if head else "")
        parts.append(listing(("file", "SHA-256 or commit", "state"), rows))
    return section("records", "Versions and hashes", "".join(parts))


def _place(name: str) -> str:
    """The end of an absolute path, as a report is sent to others; other names as they are."""
    path = PurePath(name)
    return "/".join(path.parts[1:][-2:]) if path.is_absolute() else name


def _steps(run: RunFacts) -> str:
    stages = [
        f"{stage.name}: {stage.steps} of {stage.planned or 'unknown'}, {stage.status}" for stage in run.stages
    ]
    return "; ".join(stages) or ABSENT


def _seconds(value: int | float | None) -> str:
    return ABSENT if value is None else f"{value:,.1f} s"


def _mapping(value: Any) -> dict[str, Any]:
    """An entry of the manifest whose type is not checked."""
    return value if isinstance(value, dict) else {}


def _device(value: Any) -> str:
    """The name of a device with its type, or what else a manifest has in its place."""
    if isinstance(value, dict) and value.keys() == {"type", "name"}:
        return f"{_joined(value['name'])} ({_joined(value['type'])})"
    return _joined(value)


def _joined(value: Any, depth: int = 3) -> str:
    """Any entry of a manifest as text; what is nested deeper is left out."""
    if value is None:
        return ABSENT
    if isinstance(value, dict | list) and not depth:
        return "..."
    if isinstance(value, dict):
        return ", ".join(f"{key} {_joined(inner, depth - 1)}" for key, inner in value.items())
    return "; ".join(_joined(item, depth - 1) for item in value) if isinstance(value, list) else str(value)
