"""Mipmapped texture look-ups by the footprint of a pixel, differentiable in the image."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool2d

from pgc3d.types import Cameras, PreparedMesh


def mip_chain(
    image: Float[Tensor, "S S C"], weight: Float[Tensor, "S S"] | None = None
) -> Float[Tensor, "N C"]:
    """The texels of the image and of its halvings down to a single one; S is a power of two.

    `weight` is the weight of a texel in the means, so that texels between the charts do not bleed
    into them; positive everywhere, all the same when None.
    """
    level = image.permute(2, 0, 1)[None]
    coverage = torch.ones_like(level[:, :1]) if weight is None else weight[None, None]
    chain = [image.reshape(-1, image.shape[-1])]
    while level.shape[-1] > 1:
        coarse = avg_pool2d(coverage, 2)
        level, coverage = avg_pool2d(level * coverage, 2) / coarse, coarse
        chain.append(level[0].flatten(1).T)
    return torch.cat(chain)


@dataclass(frozen=True)
class ChainPlace:
    """The place of an image in a tensor of mip chains, one behind the other; of one image or of P points."""

    size: int | Int[Tensor, " P"]  # texels of the image's side
    start: int | Int[Tensor, " P"] = 0  # the image's first texel
    repeat: bool | Bool[Tensor, " P"] = False  # over the plane; otherwise the border is clamped


def sample_chain(
    chain: Float[Tensor, "N C"],
    size: int,
    uv: Float[Tensor, "P 2"],
    level: Float[Tensor, " P"],
    *,
    repeat: bool = False,
) -> Float[Tensor, "P C"]:
    """Trilinear look-up in the mip chain of an image of `size` texels a side; see `sample_chains`."""
    return sample_chains(chain, ChainPlace(size, repeat=repeat), uv, level)


def sample_chains(
    chains: Float[Tensor, "N C"], place: ChainPlace, uv: Float[Tensor, "P 2"], level: Float[Tensor, " P"]
) -> Float[Tensor, "P C"]:
    """Trilinear look-up in the mip chains of images, for each point in one of them.

    v points up while row 0 is on top; the border is clamped, or the image repeats. `level` 0 and below is the
    bilinear lookup in the image itself, log2(size) and above the mean.
    """
    size = place.size
    last = size.bit_length() - 1 if isinstance(size, int) else torch.log2(size.float()).round().long()
    level = _at_most(level.clamp(min=0), last)
    fine = level.floor().long()
    lower = _bilinear(chains, place, uv, fine)
    upper = _bilinear(chains, place, uv, _at_most(fine + 1, last))
    return lower + (level - fine)[:, None] * (upper - lower)


def _at_most(values: Tensor, bound: int | Tensor) -> Tensor:
    return values.clamp(max=bound) if isinstance(bound, int) else torch.minimum(values, bound)


def _repeated(image: ChainPlace, first: Tensor, second: Tensor) -> Tensor:
    """`first` of the points whose image repeats, else `second`."""
    if isinstance(image.repeat, bool):
        return first if image.repeat else second
    return torch.where(image.repeat.reshape(-1, *[1] * (first.dim() - 1)), first, second)


def _bilinear(
    chain: Float[Tensor, "N C"], image: ChainPlace, uv: Float[Tensor, "P 2"], level: Int[Tensor, " P"]
) -> Float[Tensor, "P C"]:
    side = image.size >> level  # [P]
    start = image.start + 4 * (image.size * image.size - side * side) // 3  # texels of the finer levels
    place = torch.stack([uv[:, 0], 1 - uv[:, 1]], dim=1) * side[:, None] - 0.5
    place = _repeated(image, place, torch.minimum(place.clamp(min=0), (side - 1)[:, None]))
    corner = place.floor()
    x, y = (place - corner)[:, :1], (place - corner)[:, 1:]
    column, row = corner.long().unbind(1)
    right, below = (
        _repeated(image, (index + 1) % side, torch.minimum(index + 1, side - 1)) for index in (column, row)
    )
    column, row = column % side, row % side  # without an effect where the border is clamped

    def texel(rows: Tensor, columns: Tensor) -> Tensor:
        return chain.index_select(0, start + rows * side + columns)

    top = texel(row, column) * (1 - x) + texel(row, right) * x
    bottom = texel(below, column) * (1 - x) + texel(below, right) * x
    return top * (1 - y) + bottom * y


def uv_gradients(mesh: PreparedMesh) -> Float[Tensor, "F 2 3"]:
    """Gradients of u and v of each face in world space, within the face's plane; 0 without area."""
    a, b, c = (mesh.vertices[corner].double() for corner in mesh.faces.T)
    edges = torch.stack([b - a, c - a], dim=1)  # [F, 2, 3]
    a, b, c = (mesh.uv[corner].double() for corner in mesh.uv_faces.T)
    change = torch.stack([b - a, c - a], dim=1)  # [F, 2 edges, 2]
    metric = edges @ edges.transpose(1, 2)
    first, mixed, second = metric[:, 0, 0], metric[:, 0, 1], metric[:, 1, 1]
    determinant = first * second - mixed * mixed
    inverse = torch.stack([second, -mixed, -mixed, first], dim=1).reshape(-1, 2, 2)
    flat = determinant <= 1e-12 * first * second
    inverse = inverse / torch.where(flat, torch.inf, determinant)[:, None, None]
    return (change.transpose(1, 2) @ inverse @ edges).float()


def footprint_level(
    gradients: Float[Tensor, "P 2 3"],
    points: Float[Tensor, "P 3"],
    face_normal: Float[Tensor, "P 3"],
    view: Int[Tensor, " P"],
    cameras: Cameras,
    *,
    resolution: int,
    texture_size: int | Int[Tensor, " P"],
) -> Float[Tensor, " P"]:
    """Mip level at the surface `points` of pixels: log2 of the longer side of a pixel's footprint in texels.

    The footprint is that of the ray through the pixel on the face's plane: a neighbouring pixel's ray, turned
    by d, meets the plane at t (d - D (n d) / (n D)) from here, t D being the ray up to the point.
    """
    rotation = cameras.camera_from_world[view, :3, :3]
    ray = points - cameras.position[view]  # t D
    depth = -(rotation[:, 2] * ray).sum(-1, keepdim=True)
    pixel = 2.0 / (resolution * cameras.clip_from_camera[view, 1, 1])[:, None]
    turns = depth * pixel  # t d has this length along the image's axes
    facing = (face_normal * ray).sum(-1, keepdim=True)
    facing = torch.where(facing.abs() < 1e-6, 1e-6, facing)
    longest = torch.zeros_like(depth[:, 0])
    for axis in (0, 1):
        step = turns * rotation[:, axis]
        step = step - ray * (face_normal * step).sum(-1, keepdim=True) / facing
        change = (gradients @ step[..., None])[..., 0]
        longest = torch.maximum(longest, change.norm(dim=1))
    return torch.log2((longest * texture_size).clamp_min(1e-6))
