"""Score formulas: what the latents should change by, given what the model predicts. Pure functions.

`guidance_scale` has one meaning here: uncond + s (cond - uncond), as in diffusers. Code that writes
cond + s (cond - uncond) means s + 1.
"""

from typing import Literal, assert_never

from jaxtyping import Float
from torch import Tensor

Weighting = Literal["sigma2", "sqrt_abar", "uniform"]
Latents = Float[Tensor, "B C H W"]


def weight(signal: Float[Tensor, " B"], weighting: Weighting) -> Float[Tensor, " B"]:
    """w(t) as a function of abar_t.

    "sigma2" is DreamFusion's 1 - abar (arXiv 2209.14988), "sqrt_abar" Fantasia3D's sqrt(abar) (1 - abar)
    (arXiv 2303.13873), "uniform" is 1.
    """
    match weighting:
        case "sigma2":
            return 1.0 - signal
        case "sqrt_abar":
            return signal.sqrt() * (1.0 - signal)
        case "uniform":
            return signal.new_ones(()).expand_as(signal)
        case _:
            assert_never(weighting)


def classifier_free_guidance(unconditional: Latents, conditional: Latents, guidance_scale: float) -> Latents:
    """Uncond + s (cond - uncond) (arXiv 2207.12598, eq. 6, with s = 1 + w)."""
    return unconditional + guidance_scale * (conditional - unconditional)


def sds_gradient(guided: Latents, noise: Latents, weights: Float[Tensor, " B"]) -> Latents:
    """w(t) (eps_hat - eps), the gradient of score distillation sampling (arXiv 2209.14988, eq. 3)."""
    return weights[:, None, None, None] * (guided - noise)


def csd_gradient(unconditional: Latents, conditional: Latents, weights: Float[Tensor, " B"]) -> Latents:
    """w(t) (cond - uncond), the gradient of classifier score distillation (arXiv 2310.19415)."""
    return weights[:, None, None, None] * (conditional - unconditional)
