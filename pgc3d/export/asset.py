"""What is written to a file and read back from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class TexturedMesh:
    """A finished surface on the CPU, in the world's axes (y up, front +z) or in those of a given mesh.

    The normals belong to the vertices, or to the corners of the faces through `normal_faces`.
    `uv`, `uv_faces` and `base_color` are there together or not at all. (0, 0) is the lower left of the image,
    whose row 0 is on top. A PLY file carries `vertex_color` instead, an STL file neither.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "N 3"]  # unit, outward
    uv: Float[Tensor, "U 2"] | None = None
    uv_faces: Int[Tensor, "F 3"] | None = None
    base_color: UInt8[Tensor, "H W 3"] | None = None  # sRGB
    metallic_roughness: UInt8[Tensor, "R S 3"] | None = None  # linear: 255, roughness, metallic, as in glTF
    vertex_color: UInt8[Tensor, "V 3"] | None = None  # sRGB
    normal_faces: Int[Tensor, "F 3"] | None = None
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)

    @property
    def normals_of_corners(self) -> Int[Tensor, "F 3"]:
        """The faces' corners in `normals`."""
        return self.faces if self.normal_faces is None else self.normal_faces

    def __post_init__(self) -> None:
        if self.normal_faces is None and len(self.normals) != len(self.vertices):
            raise ValueError("normals must be one for each vertex, or come with normal_faces")
        present = [part is not None for part in (self.uv, self.uv_faces, self.base_color)]
        if any(present) and not all(present):
            raise ValueError("uv, uv_faces and base_color must be given together")
        if self.metallic_roughness is not None and self.base_color is None:
            raise ValueError("metallic_roughness needs uv, uv_faces and base_color")
