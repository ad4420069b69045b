"""The diffusion models of a run: found and checked before it begins, and loaded once per use."""

import gc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.choices import Precision
from pgc3d.config import Config, ModelConfig
from pgc3d.context import LoadedModel
from pgc3d.diffusion.controlnet import load_control_network, resolve_control
from pgc3d.diffusion.fast.accelerate import (
    accelerate,
    accelerate_network,
    is_recorded,
    release_decoder,
    spare_memory,
)
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.folder import open_folder
from pgc3d.diffusion.kinds import zeros_for_empty_prompt
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.lora import Lora, read_lora
from pgc3d.diffusion.models import load_latent_diffusion, local_model, resolve_model
from pgc3d.diffusion.text import encode_prompts
from pgc3d.diffusion.zero123 import Zero123, condition, require_zero123
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.prompts import ViewPromptConfig
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.types import TextEmbedding

NOVEL_VIEW = "zero123"  # the layout of models that are conditioned on an image
NAMES = {"sdxl": "SDXL", "sd": "SD", "zero123": "Zero123"}


@dataclass(frozen=True)
class LocatedModel:
    """An entry of `models` whose weights were found and checked, but not loaded."""

    config: ModelConfig
    folder: ModelFolder
    controls: Mapping[str, ModelFolder] = field(default_factory=dict)  # by the names that uses have for them
    loras: tuple[Lora, ...] = ()


def locate_models(
    config: Config, device: torch.device, needed: Requirements | None = None
) -> dict[str, LocatedModel]:
    """Find and check the weights that a run needs, by the entry of `models`, without loading them.

    Args:
        config: of the run.
        device: decides which precision is looked for.
        needed: what must be there; everything that the run's stages need when None.

    Raises:
        WeightsNotFoundError: they are missing or broken.
        ConfigError: they do not fit together.
    """
    uses = (config.requires() if needed is None else needed).models
    return {name: locate_model(config.models[name], use, device) for name, use in uses.items()}


def locate_model(config: ModelConfig, use: ModelUse, device: torch.device) -> LocatedModel:
    """Find and check one model for a use.

    Raises:
        WeightsNotFoundError: its weights are missing or broken.
        ConfigError: it is another kind of model, or its parts do not fit together.
    """
    half = compute_dtype(config.dtype, device) != torch.float32
    folder = _locate(config, use, half=half)
    if folder.layout not in use.layouts:
        wanted = " or ".join(NAMES[layout] for layout in use.layouts)
        raise ConfigError(
            f"the model must be in the layout of {wanted} here, {config.name} is a {NAMES[folder.layout]}"
        )
    if folder.layout == NOVEL_VIEW:
        folder = require_zero123(folder, None if config.pose == "auto" else config.pose)
    elif config.empty_prompt == "zeros" and not zeros_for_empty_prompt(folder.path):
        raise ConfigError(
            "empty_prompt=zeros must be for a model whose own pipeline does that "
            f"(force_zeros_for_empty_prompt), {config.name} does not; leave it at text"
        )
    return LocatedModel(
        config=config,
        folder=folder,
        controls={name: resolve_control(name, folder, half=half) for name in use.controls},
        loras=tuple(read_lora(file, folder.layout) for file in config.loras),
    )


def _locate(config: ModelConfig, use: ModelUse, *, half: bool) -> ModelFolder:
    name = config.name
    if name == "mini":
        if NOVEL_VIEW in use.layouts:
            return _bundled_image_model()
        from pgc3d.mini import text_model

        name = str(text_model())
    return resolve_model(
        name,
        half=half,
        base=config.base,
        prediction=None if config.prediction == "auto" else config.prediction,
        vae=config.vae,
    )


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


def compute_dtype(name: Precision, device: torch.device) -> torch.dtype:
    """The precision of a network; `auto` is what the CPU is fast in, or half precision."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def is_fast(config: ModelConfig, use: ModelUse) -> bool:
    """Whether a model runs accelerated on CUDA: trainable adapters need the original blocks."""
    return config.fast == "auto" and not use.trains


class LoadedModels:
    """The models of a run on one device, each loaded once per use; a `context.ModelStore`."""

    def __init__(
        self,
        located: Mapping[str, LocatedModel],
        device: torch.device,
        *,
        low_memory: bool = False,
        decoders: bool = False,
    ) -> None:
        """Load nothing yet; `decoders` keeps those of all models, whatever a use needs."""
        self.located, self.device, self.low_memory, self.decoders = located, device, low_memory, decoders
        self._networks: dict[tuple[str, bool, bool], LatentDiffusion] = {}
        self._controls: dict[tuple[str, str, bool], Any] = {}
        self._embedded: dict[tuple[str, tuple[str, ...]], TextEmbedding] = {}

    def get(self, name: str, use: ModelUse) -> LoadedModel:
        """The model behind an entry of `models`, with the ControlNets of a use.

        Frozen and accelerated on CUDA; as diffusers has it where the use trains, since adapters need the
        original blocks. Without `use.decoder` the VAE's decoder is released.

        Raises:
            WeightsNotFoundError: weights are damaged.
        """
        found = self._located(name)
        key = (name, use.trains, use.decoder)
        if key not in self._networks:
            self._networks[key] = self._load(found, use)
        model = self._networks[key]
        controls = {control: self._control(name, control, model, use) for control in use.controls}
        return LoadedModel(folder=found.folder, diffusion=model, controls=controls)

    def embed(self, name: str, texts: tuple[str, ...]) -> TextEmbedding:
        """The texts as the model's UNet takes them; its encoders are on the device for the call only."""
        if (name, texts) not in self._embedded:
            found = self._located(name)
            self._embedded[name, texts] = encode_prompts(
                found.folder,
                texts,
                device=self.device,
                dtype=compute_dtype(found.config.dtype, self.device),
                loras=found.loras,
                empty_zeros=found.config.empty_prompt == "zeros",
            )
        return self._embedded[name, texts]

    def view_prompts(self, name: str) -> ViewPromptConfig:
        """How prompts name a camera: as the configuration says, else as the model's folder does."""
        found = self._located(name)
        return found.config.view_prompts or found.folder.view_prompts or ViewPromptConfig()

    def novel_view(self, name: str, use: ModelUse, image: Float[Tensor, "S S 4"]) -> Zero123:
        """A novel-view model conditioned on an image, RGBA with premultiplied colours.

        Raises:
            WeightsNotFoundError: weights are damaged.
        """
        loaded = self.get(name, use)
        dtype = compute_dtype(self._located(name).config.dtype, self.device)
        return condition(loaded.folder, loaded.diffusion, image.to(self.device), dtype=dtype)

    def keep_only(self, names: Iterable[str]) -> None:
        """Free the models of all other entries."""
        kept = set(names)
        self._networks = {key: value for key, value in self._networks.items() if key[0] in kept}
        self._controls = {key: value for key, value in self._controls.items() if key[0] in kept}
        self._embedded = {key: value for key, value in self._embedded.items() if key[0] in kept}
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _located(self, name: str) -> LocatedModel:
        if name not in self.located:
            raise ValueError(
                f"the model {name!r} must be among what a guidance requires, but was not located"
            )
        return self.located[name]

    def _load(self, found: LocatedModel, use: ModelUse) -> LatentDiffusion:
        config = found.config
        model = load_latent_diffusion(
            found.folder,
            device=self.device,
            dtype=compute_dtype(config.dtype, self.device),
            vae=config.vae,
            vae_dtype=None if config.vae_dtype == "auto" else compute_dtype(config.vae_dtype, self.device),
            loras=found.loras,
        )
        if self._is_fast(found, use):
            model = accelerate(model, low_memory=self.low_memory)
        elif self.low_memory:
            model = spare_memory(model)
        if not (use.decoder or self.decoders):
            release_decoder(model)
        return model

    def _control(self, name: str, control: str, model: LatentDiffusion, use: ModelUse) -> Any:
        key = (name, control, use.trains)
        if key not in self._controls:
            found = self._located(name)
            network = load_control_network(found.controls[control], model)
            if self._is_fast(found, use):
                recorded = is_recorded(model.unet, low_memory=self.low_memory)
                network = accelerate_network(network, recorded=recorded)
            self._controls[key] = network
        return self._controls[key]

    def _is_fast(self, found: LocatedModel, use: ModelUse) -> bool:
        return self.device.type == "cuda" and is_fast(found.config, use)
