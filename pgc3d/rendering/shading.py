"""Shading by a light that is fixed to the camera; also that of the bundled prior's training images."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pgc3d.kernels.light import AMBIENT, GAMMA, KEY, LINEAR_KNEE, OFFSET, SKY, SLOPE, SRGB_KNEE
from pgc3d.types import Cameras

KEY_DIRECTION = (-0.3, 0.5, 1.0)  # in camera space: from above the viewer's left shoulder


def srgb_to_linear(color: Float[Tensor, "*P C"]) -> Float[Tensor, "*P C"]:
    """Decode sRGB in [0, 1] to linear light (IEC 61966-2-1)."""
    curve = ((color.clamp(min=0.0) + OFFSET) / (1 + OFFSET)) ** GAMMA
    return torch.where(color <= SRGB_KNEE, color / SLOPE, curve)


def linear_to_srgb(color: Float[Tensor, "*P C"]) -> Float[Tensor, "*P C"]:
    """Encode linear light in [0, 1] as sRGB (IEC 61966-2-1); finite gradient at 0."""
    curve = (1 + OFFSET) * color.clamp(min=LINEAR_KNEE) ** (1 / GAMMA) - OFFSET
    return torch.where(color <= LINEAR_KNEE, color * SLOPE, curve)


def key_direction(cameras: Cameras) -> Float[Tensor, "B 3"]:
    """Direction towards the key light of every camera, world space, unit length."""
    x, y, z = (component / math.hypot(*KEY_DIRECTION) for component in KEY_DIRECTION)
    rotation = cameras.camera_from_world[:, :3, :3]  # numbers, not a tensor: a copy to CUDA would wait for it
    return x * rotation[:, 0] + y * rotation[:, 1] + z * rotation[:, 2]


def irradiance(normal: Float[Tensor, "*P 3"], key: Float[Tensor, "*P 3"]) -> Float[Tensor, "*P 1"]:
    """Ambient, key and sky light on a white surface, at most 1; normals unit, world space."""
    lambert = (normal * key).sum(-1, keepdim=True).clamp(min=0.0)
    return AMBIENT + KEY * lambert + SKY * (0.5 + 0.5 * normal[..., 1:2])


def shade(
    base_color: Float[Tensor, "*P 3"], normal: Float[Tensor, "*P 3"], key: Float[Tensor, "*P 3"]
) -> Float[Tensor, "*P 3"]:
    """Lit colour in sRGB of an sRGB base colour; the light is multiplied in linear space."""
    return linear_to_srgb(srgb_to_linear(base_color) * irradiance(normal, key))
