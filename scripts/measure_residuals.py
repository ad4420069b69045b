"""Measure the assumption of clipping: residuals of pixels while a model samples, and gradient lengths.

    python scripts/measure_residuals.py OUT --prompts 8 --steps 50

Pan et al. (arXiv 2310.12474) take the gradient of a pixel for its expected residual x_t - x_{t-1} and bound
it as that is bounded. Here both are measured, as the largest channel of a pixel in [0, 1]:

- residuals between the decoded estimates of the clean image at consecutive steps of DDIM, and between the
  decoded noisy latents themselves; they depend on the number of steps;
- gradients of score distillation at several noise levels, on the finished sample and on an empty background,
  with the fraction of pixels beyond each threshold, for the whole image and for its edges, the rest of the
  object and the rest of the background.

Writes OUT/residuals.json and OUT/residuals.png (needs matplotlib, in the extra `dev`).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from sample_images import PROMPTS, LoadedFolder, encode_views, load_model, sample
from torch import Tensor

from pgc3d.build.run import resolve_device
from pgc3d.diffusion.latent import select
from pgc3d.disk import replace_file
from pgc3d.guidance.sds import ScoreDistillation
from pgc3d.types import TextEmbedding
from pgc3d.view_prompts import ViewPromptConfig

THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0)
QUANTILES = (0.5, 0.9, 0.99, 0.999)
LEVELS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # of the noise, as fractions of the training steps
ONE_VIEW = ViewPromptConfig("{prompt}", ("",), (360.0,), overhead_above_degrees=90.0)
BINS = 60

Images = Float[Tensor, "B H W 3"]
Lengths = Float[Tensor, "B H W"]


def length(vectors: Images) -> Lengths:
    """Largest channel."""
    return vectors.abs().amax(-1)


def trajectory(
    loaded: LoadedFolder,
    positive: TextEmbedding,
    negative: TextEmbedding,
    *,
    size: int,
    steps: int,
    seed: int,
) -> tuple[Images, dict[str, list[Lengths]]]:
    """The finished samples, and the residuals of every step but the first."""
    generator = torch.Generator().manual_seed(seed)
    before: dict[str, Images] = {}
    residuals: dict[str, list[Lengths]] = {"clean": [], "noisy": []}
    for estimate in sample(
        loaded, positive, negative, size=size, steps=steps, guidance_scale=5.0, generator=generator
    ):
        now = {name: loaded.model.decode(getattr(estimate, name)) for name in residuals}
        for name, image in now.items():
            if name in before:
                residuals[name].append(length(image - before[name]))
        before = now
    return before["clean"], residuals


def image_gradients(
    loaded: LoadedFolder,
    positive: TextEmbedding,
    negative: TextEmbedding,
    images: Images,
    *,
    guidance_scale: float,
    seed: int,
    levels: Sequence[float],
) -> Float[Tensor, "L B H W 3"]:
    """The gradient of score distillation at every noise level, the same draws for all images.

    Args:
        loaded: the model.
        positive: the prompts, which the images have in turn.
        negative: the empty one.
        images: of the model's side or another that it takes.
        guidance_scale: s.
        seed: of the draws.
        levels: of the noise, as fractions of the training steps.
    """
    model, generator = loaded.model, torch.Generator().manual_seed(seed)
    found = torch.empty(len(levels), *images.shape)
    for row, image in enumerate(images):
        prompt = torch.tensor([row % len(positive.tokens)], device=model.device)
        guidance = ScoreDistillation(
            model=model, positive=select(positive, prompt),
            negative=negative, view_prompts_config=ONE_VIEW,
            guidance_scale=guidance_scale, resolution=images.shape[1],
        )  # fmt: skip
        generator.manual_seed(seed)
        for level, fraction in enumerate(levels):
            noise, posterior = torch.randn((2, *model.latent_shape(1, image.shape[0])), generator=generator)
            output = guidance.gradient(
                image[None],
                timesteps=torch.tensor([round(fraction * (model.train_steps - 1))], device=model.device),
                noise=noise.to(model.device),
                posterior_noise=posterior.to(model.device),
                texts=torch.zeros(1, dtype=torch.long, device=model.device),
            )
            found[level, row] = output.gradient[0].cpu()
    return found


def backgrounds(images: Images) -> Images:
    """Images of the median colour of each image's border.

    Three pixels inside: a decoder pads with zeros, and its images are darker at the border.
    """
    inner = images[:, 3:-3, 3:-3]
    frame = torch.cat([inner[:, 0], inner[:, -1], inner[:, :, 0], inner[:, :, -1]], dim=1)
    return frame.median(1).values[:, None, None].expand_as(images)


def regions(images: Images) -> dict[str, Bool[Tensor, "B H W"]]:
    """Masks of the edges, the object and the background of images on a plain background."""
    channels = images.permute(0, 3, 1, 2)
    pool = torch.nn.functional.max_pool2d
    contrast = (pool(channels, 3, 1, 1) + pool(-channels, 3, 1, 1)).amax(1)
    edge = contrast > 0.15
    background = (images - backgrounds(images)).abs().amax(-1) < 0.08
    return {"edges": edge, "object": ~edge & ~background, "background": ~edge & background}


def quantiles(values: Tensor) -> dict[str, float]:
    """Percentiles by name, of at most a million evenly spread values."""
    flat = values.flatten().float().cpu()
    flat = flat[:: -(-len(flat) // (1 << 20))]
    named = {f"p{100 * level:g}": torch.quantile(flat, level).item() for level in QUANTILES}
    return named | {"max": values.max().item()}


def beyond(values: Tensor) -> dict[str, float]:
    """Fraction of the values beyond each threshold."""
    return {f"{threshold:g}": (values > threshold).float().mean().item() for threshold in THRESHOLDS}


def describe(lengths: Float[Tensor, "L B H W"], places: Mapping[str, Tensor]) -> dict[str, Any]:
    """Percentiles and fractions: of all pixels, by noise level, by region."""
    return {
        "all": {**quantiles(lengths), "beyond": beyond(lengths)},
        "by_level": {
            f"{level:g}": {**quantiles(values), "beyond": beyond(values)}
            for level, values in zip(LEVELS, lengths, strict=True)
        },
        "by_place": {
            name: {
                "share": mask.float().mean().item(),
                "beyond": beyond(lengths[:, mask.cpu()]),
                "p50": lengths[:, mask.cpu()].median().item(),
            }
            for name, mask in places.items()
            if mask.any()
        },
    }


def plot(
    path: Path,
    image: Float[Tensor, "H W 3"],
    residuals: Mapping[str, list[Lengths]],
    lengths: Mapping[str, Float[Tensor, "L B H W"]],
) -> None:
    """Plot residuals over the trajectory, fractions beyond thresholds, lengths by noise level, and maps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for name, steps in residuals.items():
        for quantile, style in zip(("p50", "p99", "max"), ("-", "--", ":"), strict=True):
            curve = [max(quantiles(step)[quantile], 1e-4) for step in steps]
            color = {"clean": "C0", "noisy": "C1"}[name]
            axes[0, 0].plot(curve, style, color=color, label=f"{name}, {quantile}")
    axes[0, 0].set(title="residual of a pixel", xlabel="step of the sampler", yscale="log", ylim=(1e-4, 2))
    curves = {f"residual, {name}": torch.stack(steps) for name, steps in residuals.items()}
    curves |= {f"gradient, {name}": values for name, values in lengths.items()}
    grid = torch.logspace(-3, 1, BINS)
    for name, values in curves.items():
        axes[0, 1].plot(grid, [(values > c).float().mean().item() for c in grid], label=name)
    axes[0, 1].set(title="fraction of pixels beyond a length", xlabel="length", xscale="log")
    for level, values in zip(LEVELS, lengths["finished"], strict=True):
        counts = torch.histc(values.clamp(1e-4, 10).log10(), BINS, min=-4, max=1)
        edges = torch.logspace(-4, 1, BINS)
        axes[0, 2].plot(edges, counts / counts.sum(), label=f"t = {level:g}")
    axes[0, 2].set(title="length of the gradient, finished samples", xscale="log", xlabel="length")
    for axis in axes[0]:
        axis.axhline(0.1, color="gray", lw=0.8) if axis is axes[0, 0] else axis.axvline(
            0.1, color="gray", lw=0.8
        )
        axis.legend(fontsize=7)
    mean_residual = torch.stack(residuals["clean"])[:, 0].mean(0).cpu()
    fractions = (lengths["finished"][:, 0] > 0.1).float().mean(0)
    shown = {
        "a sample": image.cpu(),
        "its mean residual (clean)": mean_residual,
        "fraction of levels beyond 0.1": fractions,
    }
    for axis, (title, values) in zip(axes[1], shown.items(), strict=True):
        drawn = axis.imshow(values.numpy(), cmap="inferno")
        axis.set(title=title, xticks=[], yticks=[])
        if values.ndim == 2:
            figure.colorbar(drawn, ax=axis, fraction=0.046)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--vae", help="another VAE's folder or hub id")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="of the sampler")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--guidance-scale", type=float, default=25.0, help="of score distillation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(arguments.model, resolve_device(arguments.device), vae=arguments.vae)
    texts, positive, negative = encode_views(
        loaded, PROMPTS[: arguments.prompts], torch.Generator().manual_seed(arguments.seed)
    )
    finished, residuals = trajectory(
        loaded, positive, negative, size=arguments.size, steps=arguments.steps, seed=arguments.seed
    )
    places = regions(finished)
    starts = {"finished": finished, "empty": backgrounds(finished)}
    scale = arguments.guidance_scale
    lengths = {
        name: length(
            image_gradients(
                loaded,
                positive,
                negative,
                images,
                guidance_scale=scale,
                seed=arguments.seed,
                levels=LEVELS,
            )
        )
        for name, images in starts.items()
    }
    content: dict[str, Any] = {
        **{key: value for key, value in vars(arguments).items() if key != "out"},
        "texts": texts,
        "residuals": {
            name: {**quantiles(torch.stack(steps)), "beyond": beyond(torch.stack(steps))}
            for name, steps in residuals.items()
        },
        "gradients": {name: describe(values, places) for name, values in lengths.items()},
    }
    replace_file(arguments.out / "residuals.json", (json.dumps(content, indent=1) + "\n").encode())
    plot(arguments.out / "residuals.png", finished[0], residuals, lengths)
    print(json.dumps({name: content["residuals"][name] for name in residuals}, indent=1))
    print(json.dumps(content["gradients"]["finished"], indent=1))


if __name__ == "__main__":
    main()
