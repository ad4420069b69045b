"""Light from all directions, filtered once for diffuse and for glossy surfaces.

A light is a latitude-longitude image of linear radiance [H, W, 3]: its first row is above (+y), the middle of
a row is +z, the object's front, and columns run to the right as seen from inside, towards -x.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

HEIGHT, WIDTH = 64, 128  # of the filtered images
LEVELS = (0.08, 0.2, 0.35, 0.5, 0.7, 1.0)  # roughness of each; the first one is not filtered
COSINE = (1.0, *[2 / 3] * 3, *[1 / 4] * 5)  # a clamped cosine's bands over pi (Ramamoorthi, Hanrahan 2001)
POLE = 1e-4  # distance from the y axis within which azimuths have no gradient


@dataclass(frozen=True)
class Environment:
    """L lights on one device, filtered."""

    irradiance: Float[Tensor, "L 9 3"]  # spherical harmonics of irradiance / pi
    radiance: Float[Tensor, "L M H W 3"]  # for each roughness in `LEVELS`

    def __len__(self) -> int:
        return len(self.irradiance)

    def to(self, device: torch.device | str) -> "Environment":
        """The same lights on another device."""
        return Environment(self.irradiance.to(device), self.radiance.to(device))

    def diffuse(self, direction: Float[Tensor, "P 3"], light: Int[Tensor, " P"]) -> Float[Tensor, "P 3"]:
        """Irradiance / pi of surfaces with these unit normals: 1 for white light of radiance 1."""
        basis = harmonics(direction)
        values = (basis[..., None] * self.irradiance.to(basis)[light]).sum(1)
        return values.clamp(min=0.0)

    def glossy(
        self, direction: Float[Tensor, "P 3"], roughness: Float[Tensor, "P 1"], light: Int[Tensor, " P"]
    ) -> Float[Tensor, "P 3"]:
        """Light filtered by a lobe around a direction, differentiable in the direction and the roughness."""
        levels, height, width = self.radiance.shape[1:4]
        texels = self.radiance.reshape(-1, 3).to(direction)
        (row, y), (column, x) = _place(direction, height, width)
        level, z = _level(roughness[:, 0], levels)
        rows = [row.clamp(0, height - 1), (row + 1).clamp(0, height - 1)]
        columns = [column % width, (column + 1) % width]
        total = torch.zeros_like(direction)
        for step, depth in enumerate((1.0 - z, z)):
            start = (light * levels + level + step) * height
            for line, vertical in zip(rows, (1.0 - y, y), strict=True):
                for texel, across in zip(columns, (1.0 - x, x), strict=True):
                    found = texels.index_select(0, (start + line) * width + texel)
                    total = total + (depth * vertical * across)[:, None] * found
        return total


def _place(
    direction: Float[Tensor, "P 3"], height: int, width: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The texel before a direction and the weight of the next one, along rows and columns."""
    x, y, z = direction.unbind(1)
    z = torch.where(x.square() + z.square() < POLE**2, POLE, z)
    polar = torch.atan2((x.square() + z.square()).sqrt(), y)
    row = polar * (height / math.pi) - 0.5
    column = (0.5 - torch.atan2(x, z) / (2 * math.pi)) * width - 0.5
    first, left = row.detach().floor(), column.detach().floor()
    return (first.long(), row - first), (left.long(), column - left)


def _level(roughness: Float[Tensor, " P"], levels: int) -> tuple[Tensor, Tensor]:
    """The level before a roughness and the weight of the next one."""
    index = torch.zeros_like(roughness)
    for low, high in pairwise(LEVELS):
        index = index + ((roughness - low) / (high - low)).clamp(0.0, 1.0)
    first = index.detach().floor().clamp(max=levels - 2)
    return first.long(), index - first


def directions(height: int, width: int) -> Float[Tensor, "H W 3"]:
    """Unit vectors of the centres of texels, float64."""
    polar = (torch.arange(height, dtype=torch.float64)[:, None] + 0.5) * (math.pi / height)
    azimuth = (0.5 - (torch.arange(width, dtype=torch.float64) + 0.5) / width) * (2 * math.pi)
    x, z = polar.sin() * azimuth.sin(), polar.sin() * azimuth.cos()
    return torch.stack([x, polar.cos().expand_as(x), z], dim=-1)


def solid_angles(height: int, width: int) -> Float[Tensor, "H 1"]:
    """Solid angle of a texel in each row, float64; all together 4 pi."""
    edges = torch.linspace(0.0, math.pi, height + 1, dtype=torch.float64).cos()
    return (edges[:-1] - edges[1:])[:, None] * (2 * math.pi / width)


def harmonics(direction: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 9"]:
    """Real spherical harmonics up to degree 2, orthonormal on the sphere."""
    x, y, z = direction.unbind(-1)
    one = math.sqrt(1 / (4 * math.pi))
    first, second = math.sqrt(3 / (4 * math.pi)), math.sqrt(15 / (4 * math.pi))
    zonal = math.sqrt(5 / (16 * math.pi)) * (3 * y * y - 1)
    products = [second * x * y, second * y * z, zonal, second * x * z, second / 2 * (z * z - x * x)]
    return torch.stack([torch.full_like(x, one), first * x, first * y, first * z, *products], dim=-1)


def filtered(radiance: Float[Tensor, "L H W 3"]) -> Environment:
    """Lights of `HEIGHT` by `WIDTH` texels, filtered for all surfaces; on the CPU, float32."""
    double = radiance.double().cpu()
    stack = [double, *(_blurred(double, roughness) for roughness in LEVELS[1:])]
    return Environment(_project(double).float(), torch.stack(stack, dim=1).float())


def _project(radiance: Float[Tensor, "L H W 3"]) -> Float[Tensor, "L 9 3"]:
    """Coefficients of irradiance / pi: by least squares, so that uniform light has no other band."""
    count, height, width, _ = radiance.shape
    basis = harmonics(directions(height, width)).reshape(-1, 9)
    weighted = basis * solid_angles(height, width).expand(height, width).reshape(-1, 1)
    moments = weighted.T @ radiance.reshape(count, -1, 3)
    return torch.linalg.solve(weighted.T @ basis, moments) * torch.tensor(COSINE).double()[:, None]


def _blurred(radiance: Float[Tensor, "L H W 3"], roughness: float) -> Float[Tensor, "L H W 3"]:
    """The light weighted by D (n.l) of GGX around each direction, with viewer and normal there (Karis 2013).

    The weight depends on the difference of azimuths alone, so that a row is a sum of circular convolutions.
    """
    width = radiance.shape[2]
    spectrum = torch.fft.rfft(radiance, dim=2)
    kernel = _kernel_spectrum(radiance.shape[1], width, roughness)
    return torch.fft.irfft(torch.einsum("ijf,ljfc->lifc", kernel, spectrum), n=width, dim=2)


@lru_cache(maxsize=len(LEVELS))
def _kernel_spectrum(height: int, width: int, roughness: float) -> Tensor:
    """Fourier series in azimuth of the normalised weights of each row (second) for each row (first)."""
    polar = (torch.arange(height, dtype=torch.float64) + 0.5) * (math.pi / height)
    turn = torch.arange(width, dtype=torch.float64) * (2 * math.pi / width)
    sines, cosines = polar.sin()[:, None] * polar.sin(), polar.cos()[:, None] * polar.cos()
    cosine = sines[..., None] * turn.cos() + cosines[..., None]
    alpha = roughness**2
    half = (0.5 + 0.5 * cosine).clamp(0.0, 1.0)  # (n.h)^2
    lobe = cosine.clamp(min=0.0) / (half * (alpha**2 - 1.0) + 1.0).square()
    weight = lobe * solid_angles(height, width)
    return torch.fft.rfft(weight / weight.sum((1, 2), keepdim=True), dim=2)
