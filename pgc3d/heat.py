"""Numbers of pixels as colours, and pixels large enough to be seen."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CELL = 192  # pixels, the least side of a picture on a sheet
HEAT = ((0, 0, 4), (81, 18, 124), (183, 55, 121), (252, 137, 97), (252, 253, 191))  # dark to light, sRGB


def heat_colors(values: Float[Tensor, "H W"]) -> Float[Tensor, "H W 3"]:
    """0 is black, then violet, red and yellow, 1 nearly white; values beyond are cut off."""
    stops = torch.tensor(HEAT, device=values.device) / 255
    position = values.clamp(0, 1) * (len(HEAT) - 1)
    index = position.floor().long().clamp(max=len(HEAT) - 2)
    return torch.lerp(stops[index], stops[index + 1], (position - index)[..., None])


def enlarge(image: UInt8[Tensor, "H W 3"]) -> UInt8[Tensor, "H2 W2 3"]:
    """Repeat pixels until a side has at least `CELL`; nothing is smoothed."""
    factor = max(1, -(-CELL // image.shape[0]))
    return image.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
