"""A linear approximation of a VAE's encoder: one constant matrix from colours to latents.

Pan et al. (arXiv 2310.12474) replace the encoder's Jacobian by a linear map of the colour of each latent
pixel, as a diagnostic of the encoder's gradient. It adds no noise, and has no detail finer than a latent
pixel.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.errors import InputError


@dataclass(frozen=True)
class LinearEncoder:
    """Latents of an image resized to their size: color @ matrix + bias."""

    matrix: Float[Tensor, "3 C"]  # from sRGB in [0, 1] to scaled latents
    bias: Float[Tensor, " C"]

    def encode(self, image: Float[Tensor, "B H W 3"], size: Sequence[int]) -> Float[Tensor, "B C h w"]:
        """The approximate latents, `size` = (h, w)."""
        return (shrink(image, size) @ self.matrix + self.bias).permute(0, 3, 1, 2)

    def pull_back(self, gradient: Float[Tensor, "B C h w"], size: Sequence[int]) -> Float[Tensor, "B H W 3"]:
        """The gradient on an image of size (H, W) of a gradient on its latents: the adjoint of `encode`.

        Inside the image that is bilinear enlargement of gradient @ matrix^T, divided by the number of pixels
        for each latent.
        """
        batch, _, *latent_size = gradient.shape
        image = gradient.new_zeros(batch, *size, 3, requires_grad=True)
        with torch.enable_grad():
            latents = self.encode(image, latent_size)
        return torch.autograd.grad(latents, image, gradient)[0]


def shrink(image: Float[Tensor, "B H W 3"], size: Sequence[int]) -> Float[Tensor, "B h w 3"]:
    """Bilinear resizing with a filter as wide as a latent pixel."""
    small = torch.nn.functional.interpolate(
        image.permute(0, 3, 1, 2), size=tuple(size), mode="bilinear", antialias=True
    )
    return small.permute(0, 2, 3, 1)


def fit_linear_encoder(
    colors: Float[Tensor, "N 3"], latents: Float[Tensor, "N C"], *, ridge: float = 1e-3
) -> LinearEncoder:
    """The least-squares fit with a ridge on the matrix, not on the bias, in float64.

    Args:
        colors: sRGB in [0, 1] of resized images.
        latents: scaled, of the same pixels.
        ridge: added to the diagonal of the mean of color color^T.
    """
    x, y = colors.double(), latents.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    covariance = (x - mean_x).T @ (x - mean_x) / len(x)
    cross = (x - mean_x).T @ (y - mean_y) / len(x)
    matrix = torch.linalg.solve(covariance + ridge * torch.eye(3, dtype=x.dtype, device=x.device), cross)
    return LinearEncoder(matrix=matrix.float(), bias=(mean_y - mean_x @ matrix).float())


def read_linear_encoder(path: Path, model: LatentDiffusion) -> LinearEncoder:
    """The encoder of a file of `scripts/fit_linear_encoder.py`, on the model's device.

    Raises:
        InputError: it is missing, damaged, or made for latents with other channels.
    """
    channels = int(model.vae.config.latent_channels)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        matrix = torch.tensor(content["matrix"], dtype=torch.float32)
        bias = torch.tensor(content["bias"], dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"linear_encoder must be a file of scripts/fit_linear_encoder.py, got {path}: {error!r}"
        ) from error
    if matrix.shape != (3, channels) or bias.shape != (channels,):
        raise InputError(
            f"linear_encoder must map 3 to {channels} channels, got {tuple(matrix.shape)} in {path}; fit it "
            "again for this VAE"
        )
    return LinearEncoder(matrix=matrix.to(model.device), bias=bias.to(model.device))
