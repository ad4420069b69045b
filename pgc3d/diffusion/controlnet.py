"""ControlNets (arXiv 2302.05543): their condition images from a render, and their residuals for the UNet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.diffusion.aliases import CONTROL_ALIASES
from pgc3d.diffusion.files import ModelFolder, read_json
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.models import find_part, load_module
from pgc3d.errors import ConfigError
from pgc3d.ranges import PATH, check, number
from pgc3d.types import Cameras, Rendering

Condition = Literal["depth", "normal"]
Polarity = Literal["near_bright", "far_bright"]
Image = Float[Tensor, "B H W 3"]
# Entries that must agree between a ControlNet and its UNet, with the library's defaults.
SHARED = {"in_channels": 4, "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}


@dataclass(frozen=True)
class ControlConfig:
    """A ControlNet of the text-to-image model, conditioned on the render."""

    model: str = field(metadata=PATH)  # a folder, a hub id, or an alias as "sdxl-depth-small"
    condition: Condition = "depth"  # the buffer of the render
    scale: float = number(1.0, 0.0, 100.0)  # of the ControlNet's residuals
    polarity: Polarity = "near_bright"  # of depth; "far_bright" is the original PGC-3D code's

    def __post_init__(self) -> None:
        check(self)
        if self.condition != "depth" and self.polarity != "near_bright":
            raise ValueError(f"polarity must be near_bright for a {self.condition}, got {self.polarity}")


@dataclass(frozen=True)
class Control:
    """A loaded ControlNet with its condition and its scale."""

    network: Any  # diffusers' ControlNetModel, frozen, in the UNet's precision
    condition: Condition
    scale: float = 1.0
    polarity: Polarity = "near_bright"  # of depth


@torch.no_grad()
def condition_image(control: Control, rendering: Rendering, cameras: Cameras) -> Image:
    """The ControlNet's condition image from a render, in [0, 1]; images do not influence each other."""
    if control.condition == "depth":
        return depth_image(rendering.depth, control.polarity)
    return normal_image(rendering, cameras)


def depth_image(depth: Float[Tensor, "B H W 1"], polarity: Polarity = "near_bright") -> Image:
    """Grey image of depth, normalised for each view.

    Args:
        depth: distance along the view axis, 0 where nothing was hit.
        polarity: "near_bright" is inverse depth, 1 at the nearest point, 0 at the farthest one and on the
            background, like the depth estimates on which the depth ControlNets were trained. "far_bright" is
            the condition of PGC-3D's code: depth, from 0 at the nearest point to 1 on the background, which
            has 1.2 times the depth of the farthest point.
    """
    hit = depth > 0
    near = depth.where(hit, torch.inf).amin(dim=(1, 2), keepdim=True)
    far = depth.where(hit, 0.0).amax(dim=(1, 2), keepdim=True)
    tiny = torch.finfo(depth.dtype).tiny
    if polarity == "near_bright":
        span = (1 / near - 1 / far).clamp(min=tiny)
        grey = (1 - (1 / near - 1 / depth) / span).where(hit, 0.0)
    else:
        grey = ((depth - near) / (1.2 * far - near).clamp(min=tiny)).where(hit, 1.0)
    return grey.clamp(0.0, 1.0).expand(-1, -1, -1, 3)


def normal_image(rendering: Rendering, cameras: Cameras) -> Image:
    """Normals in the convention of the normal ControlNets: camera space, red left, green up, blue near.

    Both of their estimators use it: the gradient of MiDaS' inverse depth (version 1.0) and NormalBae (1.1).
    Normals towards the viewer and the background are (0.5, 0.5, 1).
    """
    world = 2 * rendering.normal - 1  # the background is zero, edges are in between
    right, up, near = torch.einsum("bij,bhwj->bhwi", cameras.camera_from_world[:, :3, :3], world).unbind(-1)
    normal = torch.stack([-right, up, near + 1 - rendering.alpha[..., 0]], dim=-1)
    return 0.5 * normalize(normal, dim=-1) + 0.5


def control_residuals(
    controls: Sequence[tuple[Control, Image]],
    noisy: Float[Tensor, "N C h w"],
    timesteps: Int[Tensor, " N"],
    tokens: Float[Tensor, "N T D"],
    added: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The sum of the ControlNets' residuals as keyword arguments of the UNet; see `latent.Residuals`.

    Args:
        controls: at least one, each with its condition image in the size of the decoded latents; its B images
            are repeated to N, for both halves of classifier-free guidance.
        noisy: the UNet's input.
        timesteps: one for each of `noisy`.
        tokens: encoded prompts.
        added: SDXL's added conditions.
    """
    down: list[Tensor] = []
    mid: Tensor | float = 0.0
    for control, image in controls:
        condition = image.permute(0, 3, 1, 2).to(noisy.dtype)
        more, last = control.network(
            noisy,
            timesteps,
            encoder_hidden_states=tokens,
            controlnet_cond=condition.repeat(len(noisy) // len(condition), 1, 1, 1),
            conditioning_scale=control.scale,
            added_cond_kwargs=added,
            return_dict=False,
        )
        down = [first + second for first, second in zip(down, more, strict=True)] if down else list(more)
        mid = mid + last
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def resolve_control(name: str, model: ModelFolder, *, half: bool = False) -> ModelFolder:
    """The checkpoint of a ControlNet for a text-to-image model: a folder, a hub id, or an alias.

    Raises:
        WeightsNotFoundError: it is not found or incomplete.
        ConfigError: it is another kind of module, or does not fit the model.
    """
    path = find_part(name, "controlnet", half=half)
    config, unet = read_json(path / "config.json"), read_json(model.path / "unet" / "config.json")
    if config.get("_class_name") != "ControlNetModel" or config.get("conditioning_channels", 3) != 3:
        raise ConfigError(
            f"a control must be a ControlNetModel of 3 input channels, got {config.get('_class_name')} in "
            f"{path}"
        )
    shared = dict(SHARED)
    if "CrossAttn" in f"{config.get('down_block_types')} {config.get('mid_block_type')}":
        shared["cross_attention_dim"] = 1280
    if config.get("addition_embed_type") is not None:
        shared |= {"addition_embed_type": None, "projection_class_embeddings_input_dim": None}
    for key, default in shared.items():
        actual, expected = config.get(key, default), unet.get(key, default)
        if actual != expected:
            aliases = ", ".join(alias for alias in CONTROL_ALIASES if alias.startswith(f"{model.layout}-"))
            raise ConfigError(
                f"the ControlNet {name} must fit the model {model.name}, whose {key} is {expected}, got "
                f"{actual}; for its layout there are {aliases}"
            )
    commit = None if Path(name).expanduser().is_dir() else path.name
    return ModelFolder(name=name, path=path, layout=model.layout, commit=commit)


def load_control_network(folder: ModelFolder, model: LatentDiffusion) -> Any:
    """A frozen ControlNet on the UNet's device in its precision.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
        ConfigError: its downscaling factor is not that of the VAE.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel

    dtype = next(model.unet.parameters()).dtype
    network = load_module(ControlNetModel, folder.path, device=model.device, dtype=dtype)
    shrinks = 2 ** (len(network.config.conditioning_embedding_out_channels) - 1)
    if shrinks != model.downscale:
        raise ConfigError(
            f"the ControlNet {folder.name} must shrink its image as the VAE does, {model.downscale} times, "
            f"got {shrinks}"
        )
    return network
