"""The asset of a run, the mesh that it paints, and the cameras around it, from a configuration."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from pgc3d.cameras import OrbitConfig, ReferenceCameraConfig, reference_view, sample_orbit
from pgc3d.closeups import CloseUpConfig, sample_close_ups
from pgc3d.config import Config, ObjectiveConfig
from pgc3d.errors import ConfigError
from pgc3d.export.canvas import load_canvas, prepare_canvas
from pgc3d.export.painting import require_colors
from pgc3d.geometry.surface import sample_surface
from pgc3d.interfaces import Rasterizer, Representation
from pgc3d.memory import require_texture_memory
from pgc3d.optimize import CameraSampler
from pgc3d.render import build_rasterizer
from pgc3d.representation.dmtet import build_dmtet
from pgc3d.representation.fields import ColorField
from pgc3d.representation.textured_mesh import PaintedMesh, TexturedMeshConfig, build_painted_mesh
from pgc3d.task import Task
from pgc3d.types import Canvas, seeded


def build_representation(
    config: Config, task: Task, rasterizer: Rasterizer, device: torch.device
) -> Representation:
    """The asset at its start; also what a checkpoint is loaded into for export."""
    chosen = config.representation
    require_fitting(config, task)
    generator = seeded(config.run.seed, "representation")
    if isinstance(chosen, TexturedMeshConfig):
        assert task.mesh is not None
        canvas = load_canvas(task.mesh)
        painted = build_painted_mesh(
            chosen, canvas, rasterizer=rasterizer, generator=generator, device=device
        )
        if isinstance(painted.texture, ColorField):
            painted.texture.recompute = config.run.low_memory
        return painted
    asset = build_dmtet(chosen, rasterizer=rasterizer, generator=generator, device=device)
    asset.color.recompute = config.run.low_memory
    return asset


def require_fitting(config: Config, task: Task) -> None:
    """Refuse a configuration that makes something else than the task.

    Raises:
        ConfigError: only one of both has a mesh.
    """
    chosen = config.representation
    if isinstance(chosen, TexturedMeshConfig):
        if task.mesh is None:
            raise ConfigError(
                "representation.kind textured_mesh needs a mesh; use `pgc3d texture MESH PROMPT`"
            )
    elif task.mesh is not None:
        raise ConfigError(f"a mesh needs representation.kind textured_mesh, got {chosen.kind}")
    elif chosen.init == "mesh":
        raise ConfigError("representation.init must be 'ellipsoid' for a prompt alone, got 'mesh'")


def adopt_mesh(
    config: Config, path: Path, device: torch.device, say: Callable[[str], None] = lambda _: None
) -> Canvas:
    """Read a user's mesh and make it ready for painting; `say` is told what had to be made for it.

    Raises:
        ConfigError: the configuration does not paint a mesh.
        InputError: the file cannot be used.
        OutOfMemoryError: a texture of this size does not fit.
    """
    chosen = config.representation
    if not isinstance(chosen, TexturedMeshConfig):
        raise ConfigError(f"a mesh needs representation.kind textured_mesh, got {chosen.kind}")
    require_colors(config.export.format)
    explicit = chosen.image_size if chosen.texture == "image" else 0
    require_texture_memory(config.export.texture_size, explicit, device)
    return prepare_canvas(
        path,
        up=chosen.up,
        front=chosen.front,
        crease_degrees=chosen.crease_degrees,
        texture_size=max(explicit, config.export.texture_size),
        rasterizer=build_rasterizer(config.run.rasterizer, device),
        device=device,
        uv=chosen.uv,
        say=say,
    )


def camera_sampler(
    config: Config, objective: ObjectiveConfig, representation: Representation | None, device: torch.device
) -> CameraSampler:
    """The cameras of an objective, over the progress; close-ups need to know what they look at."""
    batch = objective.batch
    match objective.cameras:
        case OrbitConfig() as orbit:
            return lambda step: sample_orbit(batch, orbit, step.generator("cameras"), device)
        case ReferenceCameraConfig():
            cameras = reference_view(config.view, batch).to(device)
            return lambda _: cameras
        case CloseUpConfig() as close:
            if not isinstance(representation, PaintedMesh):
                raise ConfigError("cameras.kind close_up needs representation.kind textured_mesh")
            mesh = representation.canvas.in_world()
            surface = partial(sample_surface, mesh.vertices, mesh.faces)
            return lambda step: sample_close_ups(
                batch, close, surface, step.progress, step.generator("cameras"), device
            )
