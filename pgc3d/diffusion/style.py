"""An image as the style of a prompt, by an IP-Adapter (arXiv 2308.06721) for SDXL or SD 1.5.

A CLIP image encoder and the adapter's projection make tokens of the image. They are appended to those of the
prompt's text, and the tokens of an empty image to those of the negative prompt. The adapter's file also has a
layer for the keys and one for the values of the image's tokens for each cross attention of the UNet; see
`style_attention`. The files have the layout of the repository of the method's authors, as safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.diffusion.files import PICKLES, ModelFolder, loading, read_json, tensor_names
from pgc3d.diffusion.hub import hub_file, is_hub_id
from pgc3d.diffusion.style_attention import KEYS, VALUES, attach_style, layer_numbers, text_attentions
from pgc3d.diffusion.text import load_clip
from pgc3d.diffusion.zero123 import clip_pixels
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.memory import release_memory
from pgc3d.run_config import StyleConfig
from pgc3d.types import TextEmbedding

AUTHORS = "h94/IP-Adapter"
# The file of a repository or folder in the authors' layout, and the width of the text tokens it is made for.
FILES = {
    "sdxl": ("sdxl_models/ip-adapter_sdxl_vit-h.safetensors", 2048),
    "sd": ("models/ip-adapter_sd15.safetensors", 768),
}
ENCODER = "image_encoder"
TOKENS = 4  # of an adapter that projects the embedding of the whole image; the others have their own number


@dataclass(frozen=True)
class StyleAdapter:
    """An adapter's file and its image encoder, found and checked, but not loaded."""

    name: str  # as the user gave it
    path: Path  # of the safetensors file
    encoder: Path  # folder of the CLIP image encoder
    commit: str | None  # of the hub, None for a local file
    tokens: int  # of the image
    patches: bool  # the projection reads the patches' hidden states, not the embedding of the whole image
    parameters: int  # of the layers in the UNet
    weight: float


@dataclass(frozen=True)
class StyleTokens:
    """The tokens of the style image, and of no image, for the UNet's cross attention."""

    image: Float[Tensor, "1 T D"]
    empty: Float[Tensor, "1 T D"]


def with_style(text: TextEmbedding, tokens: Float[Tensor, "1 T D"]) -> TextEmbedding:
    """The embeddings of some texts, each followed by the tokens of an image."""
    repeated = tokens.to(text.tokens).expand(len(text.tokens), -1, -1)
    return TextEmbedding(tokens=torch.cat([text.tokens, repeated], dim=1), pooled=text.pooled)


def resolve_style(config: StyleConfig, model: ModelFolder) -> StyleAdapter:
    """The adapter for a text-to-image model, with its image encoder.

    Raises:
        WeightsNotFoundError: a file is missing, damaged or a pickle.
        ConfigError: it is no IP-Adapter, one of another kind, or does not fit the model.
    """
    unet = read_json(model.path / "unet" / "config.json")
    if config.adapter is None and unet.get("cross_attention_dim") != FILES[model.layout][1]:
        raise ConfigError(
            f"--style must go with a model of a kind for which there is an IP-Adapter, SDXL or SD 1.5, got "
            f"{model.name}; use --guidance sdxl, or name an adapter of that model with --style-adapter"
        )
    name = config.adapter or AUTHORS
    path, commit = _find(name, model.layout)
    shapes = _shapes(path)
    patches = "image_proj.latents" in shapes
    if not patches and "image_proj.proj.weight" not in shapes:
        raise ConfigError(
            f"a style's adapter must be an IP-Adapter, plain or plus, with image_proj.proj.weight or "
            f"image_proj.latents, got {path} without either; those for faces are not supported"
        )
    parameters = _require_fit(path, shapes, unet, model.name)
    width = shapes["image_proj.proj_in.weight" if patches else "image_proj.proj.weight"][1]
    return StyleAdapter(
        name=name,
        path=path,
        encoder=_encoder(name, path, commit, "hidden_size" if patches else "projection_dim", width),
        commit=commit,
        tokens=shapes["image_proj.latents"][1] if patches else TOKENS,
        patches=patches,
        parameters=parameters,
        weight=config.weight,
    )


def _find(name: str, layout: str) -> tuple[Path, str | None]:
    """The adapter's file and its commit, None where it is local."""
    local = Path(name).expanduser()
    if local.is_dir():
        return _in_folder(local, layout), None
    if local.suffix.lower() in PICKLES or name.lower().endswith(PICKLES):
        raise WeightsNotFoundError(
            f"--style-adapter must be a safetensors file, got the pickle {name}, which is never loaded; "
            f"use the file of that name that ends in .safetensors, as {AUTHORS} has, or convert it"
        )
    if local.is_file():
        return local, None
    repository, _, file = name.partition(":")
    if not is_hub_id(repository):
        raise WeightsNotFoundError(
            f"--style-adapter must be a file or folder, got {name}, which does not exist; one of the hub is "
            "OWNER/NAME or OWNER/NAME:FILE"
        )
    return hub_file(repository, file or (FILES[layout][0] if repository == AUTHORS else None))


def _in_folder(folder: Path, layout: str) -> Path:
    """The adapter's file of a folder: that of the authors' name, else the only one."""
    if (usual := folder / FILES[layout][0]).is_file():
        return usual
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(file.name for file in found)
        raise ConfigError(f"the IP-Adapter in {folder} must be named, as {found[0]}, got several: {names}")
    pickles = sorted(file for file in folder.rglob("*") if file.suffix in PICKLES)
    hint = f", only {pickles[0].name}, a pickle, which is never loaded; convert it" if pickles else ""
    raise WeightsNotFoundError(
        f"the folder of an IP-Adapter must hold {FILES[layout][0]} or one safetensors file, got none in "
        f"{folder}{hint}"
    )


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the tensors of a file, from its header."""
    from safetensors import safe_open

    tensor_names(path)  # an error of one line where it is no safetensors file
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping


def _require_fit(path: Path, shapes: Mapping[str, list[int]], unet: Mapping[str, Any], model: str) -> int:
    """The number of parameters of an adapter's layers, which must be those of the UNet's cross attentions."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    layers = {name: shape for name, shape in shapes.items() if name.startswith("ip_adapter.")}
    if not layers:
        raise ConfigError(
            "a style's adapter must be an IP-Adapter, with layers ip_adapter.1.to_k_ip.weight and so on, got "
            f"{path}, whose first tensor is {min(shapes, default='missing')}"
        )
    with torch.device("meta"):
        attentions = text_attentions(UNet2DConditionModel.from_config(dict(unet)))
    expected = {
        key.format(number): list(layer.weight.shape)
        for number, attention in zip(layer_numbers(len(attentions)), attentions, strict=True)
        for key, layer in ((KEYS, attention.to_k), (VALUES, attention.to_v))
    }
    if wrong := [name for name in {**expected, **layers} if layers.get(name) != expected.get(name)]:
        first = wrong[0]
        raise ConfigError(
            f"the IP-Adapter {path} must fit the model {model}, whose {first} is "
            f"{expected.get(first, 'missing')}, got {layers.get(first, 'none')}; use one made for this kind "
            "of model"
        )
    return sum(rows * columns for rows, columns in expected.values())


def _encoder(name: str, path: Path, commit: str | None, key: str, width: int) -> Path:
    """The folder of the image encoder beside an adapter's file whose config has `width` for `key`."""
    found = []
    for folder in (path.parent, path.parent.parent / "models", path.parent.parent):
        config = folder / ENCODER / "config.json"
        if commit is not None:
            config = _fetched(name, path, commit, config) or config
        if not config.is_file():
            continue
        found.append(config.parent)
        actual = read_json(config).get(key, {"projection_dim": 512, "hidden_size": 768}[key])
        if actual == width:
            if commit is not None:
                _fetched(name, path, commit, config.with_name("model.safetensors"))
            return config.parent
    others = f", only {' and '.join(map(str, found))} of another size" if found else ""
    raise WeightsNotFoundError(
        f"the IP-Adapter {path} must have a CLIP image encoder with {key} {width} in a folder {ENCODER} "
        f"beside it, got none{others}; put it there"
    )


def _fetched(name: str, path: Path, commit: str, target: Path) -> Path | None:
    """A file of the adapter's repository; None where that has no such file."""
    snapshot = next(folder for folder in path.parents if folder.name == commit)
    if snapshot not in target.parents:
        return None
    try:
        return hub_file(name.partition(":")[0], target.relative_to(snapshot).as_posix())[0]
    except WeightsNotFoundError:
        if target.name != "config.json":
            raise
        return None


def load_style(unet: Any, adapter: StyleAdapter) -> None:
    """Add the adapter's layers to a UNet, in place.

    Raises:
        WeightsNotFoundError: weights are damaged.
    """
    with loading(adapter.path):
        attach_style(
            unet, _tensors(adapter.path, "ip_adapter."), tokens=adapter.tokens, weight=adapter.weight
        )


def _tensors(path: Path, prefix: str) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


@torch.no_grad()
def encode_style(
    adapter: StyleAdapter, image: Float[Tensor, "S S 3"], *, device: torch.device, dtype: torch.dtype
) -> StyleTokens:
    """The tokens of an image; the image encoder and the projection are on the device for the call only.

    Args:
        adapter: see `resolve_style`.
        image: sRGB in [0, 1].
        device: of the encoder and the result.
        dtype: likewise.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
    """
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    with loading(adapter.encoder):
        encoder = load_clip(CLIPVisionModelWithProjection, adapter.encoder, dtype=dtype).to(device)
    processor = {
        "size": encoder.config.image_size,
        "image_mean": OPENAI_CLIP_MEAN,
        "image_std": OPENAI_CLIP_STD,
    }
    pixels = clip_pixels(image[None].to(device), processor).to(dtype)
    if adapter.patches:
        both = encoder(torch.cat([pixels, torch.zeros_like(pixels)]), output_hidden_states=True)
        features = both.hidden_states[-2]
    else:
        embedding = encoder(pixels).image_embeds
        features = torch.cat([embedding, torch.zeros_like(embedding)])
    tokens = _projection(adapter).to(device, dtype)(features)
    del encoder
    release_memory(device)
    return StyleTokens(image=tokens[:1], empty=tokens[1:])


def _projection(adapter: StyleAdapter) -> torch.nn.Module:
    """The network from the encoder's features to tokens: diffusers' module for the names of the file."""
    from diffusers.loaders.unet import UNet2DConditionLoadersMixin

    prefix = "image_proj."
    state = {name.removeprefix(prefix): value for name, value in _tensors(adapter.path, prefix).items()}
    with loading(adapter.path):
        return UNet2DConditionLoadersMixin()._convert_ip_adapter_image_proj_to_diffusers(
            {name: value.float() for name, value in state.items()}, low_cpu_mem_usage=False
        )
