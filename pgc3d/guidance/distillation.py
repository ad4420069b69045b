"""What all score distillation shares: draw noise, predict it, and pull the score back to the image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.diffusion.latent import LatentDiffusion, Latents
from pgc3d.diffusion.linear_encoder import LinearEncoder
from pgc3d.guidance import score
from pgc3d.schedules import add_noise, sample_timesteps
from pgc3d.types import GuidanceOutput, Step

Formula = Literal["sds", "csd"]
Predict = Callable[[Latents, Tensor], tuple[Latents, Latents]]  # (z_t, t) -> (eps_uncond, eps_cond)


@dataclass(frozen=True)
class NoiseSample:
    """The random numbers of a step for its B images, on the model's device."""

    timesteps: Int[Tensor, " B"]
    noise: Float[Tensor, "B C h w"]
    posterior_noise: Float[Tensor, "B C h w"]


def draw(
    model: LatentDiffusion, batch: int, side: int, levels: tuple[float, float], step: Step
) -> NoiseSample:
    """A timestep between the two fractions `levels`, and noise, for every image of `side` pixels.

    The numbers come from the step's CPU generator, so that every device sees the same ones.
    """
    generator = step.generator("noise")
    timesteps = sample_timesteps(batch, *levels, train_steps=model.train_steps, generator=generator)
    noise, posterior = torch.randn((2, *model.latent_shape(batch, side)), generator=generator)
    return NoiseSample(
        timesteps=_send(timesteps, model.device),
        noise=_send(noise, model.device),
        posterior_noise=_send(posterior, model.device),
    )


def score_latents(
    model: LatentDiffusion,
    latents: Latents,
    sample: NoiseSample,
    predict: Predict,
    *,
    guidance_scale: float,
    formula: Formula = "sds",
    weighting: score.Weighting = "sigma2",
) -> Latents:
    """The latent gradient w(t) (eps_hat - eps), or its variant of `formula`."""
    signal = model.alphas_cumprod[sample.timesteps]
    unconditional, conditional = predict(add_noise(latents, sample.noise, signal), sample.timesteps)
    weights = score.weight(signal, weighting)
    if formula == "csd":
        return score.csd_gradient(unconditional, conditional, weights)
    guided = score.classifier_free_guidance(unconditional, conditional, guidance_scale)
    return score.sds_gradient(guided, sample.noise, weights)


def distill(
    model: LatentDiffusion,
    image: Float[Tensor, "B H W 3"],
    sample: NoiseSample,
    score_of: Callable[[Latents], Latents],
    *,
    linear_encoder: LinearEncoder | None = None,
) -> GuidanceOutput:
    """The gradient on the images for given noise; images do not influence each other.

    d loss / d image = J^T score_of(z) with the Jacobian J of the encoder; the UNet's own Jacobian is left out
    (arXiv 2209.14988, eq. 3). `linear_encoder` takes the encoder's place in J.
    """
    image = image.detach().requires_grad_()
    with torch.set_grad_enabled(linear_encoder is None):
        latents = model.encode(image, sample.posterior_noise)
    latent_gradient = score_of(latents.detach())
    if linear_encoder is None:
        gradient = model.encoder_gradient(image, latents, latent_gradient)
    else:
        gradient = linear_encoder.pull_back(latent_gradient, image.shape[1:3])
    return GuidanceOutput(
        gradient=gradient,
        metrics={
            "timestep": sample.timesteps.float().mean(),
            "latent_gradient": latent_gradient.flatten(1).norm(dim=1).mean(),
        },
    )


def _send(values: Tensor, device: torch.device) -> Tensor:
    """To the device without waiting for it."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
