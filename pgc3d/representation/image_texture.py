"""A texture of a mesh as the texels of images, one for each of its texture sets."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from pgc3d.rendering.mipmap import mip_chain
from pgc3d.representation.channels import Channels, ColorChannels, first_values
from pgc3d.representation.image_places import ImagePlaces
from pgc3d.representation.refinement import Refinement, Refinements

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

    def chain(self, refinement: Refinement | None = None) -> Float[Tensor, "N C"]:
        """The texels of all mip levels, as a refinement of a source limits them."""
        image = self.image if refinement is None else refinement.texels(self.image)
        return mip_chain(image, self.weight)

    @torch.no_grad()
    def project(self, refinement: Refinement | None = None) -> None:
        """Clamp the texels to the bounds of their channels, and to those of a refinement."""
        low, high = self.bounds.unbind(1)
        self.image.clamp_(low, high)
        if refinement is not None:
            refinement.clamp(self.image)


class ImageTextures(nn.Module):
    """The images of K texture sets with the same channels."""

    def __init__(self, images: Sequence[ImageTexture], *, repeats: Sequence[bool]) -> None:
        """Hold the images of the sets in their order; `repeats` are those that repeat over the plane."""
        super().__init__()
        self.images = nn.ModuleList(images)
        self.channels = images[0].channels
        self.places = ImagePlaces([len(image.image) for image in images], repeats=repeats)

    def __getitem__(self, index: int) -> ImageTexture:
        image = self.images[index]
        assert isinstance(image, ImageTexture)
        return image

    def __len__(self) -> int:
        return len(self.images)

    def chains(self, refinement: Refinements | None = None) -> Float[Tensor, "N C"]:
        """The texels of all mip levels of all images, as a refinement of their sources limits them."""
        limits = [None] * len(self) if refinement is None else refinement.parts
        return torch.cat([self[index].chain(limit) for index, limit in enumerate(limits)])

    def project(self, refinement: Refinements | None = None) -> None:
        """Clamp the texels to the bounds of their channels, and to those of a refinement."""
        limits = [None] * len(self) if refinement is None else refinement.parts
        for index, limit in enumerate(limits):
            self[index].project(limit)
