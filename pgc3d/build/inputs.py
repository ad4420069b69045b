"""The user's inputs, checked against the configuration's requirements and prepared for the run."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pgc3d.choices import MapName
from pgc3d.config import Config
from pgc3d.errors import ConfigError, InputError
from pgc3d.exporting.textured_mesh import require_colors
from pgc3d.geometry.selection import select_faces
from pgc3d.inputs.background import prepare_backdrop
from pgc3d.inputs.decode import ignore
from pgc3d.inputs.formats import Notify
from pgc3d.inputs.image import frame_image
from pgc3d.inputs.maps import CHANNELS, prepare_map
from pgc3d.inputs.mesh import prepare_mesh_file
from pgc3d.inputs.source_texture import SourceRequest, pack_sources, prepare_sources
from pgc3d.memory import require_texture_memory
from pgc3d.mesh_io.bundle import document_format, pack_document
from pgc3d.rendering import build_rasterizer
from pgc3d.task import Task
from pgc3d.types import PreparedMesh

STYLE_SIDE = 512  # pixels of the stored style image; image encoders take 224 to 336
COMMANDS = {"mesh": "pgc3d texture MESH PROMPT", "image": "pgc3d image FILE"}


def require_fitting(config: Config, task: Task) -> None:
    """Check that a task has all inputs that the configuration requires, and no others.

    Args:
        config: of the run.
        task: its inputs.

    Raises:
        ConfigError: a mesh is missing or unused, or a file that a setting names is missing.
        InputError: another input is missing or unused, or a texture is exported without colours.
    """
    needed = config.requires()
    _require_files(needed.files)
    if config.last.representation.fixed_shape:
        require_colors(config.export.format)
    kinds = ", ".join(stage.representation.kind for stage in config.stages.values())
    if "mesh" in needed.inputs and task.mesh is None:
        raise ConfigError(f"representation.kind {kinds} must have a mesh, got none; use `{COMMANDS['mesh']}`")
    if task.mesh is not None and "mesh" not in needed.inputs:
        raise ConfigError(
            f"representation.kind must be textured_mesh for a mesh, got {kinds}; use `{COMMANDS['mesh']}`"
        )
    users = dict.fromkeys(CHANNELS, "an objective of kind 'reference' with a weight for it")
    for name, user in (users | {"style": "a text-to-image model"}).items():
        if getattr(task, name) is not None and name not in needed.accepts:
            what = f"a {name} {'image' if name == 'style' else 'map'}"
            raise InputError(f"{what} must be used by {user}, got none; remove --{name}")
    _require_source(needed.accepts, task)
    if "image" in needed.inputs and task.image is None:
        raise InputError(f"the configuration must have an input image, got none; use `{COMMANDS['image']}`")
    if task.image is not None and "image" not in needed.inputs:
        raise InputError(
            f"an objective must use the input image {task.image}, but none does; use `{COMMANDS['image']}`"
        )
    if "background" in needed.inputs and task.background is None:
        raise InputError(
            "backgrounds with 'image' must have an image, got none; use pgc3d texture ... --background FILE"
        )
    if task.background is not None and "background" not in needed.inputs:
        raise InputError(
            f"the background {task.background} must be used, but no backgrounds name 'image'; remove it"
        )


def _require_source(accepted: Collection[str], task: Task) -> None:
    given = {"texture": task.texture, "mask": task.mask, "choice of parts": task.only or task.keep}
    for name, value in given.items():
        if value and "texture" not in accepted:
            raise InputError(
                f"a {name} must go with representation.source.use 'keep' or 'start', got 'none'; remove the "
                f"{name}, or set it"
            )


def _require_files(files: Collection[tuple[str, str]]) -> None:
    for setting, path in sorted(files):
        if not Path(path).is_file():
            raise ConfigError(f"{setting} must be a file, got none at {path}")


def prepare_images(config: Config, task: Task, notify: Notify = ignore) -> Mapping[str, bytes]:
    """The task's images, prepared: the contents of PNG files by their names in the task.

    Args:
        config: of the run.
        task: its inputs.
        notify: called with lines about removed parts and possible errors of the image.

    Raises:
        InputError: a file cannot be read or used.
    """
    prepared = {}
    if task.background is not None:
        side = max(max(stage.resolution) for stage in config.stages.values())
        prepared["background"] = prepare_backdrop(task.background, side, notify)
    if task.style is not None:
        prepared["style"] = prepare_backdrop(task.style, STYLE_SIDE, notify, what="a style image")
    if task.image is None:
        return prepared
    framed = frame_image(
        task.image,
        border=config.image.border,
        matting=config.image.matting,
        size=config.image.size,
        notify=notify,
    )
    maps: dict[MapName, Path] = {name: path for name in CHANNELS if (path := getattr(task, name)) is not None}
    prepared["image"] = framed.png()
    return prepared | {name: prepare_map(name, path, framed) for name, path in maps.items()}


def prepare_files(
    config: Config,
    task: Task,
    prepared: PreparedMesh | None,
    device: torch.device,
    notify: Notify = ignore,
) -> Mapping[str, bytes]:
    """The images of `prepare_images` and `prepare_texture` together.

    Raises:
        InputError: a file cannot be read or used.
    """
    texture = {} if prepared is None else prepare_texture(config, task, prepared, device, notify)
    return {**prepare_images(config, task, notify), **texture}


def prepare_document(path: Path, notify: Callable[[str], None] = ignore) -> bytes | None:
    """The archive of a mesh's file, for a result with all its contents; None where it is a surface alone.

    Args:
        path: of the mesh file.
        notify: called with a line where the file cannot come back as it is.
    """
    if document_format(path) is None:
        return None
    try:
        return pack_document(path)
    except InputError as error:
        notify(f"the result will have the surface of {path.name} alone: {error}")
        return None


def prepare_mesh(
    config: Config, path: Path, device: torch.device, notify: Callable[[str], None] = ignore
) -> PreparedMesh:
    """A user's mesh, prepared for texturing.

    Args:
        config: of the run.
        path: of the mesh file.
        device: for the texture and the check of texture coordinates.
        notify: called with a line about each part of the mesh that was computed or left out.

    Raises:
        InputError: the file cannot be used.
        OutOfMemoryError: a texture of this size does not fit.
    """
    settings = _mesh_settings(config)
    require_colors(config.export.format)
    image_size = settings.image_size if settings.texture == "image" else 0
    require_texture_memory(config.export.texture_size, image_size, device)
    return prepare_mesh_file(
        path,
        up=settings.up,
        front=settings.front,
        crease_degrees=settings.crease_degrees,
        texture_size=max(image_size, config.export.texture_size),
        rasterizer=build_rasterizer(config.run.rasterizer, device),
        device=device,
        uv=settings.uv,
        whole=document_format(path) == config.export.format,
        notify=notify,
    )


def prepare_task_mesh(
    config: Config, task: Task, device: torch.device, notify: Callable[[str], None] = ignore
) -> PreparedMesh | None:
    """The task's mesh by `prepare_mesh`, with the faces that it keeps; None where it has none.

    Raises:
        InputError: the file cannot be used, or a name in `only` or `keep` fits nothing.
    """
    if task.mesh is None:
        return None
    prepared = prepare_mesh(config, task.mesh, device, notify)
    if not task.only and not task.keep:
        return prepared
    chosen = select_faces(prepared.labels, only=task.only, keep=task.keep)
    notify(f"{int(chosen.sum())} of {len(chosen)} faces are textured, the others keep their look")
    return replace(prepared, kept=~chosen)


def prepare_texture(
    config: Config, task: Task, prepared: PreparedMesh, device: torch.device, notify: Notify = ignore
) -> Mapping[str, bytes]:
    """The mesh's own texture and the mask, where a run uses them: PNG files by their names in the task.

    Args:
        config: of the run.
        task: its inputs.
        prepared: the task's mesh.
        device: that colours are sampled on.
        notify: called with a line about the texture and the mask.

    Raises:
        InputError: a file cannot be used, or there are no colours to start from.
    """
    settings = _mesh_settings(config)
    if task.mesh is None or settings.source.use == "none":
        return {}
    request = SourceRequest(
        image=task.texture,
        mask=task.mask,
        starts=settings.source.use == "start",
        side=settings.source.size,
        sampled=config.export.texture_size,
    )
    rasterizer = build_rasterizer(config.run.rasterizer, device)
    sources = prepare_sources(task.mesh, prepared.to(device), request, rasterizer=rasterizer, notify=notify)
    return {"texture": pack_sources(sources)}


def _mesh_settings(config: Config) -> Any:
    """The settings of the first stage that textures the task's mesh."""
    return next(
        stage.representation
        for stage in config.stages.values()
        if "mesh" in stage.representation.requires().inputs
    )
