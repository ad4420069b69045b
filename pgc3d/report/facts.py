"""The facts of a run, gathered from its folder, which is only read."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgc3d.errors import ConfigError
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.formats import READABLE
from pgc3d.plain_files import read_file, require_folder
from pgc3d.report.asset import AssetFacts, asset_facts
from pgc3d.report.curves import Curve, read_curves
from pgc3d.report.images import RunImage, is_inside, newest, run_images
from pgc3d.run_directory import RunDirectory
from pgc3d.run_files import METRICS
from pgc3d.yaml_text import read_yaml

LARGEST_VIDEO = 32_000_000  # bytes
SAME, CHANGED, MISSING, OUTSIDE = "as recorded", "changed", "missing", "outside the folder"


@dataclass(frozen=True)
class StageFacts:
    """A stage of a run."""

    name: str
    status: str
    steps: int  # that are done
    planned: int | None  # by the configuration, None where that cannot be read


@dataclass(frozen=True)
class FileFacts:
    """A hash in the manifest, compared with the file where it lies in the run's folder."""

    name: str
    sha256: str
    state: str


@dataclass(frozen=True)
class RunFacts:
    """A run, as its folder records it."""

    name: str  # of the folder
    path: str
    status: str  # how the run ended, or that it has not, see `RunDirectory.status`
    record: Mapping[str, Any]  # the manifest, whose types were checked
    stages: tuple[StageFacts, ...]
    curves: tuple[Curve, ...]
    images: tuple[RunImage, ...]
    asset: AssetFacts | None
    settings: Mapping[str, str]  # values of the configuration by their names with dots
    settings_text: str
    files: tuple[FileFacts, ...]
    video: bytes | None = None  # MP4
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether all steps were made and the asset was written."""
        return self.status == "done"


def gather_run(path: Path, *, rasterizer: Rasterizer) -> RunFacts:
    """Gather the facts of a run, finished or not.

    Args:
        path: the run's folder.
        rasterizer: on the CPU, for the turntable and overlapping charts.

    Raises:
        RunDirectoryError: the folder is not a run, holds links or a damaged manifest, or its run made no
            step.
        OSError: a file cannot be read.
    """
    run = RunDirectory.open(path)
    record = run.read_manifest()
    notes: list[str] = []
    settings = read_settings(run, notes)
    stages = stage_facts(record, settings)
    curves = _curves(run, notes)
    images, unreadable = run_images(path, [stage.name for stage in stages])
    name = asset_name(path, record)
    asset = None if name is None else asset_facts(path / name, rasterizer=rasterizer)
    if asset is None:
        notes.append("the run has no asset file")
    return RunFacts(
        name=path.resolve().name,
        path=str(path),
        status=run.status(record),
        record=record,
        stages=stages,
        curves=curves,
        images=images,
        asset=asset,
        settings=settings,
        settings_text=read_file(run.config).decode("utf-8", errors="replace"),
        files=tuple(_files(run, record)),
        video=_video(path),
        notes=(*notes, *unreadable, *(asset.notes if asset else ())),
    )


def read_settings(run: RunDirectory, notes: list[str]) -> Mapping[str, str]:
    """The values of the configuration by their names with dots; a note where it cannot be read."""
    try:
        return dict(_flat(read_yaml(run.config)))
    except ConfigError as error:
        notes.append(f"the settings cannot be read: {error}")
        return {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested mappings, by their names with dots."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)


def stage_facts(record: Mapping[str, Any], settings: Mapping[str, str]) -> tuple[StageFacts, ...]:
    """The stages that a configuration plans, and those that a manifest records."""
    begun = record.get("stages", {})
    planned = {
        parts[1]: int(value)
        for name, value in settings.items()
        if len(parts := name.split(".")) == 3
        and (parts[0], parts[2]) == ("stages", "steps")
        and value.isdecimal()
    }
    return tuple(
        StageFacts(
            name,
            begun.get(name, {}).get("status", "not begun"),
            begun.get(name, {}).get("steps", 0),
            planned.get(name),
        )
        for name in dict.fromkeys([*planned, *begun])
    )


def _curves(run: RunDirectory, notes: list[str]) -> tuple[Curve, ...]:
    path = run.path / METRICS
    if not path.exists():
        notes.append("the run has no metrics")
        return ()
    curves, damaged = read_curves(read_file(path))
    if damaged:
        notes.append(f"{damaged} lines of {METRICS} are damaged and left out")
    return curves


def asset_name(folder: Path, record: Mapping[str, Any]) -> str | None:
    """The mesh file that was exported last and is still in the folder; a GLB before other formats."""
    names = [
        str(name)
        for name in record.get("files", {})
        if Path(name).suffix.lower().removeprefix(".") in READABLE
        and is_inside(name)
        and _own_file(folder, name) is not None
    ]
    return max(reversed(names), key=_is_glb, default=None)


def _is_glb(name: str) -> bool:
    return name.lower().endswith(".glb")


def _own_file(folder: Path, name: str) -> Path | None:
    """The path of a file that the manifest names, None where it is missing; its folders must not be links."""
    path = folder / name
    for parent in path.relative_to(folder).parents[:-1]:
        if not os.path.lexists(folder / parent):
            return None
        require_folder(folder / parent)
    return path if os.path.lexists(path) else None


def _files(run: RunDirectory, record: Mapping[str, Any]) -> Iterator[FileFacts]:
    """The hashes of the run's own files; the files are read again."""
    recorded = {run.config.name: record["config"]} if "config" in record else {}
    for name, sha256 in (recorded | record.get("files", {})).items():
        state = OUTSIDE
        if is_inside(name):
            path = _own_file(run.path, name)
            digest = None if path is None else hashlib.sha256(read_file(path)).hexdigest()
            state = MISSING if digest is None else SAME if digest == sha256 else CHANGED
        yield FileFacts(name, sha256, state)


def _video(folder: Path) -> bytes | None:
    path = newest(folder, "turntable", ".mp4")
    if path is None or path.stat().st_size > LARGEST_VIDEO:
        return None
    return read_file(path)
