"""Noise levels of a diffusion model, annealed scalars, and which timesteps a step looks at."""

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

    `knots` is flat so that a config can hold it: (value,) for a constant, else alternating progress and
    value, as in (0.0, 0.98, 0.5, 0.6) for "from 0.98 at the start to 0.6 at half time".
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
        """The values at the knots; the schedule never leaves their range."""
        return self.knots[1::2] if len(self.knots) > 1 else self.knots

    def __call__(self, progress: float) -> float:
        if len(self.knots) == 1 or progress <= self.knots[0]:
            return self.values[0]
        for (start, left), (end, right) in pairwise(zip(self.knots[::2], self.knots[1::2], strict=True)):
            if progress < end:
                return left + (right - left) * (progress - start) / (end - start)
        return self.values[-1]


BETAS = ("beta_schedule", "beta_start", "beta_end")


def noise_levels(scheduler_config: Mapping[str, Any]) -> Float[Tensor, " T"]:
    """Signal levels abar_t of a checkpoint's `scheduler_config.json`, in float32 from a float64 product.

    Where the levels are rescaled to end at zero signal, the last one is left out: nothing of the picture is
    in it, and its ratio of noise to signal is infinite.

    Raises:
        ConfigError: the checkpoint uses a noise schedule that is not implemented, or does not say which.
    """
    steps = int(scheduler_config.get("num_train_timesteps", 1000))
    if missing := [name for name in BETAS if name not in scheduler_config]:
        raise ConfigError(
            f"the checkpoint's scheduler must state {', '.join(missing)}, but its "
            f"{scheduler_config.get('_class_name', 'configuration')} does not; take a model with DDPM's noise"
        )
    kind, start, end = (scheduler_config[name] for name in BETAS)
    if scheduler_config.get("trained_betas") is not None:
        raise ConfigError("the checkpoint's scheduler must have plain betas, got trained ones")
    if kind == "scaled_linear":
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64).square()
    elif kind == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float64)
    else:
        raise ConfigError(f"beta_schedule must be 'scaled_linear' or 'linear', the checkpoint has {kind!r}")
    signal = torch.cumprod(1.0 - betas, dim=0)
    if scheduler_config.get("rescale_betas_zero_snr"):
        signal = rescale_to_zero_terminal(signal)[:-1]
    return signal.float()


def rescale_to_zero_terminal(signal: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """Levels whose square root is shifted and scaled so that the first stays and the last is zero.

    (arXiv 2305.08891, algorithm 1.)
    """
    root = signal.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()


def add_noise(
    latents: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], signal: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """z_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps (DDPM, arXiv 2006.11239, eq. 4); `signal` is abar_t.

    The formula stands here because `add_noise` of some samplers reverses the level unless they are set up for
    sampling first.
    """
    signal = signal[:, None, None, None]
    return signal.sqrt() * latents + (1.0 - signal).sqrt() * noise


def velocity(
    latents: Float[Tensor, "B C H W"], noise: Float[Tensor, "B C H W"], signal: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """What a v prediction aims at: sqrt(abar) eps - sqrt(1 - abar) z (arXiv 2202.00512, section 4)."""
    signal = signal[:, None, None, None]
    return signal.sqrt() * noise - (1.0 - signal).sqrt() * latents


def epsilon_from_velocity(
    velocity: Float[Tensor, "B C H W"], noisy: Float[Tensor, "B C H W"], signal: Float[Tensor, " B"]
) -> Float[Tensor, "B C H W"]:
    """Noise of a v prediction: sqrt(abar) v + sqrt(1 - abar) z_t (arXiv 2202.00512, appendix D)."""
    signal = signal[:, None, None, None]
    return signal.sqrt() * velocity + (1.0 - signal).sqrt() * noisy


def ddim_step(
    noisy: Float[Tensor, "B C H W"],
    noise: Float[Tensor, "B C H W"],
    signal: Float[Tensor, " B"],
    next_signal: Float[Tensor, " B"],
) -> Float[Tensor, "B C H W"]:
    """From one noise level to a lower one without new noise (DDIM, arXiv 2010.02502, eq. 12, sigma = 0).

    `noise` is the predicted noise; the signals are abar of both levels, 1 for the picture itself.
    """
    signal = signal[:, None, None, None]
    clean = (noisy - (1.0 - signal).sqrt() * noise) / signal.sqrt()
    return add_noise(clean, noise, next_signal)


def check_timestep_range(low: PiecewiseLinear, high: PiecewiseLinear) -> None:
    """Raise ValueError unless 0 <= low <= high <= 1 all the time, as fractions of the training steps."""
    if not (min(low.values) >= 0.0 and max(high.values) <= 1.0):
        raise ValueError(f"t_min and t_max must lie in [0, 1], got {low.values} and {high.values}")
    knots = {0.0, 1.0, *low.knots[:-1:2], *high.knots[:-1:2]}
    for progress in sorted(knots):
        if low(progress) > high(progress):
            raise ValueError(
                f"t_min must not exceed t_max, got {low(progress)} > {high(progress)} at progress {progress}"
            )


def sample_timesteps(
    batch: int, low: float, high: float, *, train_steps: int, generator: torch.Generator
) -> Int[Tensor, " B"]:
    """Integer timesteps, uniform in [low, high] (fractions, both ends included), on the CPU."""
    first = min(round(low * train_steps), train_steps - 1)
    last = max(min(round(high * train_steps), train_steps - 1), first)  # schedules that touch may round apart
    return torch.randint(first, last + 1, (batch,), generator=generator)
