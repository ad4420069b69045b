"""Score formulas: gradients on latents from a model's noise predictions. Pure functions.

`guidance_scale` is s in uncond + s (cond - uncond), as in diffusers. In code that computes
cond + s (cond - uncond), the same guidance has the scale s - 1.
"""

from typing import Literal, assert_never

from jaxtyping import Float
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


def csd_gradient(unconditional: Latents, conditional: Latents, weights: Float[Tensor, " B"]) -> Latents:
    """w(t) (cond - uncond), the gradient of classifier score distillation (arXiv 2310.19415)."""
    return weights[:, None, None, None] * (conditional - unconditional)
