"""LoRA files, added to the weights when a model is loaded: W += scale alpha / rank up down.

(arXiv 2106.09685.) Two naming schemes are read, as safetensors only: kohya's, as
`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight` with `alpha` next to it and SDXL's UNet also by
the names of its original implementation, and diffusers', as
`unet.mid_block.attentions.0.proj_in.lora_A.weight`.

A layer may also have a magnitude m (DoRA, arXiv 2402.09353, eq. 5): the weight is then
W' = m (W + alpha / rank up down) / norm, with the norm of each output (kohya's older files: of each input),
and the scale goes from W at 0 to W' at 1.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.diffusion.files import PICKLES, loading, tensor_names
from pgc3d.diffusion.first_names import flat_unet_layer
from pgc3d.diffusion.hub import hub_file, is_hub_id
from pgc3d.diffusion.latent import Layout
from pgc3d.errors import ConfigError, WeightsNotFoundError

Part = Literal["unet", "text_encoder", "text_encoder_2"]
PARTS: Mapping[str, Part] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
ENDINGS = {
    "down": r"\.(lora_down|lora_A|lora\.down|lora_linear_layer\.down)\.weight$",
    "up": r"\.(lora_up|lora_B|lora\.up|lora_linear_layer\.up)\.weight$",
    "alpha": r"\.alpha$",
    "magnitude": r"\.dora_scale$",
    "output magnitude": r"\.lora_magnitude_vector(\.weight)?$",
}


@dataclass(frozen=True)
class LowRank:
    """The low-rank update of one layer."""

    key: str  # of the file, for messages
    down: Float[Tensor, "rank D"]
    up: Float[Tensor, "C rank"]
    factor: float  # alpha / rank
    magnitude: Float[Tensor, " N"] | None = None  # of DoRA
    of_inputs: bool = False  # whether there is a magnitude for each input, not for each output


@dataclass(frozen=True)
class Lora:
    """A LoRA file; its layers by part and by the layer's name with `_` for every dot."""

    path: Path
    scale: float
    sha256: str
    commit: str | None = field(default=None, kw_only=True)  # of the hub, None for a local file
    layers: Mapping[Part, Mapping[str, LowRank]] = field(repr=False)


def parse_lora(text: str) -> tuple[Path, float]:
    """Path and scale of FILE or FILE:SCALE; a FILE on the hub is OWNER/NAME or OWNER/NAME:FILE."""
    match = re.fullmatch(r"(.+?)(?::([-+]?(?:\d+\.?\d*|\.\d+)))?", text)
    if match is None:
        raise ConfigError(f"a LoRA must be FILE or FILE:SCALE, got {text!r}")
    return Path(match[1]).expanduser(), float(match[2] or 1.0)


def read_lora(text: str, layout: Layout) -> Lora:
    """The LoRA of FILE or FILE:SCALE for a model of the layout; the file is local or on the hub.

    Raises:
        WeightsNotFoundError: there is no such file, or it is no complete safetensors file.
        ConfigError: it has keys other than those of LoRA layers of such a model; the first one is named.
    """
    path, scale = parse_lora(text)
    path, commit = _find(path)
    tensor_names(path)
    layers: dict[Part, dict[str, LowRank]] = {}
    with loading(path):
        all_layers = _read_layers(path)
    for (part, name), layer in all_layers.items():
        if part == "text_encoder_2" and layout == "sd":
            raise ConfigError(f"the LoRA {path} must fit the SD layout, got {layer.key} for SDXL")
        layers.setdefault(part, {})[name] = layer
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return Lora(path=path, scale=scale, sha256=sha256, layers=layers, commit=commit)


def _find(path: Path) -> tuple[Path, str | None]:
    """A local file, else one of the hub with its commit."""
    repository, _, name = path.as_posix().partition(":")
    local = path.is_file()
    if not local and not is_hub_id(repository):
        raise WeightsNotFoundError(
            f"--lora must be a file, got {path}, which does not exist; one of the hub is OWNER/NAME or "
            "OWNER/NAME:FILE"
        )
    if path.suffix.lower() in PICKLES:
        raise WeightsNotFoundError(
            f"--lora must be a safetensors file, got the pickle {path}, which is never loaded; convert it"
        )
    return (path, None) if local else hub_file(repository, name or None)


def _read_layers(path: Path) -> dict[tuple[Part, str], LowRank]:
    from safetensors import safe_open

    tensors: dict[tuple[Part, str], dict[str, Tensor]] = {}
    keys: dict[tuple[Part, str], str] = {}
    with safe_open(path, framework="pt") as file:
        alphas, decomposed = _header(path, file.metadata() or {})
        for key in file.keys():  # noqa: SIM118 - no mapping
            part, name, role = _split(path, key)
            tensors.setdefault((part, name), {})[role] = file.get_tensor(key)
            keys.setdefault((part, name), key)
    if not tensors:
        raise ConfigError(f"the LoRA {path} must hold LoRA layers, got an empty file")
    layers = {
        layer_key: _layer(path, keys[layer_key], tensors_of_layer, alphas.get(layer_key[0]))
        for layer_key, tensors_of_layer in tensors.items()
    }
    for (part, _), layer in layers.items():
        if part in decomposed and layer.magnitude is None:
            raise ConfigError(
                f"the LoRA {path} must hold the magnitudes of its header, but {layer.key} has none"
            )
    return layers


def _layer(path: Path, key: str, tensors_of_layer: Mapping[str, Tensor], alpha: float | None) -> LowRank:
    """A layer from its tensors by role; `alpha` is from the header."""
    if "down" not in tensors_of_layer or "up" not in tensors_of_layer:
        raise ConfigError(f"the LoRA {path} must hold both factors of a layer, got only {key}")
    down, up = (tensors_of_layer[role].reshape(len(tensors_of_layer[role]), -1) for role in ("down", "up"))
    if not len(down) or up.shape[1] != len(down):
        raise ConfigError(f"the LoRA {path} must hold factors of one rank, got two for {key}")
    alpha = (
        float(tensors_of_layer["alpha"])
        if "alpha" in tensors_of_layer
        else alpha
        if alpha is not None
        else len(down)
    )
    sizes = tensors_of_layer.get("magnitude", tensors_of_layer.get("output magnitude"))
    # Some files in kohya's scheme have one number for each input, as a row.
    of_inputs = (
        "magnitude" in tensors_of_layer
        and tensors_of_layer["magnitude"].ndim > 1
        and len(tensors_of_layer["magnitude"]) == 1
    )
    magnitude = None if sizes is None else sizes.flatten()
    return LowRank(key, down, up, alpha / len(down), magnitude, of_inputs)


def _header(path: Path, metadata: Mapping[str, str]) -> tuple[dict[Part, float], set[Part]]:
    """Entries of diffusers' header: alpha of all layers of a part, and the parts with DoRA."""
    settings = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    for name, value in settings.items():
        if name.rpartition(".")[2] in {"use_rslora", "alpha_pattern"} and value:
            raise ConfigError(f"the LoRA {path} must be a plain one or DoRA, got {name} = {value}")
    parts: tuple[Part, ...] = get_args(Part)
    alphas = {
        part: float(settings[f"{part}.lora_alpha"]) for part in parts if f"{part}.lora_alpha" in settings
    }
    return alphas, {part for part in parts if settings.get(f"{part}.use_dora")}


def _split(path: Path, key: str) -> tuple[Part, str, str]:
    """(part, flat name of the layer, role) of a file's key."""
    # Older files of diffusers have the name of the attention's processor instead of its layer.
    plain = re.sub(r"\.processor\.(to_[a-z]+)_lora\.(down|up)\.weight$", r".\1.lora.\2.weight", key)
    plain = plain.replace(".to_out.lora.", ".to_out.0.lora.")
    prefix = next((prefix for prefix in PARTS if plain.startswith(prefix)), None)
    role = next((role for role, ending in ENDINGS.items() if re.search(ending, plain)), None)
    if prefix is None or role is None:
        raise ConfigError(
            f"the LoRA {path} must hold plain LoRA layers as kohya or diffusers write them, got the key {key}"
        )
    name = re.sub(ENDINGS[role], "", plain.removeprefix(prefix))
    return PARTS[prefix], name.replace(".", "_"), role


@torch.no_grad()
def fuse_loras(module: Any, part: Part, loras: Sequence[Lora]) -> None:
    """Add the LoRAs' layers of a part to the module's weights, in place.

    Raises:
        ConfigError: a file has a layer that the module has not.
    """
    weights = {
        name.replace(".", "_"): layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    for lora in loras:
        for name, layer in lora.layers.get(part, {}).items():
            current = flat_unet_layer(name, module.config.layers_per_block) if part == "unet" else name
            weight = weights.get(current, weights.get(current.removeprefix("text_model_")))
            if weight is None:
                raise ConfigError(
                    f"the LoRA {lora.path} must fit the model, got {layer.key} for a layer that its {part} "
                    "lacks; it was made for another model"
                )
            weight.copy_(weight.float() + lora.scale * _change(lora.path, layer, weight))


def _change(path: Path, layer: LowRank, weight: Tensor) -> Tensor:
    """The change of a weight at scale 1, in float32, in its shape and on its device."""
    product = _product(path, layer, weight)
    if layer.magnitude is None:
        return product
    axis = 1 if layer.of_inputs else 0
    if len(layer.magnitude) != weight.shape[axis]:
        raise ConfigError(
            f"the LoRA {path} must fit the model, got {len(layer.magnitude)} magnitudes of {layer.key} "
            f"for a layer of {list(weight.shape)}"
        )
    whole = weight.float() + product
    other_axes = [dimension for dimension in range(whole.ndim) if dimension != axis]
    norm = torch.linalg.vector_norm(whole, dim=other_axes, keepdim=True).clamp(
        min=torch.finfo(torch.float32).tiny
    )
    magnitude = layer.magnitude.to(weight.device, torch.float32).reshape(norm.shape)
    return magnitude * whole / norm - weight.float()


def _product(path: Path, layer: LowRank, weight: Tensor) -> Tensor:
    """The change alpha / rank up down of a weight in float32, in its shape and on its device."""
    down, up = (factor.to(weight.device, torch.float32) for factor in (layer.down, layer.up))
    if len(up) != len(weight) or len(up) * down.shape[1] != weight.numel():
        raise ConfigError(
            f"the LoRA {path} must fit the model, got {layer.key} for a layer of another size than "
            f"{list(weight.shape)}"
        )
    return layer.factor * (up @ down).reshape(weight.shape)
