"""A frozen Zero123 (arXiv 2303.11328): novel views of the object of an input image.

Its UNet is conditioned on the image twice: by a CLIP embedding concatenated with the relative pose, the only
token of the cross attention, and by latents concatenated with the noisy ones. Without condition both are
zero.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.devices import reading_device
from pgc3d.diffusion.files import (
    WEIGHTS,
    ModelFolder,
    Pose,
    loading,
    projection_folder,
    read_json,
    weight_files,
)
from pgc3d.diffusion.latent import Image, LatentDiffusion, Latents
from pgc3d.diffusion.models import load_latent_diffusion
from pgc3d.diffusion.text import load_clip
from pgc3d.errors import ConfigError, WeightsNotFoundError
from pgc3d.images import resize
from pgc3d.memory import release_memory
from pgc3d.schedules import ddim_step
from pgc3d.types import Cameras, TextEmbedding

RADIUS_UNIT = 0.5  # its training objects are in a cube of side 1, those of pgc3d in the unit sphere


@dataclass(frozen=True)
class Zero123:
    """The model conditioned on an image of one object; all parameters are frozen."""

    diffusion: LatentDiffusion
    projection: torch.nn.Linear  # the image's embedding and the pose to a token of the cross attention
    pose: Pose
    embedding: Float[Tensor, "1 D"]  # of the image on white, by CLIP
    latents: Float[Tensor, "1 C h w"]  # of the image on white: the posterior's mode, not scaled

    @torch.no_grad()
    def predict(
        self, noisy: Latents, timesteps: Int[Tensor, " B"], pose: Float[Tensor, "B 4"]
    ) -> tuple[Latents, Latents]:
        """The predicted noise without and with the condition, for a pose (`relative_pose`) of each image."""
        batch = len(noisy)
        features = torch.cat([self.embedding.expand(batch, -1), pose.to(self.embedding)], dim=1)
        token = self.projection(features)[:, None]
        return self.diffusion.predict(
            noisy,
            timesteps,
            conditional=TextEmbedding(tokens=token, pooled=None),
            unconditional=TextEmbedding(tokens=torch.zeros_like(token), pooled=None),
            beside=self.latents.expand(batch, -1, -1, -1),
        )

    def sample(
        self,
        cameras: Cameras,
        reference: Cameras,
        *,
        generator: torch.Generator,
        guidance_scale: float = 3.0,
        steps: int = 50,
    ) -> Image:
        """Images of the object from other cameras, on white, by deterministic DDIM (arXiv 2010.02502).

        Args:
            cameras: B views.
            reference: the camera of the input image, one view.
            generator: on the CPU; draws the initial noise.
            guidance_scale: s in uncond + s (cond - uncond).
            steps: number of timesteps, evenly spaced from the highest one down.
        """
        model, batch = self.diffusion, len(cameras)
        pose = relative_pose(cameras, reference, self.pose).to(model.device)
        shape = model.latent_shape(batch, model.resolution)
        latents = torch.randn(shape, generator=generator).to(model.device)
        levels = torch.linspace(model.train_steps - 1, 0, steps + 1).round().long().tolist()[:-1]
        signals = [*(model.alphas_cumprod[level] for level in levels), torch.ones((), device=model.device)]
        for step, level in enumerate(levels):
            timesteps = torch.full((batch,), level, device=model.device)
            unconditional, conditional = self.predict(latents, timesteps, pose)
            noise = unconditional + guidance_scale * (conditional - unconditional)
            latents = ddim_step(latents, noise, signals[step].expand(batch), signals[step + 1].expand(batch))
        return model.decode(latents)


def relative_pose(cameras: Cameras, reference: Cameras, pose: Pose) -> Float[Tensor, "B 4"]:
    """[d polar, sin d azimuth, cos d azimuth, 4th entry], radians, target minus condition.

    Azimuths have the orientation of `cameras`. The polar angle is measured from above, so that its difference
    is the condition's elevation minus the target's.
    """
    turn = cameras.azimuth - reference.azimuth
    polar = polar_pose(turn, cameras.elevation, reference.elevation.expand_as(turn))
    if pose == "polar":
        return polar
    last = RADIUS_UNIT * (cameras.distance - reference.distance)
    return torch.cat([polar[:, :3], last[:, None]], dim=1)


def polar_pose(
    turn: Float[Tensor, " B"], elevation: Float[Tensor, " B"], condition: Float[Tensor, " B"]
) -> Float[Tensor, "B 4"]:
    """The pose of Stable Zero123, whose 4th entry is the condition's polar angle, radians.

    Args:
        turn: azimuth of the target minus that of the condition.
        elevation: of the target.
        condition: elevation of the condition.
    """
    entries = [condition - elevation, torch.sin(turn), torch.cos(turn), math.pi / 2 - condition]
    return torch.stack(entries, dim=-1)


def require_zero123(folder: ModelFolder, pose: Pose | None = None) -> ModelFolder:
    """The description of a Zero123 checkpoint; `pose`, where given, replaces its own entry.

    Raises:
        ConfigError: it has another layout, or its pose convention is unknown.
    """
    if folder.layout != "zero123":
        raise ConfigError(
            f"the image model must be in Zero123 layout, got {folder.name} in {folder.layout}'s"
        )
    if (pose or folder.pose) is None:
        raise ConfigError(
            f"the pose convention of {folder.name} must be known, got none; use --set "
            "models.image.pose=radius for a model as Zero123-XL, or =polar for one as Stable Zero123"
        )
    return replace(folder, pose=pose or folder.pose)


def load_zero123(
    folder: ModelFolder,
    image: Float[Tensor, "S S 4"],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    vae: str | Path | None = None,
    vae_dtype: torch.dtype | None = None,
) -> Zero123:
    """A loaded checkpoint in Zero123 layout, conditioned on an image; see `condition`.

    Args:
        folder: from `require_zero123`.
        image: the object alone, RGBA in [0, 1], premultiplied alpha.
        device: of the modules.
        dtype: of the UNet, as in `load_latent_diffusion`.
        vae: another VAE.
        vae_dtype: as in `load_latent_diffusion`.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
    """
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    diffusion = load_latent_diffusion(folder, device=device, dtype=dtype, vae=vae, vae_dtype=vae_dtype)
    return condition(folder, diffusion, image.to(device), dtype=dtype)


def condition(
    folder: ModelFolder, diffusion: LatentDiffusion, image: Float[Tensor, "S S 4"], *, dtype: torch.dtype
) -> Zero123:
    """A loaded model conditioned on an image; the image encoder is on the device for the call only.

    Args:
        folder: from `require_zero123`.
        diffusion: its network, with or without the VAE's decoder.
        image: the object alone, on the model's device, RGBA in [0, 1], premultiplied alpha.
        dtype: of the image encoder and the projection.

    Raises:
        WeightsNotFoundError: weights are missing or damaged.
    """
    if folder.pose is None:
        raise ValueError("the folder must come from require_zero123, got one without a pose")
    device = diffusion.device
    resized = resize(image[None], diffusion.resolution)
    resized = resized[..., :3] + (1.0 - resized[..., 3:])  # on white
    embedding = _embed(folder.path, resized, dtype)
    projection = _load_projection(projection_folder(folder.path), device, dtype)
    actual, expected = projection.in_features, embedding.shape[1] + 4
    if actual != expected:
        raise WeightsNotFoundError(
            f"{projection_folder(folder.path)} must take {expected} numbers, an embedding of "
            f"{expected - 4} and a pose, got {actual}"
        )
    noise = torch.zeros(diffusion.latent_shape(1, diffusion.resolution), device=device)
    with torch.no_grad():
        latents = diffusion.encode(resized, noise) / float(diffusion.vae.config.scaling_factor)
    return Zero123(
        diffusion=diffusion, projection=projection, pose=folder.pose, embedding=embedding, latents=latents
    )


@torch.no_grad()
def _embed(folder: Path, resized: Image, dtype: torch.dtype) -> Float[Tensor, "1 D"]:
    from transformers.models.clip.modeling_clip import CLIPVisionModelWithProjection

    processor = read_json(folder / "feature_extractor" / "preprocessor_config.json")
    with loading(folder / "image_encoder"):
        encoder = load_clip(CLIPVisionModelWithProjection, folder / "image_encoder", dtype=dtype)
    encoder.to(resized.device)
    with loading(folder / "feature_extractor"):
        pixels = clip_pixels(resized, processor)
        embedding: Tensor = encoder(pixels.to(dtype)).image_embeds
    del encoder
    release_memory(resized.device)
    return embedding


def clip_pixels(image: Image, processor: dict[str, Any]) -> Float[Tensor, "B 3 s s"]:
    """Square images preprocessed for CLIP with the settings of `preprocessor_config.json`."""
    side = _side(processor["size"])
    crop = _side(processor.get("crop_size", side)) if processor.get("do_center_crop", True) else side
    resized = torch.nn.functional.interpolate(
        image.permute(0, 3, 1, 2), size=(side, side), mode="bicubic", antialias=True
    ).clamp(0.0, 1.0)
    first = (side - crop) // 2
    cropped = resized[..., first : first + crop, first : first + crop]
    mean, deviation = (cropped.new_tensor(processor[key]) for key in ("image_mean", "image_std"))
    return (cropped - mean[:, None, None]) / deviation[:, None, None]


def _side(size: Any) -> int:
    """A side in pixels, from any of the three formats of the configuration."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or size["height"]
    return int(size)


def _load_projection(folder: Path, device: torch.device, dtype: torch.dtype) -> torch.nn.Linear:
    """The projection layer, in either of its converters' formats."""
    from safetensors.torch import load_file

    (file,) = weight_files(folder, WEIGHTS[folder.name], prefer_half=dtype != torch.float32)
    with loading(folder):
        tensors = load_file(file, device=reading_device(device))
        (weight,) = (tensor for name, tensor in tensors.items() if name.endswith(".weight"))
        (bias,) = (tensor for name, tensor in tensors.items() if name.endswith(".bias"))
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        layer.load_state_dict({"weight": weight.to(dtype), "bias": bias.to(dtype)}, assign=True)
    return layer.requires_grad_(False)  # noqa: FBT003 - torch's own signature
