"""Checkpoints that are one safetensors file, in the names of the original implementations.

The file holds the weights of all parts; configurations and tokenizers are those of another checkpoint's
folder, the base's. Nothing is converted on the disk: `read_part` renames the tensors as it reads them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgc3d.diffusion.files import PICKLES, ModelFolder, read_json, tensor_names
from pgc3d.diffusion.first_names import open_clip_layer, unet_layer, vae_layer
from pgc3d.diffusion.kinds import OTHER_INPUTS, SUPPORTED, parts_of
from pgc3d.diffusion.latent import Layout
from pgc3d.errors import ConfigError, WeightsNotFoundError

SUFFIX = ".safetensors"
PREFIXES = {
    "unet": ("model.diffusion_model.",),
    "vae": ("first_stage_model.",),
    "text_encoder": (
        "conditioner.embedders.0.transformer.",
        "cond_stage_model.transformer.",
        "cond_stage_model.model.",
    ),
    "text_encoder_2": ("conditioner.embedders.1.model.",),
}
OPEN_CLIP = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
# Training state and constants inside the parts; tensors outside of the parts are never read.
UNUSED = re.compile(r"(loss|model_ema)\..+|(.+\.)?(position_ids|logit_scale|attn_mask)")
FOREIGN = {
    r"(^|\.)double_blocks\.": "FLUX or one of its kind",
    r"(^|\.)joint_blocks\.": "SD 3",
    r"\.lora_(up|down|A|B)\.|\.lora\.(up|down)\.": "a LoRA, which is for --lora",
    r"^control_model\.|^controlnet_": "a ControlNet",
    r"^edm_": "a model with the noise of EDM",
    r"^conditioner\.embedders\.0\.model\.": "the refiner of SDXL",
    r"^(transformer|diffusion_model|model\.diffusion_model)\.(transformer_)?(blocks|layers)\.": (
        "a transformer instead of a UNet"
    ),
}


@dataclass(frozen=True)
class FileKind:
    """The kind of a single file, from its header and its tensor names."""

    layout: Layout
    base: str  # alias of the checkpoint with matching configurations and tokenizers
    scheduler: Mapping[str, Any] = field(default_factory=dict)  # overrides the base's
    known_prediction: bool = True  # whether the prediction type follows from the file


def is_single_file(name: str) -> bool:
    """Whether a model's name is that of a file with weights."""
    return Path(name).suffix.lower() in {SUFFIX, *PICKLES}


def describe_file(path: Path) -> FileKind:
    """The kind of a file, from its header.

    Raises:
        WeightsNotFoundError: the file is missing, a pickle, or incomplete.
        ConfigError: it is not supported.
    """
    if path.suffix.lower() != SUFFIX:
        raise WeightsNotFoundError(
            f"--model must be a safetensors file, got the pickle {path}, which is never loaded; convert it"
        )
    if not path.is_file():
        raise WeightsNotFoundError(f"--model must be a file, got {path}, which does not exist")
    names = tensor_names(path)
    for pattern, kind in FOREIGN.items():
        if tensor := next((name for name in names if re.search(pattern, name)), None):
            raise ConfigError(f"{SUPPORTED}, got {path}, {kind}, by its tensor {tensor}")
    first = {part: next((p for p in PREFIXES[part] if _has(names, p)), None) for part in PREFIXES}
    if first["unet"] is None or first["text_encoder"] is None:
        missing = "UNet" if first["unet"] is None else "text encoder"
        raise ConfigError(
            f"{SUPPORTED}, as one file with all parts in the names of the original code, got "
            f"{path} without {missing} in them, its first tensor is {names[0] if names else 'none'}"
        )
    scheduler = _noise_of(names, _metadata(path))
    if first["text_encoder_2"] is not None:
        return FileKind("sdxl", "sdxl", {"prediction_type": "epsilon"} | scheduler)
    if first["text_encoder"] in OPEN_CLIP:
        return FileKind("sd", "sd21", scheduler, known_prediction="prediction_type" in scheduler)
    return FileKind("sd", "sd", {"prediction_type": "epsilon"} | scheduler)


def _noise_of(names: Sequence[str], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The noise schedule of a file, by entries of the header or by empty marker tensors."""
    scheduler: dict[str, Any] = {}
    architecture = metadata.get("modelspec.architecture", "")
    said = metadata.get("modelspec.prediction_type", "v" if architecture.endswith("768-v") else "")
    if "v_pred" in names or said.startswith("v"):
        scheduler["prediction_type"] = "v_prediction"
    elif said.startswith("eps"):
        scheduler["prediction_type"] = "epsilon"
    if "ztsnr" in names:
        scheduler["rescale_betas_zero_snr"] = True
    return scheduler


def open_single(name: str, path: Path, kind: FileKind, base: ModelFolder) -> ModelFolder:
    """The checkpoint of a file and its base.

    Args:
        name: as the user gave it.
        path: the file.
        kind: from `describe_file`.
        base: whose configurations and tokenizers are used.

    Raises:
        ConfigError: the file does not fit its base.
    """
    if base.layout != kind.layout:
        raise ConfigError(
            f"the base of {path} must be in the layout of {kind.layout}, got {base.name} in that of "
            f"{base.layout}; use --set models.text.base=FOLDER"
        )
    shapes = _shapes(path)
    unet = read_json(base.path / "unet" / "config.json")
    entry = shapes.get("model.diffusion_model.input_blocks.0.0.weight", [0, 0])
    expected = [unet["block_out_channels"][0], unet.get("in_channels", 4)]
    if entry[1] != expected[1]:
        use = OTHER_INPUTS.get(entry[1], "for something else")
        raise ConfigError(f"{SUPPORTED}, got {entry[1]} input channels, {use}, in the UNet of {path}")
    widths = {shape[1] for key, shape in shapes.items() if key.endswith(".attn2.to_k.weight")}
    if entry[0] != expected[0] or widths != {unet.get("cross_attention_dim")}:
        raise ConfigError(
            f"the UNet of {path} must fit its base {base.name}, {expected[0]} channels and prompts of "
            f"{unet.get('cross_attention_dim')} numbers, got {entry[0]} and {sorted(widths)}; use --set "
            "models.text.base=FOLDER with the model that it was made from"
        )
    return replace(base, name=name, commit=None, file=path, scheduler=kind.scheduler)


def has_part(path: Path, part: str) -> bool:
    """Whether a file holds weights of a part."""
    return any(_has(tensor_names(path), prefix) for prefix in PREFIXES[part])


def require_parts(path: Path, base: ModelFolder, *, vae: bool) -> None:
    """Check that a file has all parts; the VAE only where `vae` is set.

    Raises:
        ConfigError: a part is missing.
    """
    for part in parts_of(base.path, base.layout):
        if (part != "vae" or vae) and not has_part(path, part):
            hint = (
                "; name one with --set models.text.vae=sdxl-vae-fp16-fix or a folder" if part == "vae" else ""
            )
            raise ConfigError(f"the file {path} must hold all parts of its model, got no {part}{hint}")


def count_unet(path: Path) -> int:
    """Number of parameters of a file's UNet; reads only the header."""
    shapes = _shapes(path)
    prefix = PREFIXES["unet"][0]
    return sum(torch.Size(shape).numel() for key, shape in shapes.items() if key.startswith(prefix))


def read_part(path: Path, part: str, config: Mapping[str, Any], device: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one part, by the names of diffusers or transformers.

    Args:
        path: the file.
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        config: of the part.
        device: of the tensors.

    Raises:
        ConfigError: a tensor does not belong to such a model; the first one is named.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt", device=device) as file:
        names = list(file.keys())
        prefix = next(prefix for prefix in PREFIXES[part] if _has(names, prefix))
        for key in names:
            inner = key.removeprefix(prefix)
            if not key.startswith(prefix) or UNUSED.fullmatch(inner):
                continue
            name = _today(part, prefix, inner, config)
            if name is None:
                raise ConfigError(f"{SUPPORTED}, got the unknown tensor {key} in the {part} of {path}")
            if name:
                yield from _split(name, file.get_tensor(key))


def _today(part: str, prefix: str, inner: str, config: Mapping[str, Any]) -> str | None:
    """The diffusers or transformers name of a tensor, None for an unknown one, empty for an unused one."""
    layer, _, kind = inner.rpartition(".")
    if part in {"unet", "vae"}:
        if part == "unet":
            name = unet_layer(layer, int(config.get("layers_per_block", 2)))
        else:
            name = vae_layer(layer, len(config["block_out_channels"]))
        return name and f"{name}.{kind}"
    if prefix not in OPEN_CLIP:
        return inner if inner.startswith(("text_model.", "text_projection.")) else f"text_model.{inner}"
    index = re.match(r"transformer\.resblocks\.(\d+)\.", inner)
    # SD 2 uses the penultimate layer: its configuration has neither the last one nor the projection.
    if index is not None and int(index[1]) >= int(config["num_hidden_layers"]):
        return ""
    if inner == "text_projection" and part == "text_encoder":
        return ""
    return open_clip_layer(inner)


def _split(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor in the shape of diffusers' or transformers' module."""
    if ".self_attn.in_proj." in name:
        for letter, third in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace("in_proj", f"{letter}_proj"), third.clone()
    elif name == "text_projection.weight":
        yield name, tensor.T.contiguous()
    elif re.search(r"mid_block\.attentions\.0\.to_\w+(\.0)?\.weight$", name) and tensor.ndim == 4:
        yield name, tensor[:, :, 0, 0]  # the original VAE's attention uses convolutions
    else:
        yield name, tensor


def _has(names: Sequence[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _shapes(path: Path) -> dict[str, list[int]]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
