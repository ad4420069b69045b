"""Fine-tune a VAE's encoder for a smaller gradient: the same latents, less noise in the image gradient.

    python scripts/finetune_vae_encoder.py OUT --minutes 5
    pgc3d text "a red chair" --set model.vae=OUT

The loss is the squared distance to the frozen encoder's posterior, in units of the latents' variance, plus
the penalty times E |J^T v|^2 over its value at the start, with the encoder's Jacobian J and normal v. The
images have some noise, as they do during optimisation. The decoder is not changed.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from sample_images import chunks, gather_images, load_model
from torch import Tensor

from pgc3d.build.run import resolve_device
from pgc3d.disk import replace_file
from pgc3d.pgc import statistics

MAX_NOISE = 0.1  # standard deviation on images in [0, 1]

Images = Float[Tensor, "B H W 3"]


def moments(vae: Any, images: Images) -> tuple[Tensor, Tensor]:
    """Mean and logarithm of the variance of the posterior, unscaled, [B, C, h, w] each."""
    hidden = vae.encoder((2 * images - 1).permute(0, 3, 1, 2))
    mean, log_variance = (hidden if vae.quant_conv is None else vae.quant_conv(hidden)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def input_gradient(vae: Any, images: Images, directions: Tensor, *, create_graph: bool = False) -> Images:
    """J^T v for the Jacobian J of the scaled latents' mean: the image gradient of score distillation."""
    images = images.detach().requires_grad_()
    latents = moments(vae, images)[0] * vae.config.scaling_factor
    return torch.autograd.grad(latents, images, directions, create_graph=create_graph)[0]


def finetune(
    vae: Any,
    dataset: Images,
    *,
    penalty: float,
    learning_rate: float,
    batch: int,
    generator: torch.Generator,
    go_on: Callable[[int], bool],
) -> int:
    """Train the encoder in place, in float32; returns the steps done.

    Args:
        vae: diffusers' AutoencoderKL.
        dataset: images, on its device.
        penalty: of the gradient, in units of its value at the start.
        learning_rate: of Adam.
        batch: images a step.
        generator: on the CPU.
        go_on: whether to continue, called before each step with the number of finished ones.
    """
    from diffusers.models.attention_processor import AttnProcessor

    frozen = copy.deepcopy(vae)
    for attention in filter(None, vae.encoder.mid_block.attentions):
        attention.set_processor(AttnProcessor())  # fused kernels have no second derivative
    parts = [part for part in (vae.encoder, vae.quant_conv) if part is not None]
    parameters = [parameter.requires_grad_() for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    variance, start = _scales(frozen, dataset, generator)
    step = 0
    while go_on(step):
        images, directions = _draw(vae, dataset, batch, generator)
        with torch.no_grad():
            expected = moments(frozen, images)
        found = moments(vae, images)
        distance = (found[0] - expected[0]).square().mean() / variance
        distance = distance + 0.01 * (found[1] - expected[1]).square().mean()
        roughness = input_gradient(vae, images, directions, create_graph=True).square().mean() / start
        optimizer.zero_grad()
        torch.autograd.backward([distance + penalty * roughness])
        optimizer.step()
        step += 1
    for parameter in parameters:
        parameter.requires_grad_(requires_grad=False)
    return step


def _draw(vae: Any, dataset: Tensor, batch: int, generator: torch.Generator) -> tuple[Images, Tensor]:
    """Images with noise on them, and normal directions in the space of their latents."""
    rows = torch.randint(len(dataset), (batch,), generator=generator)
    images = dataset[rows.to(dataset.device)]
    noise = torch.randn(images.shape, generator=generator) * MAX_NOISE
    noise = noise * torch.rand(batch, 1, 1, 1, generator=generator)
    shape = (batch, vae.config.latent_channels, *(side // _downscale(vae) for side in images.shape[1:3]))
    directions = torch.randn(shape, generator=generator).to(images.device)
    return (images + noise.to(images.device)).clamp(0, 1), directions


def _downscale(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _scales(vae: Any, dataset: Tensor, generator: torch.Generator, sample: int = 4) -> tuple[Tensor, Tensor]:
    """Variance of the latents, and E |J^T v|^2 for each channel, before any change."""
    with torch.no_grad():
        variance = moments(vae, dataset[:16])[0].var()
    values = [input_gradient(vae, *_draw(vae, dataset, 4, generator)).square().mean() for _ in range(sample)]
    return variance, torch.stack(values).mean()


def compare(before: Any, after: Any, dataset: Images, generator: torch.Generator) -> dict[str, Any]:
    """Agreement of the latents (R^2) and change of the gradient's lengths, on the same noise."""
    errors, spread = [], []
    gradients: dict[str, list[Tensor]] = {"before": [], "after": []}
    for single in chunks(dataset, 1):
        images, directions = _draw(before, single, 1, generator)
        with torch.no_grad():
            expected, found = (moments(vae, images)[0] for vae in (before, after))
        errors.append((found - expected).square().mean())
        spread.append(expected)
        for name, vae in (("before", before), ("after", after)):
            gradients[name].append(input_gradient(vae, images, directions))
    report: dict[str, Any] = {"latent_r2": 1 - (torch.stack(errors).mean() / torch.cat(spread).var()).item()}
    for name, parts in gradients.items():
        gradient = torch.cat(parts)
        measured = statistics(gradient, gradient, norm="l2")
        report[name] = {key: measured[f"gradient_{key}"].item() for key in ("p50", "p90", "p99", "max")}
    return report


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="new folder in diffusers' layout")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--vae", help="start from another VAE's folder or hub id")
    parser.add_argument("--pictures", type=Path, help="folder; samples of the model where not given")
    parser.add_argument("--count", type=int, default=96, help="images; one in eight is held out")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--penalty", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"the output folder must not exist, but {arguments.out} does; choose another one")
    loaded = load_model(arguments.model, resolve_device(arguments.device), vae=arguments.vae)
    dataset = gather_images(loaded, arguments.pictures, count=arguments.count, size=arguments.size)
    if len(dataset) < 8:
        raise SystemExit(f"there must be at least 8 images, as one in 8 is held out, got {len(dataset)}")
    generator = torch.Generator().manual_seed(arguments.seed)
    vae = loaded.model.vae.float()
    original, held_out = copy.deepcopy(vae), torch.arange(len(dataset)) % 8 == 7
    end = time.monotonic() + 60 * arguments.minutes
    steps = finetune(
        vae, dataset[~held_out], penalty=arguments.penalty, learning_rate=arguments.learning_rate,
        batch=arguments.batch, generator=generator, go_on=lambda _: time.monotonic() < end,
    )  # fmt: skip
    report = {"steps": steps, "penalty": arguments.penalty, "learning_rate": arguments.learning_rate}
    report |= compare(original, vae, dataset[held_out], generator)
    vae.save_pretrained(arguments.out)
    replace_file(arguments.out / "finetuning.json", (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
