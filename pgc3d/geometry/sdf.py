"""Signed distance fields on a grid: of shapes and meshes, and reinitialisation of a field.

Grids are those of `marching_tetrahedra`: [R + 1, R + 1, R + 1] over [-1, 1]^3, negative inside.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import avg_pool3d, max_pool3d

from pgc3d.geometry.marching_tetrahedra import grid_points


def ellipsoid_sdf(radii: tuple[float, float, float], resolution: int) -> Float[Tensor, "X Y Z"]:
    """Signed distance to an ellipsoid to first order, exact for a sphere: k0 (k0 - 1) / k1.

    k0 = |p / r| and k1 = |p / r^2|, the norm of the gradient of k0^2 / 2 (Quilez,
    iquilezles.org/articles/ellipsoids).
    """
    points = grid_points(resolution)
    radius = torch.tensor(radii)
    k0 = (points / radius).norm(dim=-1)
    k1 = (points / radius.square()).norm(dim=-1).clamp(min=1e-6)
    distance = torch.where(k0 < 1e-3, -radius.min(), k0 * (k0 - 1.0) / k1)
    return distance.reshape(resolution + 1, resolution + 1, resolution + 1)


def sample_grid(values: Float[Tensor, "X X X C"], points: Float[Tensor, "P 3"]) -> Float[Tensor, "P C"]:
    """Values of a grid over [-1, 1]^3 at points; outside, those of the nearest point inside.

    Linear on the tetrahedra of `marching_tetrahedra`, so that the zero set is the surface found there.
    """
    last = values.shape[0] - 1
    place = (points.clamp(-1.0, 1.0) + 1.0) * (0.5 * last)
    corner = place.floor().clamp(max=last - 1)
    fraction, axes = (place - corner).sort(dim=1, descending=True)
    strides = torch.tensor([(last + 1) ** 2, last + 1, 1], device=points.device)
    flat, index = values.flatten(0, 2), (corner.long() * strides).sum(dim=1)
    value = flat[index]
    result = value
    for step in range(3):  # along the path from the lowest corner of the cube to its highest
        index = index + strides[axes[:, step]]
        before, value = value, flat[index]
        result = result + fraction[:, step, None] * (value - before)
    return result


@torch.no_grad()
def redistance(sdf: Float[Tensor, "X Y Z"], *, width: int = 8) -> Float[Tensor, "X Y Z"]:
    """The reinitialised field: a signed distance with the same zero set and the same signs.

    Points next to the surface are divided by the local slope, averaged over their neighbours so that the
    ratios on cut edges, and with them the surface, hardly change. From there distances up to `width` cells
    are propagated by upwind steps of |grad d| = 1 (Russo and Smereka 2000; Zhao 2005); farther points have
    `width`.
    """
    cell = 2.0 / (sdf.shape[0] - 1)
    inside = (sdf < 0).float()[None, None]
    near = (max_pool3d(inside, 3, 1, 1) + max_pool3d(-inside, 3, 1, 1)) > 0
    slope = _slope(sdf, cell)[None, None]
    weight = avg_pool3d(near.float(), 3, 1, 1)
    mean = avg_pool3d(slope * near, 3, 1, 1) / weight.clamp(min=1e-6)
    steep = mean[0, 0].clamp(min=1e-3)
    distance = (sdf.abs() / steep).clamp(min=1e-4 * cell, max=2.0 * cell)
    return torch.where(sdf < 0, -1.0, 1.0) * _spread(distance, near[0, 0], cell, width)


@torch.no_grad()
def mesh_sdf(
    vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"], resolution: int, *, width: int = 8
) -> Float[Tensor, "X Y Z"]:
    """Signed distance to a mesh inside [-1, 1]^3: exact within a cell of it, up to `width` cells upwind.

    The sign is the generalised winding number's (Jacobson et al. 2013), which tolerates holes and overlaps.
    """
    size, cell = resolution + 1, 2.0 / resolution
    distance = _band_distance(vertices, faces, resolution)
    near = distance <= 1.02 * cell
    points = grid_points(resolution, vertices.device)[near]
    signs = torch.ones_like(distance)
    signs[near] = torch.where(winding_number(points, vertices, faces) > 0.5, -1.0, 1.0)
    near, signs = near.reshape(size, size, size), signs.reshape(size, size, size)
    # Between two band points of a row there is no surface, so the sign of the last one holds.
    index = torch.arange(size, device=near.device).expand_as(near)
    last = torch.where(near, index, 0).cummax(dim=-1).values
    signs = signs.gather(-1, last)  # rows start outside, as the mesh does not reach the boundary
    return signs * _spread(distance.reshape(size, size, size), near, cell, width)


def winding_number(
    points: Float[Tensor, "P 3"], vertices: Float[Tensor, "V 3"], faces: Int[Tensor, "F 3"]
) -> Float[Tensor, " P"]:
    """Generalised winding number: the signed solid angles of all faces over 4 pi; 1 inside, 0 outside.

    tan(w / 2) = det[a b c] / (abc + (a.b) c + (b.c) a + (c.a) b) (van Oosterom and Strackee 1983).
    """
    corners = vertices[faces]
    chunk = max(1, 2**21 // max(len(faces), 1))
    return torch.cat(
        [_winding(part, corners) for part in torch.split(points, chunk)] or [points.new_zeros(0)]
    )


def _winding(points: Tensor, corners: Tensor) -> Tensor:
    a, b, c = (corners[None, :, i] - points[:, None] for i in range(3))
    la, lb, lc = a.norm(dim=-1), b.norm(dim=-1), c.norm(dim=-1)
    determinant = (a * torch.linalg.cross(b, c)).sum(-1)
    below = la * lb * lc + (a * b).sum(-1) * lc + (b * c).sum(-1) * la + (c * a).sum(-1) * lb
    return torch.atan2(determinant, below).sum(-1) / (2 * torch.pi)


def _slope(sdf: Tensor, cell: float) -> Tensor:
    """|grad s| from central differences, one-sided at the boundary."""
    parts = torch.gradient(sdf, spacing=cell)
    return torch.stack(list(parts)).square().sum(0).sqrt()


def _spread(distance: Tensor, fixed: Tensor, cell: float, width: int) -> Tensor:
    """Distances propagated from the fixed points by Godunov's upwind scheme, all points at once.

    A step reaches the next points along the axes, so the diagonal takes sqrt(3) times as many.
    """
    far = width * cell
    result = torch.where(fixed, distance, far)
    for _ in range(math.ceil(width * math.sqrt(3))):
        padded = torch.nn.functional.pad(result, (1,) * 6, value=far)
        inner = slice(1, -1)
        a = torch.minimum(padded[:-2, inner, inner], padded[2:, inner, inner])
        b = torch.minimum(padded[inner, :-2, inner], padded[inner, 2:, inner])
        c = torch.minimum(padded[inner, inner, :-2], padded[inner, inner, 2:])
        result = torch.where(fixed, distance, torch.minimum(result, _upwind(a, b, c, cell)))
    return result


def _upwind(a: Tensor, b: Tensor, c: Tensor, cell: float) -> Tensor:
    """Solve sum max(d - n, 0)^2 = cell^2 over the three neighbours n."""
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    first, larger = torch.minimum(low, c), torch.maximum(low, c)
    second, third = torch.minimum(larger, high), torch.maximum(larger, high)
    one = first + cell
    two = (first + second + (2 * cell**2 - (first - second).square()).clamp(min=0).sqrt()) / 2
    total = first + second + third
    squares = first.square() + second.square() + third.square()
    three = (total + (total.square() - 3 * (squares - cell**2)).clamp(min=0).sqrt()) / 3
    return torch.where(one <= second, one, torch.where(two <= third, two, three))


def _band_distance(vertices: Tensor, faces: Tensor, resolution: int) -> Tensor:
    """Distance [N] of the grid points within about a cell of the mesh, infinity elsewhere."""
    size, cell = resolution + 1, 2.0 / resolution
    small = _subdivide(vertices[faces], 0.7 * cell)
    axis = torch.arange(-2, 3, device=vertices.device)
    window = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3)
    distance = vertices.new_full((size**3,), torch.inf)
    for triangles in torch.split(small, 2**14):
        index = ((triangles.mean(1) + 1) / cell).round().long()[:, None] + window  # [T, 125, 3]
        index = index.clamp(0, resolution)
        near_distance = _triangle_distance(index * cell - 1.0, triangles[:, None])
        flat = (index[..., 0] * size + index[..., 1]) * size + index[..., 2]
        distance.scatter_reduce_(0, flat.reshape(-1), near_distance.reshape(-1), "amin")
    return distance


def _subdivide(triangles: Tensor, longest: float) -> Tensor:
    """Halve the edges of triangles [T, 3, 3] until none is longer than `longest`."""
    done = []
    while len(triangles):
        a, b, c = triangles.unbind(1)
        large = torch.stack([a - b, b - c, c - a]).norm(dim=-1).amax(0) > longest
        done.append(triangles[~large])
        a, b, c = triangles[large].unbind(1)
        d, e, f = (a + b) / 2, (b + c) / 2, (c + a) / 2
        triangles = torch.cat([torch.stack(t, dim=1) for t in ((a, d, f), (d, b, e), (f, e, c), (d, e, f))])
    return torch.cat(done) if done else triangles


def _triangle_distance(points: Tensor, triangles: Tensor) -> Tensor:
    """Distance of points [..., 3] to triangles [..., 3, 3]: to the plane over the face, else to an edge."""
    a, b, c = triangles.unbind(-2)
    normal = torch.linalg.cross(b - a, c - a)
    above = torch.ones(points.shape[:-1], dtype=torch.bool, device=points.device)
    edge_squared = points.new_full(points.shape[:-1], torch.inf)
    for start, end in ((a, b), (b, c), (c, a)):
        edge, offset = end - start, points - start
        above &= (torch.linalg.cross(edge, normal) * offset).sum(-1) <= 0
        fraction = (offset * edge).sum(-1) / edge.square().sum(-1).clamp(min=1e-20)
        foot = offset - fraction.clamp(0, 1)[..., None] * edge
        edge_squared = torch.minimum(edge_squared, foot.square().sum(-1))
    squared_area = normal.square().sum(-1)
    height = ((points - a) * normal).sum(-1).square() / squared_area.clamp(min=1e-30)
    return torch.where(above & (squared_area > 1e-24), height, edge_squared).sqrt()


def blur_matrix(size: int, deviation: float, device: torch.device | str = "cpu") -> Float[Tensor, "N N"]:
    """A Gaussian, truncated at three deviations, as a matrix whose rows sum to one."""
    axis = torch.arange(size, device=device)
    offset = axis[:, None] - axis
    weight = torch.exp(-0.5 * (offset / max(deviation, 0.1)).square()) * (offset.abs() <= 3 * deviation)
    return weight / weight.sum(1, keepdim=True)
