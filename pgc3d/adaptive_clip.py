"""Per-pixel clipping at a threshold that follows the gradient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.pgc import Norm, Rows, nonzero_quantile, polar, sampled

_FRACTION = {"range": {"low": 0.0, "high": 1.0, "above": True, "below": True}}


class AdaptivePixelClip:
    """Clip per pixel at a threshold that follows the gradient: a running quantile of the non-zero lengths.

    The threshold is an exponential mean of each call's quantile, in (0, 1), with a bias correction, so that
    the first call uses its own quantile. It covers about 1 / (1 - decay) calls. Few are better: the gradient
    of a first image may be tens of times as long as all later ones, and until the mean has decayed nothing
    is clipped, which takes 50 calls with 0.9 and 600 with 0.99. A gradient of zeros does not change the
    threshold; before the first other one the threshold is 0, and nothing is clipped.
    """

    def __init__(
        self, *, quantile: float = 0.9, decay: float = 0.9, norm: Norm = "linf", dim: int = -1
    ) -> None:
        self.quantile, self.decay, self.norm, self.dim = quantile, decay, norm, dim
        self._total = torch.zeros(())
        self._weight = torch.zeros(())

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """The current threshold, on the device of the last gradient."""
        return self._total / torch.where(self._weight > 0, self._weight, 1.0)

    def __call__(self, gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The gradient clipped at the threshold, after its quantile was added to the running mean."""
        return self._clip(gradient, None)

    def clip_rows(self, gradient: Float[Tensor, "b *S"], rows: Rows) -> Float[Tensor, "b *S"]:
        """See `BatchRule.clip_rows`; the quantile is that of all images."""
        return self._clip(gradient, rows)

    def _clip(self, gradient: Tensor, rows: Rows | None) -> Tensor:
        clean, direction, length = polar(gradient, self.norm, self.dim)
        self._update(length, rows)
        threshold = self.threshold
        long = (length > threshold) & (self._weight > 0)  # weight 0: the sample had zeros alone
        return torch.where(long, direction * threshold, clean).to(gradient.dtype)

    def _update(self, length: Tensor, rows: Rows | None) -> None:
        ordered = sampled(length, rows).float().sort().values
        value = nonzero_quantile(ordered, ordered == 0, self.quantile)
        rate = torch.where(value > 0, 1 - self.decay, 0.0)
        self._total = torch.lerp(self._total.to(value.device), value, rate)
        self._weight = torch.lerp(self._weight.to(value.device), torch.ones_like(value), rate)

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the running mean."""
        return {"total": self._total.clone(), "weight": self._weight.clone()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the running mean from a `state_dict`."""
        self._total, self._weight = state_dict["total"].clone(), state_dict["weight"].clone()


@dataclass(frozen=True)
class AdaptiveClip:
    """Per-pixel clipping at a running quantile of the gradient's lengths."""

    kind: Literal["adaptive"] = "adaptive"
    quantile: float = field(default=0.9, metadata=_FRACTION)  # of the non-zero lengths
    # Of the running mean at each call.
    decay: float = field(default=0.9, metadata={"range": {"low": 0.0, "high": 1.0, "below": True}})
    norm: Norm = "linf"  # largest channel, or Euclidean length

    def __post_init__(self) -> None:
        if not (0 < self.quantile < 1 and 0 <= self.decay < 1):
            raise ValueError(
                f"quantile must lie in (0, 1) and decay in [0, 1), got {self.quantile} and {self.decay}"
            )

    def build(self) -> AdaptivePixelClip:
        """The rule as a function of a channel-last gradient; its state is part of checkpoints."""
        return AdaptivePixelClip(quantile=self.quantile, decay=self.decay, norm=self.norm)
