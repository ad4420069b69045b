"""The rasteriser for CPUs: z-buffer and interpolation kernels in numba."""

from jaxtyping import Float, Int
from torch import Tensor

from pgc3d.kernels import zbuffer_numba
from pgc3d.rendering import zbuffer
from pgc3d.types import Fragments


class CpuRasterizer:
    """Z-buffer on the CPU; nothing is culled, triangles may cross or lie behind the camera plane.

    Triangles with a vertex that is not finite, or with no area, are not drawn. Triangle indices are stored in
    the floating type of the clip positions: exact up to 16 million triangles in float32.
    """

    def rasterize(
        self, clip: Float[Tensor, "B V 4"], faces: Int[Tensor, "F 3"], resolution: tuple[int, int]
    ) -> Fragments:
        """The nearest triangle of every pixel; resolution is (height, width)."""
        return zbuffer.rasterize(zbuffer_numba, clip, faces, resolution)

    def interpolate(
        self, attributes: Float[Tensor, "A V C"], fragments: Fragments, faces: Int[Tensor, "F 3"]
    ) -> Float[Tensor, "B H W C"]:
        """Interpolate vertex attributes (A = 1 or B) at the pixels, 0 where nothing was hit."""
        return zbuffer.interpolate(zbuffer_numba, attributes, fragments, faces)
