"""Value types of the interfaces between the parts of pgc3d.

Letters in shapes: B views, H W pixels, V vertices, F faces, P points, C channels, T tokens.
Images are channel last, row 0 on top, sRGB in [0, 1] unless stated otherwise. Angles are radians.
The world is right handed, y up, the object's front is +z (glTF axes); a camera looks along its -z.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from pgc3d.shard import WHOLE, Shard

LEAST_SIDE = 64  # of the images of a texture set that is smaller than others, in texels


def seeded(*names: object) -> torch.Generator:
    """A new CPU generator, seeded by a hash of the names: a seed, a stage, a use."""
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


@dataclass(frozen=True)
class Step:
    """One optimisation step: its place in the stage, and its source of random numbers.

    Generators are seeded by (seed, stage, scope, name, index), so there is no state to save: the random
    numbers of a resumed run are those of an uninterrupted one, and independent of other draws.
    """

    index: int  # from 0
    total: int  # number of steps of the stage
    seed: int = 0
    stage: str = "main"
    scope: str = ""  # within an objective, its name
    shard: Shard = WHOLE
    views: int = 0  # within an objective, the number of its views in all processes

    @property
    def progress(self) -> float:
        """Progress of the stage in [0, 1]: 0 at the first step, 1 at the last one."""
        return self.index / max(self.total - 1, 1)

    def within(self, scope: str) -> "Step":
        """The same step with other random numbers, those of `scope`."""
        return replace(self, scope=scope)

    def rows(self, own: int) -> tuple[int, slice]:
        """The number of rows of all processes, and which of them are the `own` rows of this one.

        Random numbers are drawn for all rows, so that they do not depend on the number of processes.

        Args:
            own: rows of this process, at least one; the same number for each of its views.
        """
        if not self.views:
            return own, slice(0, own)
        part = self.shard.rows(self.views)
        each = own // (part.stop - part.start)
        return self.views * each, slice(part.start * each, part.stop * each)

    def generator(self, name: str) -> torch.Generator:
        """A new CPU generator for the use `name`; the same call returns one with the same numbers."""
        return seeded(self.seed, self.stage, self.scope, name, self.index)


@dataclass(frozen=True)
class Cameras:
    """B perspective cameras directed at the object; `cameras.py` states the convention."""

    camera_from_world: Float[Tensor, "B 4 4"]
    clip_from_camera: Float[Tensor, "B 4 4"]  # OpenGL clip space: y up, z/w = -1 near and +1 far
    azimuth: Float[Tensor, " B"]  # radians; 0 on +z, grows towards +x
    elevation: Float[Tensor, " B"]  # radians; positive above the object
    distance: Float[Tensor, " B"]  # to the point in the middle of the image

    @property
    def position(self) -> Float[Tensor, "B 3"]:
        """Camera centres in the world."""
        rotation, translation = self.camera_from_world[:, :3, :3], self.camera_from_world[:, :3, 3:]
        return -(rotation.transpose(1, 2) @ translation)[..., 0]

    @property
    def clip_from_world(self) -> Float[Tensor, "B 4 4"]:
        """Matrices from the world to clip space."""
        return self.clip_from_camera @ self.camera_from_world

    def __len__(self) -> int:
        return self.azimuth.shape[0]

    def __getitem__(self, views: slice | Int[Tensor, " K"]) -> "Cameras":
        """Some of the cameras."""
        return Cameras(**{name: value[views] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> "Cameras":
        """The same cameras on another device; copies from the host are asynchronous."""
        moved = {name: value.to(device, non_blocking=not value.is_cuda) for name, value in vars(self).items()}
        return Cameras(**moved)


@dataclass(frozen=True)
class Views:
    """B views to render: the cameras, and the background colour of each."""

    cameras: Cameras
    background: Float[Tensor, "B 3"]  # sRGB; of a background image, its mean

    def __len__(self) -> int:
        return len(self.cameras)


@dataclass(frozen=True)
class Mesh:
    """A smooth triangle surface without colours: what a representation extracts and a stage hands over.

    Faces are counter-clockwise seen from outside. `PreparedMesh` is a mesh of the user to be textured, and in
    `mesh_io` are `SourceMesh`, the contents of a file, and `MeshAsset`, a mesh with its colours.
    """

    vertices: Float[Tensor, "V 3"]
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "V 3"]  # unit, outward


@dataclass(frozen=True)
class Material:
    """Surface properties at points; base_color is sRGB in [0, 1], the others are linear in [0, 1]."""

    base_color: Float[Tensor, "P 3"]
    roughness: Float[Tensor, "P 1"]
    metallic: Float[Tensor, "P 1"]
    # Bump: the normal is (x, y, 1) along tangent, bitangent and normal, normalised; None where it is smooth.
    slope: Float[Tensor, "P 2"] | None = None


@dataclass(frozen=True)
class Fragments:
    """The visible triangle of each pixel, in nvdiffrast's layout but with row 0 on top.

    The channels are barycentrics u and v (weights of the triangle's first and second vertex), depth z/w, and
    the triangle's index plus one, 0 where no triangle covers the pixel. u and v have gradients with respect
    to the vertices.
    """

    data: Float[Tensor, "B H W 4"]

    @property
    def mask(self) -> Float[Tensor, "B H W 1"]:
        """1 where a triangle covers the pixel, else 0."""
        return (self.data[..., 3:] > 0).to(self.data.dtype)

    @property
    def triangle(self) -> Int[Tensor, "B H W"]:
        """Index of the triangle, -1 where none covers the pixel."""
        return self.data[..., 3].long() - 1


Buffer = Literal["color", "normal", "depth", "alpha"]


@dataclass(frozen=True)
class Rendering:
    """B images of a representation, differentiable, composited over `background`."""

    color: Float[Tensor, "B H W 3"]  # sRGB, shaded
    normal: Float[Tensor, "B H W 3"]  # world space, outward, (n + 1) / 2; background 0.5
    depth: Float[Tensor, "B H W 1"]  # distance along the camera's -z, 0 where no surface is
    alpha: Float[Tensor, "B H W 1"]  # antialiased coverage
    background: Float[Tensor, "B 3"]  # sRGB; of a background image, its mean
    # On the device. False: part of the surface is missing, as it exceeded a buffer's capacity, and the step
    # must be skipped. None: the rendering is always complete.
    complete: Bool[Tensor, ""] | None = None


@dataclass(frozen=True)
class TextEmbedding:
    """N encoded prompts of T tokens; `pooled` for layouts that use it (SDXL)."""

    tokens: Float[Tensor, "N T C"]
    pooled: Float[Tensor, "N D"] | None


@dataclass(frozen=True)
class GuidanceOutput:
    """The gradient of a guidance's loss with respect to an image.

    It is in float32, of a loss that is summed over the image and not divided by the batch, and without a loss
    scale, so that a clipping threshold is absolute.
    """

    gradient: Float[Tensor, "B H W C"]  # d loss / d image
    # Such gradients of other buffers, at the resolution of the rendering; they are not clipped.
    buffers: Mapping[Buffer, Float[Tensor, "B h w _"]] = field(default_factory=dict)
    metrics: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)  # scalars on the device


@dataclass(frozen=True)
class Handover:
    """The result of a stage, on the device, in a form that a stage with any representation can start from."""

    surface: Mesh | None  # in the world
    sdf: Callable[[Float[Tensor, "P 3"]], Float[Tensor, " P"]] | None  # signed distance, negative inside
    material: Callable[[Float[Tensor, "P 3"]], Material]
    state: Mapping[str, Tensor] = field(default_factory=dict)  # weights, copied where names and shapes agree
    notes: tuple[str, ...] = ()  # what was found on the way, and lost; lines for the user


@dataclass(frozen=True)
class Placement:
    """The transform from an input mesh's file to the world: world = scale * rotation (point - centre)."""

    rotation: Float[Tensor, "3 3"]  # world from file, det +1
    centre: Float[Tensor, " 3"]  # in the file's coordinates
    scale: float

    @classmethod
    def identity(cls) -> "Placement":
        """The placement of a mesh that stands in the world's coordinates already."""
        return cls(torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), 1.0)

    def to_world(self, points: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        """Points of the file, in the world's coordinates."""
        rotation, centre = self.rotation.to(points.device), self.centre.to(points.device)
        return (self.scale * (points.double() - centre) @ rotation.T).to(points.dtype)

    def rotate(self, directions: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3"]:
        """Directions of the file, in the world's axes; their length does not change."""
        return directions @ self.rotation.to(directions).T


@dataclass(frozen=True)
class FaceLabels:
    """The node and the material of the file that each face belongs to, as indices in lists of names.

    Nodes of an OBJ are its objects and the groups in them. Without a name they are "node 0", "material 0".
    """

    node: Int[Tensor, " F"]  # -1 where a face belongs to none
    material: Int[Tensor, " F"]  # likewise
    nodes: tuple[str, ...]
    parents: tuple[int, ...]  # of each node, -1 for roots
    materials: tuple[str, ...]

    def to(self, device: torch.device | str) -> "FaceLabels":
        """The same labels on another device."""
        return replace(self, node=self.node.to(device), material=self.material.to(device))


@dataclass(frozen=True)
class Cutout:
    """The visible parts of faces whose material cuts holes by its alpha channel, as small triangles."""

    whole: Bool[Tensor, " F"]  # faces that are shown as they are
    parent: Int[Tensor, " K"]  # the face of each triangle
    corners: Float[Tensor, "K 3 3"]  # barycentric coordinates of its corners in that face

    def to(self, device: torch.device | str) -> "Cutout":
        """The same on another device."""
        return Cutout(self.whole.to(device), self.parent.to(device), self.corners.to(device))

    @property
    def parents(self) -> Int[Tensor, " G"]:
        """The face that each shown one is, or is a part of."""
        return torch.cat([self.whole.nonzero()[:, 0], self.parent])

    def faces(self, faces: Int[Tensor, "F 3"], count: int) -> Int[Tensor, "G 3"]:
        """The shown faces, by indices of what `values` returns for `count` values."""
        added = count + torch.arange(3 * len(self.parent), device=faces.device)
        return torch.cat([faces[self.whole], added.view(-1, 3)])

    def values(self, values: Float[Tensor, "N C"], faces: Int[Tensor, "F 3"]) -> Float[Tensor, "M C"]:
        """Values at the corners of faces, and behind them those at the corners of the small triangles."""
        return torch.cat([values, (self.corners @ values[faces[self.parent]]).flatten(0, 1)])


@dataclass(frozen=True)
class SurfaceMaps:
    """Maps of M materials of the file that a run keeps: square images, one behind the other.

    Their channels are roughness, metallic, occlusion, emission (sRGB), and x and y of the normal in tangent
    space, (n + 1) / 2. They have the file's own texture coordinates, whatever those of the texture are.
    """

    texels: UInt8[Tensor, "N 8"]  # row 0 of each image on top
    sides: Int[Tensor, " M"]  # powers of two
    repeats: Bool[Tensor, " M"]  # over the plane; otherwise the border is clamped
    face_map: Int[Tensor, " F"]  # the image of each face
    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]


@dataclass(frozen=True)
class TextureSet:
    """Faces of a prepared mesh that share the images of a material, and how their coordinates use them."""

    name: str = "surface"  # of its material in written files; no two sets of a mesh have the same
    method: str = "own"  # texture coordinates of the file, or the method by which new ones were made
    shared: bool = False  # points of the surface may share a texel: colours are a function of uv
    wraps: bool = False  # texture coordinates lie outside the unit square: the image repeats
    materials: tuple[int, ...] = ()  # of the file, whose faces it holds; -1 for faces without one
    scale: float = 1.0  # side of its images as a fraction of that of the mesh's largest: 1, 1/2, 1/4 ...

    def side(self, largest: int) -> int:
        """Side of its images in texels, where the largest of the mesh have `largest`; at least 64 of them."""
        return max(min(largest, LEAST_SIDE), round(largest * self.scale))


@dataclass(frozen=True)
class PreparedMesh:
    """An input mesh ready to be textured: each corner of a face has a normal and texture coordinates.

    In contrast to `Mesh`, normals and texture coordinates have indices of their own, so that no vertex has to
    be duplicated where they differ between faces. (0, 0) is the lower left corner of the texture image, whose
    row 0 is on top. Each texture set has images of its own, and coordinates in the unit square of its own.
    """

    vertices: Float[Tensor, "V 3"]  # in the axes and the scale of the file, in its order
    faces: Int[Tensor, "F 3"]
    normals: Float[Tensor, "N 3"]  # unit, outward
    normal_faces: Int[Tensor, "F 3"]
    uv: Float[Tensor, "U 2"]
    uv_faces: Int[Tensor, "F 3"]
    welded_faces: Int[Tensor, "F 3"]  # the faces, with the same vertex for all vertices at one position
    placement: Placement  # of the vertices in the world
    face_set: Int[Tensor, " F"]  # index into `sets`
    sets: tuple[TextureSet, ...] = (TextureSet(),)
    labels: FaceLabels | None = None  # None where the surface has neither nodes nor materials
    maps: SurfaceMaps | None = None  # None where the file has none
    # For each corner, as 3 * face + corner, that of the first instance of the same part of the file, with the
    # same texture coordinates; None where nothing is instanced.
    first_corners: Int[Tensor, "F 3"] | None = None
    cutout: Cutout | None = None  # None where no material has holes
    kept: Bool[Tensor, " F"] | None = None  # faces that keep their own look; None where all are textured

    @property
    def first_faces(self) -> Bool[Tensor, " F"]:
        """The faces of first instances: each part of the file once."""
        if self.first_corners is None:
            return torch.ones_like(self.faces[:, 0], dtype=torch.bool)
        own = torch.arange(len(self.faces), device=self.faces.device)
        return self.first_corners[:, 0] // 3 == own

    @property
    def canonical(self) -> Float[Tensor, "V 3"]:
        """The position of each vertex in the first instance of its part, where fields have its colour."""
        if self.first_corners is None:
            return self.vertices
        moved = self.vertices.clone()
        moved[self.faces.reshape(-1)] = self.vertices[self.faces.reshape(-1)[self.first_corners.reshape(-1)]]
        return moved

    @property
    def uv_method(self) -> str:
        """The methods by which the texture coordinates of the sets were made."""
        return " and ".join(dict.fromkeys(part.method for part in self.sets))

    def faces_of(self, index: int) -> Int[Tensor, " R"]:
        """The faces of a texture set."""
        return (self.face_set == index).nonzero()[:, 0]

    def in_world(self) -> "PreparedMesh":
        """The mesh in the world's coordinates, inside the unit sphere; its placement changes nothing."""
        return replace(
            self,
            vertices=self.placement.to_world(self.vertices),
            normals=self.placement.rotate(self.normals),
            placement=Placement.identity(),
        )

    def to(self, device: torch.device | str) -> "PreparedMesh":
        """The same mesh with its tensors on another device; the placement stays where it is."""
        tensors: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, FaceLabels, Cutout))
        }
        return replace(self, **tensors)


@dataclass(frozen=True)
class SourceTexture:
    """The base colours that a texture set has before a run, and where they may change."""

    image: UInt8[Tensor, "H W 3"]  # sRGB, row 0 at v = 1
    mask: UInt8[Tensor, "H W"] | None = None  # 255 where they may change, 0 where they stay; None: everywhere
