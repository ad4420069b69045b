"""LoRA files, added to the weights when a model is loaded: W += scale alpha / rank up down.

(arXiv 2106.09685.) Two spellings are read, as safetensors only: kohya's, as
`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight` with `alpha` beside it and SDXL's UNet also by the
names of its first implementation, and diffusers', as `unet.mid_block.attentions.0.proj_in.lora_A.weight`.
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

from pgc3d.diffusion.files import loading, tensor_names
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
}
PICKLES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
# SDXL's UNet in the names of its first implementation, flattened.
OUTER = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "out_2": "conv_out",
}
INNER = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}


@dataclass(frozen=True)
class LowRank:
    """What a file adds to one layer."""

    key: str  # of the file, for messages
    down: Float[Tensor, "rank D"]
    up: Float[Tensor, "C rank"]
    factor: float  # alpha / rank


@dataclass(frozen=True)
class Lora:
    """A LoRA file that was read; its layers by part and by the layer's name with `_` for every dot."""

    path: Path
    scale: float
    sha256: str
    layers: Mapping[Part, Mapping[str, LowRank]] = field(repr=False)


def parse_lora(text: str) -> tuple[Path, float]:
    """FILE or FILE:SCALE."""
    match = re.fullmatch(r"(.+?)(?::([-+]?(?:\d+\.?\d*|\.\d+)))?", text)
    if match is None:
        raise ConfigError(f"a LoRA must be FILE or FILE:SCALE, got {text!r}")
    return Path(match[1]).expanduser(), float(match[2] or 1.0)


def read_lora(text: str, layout: Layout) -> Lora:
    """Read FILE or FILE:SCALE for a model of the layout.

    Raises:
        WeightsNotFoundError: there is no such file, or it is no whole safetensors file.
        ConfigError: it holds something else than LoRA layers of such a model; the first such key is named.
    """
    path, scale = parse_lora(text)
    if not path.is_file():
        raise WeightsNotFoundError(f"--lora must be a file, {path} does not exist")
    if path.suffix.lower() in PICKLES:
        raise WeightsNotFoundError(
            f"--lora must be a safetensors file, {path} is a pickle, which is never loaded; convert it"
        )
    tensor_names(path)
    layers: dict[Part, dict[str, LowRank]] = {}
    with loading(path):
        found = _read_layers(path)
    for (part, name), layer in found.items():
        if part == "text_encoder_2" and layout == "sd":
            raise ConfigError(f"the LoRA {path} must fit the SD layout, its key {layer.key} is for SDXL")
        layers.setdefault(part, {})[name] = layer
    with path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return Lora(path=path, scale=scale, sha256=sha256, layers=layers)


def _read_layers(path: Path) -> dict[tuple[Part, str], LowRank]:
    from safetensors import safe_open

    tensors: dict[tuple[Part, str], dict[str, Tensor]] = {}
    keys: dict[tuple[Part, str], str] = {}
    with safe_open(path, framework="pt") as file:
        alphas = _alphas_of_parts(path, file.metadata() or {})
        for key in file.keys():  # noqa: SIM118 - no mapping
            part, name, role = _split(path, key)
            tensors.setdefault((part, name), {})[role] = file.get_tensor(key)
            keys.setdefault((part, name), key)
    if not tensors:
        raise ConfigError(f"the LoRA {path} must hold LoRA layers, got an empty file")
    layers = {}
    for place, found in tensors.items():
        if "down" not in found or "up" not in found:
            raise ConfigError(f"the LoRA {path} must hold both factors of a layer, got only {keys[place]}")
        down, up = (found[role].reshape(len(found[role]), -1) for role in ("down", "up"))
        if not len(down) or up.shape[1] != len(down):
            raise ConfigError(f"the LoRA {path} must hold factors of one rank, not so for {keys[place]}")
        alpha = float(found["alpha"]) if "alpha" in found else alphas.get(place[0], len(down))
        layers[place] = LowRank(keys[place], down, up, alpha / len(down))
    return layers


def _alphas_of_parts(path: Path, metadata: Mapping[str, str]) -> dict[Part, float]:
    """Alpha as diffusers writes it into the header, one for all layers of a part."""
    settings = dict(json.loads(metadata.get("lora_adapter_metadata", "{}")))
    for name, value in settings.items():
        if name.rpartition(".")[2] in {"use_dora", "use_rslora", "alpha_pattern"} and value:
            raise ConfigError(f"the LoRA {path} must be a plain one, got {name} = {value}")
    parts: tuple[Part, ...] = get_args(Part)
    return {part: float(settings[f"{part}.lora_alpha"]) for part in parts if f"{part}.lora_alpha" in settings}


def _split(path: Path, key: str) -> tuple[Part, str, str]:
    """(part, flat name of the layer, role) of a file's key."""
    # Older files of diffusers name the attention's processor instead of its layer.
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
    """Add the files' layers of this part to the module's weights, in place.

    Raises:
        ConfigError: a file has a layer that the module has not; it was made for another model.
    """
    weights = {
        name.replace(".", "_"): layer.weight
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)
    }
    for lora in loras:
        for name, layer in lora.layers.get(part, {}).items():
            current = _current_name(name, module) if part == "unet" else name
            weight = weights.get(current, weights.get(current.removeprefix("text_model_")))
            if weight is None:
                raise ConfigError(
                    f"the LoRA {lora.path} must fit the model, whose {part} has no layer for the key "
                    f"{layer.key}; it was made for another model"
                )
            weight.copy_(weight.float() + lora.scale * _product(lora.path, layer, weight))


def _product(path: Path, layer: LowRank, weight: Tensor) -> Tensor:
    """The change of a weight in float32, in its shape and on its device."""
    down, up = (factor.to(weight.device, torch.float32) for factor in (layer.down, layer.up))
    if len(up) != len(weight) or len(up) * down.shape[1] != weight.numel():
        raise ConfigError(
            f"the LoRA {path} must fit the model, its key {layer.key} is for a layer of another size than "
            f"{list(weight.shape)}"
        )
    return layer.factor * (up @ down).reshape(weight.shape)


def _current_name(name: str, unet: Any) -> str:
    """Today's name of a layer that may be spelled as in SDXL's first implementation, both flat."""
    if name in OUTER:
        return OUTER[name]
    middle = re.fullmatch(r"middle_block_(\d)_(.+)", name)
    if middle is not None:
        part = {"0": "resnets_0", "1": "attentions_0", "2": "resnets_1"}.get(middle[1], middle[1])
        return f"mid_block_{part}_{INNER.get(middle[2], middle[2])}"
    match = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d+)_(.+)", name)
    if match is None:
        return name
    each, rest = int(unet.config.layers_per_block) + 1, INNER.get(match[4], match[4])
    kind = ("resnets", "attentions", "upsamplers")[min(int(match[3]), 2)]
    index = int(match[2])
    if match[1] == "input":
        block, place = divmod(index - 1, each)  # before them comes the convolution at the entrance
        if rest == "op":
            return f"down_blocks_{block}_downsamplers_0_conv"
        return f"down_blocks_{block}_{kind}_{place}_{rest}"
    block, place = divmod(index, each)
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    return f"up_blocks_{block}_{kind}_{place}_{rest}"
