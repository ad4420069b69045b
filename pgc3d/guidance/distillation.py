"""Common steps of score distillation: noise samples, latent gradients, and their gradient on the image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from pgc3d.diffusion.latent import LatentDiffusion, Latents
from pgc3d.diffusion.linear_encoder import LinearEncoder
from pgc3d.guidance import score
from pgc3d.guidance.formulas import Formula, Predictions, SdsFormula
from pgc3d.schedules import add_noise, sample_timesteps
from pgc3d.types import GuidanceOutput, Step

# (z_t, t) -> (eps_uncond, eps_cond, those of the formula's own texts)
Predict = Callable[[Latents, Tensor], tuple[Latents, ...]]


@dataclass(frozen=True)
class NoiseSample:
    """The random numbers of a step for its B images, on the model's device."""

    timesteps: Int[Tensor, " B"]
    noise: Float[Tensor, "B C h w"]
    posterior_noise: Float[Tensor, "B C h w"]

    @classmethod
    def split(cls, inputs: Mapping[str, Any]) -> "tuple[NoiseSample, dict[str, Any]]":
        """The sample among a guidance's inputs, and the other inputs."""
        own = {item.name: inputs[item.name] for item in fields(cls)}
        return cls(**own), {name: value for name, value in inputs.items() if name not in own}


def draw(
    model: LatentDiffusion, batch: int, side: int, timestep_range: tuple[float, float], step: Step
) -> NoiseSample:
    """Random timesteps and noise for every image of a batch.

    They are drawn by the step's CPU generator, and for the views of all processes, so that they are the same
    on every device and for every number of processes.

    Args:
        model: gives the number of timesteps, the shape of the latents and the device.
        batch: number of images of this process.
        side: of the images, in pixels.
        timestep_range: lowest and highest timestep as fractions of the model's number of timesteps.
        step: of the optimisation; seeds the generator.
    """
    generator, (total, own) = step.generator("noise"), step.rows(batch)
    timesteps = sample_timesteps(total, *timestep_range, train_steps=model.train_steps, generator=generator)
    noise, posterior = torch.randn((2, *model.latent_shape(total, side)), generator=generator)
    return NoiseSample(
        timesteps=send(timesteps[own], model.device),
        noise=send(noise[own], model.device),
        posterior_noise=send(posterior[own], model.device),
    )


def predict_noise(
    model: LatentDiffusion, latents: Latents, sample: NoiseSample, predict: Predict
) -> Predictions:
    """A model's predictions for the noisy latents of a sample.

    Args:
        model: for its noise schedule.
        latents: z.
        sample: timesteps and noise.
        predict: the predicted noise (eps_uncond, eps_cond, ...) of (z_t, t).
    """
    alphas_cumprod = model.alphas_cumprod[sample.timesteps]
    noisy = add_noise(latents, sample.noise, alphas_cumprod)
    unconditional, conditional, *others = predict(noisy, sample.timesteps)
    return Predictions(
        latents=latents,
        noisy=noisy,
        noise=sample.noise,
        alphas_cumprod=alphas_cumprod,
        time=sample.timesteps / model.train_steps,
        unconditional=unconditional,
        conditional=conditional,
        others=tuple(others),
    )


def score_latents(
    model: LatentDiffusion,
    latents: Latents,
    sample: NoiseSample,
    predict: Predict,
    *,
    guidance_scale: float,
    formula: Formula = SdsFormula(),  # noqa: B008 - immutable
    weighting: score.Weighting = "sigma2",
    progress: float = 0.0,
) -> Latents:
    """The gradient on latents by a formula, w(t) (eps_hat - eps) by default.

    Args:
        model: for its noise schedule.
        latents: z.
        sample: timesteps and noise.
        predict: see `predict_noise`.
        guidance_scale: s in uncond + s (cond - uncond), for the formulas that have none of their own.
        formula: see `formulas`.
        weighting: w(t), see `score.weight`.
        progress: of the run, in [0, 1].
    """
    found = predict_noise(model, latents, sample, predict)
    weights = score.weight(found.alphas_cumprod, weighting)
    return formula.gradient(found, weights, guidance_scale=guidance_scale, progress=progress)


def distill(
    model: LatentDiffusion,
    image: Float[Tensor, "B H W 3"],
    sample: NoiseSample,
    score_of: Callable[[Latents], Latents],
    *,
    linear_encoder: LinearEncoder | None = None,
) -> GuidanceOutput:
    """The gradient on the images for given noise; images do not influence each other.

    d loss / d image = J^T score_of(z) with the Jacobian J of the encoder; the UNet's Jacobian is omitted
    (arXiv 2209.14988, eq. 3).

    Args:
        model: whose VAE encodes the images.
        image: sRGB in [0, 1].
        sample: the noise of the VAE's posterior.
        score_of: the gradient on latents z.
        linear_encoder: replaces the encoder in J.
    """
    image = image.detach().requires_grad_()
    with torch.set_grad_enabled(linear_encoder is None):
        latents = model.encode(image, sample.posterior_noise)
    latent_gradient = score_of(latents.detach())
    if linear_encoder is None:
        gradient = model.encoder_gradient(image, latents, latent_gradient)
    else:
        gradient = linear_encoder.pull_back(latent_gradient, image.shape[1:3])
    return GuidanceOutput(gradient=gradient, metrics=_measurements(sample, latent_gradient))


def distill_latents(
    image: Float[Tensor, "B h w C"], sample: NoiseSample, score_of: Callable[[Latents], Latents]
) -> GuidanceOutput:
    """The gradient on images that are latents themselves, without an encoder: that of the latents.

    Args:
        image: as many channels as the latents, which it equals.
        sample: timesteps, for the metrics.
        score_of: the gradient on latents z.
    """
    latent_gradient = score_of(image.detach().permute(0, 3, 1, 2))
    return GuidanceOutput(
        gradient=latent_gradient.permute(0, 2, 3, 1), metrics=_measurements(sample, latent_gradient)
    )


def _measurements(sample: NoiseSample, latent_gradient: Latents) -> dict[str, Tensor]:
    return {
        "timestep": sample.timesteps.float().mean(),
        "latent_gradient": latent_gradient.flatten(1).norm(dim=1).mean(),
    }


def send(values: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """A copy of a host tensor on a device, asynchronous on CUDA."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
