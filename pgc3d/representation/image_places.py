"""The places of the mip chains of several images in one tensor, for filtered look-ups."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pgc3d.rendering.mipmap import ChainPlace, sample_chains


class ImagePlaces(nn.Module):
    """Chains of K square images, one behind the other; see `mipmap.mip_chain`."""

    sides: Int[Tensor, " K"]
    starts: Int[Tensor, " K"]
    repeats: Bool[Tensor, " K"]

    def __init__(self, sides: Sequence[int], *, repeats: Sequence[bool]) -> None:
        """Images of `sides` texels a side; `repeats` are those that repeat over the plane."""
        super().__init__()
        self.repeated, self.first = tuple(repeats), sides[0]
        each = torch.tensor(list(sides))
        texels = torch.cumsum((4 * each * each - 1) // 3, dim=0)
        starts = torch.cat([texels.new_zeros(1), texels[:-1]])
        for name, value in (("sides", each), ("starts", starts), ("repeats", torch.tensor(list(repeats)))):
            self.register_buffer(name, value, persistent=False)

    def side(self, sets: Int[Tensor, " P"]) -> int | Int[Tensor, " P"]:
        """Side in texels of the images of sets; one number where there is one image."""
        return self.first if len(self.repeated) == 1 else self.sides.index_select(0, sets)

    def sample(
        self,
        chains: Float[Tensor, "N C"],
        sets: Int[Tensor, " P"],
        uv: Float[Tensor, "P 2"],
        level: Float[Tensor, " P"],
    ) -> Float[Tensor, "P C"]:
        """Filtered look-up of points in the images of their sets; see `sample_chains`."""
        if len(self.repeated) == 1:
            return sample_chains(chains, ChainPlace(self.first, repeat=self.repeated[0]), uv, level)
        chosen = (values.index_select(0, sets) for values in (self.sides, self.starts, self.repeats))
        return sample_chains(chains, ChainPlace(*chosen), uv, level)
