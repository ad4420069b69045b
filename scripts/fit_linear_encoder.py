"""Fit the constant matrix from colours to latents that approximates a VAE's encoder.

    python scripts/fit_linear_encoder.py mini.json
    python scripts/fit_linear_encoder.py sdxl.json --model sdxl --pictures FOLDER --size 1024 --count 1000
    pgc3d text "a red chair" --set objectives.color.guidance.linear_encoder=mini.json

Ridge regression with a bias, of the posterior's mean on the colour of the resized image. The file also holds
the fraction of the latents' variance that the map explains (R^2), on held-out images.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sample_images import chunks, gather_images, load_model
from torch import Tensor

from pgc3d.build.run import resolve_device
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.linear_encoder import LinearEncoder, fit_linear_encoder, shrink
from pgc3d.disk import replace_file

HELD_OUT = 5  # every fifth image is held out


@torch.no_grad()
def colors_and_latents(
    model: LatentDiffusion, dataset: Float[Tensor, "N H W 3"], *, batch: int = 8
) -> tuple[Float[Tensor, "M 3"], Float[Tensor, "M C"]]:
    """The rows of the regression: one for every latent of every image."""
    colors, latents = [], []
    for part in chunks(dataset, batch):
        shape = model.latent_shape(len(part), part.shape[1])
        latents.append(model.encode(part, torch.zeros(shape, device=part.device)).permute(0, 2, 3, 1))
        colors.append(shrink(part, shape[2:]))
    return torch.cat(colors).flatten(0, 2), torch.cat(latents).flatten(0, 2)


def explained_variance(
    encoder: LinearEncoder, colors: Float[Tensor, "M 3"], latents: Float[Tensor, "M C"]
) -> list[float]:
    """R^2 of each latent channel."""
    error = (latents - colors @ encoder.matrix - encoder.bias).square().mean(0)
    explained: list[float] = (1 - error / latents.var(0, correction=0)).tolist()
    return explained


def fit(model: LatentDiffusion, dataset: Float[Tensor, "N H W 3"], *, ridge: float) -> dict[str, Any]:
    """The content of the file."""
    held_out = torch.arange(len(dataset)) % HELD_OUT == HELD_OUT - 1
    encoder = fit_linear_encoder(*colors_and_latents(model, dataset[~held_out]), ridge=ridge)
    judged = dataset[held_out] if held_out.any() else dataset
    return {
        "matrix": encoder.matrix.tolist(),
        "bias": encoder.bias.tolist(),
        "r2": explained_variance(encoder, *colors_and_latents(model, judged)),
        "ridge": ridge,
        "pictures": len(dataset),
        "size": dataset.shape[1],
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--vae", help="another VAE's folder or hub id")
    parser.add_argument("--pictures", type=Path, help="folder; samples of the model where not given")
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--ridge", type=float, default=1e-3)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    loaded = load_model(arguments.model, resolve_device(arguments.device), vae=arguments.vae)
    dataset = gather_images(loaded, arguments.pictures, count=arguments.count, size=arguments.size)
    content = fit(loaded.model, dataset, ridge=arguments.ridge)
    content |= {"model": arguments.model, "vae": arguments.vae}
    replace_file(arguments.out, (json.dumps(content, indent=1) + "\n").encode())
    print(
        "R^2 of the latent channels on held-out images:", *(f"{explained:.3f}" for explained in content["r2"])
    )


if __name__ == "__main__":
    main()
