"""The diffusion models of a run: located and checked before it begins, and loaded once per use."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.choices import Precision
from pgc3d.config import Config, ModelConfig
from pgc3d.context import LoadedModel
from pgc3d.devices import current, device_of
from pgc3d.diffusion.aliases import BUNDLED
from pgc3d.diffusion.controlnet import load_control_network, resolve_control
from pgc3d.diffusion.fast.accelerate import (
    accelerate,
    accelerate_network,
    release_decoder,
    spare_memory,
)
from pgc3d.diffusion.files import ModelFolder
from pgc3d.diffusion.folder import open_folder
from pgc3d.diffusion.kinds import zeros_for_empty_prompt
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.lora import Lora, read_lora
from pgc3d.diffusion.models import load_latent_diffusion, local_model, resolve_model
from pgc3d.diffusion.style import StyleAdapter, StyleTokens, encode_style, load_style, resolve_style
from pgc3d.diffusion.text import encode_prompts
from pgc3d.diffusion.text_cache import cached
from pgc3d.diffusion.zero123 import Zero123, condition, require_zero123
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.imports import importing
from pgc3d.memory import release_memory
from pgc3d.requirements import ModelUse, Requirements
from pgc3d.start_times import timed
from pgc3d.types import TextEmbedding
from pgc3d.view_prompts import ViewPromptConfig

NOVEL_VIEW = "zero123"  # the layout of models that are conditioned on an image
NAMES = {"sdxl": "SDXL", "sd": "SD", "zero123": "Zero123"}


@dataclass(frozen=True)
class LocatedModel:
    """An entry of `models` whose weights are located and checked, but not loaded."""

    config: ModelConfig
    folder: ModelFolder
    controls: Mapping[str, ModelFolder] = field(default_factory=dict)  # by their names in the uses
    loras: tuple[Lora, ...] = ()
    style: StyleAdapter | None = None  # None where the run has no style image

    @property
    def style_size(self) -> int:
        """Number of parameters that the style's adapter adds to the UNet."""
        return 0 if self.style is None else self.style.parameters


def locate_models(
    config: Config, device: torch.device, needed: Requirements | None = None, *, styled: bool = False
) -> dict[str, LocatedModel]:
    """The weights that a run needs, by the entry of `models`, located and checked without loading them.

    Args:
        config: of the run.
        device: of the run; a model's device determines its precision, and so the files.
        needed: of a part of the run; the requirements of all its stages when None.
        styled: whether the run has a style image.

    Raises:
        WeightsNotFoundError: they are missing or broken.
        ConfigError: they do not fit together.
    """
    uses = (config.requires() if needed is None else needed).models
    return {name: locate_model(config.models[name], use, device, styled=styled) for name, use in uses.items()}


def locate_model(
    config: ModelConfig, use: ModelUse, device: torch.device, *, styled: bool = False
) -> LocatedModel:
    """One model for a use, located and checked without loading it.

    Args:
        config: of the model.
        use: of all guidances together.
        device: of the run; that of the model determines its precision, and so the files.
        styled: whether the run has a style image, which a text-to-image model uses.

    Raises:
        WeightsNotFoundError: its weights are missing or broken.
        ConfigError: it is another kind of model, or its parts do not fit together.
    """
    half = compute_dtype(config.dtype, device_of(config.device, device)) != torch.float32
    folder = _locate(config, use, half=half)
    if folder.layout not in use.layouts:
        layouts = " or ".join(NAMES[layout] for layout in use.layouts)
        raise ConfigError(
            f"the model must be in the layout of {layouts} here, got {config.name}, a {NAMES[folder.layout]}"
        )
    if folder.layout == NOVEL_VIEW:
        folder = require_zero123(folder, None if config.pose == "auto" else config.pose)
    elif config.empty_prompt == "zeros" and not zeros_for_empty_prompt(folder.path):
        raise ConfigError(
            "empty_prompt=zeros must go with a model whose own pipeline has force_zeros_for_empty_prompt, "
            f"got {config.name} without it; use empty_prompt=text"
        )
    style = None
    if styled and folder.layout != NOVEL_VIEW:
        style = resolve_style(config.style, replace(folder, name=config.name))
    return LocatedModel(
        config=config,
        folder=folder,
        controls={name: resolve_control(name, folder, half=half) for name in use.controls},
        loras=tuple(read_lora(file, folder.layout) for file in config.loras),
        style=style,
    )


def _locate(config: ModelConfig, use: ModelUse, *, half: bool) -> ModelFolder:
    name = config.name
    if name == BUNDLED:
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
    return open_folder(BUNDLED, path, vae=vae)


def local_image_model(name: str) -> ModelFolder | None:
    """A novel-view model that is complete on this disk, or the bundled one; None where it is not."""
    if name != BUNDLED:
        return local_model(name)
    try:
        return _bundled_image_model()
    except WeightsNotFoundError:
        return None


def compute_dtype(name: Precision, device: torch.device) -> torch.dtype:
    """The precision of a network; `auto` is float32 on a CPU, where it is fastest, and float16 elsewhere."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


def is_fast(config: ModelConfig, use: ModelUse) -> bool:
    """Whether a model runs accelerated on CUDA: trainable adapters need the original blocks."""
    return config.fast == "auto" and not use.trains


class LoadedModels:
    """The models of a run on their devices, each loaded once per use; a `context.ModelStore`."""

    def __init__(
        self,
        located: Mapping[str, LocatedModel],
        device: torch.device,
        *,
        low_memory: bool = False,
        decoders: bool = False,
        style: Callable[[], Float[Tensor, "S S 3"]] | None = None,
    ) -> None:
        """Load nothing yet.

        Args:
            located: the models, by their entries in `models`.
            device: of the run, to which models without a device of their own are loaded.
            low_memory: use implementations that need less memory and more time.
            decoders: keep the VAEs' decoders, even where a use does not need them, so that all uses of a
                model share one network.
            style: loads the run's style image, sRGB in [0, 1].
        """
        self.located, self.device, self.low_memory, self.decoders = located, device, low_memory, decoders
        self._style = style
        self._networks: dict[tuple[str, bool, bool], LatentDiffusion] = {}
        self._controls: dict[tuple[str, str, bool], Any] = {}
        self._embedded: dict[tuple[str, tuple[str, ...]], TextEmbedding] = {}
        self._styles: dict[str, StyleTokens] = {}

    def get(self, name: str, use: ModelUse) -> LoadedModel:
        """The model of an entry of `models`, with the ControlNets of a use.

        It is frozen, and accelerated on CUDA; where the use trains, it has diffusers' own modules, which
        adapters need: in copies of them, since all uses share the network. Without `use.decoder` the VAE's
        decoder is released.

        Raises:
            WeightsNotFoundError: weights are damaged.
        """
        located = self._located(name)
        key = (name, self._is_fast(located, use), use.decoder or self.decoders)
        with current(self._device_of(located)):
            if key not in self._networks:
                self._networks[key] = self._load(located, use)
            model = self._networks[key]
            controls = {control: self._control(name, control, model, use) for control in use.controls}
        return LoadedModel(folder=located.folder, diffusion=model, controls=controls)

    def embed(self, name: str, texts: tuple[str, ...]) -> TextEmbedding:
        """The texts encoded for the model's UNet; the text encoders are on the device for the call only."""
        if (name, texts) not in self._embedded:
            self._embedded[name, texts] = self._encode(self._located(name), texts)
        return self._embedded[name, texts]

    def _encode(self, located: LocatedModel, texts: tuple[str, ...]) -> TextEmbedding:
        """The texts encoded, or their embedding from the disk: the imports alone take seconds."""
        device = self._device_of(located)
        settings: dict[str, Any] = {
            "device": device,
            "dtype": compute_dtype(located.config.dtype, device),
            "loras": located.loras,
            "empty_zeros": located.config.empty_prompt == "zeros",
        }
        encode = partial(encode_prompts, located.folder, texts, **settings)
        with timed("prompt"):
            return cached(encode, located.folder, texts, **settings)

    def style(self, name: str) -> StyleTokens | None:
        """The tokens of the run's style image; the image encoder is on the device for the first call only."""
        located = self._located(name)
        if located.style is None:
            return None
        if self._style is None:
            raise ValueError("a model with a style's adapter must have a style image, got none")
        if name not in self._styles:
            device = self._device_of(located)
            dtype = compute_dtype(located.config.dtype, device)
            self._styles[name] = encode_style(located.style, self._style(), device=device, dtype=dtype)
        return self._styles[name]

    def view_prompts(self, name: str) -> ViewPromptConfig:
        """The words for cameras in prompts: the configuration's, else the model folder's, else defaults."""
        located = self._located(name)
        return located.config.view_prompts or located.folder.view_prompts or ViewPromptConfig()

    def novel_view(self, name: str, use: ModelUse, image: Float[Tensor, "S S 4"]) -> Zero123:
        """A novel-view model conditioned on an image: RGBA in [0, 1] with premultiplied colours.

        Raises:
            WeightsNotFoundError: weights are damaged.
        """
        loaded, located = self.get(name, use), self._located(name)
        device = self._device_of(located)
        dtype = compute_dtype(located.config.dtype, device)
        return condition(loaded.folder, loaded.diffusion, image.to(device), dtype=dtype)

    def keep_only(self, names: Iterable[str]) -> None:
        """Free the models of all other entries."""
        remaining = set(names)
        self._networks = {key: value for key, value in self._networks.items() if key[0] in remaining}
        self._controls = {key: value for key, value in self._controls.items() if key[0] in remaining}
        self._embedded = {key: value for key, value in self._embedded.items() if key[0] in remaining}
        self._styles = {name: value for name, value in self._styles.items() if name in remaining}
        release_memory(self.device)

    def _located(self, name: str) -> LocatedModel:
        if name not in self.located:
            raise ValueError(
                f"the model {name!r} must be among what a guidance requires, but was not located"
            )
        return self.located[name]

    def _device_of(self, located: LocatedModel) -> torch.device:
        return device_of(located.config.device, self.device)

    def _load(self, located: LocatedModel, use: ModelUse) -> LatentDiffusion:
        config, device = located.config, self._device_of(located)
        model = load_latent_diffusion(
            located.folder,
            device=device,
            dtype=compute_dtype(config.dtype, device),
            vae=config.vae,
            vae_dtype=None if config.vae_dtype == "auto" else compute_dtype(config.vae_dtype, device),
            loras=located.loras,
        )
        if located.style is not None:
            load_style(model.unet, located.style)
            model = replace(model, style_tokens=located.style.tokens)
        if self._is_fast(located, use):
            with timed("acceleration"), importing():  # of the compiler
                model = accelerate(model, low_memory=self.low_memory)
        elif self.low_memory:
            model = spare_memory(model)
        if not (use.decoder or self.decoders):
            release_decoder(model)
        return model

    def _control(self, name: str, control: str, model: LatentDiffusion, use: ModelUse) -> Any:
        located = self._located(name)
        key = (name, control, self._is_fast(located, use))
        if key not in self._controls:
            network = load_control_network(located.controls[control], model)
            if self._is_fast(located, use):
                network = accelerate_network(network)
            self._controls[key] = network
        return self._controls[key]

    def _is_fast(self, located: LocatedModel, use: ModelUse) -> bool:
        return self._device_of(located).type == "cuda" and is_fast(located.config, use)
