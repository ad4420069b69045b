"""A texture of a mesh as the texels of an image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from pgc3d.rendering.mipmap import mip_chain
from pgc3d.representation.channels import Channels, ColorChannels, first_values

GUTTER_WEIGHT = 1e-4  # of texels that no face covers, in the means of the mip levels


class ImageTexture(nn.Module):
    """The channels of a material as the texels of a square image, kept in their bounds."""

    weight: Float[Tensor, "S S"]
    bounds: Float[Tensor, "C 2"]

    def __init__(
        self,
        covered: Float[Tensor, "S S"],
        *,
        color: tuple[float, float, float] = (0.5, 0.5, 0.5),
        roughness: float = 0.8,
        metallic: float = 0.0,
        channels: Channels | None = None,
    ) -> None:
        """Initialise to one material; `covered` is 1 for texels on a face, S is a power of two.

        Of `channels` there is only the base colour, in sRGB, when they are None.
        """
        super().__init__()
        # A filtered look-up at a chart's edge includes the texel next to it.
        reached = max_pool2d(covered[None, None], 3, stride=1, padding=1)[0, 0]
        self.register_buffer("weight", reached.clamp_min(GUTTER_WEIGHT), persistent=False)
        self.channels = channels or ColorChannels(roughness, metallic)
        bounds = torch.tensor(self.channels.bounds, device=covered.device)
        self.register_buffer("bounds", bounds, persistent=False)
        first = torch.tensor(color)
        if len(self.channels.bounds) > 3:
            first = first_values(self.channels, color=color, roughness=roughness, metallic=metallic)
        self.image = nn.Parameter(first.to(covered.device).expand(*covered.shape, len(first)).clone())

    def chain(self) -> Float[Tensor, "N C"]:
        """The texels of all mip levels."""
        return mip_chain(self.image, self.weight)

    @torch.no_grad()
    def project(self) -> None:
        """Clamp the texels to the bounds of their channels."""
        low, high = self.bounds.unbind(1)
        self.image.clamp_(low, high)
