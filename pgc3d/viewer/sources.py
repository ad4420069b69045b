"""The folder of a run and a mesh file as sources of a page; both are only read."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgc3d.errors import InputError, Pgc3dError
from pgc3d.mesh_io.asset import MeshAsset
from pgc3d.mesh_io.bundle import opened_document
from pgc3d.mesh_io.formats import READABLE
from pgc3d.mesh_io.gltf_writer import unpack_glb
from pgc3d.mesh_io.mesh_file import read_mesh
from pgc3d.plain_files import read_file, require_file
from pgc3d.report.asset import as_glb
from pgc3d.report.curves import Curve, read_curves
from pgc3d.report.facts import StageFacts, asset_name, read_settings, stage_facts
from pgc3d.report.images import stage_previews
from pgc3d.run_directory import RunDirectory, clip_image_name
from pgc3d.run_files import MANIFEST, METRICS, PREVIEWS
from pgc3d.task import PREPARED_NAMES
from pgc3d.viewer.latest import Latest, stamp
from pgc3d.viewer.state import Displayed, Preview, Source, State

NOT_BEGUN, BEGUN, UNREADABLE, A_FILE = "not begun", "begun", "not readable", "mesh file"


def open_source(path: Path) -> Source:
    """The source of a path that a user gave; a path without a file is that of a run which is still to begin.

    Raises:
        InputError: it is a file, but no mesh that can be read.
    """
    is_mesh = path.suffix.lower().removeprefix(".") in READABLE and not path.is_dir()
    if not is_mesh and not path.is_file():
        return RunSource(path)
    source = FileSource(path)
    try:
        source.asset()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a mesh to display, got: {error}; check the file") from error
    return source


class FileSource:
    """A mesh file."""

    is_run = False

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._path = path
        self._glb: Latest[bytes] = Latest()

    def state(self) -> State:
        """The file's version, or that it is gone."""
        version = _version(self._path.resolve())
        if version is None:
            return State(self.name, UNREADABLE, notes=(f"{self._path} is missing; the last content stays",))
        return State(self.name, A_FILE, asset=Displayed(self._path, version))

    def preview(self, index: int) -> bytes | None:
        """None, as a file has no previews."""
        return None

    def clipping(self, index: int) -> bytes | None:
        """None, as a file has no previews."""
        return None

    def before(self) -> bytes | None:
        """None, as a file has no earlier state."""
        return None

    def asset(self) -> bytes:
        """The mesh as a GLB.

        Raises:
            InputError: it cannot be read.
            OSError: the same.
            ValueError: it has no surface to display.
        """
        return self._glb.get(stamp(self._path.resolve()), self._read)

    def _read(self) -> bytes:
        mesh = read_mesh(self._path)  # first, as its errors name the file and what to do
        return _displayed(self._path, self._path.read_bytes(), mesh)


class RunSource:
    """The folder of a run that is still to begin, goes on, or has ended."""

    is_run = True

    def __init__(self, path: Path) -> None:
        self.name = path.resolve().name
        self._path = path
        self._curves: Latest[tuple[Curve, ...]] = Latest()
        self._settings: Latest[tuple[Mapping[str, str], tuple[str, ...]]] = Latest()
        self._glb: Latest[bytes] = Latest()
        self._before: Latest[bytes] = Latest()

    def state(self) -> State:
        """What the folder records now."""
        try:
            return self._read()
        except (Pgc3dError, OSError, ValueError) as error:
            return State(self.name, UNREADABLE, notes=(str(error),))

    def preview(self, index: int) -> bytes | None:
        """A preview of the state, None where there are fewer.

        Raises:
            RunDirectoryError: it is a link.
            OSError: it cannot be read.
        """
        previews = self.state().previews
        return read_file(previews[index].path) if index < len(previews) else None

    def clipping(self, index: int) -> bytes | None:
        """The image of clipping beside a preview, None where there is none.

        Raises:
            RunDirectoryError: it is a link.
            OSError: it cannot be read.
        """
        previews = self.state().previews
        path = previews[index].clipping if index < len(previews) else None
        return None if path is None else read_file(path)

    def before(self) -> bytes | None:
        """The mesh that the run textures as a GLB, from the archive of its file; None where there is none.

        Raises:
            InputError: it cannot be read.
            RunDirectoryError: the archive is damaged, or a link.
            ValueError: it has no surface to display.
        """
        found = self.state().before
        if found is None:
            return None
        archive = found.path

        def read() -> bytes:
            require_file(archive)
            with opened_document(archive) as path:
                return _displayed(path, path.read_bytes(), read_mesh(path))

        return self._before.get((archive, found.version), read)

    def asset(self) -> bytes | None:
        """The asset that the manifest names as a GLB, None where there is none yet.

        Raises:
            InputError: it cannot be read.
            RunDirectoryError: it is a link.
            OSError: it cannot be read.
            ValueError: it has no surface to display.
        """
        found = self.state().asset
        if found is None:
            return None
        path = found.path

        def read() -> bytes:
            content = read_file(path)  # first, as it refuses links
            return _displayed(path, content, read_mesh(path))

        return self._glb.get((path, found.version), read)

    def _read(self) -> State:
        if not os.path.lexists(self._path / MANIFEST):
            note = f"there is no run in {self._path} yet; it is displayed once it begins"
            return State(self.name, NOT_BEGUN, notes=(note,))
        run = RunDirectory(self._path)
        record = run.read_manifest()
        settings, notes = self._settings.get(stamp(run.config), lambda: _settings(run))
        metrics = self._path / METRICS
        curves = self._curves.get(stamp(metrics), lambda: _curves(metrics))
        stages = tuple(_with_metrics(stage, curves) for stage in stage_facts(record, settings))
        return State(
            self.name,
            run.status(record),
            stages,
            curves,
            tuple(
                Preview(stage.name, step, path, _clipping(run, stage.name, step))
                for stage in stages
                for step, path in stage_previews(self._path, stage.name)
            ),
            _asset(self._path, record),
            _before(self._path, record),
            max(changed[0] for path in (metrics, run.path / MANIFEST) if (changed := stamp(path))) / 1e9,
            notes,
            str(record.get("prompt") or ""),
        )


def _version(path: Path) -> str | None:
    found = stamp(path)
    return found and f"{found[0]:x}-{found[1]:x}"


def _asset(folder: Path, record: Mapping[str, Any]) -> Displayed | None:
    name = asset_name(folder, record)
    version = None if name is None else _version(folder / name)
    return Displayed(folder / name, version) if name and version else None


def _before(folder: Path, record: Mapping[str, Any]) -> Displayed | None:
    """The archive of the file of the mesh that a run textures."""
    path = folder / PREPARED_NAMES["document"]
    version = _version(path) if "document" in record else None
    return Displayed(path, version) if version else None


def _clipping(run: RunDirectory, stage: str, step: int) -> Path | None:
    path = run.path / PREVIEWS / stage / clip_image_name(step)
    return path if os.path.lexists(path) else None


def _settings(run: RunDirectory) -> tuple[Mapping[str, str], tuple[str, ...]]:
    notes: list[str] = []
    settings = read_settings(run, notes) if os.path.lexists(run.config) else {}
    return settings, tuple(notes)


def _curves(path: Path) -> tuple[Curve, ...]:
    """The curves so far; a last line that is still being written is left out."""
    if not os.path.lexists(path):
        return ()
    complete, newline, _ = read_file(path).rpartition(b"\n")
    return read_curves(complete + newline)[0]


def _with_metrics(stage: StageFacts, curves: tuple[Curve, ...]) -> StageFacts:
    """A stage with the steps of its newest metrics: the manifest has its steps once it has ended."""
    steps = [curve.steps[-1] for curve in curves if curve.stage == stage.name and curve.steps]
    status = BEGUN if steps and stage.status == NOT_BEGUN else stage.status
    return replace(stage, status=status, steps=max([stage.steps, *steps]))


def _displayed(path: Path, content: bytes, mesh: MeshAsset) -> bytes:
    """The file itself where it is a whole GLB, else its mesh as one."""
    is_whole = path.suffix.lower() == ".glb" and _is_whole(content)
    return content if is_whole else as_glb(mesh, path.stem)


def _is_whole(glb: bytes) -> bool:
    """Whether a GLB refers to no other file, which a page could not load."""
    document, _ = unpack_glb(glb)
    parts = [*document.get("images", []), *document.get("buffers", [])]
    return not any("uri" in part for part in parts if isinstance(part, dict))
