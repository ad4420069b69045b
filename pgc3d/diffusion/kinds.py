"""The kind of a checkpoint, detected from its small files and its listing, before weights are fetched."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pgc3d.diffusion.files import PICKLES, PROJECTIONS, WEIGHTS, projection_folder, read_json
from pgc3d.diffusion.hub import part_weights
from pgc3d.diffusion.latent import Layout, Prediction
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.schedules import alphas_cumprod

SUPPORTED = "the model must be a checkpoint in SD, SDXL or Zero123 layout"
# Uses of UNets with further input channels, by the number of channels.
OTHER_INPUTS = {9: "for inpainting", 8: "for image editing", 7: "for upscaling", 5: "for depth"}
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
DISTILLED = re.compile(r"(?<![a-z])(turbo|lightning|lcm|hyper|dmd2?|schnell)(?![a-z])", re.IGNORECASE)
DISTILLED_SAMPLERS = ("LCMScheduler", "TCDScheduler")


def layout_of(path: Path, name: str = "") -> Layout:
    """The layout of a checkpoint folder, from its small files; `name` is used in messages.

    Raises:
        WeightsNotFoundError: one of them is missing or damaged.
        ConfigError: it is another kind of model.
    """
    index = read_json(path / "model_index.json")
    if reason := _foreign(index):
        raise _refusal(name or path, index, reason)
    unet = read_json(path / "unet" / "config.json")
    added, pictured = unet.get("addition_embed_type"), index.get("image_encoder", [None])[0] is not None
    layout: Layout
    if added == "text_time" and index.get("text_encoder", [None])[0] is not None:
        layout = "sdxl"
    elif added is None and "text_encoder" in index and not pictured:
        layout = "sd"
    elif added is None and "image_encoder" in index and any(name in index for name in PROJECTIONS):
        layout = "zero123"
    else:
        raise _refusal(name or path, index, f"its UNet is conditioned otherwise ({added or 'not on text'})")
    if reason := _foreign_unet(unet, layout):
        raise _refusal(name or path, index, reason)
    return layout


def _refusal(name: Path | str, index: Mapping[str, Any], reason: str) -> ConfigError:
    return ConfigError(f"{SUPPORTED}, got {index.get('_class_name')} in {name}: {reason}")


def _foreign(index: Mapping[str, Any]) -> str:
    """The reason why a pipeline is not supported, from its model_index.json, None if it is."""
    classes = {part: entry[-1] for part, entry in index.items() if isinstance(entry, list) and entry}
    unet, text = classes.get("unet"), classes.get("text_encoder")
    if classes.get("transformer"):
        return f"a transformer ({classes['transformer']}) in the place of a UNet"
    if unet is None:
        return "it has no UNet"
    if unet != "UNet2DConditionModel":
        return f"its UNet is a {unet}"
    if text is not None and text not in ENCODERS:
        return f"its text encoder is a {text}"
    return ""


def _foreign_unet(unet: Mapping[str, Any], layout: Layout) -> str:
    channels, latent = int(unet.get("in_channels", 4)), int(unet.get("out_channels", 4))
    expected = 2 * latent if layout == "zero123" else latent
    if channels != expected:
        use = OTHER_INPUTS.get(channels, "for something else")
        return f"its UNet must have {expected} input channels, but has {channels}, {use}"
    if unet.get("time_cond_proj_dim") is not None:
        return "its UNet takes the guidance scale as an input (time_cond_proj_dim), as LCM does"
    for key in ("class_embed_type", "encoder_hid_dim_type"):
        if unet.get(key) is not None:
            return f"its UNet has another condition ({key} {unet[key]})"
    return ""


def check_pipeline_listing(name: str, names: Sequence[str], folder: Path | None) -> None:
    """Check a hub repository by its listing and its small files.

    Raises:
        ConfigError: it holds no pipeline, or one of another kind.
        WeightsNotFoundError: weights are there as pickles only.
    """
    if folder is None or "model_index.json" not in names:
        raise ConfigError(f"{SUPPORTED}, got {name} without a pipeline: {_instead(name, names, folder)}")
    layout = layout_of(folder, name)
    check_sizes(folder, layout)
    for part in parts_of(folder, layout):
        _require_safetensors(name, names, part)


def check_part_listing(name: str, names: Sequence[str], _: Path | None) -> None:
    """As `check_pipeline_listing`, for a repository of one module: a VAE or a ControlNet."""
    if "config.json" not in names:
        kind = "a whole pipeline; give the folder of that part" if "model_index.json" in names else "none"
        raise ConfigError(f"{name} must hold one module with its config.json, got {kind}")
    _require_safetensors(name, names, "")


def _instead(name: str, names: Sequence[str], folder: Path | None) -> str:
    """The contents of a repository without a pipeline, with the remedy."""
    files = [file for file in names if file.endswith(".safetensors") and "/" not in file]
    if folder is not None and (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        return f"it is a {config.get('_class_name') or ', '.join(config.get('architectures', ['module']))}"
    if files:
        return f"fetch a file as `hf download {name} {files[0]}` and give that to --model"
    pickles = [file for file in names if file.endswith(PICKLES)]
    return f"{pickles[0]} is a pickle, which is never loaded" if pickles else "it has no model_index.json"


def _require_safetensors(name: str, names: Sequence[str], part: str) -> None:
    if any(part_weights(names, part, variant) for variant in ("", ".fp16")):
        return
    prefix = f"{part}/" if part else ""
    pickles = [file for file in names if file.startswith(prefix) and file.endswith(PICKLES)]
    hint = f", only {pickles[0]}, a pickle, which is never loaded; convert it" if pickles else ""
    stem = WEIGHTS[part.removesuffix("_2")] if part else WEIGHTS["vae"]
    raise WeightsNotFoundError(f"{name} must hold {prefix}{stem}.safetensors, got none{hint}")


def parts_of(path: Path, layout: Layout) -> list[str]:
    """The folders with weights of a checkpoint."""
    if layout == "zero123":
        return ["unet", "vae", "image_encoder", projection_folder(path).name]
    return ["unet", "vae", "text_encoder", *(["text_encoder_2"] if layout == "sdxl" else [])]


def check_sizes(path: Path, layout: Layout, vae: Path | None = None) -> None:
    """Check that the parts of a checkpoint match each other and that its noise is DDPM's.

    Args:
        path: its folder.
        layout: its layout.
        vae: the folder of a VAE that replaces its own.

    Raises:
        ConfigError: they do not; the message names both parts.
    """
    unet = read_json(path / "unet" / "config.json")
    check_vae(vae or path / "vae", unet)
    read_schedule(path)
    if layout == "zero123":
        return
    encoders = [read_json(path / part / "config.json") for part in parts_of(path, layout)[2:]]
    width = sum(int(config.get("hidden_size", 512)) for config in encoders)
    _agree(path, "cross_attention_dim", unet.get("cross_attention_dim", 1280), width, "text encoders give")
    if layout == "sdxl":
        pooled = int(encoders[1].get("projection_dim", 512))
        pooled += 6 * int(unet.get("addition_time_embed_dim") or 0)
        actual = unet.get("projection_class_embeddings_input_dim")
        _agree(path, "projection_class_embeddings_input_dim", actual, pooled, "second text encoder gives")


def _agree(path: Path, key: str, actual: Any, expected: int, whose: str) -> None:
    widths = set(actual) if isinstance(actual, list | tuple) else {actual}
    if widths != {expected}:
        raise ConfigError(
            f"the parts of {path} must fit each other, but its UNet's {key} is {actual} and its {whose} "
            f"{expected}"
        )


def check_vae(folder: Path, unet: Mapping[str, Any]) -> None:
    """Check that a VAE has the latents of a UNet of this configuration.

    Raises:
        ConfigError: it has not.
    """
    config = read_json(folder / "config.json")
    kind, channels = config.get("_class_name", "AutoencoderKL"), int(config.get("latent_channels", 4))
    expected = int(unet.get("out_channels", 4))
    if kind != "AutoencoderKL" or channels != expected:
        raise ConfigError(
            f"the VAE must be an AutoencoderKL with the UNet's {expected} latent channels, got "
            f"{kind} with {channels} in {folder}"
        )
    if config.get("latents_mean") is not None:
        raise ConfigError(
            f"a VAE must scale all latents alike, but {folder} has means of each; use another VAE"
        )


def read_schedule(path: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The checked scheduler configuration of a checkpoint, with overridden entries.

    Raises:
        ConfigError: its noise or its prediction type is not supported.
    """
    scheduler = read_json(path / "scheduler" / "scheduler_config.json") | dict(changes or {})
    scheduler.setdefault("prediction_type", "epsilon")
    if scheduler["prediction_type"] not in get_args(Prediction):
        raise ConfigError(
            f"prediction_type must be one of {get_args(Prediction)}, got "
            f"{scheduler['prediction_type']!r} in {path}"
        )
    try:
        alphas_cumprod(scheduler)
    except ConfigError as error:
        raise ConfigError(f"{error}; it is that of {path}") from error
    return scheduler


def why_distilled(name: str, path: Path | None) -> str:
    """The evidence that weights are distilled for few steps without guidance; empty where there is none.

    Args:
        name: of the model or LoRA.
        path: the checkpoint's folder, None for a LoRA.
    """
    if DISTILLED.search(Path(name).name):
        return "its name"
    if path is None:
        return ""
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    if scheduler.get("_class_name") in DISTILLED_SAMPLERS:
        return f"its {scheduler['_class_name']}"
    # Models with zero terminal SNR, which predict v, are also sampled from the last timestep.
    trailing = scheduler.get("timestep_spacing") == "trailing"
    if trailing and scheduler.get("prediction_type", "epsilon") == "epsilon":
        return "its sampler's trailing timesteps"
    return ""


def zeros_for_empty_prompt(path: Path) -> bool:
    """Whether a checkpoint's pipeline replaces an empty negative prompt's embedding by zeros."""
    return bool(read_json(path / "model_index.json").get("force_zeros_for_empty_prompt"))
