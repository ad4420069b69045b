"""The contents of a mesh file, and what texturing would keep and lose of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from pgc3d.inputs.texture_coordinates import why_unusable
from pgc3d.interfaces import Rasterizer
from pgc3d.mesh_io.bundle import document_format
from pgc3d.mesh_io.contents import Contents, read_contents
from pgc3d.mesh_io.reader import read_source
from pgc3d.mesh_io.source import SourceMesh
from pgc3d.types import FaceLabels

USABLE = "usable"


@dataclass(frozen=True)
class NodeReport:
    """A node of a glTF, an object or a group of an OBJ."""

    name: str
    parent: int  # index of its parent, -1 for roots
    triangles: int  # without those of nodes below it
    materials: tuple[str, ...]
    details: str  # mesh, skin, instances ...


@dataclass(frozen=True)
class MaterialReport:
    """A material of the faces of a mesh."""

    name: str
    triangles: int
    coordinates: str  # whether a texture of its own can use the file's texture coordinates, or why not
    details: str  # images with sizes, alpha mode


@dataclass(frozen=True)
class MeshReport:
    """A mesh file."""

    file: str
    triangles: int
    vertices: int
    size: tuple[float, float, float]  # extent along x, y and z in the file's unit
    nodes: tuple[NodeReport, ...]
    materials: tuple[MaterialReport, ...]
    coordinates: str  # as of a material, for the textures of the whole mesh
    sets: tuple[str, ...]  # of texture coordinates
    images: tuple[str, ...]
    others: tuple[str, ...]  # skins, animations, cameras ...
    kept: tuple[str, ...]  # of what a result has
    changed: tuple[str, ...]
    lost: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_mesh(path: Path, *, rasterizer: Rasterizer, device: torch.device | str = "cpu") -> MeshReport:
    """Read a mesh file and check its texture coordinates.

    Args:
        path: a mesh file.
        rasterizer: on `device`, to find overlapping charts.
        device: of the rasteriser.

    Raises:
        InputError: the file cannot be used.
    """
    source, contents = read_source(path), read_contents(path)

    def verdict(faces: torch.Tensor) -> str:
        return why_unusable(source, faces, rasterizer=rasterizer, device=device) or USABLE

    used = source.vertices[source.faces].flatten(0, 1)
    x, y, z = (used.amax(dim=0) - used.amin(dim=0)).tolist()
    whole = verdict(torch.ones(len(source.faces), dtype=torch.bool))
    return MeshReport(
        file=path.name,
        triangles=len(source.faces),
        vertices=len(source.vertices),
        size=(x, y, z),
        nodes=_nodes(source.labels, contents),
        materials=_materials(source, contents, verdict),
        coordinates=whole,
        sets=contents.sets,
        images=contents.images,
        others=contents.others,
        kept=_kept(path, source),
        changed=_changed(path, source, whole),
        lost=() if document_format(path) else source.lost,
        notes=source.notes,
    )


def _nodes(labels: FaceLabels | None, contents: Contents) -> tuple[NodeReport, ...]:
    if labels is None:
        return ()
    return tuple(
        NodeReport(
            name,
            labels.parents[index],
            int((labels.node == index).sum()),
            tuple(
                labels.materials[number]
                for number in torch.unique(labels.material[labels.node == index]).tolist()
                if number >= 0
            ),
            contents.nodes.get(index, ""),
        )
        for index, name in enumerate(labels.nodes)
    )


def _materials(
    source: SourceMesh, contents: Contents, verdict: Callable[[torch.Tensor], str]
) -> tuple[MaterialReport, ...]:
    if source.labels is None:
        return ()
    owner, names = source.labels.material, dict(enumerate(source.labels.materials))
    found = []
    for index, name in (names | ({-1: "(none)"} if bool((owner == -1).any()) else {})).items():
        faces = owner == index
        number = int(faces.sum())
        coordinates = verdict(faces) if number else "of no face"
        found.append(MaterialReport(name, number, coordinates, contents.materials.get(index, "")))
    return tuple(found)


def _kept(path: Path, source: SourceMesh) -> tuple[str, ...]:
    surface = ("vertices and faces in their order, scale and axes",)
    return (*surface, *source.lost) if document_format(path) else surface


def _changed(path: Path, source: SourceMesh, coordinates: str) -> tuple[str, ...]:
    changed = ["base colours of the materials: replaced by a new image"]
    if coordinates != USABLE and document_format(path) == "glb":
        changed.append(
            f"texture coordinates: a new set is added, as those of the file {coordinates}; vertices at its "
            "seams are copied"
        )
    elif coordinates != USABLE:
        other = "; other images of its materials become comments" if document_format(path) else ""
        changed.append(f"texture coordinates: new ones, as those of the file {coordinates}{other}")
    if source.vertex_color is not None and bool((source.vertex_color[:, :3] < 1).any()):
        place = {"glb": "stay as the attribute _COLOR_0", "obj": "stay"}.get(document_format(path) or "", "")
        if place:
            changed.append(f"vertex colours: {place}, and do not tint the new base colour")
    return tuple(changed)


def tree_lines(nodes: tuple[NodeReport, ...]) -> list[str]:
    """The nodes as indented lines, those without faces below them too."""
    children: Mapping[int, list[int]] = {
        parent: [index for index, node in enumerate(nodes) if node.parent == parent]
        for parent in range(-1, len(nodes))
    }
    lines, waiting = [], [(index, 0) for index in reversed(children[-1])]
    while waiting:
        index, depth = waiting.pop()
        node = nodes[index]
        parts = [
            f"{node.triangles} triangles" if node.triangles else "",
            ", ".join(node.materials),
            node.details,
        ]
        facts = "; ".join(part for part in parts if part)
        lines.append(f"{'  ' * depth}{node.name}{f': {facts}' if facts else ''}")
        waiting += [(child, depth + 1) for child in reversed(children[index])]
    return lines
