"""The asset file of a run: written from its representation, and compared with the run's own renders."""

from dataclasses import replace
from pathlib import Path

from pgc3d import __version__
from pgc3d.build.run import some_cameras
from pgc3d.disk import free_name, new_files
from pgc3d.errors import DivergedError
from pgc3d.events import Event
from pgc3d.exporting.export import ExportReport, export_asset
from pgc3d.exporting.target import export_path
from pgc3d.exporting.textured_mesh import export_textured_mesh
from pgc3d.interfaces import Meshable, Rasterizer, Representation
from pgc3d.mesh_io.bundle import archived_format
from pgc3d.representation.textured_mesh import TexturedMesh
from pgc3d.session import Session
from pgc3d.task import Task


def _write_asset(
    session: Session, representation: TexturedMesh | Meshable, rasterizer: Rasterizer, path: Path
) -> ExportReport:
    settings = session.config.export
    metadata = {"prompt": session.record["prompt"], "seed": session.config.run.seed, "pgc3d": __version__}
    if isinstance(representation, TexturedMesh):
        mesh, device = representation.mesh, session.device
        return export_textured_mesh(
            representation,
            path,
            format=settings.format,
            texture_size=settings.texture_size,
            metadata=metadata,
            rasterizer=rasterizer,
            placing=settings.placing,
            cameras=some_cameras(session.config, session.stage, device, mesh, rasterizer),
            document=_document(session),
        )
    return export_asset(
        representation,
        path,
        format=settings.format,
        texture_size=settings.texture_size,
        faces=settings.faces or None,
        metadata=metadata,
        rasterizer=rasterizer,
        placing=settings.placing,
    )


def _document(session: Session) -> Path | None:
    """The archive of the mesh's file, where the stage textures that mesh and the format is the file's."""
    task = Task.from_record(session.record, session.run.path)
    given = "mesh" in session.config.stages[session.stage].representation.requires().inputs
    if task.document is None or not given:
        return None
    whole, chosen = archived_format(task.document), session.config.export.format
    if whole == chosen:
        return task.document
    if whole is not None:
        message = f"{chosen} has the surface alone; --format {whole} has all contents of the mesh's file"
        session.on_event(Event("export", message=message))
    return None


def _write_outside(
    session: Session, representation: TexturedMesh | Meshable, rasterizer: Rasterizer, out: Path
) -> ExportReport:
    """The report of an export to a place that the user gave, where no file is replaced."""
    target = export_path(out, session.run.path, session.config.export.format)
    with new_files(target) as path:
        report = _write_asset(session, representation, rasterizer, path)
    moved = (replace(file, path=target.with_name(file.path.name)) for file in report.files)
    return replace(report, files=tuple(moved))


def export_run(
    session: Session, representation: Representation, rasterizer: Rasterizer, out: Path | None = None
) -> list[Path]:
    """Export the asset of a run; the written files.

    Args:
        session: of the run.
        representation: to export.
        rasterizer: the backend for baking and for the comparison.
        out: a new file or a folder; a new name in the run's own folder when None.

    Raises:
        InputError: a file exists already, or cannot be written.
        DivergedError: the renders of the file differ from the run's own.
    """
    session.on_event(Event("export"))
    if not isinstance(representation, (TexturedMesh, Meshable)):
        message = f"the asset has no surface to export; `pgc3d render {session.run.path}` shows it"
        session.on_event(Event("export", message=message))
        return []
    with session.timed("export"):
        if out is None:
            path = free_name(session.run.path / f"asset.{session.config.export.format}")
            report = _write_asset(session, representation, rasterizer, path)
        else:
            report = _write_outside(session, representation, rasterizer, out)
    files = [file.path for file in report.files]
    session.made("export", files)
    session.record["export"] = report.record() | {"placing": session.config.export.placing.changes}
    comparison = f"{report.psnr:.1f} dB between {files[0].name} read back and the run's own render"
    if not report.faithful:
        raise DivergedError(f"an export must match the run's renders, got {comparison}; {report.remedy}")
    message = f"{report.faces} faces{report.remarks}, PSNR {comparison}"
    for line in (message, *report.notes):
        session.on_event(Event("export", message=line))
    return files
