"""Builds the objects of a stage that the optimisation uses, from the configuration and the inputs."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import torch

from pgc3d import pgc
from pgc3d.backgrounds import Background
from pgc3d.cameras import CameraContext, reference_view
from pgc3d.choices import MapName
from pgc3d.colors import COLORS, named_color
from pgc3d.config import Config, ObjectiveConfig, StageConfig, load_config
from pgc3d.context import GuidanceContext, ModelStore, RepresentationContext
from pgc3d.devices import AUTO, current, device_of
from pgc3d.errors import BackendUnavailableError
from pgc3d.geometry.own_uv import chart_areas
from pgc3d.geometry.sampling import sample_surface
from pgc3d.inputs.background import load_backdrop
from pgc3d.inputs.image import load_prepared_image
from pgc3d.inputs.light import load_light
from pgc3d.inputs.maps import load_map
from pgc3d.inputs.mesh import load_prepared
from pgc3d.inputs.source_texture import load_sources
from pgc3d.interfaces import Rasterizer, Representation, Stateful, SupportsMicroBatch
from pgc3d.optimize import Objective, ParameterClipper, Problem
from pgc3d.rendering.visibility import SurfaceVisibility
from pgc3d.run_directory import RunDirectory
from pgc3d.schedules import PiecewiseLinear
from pgc3d.start_times import timed
from pgc3d.task import Task
from pgc3d.types import Cameras, Handover, PreparedMesh, SourceTexture, Step, seeded
from pgc3d.view_config import ViewConfig

CAMERA_STEPS = 40  # whose cameras the report of what a run saw is made from


@dataclass(frozen=True)
class Built:
    """A problem, and the other objects whose state a checkpoint must hold."""

    problem: Problem
    rasterizer: Rasterizer
    states: Mapping[str, Stateful]  # of guidances and clips, by "KIND.OBJECTIVE"
    # Sets the representation's parameters before the first step; None where they are at their start.
    initialize: Callable[[], None] | None = None


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to run on; `auto` is CUDA where there is one.

    MKL is set to reproducible products, unless `MKL_CBWR` is set already. On some processors the same product
    is otherwise rounded in another way from one call to the next, and a resumed run would not be the
    uninterrupted one. It is read at the first product of a process.

    Raises:
        BackendUnavailableError: "cuda" where there is no CUDA device.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "this torch was built without it" if torch.version.cuda is None else "no device was found"
        raise BackendUnavailableError(
            f"--device cuda must have a CUDA device, but {reason}; use --device cpu, or "
            "install a CUDA build of torch"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run are built from; inputs are read once, at their first use."""

    config: Config
    task: Task
    rasterizer: Rasterizer
    device: torch.device
    mesh: Callable[[], PreparedMesh]
    sources: Callable[[], tuple[SourceTexture, ...]]
    models: ModelStore | None = None  # None where only the representation is built
    run: RunDirectory | None = None  # None where no stage textures the surface of another one

    @classmethod
    def of(
        cls,
        config: Config,
        task: Task,
        rasterizer: Rasterizer,
        device: torch.device,
        models: ModelStore | None = None,
        run: RunDirectory | None = None,
    ) -> "RunContext":
        """The context of a run.

        Args:
            config: of the run.
            task: with prepared inputs.
            rasterizer: for all stages.
            device: of all stages.
            models: None where only representations are built.
            run: its directory, where stages have meshes.

        Raises:
            ValueError: by `mesh()` and `sources()`, where the task has none.
        """

        @cache
        def mesh() -> PreparedMesh:
            if task.mesh is None:
                raise ValueError("a representation of a given mesh must have a mesh, got none")
            return load_prepared(task.mesh)

        @cache
        def sources() -> tuple[SourceTexture, ...]:
            if task.texture is None:
                raise ValueError("a representation that uses the mesh's texture must have one, got none")
            return load_sources(task.texture, len(mesh().sets))

        return cls(config, task, rasterizer, device, mesh, sources, models, run)

    def mesh_of(self, stage: str) -> PreparedMesh:
        """The mesh that a stage textures: the task's, or the surface that it starts from.

        Raises:
            RunDirectoryError: the file of that surface is missing or damaged.
        """
        if not self.config.stages[stage].representation.requires().start:
            return self.mesh()
        if self.run is None:
            raise ValueError("a stage that textures a surface must have a run directory with it")
        return load_prepared(self.run.stage_mesh(stage))


def build_representation(context: RunContext, name: str, start: Handover | None = None) -> Representation:
    """The representation of the stage `name` before its first step, into which a checkpoint can be loaded.

    Args:
        context: of the run.
        name: of the stage.
        start: hand-over of the stage that it starts from.
    """
    config, stage = context.config, context.config.stages[name]
    fills = (objective.cameras.largest_fill(config.view) for objective in stage.objectives.values())
    return stage.representation.build(
        RepresentationContext(
            rasterizer=context.rasterizer,
            device=context.device,
            generator=seeded(config.run.seed, name, "representation"),
            mesh=partial(context.mesh_of, name),
            start=start,
            low_memory=config.run.low_memory,
            light=load_light,
            sources=context.sources,
            fill=max(fills),
        )
    )


def has_fixed_shape(run: RunDirectory, stage: str | None) -> bool:
    """Whether a stage of a run, the last one when None, has a geometry that is not optimised."""
    stages = load_config([run.config]).stages
    return stages[stage if stage in stages else list(stages)[-1]].representation.fixed_shape


def build_stage(
    context: RunContext, name: str, start: Handover | None = None, *, begun: bool = False
) -> Built:
    """All objects that the optimisation of a stage needs, with the state before its first step.

    Args:
        context: of the run, with models.
        name: of the stage.
        start: hand-over of the stage that it starts from.
        begun: whether a checkpoint of the stage is loaded into them.
    """
    stage = context.config.stages[name]
    with timed("representation"):
        representation = build_representation(context, name, start)
    objectives = build_objectives(context, name)
    optimizer = stage.optimizer
    representation.parameter_store().use_adam(betas=optimizer.betas, eps=optimizer.eps)
    problem = Problem(
        representation=representation,
        objectives=objectives,
        clip_parameters=_parameter_clipper(stage),
        lr_scale=PiecewiseLinear(optimizer.lr_scale),
    )
    return Built(
        problem=problem,
        rasterizer=context.rasterizer,
        states=stateful_parts(objectives),
        initialize=None if begun else _initial_views(context, name, representation),
    )


def _initial_views(
    context: RunContext, name: str, representation: Representation
) -> Callable[[], None] | None:
    """What sets the first colours of a stage from views that are sampled together; None without it."""
    stage, run = context.config.stages[name], context.config.run
    if stage.init is None:
        return None
    views = stage.init.build(_guidance_context(context), micro_batch=1 if run.low_memory else run.micro_batch)
    if views is None:
        return None
    return partial(views, representation, Step(index=0, total=stage.steps, seed=run.seed, stage=name))


def stateful_parts(objectives: Mapping[str, Objective]) -> dict[str, Stateful]:
    """The guidances and clips with a state for checkpoints, by "KIND.OBJECTIVE"."""
    parts = {f"clip.{name}": objective.clip for name, objective in objectives.items()}
    guidances = {f"guidance.{name}": objective.guidance for name, objective in objectives.items()}
    return {name: part for name, part in {**parts, **guidances}.items() if isinstance(part, Stateful)}


def build_objectives(context: RunContext, stage_name: str) -> dict[str, Objective]:
    """The objectives of a stage, by their names."""
    stage = context.config.stages[stage_name]
    shared = _guidance_context(context)
    mesh = context.mesh().in_world() if "mesh" in stage.requires().inputs else None
    cameras = camera_context(context.config.view, context.device, mesh, context.rasterizer)
    return {
        name: _build_objective(
            context,
            objective,
            replace(shared, generator=seeded(context.config.run.seed, stage_name, name, "guidance")),
            replace(cameras, batch=objective.batch),
        )
        for name, objective in stage.objectives.items()
    }


def _guidance_context(context: RunContext) -> GuidanceContext:
    config, task, device = context.config, context.task, context.device
    if context.models is None:
        raise ValueError("objectives must have models to be built from, got none")

    @cache
    def image() -> torch.Tensor:
        if task.image is None:
            raise ValueError("a guidance that uses the input image must have one, got none")
        return load_prepared_image(task.image).to(device)

    @cache
    def load(name: MapName) -> torch.Tensor | None:
        path = getattr(task, name)
        return None if path is None else load_map(name, path, len(image())).to(device)

    return GuidanceContext(
        models=context.models,
        prompt=task.prompt,
        image=image,
        map=load,
        reference=reference_view(config.view).to(device),
        generator=seeded(config.run.seed, "guidance"),
    )


def camera_context(
    view: ViewConfig,
    device: torch.device,
    mesh: PreparedMesh | None = None,
    rasterizer: Rasterizer | None = None,
) -> CameraContext:
    """What cameras of one view are built from.

    Args:
        view: of the input image.
        device: of the cameras.
        mesh: in the world, that close-ups are of.
        rasterizer: on `device`, where there is a mesh.
    """
    plain = CameraContext(batch=1, device=device, view=view)
    if mesh is None or rasterizer is None:
        return plain
    host = mesh.to("cpu")
    sides = torch.tensor([part.scale for part in host.sets], dtype=torch.float64)[host.face_set]
    texels = chart_areas(host.uv, host.uv_faces) * sides**2
    return replace(
        plain,
        surface=partial(sample_surface, host.vertices, host.faces),
        texels=partial(sample_surface, host.vertices, host.faces, weight=texels),
        visibility=SurfaceVisibility(mesh.vertices.to(device), mesh.faces.to(device), rasterizer),
    )


def some_cameras(
    config: Config, name: str, device: torch.device, mesh: PreparedMesh, rasterizer: Rasterizer
) -> list[Cameras]:
    """The cameras of some steps of a stage of a textured mesh, spread over all its steps."""
    found, stage = [], config.stages[name]
    context = camera_context(config.view, device, mesh, rasterizer)
    stride = max(1, stage.steps // CAMERA_STEPS)
    for objective, settings in stage.objectives.items():
        sample = settings.cameras.build(replace(context, batch=settings.batch))
        for index in range(0, stage.steps, stride):
            step = Step(index=index, total=stage.steps, seed=config.run.seed, stage=name)
            found.append(sample(step.within(objective)))
    return found


def _build_objective(
    context: RunContext, config: ObjectiveConfig, guidance: GuidanceContext, cameras: CameraContext
) -> Objective:
    run, device = context.config.run, _device_of(context, config)
    with current(device):
        built = config.guidance.build(_on_device(guidance, device))
    if isinstance(built, SupportsMicroBatch):
        built.micro_batch = 1 if run.low_memory else run.micro_batch
    with timed("cameras"):
        sample_cameras = config.cameras.build(cameras)
    return Objective(
        sample_cameras=sample_cameras,
        guidance=built,
        clip=config.clip.build(),
        backgrounds=tuple(_background(context, config, name) for name in config.backgrounds),
        weight=PiecewiseLinear(config.weight),
        threshold_scale=PiecewiseLinear(config.threshold_scale),
        target=config.target,
        device=None if device == context.device else device,
    )


def _device_of(context: RunContext, config: ObjectiveConfig) -> torch.device:
    """The device of an objective's models, which have one together; the run's where there is no model."""
    names = {context.config.models[name].device for name in config.guidance.requires().models}
    return device_of(next(iter(names), AUTO), context.device)


def _on_device(context: GuidanceContext, device: torch.device) -> GuidanceContext:
    """The context of a guidance with its inputs on another device."""

    def load(name: MapName) -> torch.Tensor | None:
        found = context.map(name)
        return None if found is None else found.to(device)

    return replace(
        context, image=lambda: context.image().to(device), map=load, reference=context.reference.to(device)
    )


def _background(context: RunContext, config: ObjectiveConfig, name: str) -> Background:
    """A colour, an image, or None for random colours; a model's own definition of a colour has precedence."""
    if name == "random":
        return None
    if name == "image":
        assert context.task.background is not None
        return load_backdrop(context.task.background, context.device)
    for entry in config.guidance.requires().models:
        assert context.models is not None
        words = context.models.view_prompts(entry).backgrounds
        if name in words:
            return words[name]
    return COLORS[name] if name in COLORS else named_color(name)


def _parameter_clipper(stage: StageConfig) -> ParameterClipper | None:
    """The baseline that clips parameter gradients, summed over all objectives; None where it is not used."""
    norms = stage.parameter_norms()
    return partial(pgc.clip_parameters, max_norm=norms.pop()) if norms else None
