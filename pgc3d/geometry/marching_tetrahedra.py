"""Differentiable marching tetrahedra on a regular grid whose cubes are cut into six Kuhn tetrahedra each.

The grid has (R + 1)^3 points on [-1, 1]^3, stored as [x, y, z]. A Kuhn tetrahedron is a monotone path from a
cube's lowest corner to its highest: every edge runs from a grid point p to p + d, d in {0, 1}^3 but
not 0. Seven edges belong to each point, and neighbouring cubes agree without stored tetrahedra. All six
tetrahedra of a cube are resolved by one look-up of the eight corner signs, as in marching cubes, but without
its ambiguous cases. The surface is closed: points on the grid's boundary count as outside.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_MOST_EDGES = 7  # that one cube can own
_MOST_TRIANGLES = 12  # that one cube can hold: two in each of six tetrahedra


@dataclass(frozen=True)
class Capacity:
    """Sizes of the buffers for a surface; it fits if it has fewer cut cubes, vertices and faces."""

    cubes: int
    vertices: int
    faces: int  # even, as on every closed surface

    def holds(self, size: Int[Tensor, "4"]) -> Bool[Tensor, ""]:
        """Whether a surface of that size (see `surface_size`) fits, as a tensor on its device."""
        return (size[1] < self.cubes) & (size[2] < self.vertices) & (size[3] < self.faces)


@dataclass(frozen=True)
class CutEdges:
    """The grid edges that the surface cuts, and its faces; V vertices, F faces, indices of flat grid points.

    With a `Capacity`, V and F are its sizes: the surface's own vertices and faces are followed by vertices at
    one corner of the grid and by faces without area that have one of them three times. Where the capacity is
    too small, faces are missing or wrong, but every index is valid.
    """

    resolution: int
    first: Int[Tensor, " V"]  # lower end of the cut edge
    second: Int[Tensor, " V"]  # upper end
    first_inside: Bool[Tensor, " V"]
    faces: Int[Tensor, "F 3"]  # counter-clockwise from outside
    size: Int[Tensor, "4"]  # see `surface_size`; on the host, or with a `Capacity` on the device


def grid_points(resolution: int, device: torch.device | str = "cpu") -> Float[Tensor, "N 3"]:
    """The (R + 1)^3 points of the grid on [-1, 1]^3, x slowest and z fastest."""
    axis = torch.linspace(-1.0, 1.0, resolution + 1, device=device)
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).reshape(-1, 3)


def march(
    sdf: Float[Tensor, "..."],
    deformation: Float[Tensor, "..."] | None = None,
    *,
    bound: float | None = None,
) -> tuple[Float[Tensor, "V 3"], Int[Tensor, "F 3"]]:
    """Vertices and faces of the zero set of a signed distance field, differentiable in both arguments.

    Args:
        sdf: (R + 1)^3 values, negative inside, of any shape in the order of `grid_points`.
        deformation: offsets of the grid points [..., 3] in world units; any number when `bound` is given.
        bound: squash the deformation to +-bound (world units) by tanh, at the surface only.
    """
    cut_edges = find_cut_edges(sdf.detach())
    # both ends in one gather: its gradient is dense, and zeroing that is the cost on a CPU
    both = torch.cat([cut_edges.first, cut_edges.second])
    first, second = sdf.reshape(-1).index_select(0, both).chunk(2)
    offsets = None
    if deformation is not None:
        moved = deformation.reshape(-1, 3).index_select(0, both)
        start, end = (moved if bound is None else torch.tanh(moved) * bound).chunk(2)
        offsets = (start, end)
    return cut_points(cut_edges, first, second, offsets), cut_edges.faces


@torch.no_grad()
def surface_size(sdf: Float[Tensor, "..."], *others: Float[Tensor, "..."]) -> Int[Tensor, "4"]:
    """The size of a surface, without its extraction and without synchronisation.

    Returns:
        Whether all values, also of `others`, are finite (1 or 0), and the numbers of cut cubes, vertices
        and faces.
    """
    return _size(_cube_codes(sdf), (sdf, *others))


@torch.no_grad()
def find_cut_edges(
    sdf: Float[Tensor, "..."], *others: Float[Tensor, "..."], capacity: Capacity | None = None
) -> CutEdges:
    """The cut edges and the triangles between them; not differentiable.

    `others` are tensors whose finiteness `CutEdges.size` includes.

    Without `capacity` the sizes of the result are read back to the host, which synchronises with a CUDA
    device twice: for the active cubes, and after three small kernels for the numbers of vertices and faces.
    With it there is no synchronisation.
    """
    code = _cube_codes(sdf)
    cut = (code - 1) < 254  # neither 0 nor, after the wrap of uint8, 255
    tables, grid = _tables(str(sdf.device)), _resolution(sdf) + 1
    if capacity is not None:
        # The fill value is an unused cube with code 0, which owns no edge.
        cubes = torch.nonzero_static(cut, size=capacity.cubes, fill_value=grid - 1)[:, 0]
        codes = _take(code, cubes).long()
        edges = _spread_into(_take(tables.edge_count, codes), capacity.vertices, _MOST_EDGES)
        triangles = _spread_into(_take(tables.triangle_count, codes), capacity.faces, _MOST_TRIANGLES)
        size = _size(code, (sdf, *others))
        cut_edges = _connect(grid, cubes, codes, edges, triangles, size, blank=torch.zeros)
        return replace(cut_edges, faces=_pad_faces(cut_edges.faces, size, capacity))
    cubes = cut.nonzero()[:, 0]
    codes = code.index_select(0, cubes).long()
    edge_counts, triangle_counts = _take(tables.edge_count, codes), _take(tables.triangle_count, codes)
    totals = torch.stack([_finite((sdf, *others)), edge_counts.sum(), triangle_counts.sum()])
    finite, vertices, faces = totals.tolist()
    edges, triangles = _spread(edge_counts, vertices), _spread(triangle_counts, faces)
    size = torch.tensor([finite, len(cubes), vertices, faces])
    return _connect(grid, cubes, codes, edges, triangles, size, blank=torch.empty)


def _connect(
    grid: int,
    cubes: Tensor,
    codes: Tensor,
    edges: tuple[Tensor, Tensor],
    triangles: tuple[Tensor, Tensor],
    size: Tensor,
    *,
    blank: Callable[..., Tensor],
) -> CutEdges:
    """The result from the owners of edges and triangles: pairs of a cube's index and a number in that cube.

    `blank` allocates look-up tables; it need not initialise them where the owners are complete.
    """
    (owner, rank), (cube, number), device = edges, triangles, cubes.device
    tables, steps = _tables(str(device)), _corner_steps(grid, str(device))
    owner_code = _take(codes, owner)
    direction = _take(tables.edge_direction, owner_code * _MOST_EDGES + rank)
    first = _take(cubes, owner)
    # vertex_of[cube, d]: the vertex on the edge that leaves the cube's lowest corner in direction d
    vertex_of = blank(len(cubes) * 8, dtype=torch.long, device=device)
    vertex_of[owner * 8 + direction] = torch.arange(len(owner), device=device)

    slot = blank(grid**3, dtype=torch.long, device=device)
    slot[cubes] = torch.arange(len(cubes), device=device)
    # the slots [A, 8] of the cubes at a cube's corners; arbitrary for those without a cut edge
    neighbours = _take(slot, (cubes[:, None] + steps).reshape(-1))
    local = tables.triangle_edges.index_select(
        0, _take(codes, cube) * _MOST_TRIANGLES + number
    )  # corner * 8 + direction
    owners = _take(neighbours, (cube[:, None] * 8 + (local >> 3)).reshape(-1))
    return CutEdges(
        resolution=grid - 1,
        first=first,
        second=first + _take(steps, direction),
        first_inside=(owner_code & 1) > 0,
        faces=_take(vertex_of, owners * 8 + (local & 7).reshape(-1)).reshape(-1, 3),
        size=size,
    )


def _pad_faces(faces: Tensor, size: Tensor, capacity: Capacity) -> Tensor:
    """The faces, with padding after the surface's own that uses all free vertices, against contention."""
    item = torch.arange(capacity.faces, device=faces.device)
    free = (capacity.vertices - size[2]).clamp(min=1)
    padding = capacity.vertices - 1 - item % free
    return torch.where((item < size[3])[:, None], faces, padding[:, None])


def cut_points(
    cut_edges: CutEdges,
    first_sdf: Float[Tensor, " V"],
    second_sdf: Float[Tensor, " V"],
    offsets: tuple[Float[Tensor, "V 3"], Float[Tensor, "V 3"]] | None = None,
) -> Float[Tensor, "V 3"]:
    """Vertices at the zeros of the SDF, linear along an edge: a + (b - a) s_a / (s_a - s_b)."""
    cell = 2.0 / cut_edges.resolution
    if first_sdf.numel() == 0:
        return first_sdf.new_zeros(0, 3)
    # A boundary point that would be inside is taken as half a cell outside.
    outside = torch.full_like(first_sdf, cell / 2).detach()
    first_sdf = torch.where(~cut_edges.first_inside & (first_sdf < 0), outside, first_sdf)
    second_sdf = torch.where(cut_edges.first_inside & (second_sdf < 0), outside, second_sdf)
    span = first_sdf - second_sdf  # not zero, since the ends' signs differ; bounded against underflow
    tiny = 1e-6 * cell
    span = torch.where(cut_edges.first_inside, span.clamp(max=-tiny), span.clamp(min=tiny))
    fraction = (first_sdf / span)[:, None]
    start = _coordinates(cut_edges.first, cut_edges.resolution)
    vertices = start + (_coordinates(cut_edges.second, cut_edges.resolution) - start) * fraction
    if offsets is not None:
        vertices = vertices + torch.lerp(offsets[0], offsets[1], fraction)
    return vertices


def _take(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index)  # several times faster on a CPU than values[index]


def _resolution(sdf: Tensor) -> int:
    size = round(sdf.numel() ** (1 / 3))
    if size**3 != sdf.numel() or size < 3:
        raise ValueError(f"sdf must hold (R + 1)^3 values with R >= 2, got {tuple(sdf.shape)}")
    return size - 1


@cache
def _corner_steps(size: int, device: str) -> Tensor:
    """Flat index step to each corner of a cube; corner bits are 1 = +z, 2 = +y, 4 = +x."""
    steps = [(c & 1) + size * (c >> 1 & 1) + size * size * (c >> 2) for c in range(8)]
    return torch.tensor(steps, device=device)


def _cube_codes(sdf: Tensor) -> Tensor:
    """Bit c of a cube's code is set where its corner c is inside; a cube has the index of its lowest corner.

    The shifts are over the flat grid. Where they wrap around a boundary they read boundary points only, which
    are outside, so that cubes beyond the boundary have code 0.
    """
    size = _resolution(sdf) + 1
    inside = torch.zeros(size, size, size, dtype=torch.uint8, device=sdf.device)
    core = slice(1, -1)
    inside[core, core, core] = sdf.reshape(size, size, size)[core, core, core] < 0
    code = inside.reshape(-1)
    for step, shift in ((1, 1), (size, 2), (size * size, 4)):
        code = code[:-step] | (code[step:] << shift)
    return code


def _finite(values: Sequence[Tensor]) -> Tensor:
    return torch.isfinite(torch.stack([tensor.sum() for tensor in values]).sum()).long()


def _size(code: Tensor, values: Sequence[Tensor]) -> Tensor:
    counts = _take(_tables(str(code.device)).counts, code.int()).sum(0)
    return torch.cat([_finite(values)[None], counts])


def _spread(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """The parent of each item and its number there, for `counts` items of each parent."""
    parent = torch.repeat_interleave(counts, output_size=total)
    start = counts.cumsum(0) - counts
    return parent, torch.arange(total, device=counts.device) - _take(start, parent)


def _spread_into(counts: Tensor, capacity: int, most: int) -> tuple[Tensor, Tensor]:
    """`_spread` at a fixed capacity: items after the last one belong to the last parent, below `most`."""
    ends, item = counts.cumsum(0), torch.arange(capacity, device=counts.device)
    parent = torch.searchsorted(ends, item, right=True).clamp(max=len(counts) - 1)
    return parent, (item - _take(ends - counts, parent)).clamp(max=most - 1)


def _coordinates(index: Tensor, resolution: int) -> Tensor:
    size = resolution + 1
    axes = torch.stack([index // (size * size), index // size % size, index % size], dim=-1)
    return axes.float() * (2.0 / resolution) - 1.0


@dataclass(frozen=True)
class _Tables:
    counts: Tensor  # [256, 3] cut or not, cut edges, triangles; one byte each, as a whole grid is looked up
    edge_count: Tensor  # [256] cut edges that leave the lowest corner
    edge_direction: Tensor  # [256 * 7] their directions, 1 to 7
    triangle_count: Tensor  # [256]
    triangle_edges: Tensor  # [256 * 12, 3] lower corner * 8 + direction


@cache
def _tables(device: str) -> _Tables:
    directions = [[d for d in range(1, 8) if (code >> d ^ code) & 1] for code in range(256)]
    triangles = [[t for tetrahedron in _kuhn() for t in _triangles(tetrahedron, code)] for code in range(256)]
    edges = torch.zeros(256, 7, dtype=torch.long)
    table = torch.zeros(256, _MOST_TRIANGLES, 3, dtype=torch.long)
    for code in range(256):
        edges[code, : len(directions[code])] = torch.tensor(directions[code], dtype=torch.long)
        if triangles[code]:
            table[code, : len(triangles[code])] = torch.tensor(triangles[code])
    counts = [[0 < code < 255, len(directions[code]), len(triangles[code])] for code in range(256)]
    return _Tables(
        counts=torch.tensor(counts, dtype=torch.uint8, device=device),
        edge_count=torch.tensor([len(d) for d in directions], device=device),
        edge_direction=edges.reshape(-1).to(device),
        triangle_count=torch.tensor([len(t) for t in triangles], device=device),
        triangle_edges=table.reshape(-1, 3).to(device),
    )


def _kuhn() -> Iterator[tuple[int, int, int, int]]:
    for a, b, _ in permutations((1, 2, 4)):
        yield 0, a, a | b, 7


def _triangles(tetrahedron: tuple[int, ...], code: int) -> list[list[int]]:
    """Triangles that separate a tetrahedron's inside corners from the outside ones, facing outside."""
    inside = [c for c in tetrahedron if code >> c & 1]
    outside = [c for c in tetrahedron if not code >> c & 1]
    if not inside or not outside:
        return []
    if len(inside) == 2:
        (a, b), (c, d) = inside, outside
        loop = [(a, c), (a, d), (b, d), (b, c)]
    else:
        loop = [(i, o) for i in inside for o in outside]
    corner = [torch.tensor([c >> 2, c >> 1 & 1, c & 1]).double() for c in range(8)]
    middle = [(corner[i] + corner[o]) / 2 for i, o in loop]
    normal = torch.linalg.cross(middle[1] - middle[0], middle[2] - middle[0])
    if normal @ (corner[outside[0]] - corner[inside[0]]) < 0:
        loop.reverse()
    edges = [min(pair) * 8 + (pair[0] ^ pair[1]) for pair in loop]
    return [edges[:3]] if len(edges) == 3 else [edges[:3], [edges[0], edges[2], edges[3]]]
