"""A texture of a mesh as the texels of images, one for each of its texture sets."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from pgc3d.rendering.mipmap import ChainPlace, mip_chain, sample_chains
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


class ImageTextures(nn.Module):
    """The images of K texture sets with the same channels."""

    sides: Int[Tensor, " K"]
    starts: Int[Tensor, " K"]
    repeats: Bool[Tensor, " K"]

    def __init__(self, images: Sequence[ImageTexture], *, repeats: Sequence[bool]) -> None:
        """Hold the images of the sets in their order; `repeats` are those that repeat over the plane."""
        super().__init__()
        self.images = nn.ModuleList(images)
        self.channels = images[0].channels
        self.repeated = tuple(repeats)
        sides = torch.tensor([len(image.image) for image in images])
        texels = torch.cumsum((4 * sides * sides - 1) // 3, dim=0)
        starts = torch.cat([texels.new_zeros(1), texels[:-1]])
        for name, value in (("sides", sides), ("starts", starts), ("repeats", torch.tensor(repeats))):
            self.register_buffer(name, value, persistent=False)

    def __getitem__(self, index: int) -> ImageTexture:
        image = self.images[index]
        assert isinstance(image, ImageTexture)
        return image

    def __len__(self) -> int:
        return len(self.images)

    def chains(self) -> Float[Tensor, "N C"]:
        """The texels of all mip levels of all images."""
        return torch.cat([self[index].chain() for index in range(len(self))])

    def side(self, sets: Int[Tensor, " P"]) -> int | Int[Tensor, " P"]:
        """Side in texels of the images of sets; one number where there is one image."""
        return len(self[0].image) if len(self) == 1 else self.sides.index_select(0, sets)

    def sample(
        self,
        chains: Float[Tensor, "N C"],
        sets: Int[Tensor, " P"],
        uv: Float[Tensor, "P 2"],
        level: Float[Tensor, " P"],
    ) -> Float[Tensor, "P C"]:
        """Filtered look-up of points in the images of their sets; see `sample_chains`."""
        if len(self) == 1:
            return sample_chains(chains, ChainPlace(len(self[0].image), repeat=self.repeated[0]), uv, level)
        chosen = (values.index_select(0, sets) for values in (self.sides, self.starts, self.repeats))
        return sample_chains(chains, ChainPlace(*chosen), uv, level)

    def project(self) -> None:
        """Clamp the texels to the bounds of their channels."""
        for index in range(len(self)):
            self[index].project()
