"""The surface of the default scene of a glTF or GLB, with its colours.

Skins are in the pose of their joints, morph targets have their default weights, instances are copied.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgc3d.errors import InputError
from pgc3d.mesh_io.gltf_deform import Placed, copied, joint_matrices, moved, placed, skinned
from pgc3d.mesh_io.gltf_document import Document, Entry, compressed, parse_document
from pgc3d.mesh_io.gltf_losses import losses
from pgc3d.mesh_io.gltf_material import SHADERS, coordinate_set, image_files, read_materials
from pgc3d.mesh_io.gltf_primitive import (
    Block,
    Floats,
    Indices,
    Part,
    Primitive,
    block_key,
    first_corners,
    is_cut,
    is_surface,
    read_block,
    read_faces,
    read_uv,
    repeated,
    require_plain,
    sizes,
)
from pgc3d.mesh_io.gltf_scene import INSTANCING, Scene, Shown, placements, read_scene
from pgc3d.mesh_io.limits import inside, require_counts
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.mesh_io.surface import in_single
from pgc3d.rendering.shading import linear_to_srgb
from pgc3d.types import FaceLabels

READ = (INSTANCING, "KHR_mesh_quantization", "KHR_node_visibility", "KHR_texture_transform", *SHADERS)
# they do not change where the surface is
HARMLESS = (
    "KHR_materials", "KHR_texture", "KHR_lights", "KHR_animation", "KHR_xmp", "KHR_audio", "EXT_texture",
    "EXT_materials", "EXT_lights", "MSFT_texture", "MSFT_packing", "VRM", "VRMC",
)  # fmt: skip
COMPRESSIONS = {
    "KHR_draco_mesh_compression": "Draco",
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
}


def read_gltf(data: bytes, path: Path) -> SourceMesh:
    """The surface of a glTF or GLB, whichever `data` is; `path` locates its other files.

    Raises:
        InputError: it is damaged, compressed, too large, or requires an unsupported extension.
    """
    document = parse_document(data, path)
    _require_known(document)
    scene = read_scene(document)
    notes = [*_require_sizes(document, scene), *_notes(document, scene)]
    builder = _Builder(document, scene)
    for shown in scene.shown:
        builder.add(shown)
    return builder.finish(tuple(notes), losses(document, scene))


def read_parts(document: Document) -> tuple[Part, ...]:
    """The parts of the default scene, whose faces are those of `read_gltf` in the same order.

    Raises:
        InputError: as `read_gltf`.
    """
    builder = _Builder(document, read_scene(document))
    for shown in builder.scene.shown:
        builder.add(shown)
    return tuple(builder.pieces)


def gltf_files(data: bytes, path: Path) -> list[Path]:
    """The files beside a glTF that its surface and its colours come from, where they exist."""
    document = parse_document(data, path)
    uris = [entry.text("uri") for entry in document.buffers if "uri" in entry]
    named = [uri for uri in uris if uri[:5].lower() != "data:"] + image_files(document)
    located = []
    for uri in named:
        try:
            target = inside(path.parent, uri, path)
        except InputError:
            continue
        if target.is_file():
            located.append(target)
    return located


def _require_known(document: Document) -> None:
    required = document.root.texts("extensionsRequired")
    for name in required:
        if name in COMPRESSIONS:
            raise compressed(document.path, COMPRESSIONS[name], name)
    unknown = [name[:60] for name in required if name not in READ and not name.startswith(HARMLESS)]
    if unknown:
        raise InputError(
            f"a glTF file must not require extensions that are not read, but {document.path.name} requires "
            f"{', '.join(unknown[:5])}; export it without"
        )


def _require_sizes(document: Document, scene: Scene) -> list[str]:
    """Check the size before any data is read; the notes about primitives that are no surface."""
    vertices = faces = lines = cut = 0
    of_mesh: dict[int, tuple[int, int, int, int]] = {}
    for shown in scene.shown:
        if shown.mesh not in of_mesh:
            of_mesh[shown.mesh] = _size(document, document.meshes[shown.mesh])
        size = of_mesh[shown.mesh]
        vertices += shown.copies * size[0]
        faces += shown.copies * size[1]
        lines, cut = lines + size[2], cut + size[3]
    require_counts(document.path, vertices=vertices, faces=faces)
    counted = {"of points or lines passed over": lines, "with an incomplete last triangle, left out": cut}
    return [f"{n} {'part' if n == 1 else 'parts'} {what}" for what, n in counted.items() if n]


def _size(document: Document, mesh: Entry) -> tuple[int, int, int, int]:
    """Vertices, faces, primitives that are no surface, and those whose last triangle lacks corners."""
    blocks: dict[str, int] = {}
    faces = skipped = cut = 0
    for primitive in mesh.entries("primitives"):
        if not is_surface(primitive):
            skipped += 1
            continue
        require_plain(document, primitive)
        vertices, number = sizes(document, primitive)
        blocks[block_key(primitive)] = vertices
        faces += number
        cut += is_cut(document, primitive)
    return sum(blocks.values()), faces, skipped, cut


def _notes(document: Document, scene: Scene) -> list[str]:
    notes = []
    if scene.hidden:
        notes.append(f"{scene.hidden} hidden {'node' if scene.hidden == 1 else 'nodes'} left out")
    outside = []
    for uri in image_files(document):
        try:
            inside(document.path.parent, uri, document.path)
        except InputError:
            outside.append(uri)
    if outside:
        more = "" if len(outside) == 1 else f" and {len(outside) - 1} more"
        notes.append(f"image {outside[0][:100]!r}{more} lies outside the folder; it is not opened")
    return notes


@dataclass
class _Builder:
    """Accumulates the arrays of a `SourceMesh`."""

    document: Document
    scene: Scene
    vertices: list[Floats] = field(default_factory=list)
    faces: list[Indices] = field(default_factory=list)
    normals: list[Floats] = field(default_factory=list)
    normal_faces: list[Indices] = field(default_factory=list)
    uv: list[Floats] = field(default_factory=list)
    uv_faces: list[Indices] = field(default_factory=list)
    colors: list[Floats] = field(default_factory=list)
    materials: list[Indices] = field(default_factory=list)
    parts: list[Indices] = field(default_factory=list)
    local: list[Indices] = field(default_factory=list)  # the faces, in vertices of the primitive's copies
    pieces: list[Part] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: {"vertices": 0, "normals": 0, "uv": 0, "parts": 0})
    colored: bool = False
    meshes: dict[tuple[int, tuple[float, ...]], tuple[list[Block], list[Primitive]]] = field(
        default_factory=dict
    )

    def add(self, shown: Shown) -> None:
        """All copies of a mesh at a node."""
        mesh, before = self.document.meshes[shown.mesh], len(self.local)
        weights = shown.weights
        if weights is None:
            weights = tuple(mesh.numbers("weights", None) or ())
        key = (shown.mesh, weights)
        if key not in self.meshes:
            self.meshes[key] = _read_mesh(self.document, mesh, weights)
        blocks, primitives = self.meshes[key]
        matrices = placements(self.document, shown)
        if shown.skin is None:
            self._add_copies(blocks, primitives, matrices)
        else:
            joints = joint_matrices(self.document, shown.skin, self.scene)
            for matrix in matrices:
                self._add_skinned(blocks, primitives, matrix, joints, instanced=shown.instances is not None)
        for place, faces in enumerate(self.local[before:]):
            primitive = primitives[place % len(primitives)]
            self._add_parts(faces % len(blocks[primitive.block].positions), primitive, shown)

    def _add_parts(self, faces: Indices, primitive: Primitive, shown: Shown) -> None:
        """The parts of all copies, whose faces are in vertices of the primitive."""
        each = max(len(primitive.faces), 1)
        self.pieces += [
            Part(shown.node, shown.mesh, primitive.number, faces[start : start + each])
            for start in range(0, len(faces), each)
        ]

    def _add_copies(self, blocks: list[Block], primitives: list[Primitive], matrices: Floats) -> None:
        starts = []
        for block in blocks:
            located = placed(block, matrices[0]) if len(matrices) == 1 else copied(block, matrices)
            starts.append((self.counts["vertices"], self.counts["normals"], located))
            self._add_vertices(block, located)
        for primitive in primitives:
            whole = repeated(primitive, len(matrices), len(blocks[primitive.block].positions))
            self._add_faces(whole, *starts[primitive.block])

    def _add_skinned(
        self,
        blocks: list[Block],
        primitives: list[Primitive],
        matrix: Floats,
        joints: Floats,
        *,
        instanced: bool,
    ) -> None:
        starts = []
        for block in blocks:
            if block.joints is None:
                located = placed(block, matrix)
            else:
                located = skinned(self.document, block, joints)
                located = moved(located, matrix) if instanced else located
            starts.append((self.counts["vertices"], self.counts["normals"], located))
            self._add_vertices(block, located)
        for primitive in primitives:
            self._add_faces(primitive, *starts[primitive.block])

    def _add_vertices(self, block: Block, located: Placed) -> None:
        self.vertices.append(located.positions)
        self.counts["vertices"] += len(located.positions)
        if located.normals is not None:
            self.normals.append(located.normals)
            self.counts["normals"] += len(located.normals)
        self.colored |= block.colors is not None
        colors = np.ones((len(block.positions), 4)) if block.colors is None else block.colors
        self.colors.append(np.tile(colors, (len(located.positions) // max(len(colors), 1), 1)))

    def _add_faces(self, primitive: Primitive, vertex: int, normal: int, located: Placed) -> None:
        faces = primitive.faces
        turned = located.mirrored[faces].sum(axis=1) >= 2
        if turned.any():
            faces = np.where(turned[:, None], faces[:, ::-1], faces)
        self.local.append(faces)
        nowhere = np.full_like(faces, -1)
        self.faces.append(faces + vertex)
        self.normal_faces.append(nowhere if located.normals is None else faces + normal)
        self.uv_faces.append(nowhere if primitive.uv is None else faces + self.counts["uv"])
        if primitive.uv is not None:
            self.uv.append(primitive.uv * (1, -1) + (0, 1))  # v points up
            self.counts["uv"] += len(primitive.uv)
        material = -1 if primitive.material is None else primitive.material
        self.materials.append(np.full(len(faces), material, dtype=np.int64))
        self.parts.append(np.full(len(faces), self.counts["parts"], dtype=np.int64))
        self.counts["parts"] += 1

    def finish(self, notes: tuple[str, ...], lost: tuple[str, ...]) -> SourceMesh:
        """The source mesh as tensors."""
        if not self.faces:
            require_counts(self.document.path, faces=0)
        colors = torch.from_numpy(np.concatenate(self.colors)).float() if self.colored else None
        if colors is not None:
            colors = torch.cat([linear_to_srgb(colors[:, :3]), colors[:, 3:]], dim=1)
        faces = np.concatenate(self.faces)
        first, own = first_corners(self.pieces), np.arange(faces.size).reshape(-1, 3)
        vertices, more = in_single(np.concatenate(self.vertices), faces, self.document.path)
        return SourceMesh(
            vertices=vertices,
            faces=torch.from_numpy(faces.astype(np.int64)),
            normals=_floats(self.normals),
            normal_faces=_indices(self.normal_faces) if self.normals else None,
            uv=_floats(self.uv),
            uv_faces=_indices(self.uv_faces) if self.uv else None,
            vertex_color=colors,
            face_material=torch.from_numpy(np.concatenate(self.materials)),
            materials=read_materials(self.document),
            notes=(*notes, *more),
            lost=lost,
            face_part=torch.from_numpy(np.concatenate(self.parts)),
            linear_colors=True,
            labels=self._labels(),
            first_corners=None if np.array_equal(first, own) else torch.from_numpy(first),
        )

    def _labels(self) -> FaceLabels:
        materials = self.document.root.entries("materials")
        return FaceLabels(
            node=_indices([np.full(len(piece.faces), piece.node, dtype=np.int64) for piece in self.pieces]),
            material=_indices(self.materials),
            nodes=tuple(node.name("node") for node in self.document.nodes),
            parents=self.scene.parents,
            materials=tuple(material.name("material") for material in materials),
        )


def _floats(parts: list[Floats]) -> Tensor | None:
    return torch.from_numpy(np.concatenate(parts)).float() if parts else None


def _indices(parts: list[Indices]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts)))


def _read_mesh(
    document: Document, mesh: Entry, weights: tuple[float, ...]
) -> tuple[list[Block], list[Primitive]]:
    """The primitives of a mesh that are surfaces, with the vertices that they share."""
    materials = document.root.entries("materials")
    blocks: list[Block] = []
    places: dict[str, int] = {}
    primitives = []
    for number, entry in enumerate(mesh.entries("primitives")):
        if not is_surface(entry):
            continue
        key = block_key(entry)
        if key not in places:
            places[key] = len(blocks)
            blocks.append(read_block(document, entry, entry.entries("targets"), weights))
        material = entry.index("material", len(materials))
        coordinates = coordinate_set(None if material is None else materials[material])
        uv = read_uv(document, entry, coordinates)
        if uv is None and coordinates:
            uv = read_uv(document, entry, 0)
        primitives.append(Primitive(places[key], read_faces(document, entry), uv, material, number))
    return blocks, primitives
