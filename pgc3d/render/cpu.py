"""The rasteriser for machines without CUDA: numba finds what is visible, gradients are analytic."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels import zbuffer_numba
from pgc3d.types import Fragments

_JOBS = 4  # fixed, not the number of threads, so that sums do not depend on the machine's cores


def _chunks(views: int) -> int:
    return max(1, _JOBS // max(views, 1))


class _Rasterize(torch.autograd.Function):
    """u and v are differentiable to x, y and w of the clip positions; z/w and the index are not."""

    @staticmethod
    def forward(ctx: Any, clip: Tensor, faces: Tensor, height: int, width: int) -> Tensor:
        clip = clip.contiguous()
        data = torch.empty(clip.shape[0], height, width, 4, dtype=clip.dtype)
        positions, triangles = clip.detach().numpy(), faces.numpy()
        bounds = zbuffer_numba.triangle_bounds(positions, triangles, height, width)
        starts, binned = zbuffer_numba.bin_triangles(bounds, height)
        zbuffer_numba.fill(positions, triangles, bounds, starts, binned, data.numpy())
        ctx.save_for_backward(clip, faces, data)
        return data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        clip, faces, data = ctx.saved_tensors
        partial = clip.new_zeros(clip.shape[0], _chunks(clip.shape[0]), *clip.shape[1:])
        zbuffer_numba.rasterize_backward(
            gradient.contiguous().numpy(),
            clip.detach().numpy(),
            data.detach().numpy(),
            faces.numpy(),
            partial.numpy(),
        )
        return partial.sum(1), None, None, None


class _Interpolate(torch.autograd.Function):
    """Differentiable to the attributes and to u and v."""

    @staticmethod
    def forward(ctx: Any, attributes: Tensor, data: Tensor, faces: Tensor) -> Tensor:
        attributes, data = attributes.contiguous(), data.contiguous()
        output = attributes.new_empty(*data.shape[:3], attributes.shape[2])
        zbuffer_numba.interpolate(
            attributes.detach().numpy(), data.detach().numpy(), faces.numpy(), output.numpy()
        )
        ctx.save_for_backward(attributes, data, faces)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        attributes, data, faces = ctx.saved_tensors
        need_attributes = bool(ctx.needs_input_grad[0])
        views, chunks = data.shape[0], _chunks(data.shape[0])
        grad_data = torch.empty_like(data)
        partial = attributes.new_zeros(views, chunks, *(attributes.shape[1:] if need_attributes else (0, 0)))
        zbuffer_numba.interpolate_backward(
            gradient.contiguous().numpy(),
            attributes.detach().numpy(),
            data.detach().numpy(),
            faces.numpy(),
            grad_data.numpy(),
            partial.numpy(),
            need_attributes,
        )
        if not need_attributes:
            return None, grad_data, None
        shared = attributes.shape[0] == 1
        return partial.sum((0, 1)).unsqueeze(0) if shared else partial.sum(1), grad_data, None


class CpuRasterizer:
    """Z-buffer on the CPU; nothing is culled, triangles may cross or lie behind the camera plane.

    Triangles with a vertex that is not finite, or with no area, are not drawn. Triangle indices are stored in
    the floating type of the clip positions: exact up to 16 million triangles in float32.
    """

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Fragments:
        """Find the nearest triangle of every pixel; resolution is (height, width)."""
        data: Tensor = _Rasterize.apply(clip, faces.long().contiguous(), *resolution)  # type: ignore[no-untyped-call]
        return Fragments(data=data)

    def interpolate(
        self, attributes: Float[Tensor, "A V C"], fragments: Fragments, faces: Int[Tensor, "F 3"]
    ) -> Float[Tensor, "B H W C"]:
        """Spread vertex attributes (A = 1 or B) over the pixels, 0 where nothing was hit."""
        faces = faces.long().contiguous()
        output: Tensor = _Interpolate.apply(attributes, fragments.data, faces)  # type: ignore[no-untyped-call]
        return output
