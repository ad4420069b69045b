"""The composition root: a configuration and a task become the objects that the loop works on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from pgc3d import pgc
from pgc3d.cameras import reference_view
from pgc3d.config import (
    COLORS,
    Config,
    GuidanceConfig,
    ImageModelConfig,
    ModelConfig,
    ObjectiveConfig,
    Precision,
)
from pgc3d.diffusion.controlnet import Control, load_control_network, resolve_control
from pgc3d.diffusion.files import ModelFolder, open_folder
from pgc3d.diffusion.latent import LatentDiffusion, select
from pgc3d.diffusion.lora import Lora, read_lora
from pgc3d.diffusion.models import ALIASES, PINNED, is_hub_id, load_latent_diffusion, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.diffusion.zero123 import Zero123, load_zero123, require_zero123
from pgc3d.errors import BackendUnavailableError, ConfigError, InputError, WeightsNotFoundError
from pgc3d.guidance.reference import ReferenceConfig, ReferenceView
from pgc3d.guidance.sds import ScoreDistillation, SdsConfig
from pgc3d.guidance.zero123 import NovelViewDistillation, Zero123Config
from pgc3d.interfaces import Guidance, Rasterizer
from pgc3d.optimize import CameraSampler, Color, Objective, ParameterClipper, Problem
from pgc3d.photo import load_photo, prepare_photo
from pgc3d.prompts import ViewPromptConfig, unknown_words, view_prompts
from pgc3d.render import build_rasterizer
from pgc3d.schedules import PiecewiseLinear
from pgc3d.stage import build_representation, camera_sampler, seeded
from pgc3d.task import Task
from pgc3d.types import Cameras, TextEmbedding


@runtime_checkable
class Stateful(Protocol):
    """Something whose tensors belong into a checkpoint."""

    def state_dict(self) -> Mapping[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Built:
    """A problem, and what else a checkpoint must hold to continue it."""

    problem: Problem
    rasterizer: Rasterizer
    generators: Mapping[str, torch.Generator]
    states: Mapping[str, Stateful]  # adaptive clips


@dataclass(frozen=True)
class Models:
    """The checkpoints that a run asks for, found and checked but not loaded."""

    text: ModelFolder | None = None
    image: ModelFolder | None = None
    controls: Mapping[str, ModelFolder] = field(default_factory=dict)  # by what was asked for
    loras: tuple[Lora, ...] = ()  # of the text-to-image model


@dataclass(frozen=True)
class _TextTeacher:
    """A text-to-image model and what it was asked for."""

    model: LatentDiffusion
    networks: Mapping[str, Any]  # ControlNets, by what was asked for
    views: ViewPromptConfig
    positive: TextEmbedding  # one entry for each of `view_prompts(prompt, views)`
    negatives: Mapping[str, TextEmbedding]  # by their text


@dataclass(frozen=True)
class _Teachers:
    """What the guidances learn from; None where no objective asks for it."""

    text: _TextTeacher | None
    photo: Tensor | None  # [S, S, 4], see `load_photo`
    image: Zero123 | None
    reference: Cameras  # took the photo


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


def locate_models(config: Config, device: torch.device) -> Models:
    """Find and check the weights that the objectives need, without loading them.

    Raises:
        WeightsNotFoundError: they are missing or broken.
        ConfigError: they do not fit together.
    """
    kinds = {objective.guidance.kind for objective in config.objectives.values()}
    image = _locate_image_model(config.image_model, device) if "zero123" in kinds else None
    guidances = text_objectives(config).values()
    if not guidances:
        return Models(image=image)
    half = _dtype(config.model.dtype, device) != torch.float32
    text = _locate_text_model(config.model, half=half)
    names = dict.fromkeys(control.model for guidance in guidances for control in guidance.controls.values())
    return Models(
        text=text,
        image=image,
        controls={name: resolve_control(name, text, half=half) for name in names},
        loras=tuple(read_lora(file, text.layout) for file in config.model.loras),
    )


def text_objectives(config: Config) -> dict[str, SdsConfig]:
    """The guidances that a prompt steers, by the name of their objective."""
    guidances = {name: objective.guidance for name, objective in config.objectives.items()}
    return {name: guidance for name, guidance in guidances.items() if isinstance(guidance, SdsConfig)}


def _locate_text_model(config: ModelConfig, *, half: bool) -> ModelFolder:
    if config.name == "mini":
        from pgc3d.mini import text_model

        return resolve_model(text_model())
    folder = resolve_model(config.name, half=half)
    if folder.layout == "zero123":
        raise ConfigError(f"the text model must be in SD or SDXL layout, {config.name} is a Zero123")
    return folder


def _locate_image_model(config: ImageModelConfig, device: torch.device) -> ModelFolder:
    if config.name == "mini":
        from pgc3d.mini import image_model

        path, vae = image_model()
        folder = open_folder("mini", path, vae=vae)
    else:
        folder = resolve_model(config.name, half=_dtype(config.dtype, device) != torch.float32)
    return require_zero123(folder, None if config.pose == "auto" else config.pose)


def prepare_task_photo(config: Config, task: Task) -> bytes | None:
    """The task's picture as the run will keep it, a PNG file; None where no objective looks at one.

    Raises:
        InputError: there is no picture, or it is unusable.
    """
    if not _needs_photo(config):
        return None
    if task.image is None:
        raise InputError("the configuration needs a picture; use pgc3d image FILE")
    photo = config.photo
    return prepare_photo(task.image, border=photo.border, matting=photo.matting, size=photo.size)


def _needs_photo(config: Config) -> bool:
    return any(
        isinstance(objective.guidance, Zero123Config | ReferenceConfig)
        for objective in config.objectives.values()
    )


def local_model(name: str) -> ModelFolder | None:
    """A model that is on this disk whole, else None; never uses the network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder, repository = Path(name).expanduser(), ALIASES.get(name, name)
    if not folder.is_dir() and not is_hub_id(repository):
        return None
    try:
        if folder.is_dir():
            return open_folder(name, folder)
        path = snapshot_download(repository, revision=PINNED.get(repository), local_files_only=True)
        return open_folder(name, Path(path))
    except (LocalEntryNotFoundError, WeightsNotFoundError):
        return None


def require_prompt(prompt: str) -> None:
    """Refuse an empty prompt.

    Raises:
        InputError: it is empty.
    """
    if not prompt.strip():
        raise InputError('the prompt must not be empty; say what to make, as in pgc3d text "a red chair"')


def unknown_prompt_words(prompt: str, folder: ModelFolder) -> list[tuple[str, list[str]]]:
    """The prompt's words that a small model does not know, each with close ones that it does."""
    return unknown_words(prompt, folder.vocabulary) if folder.vocabulary else []


def build(config: Config, task: Task, models: Models, device: torch.device) -> Built:
    """Make everything that the optimisation needs.

    Every source of randomness gets its own CPU generator, seeded from the run's seed and its name.
    """
    generators = {"cameras": seeded(config.run.seed, "cameras")}
    rasterizer = build_rasterizer("auto", device)
    representation = build_representation(config, task, rasterizer, device)
    teachers = _load_teachers(config, task, models, device)
    named = teachers.text.views.backgrounds if teachers.text else {}
    colors: dict[str, Color | None] = {**COLORS, **named, "random": None}
    objectives: dict[str, Objective] = {}
    for name, objective in config.objectives.items():
        generators[f"guidance.{name}"] = generator = seeded(config.run.seed, name)
        guidance = _build_guidance(objective.guidance, teachers, generator)
        cameras = camera_sampler(config, objective, representation, device)
        objectives[name] = _build_objective(objective, guidance, cameras, colors)
    problem = Problem(
        representation=representation,
        objectives=objectives,
        optimizer=torch.optim.Adam(
            [dict(group) for group in representation.parameter_groups()],
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            fused=True,
        ),
        generator=generators["cameras"],
        clip_parameters=_parameter_clipper(config),
        lr_scale=PiecewiseLinear(config.optimizer.lr_scale),
    )
    clips = {
        f"clip.{name}": item.clip for name, item in objectives.items() if isinstance(item.clip, Stateful)
    }
    return Built(problem=problem, rasterizer=rasterizer, generators=generators, states=clips)


def _dtype(name: Precision, device: torch.device) -> torch.dtype:
    """The precision of the UNet; `auto` is what the CPU is fast in, or half precision."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def _load_teachers(config: Config, task: Task, models: Models, device: torch.device) -> _Teachers:
    photo = load_photo(task.image).to(device) if task.image is not None and _needs_photo(config) else None
    text = _teach_text(config, task.prompt, models.text, models, device) if models.text else None
    image = None
    if models.image is not None and photo is not None:
        wanted = config.image_model
        image = load_zero123(
            models.image,
            photo,
            device=device,
            dtype=_dtype(wanted.dtype, device),
            vae=wanted.vae,
            vae_dtype=None if wanted.vae_dtype == "auto" else _dtype(wanted.vae_dtype, device),
        )
    return _Teachers(text=text, photo=photo, image=image, reference=reference_view(config.view).to(device))


def _teach_text(
    config: Config, prompt: str, folder: ModelFolder, models: Models, device: torch.device
) -> _TextTeacher:
    """Load the text-to-image model; its text encoders run once, for all views, and are gone."""
    dtype = _dtype(config.model.dtype, device)
    views = config.model.view_prompts or folder.view_prompts or ViewPromptConfig()
    texts = view_prompts(prompt, views)
    negatives = list(dict.fromkeys(item.negative_prompt for item in text_objectives(config).values()))
    encoded = encode_prompts(folder, [*texts, *negatives], device=device, dtype=dtype, loras=models.loras)
    rows = {text: torch.tensor([len(texts) + i], device=device) for i, text in enumerate(negatives)}
    vae_dtype = None if config.model.vae_dtype == "auto" else _dtype(config.model.vae_dtype, device)
    model = load_latent_diffusion(
        folder, device=device, dtype=dtype, vae=config.model.vae, vae_dtype=vae_dtype, loras=models.loras
    )
    return _TextTeacher(
        model=model,
        networks={name: load_control_network(found, model) for name, found in models.controls.items()},
        views=views,
        positive=select(encoded, torch.arange(len(texts), device=device)),
        negatives={text: select(encoded, row) for text, row in rows.items()},
    )


def _build_guidance(config: GuidanceConfig, teachers: _Teachers, generator: torch.Generator) -> Guidance:
    match config:
        case SdsConfig() if teachers.text is not None:
            return _build_sds(config, teachers.text, generator)
        case Zero123Config() if teachers.image is not None:
            return NovelViewDistillation(
                model=teachers.image,
                reference=teachers.reference,
                generator=generator,
                guidance_scale=config.guidance_scale,
                t_min=PiecewiseLinear(config.t_min),
                t_max=PiecewiseLinear(config.t_max),
                weighting=config.weighting,
            )
        case ReferenceConfig() if teachers.photo is not None:
            return ReferenceView(photo=teachers.photo, color=config.color, mask=config.mask)
    raise ValueError(f"the guidance {config.kind!r} lacks its model or picture")


def _build_sds(config: SdsConfig, text: _TextTeacher, generator: torch.Generator) -> ScoreDistillation:
    return ScoreDistillation(
        model=text.model,
        positive=text.positive,
        negative=text.negatives[config.negative_prompt],
        view_prompts_config=text.views,
        generator=generator,
        guidance_scale=config.guidance_scale,
        t_min=PiecewiseLinear(config.t_min),
        t_max=PiecewiseLinear(config.t_max),
        formula=config.formula,
        weighting=config.weighting,
        resolution=config.resolution,
        original_size=config.original_size,
        target_size=config.target_size,
        controls=[
            Control(
                network=text.networks[control.model],
                condition=control.condition,
                scale=control.scale,
                polarity=control.polarity,
            )
            for control in config.controls.values()
        ],
    )


def _build_objective(
    config: ObjectiveConfig,
    guidance: Guidance,
    cameras: CameraSampler,
    colors: Mapping[str, Color | None],
) -> Objective:
    return Objective(
        sample_cameras=cameras,
        guidance=guidance,
        clip=config.clip.build(),
        backgrounds=tuple(colors[name] for name in config.backgrounds),
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
