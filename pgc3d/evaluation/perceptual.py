"""A perceptual image distance on the features of a VAE's encoder, by default the bundled prior's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from pgc3d.diffusion.files import loading

VIEWS_AT_ONCE = 8  # bounds the memory of the features


@dataclass(frozen=True)
class EncoderDistance:
    """Distance in the feature space of a VAE's encoder, after the recipe of LPIPS (Zhang et al. 2018, eq. 1).

    The features behind every downsampling stage are scaled to unit length along the channels; the squared
    difference is summed over the channels and averaged over the image and the stages. There are no channel
    weights learnt from human ratings: values are not those of LPIPS, lie in [0, 4], and are comparable only
    for the same VAE. Unlike LPIPS it is less sensitive to white noise than to a shift by a pixel of the same
    squared error.
    """

    encoder: Any  # diffusers' Encoder of an AutoencoderKL

    @torch.no_grad()
    def __call__(
        self, first: Float[Tensor, "B H W 3"], second: Float[Tensor, "B H W 3"]
    ) -> Float[Tensor, " B"]:
        """Distance of each pair of images; sRGB in [0, 1], sides that are multiples of 8."""
        pairs = zip(torch.split(first, VIEWS_AT_ONCE), torch.split(second, VIEWS_AT_ONCE), strict=True)
        return torch.cat([self._distance(a, b) for a, b in pairs])

    def _distance(self, first: Tensor, second: Tensor) -> Tensor:
        stages = [
            (normalize(a, dim=1) - normalize(b, dim=1)).square().sum(1).mean((1, 2))
            for a, b in zip(self._features(first), self._features(second), strict=True)
        ]
        return torch.stack(stages).mean(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        hidden = self.encoder.conv_in(2.0 * images.permute(0, 3, 1, 2).float() - 1.0)
        features = []
        for block in self.encoder.down_blocks:
            hidden = block(hidden)
            features.append(hidden)
        return features


def load_encoder_distance(checkpoint: Path, device: torch.device) -> EncoderDistance:
    """The distance on the encoder of a checkpoint folder's VAE, in float32.

    Raises:
        WeightsNotFoundError: the folder holds no whole VAE.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with loading(checkpoint / "vae"):
        vae = AutoencoderKL.from_pretrained(
            checkpoint / "vae",
            torch_dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=False,
        )
    encoder = vae.encoder.to(device).eval()
    return EncoderDistance(encoder=encoder.requires_grad_(False))  # noqa: FBT003 - torch's own signature
