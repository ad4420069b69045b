"""The two integrals of a GGX reflection under uniform light, as a table over n.v and roughness.

Split-sum approximation (Karis 2013): a specular reflection is (F0 A + B) times the filtered light.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

SIZE = 64  # rows (roughness) and columns (n.v)
GRAZING = 1e-3  # least n.v of the table: at 0 nothing is reflected towards the viewer
STRATA = (32, 12)  # of the samples of a cell, in radius and in one half of the angles: the other mirrors it

Array = NDArray[np.float64]


@lru_cache(maxsize=4)
def brdf_table(size: int = SIZE) -> Float[Tensor, "S S 2"]:
    """A and B at roughness [0, 1] (rows) and n.v [0, 1] (columns), both inclusive; float32, on the CPU.

    Normals of the microfacets are drawn from those that the viewer sees (Heitz 2018, listing 1), with
    alpha = roughness^2 and height-correlated masking (Heitz 2014, eq. 99): each sample's weight is G2 / G1,
    at most 1, so that A + B is at most 1 too.
    """
    roughness = np.linspace(0.0, 1.0, size)
    rows = [_integrate(value**2, np.linspace(0.0, 1.0, size).clip(GRAZING, 1.0)) for value in roughness]
    return torch.from_numpy(np.stack(rows)).float()


def _integrate(alpha: float, cosine: Array) -> Array:
    """A and B [N, 2] for each n.v."""
    radius, angle = (np.arange(count).astype(np.float64) for count in STRATA)
    inner, second = np.meshgrid(1.0 - (radius + 0.5) / STRATA[0], (angle + 0.5) / STRATA[1], indexing="ij")
    first, density = (
        1.0 - inner**3,
        3.0 * inner**2,
    )  # finer at the rim, whose facets reflect below the surface
    measure = (density / density.sum()).ravel()
    view = np.stack([np.sqrt(1.0 - cosine**2), np.zeros_like(cosine), cosine], axis=-1)[:, None]
    half = _visible_normals(view, alpha, first.ravel(), second.ravel())
    facing = (view * half).sum(-1)
    light = 2.0 * facing * half[..., 2] - view[..., 2]  # its component along the normal
    up = light > 0.0
    viewed, lit = _masking(view[..., 2], alpha), _masking(np.where(up, light, 1.0), alpha)
    weight = np.where(up, (1.0 + viewed) / (1.0 + viewed + lit), 0.0)
    fresnel = (1.0 - facing.clip(0.0, 1.0)) ** 5
    return np.stack([(weight * (1.0 - fresnel)) @ measure, (weight * fresnel) @ measure], axis=-1)


def _visible_normals(view: Array, alpha: float, first: Array, second: Array) -> Array:
    """Half vectors [N, samples, 3] for views [N, 1, 3] without a y component."""
    stretched = view * np.array([alpha, alpha, 1.0])
    stretched = stretched / np.linalg.norm(stretched, axis=-1, keepdims=True)
    side = np.array([0.0, 1.0, 0.0])
    upward = np.cross(stretched, side)
    second = second - 0.5  # the half of the disc where `across` is positive
    across, along = np.sqrt(first) * np.cos(np.pi * second), np.sqrt(first) * np.sin(np.pi * second)
    blend = 0.5 * (1.0 + stretched[..., 2])
    along = (1.0 - blend) * np.sqrt(1.0 - across**2) + blend * along
    height = np.sqrt((1.0 - across**2 - along**2).clip(0.0))
    normal = across[..., None] * side + along[..., None] * upward + height[..., None] * stretched
    half = normal * np.array([alpha, alpha, 1.0])
    half[..., 2] = half[..., 2].clip(0.0)
    unit: Array = half / np.linalg.norm(half, axis=-1, keepdims=True)
    return unit


def _masking(cosine: Array, alpha: float) -> Array:
    """Smith's Lambda of GGX."""
    tangent = (1.0 - cosine**2).clip(0.0) / cosine**2
    result: Array = 0.5 * (np.sqrt(1.0 + alpha**2 * tangent) - 1.0)
    return result


def look_up(
    table: Float[Tensor, "S S 2"], cosine: Float[Tensor, "P 1"], roughness: Float[Tensor, "P 1"]
) -> tuple[Float[Tensor, "P 1"], Float[Tensor, "P 1"]]:
    """A and B, bilinear and differentiable in n.v and roughness, both in [0, 1]."""
    place = torch.cat([cosine, roughness], dim=1) * 2.0 - 1.0
    image = table.permute(2, 0, 1)[None].to(place.dtype)
    found = grid_sample(image, place[None, None], padding_mode="border", align_corners=True)[0, :, 0]
    return found[0, :, None], found[1, :, None]
