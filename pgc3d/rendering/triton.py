"""The rasteriser for CUDA in Triton: z-buffer and interpolation without synchronisation."""

from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels import zbuffer_triton
from pgc3d.rendering import zbuffer
from pgc3d.types import Fragments


class TritonRasterizer:
    """The z-buffer of `CpuRasterizer` on CUDA, by the same rules and with the same images.

    Visibility does not depend on the order of the threads; sums of gradients do, in their last bits.
    """

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Fragments:
        """The nearest triangle of every pixel; resolution is (height, width)."""
        return zbuffer.rasterize(zbuffer_triton, clip, faces, resolution)

    def interpolate(
        self, attributes: Float[Tensor, "A V C"], fragments: Fragments, faces: Int[Tensor, "F 3"]
    ) -> Float[Tensor, "B H W C"]:
        """Interpolate vertex attributes (A = 1 or B) at the pixels, 0 where nothing was hit."""
        return zbuffer.interpolate(zbuffer_triton, attributes, fragments, faces)
