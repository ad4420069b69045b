"""Differentiable rasterisation and interpolation with the z-buffer kernels of a backend."""

from typing import Any, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import Function

from pgc3d.types import Fragments

Clip: TypeAlias = Float[Tensor, "B V 4"]
Faces: TypeAlias = Int[Tensor, "F 3"]
Data: TypeAlias = Float[Tensor, "B H W 4"]  # of `Fragments`
Attributes: TypeAlias = Float[Tensor, "A V C"]  # A = 1 or B


@runtime_checkable
class Kernels(Protocol):
    """The functions of a kernel module; tensors are contiguous, and `kernels.zbuffer` defines the rules."""

    def find_visible(self, clip: Clip, faces: Faces, height: int, width: int) -> Data: ...

    def find_visible_backward(self, gradient: Data, clip: Clip, data: Data, faces: Faces) -> Clip: ...

    def interpolate(self, attributes: Attributes, data: Data, faces: Faces) -> Float[Tensor, "B H W C"]: ...

    def interpolate_backward(
        self,
        gradient: Float[Tensor, "B H W C"],
        attributes: Attributes,
        data: Data,
        faces: Faces,
        *,
        need_attributes: bool,
    ) -> tuple[Attributes | None, Data]: ...


def rasterize(
    kernels: Kernels,
    clip: Float[Tensor, "B V 4"],
    faces: Int[Tensor, "F 3"],
    resolution: tuple[int, int],
) -> Fragments:
    """The nearest triangle of every pixel; u and v are differentiable in x, y and w of `clip`."""
    data: Tensor = _Rasterize.apply(clip, faces.long().contiguous(), *resolution, kernels)  # type: ignore[no-untyped-call]
    return Fragments(data=data)


def interpolate(
    kernels: Kernels,
    attributes: Float[Tensor, "A V C"],
    fragments: Fragments,
    faces: Int[Tensor, "F 3"],
) -> Float[Tensor, "B H W C"]:
    """Interpolate vertex attributes (A = 1 or B) at the pixels; differentiable in them and in u and v."""
    output: Tensor = _Interpolate.apply(attributes, fragments.data, faces.long().contiguous(), kernels)  # type: ignore[no-untyped-call]
    return output


class _Rasterize(Function):
    @staticmethod
    def forward(ctx: Any, clip: Tensor, faces: Tensor, height: int, width: int, kernels: Kernels) -> Tensor:
        clip = clip.contiguous()
        data = kernels.find_visible(clip, faces, height, width)
        ctx.kernels = kernels
        ctx.save_for_backward(clip, faces, data)
        return data

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        clip, faces, data = ctx.saved_tensors
        grad_clip = ctx.kernels.find_visible_backward(
            gradient.contiguous(), clip.detach(), data.detach(), faces
        )
        return grad_clip, None, None, None, None


class _Interpolate(Function):
    @staticmethod
    def forward(ctx: Any, attributes: Tensor, data: Tensor, faces: Tensor, kernels: Kernels) -> Tensor:
        attributes, data = attributes.contiguous(), data.contiguous()
        ctx.kernels = kernels
        ctx.save_for_backward(attributes, data, faces)
        return kernels.interpolate(attributes, data, faces)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        attributes, data, faces = ctx.saved_tensors
        grad_attributes, grad_data = ctx.kernels.interpolate_backward(
            gradient.contiguous(),
            attributes.detach(),
            data.detach(),
            faces,
            need_attributes=bool(ctx.needs_input_grad[0]),
        )
        return grad_attributes, grad_data, None, None
