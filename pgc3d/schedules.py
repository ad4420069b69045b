"""The noise schedule of a diffusion model, scalars annealed over a run, and random timesteps."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.errors import ConfigError


@dataclass(frozen=True)
class PiecewiseLinear:
    """A scalar over the progress of a run, constant before the first and after the last knot.

    `knots` is a flat tuple, as configurations have it: (value,) for a constant, else alternating progress in
    [0, 1] and value, as (0.0, 0.98, 0.5, 0.6) for "from 0.98 at the start to 0.6 at half of the run".
    """

    knots: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(knot) for knot in self.knots):
            raise ValueError(f"a schedule must be finite, got {self.knots}")
        if len(self.knots) != 1 and (len(self.knots) < 2 or len(self.knots) % 2):
            raise ValueError(
                f"a schedule must be (value,) or (progress, value, progress, value, ...), got {self.knots}"
            )
        progress = self.knots[::2] if len(self.knots) > 1 else (0.0,)
        if not 0.0 <= progress[0] <= progress[-1] <= 1.0:
            raise ValueError(f"progress in a schedule must lie in [0, 1], got {progress}")
        if any(later <= earlier for earlier, later in pairwise(progress)):
            raise ValueError(f"progress in a schedule must increase, got {progress}")

    @property
    def values(self) -> tuple[float, ...]:
        """The values at the knots, whose range all values of the schedule are in."""
        return self.knots[1::2] if len(self.knots) > 1 else self.knots

    def __call__(self, progress: float) -> float:
        """The value at `progress`, in [0, 1]."""
        if len(self.knots) == 1 or progress <= self.knots[0]:
            return self.values[0]
        for (start, left), (end, right) in pairwise(zip(self.knots[::2], self.knots[1::2], strict=True)):
            if progress < end:
                return left + (right - left) * (progress - start) / (end - start)
        return self.values[-1]


BETAS = ("beta_schedule", "beta_start", "beta_end")


def alphas_cumprod(scheduler_config: Mapping[str, Any]) -> Float[Tensor, " T"]:
    """alpha_bar_t of every training timestep (DDPM, arXiv 2006.11239), in float32 from a float64 product.

    Where it is rescaled to end at zero, the last timestep is left out: its latents are noise alone, and its
    ratio of noise to signal is infinite.

    Args:
        scheduler_config: content of a checkpoint's `scheduler_config.json`.

    Raises:
        ConfigError: the noise schedule is not stated, or not implemented.
    """
    steps = int(scheduler_config.get("num_train_timesteps", 1000))
    if missing := [name for name in BETAS if name not in scheduler_config]:
        raise ConfigError(
            f"the checkpoint's scheduler must state {', '.join(missing)}, but its "
            f"{scheduler_config.get('_class_name', 'configuration')} does not; use a model with DDPM's noise"
        )
    kind, start, end = (scheduler_config[name] for name in BETAS)
    if scheduler_config.get("trained_betas") is not None:
        raise ConfigError(
            "the checkpoint's scheduler must have no trained_betas, but has some; choose another model"
        )
    if kind == "scaled_linear":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise ConfigError(
            f"beta_schedule must be 'scaled_linear' or 'linear', got {kind!r} in the checkpoint"
        )
    alpha_bar = torch.cumprod(1.0 - betas, dim=0)
    if scheduler_config.get("rescale_betas_zero_snr"):
        alpha_bar = rescale_to_zero_terminal(alpha_bar)[:-1]
    return alpha_bar.float()


def rescale_to_zero_terminal(alpha_bar: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """alpha_bar with zero terminal signal-to-noise ratio (arXiv 2305.08891, algorithm 1).

    Its square root is shifted and scaled so that the first value stays and the last one is zero.
    """
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def add_noise(
    latents: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], alpha_bar: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Noisy latents z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps (DDPM, arXiv 2006.11239, eq. 4).

    diffusers' own `add_noise` is not used: that of some schedulers reverses the timesteps unless they were
    set up for sampling.

    Args:
        latents: z.
        noise: eps, standard normal.
        alpha_bar: abar_t of each item's timestep, in [0, 1].
    """
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * latents + (1.0 - alpha_bar).sqrt() * noise


def velocity(
    latents: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], alpha_bar: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The target of a v prediction: sqrt(abar) eps - sqrt(1 - abar) z (arXiv 2202.00512, section 4)."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * latents


def epsilon_from_velocity(
    velocity: Float[Tensor, "B C H W"], noisy: Float[Tensor, "B C H W"], alpha_bar: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The noise of a v prediction: sqrt(abar) v + sqrt(1 - abar) z_t (arXiv 2202.00512, appendix D)."""
    alpha_bar = alpha_bar[:, None, None, None]
    return alpha_bar.sqrt() * velocity + (1.0 - alpha_bar).sqrt() * noisy


def clean_latents(
    noisy: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], alpha_bar: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """The latents without their noise: (z_t - sqrt(1 - abar) eps) / sqrt(abar), abar in (0, 1]."""
    alpha_bar = alpha_bar[:, None, None, None]
    return (noisy - (1.0 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def ddim_step(
    noisy: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    alpha_bar: Float[Tensor, " B"],
    next_alpha_bar: Float[Tensor, " B"],
) -> Float[Tensor, "B C H W"]:
    """The latents of a lower noise level, without new noise (DDIM, arXiv 2010.02502, eq. 12, sigma = 0).

    Args:
        noisy: latents z_t.
        noise: predicted from them.
        alpha_bar: abar of their timesteps, in (0, 1].
        next_alpha_bar: abar of the lower noise level; 1 for the clean latents.
    """
    return add_noise(clean_latents(noisy, noise, alpha_bar), noise, next_alpha_bar)


def check_timestep_range(low: PiecewiseLinear, high: PiecewiseLinear) -> None:
    """Raise ValueError unless 0 <= low <= high <= 1 at any progress: fractions of the training timesteps."""
    if not (min(low.values) >= 0.0 and max(high.values) <= 1.0):
        raise ValueError(f"t_min and t_max must lie in [0, 1], got {low.values} and {high.values}")
    knots = {0.0, 1.0, *low.knots[:-1:2], *high.knots[:-1:2]}
    for progress in sorted(knots):
        if low(progress) > high(progress):
            raise ValueError(
                f"t_min must not exceed t_max, got {low(progress)} > {high(progress)} at progress {progress}"
            )


def dream_time(
    low: float,
    high: float,
    *,
    flat: tuple[float, float] = (0.5, 0.8),
    spread: tuple[float, float] = (0.1, 0.3),
    train_steps: int = 1000,
) -> PiecewiseLinear:
    """The timestep over progress, as a fraction, by DreamTime (arXiv 2306.12422).

    Timesteps fall from `high` to `low`, and a run spends on each a part that is proportional to its weight
    p(t): 1 within `flat`, beside it a Gaussian of the standard deviations `spread`. At the progress
    sum_{t' >= t} p(t') the timestep is t; between two such knots it is the nearest one once it is rounded.
    The paper's other factor, a weight by the model's noise schedule, is left out, as in the code of PGC-3D.

    Args:
        low: end, included.
        high: start, excluded.
        flat: timesteps of weight 1.
        spread: below and above them.
        train_steps: of the model; `low` and `high` are fractions of them.
    """
    steps = torch.arange(round(low * train_steps), round(high * train_steps), dtype=torch.float64).flip(0)
    fraction = steps / train_steps
    below, above = (flat[0] - fraction).clamp_min(0.0), (fraction - flat[1]).clamp_min(0.0)
    weights = torch.exp(-0.5 * ((below / spread[0]) ** 2 + (above / spread[1]) ** 2))
    progress = (weights.cumsum(0) / weights.sum()).clamp_max(1.0)
    moves = torch.ones_like(progress, dtype=torch.bool)  # a timestep whose weight is rounded away has no part
    moves[1:] = progress[1:] > progress[:-1]
    return PiecewiseLinear(tuple(torch.stack([progress, fraction], dim=1)[moves].flatten().tolist()))


def sample_timesteps(
    batch: int, low: float, high: float, *, train_steps: int, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Random integer timesteps on the CPU, uniform in a range.

    Args:
        batch: number of timesteps B.
        low: lower end, included, as a fraction of `train_steps`.
        high: upper end, included, as a fraction of `train_steps`.
        train_steps: number of timesteps that the model was trained with.
        generator: on the CPU.
    """
    first = min(round(low * train_steps), train_steps - 1)
    # The maximum, because equal fractions may be rounded to last < first.
    last = max(min(round(high * train_steps), train_steps - 1), first)
    return torch.randint(first, last + 1, (batch,), generator=generator)
