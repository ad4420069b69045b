"""Score formulas: gradients on latents from a model's noise predictions. Pure functions.

`guidance_scale` is s in uncond + s (cond - uncond), as in diffusers. In code that computes
cond + s (cond - uncond), the same guidance has the scale s - 1. Every formula is one of each image alone:
norms, products and deviations are over the channels and pixels of an image.
"""

from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Weighting = Literal["sigma2", "sqrt_abar", "uniform"]
Latents = Float[Tensor, "B C H W"]


def weight(alphas_cumprod: Float[Tensor, " B"], weighting: Weighting) -> Float[Tensor, " B"]:
    """w(t) as a function of abar_t.

    "sigma2" is DreamFusion's 1 - abar (arXiv 2209.14988), "sqrt_abar" Fantasia3D's sqrt(abar) (1 - abar)
    (arXiv 2303.13873), "uniform" is 1.
    """
    match weighting:
        case "sigma2":
            return 1.0 - alphas_cumprod
        case "sqrt_abar":
            return alphas_cumprod.sqrt() * (1.0 - alphas_cumprod)
        case "uniform":
            return alphas_cumprod.new_ones(()).expand_as(alphas_cumprod)
        case _:
            assert_never(weighting)


def classifier_free_guidance(unconditional: Latents, conditional: Latents, guidance_scale: float) -> Latents:
    """Uncond + s (cond - uncond) (arXiv 2207.12598, eq. 6, with s = 1 + w)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def sds_gradient(guided: Latents, noise: Latents, weights: Float[Tensor, " B"]) -> Latents:
    """w(t) (eps_hat - eps), the gradient of score distillation sampling (arXiv 2209.14988, eq. 3)."""
    return weights[:, None, None, None] * (guided - noise)


def csd_gradient(
    conditional: Latents,
    terms: Sequence[tuple[float, Latents]],
    weights: Float[Tensor, " B"],
) -> Latents:
    """w(t) (cond + sum_i k_i eps_i), the gradient of classifier score distillation (arXiv 2310.19415).

    With one term (-1, uncond) it is w(t) (cond - uncond). The released code has two, of a negative prompt and
    of the empty one, whose coefficients change over the run and add up to -1.

    Args:
        conditional: the noise predicted for the prompt.
        terms: coefficients, and the noise predicted for other prompts.
        weights: w(t).
    """
    difference = conditional
    for coefficient, other in terms:
        difference = difference + coefficient * other
    return weights[:, None, None, None] * difference


def nfsd_gradient(
    unconditional: Latents,
    conditional: Latents,
    bad: Latents,
    low_noise: Bool[Tensor, " B"],
    weights: Float[Tensor, " B"],
    guidance_scale: float = 7.5,
) -> Latents:
    """w(t) (delta_D + s (cond - uncond)), the gradient of noise-free score distillation (arXiv 2310.17590).

    delta_D, the part of uncond that corrects the image, is uncond at low noise and uncond - bad elsewhere.

    Args:
        unconditional: the noise predicted for the empty prompt.
        conditional: for the prompt.
        bad: for a prompt that describes images of bad quality.
        low_noise: which images have a timestep below 0.2 of all.
        weights: w(t).
        guidance_scale: s.
    """
    correction = unconditional - torch.where(low_noise[:, None, None, None], 0.0, bad)
    return weights[:, None, None, None] * (correction + guidance_scale * (conditional - unconditional))


def ssd_gradient(
    unconditional: Latents,
    conditional: Latents,
    noise: Latents,
    low_noise: Bool[Tensor, " B"],
    weights: Float[Tensor, " B"],
) -> Latents:
    """The gradient of stable score distillation (arXiv 2312.09305): h, and at low noise ||h|| / ||n|| n.

    h = w(t) (cond - uncond) has no noise term, and n = cond - r eps is the predicted noise without its
    component along the noise, r = <cond, eps> / ||eps||^2.

    Two things differ from the code that was released with PGC-3D. It divides the product by ||eps||, which
    is no projection: for latents of N numbers it removes sqrt(N) times the component. And its products and
    norms are sums over the batch, by which the images of a batch depend on each other.

    Args:
        unconditional: the noise predicted for the empty prompt.
        conditional: for the prompt.
        noise: eps.
        low_noise: which images have a timestep of at most 0.1 of all.
        weights: w(t).
    """
    h = weights[:, None, None, None] * (conditional - unconditional)
    n = perpendicular(conditional, noise)
    scaled = _norm(h) / _norm(n).clamp_min(1e-12) * n
    return torch.where(low_noise[:, None, None, None], scaled, h)


def reconstruction_gradient(
    latents: Latents,
    guided: Latents,
    conditional: Latents,
    weights: Float[Tensor, " B"],
    rescale: float = 0.5,
) -> Latents:
    """w(t) (z - x0'), the gradient of MVDream's loss on the clean latents (arXiv 2308.16512).

    x0' = (rescale std(conditional) / std(guided) + 1 - rescale) guided has less of the saturation of a large
    guidance scale (the rescaling of arXiv 2305.08891, section 3.4). With rescale 0 the gradient is that of
    SDS, times sqrt((1 - abar) / abar).

    Args:
        latents: z.
        guided: clean latents by classifier-free guidance.
        conditional: clean latents by the prompt's prediction alone.
        weights: w(t); 1 in MVDream.
        rescale: in [0, 1].
    """

    def deviation(values: Latents) -> Tensor:
        return values.std(dim=(1, 2, 3), keepdim=True)

    factor = deviation(conditional) / deviation(guided).clamp_min(1e-8)
    return weights[:, None, None, None] * (latents - (rescale * factor + 1.0 - rescale) * guided)


def perpendicular(vector: Latents, direction: Latents) -> Latents:
    """The component of each image's vector that is orthogonal to its direction.

    The squared length of the direction is at least 1e-6 (as in the code of arXiv 2304.04968).
    """
    product = (vector * direction).sum(dim=(1, 2, 3), keepdim=True)
    square = direction.square().sum(dim=(1, 2, 3), keepdim=True)
    return vector - product / square.clamp_min(1e-6) * direction


def perp_neg(
    unconditional: Latents,
    conditional: Latents,
    negatives: Sequence[Latents],
    weights: Float[Tensor, "B N"],
) -> Latents:
    """The conditional prediction with Perp-Neg (arXiv 2304.04968): cond + sum_i w_i perp_i.

    perp_i is the component of negative_i - uncond orthogonal to cond - uncond: what the negative prompt adds
    that the prompt itself does not have.

    Args:
        unconditional: the noise predicted for the empty prompt.
        conditional: for the prompt.
        negatives: for N prompts that the image must not show.
        weights: w_i of each image, negative.
    """
    direction = conditional - unconditional
    for index, negative in enumerate(negatives):
        factor = weights[:, index, None, None, None]
        conditional = conditional + factor * perpendicular(negative - unconditional, direction)
    return conditional


def _norm(values: Latents) -> Float[Tensor, "B 1 1 1"]:
    return values.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
