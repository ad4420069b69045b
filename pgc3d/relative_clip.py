"""Per-pixel clipping relative to each image's own gradient, and of whole images relative to earlier ones.

A threshold in absolute numbers depends on the guidance scale, the encoder and the timestep. Here a pixel is
bounded by a multiple of the median length over the pixels of its image that have a gradient, which are those
of the object, and an image as a whole by the running median of these medians: no image counts more than a
usual one, whatever its timestep.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.pgc import Norm, Rows, clip_pixelwise, replace_nonfinite

IMAGES = 64  # whose medians the running median is of
PIXELS = 65536  # of an image, at most so many are sorted for its median


class RelativePixelClip:
    """Clip pixels at `factor` times their image's median length, and scale down images above the running one.

    Images are the entries of the first axis, channels the last axis. An image without a gradient stays zero
    and does not count. State are the medians of the last `IMAGES` images.
    """

    def __init__(self, *, factor: float = 4.0, norm: Norm = "linf") -> None:
        """See `RelativeClip`."""
        self.factor, self.norm = factor, norm
        self._medians = torch.full((IMAGES,), torch.nan)

    def __call__(self, gradient: Float[Tensor, "B *S C"]) -> Float[Tensor, "B *S C"]:
        """The clipped gradient, after its images' medians were added to the running ones."""
        return self._clip(gradient, None)

    def clip_rows(self, gradient: Float[Tensor, "b *S C"], rows: Rows) -> Float[Tensor, "b *S C"]:
        """See `pgc.BatchRule.clip_rows`; the running median is that of all images."""
        return self._clip(gradient, rows)

    def _clip(self, gradient: Tensor, rows: Rows | None) -> Tensor:
        clean = replace_nonfinite(gradient)
        medians = median_lengths(clean, self.norm)
        everywhere = medians if rows is None else rows.gather(medians)
        self._medians = torch.cat([self._medians.to(medians), everywhere])[-IMAGES:]
        usual = self._medians.nanmedian()
        shape = (-1, *[1] * (gradient.ndim - 1))
        scale = (usual / medians).clamp(max=1.0).nan_to_num(1.0).reshape(shape)
        threshold = (self.factor * medians).nan_to_num(1.0).reshape(shape)
        clipped = clip_pixelwise(clean, threshold, norm=self.norm)
        return (clipped * scale).to(gradient.dtype)

    def state_dict(self) -> dict[str, Tensor]:
        """The medians of the last images; 0 where there was none, as checkpoints must be finite."""
        return {"medians": self._medians.nan_to_num(0.0)}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Restore the medians from a `state_dict`."""
        medians = state_dict["medians"]
        self._medians = torch.where(medians > 0, medians, torch.nan)


def median_lengths(gradient: Float[Tensor, "B *S C"], norm: Norm) -> Float[Tensor, " B"]:
    """The median of the non-zero pixel lengths of each image, from at most 65536 evenly spread pixels.

    NaN for an image without a gradient. Arithmetic is in float32.
    """
    order = math.inf if norm == "linf" else 2
    length: Tensor = torch.linalg.vector_norm(gradient.float(), order, -1).flatten(1)
    stride = -(-length.shape[1] // PIXELS)
    spread = length if stride == 1 else length[:, :: stride | 1]
    return torch.where(spread > 0, spread, torch.nan).nanmedian(dim=1).values


@dataclass(frozen=True)
class RelativeClip:
    """Per-pixel clipping at a multiple of each image's median, see `RelativePixelClip`."""

    kind: Literal["relative"] = "relative"
    # Of the median of the image's lengths.
    factor: float = field(default=4.0, metadata={"range": {"low": 1e-3, "high": 1e6}})
    norm: Norm = "linf"  # largest channel, or Euclidean length

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"a factor of the median must be positive and finite, got {self.factor}")

    def build(self) -> RelativePixelClip:
        """The rule as a function of a channel-last gradient; its state is part of checkpoints."""
        return RelativePixelClip(factor=self.factor, norm=self.norm)
