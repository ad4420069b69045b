"""The composition root: a configuration and a task become the objects that the loop works on."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from pgc3d import pgc
from pgc3d.backgrounds import Backdrop, Background, load_backdrop, prepare_backdrop
from pgc3d.config import Config, ObjectiveConfig
from pgc3d.diffusion.accelerate import release_decoder
from pgc3d.errors import BackendUnavailableError, ConfigError, InputError
from pgc3d.guidance.reference import ReferenceConfig
from pgc3d.inputs.colors import COLORS, named_color
from pgc3d.inputs.decode import ignore
from pgc3d.inputs.formats import Say
from pgc3d.inputs.image import frame_photo
from pgc3d.inputs.maps import CHANNELS, MapName, prepare_map
from pgc3d.interfaces import Guidance, Rasterizer, Representation, Stateful
from pgc3d.optimize import CameraSampler, Objective, ParameterClipper, Problem
from pgc3d.render import build_rasterizer
from pgc3d.schedules import PiecewiseLinear
from pgc3d.stage import build_representation, camera_sampler
from pgc3d.task import Task
from pgc3d.teachers import Models, Teachers, build_guidance, load_teachers, needs_photo


@dataclass(frozen=True)
class Built:
    """A problem, and what else a checkpoint must hold to continue it."""

    problem: Problem
    rasterizer: Rasterizer
    states: Mapping[str, Stateful]  # of guidances and clips, by "KIND.OBJECTIVE"


def resolve_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to run on; `auto` is CUDA where there is one.

    Raises:
        BackendUnavailableError: CUDA was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "this torch was built without it" if torch.version.cuda is None else "no device was found"
        raise BackendUnavailableError(
            f"--device cuda needs a CUDA device, but {reason}; use --device cpu, or "
            "install a CUDA build of torch"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def require_prompt(prompt: str) -> None:
    """Refuse an empty prompt, and one that is no text.

    Raises:
        InputError: it is empty, or holds bytes that are not UTF-8.
    """
    if any("\ud800" <= character <= "\udfff" for character in prompt):
        raise InputError(
            "the prompt must be UTF-8 text, got bytes that are not; check the terminal's encoding"
        )
    if not prompt.strip():
        raise InputError('the prompt must not be empty; say what to make, as in pgc3d text "a red chair"')


def prepare_task_photo(config: Config, task: Task, say: Say = ignore) -> Mapping[str, bytes]:
    """The task's picture and its maps as the run will keep them, PNG files by their name in the task.

    Nothing where no objective looks at a picture. `say` takes lines about what was left out or may be wrong.

    Raises:
        InputError: there is no picture, one of the files is unusable, or nothing looks at one.
    """
    maps: dict[MapName, Path] = {name: path for name in CHANNELS if (path := getattr(task, name)) is not None}
    for name in maps:
        if not _compares(config, name):
            raise InputError(
                f"a {name} map must belong to an objective of kind 'reference' with a weight for it, the "
                "configuration has none; leave the map away"
            )
    if not needs_photo(config):
        if task.image is not None:
            raise InputError(f"the picture {task.image} must be looked at, but no objective does that")
        return {}
    if task.image is None:
        raise InputError("the configuration needs a picture; use pgc3d image FILE")
    photo = config.photo
    framed = frame_photo(task.image, border=photo.border, matting=photo.matting, size=photo.size, say=say)
    prepared = {"image": framed.png()}
    for name, path in maps.items():
        prepared[name] = prepare_map(name, path, framed)
    return prepared


def _compares(config: Config, name: MapName) -> bool:
    """Whether an objective looks at such a map."""
    guidances = [objective.guidance for objective in config.objectives.values()]
    return any(isinstance(item, ReferenceConfig) and getattr(item, name) > 0 for item in guidances)


def needs_backdrop(config: Config) -> bool:
    """Whether the task's background picture is behind the object in some views."""
    return any("image" in objective.backgrounds for objective in config.objectives.values())


def _background_file(config: Config, task: Task) -> Path | None:
    if needs_backdrop(config) and task.background is None:
        raise InputError(
            "backgrounds name 'image', so a picture must be given; use pgc3d texture ... --background FILE"
        )
    if task.background is not None and not needs_backdrop(config):
        raise InputError(
            f"the background {task.background} must be used, but no backgrounds name 'image'; leave it away"
        )
    return task.background


def prepare_task_backdrop(config: Config, task: Task, say: Say = ignore) -> bytes | None:
    """The task's background as the run will keep it, a PNG file; None where there is none.

    Raises:
        InputError: a picture is named and not given or the other way round, or it is unusable.
    """
    file = _background_file(config, task)
    return None if file is None else prepare_backdrop(file, max(config.run.resolution), say)


def build(config: Config, task: Task, models: Models, device: torch.device) -> Built:
    """Make everything that the optimisation needs."""
    rasterizer = build_rasterizer(config.run.rasterizer, device)
    representation = build_representation(config, task, rasterizer, device)
    teachers = load_teachers(config, task, models, device)
    for model in teachers.diffusion:
        release_decoder(model)
    file = _background_file(config, task)
    backdrop = None if file is None else load_backdrop(file, device)
    objectives = build_objectives(config, teachers, device, representation, backdrop)
    representation.parameter_store().use_adam(betas=config.optimizer.betas, eps=config.optimizer.eps)
    problem = Problem(
        representation=representation,
        objectives=objectives,
        clip_parameters=_parameter_clipper(config),
        lr_scale=PiecewiseLinear(config.optimizer.lr_scale),
    )
    return Built(problem=problem, rasterizer=rasterizer, states=stateful_parts(objectives))


def stateful_parts(objectives: Mapping[str, Objective]) -> dict[str, Stateful]:
    """The guidances and clips whose state belongs into a checkpoint."""
    parts = {f"clip.{name}": objective.clip for name, objective in objectives.items()}
    guidances = {f"guidance.{name}": objective.guidance for name, objective in objectives.items()}
    return {name: part for name, part in {**parts, **guidances}.items() if isinstance(part, Stateful)}


def build_objectives(
    config: Config,
    teachers: Teachers,
    device: torch.device,
    representation: Representation | None = None,
    backdrop: Backdrop | None = None,
) -> dict[str, Objective]:
    """Make the objectives.

    `representation` is what the cameras look at, where they need to know; `backdrop` is the background
    "image".
    """
    named = teachers.text.views.backgrounds if teachers.text else {}
    backgrounds: dict[str, Background] = {**COLORS, **named, "random": None}
    if backdrop is not None:
        backgrounds["image"] = backdrop
    objectives: dict[str, Objective] = {}
    for name, objective in config.objectives.items():
        guidance = build_guidance(config, objective.guidance, teachers)
        cameras = camera_sampler(config, objective, representation, device)
        objectives[name] = _build_objective(objective, guidance, cameras, backgrounds)
    return objectives


def _build_objective(
    config: ObjectiveConfig,
    guidance: Guidance,
    cameras: CameraSampler,
    backgrounds: Mapping[str, Background],
) -> Objective:
    return Objective(
        sample_cameras=cameras,
        guidance=guidance,
        clip=config.clip.build(),
        backgrounds=tuple(
            backgrounds[name] if name in backgrounds else named_color(name) for name in config.backgrounds
        ),
        weight=config.weight,
        target=config.target,
    )


def _parameter_clipper(config: Config) -> ParameterClipper | None:
    """The baseline that clips whole parameters; the gradient it clips is the sum of all objectives."""
    clips = [item.clip for item in config.objectives.values()]
    norms = {clip.max_norm for clip in clips if isinstance(clip, pgc.ParameterClip)}
    if len(norms) > 1:
        raise ConfigError(
            f"max_norm must be the same in all objectives that clip parameters, got {sorted(norms)}"
        )
    return partial(pgc.clip_parameters, max_norm=norms.pop()) if norms else None
