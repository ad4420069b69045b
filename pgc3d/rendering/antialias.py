"""Silhouette antialiasing that follows the silhouette edges themselves, with their exact gradient.

Pixel-driven antialiasing (Laine et al. 2020, "Modular primitives for high-performance differentiable
rendering", section 3.6) searches the edges of the triangle at a pixel. On meshes whose triangles are smaller
than a few pixels that triangle rarely has the silhouette edge, which then has no gradient. Here every
silhouette edge is traced through the image instead, whatever its size.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.geometry.edges import EdgeTopology, sorted_topology
from pgc3d.kernels import require_triton
from pgc3d.kernels.silhouette import CutEdges
from pgc3d.types import Fragments


def edge_topology(faces: Int[Tensor, "F 3"], vertex_count: int | None = None) -> EdgeTopology:
    """The edges of a mesh with the vertices opposite to them.

    Args:
        faces: For a mesh whose vertices are duplicated along texture seams, pass faces that index one vertex
            of each group of duplicates; the seams would count as boundaries otherwise.
        vertex_count: Saves the search for the largest index, which synchronises with CUDA.
    """
    if vertex_count is None:
        vertex_count = int(faces.max()) + 1 if faces.numel() else 0
    if faces.device.type == "cpu":
        from pgc3d.kernels.silhouette_numba import find_edges

        return EdgeTopology(*find_edges(faces, vertex_count))
    return sorted_topology(faces, vertex_count)


def antialias(
    image: Float[Tensor, "B H W C"],
    fragments: Fragments,
    clip: Float[Tensor, "B V 4"],
    faces: Int[Tensor, "F 3"],
    topology: EdgeTopology | None = None,
    *,
    implementation: Literal["auto", "numba", "torch", "triton"] = "auto",
) -> Float[Tensor, "B H W C"]:
    """Blend the two pixels on either side of each silhouette edge by the fraction that the edge covers.

    Where an edge passes at a distance t from the inner pixel's centre, the inner colour covers t of the way
    to the outer centre: t - 1/2 of the outer pixel if positive, else 1/2 - t of the inner pixel takes the
    outer colour. Differentiable to the image and to the clip positions, so that d(covered area) / d(vertex)
    is right. Only the outermost edge between two pixels counts; edges with an end behind the camera are
    skipped. A feature thinner than a pixel may be mixed from more than one side, to just outside the range
    of the colours.

    Args:
        image: Any channels, one value per pixel, not yet antialiased.
        fragments: Of the rasteriser, from the same clip positions.
        clip: Clip positions.
        faces: The faces that were rasterised; only used to find the topology.
        topology: The edges of the mesh, computed when None.
        implementation: `auto` is numba on the CPU, Triton on CUDA.
    """
    if topology is None:
        topology = edge_topology(faces, clip.shape[1])
    if implementation == "auto":
        implementation = "numba" if image.device.type == "cpu" else "triton"
    if len(topology.edges) == 0 or image.numel() == 0:
        return image
    data = fragments.data.detach()
    if implementation == "triton":
        require_triton("silhouettes")
        from pgc3d.kernels.silhouette_triton import antialias_triton

        return antialias_triton(image, data, clip, topology.edges, topology.opposite)
    if implementation == "numba":
        from pgc3d.kernels.silhouette_numba import find_cut_edges
    else:
        from pgc3d.kernels.silhouette import find_cut_edges
    return blend(image, clip, topology, find_cut_edges(clip, data, topology.edges, topology.opposite))


def clamp_overshoot(image: Float[Tensor, "*P"]) -> Float[Tensor, "*P"]:
    """Clamp blended values to [0, 1]; gradients pass unchanged, so that thin features can recover."""
    clamped: Tensor = _Clamp.apply(image)  # type: ignore[no-untyped-call]
    return clamped


class _Clamp(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, image: Tensor) -> Tensor:
        return image.clamp(0, 1)

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def blend(
    image: Float[Tensor, "B H W C"],
    clip: Float[Tensor, "B V 4"],
    topology: EdgeTopology,
    cut_edges: CutEdges,
) -> Float[Tensor, "B H W C"]:
    """Mix the pixels of live crossings; differentiable to image and clip."""
    weight = _distance(clip, topology, cut_edges, image.shape[1], image.shape[2]) - 0.5
    weight = torch.where(cut_edges.live, weight, 0.0).to(image.dtype)
    mixed: Tensor = _Blend.apply(image, weight, cut_edges.inner, cut_edges.outer)  # type: ignore[no-untyped-call]
    return mixed


def _distance(
    clip: Tensor, topology: EdgeTopology, cut_edges: CutEdges, height: int, width: int
) -> Float[Tensor, " N"]:
    """Distance of the edge from the inner pixel's centre towards the outer one, in pixels.

    In float64: an edge may be much shorter than a pixel.
    """
    view = cut_edges.inner // (height * width)
    ends = topology.edges[cut_edges.edge].long().clamp(min=0) + (view * clip.shape[1])[:, None]
    corner = torch.nn.functional.embedding(ends, clip.flatten(0, 1)).double()  # [N, 2, 4]
    x = (corner[..., 0] / corner[..., 3] + 1) * (0.5 * width) - 0.5
    y = (1 - corner[..., 1] / corner[..., 3]) * (0.5 * height) - 0.5
    along_rows = cut_edges.inner // width == cut_edges.outer // width
    row, column = cut_edges.inner // width % height, cut_edges.inner % width
    major = torch.where(along_rows[:, None], y, x)
    minor = torch.where(along_rows[:, None], x, y)
    scan, pixel = torch.where(along_rows, row, column), torch.where(along_rows, column, row)
    fraction = (scan - major[:, 0]) / (major[:, 1] - major[:, 0])
    crossing = minor[:, 0] + fraction * (minor[:, 1] - minor[:, 0])
    return (crossing - pixel) * (cut_edges.outer - cut_edges.inner).sign()


class _Blend(torch.autograd.Function):
    """Add weight * (inner - outer) to the outer pixel where the weight is positive, else to the inner one.

    One function with its own backward, because autograd would make an image-sized zero for every gather.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor, weight: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
        target = torch.where(weight > 0, outer, inner)
        pixels = image.reshape(-1, image.shape[3])
        difference = pixels[inner] - pixels[outer]
        ctx.save_for_backward(weight, inner, outer, target, difference)
        return pixels.index_add(0, target, weight[:, None] * difference).view(image.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        weight, inner, outer, target, difference = ctx.saved_tensors
        pixels = gradient.reshape(-1, gradient.shape[3])
        received = pixels[target]
        grad_weight = (received * difference).sum(-1)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        flow = weight[:, None] * received
        grad_image = pixels.index_add(0, inner, flow).index_add_(0, outer, -flow)
        return grad_image.view(gradient.shape), grad_weight, None, None
