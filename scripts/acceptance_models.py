"""What an acceptance test measures without a run: the machine, tails of gradients, the time of a step."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from acceptance_runs import Outcome, RunWork, Trial
from acceptance_weights import NOVEL_VIEW, USED, describe, is_half
from benchmark_step import measure_model
from jaxtyping import Float
from measure_residuals import LEVELS, backgrounds, beyond, image_gradients, length, quantiles, trajectory
from sample_images import PROMPTS, LoadedFolder, encode_views, load_model, read_images
from torch import Tensor

from pgc3d.build.models import local_image_model
from pgc3d.diffusion.fast.accelerate import release_decoder
from pgc3d.diffusion.latent import LatentDiffusion
from pgc3d.diffusion.models import load_latent_diffusion
from pgc3d.disk import replace_file
from pgc3d.doctor import examine
from pgc3d.environment import describe_environment
from pgc3d.exporting.turntable import tile
from pgc3d.images import encode_png, resize, to_bytes
from pgc3d.stopwatch import matmul_rate

TAIL = 0.01  # fraction of the lengths that Hill's estimate is made of
SHEET_SIDE = 384
IMAGES, SAMPLER_STEPS = 4, 30
FLOOR = 1e-12  # of a length, so that a ratio is finite


@dataclass(frozen=True)
class MachineWork:
    """The machine, the versions, and the hashes of the weights."""

    aliases: tuple[str, ...] = ()

    def __call__(self, trial: Trial, folder: Path) -> Outcome:
        """Examine the machine as `pgc3d doctor` does, and hash what is there."""
        device = trial.torch_device
        findings = [asdict(finding) for finding in examine()]
        weights = describe(trial.weights, USED, half=is_half(device))
        dtype = torch.float16 if is_half(device) else torch.float32
        rate = matmul_rate(device, dtype, size=8192 if is_half(device) else 512)
        numbers = {
            "broken": float(sum(finding["state"] == "broken" for finding in findings)),
            "matmul_tflops": rate / 1e12,
            "weights_gb": sum(file["bytes"] for model in weights.values() for file in model["files"].values())
            / 1e9,
        }
        return Outcome(
            numbers,
            {"doctor": findings, "weights": weights, "seed": trial.seed} | describe_environment(device),
        )


@dataclass(frozen=True)
class GradientWork:
    """The lengths of gradients, as `measure_residuals.py` measures them, and of the encoder's alone."""

    model: str  # alias

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that it needs."""
        return (self.model,)

    def __call__(self, trial: Trial, folder: Path) -> Outcome:
        """Sample images of prompts, and measure on them, or on the input image of a novel-view model."""
        device = trial.torch_device
        if self.model in NOVEL_VIEW:
            return self._encoder_alone(trial, device)
        loaded = load_model(trial.weights.name(self.model), device)
        guidance = RunWork("texture", self.model, 1).config(trial).last.objectives["color"].guidance
        scale = float(getattr(guidance, "guidance_scale", 1.0))
        numbers, finished = distilled(loaded, trial, guidance_scale=scale)
        shown = [to_bytes(image.cpu()) for image in resize(finished, min(finished.shape[1], SHEET_SIDE))]
        replace_file(folder / "views.png", encode_png(tile(shown, len(shown))))
        return Outcome(finite_of(numbers | encoder_tails(loaded.model, finished, trial.seed)))

    def _encoder_alone(self, trial: Trial, device: torch.device) -> Outcome:
        mini, name = trial.weights.kind == "mini", trial.weights.name(self.model)
        folder = local_image_model(name) if mini else None
        model = load_latent_diffusion(folder or name, device=device)
        file = trial.item().image
        assert file is not None
        images = read_images(file.parent, size=model.resolution)
        return Outcome(finite_of(encoder_tails(model, images, trial.seed)))


def distilled(
    loaded: LoadedFolder, trial: Trial, *, guidance_scale: float
) -> tuple[dict[str, float], Float[Tensor, "B H W 3"]]:
    """Residuals of a sampler, gradient lengths on its samples and on empty images, and the samples."""
    generator, size = torch.Generator().manual_seed(trial.seed), loaded.model.resolution
    count = 1 if trial.tiny else IMAGES
    _, positive, negative = encode_views(loaded, PROMPTS[:count], generator)
    steps = max(3, trial.steps(SAMPLER_STEPS))
    finished, residuals = trajectory(loaded, positive, negative, size=size, steps=steps, seed=trial.seed)
    changes = torch.stack(residuals["clean"])
    numbers = {f"residual_{name}": value for name, value in quantiles(changes).items()}
    numbers["residual_beyond_1"] = beyond(changes)["1"]
    for name, images in {"finished": finished, "empty": backgrounds(finished)}.items():
        found = image_gradients(
            loaded, positive, negative, images,
            guidance_scale=guidance_scale, seed=trial.seed, levels=LEVELS,
        )  # fmt: skip
        numbers |= {f"{name}_{key}": value for key, value in tails(length(found)).items()}
    return numbers, finished


def encoder_tails(model: LatentDiffusion, images: Float[Tensor, "B H W 3"], seed: int) -> dict[str, float]:
    """The lengths of what the encoder makes of normal gradients of the latents, one image at a time."""
    generator, found = torch.Generator().manual_seed(seed), []
    for image in images:
        pixels = image[None].to(model.device).detach().requires_grad_()
        shape = model.latent_shape(1, pixels.shape[1])
        noise, pull = (torch.randn(shape, generator=generator).to(model.device) for _ in range(2))
        with torch.enable_grad():
            latents = model.encode(pixels, noise)
        found.append(length(model.encoder_gradient(pixels, latents, pull)).float().cpu())
    return {f"encoder_{name}": value for name, value in tails(torch.cat(found)).items()}


def tails(lengths: Tensor) -> dict[str, float]:
    """Percentiles of lengths, their ratios, Hill's index of their tail, and fractions beyond bounds."""
    named = quantiles(lengths)
    ratios = {
        "p99_over_p50": named["p99"] / max(named["p50"], FLOOR),
        "max_over_p99": named["max"] / max(named["p99"], FLOOR),
        "hill": hill_index(lengths),
    }
    return named | ratios | {f"beyond_{bound}": part for bound, part in beyond(lengths).items()}


def hill_index(lengths: Tensor, *, fraction: float = TAIL) -> float:
    """Hill's estimate (1975) of the exponent of a tail; small is heavy, and below 2 there is no variance.

    Args:
        lengths: any shape, not negative.
        fraction: of the largest ones.

    Returns:
        The inverse of the mean logarithm of the largest lengths over the largest of the others.
    """
    flat = lengths.flatten().double()
    count = max(2, round(fraction * len(flat)))
    largest = flat.topk(min(count + 1, len(flat))).values.clamp(min=FLOOR)
    return 1.0 / max((largest[:-1] / largest[-1]).log().mean().item(), FLOOR)


def finite_of(numbers: Mapping[str, float]) -> dict[str, float]:
    """The numbers, and whether all of them are finite."""
    return {**numbers, "finite": float(all(map(math.isfinite, numbers.values())))}


@dataclass(frozen=True)
class StepWork:
    """Time and memory of a guidance step with these weights, as `benchmark_step.py` measures them."""

    model: str  # alias
    batches: tuple[int, ...]
    repeats: int = 10

    @property
    def aliases(self) -> tuple[str, ...]:
        """The models that it needs."""
        return (self.model,)

    def __call__(self, trial: Trial, folder: Path) -> Outcome:
        """Alternate diffusers' code and ours, and compare them with float32."""
        device = trial.torch_device
        make = partial(_model_of, trial.weights.name(self.model), device)
        rate = matmul_rate(device, torch.float16 if is_half(device) else torch.float32, size=512)
        repeats = 2 if device.type == "cpu" else self.repeats
        options = Namespace(batches=self.batches, repeats=repeats, budget_seconds=math.inf)
        rows = [row for rows in measure_model(make, options, rate, start=0.0, control=False) for row in rows]
        numbers: dict[str, float] = {}
        for row in rows:
            if row["code"] == "pgc3d":
                numbers |= _of_row(row)
        cosines = {
            name: min(row[name] for row in rows if row["code"] == "pgc3d")
            for name in ("cosine_gradient", "cosine_prediction")
        }
        return Outcome(finite_of(numbers | cosines), {"rows": rows})


def _model_of(name: str, device: torch.device) -> LatentDiffusion:
    model = load_model(name, device).model
    release_decoder(model)  # a step does not use it
    return model


def _of_row(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a batch."""
    batch = row["batch"]
    found = {f"{part}_ms_{batch}": value for part, value in row["ms"].items()}
    found[f"faster_{batch}"] = row["faster"]
    return found if row["bytes"] is None else found | {f"gb_{batch}": row["bytes"] / 1e9}
