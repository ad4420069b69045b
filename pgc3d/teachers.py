"""The models behind the guidances: found, loaded, and made into what judges pictures."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgc3d.cameras import reference_view
from pgc3d.config import Config, GuidanceConfig, ImageModelConfig, ModelConfig, Precision
from pgc3d.diffusion.accelerate import accelerate, accelerate_network, is_recorded, spare_memory
from pgc3d.diffusion.controlnet import Control, load_control_network, resolve_control
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.folder import open_folder
from pgc3d.diffusion.kinds import why_distilled, zeros_for_empty_prompt
from pgc3d.diffusion.latent import LatentDiffusion, select
from pgc3d.diffusion.linear_encoder import read_linear_encoder
from pgc3d.diffusion.lora import Lora, read_lora
from pgc3d.diffusion.models import load_latent_diffusion, local_model, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.diffusion.zero123 import Zero123, load_zero123, require_zero123
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.guidance.reference import ReferenceConfig, ReferenceView
from pgc3d.guidance.sds import ScoreDistillation, SdsConfig
from pgc3d.guidance.zero123 import NovelViewDistillation, Zero123Config
from pgc3d.inputs.image import load_photo
from pgc3d.inputs.maps import MapName, load_map
from pgc3d.interfaces import Guidance, SupportsMicroBatch
from pgc3d.prompts import ViewPromptConfig, unknown_words, view_prompts
from pgc3d.schedules import PiecewiseLinear
from pgc3d.task import Task
from pgc3d.types import Cameras, TextEmbedding

LARGEST_DISTILLED = 2.0  # the guidance scale that models for a few steps are used with, at most


@dataclass(frozen=True)
class Models:
    """The checkpoints that a run asks for, found and checked but not loaded."""

    text: ModelFolder | None = None
    image: ModelFolder | None = None
    controls: Mapping[str, ModelFolder] = field(default_factory=dict)  # by what was asked for
    loras: tuple[Lora, ...] = ()  # of the text-to-image model


@dataclass(frozen=True)
class TextTeacher:
    """A text-to-image model and what it was asked for."""

    model: LatentDiffusion
    networks: Mapping[str, Any]  # ControlNets, by what was asked for
    views: ViewPromptConfig
    positive: TextEmbedding  # one entry for each of `view_prompts(prompt, views)`
    negatives: Mapping[str, TextEmbedding]  # by their text


@dataclass(frozen=True)
class Teachers:
    """What the guidances learn from; None where no objective asks for it."""

    text: TextTeacher | None
    photo: Tensor | None  # [S, S, 4], see `load_photo`
    depth: Tensor | None  # [S, S, 1], of the photo, see `load_map`
    normal: Tensor | None  # [S, S, 3], of the photo, see `load_map`
    image: Zero123 | None
    reference: Cameras  # took the photo

    @property
    def diffusion(self) -> list[LatentDiffusion]:
        """The models that were loaded."""
        text = [self.text.model] if self.text else []
        return text + ([self.image.diffusion] if self.image else [])


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
    text = locate_text_model(config.model, half=half)
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


def locate_text_model(config: ModelConfig, *, half: bool) -> ModelFolder:
    """Find and check a text-to-image model without loading it.

    Raises:
        WeightsNotFoundError: it is missing or broken.
        ConfigError: it is another kind of model.
    """
    name = config.name
    if name == "mini":
        from pgc3d.mini import text_model

        name = str(text_model())
    folder = resolve_model(
        name,
        half=half,
        base=config.base,
        prediction=None if config.prediction == "auto" else config.prediction,
        vae=config.vae,
    )
    if folder.layout == "zero123":
        raise ConfigError(f"the text model must be in SD or SDXL layout, {config.name} is a Zero123")
    if config.empty_prompt == "zeros" and not zeros_for_empty_prompt(folder.path):
        raise ConfigError(
            "model.empty_prompt=zeros must be for a model whose own pipeline does that "
            f"(force_zeros_for_empty_prompt), {config.name} does not; leave it at text"
        )
    return folder


def _locate_image_model(config: ImageModelConfig, device: torch.device) -> ModelFolder:
    if config.name == "mini":
        folder = _bundled_image_model()
    else:
        half = _dtype(config.dtype, device) != torch.float32
        folder = resolve_model(config.name, half=half, vae=config.vae)
    return require_zero123(folder, None if config.pose == "auto" else config.pose)


def _bundled_image_model() -> ModelFolder:
    from pgc3d.mini import image_model

    path, vae = image_model()
    return open_folder("mini", path, vae=vae)


def local_image_model(name: str) -> ModelFolder | None:
    """A novel-view model that is on this disk whole, the bundled one too, else None."""
    if name != "mini":
        return local_model(name)
    try:
        return _bundled_image_model()
    except WeightsNotFoundError:
        return None


def needs_photo(config: Config) -> bool:
    """Whether an objective looks at the task's picture."""
    return any(
        isinstance(objective.guidance, Zero123Config | ReferenceConfig)
        for objective in config.objectives.values()
    )


def model_notes(config: Config, models: Models) -> list[str]:
    """What is worth a line about the text-to-image model of a run, each one line."""
    folder, guidances = models.text, text_objectives(config)
    if folder is None or config.model.name == "mini":
        return []
    notes = []
    if zeros_for_empty_prompt(folder.path) and "" in {item.negative_prompt for item in guidances.values()}:
        zeros = config.model.empty_prompt == "zeros"
        instead = "text, as the method's own code does" if zeros else "zeros, as the model's pipeline does"
        notes.append(
            f"the empty negative prompt is {'zeros' if zeros else 'encoded as text'}; --set "
            f"model.empty_prompt={'text' if zeros else 'zeros'} takes {instead}"
        )
    names = {lora: why_distilled(lora, None) for lora in config.model.loras}
    names[config.model.name] = why_distilled(config.model.name, folder.path)
    for name, reason in names.items():
        if reason:
            notes += [_about_distilled(name, reason, key, item) for key, item in guidances.items()]
    return [note for note in notes if note]


def _about_distilled(name: str, reason: str, objective: str, guidance: SdsConfig) -> str:
    """A line where a distilled model is used as others are, else nothing."""
    key, wrong = f"objectives.{objective}.guidance", []
    if guidance.guidance_scale > LARGEST_DISTILLED:
        wrong.append(f"{key}.guidance_scale={LARGEST_DISTILLED:g} (now {guidance.guidance_scale:g})")
    if guidance.resolution:
        wrong.append(f"{key}.resolution=0 for its own (now {guidance.resolution})")
    if not wrong:
        return ""
    return (
        f"{name} was distilled for a few steps without guidance, by {reason}: the gradient of such a model "
        f"is not what the presets are for; set {' and '.join(wrong)}, or take the model it was made from"
    )


def unknown_prompt_words(prompt: str, folder: ModelFolder) -> list[tuple[str, list[str]]]:
    """The prompt's words that a small model does not know, each with close ones that it does."""
    return unknown_words(prompt, folder.vocabulary) if folder.vocabulary else []


def _dtype(name: Precision, device: torch.device) -> torch.dtype:
    """The precision of the UNet; `auto` is what the CPU is fast in, or half precision."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def load_teachers(config: Config, task: Task, models: Models, device: torch.device) -> Teachers:
    """Load what the guidances ask, once for all of them."""
    photo = load_photo(task.image).to(device) if task.image is not None and needs_photo(config) else None
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
        image = replace(image, diffusion=_economical(image.diffusion, {}, config)[0])

    def loaded(name: MapName, path: Path | None) -> Tensor | None:
        return None if path is None or photo is None else load_map(name, path, len(photo)).to(device)

    return Teachers(
        text=text,
        photo=photo,
        depth=loaded("depth", task.depth),
        normal=loaded("normal", task.normal),
        image=image,
        reference=reference_view(config.view).to(device),
    )


def _teach_text(
    config: Config, prompt: str, folder: ModelFolder, models: Models, device: torch.device
) -> TextTeacher:
    """Load the text-to-image model; its text encoders run once, for all views, and are gone."""
    dtype = _dtype(config.model.dtype, device)
    views = config.model.view_prompts or folder.view_prompts or ViewPromptConfig()
    texts = view_prompts(prompt, views)
    negatives = list(dict.fromkeys(item.negative_prompt for item in text_objectives(config).values()))
    zeros = config.model.empty_prompt == "zeros"
    encoded = encode_prompts(
        folder, [*texts, *negatives], device=device, dtype=dtype, loras=models.loras, empty_zeros=zeros
    )
    rows = {text: torch.tensor([len(texts) + i], device=device) for i, text in enumerate(negatives)}
    vae_dtype = None if config.model.vae_dtype == "auto" else _dtype(config.model.vae_dtype, device)
    model = load_latent_diffusion(
        folder, device=device, dtype=dtype, vae=config.model.vae, vae_dtype=vae_dtype, loras=models.loras
    )
    controls = {name: load_control_network(found, model) for name, found in models.controls.items()}
    model, networks = _economical(model, controls, config)
    return TextTeacher(
        model=model,
        networks=networks,
        views=views,
        positive=select(encoded, torch.arange(len(texts), device=device)),
        negatives={text: select(encoded, row) for text, row in rows.items()},
    )


def _economical(
    model: LatentDiffusion, networks: Mapping[str, Any], config: Config
) -> tuple[LatentDiffusion, Mapping[str, Any]]:
    """A model and its ControlNets as they run: fast on CUDA unless that is off, or in little memory."""
    low_memory = config.run.low_memory
    if config.model.fast == "auto" and model.device.type == "cuda":
        recorded = is_recorded(model.unet, low_memory=low_memory)
        fast = {name: accelerate_network(found, recorded=recorded) for name, found in networks.items()}
        return accelerate(model, low_memory=low_memory), fast
    return spare_memory(model) if low_memory else model, networks


def build_guidance(config: Config, guidance: GuidanceConfig, teachers: Teachers) -> Guidance:
    """Make the guidance that a configuration describes.

    Raises:
        ValueError: its model or picture was not loaded.
    """
    built = _build(guidance, teachers)
    if isinstance(built, SupportsMicroBatch):
        built.micro_batch = 1 if config.run.low_memory else config.run.micro_batch
    return built


def _build(config: GuidanceConfig, teachers: Teachers) -> Guidance:
    match config:
        case SdsConfig() if teachers.text is not None:
            return _build_sds(config, teachers.text)
        case Zero123Config() if teachers.image is not None:
            return NovelViewDistillation(
                model=teachers.image,
                reference=teachers.reference,
                guidance_scale=config.guidance_scale,
                t_min=PiecewiseLinear(config.t_min),
                t_max=PiecewiseLinear(config.t_max),
                weighting=config.weighting,
            )
        case ReferenceConfig() if teachers.photo is not None:
            return ReferenceView(
                photo=teachers.photo,
                depth_map=teachers.depth if config.depth else None,
                normal_map=teachers.normal if config.normal else None,
                color=config.color,
                mask=config.mask,
                depth=config.depth,
                normal=config.normal,
            )
    raise ValueError(f"the guidance {config.kind!r} lacks its model or picture")


def _build_sds(config: SdsConfig, text: TextTeacher) -> ScoreDistillation:
    return ScoreDistillation(
        model=text.model,
        positive=text.positive,
        negative=text.negatives[config.negative_prompt],
        view_prompts_config=text.views,
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
        linear_encoder=read_linear_encoder(Path(config.linear_encoder), text.model)
        if config.linear_encoder
        else None,
    )
